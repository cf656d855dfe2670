"""Losses of depth from one image. Legend: B images, H W pixels. Metres; pixels without depth hold 0."""

import torch
from torch import Tensor

FORGIVEN = 0.85
"""Share of the squared mean error that the scale-invariant loss forgives (Eigen et al. 2014; DINOv2's probes)."""
SCALES = 4
"""Sizes at which gradients are compared, each half the one before (DINOv2's probes, after MiDaS)."""


def scale_invariant(prediction: Tensor, depth: Tensor) -> Tensor:
    """sqrt(mean(g^2) - 0.85 mean(g)^2) of g = log prediction - log depth, over the pixels with depth of each image.

    Args:
        prediction: (B H W) above zero.
        depth: (B H W), 0 = unknown.

    Returns:
        (B); zero, but for rounding, where nothing is known.
    """
    difference, known = _difference(prediction, depth)
    mean, square = (_mean(of, known) for of in (difference, difference.square()))
    return (square - FORGIVEN * mean.square()).clamp_min(1e-8).sqrt()


def gradient_difference(prediction: Tensor, depth: Tensor) -> Tensor:
    """How much the gradients of log depth differ: means of |dx g| and |dy g| over neighbours that both have depth, at
    full size and three times halved (every second pixel), summed.

    Args:
        prediction: (B H W) above zero.
        depth: (B H W), 0 = unknown.

    Returns:
        (B).
    """
    difference, known = _difference(prediction, depth)
    total = difference.new_zeros(len(difference))
    for scale in range(SCALES):
        g, k = (of[:, :: 2**scale, :: 2**scale] for of in (difference, known))
        for dim in (1, 2):
            count = k.shape[dim] - 1
            total = total + _mean(g.diff(dim=dim).abs(), k.narrow(dim, 1, count) & k.narrow(dim, 0, count))
    return total


def _difference(prediction: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of the logarithms, 0 where nothing is known, and where something is."""
    known = depth > 0
    return torch.where(known, prediction.log() - torch.where(known, depth, 1.0).log(), 0.0), known


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """(B) over what is known."""
    return (values * known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)
