"""Comparing two pictures of one scene by statistics, with a band of its own along silhouettes.

Two correct renderers disagree where one alpha falls on the other side of a threshold; that happens at the edge of
footprints, so mostly along silhouettes, and moves single pixels. A maximum over all pixels therefore says nothing,
and one loosened tolerance hides real errors elsewhere.

Legend: V views, C channels, H W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Agreement(NamedTuple):
    """How well two pictures agree.

    Fields:
        cosine: of all values away from silhouettes.
        relative: L2 error over the L2 norm, away from silhouettes.
        bias: signed mean error over the mean size, away from silhouettes.
        band: relative L2 error inside the band.
        share: share of pixels in the band.
    """

    cosine: float
    relative: float
    bias: float
    band: float
    share: float


def silhouette_band(alpha: Tensor, width: int = 2) -> Tensor:
    """(V 1 H W) bool: pixels at most `width` away from where alpha (V 1 H W) crosses one half."""
    inside = (alpha > 0.5).float()
    grown = torch.nn.functional.max_pool2d(inside, 2 * width + 1, 1, width)
    shrunk = -torch.nn.functional.max_pool2d(-inside, 2 * width + 1, 1, width)
    return grown != shrunk


def compare(actual: Tensor, expected: Tensor, alpha: Tensor, width: int = 2) -> Agreement:
    """Agreement of two (V C H W) pictures whose silhouettes `alpha` (V 1 H W) shows."""
    band = silhouette_band(alpha, width).expand_as(expected)
    a, e = actual.double(), expected.double()
    outside_a, outside_e = a[~band], e[~band]
    norm = outside_e.norm().clamp_min(1e-12)
    cosine = (outside_a @ outside_e) / (outside_a.norm() * norm).clamp_min(1e-24)
    bias = (outside_a - outside_e).mean() / outside_e.abs().mean().clamp_min(1e-12)
    edge = (a - e)[band].norm() / e[band].norm().clamp_min(1e-12)
    share = band.double().mean()
    values = (cosine, (outside_a - outside_e).norm() / norm, bias, edge, share)
    return Agreement(*(value.item() for value in values))


def assert_agree(
    actual: Tensor,
    expected: Tensor,
    alpha: Tensor,
    cosine: float = 0.99999,
    relative: float = 1e-3,
    bias: float = 1e-4,
    band: float = 1e-2,
) -> None:
    """Fails with all figures when one is out of bounds, or when nothing was compared."""
    found = compare(actual, expected, alpha)
    wrong = {
        "cosine": found.cosine < cosine,
        "relative": found.relative > relative,
        "bias": abs(found.bias) > bias,
        "band": found.band > band,
        "share": found.share > 0.9,
        "finite": not (actual.isfinite().all() and expected.isfinite().all()),
        "empty": not expected.any(),
    }
    if any(wrong.values()):
        raise AssertionError(f"{', '.join(name for name, bad in wrong.items() if bad)} out of bounds: {found}")
