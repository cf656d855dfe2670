"""Which teachers teach which images of a batch (DUNE and UNIC code). Legend: T teachers, B images of this rank.

Losses are a matrix (T B), see `losses.distillation.image_losses`. Each entry has a coefficient c, and the loss of a
step is sum(c l) / sum(c) over the whole batch, of all ranks: the mean over the kept pairs of teacher and image.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from splatlearn.config import require
from splatlearn.errors import UserError
from splatlearn.ops.reduce import global_mean, global_sum


@dataclass(frozen=True, kw_only=True)
class DroppingConfig:
    """How teachers are dropped.

    Args:
        mode: none keeps all; lowest_loss keeps, of each image, the teacher that is matched worst, and every other by a
            coin (DUNE, UNIC); own_data keeps the teacher whose data an image is of; own+generic likewise, but images of
            generic data, or of no teacher's, teach from all.
        chance: of being dropped, in lowest_loss (0.5 in DUNE's and UNIC's code).
    """

    mode: Literal["none", "lowest_loss", "own_data", "own+generic"] = "lowest_loss"
    chance: float = 0.5

    def __post_init__(self) -> None:
        require({f"chance: a chance in [0, 1] is needed, got {self.chance}": 0 <= self.chance <= 1})


@torch.no_grad()
def coefficients(
    config: DroppingConfig,
    losses: Tensor,
    *,
    coins: Tensor | None = None,
    group: Tensor | None = None,
    generic: Collection[int] = (),
) -> Tensor:
    """The coefficient of each teacher for each image, 1 where it is kept and 0 where it is dropped.

    Args:
        config: how they are dropped.
        losses: (T B).
        coins: (T B) uniform in [0, 1), drawn with the samples; for lowest_loss. Those of the teachers that stay in any
            case are not looked at.
        group: (B) int64, number of the teacher whose data each image is, -1 = of none's; for own_data and own+generic.
        generic: numbers of the teachers whose data are generic; for own+generic (DINOv2's in DUNE).

    Returns:
        (T B) as `losses`, without gradient.

    Raises:
        UserError: what the mode needs is not given, or has another shape.
    """
    if config.mode == "none":
        return torch.ones_like(losses)
    if config.mode == "lowest_loss":
        coins = _given(coins, "coins", losses.shape, config.mode)
        kept = coins.to(losses.device) >= config.chance
        return kept.scatter(0, losses.argmax(0, keepdim=True), True).to(losses)
    group = _given(group, "group", losses.shape[1:], config.mode).to(losses.device)
    kept = torch.arange(len(losses), device=losses.device)[:, None] == group
    if config.mode == "own+generic":
        kept = kept | torch.isin(group, group.new_tensor([-1, *generic]))
    return kept.to(losses)


def kept_mean(losses: Tensor, kept: Tensor) -> Tensor:
    """The loss of a step: sum(c l) / sum(c) over all teachers, images and ranks; zero where nothing is kept.

    Args:
        losses: (T B).
        kept: (T B) coefficients.
    """
    return global_mean(losses, kept)


@torch.no_grad()
def shares(kept: Tensor) -> Tensor:
    """(T) each teacher's part of the sum of all coefficients (T B), over all ranks."""
    sums = global_sum(kept.sum(1))
    return sums / sums.sum().clamp_min(torch.finfo(sums.dtype).tiny)


def gradient_norms(losses: Tensor, kept: Tensor, features: Sequence[Tensor]) -> Tensor:
    """How strongly each teacher pulls: the norm of its part of the gradient of `kept_mean` on the student's features.

    It goes back through the projectors once more a teacher, not through the encoder, and keeps the graph.

    Args:
        losses: (T B), with the graph that made them.
        kept: (T B) coefficients.
        features: what the encoder gave, of any shapes.

    Returns:
        (T) over the features of all ranks, without gradient; zeros where no teacher reaches the features.
    """
    parts = (losses * kept).sum(1) / global_sum(kept.sum()).clamp_min(torch.finfo(kept.dtype).tiny)
    squares = []
    for part in parts:
        found = torch.autograd.grad(part, list(features), retain_graph=True, allow_unused=True)
        of_features = [gradient.float().square().sum() for gradient in found if gradient is not None]
        squares.append(torch.stack(of_features).sum() if of_features else losses.new_zeros((), dtype=torch.float32))
    return global_sum(torch.stack(squares)).sqrt()


def _given(value: Tensor | None, name: str, shape: Sequence[int], mode: str) -> Tensor:
    if value is None or value.shape != torch.Size(shape):
        got = "none" if value is None else str(tuple(value.shape))
        raise UserError(f"teacher dropping {mode} needs {name} of shape {tuple(shape)}, got {got}")
    return value
