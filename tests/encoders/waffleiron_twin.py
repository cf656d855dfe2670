"""A plain twin of WaffleIron: padded (B C N) tensors, dense grids, torch's own layers; what autograd keeps, it keeps.

Legend: B scans, N points of the longest, k neighbours, P planes, C channels. Modules are called as in the published
weights, so that these load as they are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from splatlearn.encoders.waffleiron import WaffleIronConfig


class Embed(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.conv1 = nn.Conv1d(channels, width, 1)
        first, second = nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, width, 1, bias=False)
        self.conv2 = nn.Sequential(nn.BatchNorm2d(channels), first, nn.BatchNorm2d(width), nn.ReLU(), second)
        self.final = nn.Conv1d(2 * width, width, 1)

    def forward(self, values: Tensor, neighbors: Tensor) -> Tensor:
        values = self.norm(values)
        batch = torch.arange(len(values))[:, None, None]
        around = values.transpose(1, 2)[batch, neighbors].permute(0, 3, 1, 2)  # B C k N
        pairs = self.conv2(around - values[:, :, None])
        return self.final(torch.cat([self.conv1(values), pairs.amax(2)], 1))


class Norm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class Mix(nn.Module):
    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.norm = Norm(config.width) if config.norm == "layernorm" else nn.BatchNorm1d(config.width)
        self.scale = nn.Conv1d(config.width, config.width, 1, groups=config.width, bias=False)
        self.act = nn.ReLU() if config.act == "relu" else nn.GELU()


class ChannelMix(Mix):
    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__(config)
        self.mlp = nn.Sequential(*(nn.Conv1d(config.width, config.width, 1) for _ in range(2)))
        self.mlp.insert(1, self.act)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.scale(self.mlp(self.norm(tokens)))


class SpatialMix(Mix):
    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__(config)
        width = config.width
        self.ffn = nn.Sequential(*(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2)))
        self.ffn.insert(1, self.act)

    def forward(self, tokens: Tensor, cells: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
        normal, number = self.norm(tokens), shape[0] * shape[1]
        where = cells[:, None].expand_as(normal)
        sums = normal.new_zeros(*normal.shape[:2], number).scatter_add(2, where, normal * weights[:, None])
        counts = weights.new_zeros(len(weights), number).scatter_add(1, cells, weights)
        grid = (sums / counts.clamp_min(1)[:, None]).unflatten(2, shape)
        mixed = self.scale(self.ffn(grid).flatten(2))
        return tokens + mixed.gather(2, where)


class Mixes(nn.Module):
    def __init__(self, config: WaffleIronConfig) -> None:
        super().__init__()
        self.channel_mix = nn.ModuleList(ChannelMix(config) for _ in range(config.depth))
        self.spatial_mix = nn.ModuleList(SpatialMix(config) for _ in range(config.depth))


class Twin(nn.Module):
    """`masked` leaves padding out of the cells' means (ScaLR, WaffleIron), else it counts (ScaLR+)."""

    def __init__(self, config: WaffleIronConfig, channels: int = 5, masked: bool = True) -> None:
        super().__init__()
        self.shapes, self.masked = config.grids, masked
        self.embed = Embed(channels, config.width)
        self.waffleiron = Mixes(config)

    def forward(self, values: Tensor, neighbors: Tensor, cells: Tensor, real: Tensor) -> Tensor:
        """(B C N) of inputs (B I N), neighbours (B k N) without the point itself, cells (B P N), 1 or 0 (B N)."""
        weights, parts = real if self.masked else torch.ones_like(real), self.waffleiron
        tokens = self.embed(values, neighbors)
        for number, (spatial, channel) in enumerate(zip(parts.spatial_mix, parts.channel_mix)):
            plane = number % len(self.shapes)
            tokens = channel(spatial(tokens, cells[:, plane], weights, self.shapes[plane]))
        return tokens


def pad(rows: Sequence[Tensor], length: int, value: float = 0) -> Tensor:
    """(B N ...) of B tensors of up to N rows."""
    padded = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), value)
    for place, part in zip(padded, rows):
        place[: len(part)] = part
    return padded
