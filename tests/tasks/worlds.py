"""A tiny labelled world in memory, its reader, and a toy encoder, for tests of tasks and verbs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from splatlearn import registry
from splatlearn.data.scene import Reader, Scene
from splatlearn.encoders.base import PointEncoder, PointEncoderConfig, PointFeatures, input_channels, stack_inputs
from splatlearn.ops.norm import PackedBatchNorm
from splatlearn.ops.voxels import pool_mean
from splatlearn.structures import Cameras, Frames, Points, Tokens

CLASSES = ("floor", "wall", "ball")


class PatchScene(Scene):
    """A floor, a wall and a ball; the class shows in the normal and in the height, the colour is noise."""

    def __init__(self, number: int, points: int, labelled: bool, channels: tuple[str, ...]) -> None:
        self.name, self.number, self.count = f"patch{number}", number, points
        self.labelled, self.channels = labelled, channels

    def points(self) -> Points:
        rng = np.random.default_rng(self.number)
        label = rng.permutation(self.count) % 3
        a, b = rng.uniform(-1, 1, (2, self.count))
        floor = np.stack([a, b, np.zeros_like(a)], 1)
        wall = np.stack([a, np.ones_like(a), b + 1], 1)
        direction = rng.standard_normal((self.count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        ball = 0.3 * direction + [0, 0, 0.3]
        xyz = np.choose(label[:, None], [floor, wall, ball])
        normal = np.choose(label[:, None], [np.array([[0, 0, 1.0]]), np.array([[0, -1.0, 0]]), direction])
        values = {
            "color": torch.from_numpy(rng.random((self.count, 3), dtype=np.float32)),
            "normal": torch.from_numpy(normal).float(),
            "label": torch.from_numpy(np.where(rng.random(self.count) < 0.1, -1, label)),
        }
        kept = {name: values[name] for name in self.channels} | ({"label": values["label"]} if self.labelled else {})
        return Points(xyz=torch.from_numpy(xyz).float(), attributes=kept)


class FilmScene(Scene):
    """Three frames of a flat wall, with a hole in the depth, and no cloud."""

    name, up = "film", "unknown"

    @property
    def cameras(self) -> Cameras:
        intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]]).repeat(3, 1, 1)
        frame = {"frame": torch.tensor([0, 5, 10])}
        pose = torch.eye(4).repeat(3, 1, 1)
        return Cameras(world_to_camera=pose, intrinsics=intrinsics, width=8, height=6, attributes=frame)

    def frames(self, views, size) -> Frames:
        cameras = self.cameras.rows(torch.tensor(list(views))).resize(*size)
        depth = torch.full((len(views), size[1], size[0]), 2.0)
        depth[:, 0, :2] = 0
        images = torch.full((len(views), 3, size[1], size[0]), 0.5)
        return Frames(images=images, cameras=cameras, attributes={"depth": depth})


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Settings of the toy world."""

    scenes: int = 6
    points: int = 400
    labelled: bool = True
    named: bool = True
    film: bool = False
    channels: tuple[str, ...] = ("color", "normal")


class Patches(Reader):
    """A toy world."""

    needs_path = False

    def __init__(self, config: PatchConfig, path: Path | None) -> None:
        self.config = config
        self.classes = CLASSES if config.named else ()

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False

    def scenes(self) -> list[Scene]:
        c = self.config
        if c.film:
            return [FilmScene()]
        return [PatchScene(number, c.points, c.labelled, c.channels) for number in range(c.scenes)]


@dataclass(frozen=True, kw_only=True)
class PointwiseConfig(PointEncoderConfig):
    """Settings of the toy encoder."""

    inputs: tuple[str, ...] = ("color", "normal")
    width: int = 12


class Pointwise(PointEncoder):
    """A toy encoder: two layers on each point alone, two levels of the same points."""

    config: PointwiseConfig

    def __init__(self, config: PointwiseConfig) -> None:
        super().__init__()
        self.config, self.channels = config, (config.width, 4)
        self.first = nn.Linear(input_channels(config.inputs) + 1, config.width)
        self.norm = PackedBatchNorm(config.width)
        self.blocks = nn.ModuleList([nn.Linear(config.width, 4)])

    def embed(self, points: Points) -> Tokens:
        values = torch.cat([stack_inputs(points, self.config.inputs), points.xyz[:, 2:]], 1)
        features = self.norm(self.first(values)).relu()
        return Tokens(counts=points.counts, xyz=points.xyz, features=features)

    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        values: tuple[Tensor, ...] = (tokens.features, self.blocks[0](tokens.features))
        coarse = Tokens(counts=tokens.counts, xyz=tokens.xyz, features=values[1])
        return PointFeatures(
            levels=(tokens, coarse),
            summary=pool_mean(values[1], tokens.item, len(tokens.counts)),
            upsample=lambda n: values[n],
        )


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `patches` a world and `pointwise` an encoder for the length of a test."""
    patches = registry.Family("patches", Patches, PatchConfig, {"tiny": {}})
    pointwise = registry.Family("pointwise", Pointwise, PointwiseConfig, {"tiny": {}})
    monkeypatch.setitem(registry.readers._families, "patches", patches)
    monkeypatch.setitem(registry.encoders._families, "pointwise", pointwise)
