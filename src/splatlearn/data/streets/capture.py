"""The cameras about the vehicle, and what they take. Legend: V cameras, H W pixels. Metres, radians."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatlearn.data.procedural.mesh import Array
from splatlearn.data.procedural.photograph import develop, photograph
from splatlearn.data.streets.lidar import HEIGHT
from splatlearn.data.streets.route import Ride
from splatlearn.data.streets.world import World

FIELD = float(np.deg2rad(70.0))
"""Horizontal field of view of every camera, radians (nuScenes: 70 degrees, and 110 at the back)."""
TURN_SECONDS = 0.1
"""One turn of the lidar: a camera takes its picture when the beams pass its view, so up to half of this aside."""


@dataclass(frozen=True)
class Mount:
    """A camera on the vehicle.

    Args:
        name: of the camera.
        yaw: radians from the vehicle's forward to the left.
        at: (x forward, y left, z up) from the lidar, metres.
    """

    name: str
    yaw: float
    at: tuple[float, float, float]


RIG = (
    Mount("front", 0.0, (0.8, 0.0, -0.3)),
    Mount("front_left", np.deg2rad(55.0), (0.6, 0.5, -0.3)),
    Mount("back_left", np.deg2rad(110.0), (0.1, 0.5, -0.28)),
    Mount("back", np.pi, (-0.9, 0.0, -0.25)),
    Mount("back_right", np.deg2rad(-110.0), (0.1, -0.5, -0.28)),
    Mount("front_right", np.deg2rad(-55.0), (0.6, -0.5, -0.3)),
)
"""All round, as on nuScenes' vehicles; they see 97 % of the directions at the horizon."""
CAMERAS = tuple(mount.name for mount in RIG)


def lidar_pose(ride: Ride, time: float) -> Array:
    """(4 4) lidar-to-map: x forward, y left, z up."""
    pose = ride.pose(time)
    pose[2, 3] += HEIGHT
    return pose


def camera_poses(ride: Ride, time: float) -> Array:
    """(V 4 4) camera-to-map of the pictures that belong to a scan, each at its own time."""
    poses = np.zeros((len(RIG), 4, 4))
    for row, mount in enumerate(RIG):
        c, s = np.cos(mount.yaw), np.sin(mount.yaw)
        own = np.eye(4)
        own[:3, :3] = np.stack([[s, -c, 0], [0, 0, -1], [c, s, 0]], 1)
        own[:3, 3] = mount.at
        late = -mount.yaw / (2 * np.pi) * TURN_SECONDS
        poses[row] = lidar_pose(ride, time + late) @ own
    return poses


def pinhole(size: tuple[int, int]) -> Array:
    """(3 3) intrinsics of every camera at (width, height) pixels."""
    focal = size[0] / 2 / np.tan(FIELD / 2)
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])


def take_pictures(
    world: World, poses: Array, size: tuple[int, int], rng: np.random.Generator, noise: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Photographs (V H W 3) and the object under each pixel centre (V H W); what moves stands still meanwhile.

    Args:
        world: with its exposure set.
        poses: (V 4 4) camera-to-map.
        size: (width, height), pixels.
        rng: source of the noise.
        noise: 1 = a sensor's grain; 0 = exact.
    """
    shape = (len(poses), size[1], size[0])
    taken = photograph(world, poses, pinhole(size), size)
    seen = world.mesh.instances[taken.hits.face].astype(np.uint16).reshape(shape)
    return develop(taken.linear, shape, rng, noise), seen
