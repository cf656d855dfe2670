"""Real spherical harmonics to degree 4, in the basis and order of 3DGS files (graphdeco, gsplat).

Legend: M directions, K = (degree + 1)^2 coefficients. The signs are those of the Condon-Shortley phase, so the
three coefficients of degree 1 multiply (-y, z, -x).
"""

from math import isqrt, pi, sqrt

import torch
from torch import Tensor

from splatlearn.errors import UserError
from splatlearn.structures import SH_C0

MAX_DEGREE = 4

C1 = sqrt(3 / (4 * pi))
C2 = (sqrt(15 / (4 * pi)), sqrt(5 / (16 * pi)), sqrt(15 / (16 * pi)))
C3 = (
    sqrt(35 / (32 * pi)),
    sqrt(105 / (4 * pi)),
    sqrt(21 / (32 * pi)),
    sqrt(7 / (16 * pi)),
    sqrt(105 / (16 * pi)),
)
C4 = (
    sqrt(315 / (16 * pi)),
    sqrt(315 / (32 * pi)),
    sqrt(45 / (16 * pi)),
    sqrt(45 / (32 * pi)),
    sqrt(9 / (256 * pi)),
    sqrt(45 / (64 * pi)),
    sqrt(315 / (256 * pi)),
)
"""Normalisations of the real basis functions above degree 0, |m| from l down to 0 where both signs of m share one."""


def degree_of(coefficients: int) -> int:
    """The degree that has this many coefficients.

    Raises:
        UserError: `coefficients` is not 1, 4, 9, 16 or 25.
    """
    degree = isqrt(coefficients) - 1
    if (degree + 1) ** 2 != coefficients or not 0 <= degree <= MAX_DEGREE:
        raise UserError(f"sh has {coefficients} coefficients per Gaussian; expected 1, 4, 9, 16 or 25 (degree 0 to 4)")
    return degree


def basis(directions: Tensor, degree: int) -> Tensor:
    """The basis functions at unit directions.

    Args:
        directions: (M 3) unit vectors from the camera to the Gaussian, world axes.
        degree: 0 to 4.

    Returns:
        (M K), K = (degree + 1)^2.
    """
    x, y, z = directions.unbind(-1)
    bands = [_band0, _band1, _band2, _band3, _band4][: degree + 1]
    return torch.stack([value for band in bands for value in band(x, y, z)], -1)


def evaluate(sh: Tensor, directions: Tensor) -> Tensor:
    """The expansion itself, without the offset of 0.5 and the clamp.

    Args:
        sh: (M K 3) coefficients.
        directions: (M 3) need not be unit; differentiable.

    Returns:
        (M 3).
    """
    unit = torch.nn.functional.normalize(directions, dim=-1)
    values = basis(unit, degree_of(sh.shape[1]))
    return (values[:, :, None] * sh).sum(1)  # no product of matrices, which torch may be told to round on a GPU


def colors(sh: Tensor, directions: Tensor) -> Tensor:
    """(M 3) linear RGB seen along (M 3) `directions`: the expansion + 0.5, cut at 0 from below (graphdeco)."""
    return (evaluate(sh, directions) + 0.5).clamp_min(0)


def _band0(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [torch.full_like(x, SH_C0)]


def _band1(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [-C1 * y, C1 * z, -C1 * x]


def _band2(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [
        C2[0] * x * y,
        -C2[0] * y * z,
        C2[1] * (3 * z * z - 1),
        -C2[0] * x * z,
        C2[2] * (x * x - y * y),
    ]


def _band3(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    ring = 5 * z * z - 1
    return [
        -C3[0] * y * (3 * x * x - y * y),
        C3[1] * x * y * z,
        -C3[2] * y * ring,
        C3[3] * z * (5 * z * z - 3),
        -C3[2] * x * ring,
        C3[4] * z * (x * x - y * y),
        -C3[0] * x * (x * x - 3 * y * y),
    ]


def _band4(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    xx, yy, zz = x * x, y * y, z * z
    return [
        C4[0] * x * y * (xx - yy),
        -C4[1] * y * z * (3 * xx - yy),
        C4[2] * x * y * (7 * zz - 1),
        -C4[3] * y * z * (7 * zz - 3),
        C4[4] * (zz * (35 * zz - 30) + 3),
        -C4[3] * x * z * (7 * zz - 3),
        C4[5] * (xx - yy) * (7 * zz - 1),
        -C4[1] * x * z * (xx - 3 * yy),
        C4[6] * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
    ]
