"""A linear layer on what is cheap to make: a norm or an activation is made again in backward, not kept until then.

Legend: N rows, I and O input and output channels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 19
"""Numbers of a block of rows on a CPU: what is made on the way stays in its cache, and never is a whole tensor."""


class _LinearOf(torch.autograd.Function):
    """Saves the rows before the cheap part alone, and makes the latter a block of rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        cheap: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, *parameters)
        ctx.cheap, ctx.dtype = cheap, dtype
        result, block = rows.new_empty(len(rows), len(weight), dtype=dtype), _block(rows)
        weight, bias = weight.to(dtype), bias.to(dtype)
        for some, out in zip(rows.split(block), result.split(block)):
            torch.addmm(bias, cheap(some).to(dtype), weight.t(), out=out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, weight, *parameters = ctx.saved_tensors
        totals, low, block = [torch.zeros_like(p) for p in parameters], weight.to(ctx.dtype), _block(rows)
        d_rows, d_weight = torch.empty_like(rows), torch.zeros_like(weight)
        for some, gradient, d_some in zip(rows.split(block), gradients[0].split(block), d_rows.split(block)):
            some = some.detach().requires_grad_()
            with torch.enable_grad():
                made = ctx.cheap(some)
            d_weight += gradient.t() @ made.detach().to(ctx.dtype)
            found = torch.autograd.grad(made, (some, *parameters), (gradient @ low).to(made.dtype))
            d_some.copy_(found[0])
            for total, part in zip(totals, found[1:]):
                total += part
        return None, None, d_rows, d_weight, gradients[0].sum(0).to(weight.dtype), *totals


def _block(rows: Tensor) -> int:
    """Rows that are worked on at a time."""
    return max(64, BLOCK // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))


def linear_of(
    cheap: Callable[[Tensor], Tensor], rows: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor
) -> Tensor:
    """(N O) = cheap(rows) @ weight^T + bias; differentiable once. The product follows autocast, the rest does not.

    Args:
        cheap: from (N I) to (N I), row by row, without randomness; it leaves its argument as it was.
        rows: (N I).
        weight, bias: (O I) and (O).
        parameters: tensors that `cheap` uses and that get gradients.
    """
    kind = rows.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        result: Tensor = _LinearOf.apply(  # pyright: ignore[reportAssignmentType]
            cheap, dtype, rows, weight, bias, *parameters
        )
    return result
