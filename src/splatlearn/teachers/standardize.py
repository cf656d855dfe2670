"""Teacher features of mean 0 and deviation 1 in each channel. Legend: M rows, C channels."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch
from torch import Tensor, nn

from splatlearn.errors import UserError
from splatlearn.ops.reduce import global_sum, of_first_rank
from splatlearn.teachers.hadamard import hadamard

SMALLEST = 1e-3
"""Deviations of a batch are taken to be this at least (DUNE code)."""
EPSILON = 1e-6
"""Added to deviations of running statistics (UNIC code)."""
MOMENTUM = (1.0, 0.001)
"""Weight of a batch in the running statistics, at the start and at the end of a run (DUNE and UNIC code)."""


@dataclass(frozen=True, kw_only=True)
class StandardizerConfig:
    """How a teacher's features are standardised.

    Args:
        mode: none leaves them; batch takes the statistics of the batch, over all ranks, and keeps running ones for
            evaluation (DUNE); ema takes the running ones from before the batch (UNIC), which suits small batches;
            phi-s turns the features so that one scale gives every channel deviation 1, by statistics that are fitted
            once (PHI-S: the distances of a teacher's features keep their proportions).
    """

    mode: Literal["none", "batch", "ema", "phi-s"] = "batch"


def momentum_at(fraction: float) -> float:
    """Weight of a batch in the running statistics at a fraction of the run: a cosine through `MOMENTUM`."""
    first, last = MOMENTUM
    return last + (first - last) * (1 + cos(pi * fraction)) / 2


class Standardizer(nn.Module):
    """Standardises features of one teacher and one kind of token; no gradient flows through.

    PHI-S is y = H U^T (x - mean) / scale: U are the principal axes, H a Hadamard matrix with rows of length 1, which
    gives every channel the mean of all variances, and scale the root of that mean. Before `fit` it leaves all as it is.

    Args:
        config: its settings.
        channels: C.

    Raises:
        UserError: PHI-S, and no Hadamard matrix is as large as C.
    """

    mean: Tensor
    std: Tensor
    rotation: Tensor

    def __init__(self, config: StandardizerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        if config.mode == "phi-s":
            self._hadamard()
            self.register_buffer("rotation", torch.eye(channels))

    @torch.no_grad()
    def fit(self, features: Iterable[Tensor]) -> None:
        """Sets the statistics to those of all batches (M C), of this rank's and the others'.

        Raises:
            UserError: PHI-S, and there are less than two rows. A few times C are needed to know the principal axes.
        """
        self.settle(sum(map(self.moments, features), self.moments(self.mean[None, :][:0])))

    def moments(self, features: Tensor) -> Tensor:
        """What `settle` needs to know of features (M C); that of several batches adds up."""
        return _products(features) if self.config.mode == "phi-s" else _sums(features)

    @torch.no_grad()
    def settle(self, moments: Tensor) -> None:
        """As `fit`, by the sum of the `moments` of this rank's batches."""
        moments = global_sum(moments)
        if self.config.mode == "phi-s":
            self._set_rotation(moments)
            return
        count, total, squares = moments
        mean = total / count.clamp_min(1)
        self._set(mean, ((squares - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)).sqrt(), 1.0)

    @torch.no_grad()
    def forward(self, features: Tensor, momentum: float = 0.001) -> Tensor:
        """(M C) standardised, in float32 at least; in training, running statistics follow batches of two rows or more.

        Args:
            features: (M C).
            momentum: weight of the batch in the running statistics, see `momentum_at`; 0 standardises as in evaluation
                (DUNE code).
        """
        if self.config.mode == "none":
            return features
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        mean, std = self.mean.to(features), self._deviation().to(features)
        if self.config.mode == "phi-s":
            with torch.autocast(features.device.type, enabled=False):
                return (features - mean) @ self.rotation.to(features).t() / std
        if not self.training or not momentum:
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
        """(M C) features of the teacher's own scale, by the fitted or running statistics; in their precision."""
        if self.config.mode == "none":
            return features
        scaled = features * self._deviation()
        if self.config.mode == "phi-s":
            with torch.autocast(features.device.type, enabled=False):
                scaled = scaled @ self.rotation.to(scaled)
        return scaled + self.mean

    def _deviation(self) -> Tensor:
        if self.config.mode == "phi-s":
            return self.std
        return self.std.clamp_min(SMALLEST) if self.config.mode == "batch" else self.std + EPSILON

    def _hadamard(self) -> Tensor:
        try:
            return hadamard(len(self.mean))
        except UserError as error:
            raise UserError(f"standardisation phi-s of {len(self.mean)} channels: {error}; take batch or ema") from None

    def _set_rotation(self, moments: Tensor) -> None:
        channels = len(self.mean)
        count, total = moments[0, 0], moments[0, 1:]
        if count < 2:
            raise UserError(f"standardisation phi-s needs two rows of features at least to be fitted, got {int(count)}")
        mean = total / count
        covariance = (moments[1:, 1:] - count * mean.outer(mean)) / (count - 1)
        axes = torch.linalg.eigh(covariance).eigenvectors
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # their direction is arbitrary
        scale = covariance.trace().div(channels).clamp_min(0).sqrt().clamp_min(SMALLEST)
        rotation = self._hadamard().to(axes) / channels**0.5 @ axes.t()
        self.mean.copy_(mean)
        self.std.copy_(scale)
        self.rotation.copy_(of_first_rank(rotation))  # axes of equal variance are arbitrary, too

    def _set(self, mean: Tensor, std: Tensor, momentum: float) -> None:
        self.mean.lerp_(mean.to(self.mean), momentum)
        self.std.lerp_(std.to(self.std), momentum)


def _sums(features: Tensor) -> Tensor:
    """(3 C) float64: rows, their sum, the sum of their squares."""
    rows = features.double()
    return torch.stack([torch.full_like(rows[:0].sum(0), len(rows)), rows.sum(0), rows.square().sum(0)])


def _products(features: Tensor) -> Tensor:
    """(C+1 C+1) float64 sums of the products of (1, features): rows, their sum, and their second moments."""
    rows = torch.nn.functional.pad(features.double(), (1, 0), value=1.0)
    return rows.t() @ rows


def _moments(features: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number of the rows of all ranks, and their (C) float64 mean and unbiased deviation; zeros of no rows."""
    rows = features.double()
    count = global_sum(rows.new_tensor(float(len(rows))))
    mean = global_sum(rows.sum(0)) / count.clamp_min(1)
    squares = global_sum((rows - mean).square().sum(0))
    return int(count), mean, (squares / (count - 1).clamp_min(1)).sqrt()
