"""How far a student's features are from a teacher's. Legend: M pairs, B images, T tokens, C channels.

Every loss is a mean over the global batch (`ops.reduce.global_mean`), in float32 at least, and sends no gradient to the
teacher. Pairs of all items of a batch count alike, so that an item with more pairs weighs more (ScaLR code); only
`image_losses` is by image.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.errors import UserError
from splatlearn.ops.reduce import global_mean

SHORTEST = 1e-12
"""Features shorter than this have no direction: they count as zeros, and get no gradient (ScaLR code: eps)."""


def unit_distance(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Distance of the features scaled to unit length, not squared (ScaLR code): sqrt(2 - 2 cos).

    Its gradient keeps its length as the two come together, and is zero where they are equal.

    Args:
        prediction: (M C) student.
        target: (M C) teacher.
        weights: (M); left out, all pairs count alike.

    Returns:
        Scalar within 0 and 2; zero where there are no pairs.
    """
    prediction, target = _checked(prediction, target)
    return global_mean(torch.linalg.vector_norm(unit(prediction) - unit(target), dim=1), weights)


def cosine_distance(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - cosine of the angle between the features: half the square of `unit_distance`'s.

    Args:
        prediction: (M C) student.
        target: (M C) teacher.
        weights: (M); left out, all pairs count alike.

    Returns:
        Scalar within 0 and 2; zero where there are no pairs.
    """
    prediction, target = _checked(prediction, target)
    return global_mean(1 - (unit(prediction) * unit(target)).sum(1), weights)


def cosine_and_smooth_l1(
    prediction: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    cosine: float = 0.5,
    smooth_l1: float = 0.5,
) -> Tensor:
    """Direction and size of the features: 1 - cosine, and the smooth L1 distance of the channels (threshold 1).

    Args:
        prediction: (M C) student.
        target: (M C) teacher, standardised.
        weights: (M); left out, all pairs count alike.
        cosine: weight of the first; 0.5 in DUNE's code, 0.9 in Theia's.
        smooth_l1: weight of the second, a mean over channels; 0.5 in DUNE's code, 0.1 in Theia's.

    Returns:
        Scalar; zero where there are no pairs.
    """
    return global_mean(_both(*_checked(prediction, target), cosine, smooth_l1), weights)


def image_losses(kinds: Sequence[tuple[Tensor, Tensor]], *, cosine: float = 0.5, smooth_l1: float = 0.5) -> Tensor:
    """The loss of each image for one teacher: `cosine_and_smooth_l1` a token, the mean over the tokens of each kind,
    and the mean of the kinds. So a class token weighs as much as all patches together (DUNE code).

    Args:
        kinds: student and standardised teacher of each kind of token: (B C) of class tokens, (B T C) of patches.
        cosine: weight of 1 - cosine; 0.5 in DUNE's code.
        smooth_l1: weight of the smooth L1 distance; 0.5 in DUNE's code.

    Returns:
        (B); the means over images, teachers and ranks are left to `losses.dropping`.

    Raises:
        UserError: there is no kind, or shapes differ.
    """
    if not kinds:
        raise UserError("image_losses: at least one kind of token is needed")
    means = []
    for prediction, target in kinds:
        rows = prediction.flatten(0, -2), target.flatten(0, -2)
        values = _both(*_checked(*rows), cosine, smooth_l1)
        means.append(values.view(len(prediction), prod(prediction.shape[1:-1])).mean(1))
    return torch.stack(means).mean(0)


def _both(prediction: Tensor, target: Tensor, cosine: float, smooth_l1: float) -> Tensor:
    """(M) the weighted sum of 1 - cosine and of the smooth L1 distance, a mean over channels."""
    values = cosine * (1 - (unit(prediction) * unit(target)).sum(1))
    return values + smooth_l1 * functional.smooth_l1_loss(prediction, target, reduction="none").mean(1)


def unit(features: Tensor) -> Tensor:
    """(M C) rows of length 1; zeros, without gradient, where a row is shorter than `SHORTEST`. NaN stays NaN."""
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return torch.where(length < SHORTEST, torch.zeros_like(features), features / length.clamp_min(SHORTEST))


def _checked(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or more, the target without history."""
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise UserError(
            f"features to compare are (M C) of one shape, got {tuple(prediction.shape)} of the student and "
            f"{tuple(target.shape)} of the teacher"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype), target.detach().to(dtype)
