"""PointNet++ as VoteNet's backbone, with feature propagation back to every input point.

Legend: N points, M tokens of a level, k neighbours, C channels. Metres, world.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf
from typing import cast

import torch
from torch import Tensor, nn

from splatlearn.config import require
from splatlearn.encoders.base import PointEncoder, PointEncoderConfig, PointFeatures, input_channels, stack_inputs
from splatlearn.errors import UserError
from splatlearn.ops.neighbors import ball_query, farthest_point_sampling, hashed_order, interpolate, three_nearest
from splatlearn.ops.norm import PackedBatchNorm
from splatlearn.ops.voxels import pool_mean
from splatlearn.registry import encoders
from splatlearn.structures import Points, Tokens

Widths = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PointNet2Config(PointEncoderConfig):
    """Config of `PointNet2`. The defaults are VoteNet's sizes (models/backbone_module.py).

    Args:
        inputs: attributes stacked besides the place relative to the group's centre; may be empty.
        samples: tokens of each level, finest first.
        radii: of the balls around them, metres (in a metric scene).
        neighbors: points of a ball that are looked at.
        widths: layers of each level's MLP.
        up_widths: layers of the feature propagation, coarsest first: as many as levels less one lead to the finest
            level, one more leads to the input points. VoteNet has two, to the second level; the two more are ours.
        power: of the distance in the inverse-distance weights; VoteNet 1.
        norm_momentum: of the batch norms.
    """

    samples: tuple[int, ...] = (2048, 1024, 512, 256)
    radii: tuple[float, ...] = (0.2, 0.4, 0.8, 1.2)
    neighbors: tuple[int, ...] = (64, 32, 16, 16)
    widths: tuple[Widths, ...] = ((64, 64, 128), (128, 128, 256), (128, 128, 256), (128, 128, 256))
    up_widths: tuple[Widths, ...] = ((256, 256), (256, 256), (256, 128), (128, 128))
    power: int = 1
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        per_level = {name: getattr(self, name) for name in ("samples", "radii", "neighbors", "widths", "up_widths")}
        sizes = [len(values) for values in per_level.values()]
        rules = {
            f"{', '.join(per_level)}: one entry per level is needed, got {', '.join(map(str, sizes))}": (
                len(set(sizes)) == 1 and sizes[0] > 0
            ),
            f"radii: metres above zero are needed, got {self.radii}": all(0 < radius < inf for radius in self.radii),
            f"power: 1 or 2 is allowed, got {self.power}": self.power in (1, 2),
            f"norm_momentum: a share in (0, 1] is needed, got {self.norm_momentum}": 0 < self.norm_momentum <= 1,
        }
        for name in ("samples", "neighbors"):
            numbers = per_level[name]
            rules[f"{name}: 1 or more are needed, got {numbers}"] = all(number >= 1 for number in numbers)
        for name in ("widths", "up_widths"):
            levels = per_level[name]
            rules[f"{name}: a layer or more of 1 or more channels a level are needed, got {levels}"] = all(
                level and min(level) >= 1 for level in levels
            )
        require(rules)


class Layer(nn.Module):
    """Linear without bias, batch norm, ReLU: a 1x1 convolution over rows."""

    def __init__(self, in_channels: int, channels: int, momentum: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, channels, bias=False)
        nn.init.kaiming_normal_(self.linear.weight)
        self.norm = PackedBatchNorm(channels, momentum=momentum)

    def forward(self, rows: Tensor) -> Tensor:
        """(R in) -> (R out)."""
        return self.norm(self.linear(rows)).relu_()


class Perceptron(nn.Module):
    """Layers one after another, in `blocks`."""

    def __init__(self, in_channels: int, widths: Sequence[int], momentum: float) -> None:
        super().__init__()
        sizes = [in_channels, *widths]
        self.blocks = nn.ModuleList(Layer(i, o, momentum) for i, o in pairwise(sizes))


class SetAbstraction(Perceptron):
    """Farthest point sampling, balls around the samples, an MLP over their points, the maximum of each ball."""

    def __init__(
        self, in_channels: int, widths: Sequence[int], samples: int, radius: float, neighbors: int, momentum: float
    ) -> None:
        super().__init__(3 + in_channels, widths, momentum)
        self.samples, self.radius, self.neighbors = samples, radius, neighbors

    def forward(self, tokens: Tokens) -> Tokens:
        """A coarser level."""
        chosen, counts = farthest_point_sampling(tokens.xyz, tokens.counts, self.samples)
        centers = tokens.xyz[chosen]
        group = ball_query(centers, counts, tokens.xyz, tokens.counts, self.radius, self.neighbors).flatten()
        offsets = (tokens.xyz[group] - centers.repeat_interleave(self.neighbors, 0)) / self.radius
        rows = self._first(offsets, tokens.features, group)
        for layer in self.blocks[1:]:
            rows = layer(rows)
        features = rows.unflatten(0, (len(centers), self.neighbors)).max(1).values
        return Tokens(counts=counts, xyz=centers, features=features)

    def _first(self, offsets: Tensor, features: Tensor, group: Tensor) -> Tensor:
        """The first layer on [offset, features]; the features' part is computed once per point, not per pair."""
        layer = cast(Layer, self.blocks[0])
        place, rest = layer.linear.weight.split([3, features.shape[1]], 1)
        rows = nn.functional.linear(offsets, place)
        if features.shape[1]:
            rows = rows + nn.functional.linear(features, rest).index_select(0, group)
        return layer.norm(rows).relu_()


class FeaturePropagation(Perceptron):
    """Three-point interpolation from a coarser level, joined with the finer level's own features, then an MLP."""

    def __init__(self, coarse: int, fine: int, widths: Sequence[int], momentum: float, power: int) -> None:
        super().__init__(coarse + fine, widths, momentum)
        self.power = power

    def forward(self, fine: Tokens, coarse: Tokens) -> Tokens:
        """The finer level with new features."""
        rows = torch.cat([spread(fine, coarse, self.power), fine.features], 1)
        for layer in self.blocks:
            rows = layer(rows)
        return Tokens(counts=fine.counts, xyz=fine.xyz, features=rows)


def spread(fine: Tokens | Points, coarse: Tokens, power: int) -> Tensor:
    """(N C) the coarse features at the fine level's places, by three-point interpolation."""
    rows, weights = three_nearest(fine.xyz, fine.counts, coarse.xyz, coarse.counts, power)
    return interpolate(coarse.features, rows, weights.to(coarse.features.dtype))


@encoders.register(
    "pointnet2",
    PointNet2Config,
    {
        "small": {
            "samples": (2048, 512, 128, 64),
            "neighbors": (16, 16, 16, 16),
            "radii": (0.1, 0.3, 0.8, 1.2),
            "widths": ((32, 32, 64), (64, 64, 128), (128, 128, 128), (128, 128, 128)),
            "up_widths": ((128, 128), (128, 128), (128, 64), (64, 64)),
        },
        "tiny": {
            "samples": (256, 64),
            "neighbors": (8, 8),
            "radii": (0.3, 0.8),
            "widths": ((16, 16), (32, 32)),
            "up_widths": ((32,), (16,)),
        },
        "votenet": {},
    },
)
class PointNet2(PointEncoder):
    """PointNet++ set abstraction on points (VoteNet's backbone).

    `levels` are those of the feature propagation, finest first: every input point, then the samples of each
    level (VoteNet's 1024 seeds are `levels[2]`), the last one without propagation. Points are first put into an
    order that depends on their coordinates and inputs alone (a hash), which is what farthest point sampling
    starts from and balls fill up by; so permuting the input points permutes the output rows bit for bit (equal
    points share theirs).

    Args:
        config: see `PointNet2Config`.
    """

    config: PointNet2Config

    def __init__(self, config: PointNet2Config) -> None:
        super().__init__()
        self.config = config
        widths = [input_channels(config.inputs), *(w[-1] for w in config.widths)]
        sizes = zip(widths, config.widths, config.samples, config.radii, config.neighbors)
        self.down = nn.ModuleList(SetAbstraction(*size, config.norm_momentum) for size in sizes)
        coarse = [widths[-1], *(w[-1] for w in config.up_widths)]
        self.up = nn.ModuleList(
            FeaturePropagation(c, f, w, config.norm_momentum, config.power)
            for c, f, w in zip(coarse, widths[-2::-1], config.up_widths)
        )
        self.channels = tuple(coarse[::-1])

    def embed(self, points: Points) -> Tokens:
        """The first set abstraction: its samples, with the features of the balls around them.

        Raises:
            UserError: coordinates that are not finite.
        """
        return self.down[0](self._ordered(points)[0])

    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        """Features from the first level's tokens; added tokens take part in all coarser levels."""
        inputs, order = self._ordered(points)
        levels = [inputs, tokens]
        for stage in self.down[1:]:
            levels.append(stage(levels[-1]))
        outputs = [levels[-1]]
        for stage, finer in zip(self.up, levels[-2::-1]):
            outputs.append(stage(finer, outputs[-1]))
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        summary = pool_mean(outputs[0].features, outputs[0].item, len(points.counts))
        outputs[-1] = outputs[-1].rows(back)
        upsample = partial(_upsample, outputs[::-1], points, self.config.power)
        return PointFeatures(levels=tuple(outputs[::-1]), summary=summary, upsample=upsample)

    def _ordered(self, points: Points) -> tuple[Tokens, Tensor]:
        """The points with their inputs as features, in hashed order, and that order."""
        if not bool(torch.isfinite(points.xyz).all()):
            raise UserError("pointnet2: points with coordinates that are not finite; drop them first")
        values = stack_inputs(points, self.config.inputs)
        order = hashed_order(torch.cat([points.xyz, values], 1), points.item)
        return Tokens(counts=points.counts, xyz=points.xyz[order], features=values[order]), order


def _upsample(levels: list[Tokens], points: Points, power: int, level: int) -> Tensor:
    """(N C) features of a level at every input point; the finest has them as they are."""
    level = range(len(levels))[level]
    return levels[0].features if level == 0 else spread(points, levels[level], power)
