"""A probe on a frozen encoder's tokens of images, which are computed once where memory allows.

Legend: h w tokens of an image's grid, H W its pixels, C channels, K outputs. Sizes are (width, height).
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splatlearn.config import require
from splatlearn.data.scene import Scene, Source
from splatlearn.encoders.base import FeatureMaps, ImageEncoder
from splatlearn.engine.trainable import Progress, Step
from splatlearn.errors import BadData
from splatlearn.tasks.base import Levels, ProbeName, Task, chosen_levels
from splatlearn.tasks.encoders import device_of
from splatlearn.tasks.probes import LinearProbe, MapDecoder
from splatlearn.tasks.shots import HeldShot, Shot, ShotData, readable


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
        labels: share of the training images that is used.
        seed: chooses them.
        held: what `hold` gave for this encoder.

    Raises:
        BadData: too few images, or nothing is known of them.
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
        labels: float = 1.0,
        seed: int = 0,
        held: ShotData | None = None,
    ) -> None:
        levels: Levels = config.levels if probe == "linear" else "all"
        super().__init__(encoder, probe, levels)
        self.config, self.linear, outputs = config, probe == "linear", self.outputs_of(config, source)
        width = self.width + (encoder.channels[-1] if config.summary else 0)
        heads = len(config.learning_rates)
        self.probe = LinearProbe(width, outputs, heads) if self.linear else MapDecoder(width, outputs)
        data = held or self.hold(config, encoder, source, levels) or self.shots(config, encoder, source)
        tuning = config.tuning if self.linear and heads > 1 else 0.0
        self.data = replace(data, labels=labels, seed=seed, tuning=tuning)
        self.validation = replace(self.data, whole=True)

    @classmethod
    @abstractmethod
    def outputs_of(cls, config: Any, source: Source) -> int:
        """K, the outputs of a probe."""

    @classmethod
    @abstractmethod
    def truth(cls, config: Any, scene: Scene, view: int) -> tuple[Tensor, Tensor]:
        """As `Truth` has it; where nothing is known, classes are below 0, and depths, metres, are 0 (`known_of`)."""

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
        image, truth = data.look(scenes["train"][0])
        (wide, high), _ = data.fitted(image)
        width = sum(encoder.channels[level] for level in chosen) + (encoder.channels[-1] if config.summary else 0)
        size = wide * high * width * 4 + truth.numel() * 4
        if sum(map(len, scenes.values())) * size > config.memory * 2**30:
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


@dataclass(frozen=True)
class _Truth:
    """A task's `truth` with its config; it travels to worker processes, and equal ones say the same."""

    task: type[ImageTask]
    config: Any

    def __call__(self, scene: Scene, view: int) -> tuple[Tensor, Tensor]:
        return self.task.truth(self.config, scene, view)


def tokens_of(maps: FeatureMaps, levels: Sequence[int], summary: bool) -> Tensor:
    """(h*w C) of the one image of the maps: the chosen levels side by side, then the class token."""
    parts = [maps.levels[level][0].flatten(1).t() for level in levels]
    if summary:
        parts.append(maps.summary.expand(len(parts[0]), -1))
    return torch.cat(parts, 1).float()


@torch.no_grad()
def _held(
    data: ShotData, encoder: ImageEncoder, levels: Sequence[int], summary: bool, scenes: Sequence[Scene]
) -> Iterator[HeldShot]:
    device = device_of(encoder)
    encoder.eval()
    for scene, (image, truth) in readable(scenes, data.look, f"features of {encoder.name}"):
        grid, pixels = data.fitted(image)
        tokens = tokens_of(encoder(pixels.to(device), grid), levels, summary)
        yield HeldShot(scene.name, tokens.cpu(), truth, grid)


def _read(maps: Tensor, place: Tensor) -> Tensor:
    """(N K) of maps (1 K h w) at places (N 2) in [0, 1], as `interpolate` would give them there."""
    first = torch.zeros(len(place), dtype=torch.int64, device=place.device)
    return FeatureMaps(levels=(maps,), summary=maps.mean((2, 3))).at(place, first, (1, 1))
