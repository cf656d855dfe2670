"""Sparse convolutional U-Net on voxels: SpUNet (Pointcept) and MinkUNet / Res16UNet (MinkowskiEngine) in one class.

Legend: N points, M voxels of a level, C channels. Metres, world.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from splatlearn.config import require
from splatlearn.encoders.base import PointEncoder, PointEncoderConfig, PointFeatures, input_channels, stack_inputs
from splatlearn.errors import UserError
from splatlearn.ops.norm import PackedBatchNorm
from splatlearn.ops.sparse_conv import SparseConv3d
from splatlearn.ops.voxels import (
    Grid,
    KernelMap,
    Voxels,
    coarsen,
    pool_mean,
    strided_map,
    submanifold_map,
    unique_voxels,
)
from splatlearn.registry import encoders
from splatlearn.structures import Points, Tokens


@dataclass(frozen=True, kw_only=True)
class SparseUNetConfig(PointEncoderConfig):
    """Config of `SparseUNet`.

    Args:
        inputs: attributes averaged over each voxel; at least one.
        voxel: edge of a voxel of the finest level, metres (in a metric scene). Our default: not stated by GS3.
        stem: width of the stem.
        channels: widths of the levels: down to the coarsest, then up to the finest.
        layers: residual blocks of each of these levels.
        stem_kernel: edge of the stem's kernel: 5 in SpUNet and MinkUNet, 3 in PointContrast.
        widen: where a level takes its width on the way down: `down` in the strided convolution (SpUNet), `block` in
            the first block (MinkUNet, Res16UNet).
        out_channels: width of a linear layer on the finest level; 0 for none.
        norm_eps, norm_momentum: of the batch norms. SpUNet 1e-3 and 0.01; MinkUNet 1e-5 and 0.1, which is our
            default since it follows short runs.
    """

    voxel: float = 0.05
    stem: int = 32
    channels: tuple[int, ...] = (32, 64, 128, 256, 256, 128, 96, 96)
    layers: tuple[int, ...] = (2, 3, 4, 6, 2, 2, 2, 2)
    stem_kernel: int = 5
    widen: Literal["down", "block"] = "down"
    out_channels: int = 0
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        levels, blocks, kernel = len(self.channels), len(self.layers), self.stem_kernel
        require(
            {
                f"channels and layers: one entry per level is needed, as many up as down; got {levels} and {blocks}": (
                    levels == blocks > 0 == levels % 2
                ),
                f"voxel: metres above zero are needed, got {self.voxel}": 0 < self.voxel < inf,
                f"stem: 1 or more is needed, got {self.stem}": self.stem >= 1,
                f"channels: 1 or more are needed, got {self.channels}": all(width >= 1 for width in self.channels),
                f"layers: 1 or more are needed, got {self.layers}": all(count >= 1 for count in self.layers),
                f"stem_kernel: an odd size is needed, got {kernel}": kernel >= 1 and kernel % 2 == 1,
                f"out_channels: zero or more is needed, got {self.out_channels}": self.out_channels >= 0,
                f"norm_eps: above zero is needed, got {self.norm_eps}": 0 < self.norm_eps < inf,
                f"norm_momentum: a share in (0, 1] is needed, got {self.norm_momentum}": 0 < self.norm_momentum <= 1,
                "inputs: at least one attribute is needed, color for instance": bool(self.inputs),
            }
        )


class ConvolutionNorm(nn.Module):
    """Sparse convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, config: SparseUNetConfig) -> None:
        super().__init__()
        self.conv = SparseConv3d(in_channels, out_channels, kernel)
        self.norm = _norm(out_channels, config)

    def forward(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        """(M in) -> (T out)."""
        return self.norm(self.conv(features, kernel_map)).relu_()


class ResidualBlock(nn.Module):
    """Two submanifold 3^3 convolutions and a residual, projected where the width changes."""

    def __init__(self, in_channels: int, channels: int, config: SparseUNetConfig) -> None:
        super().__init__()
        self.conv1 = SparseConv3d(in_channels, channels, 3)
        self.norm1 = _norm(channels, config)
        self.conv2 = SparseConv3d(channels, channels, 3)
        self.norm2 = _norm(channels, config)
        self.projection: nn.Module = nn.Identity()
        if in_channels != channels:
            linear = nn.Linear(in_channels, channels, bias=False)
            self.projection = nn.Sequential(linear, _norm(channels, config))

    def forward(self, features: Tensor, kernel_map: KernelMap) -> Tensor:
        """(M in) -> (M out)."""
        inner = self.norm1(self.conv1(features, kernel_map)).relu_()
        inner = self.norm2(self.conv2(inner, kernel_map))
        return (inner + self.projection(features)).relu_()


class Stage(nn.Module):
    """One change of level, then residual blocks; on the way up the skip joins in between.

    Args:
        in_channels: width before the change of level.
        resampled: width after it.
        skip: width of what is joined, 0 on the way down.
        channels, layers: width and number of the blocks.
    """

    def __init__(
        self, in_channels: int, resampled: int, skip: int, channels: int, layers: int, config: SparseUNetConfig
    ) -> None:
        super().__init__()
        self.resample = ConvolutionNorm(in_channels, resampled, 2, config)
        widths = [resampled + skip] + [channels] * layers
        self.blocks = nn.ModuleList(ResidualBlock(i, o, config) for i, o in pairwise(widths))

    def forward(self, features: Tensor, change: KernelMap, same: KernelMap, skip: Tensor | None = None) -> Tensor:
        """(M in) of the old level -> (T channels) of the new one; `skip` (T skip) is joined after the change."""
        features = self.resample(features, change)
        if skip is not None:
            features = torch.cat([features, skip], 1)
        for block in self.blocks:
            features = block(features, same)
        return features


@encoders.register(
    "sparse_unet",
    SparseUNetConfig,
    {
        "small": {
            "voxel": 0.025,
            "stem": 32,
            "channels": (32, 64, 96, 128, 96, 64, 64, 64),
            "layers": (1, 1, 1, 1, 1, 1, 1, 1),
            "stem_kernel": 3,
        },
        "tiny": {
            "voxel": 0.1,
            "stem": 16,
            "channels": (16, 24, 24, 16),
            "layers": (1, 1, 1, 1),
            "stem_kernel": 3,
        },
        # PointContrast's voxels for pre-training; planes and layers are the defaults, the rest is SpUNet
        "34c": {"voxel": 0.025},
        # PointContrast's pre-training network, which GS3 calls SR-UNet; GS3 has 128 channels out
        "res16unet34c": {
            "voxel": 0.025,
            "widen": "block",
            "stem_kernel": 3,
            "out_channels": 128,
            "norm_momentum": 0.05,
        },
    },
)
class SparseUNet(PointEncoder):
    """Sparse convolutional U-Net on voxels (SpUNet, Res16UNet34C).

    Points are averaged over voxels whose grid starts at each cloud's least corner; every point of a voxel gets the
    voxel's features. `levels` are the decoder's, finest first, then the bottleneck. The rows of a voxel are summed
    in float64, so permuting the input points permutes the output rows bit for bit.

    Args:
        config: see `SparseUNetConfig`.
    """

    config: SparseUNetConfig

    def __init__(self, config: SparseUNetConfig) -> None:
        super().__init__()
        self.config = config
        depth = len(config.channels) // 2
        down, up = config.channels[:depth], config.channels[depth:][::-1]
        skips = (config.stem, *down[:-1])
        self.stem = ConvolutionNorm(input_channels(config.inputs), config.stem, config.stem_kernel, config)
        resampled = down if config.widen == "down" else skips
        layers, up_layers = config.layers[:depth], config.layers[depth:][::-1]
        self.down = nn.ModuleList(Stage(skips[s], resampled[s], 0, down[s], layers[s], config) for s in range(depth))
        below = (*up[1:], down[-1])
        self.up = nn.ModuleList(Stage(below[s], up[s], skips[s], up[s], up_layers[s], config) for s in range(depth))
        self.head = nn.Linear(up[0], config.out_channels) if config.out_channels else nn.Identity()
        self.channels = (config.out_channels or up[0], *up[1:], down[-1])

    def embed(self, points: Points) -> Tokens:
        """The stem's features of every voxel; `xyz` are the voxels' middles.

        Raises:
            UserError: coordinates that are not finite, or a cloud that spans too many voxels.
        """
        grid = self._grid(points)
        voxels, rows = unique_voxels(grid.keys(points.xyz, points.item), len(points.counts))
        values = pool_mean(stack_inputs(points, self.config.inputs), rows, len(voxels))
        features = self.stem(values, submanifold_map(voxels, self.config.stem_kernel))
        return Tokens(counts=voxels.counts, xyz=grid.centers(voxels), features=features)

    def encode(self, tokens: Tokens, points: Points) -> PointFeatures:
        """Features from voxel tokens; tokens that share a voxel are averaged, and added ones may open new voxels.

        Raises:
            UserError: a point lies in a voxel without a token.
        """
        grid = self._grid(points)
        voxels, rows = unique_voxels(grid.keys(tokens.xyz, tokens.item), len(points.counts))
        features = pool_mean(tokens.features, rows, len(voxels))
        pyramid = _Pyramid(voxels, len(self.down))
        outputs = self._run(features, pyramid)
        sizes = [self.config.voxel * 2**s for s in range(len(outputs))]
        levels = tuple(
            Tokens(counts=v.counts, xyz=Grid(grid.origin, size).centers(v), features=f)
            for v, size, f in zip(pyramid.levels, sizes, outputs)
        )
        finest = _find(voxels, grid.keys(points.xyz, points.item))
        summary = pool_mean(outputs[-1], levels[-1].item, len(points.counts))
        upsample = partial(_upsample, outputs, [finest, *pyramid.parents])
        return PointFeatures(levels=levels, summary=summary, upsample=upsample)

    def _grid(self, points: Points) -> Grid:
        return Grid.fit(points.xyz, points.item, len(points.counts), self.config.voxel)

    def _run(self, features: Tensor, pyramid: "_Pyramid") -> list[Tensor]:
        """Features of every level, finest first, the bottleneck last."""
        skips = []
        for s, stage in enumerate(self.down):
            skips.append(features)
            features = stage(features, pyramid.strides[s], pyramid.same[s + 1])
        outputs = [features]
        for s in reversed(range(len(self.up))):
            features = self.up[s](features, pyramid.strides[s].transposed, pyramid.same[s], skips[s])
            outputs.append(features)
        outputs[-1] = self.head(outputs[-1])
        return outputs[::-1]


class _Pyramid:
    """The levels of a batch's voxels, and their kernel maps; each is made once and shared by all convolutions.

    Attributes:
        levels: depth + 1, finest first.
        parents: the coarser row of each row, between neighbouring levels.
        strides: kernel maps between neighbouring levels.
        same: 3^3 submanifold maps of the levels.
    """

    def __init__(self, voxels: Voxels, depth: int) -> None:
        self.levels, self.parents, self.strides = [voxels], [], []
        for _ in range(depth):
            fine = self.levels[-1]
            coarse, parent = coarsen(fine)
            self.levels.append(coarse)
            self.parents.append(parent)
            self.strides.append(strided_map(fine, coarse, parent))
        self.same = [submanifold_map(level) for level in self.levels]


def _find(voxels: Voxels, keys: Tensor) -> Tensor:
    """(N) the row of each key."""
    rows = torch.searchsorted(voxels.keys, keys).clamp_(max=max(len(voxels) - 1, 0))
    lost = int((voxels.keys[rows] != keys).sum()) if len(voxels) else len(keys)
    if lost:
        raise UserError(
            f"sparse_unet: {lost} of {len(keys)} points lie in voxels without a token; encode needs the tokens "
            "that embed gave for the same points (coordinates beyond float32's precision can cause this too)"
        )
    return rows


def _upsample(outputs: list[Tensor], steps: list[Tensor], level: int) -> Tensor:
    """(N C) features of a level at every input point: point -> voxel -> parent -> ..."""
    level = range(len(outputs))[level]
    rows = steps[0]
    for parent in steps[1 : level + 1]:
        rows = parent[rows]
    return outputs[level].index_select(0, rows)


def _norm(channels: int, config: SparseUNetConfig) -> PackedBatchNorm:
    return PackedBatchNorm(channels, eps=config.norm_eps, momentum=config.norm_momentum)
