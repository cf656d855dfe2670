"""Drives on disk: made once from their seed, read many times.

A drive is a folder of scans `scan-00`, `scan-01`, ..., each with `points.npz`, `cameras.npz`, `boxes.npz`,
`instances.npz`, and for each camera `color/000000.jpg` and `instance/000000.png` (16 bit).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splatlearn.data.procedural.cache import BaseRecipe, Workshop, save_arrays

if TYPE_CHECKING:
    from splatlearn.data.streets.layout import Street
    from splatlearn.data.streets.lidar import Scan
    from splatlearn.data.streets.world import World

VERSION = 1
"""Raised whenever the same settings make other bytes."""
LENGTH_UNIT = 0.0025
"""Metres a unit of stored coordinates."""
PERIOD = 1.0
"""Seconds between scans: 5.5 to 9.5 metres of driving."""


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """Everything that the bytes of a drive follow from, besides its index."""

    scans: int
    size: tuple[int, int]
    beams: int
    columns: int
    noise: float

    @property
    def digest(self) -> str:
        """Short hash of the settings and of this module's version."""
        return self.digest_of(VERSION)


def scan_folder(drive: Path, number: int) -> Path:
    """Where a scan lies in the folder of its drive."""
    return drive / f"scan-{number:02d}"


def fill_drive(recipe: Recipe, index: int, folder: Path) -> None:
    """Makes one drive in an empty folder."""
    from splatlearn.data.procedural.photograph import expose
    from splatlearn.data.streets.capture import camera_poses, pinhole
    from splatlearn.data.streets.layout import lay_out
    from splatlearn.data.streets.world import Stage, World, draw_weather

    seed = (recipe.seed, index)
    street = lay_out(np.random.default_rng((*seed, 0)), recipe.scans)
    stage = Stage(street, draw_weather(np.random.default_rng((*seed, 1))))
    world = World(stage, 0.0)
    expose(world, camera_poses(street.ride, 0.0), pinhole(recipe.size), recipe.size)
    for number in range(recipe.scans):
        time = number * PERIOD
        place = scan_folder(folder, number)
        place.mkdir()
        rng = np.random.default_rng((*seed, 2, number))
        _fill_scan(recipe, street, World(stage, time, world.exposure), time, place, rng)


WORKSHOP = Workshop("streets", "street", VERSION, __name__, fill_drive)


def _fill_scan(
    recipe: Recipe, street: "Street", world: "World", time: float, folder: Path, rng: np.random.Generator
) -> None:
    from splatlearn.data.streets.capture import camera_poses, lidar_pose, pinhole, take_pictures
    from splatlearn.data.streets.lidar import scan

    sensor, cameras = lidar_pose(street.ride, time), camera_poses(street.ride, time)
    points = scan(world, sensor, recipe.beams, recipe.columns, rng, recipe.noise)
    color, instance = take_pictures(world, cameras, recipe.size, rng, recipe.noise)
    _write_pictures(folder, color, instance)
    save_arrays(
        folder / "cameras.npz",
        world_to_camera=np.linalg.inv(cameras) @ sensor,
        intrinsics=pinhole(recipe.size),
        size=np.array(recipe.size),
    )
    save_arrays(
        folder / "points.npz",
        xyz=np.round(points.xyz / LENGTH_UNIT).astype(np.int16),
        intensity=np.round(points.intensity * 255).astype(np.uint8),
        beam=points.beam.astype(np.uint8),
        instance=points.instance.astype(np.uint16),
    )
    save_arrays(folder / "instances.npz", labels=world.labels.astype(np.int16))
    _write_boxes(folder, street, sensor, points, time)


def _write_pictures(folder: Path, color: NDArray[np.uint8], instance: NDArray[np.uint16]) -> None:
    for name in ("color", "instance"):
        (folder / name).mkdir()
    for view in range(len(color)):
        Image.fromarray(color[view]).save(folder / "color" / f"{view:06d}.jpg", quality=93, subsampling=0)
        Image.fromarray(instance[view]).save(folder / "instance" / f"{view:06d}.png")


def _write_boxes(folder: Path, street: "Street", sensor: np.ndarray, points: "Scan", time: float) -> None:
    """Boxes of what some point lies on, in the sensor's frame."""
    from splatlearn.data.streets.world import boxes_at

    boxes = boxes_at(street, time)
    met = np.isin(boxes.instances, points.instance)
    to_sensor = np.linalg.inv(sensor)
    centers = boxes.centers[met] @ to_sensor[:3, :3].T + to_sensor[:3, 3]
    yaws = boxes.yaws[met] - np.arctan2(sensor[1, 0], sensor[0, 0])
    save_arrays(
        folder / "boxes.npz",
        centers=centers.astype(np.float32),
        sizes=boxes.sizes[met].astype(np.float32),
        yaws=((yaws + np.pi) % (2 * np.pi) - np.pi).astype(np.float32),
        labels=boxes.labels[met].astype(np.int16),
        instances=boxes.instances[met].astype(np.int16),
    )
