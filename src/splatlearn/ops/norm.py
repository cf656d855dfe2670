"""Batch normalisation over packed rows, the same on one process and on many.

Legend: N rows of this process, C channels.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from splatlearn.ops.reduce import world_size


class _SynchronisedNorm(torch.autograd.Function):
    """Normalises with the statistics of all ranks' rows; ranks may have different numbers of rows, or none."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, eps: float) -> Tensor:
        mean, scale = moments[0], torch.rsqrt(moments[1] + eps)
        ctx.save_for_backward(rows, weight, mean, scale, moments[2, :1])
        return (rows - mean) * (scale * weight) + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0]
        normal = (rows - mean) * scale
        sums = torch.stack([gradient.sum(0), (gradient * normal).sum(0)])
        totals = sums.clone()
        dist.all_reduce(totals)
        d_rows = (scale * weight) * (gradient - totals[0] / count - normal * (totals[1] / count))
        return d_rows, sums[1], sums[0], None, None


def _global_moments(rows: Tensor) -> Tensor:
    """(3 C) float64: mean, biased variance and number of the rows of all ranks; sums travel in float64."""
    count = torch.full_like(rows[:1].sum(0), len(rows), dtype=torch.float64)
    wide = rows.double()
    sums = torch.stack([wide.sum(0), (wide * wide).sum(0), count])
    dist.all_reduce(sums)
    number = sums[2].clamp_min(1)
    mean = sums[0] / number
    return torch.stack([mean, (sums[1] / number - mean * mean).clamp_min(0), sums[2]])


class PackedBatchNorm(nn.BatchNorm1d):
    """Batch norm over rows (N C) that counts every row of every rank once.

    On one process it is `torch.nn.BatchNorm1d`, with its numbers, state-dict keys and running statistics. On
    several (CPU or CUDA) the statistics are those of all ranks' rows together, whatever each rank's number, and
    gradients flow through them; gradients of weight and bias are this rank's share. A single row in all, which
    has no variance, gives the bias in train mode and leaves the running statistics alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N C) -> (N C)."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        if world_size() > 1:
            return self._forward_synchronised(input)
        if len(input) > 1:
            return super().forward(input)
        weight, bias = self._affine(input)
        return (input - input.mean(0)) * weight + bias

    def _forward_synchronised(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            moments = _global_moments(rows)
            if self.training and self.track_running_stats:
                self._update_running(moments)
        weight, bias = self._affine(rows)
        rows = rows.to(weight.dtype)
        normal: Any = _SynchronisedNorm.apply(rows, weight, bias, moments.to(rows.dtype), self.eps)
        return normal

    def _affine(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias, or ones and zeros where the module has none."""
        if self.weight is not None:
            return self.weight, self.bias
        zeros = rows.new_zeros(self.num_features)
        return zeros + 1, zeros

    def _update_running(self, moments: Tensor) -> None:
        mean, variance, count = moments
        if float(count[0]) < 2 or self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked or 1)
        unbiased = variance * count / (count - 1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
