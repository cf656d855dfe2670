"""The gradient of `projection.project`: from pixel sums back to Gaussians, poses and intrinsics.

Legend: V views, N Gaussians of all items, P pairs, K coefficients. Symbols follow `projection`: the footprint of a
pair is (centre, a, s, b) with exponent a u^2 + b dy^2, u = dx - s dy.
"""

from math import sqrt

import numpy as np
from numba import prange

from splatlearn.splatting.kernels.compilation import allocating, helper, kernel
from splatlearn.splatting.kernels.compositing import MOMENTS
from splatlearn.splatting.kernels.harmonics import basis_gradient, fill_basis
from splatlearn.splatting.kernels.projection import CHUNK, LOG2_E, Cloud, chunk_starts_of, group_of
from splatlearn.splatting.kernels.vectors import (
    Camera,
    Matrix,
    Pinhole,
    Vector,
    camera_of,
    cross,
    dot,
    jacobian,
    mix,
    rotation_of,
    row,
    rows_times,
    scaled,
    scaled_each,
    times_rows,
)

POSE = 16
"""Gradients of a camera: 0-8 rotation by rows, 9-11 translation, 12 fx, 13 fy, 14 cx, 15 cy."""


@helper
def sum_slots(slots: np.ndarray, begin: int, end: int, total: np.ndarray) -> None:
    """The MOMENTS of one pair over its tiles, added in order."""
    total[:] = 0
    for slot in range(begin, end):
        for field in range(MOMENTS):
            total[field] += slots[slot, field]


@helper
def footprint_gradient(total: np.ndarray, record: np.ndarray) -> tuple[float, float, float, float, float]:
    """Gradients by centre x, centre y and the variances xx, xy, yy of one pair."""
    a, shear, b = record[2] / LOG2_E, np.float64(record[3]), record[4] / LOG2_E
    opacity = np.float64(record[5])
    by_a, by_b, by_shear = -opacity * total[7], -opacity * total[9], 2 * a * opacity * total[8]
    by_x, by_y = 2 * a * opacity * total[5], 2 * opacity * (b * total[6] - a * shear * total[5])
    by_xx, by_xy = -2 * a * a * by_a, 4 * a * a * shear * by_a + 2 * b * by_shear
    by_yy = -2 * (a * a * shear * shear * by_a + b * shear * by_shear + b * b * by_b)
    return by_x, by_y, by_xx, by_xy, by_yy


@helper
def color_gradient(
    offset: Vector, sh: np.ndarray, i: int, total: np.ndarray, scratch: np.ndarray, by_sh: np.ndarray
) -> Vector:
    """Adds to the gradient of the coefficients of Gaussian i; returns the gradient by `offset`, camera to mean."""
    basis, weights, coefficients = scratch[0], scratch[1], sh.shape[1]
    length = sqrt(dot(offset, offset))
    inverse = 1 / length if length > 0 else 0.0
    unit = scaled(offset, inverse)
    fill_basis(unit[0], unit[1], unit[2], coefficients, basis)
    weights[:coefficients] = 0
    for channel in range(3):
        color, gradient = 0.5, total[channel]
        for k in range(coefficients):
            color += basis[k] * sh[i, k, channel]
        if color >= 0:
            for k in range(coefficients):
                by_sh[i, k, channel] += basis[k] * gradient
                weights[k] += sh[i, k, channel] * gradient
    if coefficients == 1:
        return 0.0, 0.0, 0.0
    by_unit = basis_gradient(unit[0], unit[1], unit[2], coefficients, weights)
    return scaled(mix(by_unit, 1.0, unit, -dot(by_unit, unit)), inverse)


@helper
def pinhole_gradient(
    axis: Pinhole, ratio: float, inverse_depth: float, by_pixel: float, by_scale: float, by_slope: float
) -> tuple[float, float, float, float]:
    """One image axis: gradients by the coordinate, the depth, the focal length and the centre.

    ratio: coordinate / depth. by_scale, by_slope: gradients by the Jacobian's entries for coordinate and depth.
    """
    scale, entry, held = jacobian(axis, ratio, inverse_depth)
    by_coordinate, by_focal, by_center = scale * by_pixel, ratio * by_pixel + inverse_depth * by_scale, by_pixel
    by_depth = -scale * (ratio * by_pixel + inverse_depth * by_scale)
    if held:  # the entry is (constant +- centre) / depth
        pull = inverse_depth * by_slope
        return by_coordinate, by_depth - entry * pull, by_focal, by_center + pull
    by_coordinate -= scale * inverse_depth * by_slope
    by_depth -= 2 * entry * inverse_depth * by_slope
    return by_coordinate, by_depth, by_focal - ratio * inverse_depth * by_slope, by_center


@helper
def quaternion_gradient(
    unit: tuple[float, float, float, float], inverse: float, g: Matrix, i: int, out: np.ndarray
) -> None:
    """Adds the gradient by quaternion i of any length, given that by its rotation; none for a zero quaternion."""
    w, x, y, z = unit
    (g00, g01, g02), (g10, g11, g12), (g20, g21, g22) = g
    by_w = 2 * (x * (g21 - g12) + y * (g02 - g20) + z * (g10 - g01))
    by_x = 2 * (y * (g01 + g10) + z * (g02 + g20) + w * (g21 - g12)) - 4 * x * (g11 + g22)
    by_y = 2 * (x * (g01 + g10) + z * (g12 + g21) + w * (g02 - g20)) - 4 * y * (g00 + g22)
    by_z = 2 * (x * (g02 + g20) + y * (g12 + g21) + w * (g10 - g01)) - 4 * z * (g00 + g11)
    radial = by_w * w + by_x * x + by_y * y + by_z * z
    out[i, 0] += (by_w - w * radial) * inverse
    out[i, 1] += (by_x - x * radial) * inverse
    out[i, 2] += (by_y - y * radial) * inverse
    out[i, 3] += (by_z - z * radial) * inverse


@helper
def compensation_gradient(
    first: Vector, second: Vector, low_pass: float, opacity: float, by_drawn: float
) -> tuple[float, float, float, float]:
    """Antialiasing: opacity as drawn = opacity * sqrt(sharp / blurred determinant). Gradients by the opacity and by
    the variances xx, xy, yy; none through a footprint without area."""
    xx, xy, yy, area = dot(first, first), dot(first, second), dot(second, second), cross(first, second)
    sharp = dot(area, area)
    blurred = sharp + low_pass * (xx + yy) + low_pass * low_pass
    if sharp <= 0:
        return 0.0, 0.0, 0.0, 0.0
    factor = sqrt(sharp / blurred)
    by_factor = 0.5 * by_drawn * opacity * factor
    by_sharp, by_sum = by_factor * (1 / sharp - 1 / blurred), -by_factor * low_pass / blurred
    return by_drawn * factor, by_sharp * yy + by_sum, -2 * by_sharp * xy, by_sharp * xx + by_sum


@helper
def add(out: np.ndarray, i: int, values: Vector) -> None:
    """out[i] += values."""
    out[i, 0] += values[0]
    out[i, 1] += values[1]
    out[i, 2] += values[2]


@helper
def add_outer(pose: np.ndarray, column: Vector, along: Vector) -> None:
    """Adds the outer product to the gradient of the camera's rotation."""
    for j in range(3):
        pose[3 * j] += column[j] * along[0]
        pose[3 * j + 1] += column[j] * along[1]
        pose[3 * j + 2] += column[j] * along[2]


@helper
def pair_gradient(
    camera: Camera,
    cloud: Cloud,
    i: int,
    smoothing: tuple[float, bool],
    record: np.ndarray,
    total: np.ndarray,
    scratch: np.ndarray,
    outputs: Cloud,
    pose: np.ndarray,
) -> None:
    """Adds what one pair contributes to the gradients of Gaussian i and of its camera."""
    rotation, translation, behind, x_axis, y_axis = camera
    mean, scales = row(cloud[0], i), row(cloud[1], i)
    x, y, z = mix(rows_times(rotation, mean), 1.0, translation, 1.0)
    inverse = 1 / z
    x, y = x * inverse, y * inverse
    jx, jxz, _ = jacobian(x_axis, x, inverse)
    jy, jyz, _ = jacobian(y_axis, y, inverse)
    turn, unit, shrink = rotation_of(cloud[2], i)
    across, down = mix(rotation[0], jx, rotation[2], jxz), mix(rotation[1], jy, rotation[2], jyz)
    axis_x, axis_y = times_rows(across, turn), times_rows(down, turn)
    by_px, by_py, by_xx, by_xy, by_yy = footprint_gradient(total, record)
    first, second = scaled_each(axis_x, scales), scaled_each(axis_y, scales)
    by_opacity = total[4]
    if smoothing[1]:
        opacity = np.float64(cloud[3][i])
        by_opacity, more_xx, more_xy, more_yy = compensation_gradient(first, second, smoothing[0], opacity, total[4])
        by_xx, by_xy, by_yy = by_xx + more_xx, by_xy + more_xy, by_yy + more_yy
    by_first, by_second = mix(first, 2 * by_xx, second, by_xy), mix(second, 2 * by_yy, first, by_xy)
    by_scales = mix(scaled_each(by_first, axis_x), 1.0, scaled_each(by_second, axis_y), 1.0)
    by_first, by_second = scaled_each(by_first, scales), scaled_each(by_second, scales)
    by_turn = (
        mix(by_first, across[0], by_second, down[0]),
        mix(by_first, across[1], by_second, down[1]),
        mix(by_first, across[2], by_second, down[2]),
    )
    by_across, by_down = rows_times(turn, by_first), rows_times(turn, by_second)
    by_x, deep_x, by_fx, by_cx = pinhole_gradient(
        x_axis, x, inverse, by_px, dot(by_across, rotation[0]), dot(by_across, rotation[2])
    )
    by_y, deep_y, by_fy, by_cy = pinhole_gradient(
        y_axis, y, inverse, by_py, dot(by_down, rotation[1]), dot(by_down, rotation[2])
    )
    by_point = (by_x, by_y, deep_x + deep_y + total[3])
    by_offset = color_gradient(mix(mean, 1.0, behind, 1.0), cloud[4], i, total, scratch, outputs[4])
    add(outputs[0], i, mix(times_rows(by_point, rotation), 1.0, by_offset, 1.0))
    add(outputs[1], i, by_scales)
    quaternion_gradient(unit, shrink, by_turn, i, outputs[2])
    outputs[3][i] += by_opacity
    by_translation = mix(by_point, 1.0, rows_times(rotation, by_offset), 1.0)
    add_outer(pose, by_point, mean)
    add_outer(pose, translation, by_offset)
    add_outer(pose, (jx, 0.0, jxz), by_across)
    add_outer(pose, (0.0, jy, jyz), by_down)
    pose[9] += by_translation[0]
    pose[10] += by_translation[1]
    pose[11] += by_translation[2]
    pose[12] += by_fx
    pose[13] += by_fy
    pose[14] += by_cx
    pose[15] += by_cy


@allocating
def gradient_range(
    cloud: Cloud,
    camera: Camera,
    begin: int,
    end: int,
    shift: int,
    smoothing: tuple[float, bool],
    records: np.ndarray,
    tiles: np.ndarray,
    slot_starts: np.ndarray,
    slots: np.ndarray,
    outputs: Cloud,
    pose: np.ndarray,
) -> None:
    """Adds the gradients of Gaussians begin to end in one view; the pair of Gaussian i is i + shift."""
    scratch, total = np.empty((2, 25)), np.empty(MOMENTS)
    for i in range(begin, end):
        pair = i + shift
        if tiles[pair] > 0:
            sum_slots(slots, slot_starts[pair], slot_starts[pair + 1], total)
            pair_gradient(camera, cloud, i, smoothing, records[pair], total, scratch, outputs, pose)


@allocating
def sum_parts(parts: np.ndarray, chunk_starts: np.ndarray, view_starts: np.ndarray) -> np.ndarray:
    """Adds the camera gradients (chunks, views of an item, POSE) of all chunks in order: (V POSE)."""
    result = np.zeros((view_starts[-1], POSE))
    for b in range(len(view_starts) - 1):
        for chunk in range(chunk_starts[b], chunk_starts[b + 1]):
            for v in range(view_starts[b], view_starts[b + 1]):
                for field in range(POSE):
                    result[v, field] += parts[chunk, v - view_starts[b], field]
    return result


@kernel
def backproject(
    cloud: Cloud,
    poses: np.ndarray,
    intrinsics: np.ndarray,
    gaussian_starts: np.ndarray,
    view_starts: np.ndarray,
    pair_starts: np.ndarray,
    size: tuple[int, int],
    smoothing: tuple[float, bool],
    records: np.ndarray,
    tiles: np.ndarray,
    slot_starts: np.ndarray,
    slots: np.ndarray,
    outputs: Cloud,
) -> np.ndarray:
    """The gradient of `projection.project`.

    Args:
        cloud, poses, intrinsics, pair_starts, size, records, tiles: as projected.
        gaussian_starts, view_starts: (B + 1) rows of each item.
        smoothing: low_pass, antialiased.
        slot_starts, slots: of `binning.bin_pairs` and `compositing.differentiate`.
        outputs: gradients of the five arrays of `cloud`, float32, zero before.

    Returns:
        (V POSE) float64 gradients of the cameras. Sums run in a fixed order, whatever the number of threads.
    """
    chunk_starts = chunk_starts_of(gaussian_starts)
    widest = 1
    for b in range(len(view_starts) - 1):
        widest = max(widest, view_starts[b + 1] - view_starts[b])
    parts = np.zeros((chunk_starts[-1], widest, POSE))
    for task in prange(chunk_starts[-1]):
        chunk = np.int64(task)
        b = group_of(chunk, chunk_starts)
        begin = gaussian_starts[b] + (chunk - chunk_starts[b]) * CHUNK
        end = min(begin + CHUNK, gaussian_starts[b + 1])
        for v in range(view_starts[b], view_starts[b + 1]):
            camera = camera_of(poses, intrinsics, v, size[0], size[1])
            shift, pose = pair_starts[v] - gaussian_starts[b], parts[chunk, v - view_starts[b]]
            gradient_range(
                cloud, camera, begin, end, shift, smoothing, records, tiles, slot_starts, slots, outputs, pose
            )
    return sum_parts(parts, chunk_starts, view_starts)
