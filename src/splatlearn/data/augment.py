"""Random changes that keep geometry consistent: a transform is drawn once, and everything follows it.

Legend: N points, M boxes, V views. Metres, world, +z up. A transform is a (4 4) float64 matrix from the old
world to the new one. All functions are pure in (structure, generator).
"""

from dataclasses import replace
from math import pi

import numpy as np
import torch
from torch import Tensor

from splatlearn.errors import UserError
from splatlearn.structures import Boxes, Cameras, Frames, Points

TILT = pi / 64
"""GS3 4: rotations about the two horizontal axes are uniform within pi/64; also Pointcept's ScanNet recipe."""
SPIN = pi
"""GS3 4: rotation about the vertical axis is uniform within pi, so any angle."""
SCALE = (0.9, 1.1)
"""Pointcept's ScanNet recipe."""


def rotate_frames(frames: Frames, rng: np.random.Generator, *, tilt: float = TILT, spin: float = SPIN) -> Frames:
    """One rigid rotation of cameras and world an item; images, depth and every projection stay as they are.

    The cloud follows by itself: `to_points` of the result is the rotated cloud.

    Args:
        frames: posed views; every item gets its own rotation.
        tilt: largest angle about each axis of the item's first camera, radians.
        spin: largest angle about +z, radians.
    """
    parts = []
    for item in frames.split():
        transform = random_rotation(item.cameras, rng, tilt=tilt, spin=spin)
        parts.append(replace(item, cameras=transform_cameras(item.cameras, transform)))
    return Frames.pack(parts)


def random_rotation(cameras: Cameras, rng: np.random.Generator, *, tilt: float = TILT, spin: float = SPIN) -> Tensor:
    """(4 4) a rotation about the first camera's centre: its own axes within `tilt`, then up within `spin`."""
    pose = cameras.camera_to_world[0].double().cpu()
    axes, centre = pose[:3, :3], pose[:3, 3]
    x, y, z = rng.uniform(-tilt, tilt, 3)
    local = _about(2, z) @ _about(1, y) @ _about(0, x)
    rotation = _about(2, rng.uniform(-spin, spin)) @ axes @ local @ axes.T
    return _affine(rotation, centre - rotation @ centre)


def random_cloud_transform(
    rng: np.random.Generator,
    *,
    tilt: float = TILT,
    spin: float = SPIN,
    scale: tuple[float, float] = SCALE,
    flip: bool = True,
) -> Tensor:
    """(4 4) for clouds without cameras: turned about the world's axes, scaled, x and y mirrored by a coin each.

    Args:
        tilt: largest angle about x and about y, radians; 0 keeps boxes upright.
        spin: largest angle about z, radians.
        scale: smallest and largest factor.
        flip: whether to mirror.
    """
    x, y = rng.uniform(-tilt, tilt, 2)
    rotation = _about(2, rng.uniform(-spin, spin)) @ _about(1, y) @ _about(0, x)
    factor = rng.uniform(*scale)
    signs = np.where(rng.random(2) < 0.5, -1.0, 1.0) if flip else np.ones(2)
    return _affine(factor * rotation @ torch.diag(torch.tensor([*signs, 1.0], dtype=torch.float64)), torch.zeros(3))


def transform_cameras(cameras: Cameras, transform: Tensor) -> Cameras:
    """Cameras in the new world, computed in float64.

    Raises:
        UserError: the transform is not rigid; a camera can be neither mirrored nor scaled.
    """
    linear = transform[:3, :3].double()
    identity = torch.eye(3, dtype=torch.float64, device=linear.device)
    if not torch.allclose(linear @ linear.T, identity, atol=1e-6) or torch.linalg.det(linear) < 0:
        raise UserError("cameras follow rigid motions only; leave mirrors and scale to clouds without views")
    pose = cameras.world_to_camera
    moved = pose.double() @ torch.linalg.inv(transform.double()).to(pose.device)
    return replace(cameras, world_to_camera=moved.to(pose.dtype))


def transform_points(points: Points, transform: Tensor) -> Points:
    """Points in the new world; `normal` turns and mirrors with them and stays of unit length (zeros stay zero)."""
    linear, shift = _parts(transform, points.xyz)
    moved = replace(points, xyz=points.xyz @ linear.T + shift)
    if "normal" not in points:
        return moved
    turned = points["normal"] @ linear.T
    return moved.with_attributes(normal=torch.nn.functional.normalize(turned, dim=1))


def transform_boxes(boxes: Boxes, transform: Tensor) -> Boxes:
    """Boxes in the new world.

    Raises:
        UserError: the transform tilts the vertical axis; boxes stand upright.
    """
    linear, shift = _parts(transform, boxes.centers)
    factor = linear[2, 2]
    tilted = torch.cat([linear[2, :2], linear[:2, 2]]).abs().max()
    if factor <= 0 or tilted > 1e-5 * factor:
        raise UserError("boxes stand upright; give a transform that keeps +z (tilt=0)")
    x_axis = torch.stack([boxes.yaws.cos(), boxes.yaws.sin()], 1) @ linear[:2, :2].T
    return replace(
        boxes,
        centers=boxes.centers @ linear.T + shift,
        sizes=boxes.sizes * factor,
        yaws=torch.atan2(x_axis[:, 1], x_axis[:, 0]),
    )


def jitter_color(points: Points, rng: np.random.Generator) -> Points:
    """Colours changed as in Pointcept's ScanNet recipe: contrast stretch with chance 0.2, a shift of all points
    within 0.05 with chance 0.95, noise of 0.05 a point with chance 0.95; clipped to [0, 1].

    Raises:
        MissingAttribute: no `color`.
    """
    color = points["color"]
    stretch, blend, shift, noisy = rng.random(4)
    if stretch < 0.2:
        low, high = color.amin(0), color.amax(0)
        color = color.lerp((color - low) / (high - low).clamp_min(1e-6), blend)
    if shift < 0.95:
        color = color + color.new_tensor(rng.uniform(-0.05, 0.05, 3))
    if noisy < 0.95:
        color = color + torch.from_numpy(rng.normal(0, 0.05, color.shape)).to(color)
    return points.with_attributes(color=color.clamp(0, 1))


def jitter_xyz(points: Points, rng: np.random.Generator, *, sigma: float = 0.005, clip: float = 0.02) -> Points:
    """Points moved by clipped normal noise, metres (Pointcept's ScanNet recipe)."""
    noise = np.clip(rng.normal(0, sigma, points.xyz.shape), -clip, clip)
    return replace(points, xyz=points.xyz + torch.from_numpy(noise).to(points.xyz))


def _parts(transform: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    moved = transform.to(like)
    return moved[:3, :3], moved[:3, 3]


def _affine(linear: Tensor, shift: Tensor) -> Tensor:
    transform = torch.eye(4, dtype=torch.float64)
    transform[:3, :3], transform[:3, 3] = linear, shift
    return transform


def _about(axis: int, angle: float) -> Tensor:
    """(3 3) float64, counter-clockwise about a coordinate axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation = torch.eye(3, dtype=torch.float64)
    rotation[first, first] = rotation[second, second] = float(np.cos(angle))
    rotation[first, second], rotation[second, first] = -float(np.sin(angle)), float(np.sin(angle))
    return rotation
