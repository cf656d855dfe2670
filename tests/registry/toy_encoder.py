"""A point encoder as an outside package would write it: two linear layers, levels = the points themselves."""

from dataclasses import dataclass

import torch
from torch import nn

from splatlearn.encoders.base import PointEncoder, PointEncoderConfig, PointFeatures, input_channels, stack_inputs
from splatlearn.ops.voxels import pool_mean
from splatlearn.registry import encoders
from splatlearn.structures import Points, Tokens


@dataclass(frozen=True, kw_only=True)
class ToyConfig(PointEncoderConfig):
    width: int = 16


@encoders.register("outside", ToyConfig, {"tiny": {"width": 8}})
class Toy(PointEncoder):
    """Two layers on every point alone."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Linear(input_channels(config.inputs), config.width)
        self.blocks = nn.ModuleList([nn.Linear(config.width, config.width)])
        self.channels = (config.width,)

    def embed(self, points: Points) -> Tokens:
        """One token per point."""
        features = self.stem(stack_inputs(points, self.config.inputs))
        return Tokens(counts=points.counts, xyz=points.xyz, features=features)

    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        """Tokens of the points come first in each item."""
        level = Tokens(counts=tokens.counts, xyz=tokens.xyz, features=torch.tanh(self.blocks[0](tokens.features)))
        summary = pool_mean(level.features, level.item, len(level.counts))
        own = torch.cat([torch.arange(n) + start for n, start in zip(points.counts, tokens.offsets)])
        return PointFeatures(levels=(level,), summary=summary, upsample=lambda _: level.features[own])
