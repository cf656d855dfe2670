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
        truth: what is true of some pixels, or of all H*W, with `place` (N 2) float32, x and y in [-1, 1] from edge to
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
        values, place = self._asked(truth, grid, rng)
        values = values if values.is_floating_point() else values.long()
        sizes = torch.tensor([[*grid, *size, truth.shape[1], truth.shape[0]]])
        answers = Rows(values=values, attributes={"place": place})
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

    def _asked(self, truth: Tensor, grid: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        height, width = truth.shape
        if self.whole or not self.rows:
            size = (width, height) if self.whole else (4 * grid[0], 4 * grid[1])
            x, y = ((torch.arange(n) + 0.5) / n for n in size)
            chosen = truth[(y * height).long()][:, (x * width).long()].flatten()
            place = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2).flatten(0, 1)
            return chosen, 2 * place - 1
        known = (truth.flatten() >= 0).nonzero().squeeze(1)
        if not len(known):
            raise Rejected("nothing is known of any pixel of the image")
        pixels = known[torch.from_numpy(np.sort(rng.choice(len(known), min(self.rows, len(known)), replace=False)))]
        place = torch.stack([(pixels % width + 0.5) / width, (pixels // width + 0.5) / height], 1)
        return truth.flatten()[pixels], 2 * place - 1

    def _found(self, split: str) -> list[Snapshot]:
        shots = []
        for scene in self.source.scenes():
            count = max(1, len(scene.cameras))
            views = range(count) if count <= self.views else (i * count // self.views for i in range(self.views))
            for view in views:
                shots.append(Snapshot(scene, view, f"{scene.name}: view {view}" if count > 1 else scene.name))
        found = cast(list[Snapshot], split_scenes(shots, split))
        if not found:
            raise BadData(f"--data {self.source.name}: images to train on and others to validate on are needed")
        return found


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
                left_out.append(Skipped(scene.name, str(error)))
                continue
            yield scene, found
    if left_out:
        log.warning("%d of %d images are left out: %s", len(left_out), len(scenes), reasons(left_out))
