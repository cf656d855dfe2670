"""Rooms on disk: made once from their seed, read many times.

A room is a folder: `color/000000.jpg`, `depth/000000.png` (16 bit, millimetres), `instance/000000.png` (16 bit),
`cameras.npz`, `cloud.npz`, `boxes.npz`, `mesh.npz`. Folders appear whole or not at all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splatlearn.data.procedural.cache import BaseRecipe, Workshop, save_arrays

if TYPE_CHECKING:
    from splatlearn.data.rooms.capture import Recording
    from splatlearn.data.rooms.cloud import Cloud
    from splatlearn.data.rooms.world import World

VERSION = 5
"""Raised whenever the same settings make other bytes."""
LENGTH_UNIT = 0.001
"""Metres a unit of stored depths and stored cloud coordinates."""


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """Everything that the bytes of a room follow from, besides its index."""

    frames: int
    size: tuple[int, int]
    points: int
    noise: float
    side: tuple[float, float]

    @property
    def digest(self) -> str:
        """Short hash of the settings and of this module's version."""
        return self.digest_of(VERSION)


def fill_room(recipe: Recipe, index: int, folder: Path) -> None:
    """Makes one room in an empty folder."""
    from splatlearn.data.rooms.capture import FIELD, record
    from splatlearn.data.rooms.cloud import sample_cloud
    from splatlearn.data.rooms.walk import walk
    from splatlearn.data.rooms.world import build

    seed = (recipe.seed, index)
    world = build((*seed, 0), recipe.side)
    poses = walk(world, np.random.default_rng((*seed, 1)), recipe.frames, FIELD)
    recording = record(world, poses, recipe.size, np.random.default_rng((*seed, 2)), recipe.noise)
    cloud = sample_cloud(world, poses, recipe.points, np.random.default_rng((*seed, 3)), recipe.noise)
    _write_frames(folder, recording)
    _write_arrays(folder, world, recording, cloud)


WORKSHOP = Workshop("rooms", "room", VERSION, __name__, fill_room)


def _write_frames(folder: Path, recording: "Recording") -> None:
    for name in ("color", "depth", "instance"):
        (folder / name).mkdir()
    for index in range(len(recording.poses)):
        Image.fromarray(recording.color[index]).save(folder / "color" / f"{index:06d}.jpg", quality=93, subsampling=0)
        for name in ("depth", "instance"):
            Image.fromarray(getattr(recording, name)[index]).save(folder / name / f"{index:06d}.png")


def _write_arrays(folder: Path, world: "World", recording: "Recording", cloud: "Cloud") -> None:
    boxes = world.boxes
    size = np.array(recording.color.shape[2:0:-1])
    save_arrays(folder / "cameras.npz", poses=recording.poses, intrinsics=recording.intrinsics, size=size)
    save_arrays(
        folder / "cloud.npz",
        xyz=np.round(cloud.xyz / LENGTH_UNIT).astype(np.int16),
        color=cloud.color,
        normal=np.round(cloud.normal * 127).astype(np.int8),
        instance=cloud.instance.astype(np.uint16),
    )
    save_arrays(
        folder / "boxes.npz",
        centers=boxes.centers.astype(np.float32),
        sizes=boxes.sizes.astype(np.float32),
        yaws=boxes.yaws.astype(np.float32),
        labels=boxes.labels.astype(np.int16),
    )
    save_arrays(
        folder / "mesh.npz",
        vertices=world.mesh.vertices.astype(np.float32),
        faces=world.mesh.faces.astype(np.int32),
        instance=world.mesh.instances.astype(np.uint16),
        color=_face_colors(world),
    )


def _face_colors(world: "World") -> NDArray[np.uint8]:
    """(F 3) mean colour of each triangle under its light."""
    from splatlearn.data.procedural.photograph import tone

    light = world.light[world.mesh.faces].mean(1)
    color = tone(world.sampler.mean[world.mesh.materials] * light * world.exposure)
    return np.clip(np.round(color * 255), 0, 255).astype(np.uint8)
