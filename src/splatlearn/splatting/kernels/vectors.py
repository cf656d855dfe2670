"""Small vectors and cameras as tuples, which stay in registers. Float64 throughout."""

from math import sqrt
from typing import TypeAlias

import numpy as np

from splatlearn.splatting.kernels.compilation import helper
from splatlearn.splatting.projection import BORDER, ZERO_QUATERNION

Vector: TypeAlias = tuple[float, float, float]
Matrix: TypeAlias = tuple[Vector, Vector, Vector]
"""Three rows."""
Pinhole: TypeAlias = tuple[float, float, float, float, float]
"""One image axis: focal length and centre in pixels, size in pixels, least and greatest slope of its Jacobian."""
Camera: TypeAlias = tuple[Matrix, Vector, Vector, Pinhole, Pinhole]
"""Rotation, translation, minus the centre in world axes, and the two image axes."""

BEYOND = 0.5 * BORDER


@helper
def dot(a: Vector, b: Vector) -> float:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@helper
def scaled(a: Vector, by: float) -> Vector:
    """a * by."""
    return a[0] * by, a[1] * by, a[2] * by


@helper
def mix(a: Vector, x: float, b: Vector, y: float) -> Vector:
    """a x + b y."""
    return a[0] * x + b[0] * y, a[1] * x + b[1] * y, a[2] * x + b[2] * y


@helper
def scaled_each(a: Vector, b: Vector) -> Vector:
    """Elementwise product."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@helper
def cross(a: Vector, b: Vector) -> Vector:
    """Vector product."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@helper
def rows_times(m: Matrix, a: Vector) -> Vector:
    """m a."""
    return dot(m[0], a), dot(m[1], a), dot(m[2], a)


@helper
def times_rows(a: Vector, m: Matrix) -> Vector:
    """a m, which is the transpose of m times a."""
    x, y, z = m
    return (
        a[0] * x[0] + a[1] * y[0] + a[2] * z[0],
        a[0] * x[1] + a[1] * y[1] + a[2] * z[1],
        a[0] * x[2] + a[1] * y[2] + a[2] * z[2],
    )


@helper
def row(values: np.ndarray, i: int) -> Vector:
    """values[i] of an (N 3) array."""
    return np.float64(values[i, 0]), np.float64(values[i, 1]), np.float64(values[i, 2])


@helper
def pinhole(focal: float, center: float, size: float) -> Pinhole:
    """One image axis; the Jacobian is linearised no further than BORDER of half the field of view outside."""
    return focal, center, size, -(center + BEYOND * size) / focal, ((1 + BEYOND) * size - center) / focal


@helper
def camera_of(poses: np.ndarray, intrinsics: np.ndarray, v: int, width: int, height: int) -> Camera:
    """View v of (V 4 4) world-to-camera poses and (V 3 3) intrinsics."""
    pose = poses[v]
    rotation = (row(pose, 0), row(pose, 1), row(pose, 2))
    translation = (np.float64(pose[0, 3]), np.float64(pose[1, 3]), np.float64(pose[2, 3]))
    k = intrinsics[v]
    x_axis = pinhole(np.float64(k[0, 0]), np.float64(k[0, 2]), np.float64(width))
    y_axis = pinhole(np.float64(k[1, 1]), np.float64(k[1, 2]), np.float64(height))
    return rotation, translation, times_rows(translation, rotation), x_axis, y_axis


@helper
def jacobian(axis: Pinhole, ratio: float, inverse_depth: float) -> tuple[float, float, bool]:
    """Derivative of the pixel by the coordinate and by the depth, and whether the latter was held at the border."""
    held = ratio < axis[3] or ratio > axis[4]
    scale = axis[0] * inverse_depth
    return scale, -scale * min(max(ratio, axis[3]), axis[4]), held


@helper
def rotation_of(quaternions: np.ndarray, i: int) -> tuple[Matrix, tuple[float, float, float, float], float]:
    """Rotation, unit quaternion w x y z and inverse length (0 for a zero quaternion) of row i."""
    w, x, y, z = quaternions[i, 0], quaternions[i, 1], quaternions[i, 2], quaternions[i, 3]
    w, x, y, z = np.float64(w), np.float64(x), np.float64(y), np.float64(z)
    squared = w * w + x * x + y * y + z * z
    inverse = 1 / sqrt(squared) if squared > ZERO_QUATERNION * ZERO_QUATERNION else 0.0
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    matrix = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return matrix, (w, x, y, z), inverse
