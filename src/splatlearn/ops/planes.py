"""Points on 2D grids and back: the mean of each cell, two depthwise 3x3 convolutions, the cell's value at each point.

Legend: B items, N points, H W cells of a grid along its two axes, M occupied cells, D cells that are occupied or touch
one, C channels. Each item has its own grid.

Only cells that reach a point are computed: the second convolution at the M occupied cells, the first at the D cells
it reads. Beyond the rim of the grid lie zeros, as in a padded image; an empty cell within it holds what the first
convolution makes of its neighbours. On the CPU rows are worked on in blocks that stay in its cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK = 1 << 18
"""Numbers of a block of rows on a CPU: 1 MiB of float32, which its cache holds."""


@dataclass(frozen=True)
class Plane:
    """Where the points of a batch lie on the items' grids; made once and shared by all layers.

    Args:
        cell: (N) int64, row of each point among the M occupied cells.
        order: (N) int64, points sorted by cell.
        starts: (M + 1) int64, the place in `order` where each cell's points begin; the last cell is an empty one.
        sizes: (M 1) points of each cell.
        reach: (9 D) int64, rows among the M that each of the D cells reads, M where there is none.
        near: (9 M) int64, rows among the D that each of the M cells reads, D beyond the rim.
    """

    cell: Tensor
    order: Tensor
    starts: Tensor
    sizes: Tensor
    reach: Tensor
    near: Tensor

    @classmethod
    def fit(cls, cells: Tensor, item: Tensor, items: int, shape: tuple[int, int]) -> "Plane":
        """The grids of packed points.

        Args:
            cells: (N 2) int64, cell of each point along both axes, within the shape.
            item: (N) int64, the item of each point.
            items: B.
            shape: H and W.
        """
        height, width = shape[0] + 2, shape[1] + 2  # with a rim, so that every neighbour has an address
        places = (item * height + cells[:, 0] + 1) * width + cells[:, 1] + 1
        occupied, cell = torch.unique(places, return_inverse=True)
        reach = torch.arange(-1, 2, device=cells.device)
        steps = (reach[:, None] * width + reach).reshape(9, 1)
        marked = torch.zeros(items, height, width, dtype=torch.bool, device=cells.device)
        marked.view(-1)[(occupied + steps).flatten()] = True
        for axis in (1, 2):
            marked.index_fill_(axis, torch.tensor([0, marked.shape[axis] - 1], device=cells.device), False)
        touched = marked.view(-1).nonzero().squeeze(1)
        sizes = torch.bincount(cell, minlength=len(occupied) + 1)
        return cls(
            cell=cell,
            order=torch.argsort(cell, stable=True),
            starts=sizes.cumsum(0) - sizes,
            sizes=sizes[:-1, None],
            reach=_rows(occupied, marked.numel())[touched + steps],
            near=_rows(touched, marked.numel())[occupied + steps],
        )


def _rows(places: Tensor, number: int) -> Tensor:
    """(number) the row of each place among `places`; elsewhere the number of them."""
    rows = torch.full((number,), len(places), device=places.device)
    rows[places] = torch.arange(len(places), device=places.device)
    return rows


class _Mix(torch.autograd.Function):
    """Saves the means of the cells alone: what the first convolution makes of them is made again in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        first: Tensor,
        first_bias: Tensor,
        second: Tensor,
        second_bias: Tensor,
        plane: Plane,
        act: Callable[[Tensor], Tensor],
    ) -> Tensor:
        means = functional.embedding_bag(plane.order, rows, plane.starts, mode="mean")
        hidden = _with_zeros(act(_correlate(means, first, first_bias, plane.reach)))
        ctx.save_for_backward(means, first, first_bias, second)
        ctx.plane, ctx.act = plane, act
        return _correlate(hidden, second, second_bias, plane.near).index_select(0, plane.cell)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        means, first, first_bias, second = ctx.saved_tensors
        plane: Plane = ctx.plane
        d_cells = functional.embedding_bag(plane.order, gradients[0].contiguous(), plane.starts, mode="sum")
        inner = _correlate(means, first, first_bias, plane.reach).requires_grad_()
        with torch.enable_grad():
            hidden = ctx.act(inner)
        d_second = _kernel_gradient(_with_zeros(hidden.detach()), d_cells, plane.near)
        d_hidden = _correlate(d_cells, second.flip(0), None, plane.reach)
        (d_inner,) = torch.autograd.grad(hidden, inner, d_hidden)
        d_inner = _with_zeros(d_inner)
        d_first = _kernel_gradient(d_inner, means, plane.near).flip(0)
        d_means = _correlate(d_inner, first.flip(0), None, plane.near) / plane.sizes
        d_rows = d_means.index_select(0, plane.cell)
        return d_rows, d_first, d_inner.sum(0), d_second, d_cells.sum(0), None, None


def _with_zeros(rows: Tensor) -> Tensor:
    """The rows and one of zeros, which missing neighbours read."""
    return functional.pad(rows, (0, 0, 0, 1))


def _block(rows: Tensor) -> int:
    """Rows that are worked on at a time."""
    return max(64, BLOCK // rows.shape[1]) if rows.device.type == "cpu" else max(1, rows.shape[0])


def _correlate(rows: Tensor, kernel: Tensor, bias: Tensor | None, neighbors: Tensor) -> Tensor:
    """(T C) = bias + sum over the 9 offsets of rows[neighbors] * kernel; a map to `rows` from T cells, (9 T)."""
    result = rows.new_zeros(neighbors.shape[1], rows.shape[1])
    if bias is not None:
        result += bias
    block = _block(rows)
    for part, near in zip(result.split(block), neighbors.split(block, 1)):
        for k in range(9):
            part.addcmul_(rows.index_select(0, near[k]), kernel[k])
    return result


def _kernel_gradient(rows: Tensor, gradient: Tensor, neighbors: Tensor) -> Tensor:
    """(9 C) sums over the T cells of rows[neighbors] * gradient; `gradient` (T + 1, C) has a row more than the map."""
    result = rows.new_zeros(9, rows.shape[1])
    block = _block(rows)
    for part, near in zip(gradient[:-1].split(block), neighbors.split(block, 1)):
        for k in range(9):
            result[k] += rows.index_select(0, near[k]).mul_(part).sum(0)
    return result


def mix_on_plane(
    rows: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    plane: Plane,
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """(N C) what two depthwise 3x3 convolutions make of the cells' means, at every point; differentiable once.

    Computed in float32 at least, under autocast too: a cell may hold thousands of points.

    Args:
        rows: (N C).
        first, second: kernels (9 C), the first axis of the grid slowest, and biases (C).
        plane: from `Plane.fit`.
        act: activation between the convolutions, elementwise; it must leave its argument as it was.
    """
    precision = torch.promote_types(rows.dtype, torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        weights = [value.to(precision) for value in (*first, *second)]
        result: Tensor = _Mix.apply(rows.to(precision), *weights, plane, act)  # pyright: ignore[reportAssignmentType]
    return result
