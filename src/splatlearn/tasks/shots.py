"""Images with what is true of their pixels: what probes of images train on.

Every network sees the same grid of tokens, images being resized to so many of its patches; what is true stays at the
images' own size.

Legend: h w tokens of an image's grid, H W its pixels, C channels, B images. Sizes are (width, height).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.progress import progress
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Rejected, Scene, Skipped, Source, reasons
from splatlearn.encoders.patches import fit_images
from splatlearn.errors import BadData
from splatlearn.structures import Batch, Packed
from splatlearn.tasks.clouds import keep_clouds, keep_for_tuning

T = TypeVar("T")
log = logging.getLogger("splatlearn")
UNKNOWN = "nothing is known of any pixel of the image"
Truth = Callable[[Scene, int], tuple[Tensor, Tensor]]
"""Scene and number of a view -> its image (3 H W) in [0, 1], and what is true of its pixels (H W)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows(Packed):
    """Rows of numbers.

    Args:
        values: (R ...).
    """

    values: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot(Batch):
    """Images, and what is true of their pixels.

    Args:
        tokens: (h*w C) of each image, row by row; or, where features were not computed before, its pixels (R 3).
        truth: what is true of all H*W pixels, or of some, with `place` (N 2) float32, x and y in [0, 1] from edge to
            edge.
        sizes: (B 6) int64: w h of the grid, width and height of the pixels in `tokens` or 0 0, W H.
    """

    tokens: Rows
    truth: Rows
    sizes: Rows

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(w, h) of each image."""
        return [(w, h) for w, h in self.sizes.values[:, :2].tolist()]

    def split(self) -> list[Self]:
        """One image each."""
        parts = zip(self.names, self.tokens.split(), self.truth.split(), self.sizes.split(), strict=True)
        return [replace(self, names=(n,), tokens=tokens, truth=truth, sizes=of) for n, tokens, truth, of in parts]


class Snapshot(Scene):
    """One view of a scene.

    Args:
        scene: the whole.
        view: its number.
        name: unique in the data.
    """

    def __init__(self, scene: Scene, view: int, name: str) -> None:
        self.scene, self.view, self.name, self.split = scene, view, name, scene.split
        self.drive = scene.drive or (scene.name if len(scene.cameras) > 1 else "")


class HeldShot(Scene):
    """An image in memory, its tokens computed before.

    Args:
        name: its name.
        tokens: (h*w C).
        truth: (H W); classes are kept in 16 bits.
        grid: (w, h).
    """

    def __init__(self, name: str, tokens: Tensor, truth: Tensor, grid: tuple[int, int]) -> None:
        self.name, self.tokens, self.grid = name, tokens, grid
        self.truth = truth if truth.is_floating_point() else truth.short()


@dataclass(frozen=True, kw_only=True)
class ShotData:
    """Images for a probe.

    Args:
        source: where they are. Views of recordings count as images of one drive each.
        truth: what is asked about them.
        tokens: of the grid along an image's shorter side; the longer one follows from its proportions.
        patch: of the encoder, pixels.
        rows: most pixels of a training sample, drawn at random among those that something is known of; 0 takes the
            centres of a lattice four times as fine as the grid.
        views: at most so many of a recording, evenly spaced.
        labels: share of the training images that is used.
        seed: chooses these; the same for every method.
        tuning: share of them that is kept for choosing settings, the split `tune`.
        whole: all pixels, as for evaluation.
        train, val: images in memory, which then take the place of the source's.
    """

    source: Source
    truth: Truth
    tokens: int
    patch: int
    rows: int
    views: int
    labels: float = 1.0
    seed: int = 0
    tuning: float = 0.0
    whole: bool = False
    train: tuple[HeldShot, ...] = ()
    val: tuple[HeldShot, ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether nothing is left for workers to do."""
        return bool(self.train)

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        """Images of `train`, `tune` or `val`."""
        if split == "val":
            return {"all": self.val or self._found("val")}
        used: Sequence[Scene] = keep_clouds(self.train or self._found("train"), self.labels, self.seed)
        train, tune = keep_for_tuning(used, self.tuning)
        return {"all": tune if split == "tune" else train}

    def shares(self) -> Mapping[str, float]:
        """By size."""
        return {}

    def sample(self, scene: Scene, rng: np.random.Generator) -> Shot:
        """An image with some of what is true of it, or all.

        Raises:
            Rejected: nothing is known of any of its pixels.
        """
        if isinstance(scene, HeldShot):
            tokens, truth, grid, size = scene.tokens, scene.truth, scene.grid, (0, 0)
        else:
            image, truth = self.look(scene)
            grid, pixels = self.fitted(image)
            tokens, size = pixels[0].flatten(1).t().contiguous(), (pixels.shape[3], pixels.shape[2])
        answers = self._asked(truth, grid, rng)
        if not truth.is_floating_point():
            answers = replace(answers, values=answers.values.long())
        sizes = torch.tensor([[*grid, *size, truth.shape[1], truth.shape[0]]])
        return Shot(names=(scene.name,), tokens=Rows(values=tokens), truth=answers, sizes=Rows(values=sizes))

    def each(self, split: str) -> Iterator[Shot]:
        """Every image of a split once, whole, in order."""
        whole, rng = replace(self, whole=True), np.random.default_rng(0)
        for scene in self.scenes(split)["all"]:
            yield whole.sample(scene, rng)

    def look(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """The image of a snapshot, and what is true of its pixels."""
        shot = cast(Snapshot, scene)
        return self.truth(shot.scene, shot.view)

    def fitted(self, image: Tensor) -> tuple[tuple[int, int], Tensor]:
        """The grid (w, h) of an image (3 H W), and the image resized to so many patches (1 3 h*patch w*patch)."""
        height, width = image.shape[1:]
        scale = self.tokens / min(height, width)
        grid = max(1, round(width * scale)), max(1, round(height * scale))
        return grid, fit_images(image[None], grid, self.patch)

    def _asked(self, truth: Tensor, grid: tuple[int, int], rng: np.random.Generator) -> Rows:
        height, width = truth.shape
        if self.whole:
            return Rows(values=truth.flatten())
        if self.rows:
            known = known_of(truth).flatten().nonzero().squeeze(1)
            if not len(known):
                raise Rejected(UNKNOWN)
            pixels = known[torch.from_numpy(np.sort(rng.choice(len(known), min(self.rows, len(known)), replace=False)))]
            place = torch.stack([(pixels % width + 0.5) / width, (pixels // width + 0.5) / height], 1)
            return Rows(values=truth.flatten()[pixels], attributes={"place": place})
        x, y = ((torch.arange(4 * n) + 0.5) / (4 * n) for n in grid)
        chosen = truth[(y * height).long()][:, (x * width).long()].flatten()
        place = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2).flatten(0, 1)
        return Rows(values=chosen, attributes={"place": place})

    def _found(self, split: str) -> list[Snapshot]:
        """Those of a split, of all that can be read and say anything: the same for every network."""
        key = "shots", self.truth, self.views
        if key not in self.source.memory:
            whole = self._snapshots()
            look = readable(whole, self._check, f"looking at images of {self.source.name}")
            self.source.memory[key] = [scene for scene, _ in look]
        shots: list[Snapshot] = self.source.memory[key]
        found = cast(list[Snapshot], split_scenes(shots, split)) if shots else []
        if not found:
            raise BadData(f"--data {self.source.name}: images to train on and others to validate on are needed")
        return found

    def _check(self, scene: Scene) -> None:
        if not bool(known_of(self.look(scene)[1]).any()):
            raise Rejected(UNKNOWN)

    def _snapshots(self) -> list[Snapshot]:
        shots = []
        for scene in self.source.scenes():
            count = max(1, len(scene.cameras))
            views = range(count) if count <= self.views else (i * count // self.views for i in range(self.views))
            for view in views:
                shots.append(Snapshot(scene, view, f"{scene.name}: view {view}" if count > 1 else scene.name))
        return shots


def known_of(truth: Tensor) -> Tensor:
    """Where something is known: classes from 0 on, depths above 0."""
    return truth > 0 if truth.is_floating_point() else truth >= 0


def readable(scenes: Sequence[Scene], read: Callable[[Scene], T], what: str) -> Iterator[tuple[Scene, T]]:
    """Every scene that can be read, with what was read of it; progress on standard error, and what is left out in the
    log.

    Args:
        scenes: of a split.
        read: raises `Rejected` where it cannot.
        what: is made of them, for the reader.
    """
    left_out = []
    with progress(what, len(scenes)) as tell:
        for number, scene in enumerate(scenes):
            tell(number)
            try:
                found = read(scene)
            except Rejected as error:
                left_out.append(Skipped(scene.name, error.kind))
                continue
            yield scene, found
    if left_out:
        log.warning("%d of %d images are left out: %s", len(left_out), len(scenes), reasons(left_out))
