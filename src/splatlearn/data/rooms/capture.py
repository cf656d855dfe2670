"""What an RGB-D camera records: photographs, depth with a structured-light sensor's noise and holes, instances.

Legend: V views, H W pixels, K rays. Metres; depth is along z of the camera; OpenCV axes, pixel centres at half
integers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr

from splatlearn.data.procedural.light import Hits
from splatlearn.data.procedural.mesh import Array
from splatlearn.data.procedural.photograph import develop, dot, expose, photograph
from splatlearn.data.rooms.world import World

FIELD = float(np.deg2rad(57.0))
"""Horizontal field of view of a Kinect, radians."""
BASELINE = 0.075
"""Projector to camera of a Kinect, metres."""
SENSOR_FOCAL = 585.0
"""Focal length of 7-Scenes' Kinect at 640 x 480, pixels; disparity is quantised at this resolution."""
QUANTUM = 0.125
"""Disparity step of a Kinect, pixels of its 640-pixel image."""
BATCH = 6


@dataclass(frozen=True)
class Recording:
    """One camera's V frames.

    Args:
        color: (V H W 3) uint8.
        depth: (V H W) uint16 millimetres, 0 = none.
        instance: (V H W) uint16 object under the pixel centre.
        poses: (V 4 4) camera-to-world.
        intrinsics: (3 3) pixels.
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.uint16]
    instance: NDArray[np.uint16]
    poses: Array
    intrinsics: Array


def pinhole(size: tuple[int, int]) -> Array:
    """(3 3) intrinsics of a Kinect-like camera of (width, height) pixels, the centre in the middle."""
    focal = size[0] / 2 / np.tan(FIELD / 2)
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])


def record(
    world: World, poses: Array, size: tuple[int, int], rng: np.random.Generator, noise: float = 1.0
) -> Recording:
    """Photographs and depth images along a walk.

    Args:
        world: the room; its exposure is set here, once for the whole walk.
        poses: (V 4 4) camera-to-world.
        size: (width, height), pixels.
        rng: source of the noise.
        noise: 1 = a Kinect's; 0 = exact depth without holes, and exact colour.
    """
    camera = pinhole(size)
    expose(world, poses, camera, size)
    parts = [_record(world, poses[i : i + BATCH], camera, size, rng, noise) for i in range(0, len(poses), BATCH)]
    color, depth, instance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Recording(color, depth, instance, poses, camera)


def _record(
    world: World, poses: Array, camera: Array, size: tuple[int, int], rng: np.random.Generator, noise: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint16]]:
    shape = (len(poses), size[1], size[0])
    taken = photograph(world, poses, camera, size)
    hits = taken.hits
    color = develop(taken.linear, shape, rng, noise)
    depth = np.where(hits.face >= 0, hits.distance.astype(np.float64), 0.0)
    if noise > 0:
        points = taken.origins + taken.directions * depth[:, None]
        sensor = _Sensor(world, hits, taken.directions, points, poses, shape)
        depth = sensor.measure(depth, rng, noise)
    millimetres = np.clip(np.round(depth * 1000), 0, 65000).astype(np.uint16).reshape(shape)
    seen = world.mesh.instances[hits.face]
    return color, millimetres, seen.astype(np.uint16).reshape(shape)


class _Sensor:
    """A structured-light depth camera: what it cannot see, and how it errs."""

    def __init__(
        self, world: World, hits: Hits, directions: Array, points: Array, poses: Array, shape: tuple[int, int, int]
    ) -> None:
        self.shape = shape
        unit = directions / np.sqrt(dot(directions, directions))[:, None]
        normals = world.face_normals[hits.face]
        self.slant = np.abs(dot(normals, unit)).reshape(shape)
        material = world.mesh.materials[hits.face]
        self.glass = world.sampler.glass[material].reshape(shape)
        self.lit = (world.sampler.glow[material] > 0).reshape(shape)
        self.dark = (world.sampler.mean[material].mean(1) < 0.035).reshape(shape)
        self.shadow = self._projector_shadow(world, points, normals, unit, poses)

    def _projector_shadow(
        self, world: World, points: Array, normals: Array, unit: Array, poses: Array
    ) -> NDArray[np.bool_]:
        """(V H W) points that the projector, BASELINE to the camera's right, does not reach."""
        facing = normals * -np.sign(dot(normals, unit))[:, None]
        starts = points + 0.006 * facing
        projector = poses[:, :3, 3] + BASELINE * poses[:, :3, 0]
        toward = np.repeat(projector, self.shape[1] * self.shape[2], 0) - starts
        return world.caster.blocked(starts, toward).reshape(self.shape)

    def measure(self, depth: Array, rng: np.random.Generator, noise: float) -> Array:
        """(V H W) metres, 0 where there is no measurement.

        The error grows with the square of depth (Nguyen et al. 2012: 1.2 mm + 1.9 mm (z - 0.4)^2), half of it
        shared by neighbours, and disparity comes in steps of an eighth of a pixel.
        """
        z = depth.reshape(self.shape)
        own = rng.standard_normal(self.shape)
        shared = ndimage.gaussian_filter(rng.standard_normal(self.shape), (0, 1.5, 1.5)) * 5.0
        sigma = 0.0012 + 0.0019 * (z - 0.4) ** 2
        blurred = np.maximum(z + noise * sigma * (0.5 * own + 0.6 * shared), 0.1)
        disparity = SENSOR_FOCAL * BASELINE / blurred
        stepped = QUANTUM * np.round(disparity / QUANTUM)
        measured = SENSOR_FOCAL * BASELINE / np.maximum(stepped, QUANTUM)
        return np.where(self._lost(z, rng) | (z < 0.35), 0.0, measured)

    def _lost(self, z: Array, rng: np.random.Generator) -> NDArray[np.bool_]:
        """(V H W) holes: shadows, grazing and dark and shining surfaces, depth edges, far range, and stray ones."""
        blotch = ndimage.gaussian_filter(rng.standard_normal(self.shape), (0, 2.5, 2.5)) * 8.9
        luck = ndtr((blotch + 0.7 * rng.standard_normal(self.shape)) / 1.22)
        risk = 0.95 * np.clip((0.2 - self.slant) / 0.14, 0, 1)
        risk = np.maximum(risk, np.clip((z - 4.5) / 3.0, 0, 0.95))
        risk = np.maximum(risk, 0.65 * self.glass + 0.4 * (self.lit & ~self.glass) + 0.45 * self.dark)
        spread = ndimage.maximum_filter(z, (1, 3, 3)) - ndimage.minimum_filter(z, (1, 3, 3))
        risk = np.maximum(risk, 0.35 * (spread > 0.06 * z + 0.02))
        return (luck < risk) | self.shadow | (rng.random(self.shape) < 0.003)
