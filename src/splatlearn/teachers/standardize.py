"""Teacher features of mean 0 and deviation 1 in each channel. Legend: M rows, C channels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from splatlearn.ops.reduce import global_sum

SMALLEST = 1e-3
"""Deviations of a batch are taken to be this at least (DUNE code)."""
EPSILON = 1e-6
"""Added to deviations of running statistics (UNIC code)."""


@dataclass(frozen=True, kw_only=True)
class StandardizerConfig:
    """How a teacher's features are standardised.

    Args:
        mode: none leaves them; batch takes the statistics of the batch, over all ranks, and keeps running ones for
            evaluation (DUNE); ema takes the running ones from before the batch (UNIC), which suits small batches.
    """

    mode: Literal["none", "batch", "ema"] = "batch"


class Standardizer(nn.Module):
    """Standardises features of one teacher and one kind of token; no gradient flows through.

    Args:
        config: its settings.
        channels: C.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: StandardizerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    @torch.no_grad()
    def fit(self, features: Iterable[Tensor]) -> None:
        """Sets the running statistics to those of all batches (M C), of this rank's and the others'."""
        zeros = torch.zeros(3, *self.mean.shape, dtype=torch.float64, device=self.mean.device)
        count, total, squares = global_sum(sum((_sums(batch) for batch in features), zeros))
        mean = total / count.clamp_min(1)
        self._set(mean, ((squares - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)).sqrt(), 1.0)

    @torch.no_grad()
    def forward(self, features: Tensor, momentum: float = 0.001) -> Tensor:
        """(M C) standardised, in float32 at least; in training, running statistics follow batches of two rows or more.

        Args:
            features: (M C).
            momentum: weight of the batch in the running statistics; DUNE and UNIC lower it from 1 to 0.001 by a cosine.
        """
        if self.config.mode == "none":
            return features
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        mean, std = self.mean.to(features), self._deviation().to(features)
        if not self.training:
            return (features - mean) / std
        count, batch_mean, batch_std = _moments(features)
        if self.config.mode == "batch":
            mean, std = batch_mean.to(features), batch_std.clamp_min(SMALLEST).to(features)
        else:
            batch_std = batch_std + EPSILON
        out = (features - mean) / std
        if count > 1:
            self._set(batch_mean, batch_std, momentum)
        return out

    def inverse(self, features: Tensor) -> Tensor:
        """(M C) features of the teacher's own scale, by the running statistics."""
        return features if self.config.mode == "none" else features * self._deviation() + self.mean

    def _deviation(self) -> Tensor:
        return self.std.clamp_min(SMALLEST) if self.config.mode == "batch" else self.std + EPSILON

    def _set(self, mean: Tensor, std: Tensor, momentum: float) -> None:
        self.mean.lerp_(mean.to(self.mean), momentum)
        self.std.lerp_(std.to(self.std), momentum)


def _sums(features: Tensor) -> Tensor:
    """(3 C) float64: rows, their sum, the sum of their squares."""
    rows = features.double()
    return torch.stack([torch.full_like(rows[:0].sum(0), len(rows)), rows.sum(0), rows.square().sum(0)])


def _moments(features: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number of the rows of all ranks, and their (C) float64 mean and unbiased deviation; zeros of no rows."""
    rows = features.double()
    count = global_sum(rows.new_tensor(float(len(rows))))
    mean = global_sum(rows.sum(0)) / count.clamp_min(1)
    squares = global_sum((rows - mean).square().sum(0))
    return int(count), mean, (squares / (count - 1).clamp_min(1)).sqrt()
