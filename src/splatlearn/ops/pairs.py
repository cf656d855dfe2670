"""A two-layer perceptron over each point's pairs with its neighbours, and the maximum over them.

Legend: N points, k neighbours, I input channels, C channels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 21
"""Numbers of the wide rows that are held at once on a CPU."""
DEVICE_BLOCK = 1 << 27
"""The same on other devices."""


class _PooledPerceptron(torch.autograd.Function):
    """Works on a block of points at a time and saves which neighbour won: no (N k C) tensor is ever whole."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, first: Tensor, bias: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
        points, channels = len(pairs), second.shape[0]
        result = pairs.new_empty(points, channels)
        winner = torch.empty(points, channels, dtype=torch.int16, device=pairs.device)
        step = _step(pairs, second)
        for start in range(0, points, step):
            rows = slice(start, start + step)
            wide = _hidden(pairs[rows], first, bias).to(dtype) @ second.to(dtype).t()
            best, place = wide.unflatten(0, (-1, pairs.shape[1])).max(1)
            result[rows], winner[rows] = best, place
        ctx.save_for_backward(pairs, first, bias, second, winner)
        ctx.dtype = dtype
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        pairs, first, bias, second, winner = ctx.saved_tensors
        step, low = _step(pairs, second), second.to(ctx.dtype)
        d_pairs = torch.empty_like(pairs)
        d_first, d_bias, d_second = map(torch.zeros_like, (first, bias, second))
        for start in range(0, len(pairs), step):
            rows = slice(start, start + step)
            hidden, flat = _hidden(pairs[rows], first, bias), pairs[rows].flatten(0, 1)
            wide = hidden.new_zeros(len(winner[rows]), pairs.shape[1], second.shape[0], dtype=ctx.dtype)
            wide.scatter_(1, winner[rows].long()[:, None], gradients[0][rows, None].to(ctx.dtype))
            wide = wide.flatten(0, 1)
            d_second += wide.t() @ hidden.to(ctx.dtype)
            d_hidden = torch.where(hidden > 0, (wide @ low).to(hidden.dtype), 0)
            d_first.addmm_(d_hidden.t(), flat)
            d_bias += d_hidden.sum(0)
            d_pairs[rows] = (d_hidden @ first).view_as(pairs[rows])
        return d_pairs, d_first, d_bias, d_second, None


def _hidden(pairs: Tensor, first: Tensor, bias: Tensor) -> Tensor:
    """(n k, C) the first layer."""
    return torch.addmm(bias, pairs.flatten(0, 1), first.t()).relu_()


def _step(pairs: Tensor, second: Tensor) -> int:
    """Points that are worked on at a time."""
    block = BLOCK if pairs.device.type == "cpu" else DEVICE_BLOCK
    return max(1, block // (pairs.shape[1] * second.shape[1]))


def pooled_perceptron(pairs: Tensor, first: Tensor, bias: Tensor, second: Tensor) -> Tensor:
    """(N C) the largest of second @ relu(first @ pair + bias) over each point's pairs; differentiable once.

    Under autocast the product with `second`, nearly all of the work, is in its precision.

    Args:
        pairs: (N k I).
        first, bias: (C I) and (C).
        second: (C C), output channels first.
    """
    kind = pairs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else pairs.dtype
    with torch.autocast(kind, enabled=False):
        result: Tensor = _PooledPerceptron.apply(  # pyright: ignore[reportAssignmentType]
            pairs, first.to(pairs.dtype), bias.to(pairs.dtype), second, dtype
        )
    return result
