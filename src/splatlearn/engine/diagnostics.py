"""What the numbers of a run's log and features say about training; none of it changes training.

Legend: S steps, T teachers, M tokens, C channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ENOUGH_UPDATES = 3
"""Two points lie on a line whatever they are."""
FLAT = 1e-12
"""A loss whose updates deviate by less, as a share of its size, is constant but for rounding."""

Series = tuple[Sequence[float], Sequence[float]]
"""Steps, and a value at each."""


def collect(log: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, Series]:
    """Name -> (steps, values) of the log's keys; lines without a number are left out.

    Args:
        log: lines of `log.jsonl`.
        names: name -> key, looked for at the top, then in `losses`, `metrics` and `validation`.
    """
    found: dict[str, Series] = {}
    for name, key in names.items():
        pairs = [(line["step"], _lookup(line, key)) for line in log if "step" in line]
        numbers = [(step, float(value)) for step, value in pairs if isinstance(value, int | float)]
        if numbers:
            found[name] = [step for step, _ in numbers], [value for _, value in numbers]
    return found


def update_correlations(losses: Mapping[str, Series]) -> tuple[np.ndarray, int]:
    """How alike the losses of teachers move from step to step (after DUNE's figure 5, whose formula we do not know).

    The update of a loss is its value less that of the step before; what is given is Pearson's correlation of the
    updates of each pair, over all steps at which every loss has one.

    Args:
        losses: name -> steps and losses; of T names.

    Returns:
        (T T) in [-1, 1], NaN where a loss is constant or there are fewer than three updates; and the number of updates.
    """
    by_step = [dict(zip(*series, strict=True)) for series in losses.values()]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    values = np.array([[of[step] for step in steps] for of in by_step], dtype=np.float64).reshape(len(by_step), -1)
    follows = np.diff(np.array(steps)) == 1
    updates = np.diff(values, axis=1)[:, follows] if len(steps) > 1 else values[:, :0]
    count = updates.shape[1]
    if count < ENOUGH_UPDATES:
        return np.full((len(by_step), len(by_step)), np.nan), count
    centred = updates - updates.mean(1, keepdims=True)
    norms = np.sqrt((centred**2).mean(1))
    norms[norms <= FLAT * np.abs(values).max(1)] = np.nan
    unit = centred / norms[:, None] / np.sqrt(count)
    return np.clip(unit @ unit.T, -1, 1), count


class Spread:
    """Second moments of tokens, added up batch by batch in float64."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: Tensor | None = None

    def add(self, tokens: Tensor) -> None:
        """Of (... C)."""
        rows = torch.nn.functional.pad(tokens.detach().flatten(0, -2).double(), (1, 0), value=1.0)
        products = rows.t() @ rows
        self._sums = products if self._sums is None else self._sums + products
        self.tokens += len(rows)

    def cumulative(self) -> Tensor:
        """(C) share of the variance that the first 1, 2, ... C principal components explain, ending at 1; zeros where
        there is no variance.

        Of M tokens no more than M - 1 components have any: few tokens look simpler than they are.
        """
        assert self._sums is not None
        total = self._sums[0, 1:]
        covariance = self._sums[1:, 1:] / self.tokens - torch.outer(total, total) / self.tokens**2
        variances = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
        noise = self._sums[1:, 1:].diagonal().mean() / self.tokens * torch.finfo(torch.float64).eps * len(total)
        return variances.cumsum(0) / variances.sum() if variances.sum() > noise else torch.zeros_like(variances)

    def components(self, share: float) -> int:
        """How many principal components explain that share of the variance; 0 where there is none."""
        curve = self.cumulative()
        reached = curve >= share - FLAT
        return int(reached.double().argmax()) + 1 if bool(reached.any()) else 0


def spread_of(batches: Iterable[Tensor]) -> Spread:
    """That of several batches of tokens (... C)."""
    spread = Spread()
    for tokens in batches:
        spread.add(tokens)
    return spread


def _lookup(line: Mapping[str, Any], key: str) -> Any:
    places = [line, line.get("losses"), line.get("metrics"), line.get("validation")]
    return next((place[key] for place in places if isinstance(place, Mapping) and key in place), None)
