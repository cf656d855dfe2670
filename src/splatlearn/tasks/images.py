"""Images with what is true of their pixels, and a probe on a frozen encoder's tokens of them.

Every network sees the same grid of tokens, images being resized to so many of its patches; what is true stays at the
images' own size. The features of a frozen encoder are computed once where memory allows.

Legend: h w tokens of an image's grid, H W its pixels, C channels, K outputs, B images. Sizes are (width, height).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.config import require
from splatlearn.data.sampling import split_scenes
from splatlearn.data.scene import Rejected, Scene, Source
from splatlearn.encoders.base import FeatureMaps, ImageEncoder
from splatlearn.encoders.patches import fit_images
from splatlearn.engine.trainable import Progress, Step
from splatlearn.errors import BadData
from splatlearn.structures import Batch, Packed
from splatlearn.tasks.base import Levels, ProbeName, Task, chosen_levels
from splatlearn.tasks.clouds import keep_clouds, keep_for_tuning
from splatlearn.tasks.encoders import device_of
from splatlearn.tasks.probes import LinearProbe, MapDecoder

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
        truth: (H W).
        grid: (w, h).
    """

    def __init__(self, name: str, tokens: Tensor, truth: Tensor, grid: tuple[int, int]) -> None:
        self.name, self.tokens, self.truth, self.grid = name, tokens, truth, grid


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
            shot = cast(Snapshot, scene)
            image, truth = self.truth(shot.scene, shot.view)
            grid, pixels = self.fitted(image)
            tokens, size = pixels[0].flatten(1).t().contiguous(), (pixels.shape[3], pixels.shape[2])
        values, place = self._asked(truth, grid, rng)
        sizes = torch.tensor([[*grid, *size, truth.shape[1], truth.shape[0]]])
        answers = Rows(values=values, attributes={"place": place})
        return Shot(names=(scene.name,), tokens=Rows(values=tokens), truth=answers, sizes=Rows(values=sizes))

    def each(self, split: str) -> Iterator[Shot]:
        """Every image of a split once, whole, in order."""
        whole, rng = replace(self, whole=True), np.random.default_rng(0)
        for scene in self.scenes(split)["all"]:
            yield whole.sample(scene, rng)

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


@dataclass(frozen=True, kw_only=True)
class ImageTaskConfig:
    """Settings of every probe of pixels.

    Args:
        tokens: of the grid along the shorter side of an image, for every network: its images are resized to so many of
            its patches.
        levels: levels of the encoder that a linear probe sees: the deepest (DINOv2), or all side by side; a decoder
            sees all.
        summary: whether the class token is put beside every patch (DINOv2's linear depth: yes).
        rows: pixels of an image in a training sample; 0 takes a lattice four times as fine as the grid.
        views: at most so many of a recording, evenly spaced.
        steps: optimiser steps.
        batch: images a step.
        learning_rates: peaks for the layers of a linear probe, highest first; the layer with the least loss on the
            images kept for tuning is used.
        tuning: share of the training images that is kept for this choice and not trained on; where there are fewer
            than five, the training images decide.
        decoder_learning_rate: peak of a decoder probe.
        weight_decay: of AdamW (DINOv2: 1e-4).
        memory: GiB that the features of a frozen encoder may take; where they need more, the encoder runs at every
            step.
    """

    tokens: int = 32
    levels: Levels = "finest"
    summary: bool = False
    rows: int = 4096
    views: int = 64
    steps: int = 1000
    batch: int = 8
    learning_rates: tuple[float, ...] = (1e-1, 2e-2, 4e-3, 1e-3)
    tuning: float = 0.2
    decoder_learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    memory: float = 4.0

    def __post_init__(self) -> None:
        least = {"tokens": 1, "rows": 0, "views": 1, "steps": 1, "batch": 1, "weight_decay": 0, "memory": 0}
        at = {name: getattr(self, name) for name in least}
        require(
            {
                **{f"{name}: {low} or more is needed, got {at[name]}": at[name] >= low for name, low in least.items()},
                f"learning_rates: one or more above zero are needed, got {self.learning_rates}": (
                    min(self.learning_rates, default=0) > 0
                ),
                f"decoder_learning_rate: above zero is needed, got {self.decoder_learning_rate}": (
                    self.decoder_learning_rate > 0
                ),
                f"tuning: a share in [0, 1) is needed, got {self.tuning}": 0 <= self.tuning < 1,
            }
        )


class ImageTask(Task[Shot]):
    """A probe on the tokens of a frozen image encoder. Subclasses say what is true, and what is made of the outputs.

    Args:
        config: settings.
        encoder: frozen.
        source: the images.
        probe: `linear` or `decoder`.
        outputs: K.
        labels: share of the training images that is used.
        seed: chooses them.
        held: what `hold` gave for this encoder.
    """

    encodes = ImageEncoder
    probes = ("linear", "decoder")
    encoder: ImageEncoder
    probe: Any
    data: ShotData
    validation: ShotData

    def __init__(
        self,
        config: Any,
        *,
        encoder: ImageEncoder,
        source: Source,
        probe: ProbeName = "linear",
        outputs: int,
        labels: float = 1.0,
        seed: int = 0,
        held: ShotData | None = None,
    ) -> None:
        levels: Levels = config.levels if probe == "linear" else "all"
        super().__init__(encoder, probe, levels)
        self.config, self.linear = config, probe == "linear"
        width = self.width + (encoder.channels[-1] if config.summary else 0)
        heads = len(config.learning_rates)
        self.probe = LinearProbe(width, outputs, heads) if self.linear else MapDecoder(width, outputs)
        data = held or self.hold(config, encoder, source, levels) or self.shots(config, encoder, source)
        tuning = config.tuning if self.linear and heads > 1 else 0.0
        self.data = replace(data, labels=labels, seed=seed, tuning=tuning)
        self.validation = replace(self.data, whole=True)

    @classmethod
    @abstractmethod
    def truth(cls, config: Any, scene: Scene, view: int) -> tuple[Tensor, Tensor]:
        """As `Truth` has it: -1, or any other number below zero, where nothing is known."""

    @abstractmethod
    def losses(self, batch: Shot) -> Tensor:
        """(L) scalars, one for each layer of a linear probe, or of the decoder alone."""

    def forward(self, batch: Shot, progress: Progress) -> Step:
        """Losses, summed over a linear probe's layers, which share nothing."""
        losses = self.losses(batch)
        return Step({"probe": losses.sum()}, {"least": losses.detach().min()})

    @classmethod
    def shots(cls, config: Any, encoder: ImageEncoder, source: Source) -> ShotData:
        """The images, without features."""
        return ShotData(
            source=source,
            truth=_Truth(cls, config),
            tokens=config.tokens,
            patch=encoder.patch,
            rows=config.rows,
            views=config.views,
        )

    @classmethod
    def training(cls, config: Any, probe: ProbeName) -> dict[str, Any]:
        """AdamW with one cycle."""
        highest = config.learning_rates[0]
        each = {f"probe.heads.{i}.*": rate / highest for i, rate in enumerate(config.learning_rates)}
        return {
            "steps": config.steps,
            "batch": config.batch,
            "learning_rate": highest if probe == "linear" else config.decoder_learning_rate,
            "rates": each if probe == "linear" else {},
            "weight_decay": config.weight_decay,
            "schedule": "one-cycle",
            "warmup": 0.1,
        }

    @classmethod
    def hold(cls, config: Any, encoder: ImageEncoder, source: Source, levels: Levels | None = None) -> ShotData | None:
        """Every image with its tokens, on the host; None where `config.memory` would not do, judged by the first."""
        data = cls.shots(config, encoder, source)
        chosen = chosen_levels(encoder, levels or config.levels)
        scenes = {split: data.scenes(split)["all"] for split in ("train", "val")}
        first = data.fitted(data.truth(*_view(scenes["train"][0]))[0])[0]
        width = sum(encoder.channels[level] for level in chosen) + (encoder.channels[-1] if config.summary else 0)
        if sum(map(len, scenes.values())) * first[0] * first[1] * width * 4 > config.memory * 2**30:
            return None
        held = {split: tuple(_held(data, encoder, chosen, config.summary, of)) for split, of in scenes.items()}
        for split, found in held.items():
            if not found:
                raise BadData(f"--data {source.name}: no image of {split} can be read")
        return replace(data, **held)

    @torch.no_grad()
    def features(self, batch: Shot) -> Tensor:
        """(N C) tokens of all images, one after another."""
        parts = []
        for item, (grid, size) in enumerate(zip(batch.grids, batch.sizes.values[:, 2:4].tolist(), strict=True)):
            values = batch.tokens.slice(item).values
            if size[0]:
                pixels = values.t().unflatten(1, (size[1], size[0]))[None]
                values = tokens_of(self.encoder(pixels, grid), self.levels, self.config.summary)
            parts.append(values)
        return torch.cat(parts)

    def maps(self, batch: Shot) -> list[list[Tensor]]:
        """(1 K ...) maps of outputs of every image, for each layer of a linear probe, or of the decoder alone."""
        tokens, grids = self.features(batch), batch.grids
        if not self.linear:
            return [[part[None] for part in self.probe(tokens, grids)]]
        sizes = [w * h for w, h in grids]
        rows = (outputs.split(sizes) for outputs in self.probe.each(tokens))
        return [[part.t().unflatten(1, (h, w))[None] for part, (w, h) in zip(of, grids)] for of in rows]

    def outputs(self, batch: Shot) -> list[Tensor]:
        """(N K) at the places asked about, for each layer."""
        places = [part["place"] for part in batch.truth.split()]
        return [torch.cat([_read(*both) for both in zip(maps, places, strict=True)]) for maps in self.maps(batch)]

    def best(self, batch: Shot) -> list[Tensor]:
        """(1 K ...) maps of outputs of every image, by the chosen layer."""
        return self.maps(batch)[int(self.probe.best) if self.linear else 0]

    def choose(self) -> None:
        """Takes the layer of a linear probe with the least loss over the images kept for tuning."""
        if not self.linear or len(self.config.learning_rates) == 1:
            return
        rng = np.random.default_rng(0)
        shots = (self.data.sample(scene, rng) for scene in self.data.scenes("tune")["all"])
        losses = [self.losses(shot.to(self.probe.best.device)) for shot in shots]
        self.probe.best.fill_(int(torch.stack(losses).mean(0).argmin()))


class _Truth:
    """A task's `truth` with its config; it travels to worker processes."""

    def __init__(self, task: type[ImageTask], config: Any) -> None:
        self.task, self.config = task, config

    def __call__(self, scene: Scene, view: int) -> tuple[Tensor, Tensor]:
        return self.task.truth(self.config, scene, view)


def tokens_of(maps: FeatureMaps, levels: Sequence[int], summary: bool) -> Tensor:
    """(h*w C) of the one image of the maps: the chosen levels side by side, then the class token."""
    parts = [maps.levels[level][0].flatten(1).t() for level in levels]
    if summary:
        parts.append(maps.summary.expand(len(parts[0]), -1))
    return torch.cat(parts, 1).float()


def _view(scene: Scene) -> tuple[Scene, int]:
    shot = cast(Snapshot, scene)
    return shot.scene, shot.view


@torch.no_grad()
def _held(
    data: ShotData, encoder: ImageEncoder, levels: Sequence[int], summary: bool, scenes: Sequence[Scene]
) -> Iterator[HeldShot]:
    device = device_of(encoder)
    encoder.eval()
    for scene in scenes:
        try:
            image, truth = data.truth(*_view(scene))
        except Rejected:
            continue
        grid, pixels = data.fitted(image)
        tokens = tokens_of(encoder(pixels.to(device), grid), levels, summary)
        yield HeldShot(scene.name, tokens.cpu(), truth, grid)


def _read(maps: Tensor, place: Tensor) -> Tensor:
    """(N K) of maps (1 K h w) at places (N 2) in [-1, 1], bilinear, as `interpolate` would give them there."""
    found = functional.grid_sample(maps, place[None, None], align_corners=False, padding_mode="border")
    return found[0, :, 0].t()
