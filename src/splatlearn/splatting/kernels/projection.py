"""Projection of all (view, Gaussian) pairs. The twin of `splatlearn.splatting.projection`.

Pairs are numbered view by view: pair = pair_starts[v] + (row of the Gaussian in its item). Arithmetic is float64
on float32 data: it costs little beside the memory traffic and keeps needle-shaped footprints exact.

Legend: V views, N Gaussians of all items, P pairs, K coefficients.
"""

from math import isfinite, log2, sqrt
from typing import Any

import numpy as np
from numba import prange

from splatlearn.splatting.kernels.compilation import allocating, helper, kernel
from splatlearn.splatting.kernels.harmonics import fill_basis
from splatlearn.splatting.kernels.vectors import (
    Camera,
    camera_of,
    cross,
    dot,
    jacobian,
    mix,
    rotation_of,
    row,
    rows_times,
    scaled_each,
    times_rows,
)
from splatlearn.splatting.projection import MAX_DETERMINANT, MIN_DETERMINANT, TILE

CHUNK = 512
"""Gaussians a task; fixed, so that sums over Gaussians do not depend on the number of threads."""
LOG2_E = 1.4426950408889634
RECORD = 16
"""Floats a pair. 0, 1 centre x y; 2 curvature a along x; 3 shear s; 4 curvature b along y; 5 opacity as drawn;
8-10 RGB; 11 depth; 12, 13 half height and width of the box. alpha = opacity 2^-(a u^2 + b dy^2) with u = dx - s dy.
Sixteen floats are one cache line."""
EVERYWHERE = 1e30
"""Half the side of a box, in pixels, when alpha_min is 0."""
Cloud = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""means (N 3), scales (N 3), quaternions (N 4), opacities (N), sh (N K 3); float32."""


@helper
def finite(cloud: Cloud, i: int) -> bool:
    """Whether every number of Gaussian i is finite."""
    means, scales, quaternions, opacities, sh = cloud
    total = abs(np.float64(opacities[i])) + abs(np.float64(quaternions[i, 0]))
    for k in range(3):
        total += abs(np.float64(means[i, k])) + abs(np.float64(scales[i, k]))
        total += abs(np.float64(quaternions[i, 1 + k]))
    for k in range(sh.shape[1]):
        total += abs(np.float64(sh[i, k, 0])) + abs(np.float64(sh[i, k, 1])) + abs(np.float64(sh[i, k, 2]))
    return isfinite(total)


@helper
def tiles_between(low: float, high: float, size: int) -> tuple[int, int]:
    """First and past-last tile of an image side of `size` pixels that a span touches."""
    tiles = float((size + TILE - 1) // TILE)
    first, last = np.floor(low * (1 / TILE)), np.floor(high * (1 / TILE)) + 1
    return int(min(max(first, 0.0), tiles)), int(min(max(last, 0.0), tiles))


@helper
def write_color(
    offset: tuple[float, float, float], sh: np.ndarray, i: int, basis: np.ndarray, record: np.ndarray
) -> None:
    """Evaluates the harmonics of Gaussian i, seen along `offset`, into fields 8-10 of its record."""
    length = sqrt(dot(offset, offset))
    inverse = 1 / length if length > 0 else 0.0
    coefficients = sh.shape[1]
    fill_basis(offset[0] * inverse, offset[1] * inverse, offset[2] * inverse, coefficients, basis)
    red, green, blue = 0.5, 0.5, 0.5
    for k in range(coefficients):
        red += basis[k] * sh[i, k, 0]
        green += basis[k] * sh[i, k, 1]
        blue += basis[k] * sh[i, k, 2]
    record[8], record[9], record[10] = max(red, 0.0), max(green, 0.0), max(blue, 0.0)


@helper
def project_pair(camera: Camera, cloud: Cloud, i: int, limits: Any, record: np.ndarray, box: np.ndarray) -> bool:
    """Writes the record (without colour) and the tile box of one pair; False where it is not drawn.

    limits: low_pass, alpha_min, near, far, antialiased. box: first and past-last tile in x and y.
    """
    low_pass, alpha_min, near, far, antialiased = limits
    rotation, translation, _, x_axis, y_axis = camera
    x, y, z = mix(rows_times(rotation, row(cloud[0], i)), 1.0, translation, 1.0)
    opacity = cloud[3][i]
    if not (near <= z <= far and opacity >= alpha_min and opacity > 0):
        return False
    inverse = 1 / z
    x, y = x * inverse, y * inverse
    jx, jxz, _ = jacobian(x_axis, x, inverse)
    jy, jyz, _ = jacobian(y_axis, y, inverse)
    turn, _, _ = rotation_of(cloud[2], i)
    scales = row(cloud[1], i)
    first = scaled_each(times_rows(mix(rotation[0], jx, rotation[2], jxz), turn), scales)
    second = scaled_each(times_rows(mix(rotation[1], jy, rotation[2], jyz), turn), scales)
    xx, xy, yy, area = dot(first, first), dot(first, second), dot(second, second), cross(first, second)
    sharp = dot(area, area)
    determinant = sharp + low_pass * (xx + yy) + low_pass * low_pass
    xx, yy = xx + low_pass, yy + low_pass
    if not (MIN_DETERMINANT < determinant < MAX_DETERMINANT):
        return False
    if antialiased:
        opacity = np.float32(opacity * sqrt(sharp / determinant))
        if not (opacity >= alpha_min and opacity > 0):
            return False
    x, y = x_axis[0] * x + x_axis[1], y_axis[0] * y + y_axis[1]
    half_x, half_y = EVERYWHERE, EVERYWHERE
    if alpha_min > 0:
        reach = 2 / LOG2_E * log2(np.float32(opacity / alpha_min))
        half_x, half_y = sqrt(reach * xx), sqrt(reach * yy)
    box[0], box[1] = tiles_between(x - half_x, x + half_x, int(x_axis[2]))
    box[2], box[3] = tiles_between(y - half_y, y + half_y, int(y_axis[2]))
    inverse = 1 / yy
    record[0], record[1], record[2], record[3] = x, y, 0.5 * LOG2_E * yy / determinant, xy * inverse
    record[4], record[5], record[11] = 0.5 * LOG2_E * inverse, opacity, z
    record[12], record[13] = half_y, half_x
    return box[0] < box[1] and box[2] < box[3]


@allocating
def project_range(
    cloud: Cloud,
    camera: Camera,
    begin: int,
    end: int,
    shift: int,
    limits: Any,
    records: np.ndarray,
    boxes: np.ndarray,
    tiles: np.ndarray,
) -> bool:
    """Projects Gaussians begin to end into one view; the pair of Gaussian i is i + shift. Returns: all finite."""
    basis, clean = np.empty(25), True
    for i in range(begin, end):
        pair = i + shift
        tiles[pair] = 0
        if not finite(cloud, i):
            clean = False
        elif project_pair(camera, cloud, i, limits, records[pair], boxes[pair]):
            write_color(mix(row(cloud[0], i), 1.0, camera[2], 1.0), cloud[4], i, basis, records[pair])
            tiles[pair] = (boxes[pair, 1] - boxes[pair, 0]) * (boxes[pair, 3] - boxes[pair, 2])
    return clean


@allocating
def chunk_starts_of(row_starts: np.ndarray) -> np.ndarray:
    """The first chunk of each group of rows, and one past the last; a group without rows has one chunk."""
    starts = np.zeros(len(row_starts), np.int64)
    for group in range(len(row_starts) - 1):
        count = row_starts[group + 1] - row_starts[group]
        starts[group + 1] = starts[group] + max((count + CHUNK - 1) // CHUNK, 1)
    return starts


@helper
def group_of(chunk: int, starts: np.ndarray) -> int:
    """Which group a chunk belongs to."""
    group = 0
    while starts[group + 1] <= chunk:
        group += 1
    return group


@helper
def finite_camera(pose: np.ndarray, intrinsics: np.ndarray) -> bool:
    """Whether every number of a (4 4) pose and a (3 3) matrix is finite."""
    total = 0.0
    for i in range(4):
        for j in range(4):
            total += abs(np.float64(pose[i, j]))
            if i < 3 and j < 3:
                total += abs(np.float64(intrinsics[i, j]))
    return isfinite(total)


@kernel
def project(
    cloud: Cloud,
    poses: np.ndarray,
    intrinsics: np.ndarray,
    first_gaussian: np.ndarray,
    pair_starts: np.ndarray,
    size: tuple[int, int],
    limits: tuple[float, float, float, float, bool],
    records: np.ndarray,
    boxes: np.ndarray,
    tiles: np.ndarray,
    spoilt: np.ndarray,
) -> None:
    """Projects every Gaussian of an item into every view of that item.

    Args:
        cloud: all items.
        poses, intrinsics: (V 4 4) world to camera, (V 3 3) float32.
        first_gaussian: (V) row of the first Gaussian of each view's item.
        pair_starts: (V + 1).
        size: width, height in pixels.
        limits: low_pass, alpha_min, near, far, antialiased.
        records, boxes, tiles, spoilt: outputs (P RECORD) float32, (P 4) int32, (P) int32 number of tiles, and
            (V) bool, false before, set where the view has an input that is not finite.
    """
    chunk_starts = chunk_starts_of(pair_starts)
    for task in prange(chunk_starts[-1]):
        chunk = np.int64(task)
        v = group_of(chunk, chunk_starts)
        begin = first_gaussian[v] + (chunk - chunk_starts[v]) * CHUNK
        end = min(begin + CHUNK, first_gaussian[v] + pair_starts[v + 1] - pair_starts[v])
        shift = pair_starts[v] - first_gaussian[v]
        camera = camera_of(poses, intrinsics, v, size[0], size[1])
        clean = project_range(cloud, camera, begin, end, shift, limits, records, boxes, tiles)
        if not (clean and finite_camera(poses[v], intrinsics[v])):
            spoilt[v] = True
