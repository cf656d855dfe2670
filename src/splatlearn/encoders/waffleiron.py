"""WaffleIron: points as rows throughout, mixed on 2D grids and channel by channel (ICCV 2023; ScaLR's backbone).

Legend: N points, M tokens (kept points), B items, k neighbours, C channels. Metres, world; a lidar scan's world has
its origin in the sensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from splatlearn.config import require
from splatlearn.encoders.base import PointEncoder, PointEncoderConfig, PointFeatures, input_channels, stack_inputs
from splatlearn.errors import UserError
from splatlearn.ops.linear import linear_of
from splatlearn.ops.neighbors import hashed_order, knn
from splatlearn.ops.norm import LinearBatchNorm, PackedBatchNorm
from splatlearn.ops.pairs import pooled_perceptron
from splatlearn.ops.planes import Plane, mix_on_plane
from splatlearn.ops.voxels import first_of_voxels, pool_mean
from splatlearn.registry import encoders
from splatlearn.structures import Points, Tokens

PlaneName = Literal["xy", "xz", "yz"]
Corner = tuple[float, float, float]
ACTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": functional.gelu}
MARGIN = 1e-4
"""Metres by which a point must lie within the field of view (ScaLR code)."""


@dataclass(frozen=True, kw_only=True)
class WaffleIronConfig(PointEncoderConfig):
    """Config of `WaffleIron`. The defaults are ScaLR's; grids and field of view hold no weights.

    Args:
        inputs: attributes stacked as input channels, in the order of the published weights.
        depth: blocks, each a spatial mix and a channel mix.
        width: channels.
        act: activation of both mixes: `gelu` in ScaLR+, `relu` in ScaLR and WaffleIron. The stem's is ReLU in all.
        norm: of both mixes: `layernorm` in ScaLR, `batchnorm` in WaffleIron's own weights.
        drop_path: share of items that skip a mix in train mode, the same at every depth; ScaLR+ has 0.2.
        voxel: edge of the voxels of which one point is kept, metres.
        fov_min, fov_max: corners of the field of view, metres; points outside are not encoded.
        planes: grids that the blocks take turns on.
        grids: cells of each of them along its two axes.
        neighbors: k of the stem.
    """

    inputs: tuple[str, ...] = ("reflectance", "position", "radius")
    depth: int = 48
    width: int = 768
    act: Literal["relu", "gelu"] = "gelu"
    norm: Literal["layernorm", "batchnorm"] = "layernorm"
    drop_path: float = 0.0
    voxel: float = 0.1
    fov_min: Corner = (-64.0, -64.0, -8.0)
    fov_max: Corner = (64.0, 64.0, 8.0)
    planes: tuple[PlaneName, ...] = ("xy", "xz", "yz")
    grids: tuple[tuple[int, int], ...] = ((256, 256), (256, 32), (256, 32))
    neighbors: int = 16

    def __post_init__(self) -> None:
        view = f"{self.fov_min} and {self.fov_max}"
        sides = [high - low for low, high in zip(self.fov_min, self.fov_max)]
        require(
            {
                f"depth: 1 or more is needed, got {self.depth}": self.depth >= 1,
                f"width: 1 or more is needed, got {self.width}": self.width >= 1,
                f"drop_path: a share in [0, 1) is needed, got {self.drop_path}": 0 <= self.drop_path < 1,
                f"voxel: metres above zero are needed, got {self.voxel}": 0 < self.voxel < inf,
                f"fov_min, fov_max: a box is needed, got {view}": all(2 * MARGIN < side < inf for side in sides),
                f"planes, grids: one shape per plane is needed, got {self.planes} and {self.grids}": (
                    len(self.planes) == len(self.grids) > 0
                ),
                f"grids: 1 or more cells are needed, got {self.grids}": all(min(grid) >= 1 for grid in self.grids),
                f"neighbors: 1 to 32767 are allowed, got {self.neighbors}": 1 <= self.neighbors < 1 << 15,
                "inputs: at least one attribute is needed, reflectance for instance": bool(self.inputs),
            }
        )

    def precompute(self, points: Points) -> Points:
        """Adds `neighbors` (N k), row numbers within the item; a row that has too few has itself in their place.

        The points are taken as they are from then on: thinned, cropped and augmented before.
        """
        if "neighbors" in points:
            return points
        _, rows = knn(points.xyz, points.counts, points.xyz, points.counts, self.neighbors + 1)
        starts = torch.tensor(points.offsets[:-1], device=points.device)[points.item]
        return points.with_attributes(neighbors=rows[:, 1:] - starts[:, None])

    def inside(self, points: Points) -> Tensor:
        """(N) bool, whether a point lies within the field of view."""
        low, high = points.xyz.new_tensor(self.fov_min), points.xyz.new_tensor(self.fov_max)
        return ((points.xyz > low + MARGIN) & (points.xyz < high - MARGIN)).all(1)

    def kept(self, points: Points) -> Tensor:
        """(M) rows, ascending: one point a voxel within the field of view, chosen by a hash of what it carries.

        What is computed from the coordinates is not hashed: devices may round it otherwise.

        Raises:
            UserError: coordinates that are not finite, or a cloud without a point in the field of view.
        """
        carried = stack_inputs(points, [name for name in self.inputs if name in points])
        order = hashed_order(torch.cat([points.xyz, carried], 1), points.item)
        rows = order[first_of_voxels(points.xyz[order], points.counts, self.voxel)]
        rows = rows[self.inside(points)[rows]].sort().values
        sizes = torch.bincount(points.item[rows], minlength=len(points.counts)).tolist()
        if lost := [i for i, (n, m) in enumerate(zip(points.counts, sizes)) if n and not m]:
            raise UserError(
                f"waffleiron: no point of items {lost} lies in the field of view, {self.fov_min} to {self.fov_max} "
                "metres; is the origin in the sensor, and the unit the metre? Otherwise set fov_min and fov_max"
            )
        return rows


class Stem(nn.Module):
    """Each point's inputs, and the largest response to its differences from its neighbours."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = PackedBatchNorm(channels)
        self.point = nn.Linear(channels, width)
        self.pair_norm = PackedBatchNorm(channels)
        self.pair = nn.Linear(channels, width, bias=False)
        self.hidden_norm = LinearBatchNorm(width)
        self.hidden = nn.Linear(width, width, bias=False)
        self.join = nn.Linear(2 * width, width)

    def forward(self, values: Tensor, neighbors: Tensor) -> Tensor:
        """Inputs (M I) and rows of neighbours (M k) -> (M C)."""
        values = self.norm(values)
        pairs = functional.embedding(neighbors, values) - values[:, None]
        rows = self.pair_norm(pairs.flatten(0, 1))
        weight, bias = self.hidden_norm.fold(rows, self.pair.weight)
        around = pooled_perceptron(rows.view_as(pairs), weight, bias, self.hidden.weight)
        return self.join(torch.cat([self.point(values), around], 1))


class Mix(nn.Module):
    """A residual that is normalised before and scaled channel by channel after; items may skip it in train mode."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width) if config.norm == "layernorm" else PackedBatchNorm(config.width)
        self.scale = nn.Parameter(torch.empty(1, config.width).uniform_(-1, 1))  # torch's start of a convolution
        self.act, self.drop_path = ACTS[config.act], config.drop_path

    def add(self, tokens: Tensor, change: Tensor, item: Tensor, items: int) -> Tensor:
        """tokens + change, in the latter's memory where that fits.

        With drop path the change is left out for whole items, and larger for the rest: on average it is the same.
        """
        if self.training and self.drop_path:
            share = 1 - self.drop_path
            factor = (torch.rand(items, 1, device=change.device) < share).to(change.dtype) / share
            change = change * factor.index_select(0, item)
        return change.add_(tokens) if change.dtype == tokens.dtype else tokens + change


class Depthwise(nn.Module):
    """Weights of a depthwise 3x3 convolution: kernel (9 C), first axis of the grid slowest, and bias (C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(9, width).uniform_(-1 / 3, 1 / 3))  # torch's start of a convolution
        self.bias = nn.Parameter(torch.empty(width).uniform_(-1 / 3, 1 / 3))


class SpatialMix(Mix):
    """Tokens averaged over the cells of a grid, two depthwise 3x3 convolutions, and back to the tokens."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__(config)
        self.first, self.second = Depthwise(config.width), Depthwise(config.width)

    def forward(self, tokens: Tensor, plane: Plane, item: Tensor, items: int) -> Tensor:
        """(M C) -> (M C)."""
        first = self.first.weight, self.first.bias
        second = self.second.weight * self.scale, self.second.bias * self.scale[0]
        return self.add(tokens, mix_on_plane(self.norm(tokens), first, second, plane, self.act), item, items)


class ChannelMix(Mix):
    """Two linear layers on every token. What is cheap to make again is not kept for backward: norm and activation."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__(config)
        self.first, self.second = nn.Linear(config.width, config.width), nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor, item: Tensor, items: int) -> Tensor:
        """(M C) -> (M C)."""
        hidden = self._hidden(tokens)
        weight, bias = self.second.weight * self.scale.t(), self.second.bias * self.scale[0]
        return self.add(tokens, linear_of(self.act, hidden, weight, bias), item, items)

    def _hidden(self, tokens: Tensor) -> Tensor:
        """The first layer; a batch norm may see its rows only once in train mode, so its output is kept."""
        if isinstance(self.norm, PackedBatchNorm):
            return self.first(self.norm(tokens))
        norm, first = self.norm, self.first
        return linear_of(norm, tokens, first.weight, first.bias, norm.weight, norm.bias)


class Block(nn.Module):
    """A spatial mix, then a channel mix."""

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.spatial, self.channel = SpatialMix(config), ChannelMix(config)

    def forward(self, tokens: Tensor, plane: Plane, item: Tensor, items: int) -> Tensor:
        """(M C) -> (M C)."""
        return self.channel(self.spatial(tokens, plane, item, items), item, items)


SMALL_GRIDS = {"fov_min": (-32.0, -32.0, -4.0), "fov_max": (32.0, 32.0, 4.0), "grids": ((64, 64), (64, 16), (64, 16))}


@encoders.register(
    "waffleiron",
    WaffleIronConfig,
    {
        "12-128": {"depth": 12, "width": 128},
        "tiny": {"depth": 3, "width": 32, **SMALL_GRIDS},
        "48-256": {"width": 256},
        "48-384": {"width": 384},
        "48-768": {"drop_path": 0.2},  # ScaLR+
        "48-768-v1": {"act": "relu"},  # ScaLR as published in 2024
    },
)
class WaffleIron(PointEncoder):
    """WaffleIron: points mixed on 2D grids (ScaLR).

    One level: the kept points. Points that carry `neighbors` are kept as they are, those out of the field of view in
    the outermost cells; of others one a voxel is kept within the field of view, and every input point gets the
    features of the nearest kept one. Rows are packed, so that no padding takes part in a mean or in a batch norm.

    Args:
        config: see `WaffleIronConfig`.
    """

    config: WaffleIronConfig

    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(input_channels(config.inputs), config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.channels = (config.width,)

    def embed(self, points: Points) -> Tokens:
        """The stem's features of the kept points.

        Raises:
            UserError: coordinates that are not finite, or a cloud without a point in the field of view.
        """
        if not bool(torch.isfinite(points.xyz).all()):
            raise UserError("waffleiron: points with coordinates that are not finite; drop them first")
        if "neighbors" not in points:
            points = self.config.precompute(points.rows(self.config.kept(points)))
        starts = torch.tensor(points.offsets[:-1], device=points.device)[points.item]
        features = self.stem(stack_inputs(points, self.config.inputs), points["neighbors"] + starts[:, None])
        return Tokens(counts=points.counts, xyz=points.xyz, features=features)

    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        """Features of all tokens; those of the points come first in each item, and added ones take part."""
        item, items, features = tokens.item, len(tokens.counts), tokens.features
        planes = [
            Plane.fit(self.cells(tokens, number), item, items, shape) for number, shape in enumerate(self.config.grids)
        ]
        for number, block in enumerate(self.blocks):
            features = block(features, planes[number % len(planes)], item, items)
        level = Tokens(counts=tokens.counts, xyz=tokens.xyz, features=features)
        summary = pool_mean(features, item, items)
        return PointFeatures(levels=(level,), summary=summary, upsample=partial(self._upsample, level, points))

    def cells(self, tokens: Tokens | Points, plane: int) -> Tensor:
        """(M 2) int64 cells on one of the planes; rows out of the field of view go to the outermost cells."""
        axes = ["xyz".index(axis) for axis in self.config.planes[plane]]
        corners = self.config.fov_min, self.config.fov_max
        low, high = (tokens.xyz.new_tensor([corner[axis] for axis in axes]) for corner in corners)
        shape = torch.tensor(self.config.grids[plane], device=tokens.device)
        cells = ((tokens.xyz[:, axes] - low) / ((high - low) / shape)).long()
        return cells.clamp_(min=torch.zeros_like(shape), max=shape - 1)

    def _upsample(self, level: Tokens, points: Points, number: int) -> Tensor:
        """(N C) features at every input point: its own, or those of the nearest kept point."""
        number = range(1)[number]
        if "neighbors" in points:
            return level.features.index_select(0, _own(level, points.counts))
        kept = points.rows(self.config.kept(points))
        _, nearest = knn(points.xyz, points.counts, kept.xyz, kept.counts, 1)
        return level.features.index_select(0, _own(level, kept.counts)[nearest[:, 0]])


def _own(level: Tokens, counts: tuple[int, ...]) -> Tensor:
    """Rows of the tokens that came from points, which are the first of each item."""
    ranges = [torch.arange(start, start + count) for start, count in zip(level.offsets, counts)]
    return cast(Tensor, torch.cat(ranges)).to(level.device)
