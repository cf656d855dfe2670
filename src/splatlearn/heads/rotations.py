"""Rotations of quaternions and of spherical harmonics. Legend: V rotations, K = (degree + 1)^2 coefficients."""

import math

import torch
from torch import Tensor

from splatlearn.splatting.harmonics import basis


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions w x y z of rotation matrices.

    Of the four ways to solve for a quaternion, each matrix takes the one with the largest divisor (Shepperd).

    Args:
        rotation: (V 3 3).

    Returns:
        (V 4); its sign is arbitrary.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    rows = [
        [1 + a + e + i, h - f, c - g, d - b],
        [h - f, 1 + a - e - i, d + b, c + g],
        [c - g, d + b, 1 - a + e - i, h + f],
        [d - b, c + g, h + f, 1 - a - e + i],
    ]
    candidates = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)
    chosen = candidates.take_along_dim(best[..., None, None], -2).squeeze(-2)
    return torch.nn.functional.normalize(chosen, dim=-1)


def multiply_quaternions(left: Tensor, right: Tensor) -> Tensor:
    """Hamilton product of w x y z quaternions (... 4): the rotation `right` first, then `left`."""
    w, xyz = left[..., :1], left[..., 1:]
    other_w, other_xyz = right[..., :1], right[..., 1:]
    scalar = w * other_w - (xyz * other_xyz).sum(-1, keepdim=True)
    vector = w * other_xyz + other_w * xyz + torch.linalg.cross(xyz, other_xyz)
    return torch.cat([scalar, vector], -1)


def harmonic_rotations(rotation: Tensor, degree: int) -> Tensor:
    """Matrices that rotate spherical-harmonics coefficients with the scene.

    A turned function has at d the value that it had at R^T d. Both sides are sampled at more directions than
    there are coefficients and solved for the new ones; the system is exact, so the result is exact to rounding.

    Args:
        rotation: (V 3 3).
        degree: 0 to 4.

    Returns:
        (V K K): new coefficients = matrix @ old.
    """
    directions = _fibonacci_sphere(4 * (degree + 1) ** 2, rotation)
    solve = torch.linalg.pinv(basis(directions, degree))
    return solve @ basis(directions @ rotation, degree)


def _fibonacci_sphere(count: int, like: Tensor) -> Tensor:
    """(count 3) nearly even unit directions."""
    index = torch.arange(count, device=like.device, dtype=like.dtype) + 0.5
    z = 1 - 2 * index / count
    angle = index * math.pi * (3 - math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], 1)
