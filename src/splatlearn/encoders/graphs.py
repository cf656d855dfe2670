"""Encoders as graphs of plain tensor operations, which runtimes other than torch can run (ONNX): the same weights and,
but for rounding, the same numbers, without kernels and autograd functions of ours. For inference alone.

Legend: V views, H W pixels, h w tokens of a map, N points, k neighbours, I input channels, C channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from splatlearn.encoders.base import DERIVED, INPUT_CHANNELS, Encoder, input_channels, stack_inputs
from splatlearn.encoders.patches import normalized
from splatlearn.encoders.vit import OFFSET, ViT
from splatlearn.encoders.waffleiron import ACTS, Block, Stem, WaffleIron, WaffleIronConfig
from splatlearn.errors import UserError
from splatlearn.structures import Points

SHARPNESS = -0.75
"""Of the bicubic kernel (torch's `interpolate`)."""


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph.

    Args:
        name: in the graph.
        shape: its sides; those that change from call to call by name, `14*high` for a multiple of 14.
        dtype: float32 or int64.
        meaning: what it holds, with its unit.
    """

    name: str
    shape: tuple[str | int, ...]
    dtype: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}"


class Graph(nn.Module, ABC):
    """An encoder made of plain operations: tensors in, a tuple of tensors out, in the order of its ports.

    Attributes:
        takes, gives: inputs and outputs.
        recipe: how the inputs are made.
    """

    takes: tuple[Port, ...]
    gives: tuple[Port, ...]
    recipe: str

    @abstractmethod
    def sides(self) -> tuple[Mapping[int, Any], ...]:
        """For every input, the sides that change: number of the axis -> dimension of `torch.export`."""

    @abstractmethod
    def made_up(self, number: int) -> Any:
        """What the encoder is called with, made up; numbers 0, 1... give different sizes."""

    @abstractmethod
    def inputs(self, called: Any) -> dict[str, Tensor]:
        """The graph's inputs for what the encoder is called with."""


def graph_of(encoder: Encoder) -> Graph:
    """The graph of an encoder, which keeps its weights; in float32 on the host, in eval mode.

    Raises:
        UserError: no graph is written down for this family.
    """
    kinds: dict[type[Encoder], type[Graph]] = {ViT: ViTGraph, WaffleIron: WaffleIronGraph}
    if type(encoder) not in kinds:
        raise UserError(
            f"{encoder.name or type(encoder).__name__}: encoders of this family cannot be exported; those of vit and "
            "waffleiron can"
        )
    return kinds[type(encoder)](encoder.float().cpu().eval()).eval()


class ViTGraph(Graph):
    """`ViT` for any number of views and any multiples of the patch."""

    def __init__(self, encoder: ViT) -> None:
        super().__init__()
        self.encoder, patch = encoder, encoder.patch
        self.takes = (
            Port("images", ("views", 3, f"{patch}*high", f"{patch}*wide"), "float32", "RGB in [0, 1], not normalised"),
        )
        blocks = encoder.config.blocks
        maps = (
            Port(f"level{number}", ("views", width, "high", "wide"), "float32", f"map of tokens after block {block}")
            for number, (block, width) in enumerate(zip(blocks, encoder.channels))
        )
        token = Port("summary", ("views", encoder.channels[-1]), "float32", f"class token after block {blocks[-1]}")
        self.gives = (*maps, token)
        self.recipe = (
            f"images of one size in a batch, resized or cut to multiples of {patch} pixels; others are refused"
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(V 3 H W) -> levels (V C h w) and the summary (V C)."""
        encoder = self.encoder
        tokens, (high, wide) = self._embed(normalized(images, encoder.mean, encoder.std))
        taken = []
        for number, block in enumerate(encoder.blocks[: encoder.config.blocks[-1] + 1]):
            tokens = block(tokens)
            if number in encoder.config.blocks:
                taken.append(encoder.norm(tokens))
        first = 1 + encoder.config.registers
        maps = (level[:, first:].transpose(1, 2).unflatten(2, (high, wide)) for level in taken)
        return *maps, taken[-1][:, 0]

    def _embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, and the grid; patches are cut by shape, so that a remainder is refused."""
        encoder, patch, views = self.encoder, self.encoder.patch, pixels.shape[0]
        cut = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5)
        high, wide = cut.shape[1], cut.shape[2]
        patches = nn.functional.linear(cut.flatten(3), encoder.patches.weight.flatten(1), encoder.patches.bias)
        fixed = [(encoder.class_token + encoder.positions[:, :1]).expand(views, -1, -1)]
        if encoder.registers is not None:
            fixed.append(encoder.registers.expand(views, -1, -1))
        return torch.cat([*fixed, (patches + self._positions(high, wide)).flatten(1, 2)], 1), (high, wide)

    def _positions(self, high: int, wide: int) -> Tensor:
        """(h w C) what `resize_positions` gives, without the class token's; two products in place of its kernel."""
        stored = self.encoder.positions[0, 1:]
        edge = isqrt(stored.shape[0])
        rows, columns = (torch.full((), side) for side in (high, wide))
        offset = torch.where((rows == edge) & (columns == edge), 0.0, OFFSET)
        down = _cubic(torch.arange(high), (rows + offset) / edge, edge)
        across = _cubic(torch.arange(wide), (columns + offset) / edge, edge)
        along = down @ stored.unflatten(0, (edge, edge)).flatten(1)
        return across @ along.unflatten(1, (edge, -1))

    def sides(self) -> tuple[Mapping[int, Any], ...]:
        """Views, and multiples of the patch."""
        from torch.export import Dim

        views, high, wide = (Dim(name, min=1) for name in ("views", "high", "wide"))
        return ({0: views, 2: self.encoder.patch * high, 3: self.encoder.patch * wide},)

    def made_up(self, number: int) -> Tensor:
        """Two views wider than high; one of the stored size; three higher than wide."""
        own = self.encoder.config.size // self.encoder.patch
        views, high, wide = ((2, 2, 3), (1, own, own), (3, own + 1, max(own - 1, 1)))[number % 3]
        generator = torch.Generator().manual_seed(number)
        return torch.rand(views, 3, high * self.encoder.patch, wide * self.encoder.patch, generator=generator)

    def inputs(self, called: Tensor) -> dict[str, Tensor]:
        """The images as they are."""
        return {"images": called}


def _cubic(places: Tensor, scale: Tensor, edge: int) -> Tensor:
    """(n edge) weights of the stored values at every place of a side that is `scale` times as long: torch's bicubic."""
    source = (places.float() + 0.5) / scale - 0.5
    before = source.floor()
    taps = torch.arange(-1, 3)
    away = ((source - before)[:, None] - taps).abs()
    near = ((SHARPNESS + 2) * away - (SHARPNESS + 3)) * away * away + 1
    far = ((SHARPNESS * away - 5 * SHARPNESS) * away + 8 * SHARPNESS) * away - 4 * SHARPNESS
    columns = (before.long()[:, None] + taps).clamp(0, edge - 1)
    chosen = columns[:, :, None] == torch.arange(edge)
    return (torch.where(away <= 1, near, far)[:, :, None] * chosen).sum(1)


class WaffleIronGraph(Graph):
    """`WaffleIron` for one scan of any number of points.

    Every cell of a grid is computed here, empty or not, as in the published networks: the cost does not follow the
    scene but the grids.
    """

    def __init__(self, encoder: WaffleIron) -> None:
        super().__init__()
        self.config, width = encoder.config, encoder.config.width
        self.stem = _StemGraph(encoder.stem)
        act, grids = ACTS[self.config.act], self.config.grids
        blocks = (cast(Block, block) for block in encoder.blocks)
        self.blocks = nn.ModuleList(_BlockGraph(b, act, grids[n % len(grids)]) for n, b in enumerate(blocks))
        for number, plane in enumerate(self.config.planes):
            axes = ["xyz".index(axis) for axis in plane]
            low, high = (
                torch.tensor([corner[a] for a in axes]) for corner in (self.config.fov_min, self.config.fov_max)
            )
            self.register_buffer(f"low{number}", low)
            self.register_buffer(f"step{number}", (high - low) / torch.tensor(self.config.grids[number]))
        box = f"{self.config.fov_min} to {self.config.fov_max}"
        inputs = f"{', '.join(self.config.inputs)}, side by side; colours in [-1, 1], metres"
        self.takes = (
            Port("xyz", ("points", 3), "float32", f"metres, world; the grids span {box}"),
            Port("features", ("points", input_channels(self.config.inputs)), "float32", inputs),
            Port("neighbors", ("points", self.config.neighbors), "int64", "rows of the nearest other points"),
        )
        self.gives = (
            Port("level0", ("points", width), "float32", "features of the points"),
            Port("summary", (1, width), "float32", "their mean"),
        )
        self.recipe = (
            "one scan: splatlearn.encoders.graphs.point_inputs(config, points), with config = "
            "splatlearn.registry.encoders.config(name, options); it keeps one point a voxel in the field of view"
        )

    def forward(self, xyz: Tensor, features: Tensor, neighbors: Tensor) -> tuple[Tensor, ...]:
        """(N 3), (N I) and (N k) -> features (N C) and their mean (1 C)."""
        cells = [self._cells(xyz, number) for number in range(len(self.config.planes))]
        tokens = self.stem(features, neighbors)
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, cells[number % len(cells)])
        return tokens, tokens.mean(0, keepdim=True)

    def _cells(self, xyz: Tensor, number: int) -> Tensor:
        """(N) cell of each point on one grid, its first axis slowest, as `WaffleIron.cells`."""
        height, width = self.config.grids[number]
        first, second = ("xyz".index(axis) for axis in self.config.planes[number])
        place = torch.stack([xyz[:, first], xyz[:, second]], 1) - self.get_buffer(f"low{number}")
        cells = (place / self.get_buffer(f"step{number}")).long()
        return cells[:, 0].clamp(0, height - 1) * width + cells[:, 1].clamp(0, width - 1)

    def sides(self) -> tuple[Mapping[int, Any], ...]:
        """The points of all inputs together."""
        from torch.export import Dim

        points = Dim("points", min=1)
        return ({0: points}, {0: points}, {0: points})

    def made_up(self, number: int) -> Points:
        """Points without order in the middle of the field of view, some of them beyond its rim."""
        size, generator = 40 + 57 * number, torch.Generator().manual_seed(number)
        low, high = (torch.tensor(corner) for corner in (self.config.fov_min, self.config.fov_max))
        xyz = (low + high) / 2 + (high - low) * 0.2 * torch.randn(size, 3, generator=generator)
        needed = [name for name in self.config.inputs if name not in DERIVED]
        values = {name: torch.rand(size, INPUT_CHANNELS[name], generator=generator) for name in needed}
        return self.config.precompute(Points(xyz=xyz, attributes=values))

    def inputs(self, called: Points) -> dict[str, Tensor]:
        """As `point_inputs`."""
        return point_inputs(self.config, called)


def point_inputs(config: WaffleIronConfig, points: Points) -> dict[str, Tensor]:
    """What a `WaffleIronGraph` takes of a scan; row i of its `level0` is of point i of those that are kept.

    Args:
        config: of the encoder.
        points: one scan; thinned and given neighbours as `config.kept` and `config.precompute` do, unless it has them.

    Raises:
        UserError: several scans, or no point in the field of view.
    """
    if len(points.counts) != 1:
        raise UserError(f"an exported waffleiron takes one scan at a time, got {len(points.counts)}")
    if "neighbors" not in points:
        points = config.precompute(points.rows(config.kept(points)))
    features = stack_inputs(points, config.inputs).float()
    return {"xyz": points.xyz.float(), "features": features, "neighbors": points["neighbors"].long()}


class _StemGraph(nn.Module):
    """`Stem`, one neighbour after the other: no (N k C) tensor is ever whole."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.norm, self.pair_norm, self.point, self.hidden, self.join = (
            stem.norm, stem.pair_norm, stem.point, stem.hidden, stem.join,
        )  # fmt: skip
        weight, bias = stem.hidden_norm.fold(stem.pair.weight, stem.pair.weight)  # in eval mode no rows are looked at
        self.pair = _linear(weight, bias)

    def forward(self, values: Tensor, neighbors: Tensor) -> Tensor:
        values = self.norm(values)
        around = self._around(values, neighbors[:, 0])
        for number in range(1, neighbors.shape[1]):
            around = torch.maximum(around, self._around(values, neighbors[:, number]))
        return self.join(torch.cat([self.point(values), around], 1))

    def _around(self, values: Tensor, rows: Tensor) -> Tensor:
        """(N C) response to the difference from one neighbour each."""
        return self.hidden(torch.relu(self.pair(self.pair_norm(values.index_select(0, rows) - values))))


class _BlockGraph(nn.Module):
    """`Block` on a whole grid of a shape; the scale of each channel is part of the weights."""

    def __init__(self, block: Block, act: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> None:
        super().__init__()
        spatial, channel = block.spatial, block.channel
        self.act, self.shape = act, shape
        self.spatial_norm, self.channel_norm, self.wide = spatial.norm, channel.norm, channel.first
        self.first = _convolution(spatial.first.weight, spatial.first.bias)
        self.second = _convolution(spatial.second.weight * spatial.scale, spatial.second.bias * spatial.scale[0])
        self.back = _linear(channel.second.weight * channel.scale.t(), channel.second.bias * channel.scale[0])

    def forward(self, tokens: Tensor, cells: Tensor) -> Tensor:
        """(N C) and the points' cells (N) -> (N C)."""
        tokens = tokens + self._mix(self.spatial_norm(tokens), cells)
        return tokens + self.back(self.act(self.wide(self.channel_norm(tokens))))

    def _mix(self, rows: Tensor, cells: Tensor) -> Tensor:
        """As `mix_on_plane`. Sums are scattered along the last axis, which onnxruntime does in order."""
        number = self.shape[0] * self.shape[1]
        index, columns = cells.expand(rows.shape[1], -1), rows.t()
        sums = columns.new_zeros(rows.shape[1], number).scatter_add(1, index, columns)
        sizes = columns.new_zeros(number).scatter_add(0, cells, torch.ones_like(columns[0]))
        means = (sums / sizes.clamp(min=1)).unflatten(1, self.shape)
        mixed = self.second(self.act(self.first(means[None])))[0]
        return mixed.flatten(1).index_select(1, cells).t()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with these weights (O I) and (O)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return layer


def _convolution(kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    """The depthwise convolution with a kernel (9 C), the first axis of the grid slowest, and a bias (C)."""
    layer = nn.Conv2d(len(bias), len(bias), 3, padding=1, groups=len(bias))
    layer.weight, layer.bias = nn.Parameter(kernel.detach().t().reshape(-1, 1, 3, 3)), nn.Parameter(bias.detach())
    return layer
