"""Batch normalisation over packed rows, the same on one process and on many.

Legend: N rows of this process, C channels.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from splatlearn.ops.reduce import global_sum, world_size

BLOCK = 1 << 17
"""Numbers that are summed at a time on a CPU: that is three times as fast as all at once, where there are millions."""


class _Normalisation(torch.autograd.Function):
    """Normalises with the statistics of all ranks' rows; ranks may have different numbers of rows, or none.

    Sums are taken in float64 and rounded once, so that their order, and with it the number of ranks, leaves no trace
    in a row's value or gradient.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, eps: float) -> Tensor:
        mean, scale = moments[0].to(rows.dtype), torch.rsqrt(moments[1] + eps).to(rows.dtype)
        ctx.save_for_backward(rows, weight, mean, scale, moments[2, :1])
        return (rows - mean).mul_(scale * weight).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0]
        normal = (rows - mean).mul_(scale)
        sums = _column_sums(gradient, normal)
        shift, slope = (_over_ranks(sums) / count).to(rows.dtype)
        d_rows = (gradient - shift).sub_(normal.mul_(slope)).mul_(scale * weight)
        return d_rows, sums[1].to(weight.dtype), sums[0].to(weight.dtype), None, None


def _column_sums(first: Tensor, second: Tensor) -> Tensor:
    """(2 C) float64: sums over the rows of `first` and of `first * second`; on a CPU in blocks that fit its cache."""
    sums = first.new_zeros(2, first.shape[1], dtype=torch.float64)
    block = max(1, BLOCK // first.shape[1] if first.device.type == "cpu" else len(first))
    for some, others in zip(first.split(block), second.split(block)):
        wide = some.double()
        sums[0] += wide.sum(0)
        sums[1] += (wide * others).sum(0)
    return sums


def _over_ranks(sums: Tensor) -> Tensor:
    if world_size() == 1:
        return sums
    totals = sums.clone()
    dist.all_reduce(totals)
    return totals


def _moments(rows: Tensor) -> Tensor:
    """(3 C) float64: mean, biased variance and number of the rows of all ranks."""
    sums = _column_sums(rows, rows)
    sums = _over_ranks(torch.cat([sums, torch.full_like(sums[:1], len(rows))]))
    number = sums[2].clamp_min(1)
    mean = sums[0] / number
    return torch.stack([mean, (sums[1] / number - mean * mean).clamp_min(0), sums[2]])


class PackedBatchNorm(nn.BatchNorm1d):
    """Batch norm over rows (N C) that counts every row of every rank once.

    Numbers, state-dict keys and running statistics are those of `torch.nn.BatchNorm1d`. On several processes (CPU or
    CUDA) the statistics are those of all ranks' rows together, whatever each rank's number, and gradients flow
    through them; gradients of weight and bias are this rank's share. One process and many compute alike, but for the
    order of sums in float64: torch's own sums in float32 would part them in every row. A single row in all, which has
    no variance, gives the bias in train mode and leaves the running statistics alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N C) -> (N C), in the precision of the input."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        with torch.no_grad():
            moments = _moments(input)
            if self.training and self.track_running_stats:
                self._update_running(moments)
        weight, bias = self._affine(input)
        rows = input.to(weight.dtype)
        normal: Any = _Normalisation.apply(rows, weight, bias, moments, self.eps)
        return normal.to(input.dtype)

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


class LinearBatchNorm(PackedBatchNorm):
    """Batch norm of what a linear layer without bias would make of rows, without making it.

    Mean and variance of the layer's output follow from those of its input, so the two are folded into one linear
    layer. Numbers and state-dict keys are those of the layer followed by `PackedBatchNorm`, on several processes too.
    """

    def fold(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (C I) and bias (C) of the folded layer; differentiable in `rows` and `weight`.

        Args:
            rows: (N I), the layer's input; in train mode its moments over all ranks count.
            weight: (C I), the layer's.
        """
        if self.training or self.running_mean is None or self.running_var is None:
            mean, variance = self._output_moments(rows, weight.double())
        else:
            mean, variance = self.running_mean.double(), self.running_var.double()
        scale, bias = self._affine(weight)
        slope = scale.double() * torch.rsqrt(variance + self.eps)
        return (weight * slope[:, None]).to(weight.dtype), (bias - mean * slope).to(weight.dtype)

    def _output_moments(self, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(C) float64 mean and biased variance of rows @ weight^T; updates the running ones in train mode."""
        width, wide = rows.shape[1], rows.double()
        count = wide.new_full((1,), len(wide))
        sums = global_sum(torch.cat([wide.sum(0), (wide.t() @ wide).flatten(), count]))
        number = sums[-1].clamp_min(1)
        center = sums[:width] / number
        spread = sums[width:-1].view(width, width) / number - torch.outer(center, center)
        mean, variance = weight @ center, ((weight @ spread) * weight).sum(1).clamp_min(0)
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self._update_running(torch.stack([mean, variance, sums[-1].expand_as(mean)]))
        return mean, variance
