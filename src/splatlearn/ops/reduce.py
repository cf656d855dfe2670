"""Sums and means that are exact over the ranks of a distributed run."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes of the run; 1 when nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def global_sum(value: Tensor) -> Tensor:
    """Sum of `value` over ranks, differentiable: the gradient of every rank's use reaches every rank's input."""
    return _AllReduceSum.apply(value) if world_size() > 1 else value


def of_first_rank(value: Tensor) -> Tensor:
    """The first rank's `value` on every rank, without gradient; shapes agree."""
    if world_size() > 1:
        value = value.detach().contiguous().clone()
        dist.broadcast(value, 0)
    return value


def global_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Exact weighted mean over the global batch; use it in every loss.

    With P ranks every rank gets the same value, sum(w v) / sum(w) over all ranks; its gradient is scaled by P,
    because distributed data parallel then averages gradients over ranks: the result is the gradient of one
    process that saw the whole batch.

    Args:
        values: any shape.
        weights: broadcast to the shape of `values`; no gradient flows into them. None weighs all alike.

    Returns:
        Scalar. Zero where all weights are zero.
    """
    weights = torch.ones_like(values) if weights is None else weights.to(values).expand_as(values)
    weights = weights.detach()
    total, weight = (values * weights).sum(), weights.sum()
    ranks = world_size()
    if ranks > 1:
        both = torch.stack([total.detach(), weight])
        dist.all_reduce(both)
        weight = both[1]
        local = total * ranks
        total = local + (both[0] - local).detach()
    return total / weight.clamp_min(torch.finfo(values.dtype).tiny)
