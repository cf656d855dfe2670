"""A tiny encoder, data and recipe that use what the loop offers: gathers, batch norm, noise, buffers, rejects."""

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from splatlearn.data.scene import Rejected, Scene
from splatlearn.encoders.base import PointEncoder, PointEncoderConfig, PointFeatures, stack_inputs
from splatlearn.engine.config import TrainConfig
from splatlearn.engine.logs import JsonLines
from splatlearn.engine.loop import Summary, train
from splatlearn.engine.runtime import is_main
from splatlearn.engine.trainable import Progress, Recipe, Step, global_mean
from splatlearn.ops.norm import PackedBatchNorm
from splatlearn.registry import encoders
from splatlearn.structures import Batch, Points, Tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Clouds(Batch):
    points: Points


@dataclass
class ToyScene(Scene):
    """A scene of nothing but a number."""

    number: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"scene-{self.number}"


@dataclass(frozen=True, kw_only=True)
class ToyData:
    """Random clouds of unequal sizes; a share of the draws is rejected."""

    scene_count: int = 7
    points: tuple[int, int] = (30, 200)
    rejecting: float = 0.0
    poisoned: tuple[int, ...] = ()
    groups: Mapping[str, float] = field(default_factory=dict)

    def scenes(self, split: str) -> Mapping[str, Sequence[Scene]]:
        start = 0 if split == "train" else 1000
        every = [ToyScene(start + i) for i in range(self.scene_count)]
        if not self.groups:
            return {"all": every}
        return {name: every[i :: len(self.groups)] for i, name in enumerate(self.groups)}

    def shares(self) -> Mapping[str, float]:
        return self.groups

    def sample(self, scene: ToyScene, rng: np.random.Generator) -> Clouds:
        if rng.random() < self.rejecting:
            raise Rejected("too few points")
        xyz = torch.from_numpy(rng.standard_normal((rng.integers(*self.points), 3)).astype(np.float32))
        color = (xyz * (scene.number % 5 + 1)).sin() / 2 + 0.5
        if scene.number in self.poisoned:
            color[0] = float("nan")
        points = Points(xyz=xyz, attributes={"color": color, "center": xyz.mean(0).expand(len(xyz), 3).contiguous()})
        return Clouds(names=(scene.name,), points=points)


@dataclass(frozen=True, kw_only=True)
class ToyEncoderConfig(PointEncoderConfig):
    width: int = 8
    depth: int = 2
    dropout: float = 0.1


@encoders.register("toy", ToyEncoderConfig, {"default": {}, "tiny": {"width": 4}})
class ToyEncoder(PointEncoder):
    """Blocks of linear layer, batch norm and dropout, and a gather whose gradient adds many rows into one."""

    def __init__(self, config: ToyEncoderConfig) -> None:
        super().__init__()
        self.config, self.name, self.channels = config, "toy", (config.width,)
        self.stem = nn.Linear(6, config.width)
        self.blocks = nn.ModuleList(self._block(config.width, config.dropout) for _ in range(config.depth))

    @staticmethod
    def _block(width: int, dropout: float) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(width, width, bias=False), PackedBatchNorm(width), nn.GELU(), nn.Dropout(dropout)
        )

    def embed(self, points: Points) -> Tokens:
        rows = torch.cat([points.xyz, stack_inputs(points, self.config.inputs)], 1)
        return Tokens(xyz=points.xyz, counts=points.counts, features=self.stem(rows))

    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        rows = tokens.features
        for block in self.blocks:
            rows = rows + block(rows)
        means = rows.new_zeros(len(points.counts), rows.shape[1]).index_add(0, points.item, rows)
        rows = rows + 0.01 * means[points.item]
        level = Tokens(xyz=tokens.xyz, counts=tokens.counts, features=rows)
        return PointFeatures(levels=(level,), summary=means, upsample=lambda _: rows)


class ToyRecipe(Recipe[Clouds]):
    """Predicts a sample's sines; the head's `unused` never gets a gradient, `shift` is a statistic of `setup`."""

    shift: Tensor

    def __init__(
        self, data: ToyData, *, seed: int = 0, noise: float = 0.1, dropout: float = 0.1, pause: float = 0.0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.data = self.validation = data
        self.noise, self.pause = noise, pause
        self.student = ToyEncoder(ToyEncoderConfig(dropout=dropout))
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("shift", torch.zeros(3))

    def setup(self, batches: Iterable[Clouds]) -> None:
        colors = torch.cat([batch.points["color"] for batch in batches]).nan_to_num()
        self.shift.copy_(torch.stack([global_mean(channel) for channel in colors.T]))

    def forward(self, batch: Clouds, progress: Progress) -> Step:
        time.sleep(self.pause)
        points = batch.points
        predicted = self.head(self.student(points).dense()) + self.noise * torch.randn_like(points.xyz)
        error = (predicted + self.shift - points["color"]).float()
        losses = {"square": global_mean(error.square()), "absolute": 0.1 * global_mean(error.abs())}
        return Step(losses, {"fraction": torch.tensor(progress.fraction)})

    def evaluate(self, batches: Iterable[Clouds]) -> dict[str, float]:
        errors = [self.head(self.student(b.points).dense()) + self.shift - b.points["color"] for b in batches]
        return {"val_error": float(torch.cat(errors).square().mean())}

    def describe(self) -> dict[str, object]:
        return {"gaussians_per_sample": 3}


TINY = {"steps": 12, "batch": 4, "learning_rate": 1e-2, "checkpoint_every": 4, "setup_batches": 3, "ema": 0.9}


def toy_config(**options: Any) -> TrainConfig:
    return TrainConfig(**{**TINY, **options})


def run_toy(
    run: Path, recipe: ToyRecipe | None = None, resume: Literal["auto", "never"] = "auto", **options: Any
) -> Summary:
    """Trains the toy; `options` are those of `TrainConfig`."""
    recipe = recipe or ToyRecipe(ToyData(rejecting=0.2))
    settings = {"recipe": "toy", "encoder": "toy", "data": {"name": "toy"}}
    return train(recipe, toy_config(**options), run, settings=settings, resume=resume, show=False)


def run_threaded(run: Path, pause: float = 0.0, **options: Any) -> None:
    """The toy on two threads, with clouds so large that the gradient of indexing is split between them."""
    torch.set_num_threads(2)
    data = ToyData(points=(1100, 1600), rejecting=0.2)
    run_toy(run, ToyRecipe(data, pause=pause), **options)


def join(rank: int, ranks: int, port: int) -> None:
    """Makes this process one of several."""
    torch.set_num_threads(1)
    if ranks > 1:
        values = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")


def run_rank(run: Path, rank: int, ranks: int, port: int, **options: Any) -> None:
    """One of the processes that torchrun would start, without noise inside the model."""
    join(rank, ranks, port)
    data = ToyData(rejecting=0.2, poisoned=(2,) if options.pop("poisoned", False) else ())
    run_toy(run, ToyRecipe(data, noise=0.0, dropout=0.0), device="cpu", **options)


def run_rank_apart(folder: Path, rank: int, ranks: int, port: int, **options: Any) -> None:
    """As `run_rank`, each rank with a folder of its own; writes what it is told."""
    join(rank, ranks, port)
    summary = run_toy(folder / f"run{rank}", ToyRecipe(ToyData()), device="cpu", **options)
    told = {"metrics": summary.metrics, "steps": summary.steps, "main": is_main()}
    (folder / f"{rank}.json").write_text(json.dumps(told))


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in JsonLines(run / "log.jsonl").records()]


def final_digests(run: Path) -> Mapping[str, str]:
    """Digests of the tensors in the newest checkpoint."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    digests = json.loads((newest / "manifest.json").read_text())["sha256"]
    return {name: value for name, value in digests.items() if name.endswith(".safetensors")}
