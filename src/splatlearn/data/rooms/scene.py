"""Rooms as scenes. Legend: V views, H W pixels, N points, M boxes. Metres, world, +z up."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from splatlearn import registry
from splatlearn.data.procedural.cache import cores
from splatlearn.data.procedural.files import arrays, read_cached, read_images, read_nearest, small_arrays
from splatlearn.data.rooms.cache import LENGTH_UNIT, WORKSHOP, Recipe
from splatlearn.data.rooms.classes import CLASSES, LABELS, STRUCTURE
from splatlearn.data.scene import Reader, Scene
from splatlearn.structures import Boxes, Cameras, Frames, Points

PART = WORKSHOP.part


class RoomMesh(NamedTuple):
    """The surface of a room.

    Args:
        vertices: (V 3) float32 metres, world.
        faces: (F 3) int32.
        label: (F) int64 class of each triangle.
        instance: (F) int64 object of each triangle.
        color: (F 3) float32 in [0, 1], its mean colour under the room's light.
    """

    vertices: Tensor
    faces: Tensor
    label: Tensor
    instance: Tensor
    color: Tensor


@dataclass(frozen=True, kw_only=True)
class RoomsConfig:
    """Procedural furnished rooms.

    Args:
        rooms: how many.
        seed: rooms of other seeds have nothing in common.
        frames: views along the walk through each room.
        size: (width, height) of the stored images, pixels.
        points: at most this many points in a room's cloud.
        noise: 1 = the noise and holes of a Kinect; 0 = exact images and exact points.
        side: shortest and longest side of a room, metres.
        workers: processes that make missing rooms; 0 = one a core, at most 8. The result does not depend on it.
    """

    rooms: int = 100
    seed: int = 0
    frames: int = 48
    size: tuple[int, int] = (160, 120)
    points: int = 40000
    noise: float = 1.0
    side: tuple[float, float] = (3.3, 5.4)
    workers: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.rooms < 1 or self.frames < 1 or self.points < 1:
            problems.append("rooms, frames and points must be 1 or more")
        if min(self.size) < 16:
            problems.append(f"size must be 16 x 16 pixels or more, got {self.size}")
        if not 2.8 <= self.side[0] <= self.side[1] <= 20:
            problems.append(f"side must be (shortest, longest) within 2.8 to 20 metres, got {self.side}")
        if self.noise < 0 or self.seed < 0 or self.workers < 0:
            problems.append("noise, seed and workers must not be negative")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def recipe(self) -> Recipe:
        """What the bytes of a room follow from."""
        return Recipe(
            seed=self.seed,
            frames=self.frames,
            size=self.size,
            points=self.points,
            noise=float(self.noise),
            side=self.side,
        )


class RoomsScene(Scene):
    """One furnished room: posed RGB-D frames, a labelled cloud, oriented boxes, the mesh.

    Args:
        folder: of the cache.
        name: unique among the rooms of one seed.
    """

    group = "rooms"

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    @property
    def cameras(self) -> Cameras:
        """All V views at their stored size; the raw index counts from 0."""
        return _cameras(self.folder)

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """The chosen views at (width, height), with `depth` (V H W) metres, 0 = none."""
        cameras = self.cameras.rows(torch.as_tensor(list(views), dtype=torch.int64))
        depth = read_nearest(self.folder, "depth", views, size, LENGTH_UNIT, PART)
        images = read_images(self.folder, views, size, PART)
        return Frames(
            images=images,
            cameras=cameras.resize(*size),
            counts=(len(images),),
            attributes={"depth": depth},
        )

    def instance_maps(self, views: Sequence[int], size: tuple[int, int]) -> Tensor:
        """(V H W) int64 object under each pixel centre, sensor holes included."""
        # Zero means "none" to the depth reader and is the floor here; both read back as 0.
        return read_nearest(self.folder, "instance", views, size, 1.0, PART).round().long()

    def points(self) -> Points:
        """Every visible surface: `color` in [0, 1], `normal` towards the viewer, `label`, `instance`."""
        data = read_cached(self.folder, "cloud.npz", arrays, PART)
        xyz = torch.from_numpy(data["xyz"].astype(np.float32) * np.float32(LENGTH_UNIT))
        normal = torch.from_numpy(data["normal"].astype(np.float32))
        color = torch.from_numpy(data["color"].astype(np.float32) / 255)
        instance = torch.from_numpy(data["instance"].astype(np.int64))
        normal = torch.nn.functional.normalize(normal, dim=1)
        attributes = {
            "color": color,
            "normal": normal,
            "label": self.instance_labels[instance],
            "instance": instance,
        }
        return Points(xyz=xyz, counts=(len(xyz),), attributes=attributes)

    def boxes(self) -> Boxes:
        """Boxes of all objects; walls, floor and ceiling have none. `instance` refers to the cloud's."""
        stored = _boxes(self.folder)
        structure = torch.tensor([LABELS[name] for name in STRUCTURE])
        keep = torch.nonzero(~torch.isin(stored["labels"], structure))[:, 0]
        attributes = {"label": stored["labels"][keep], "instance": keep}
        centers, sizes, yaws = (stored[name][keep] for name in ("centers", "sizes", "yaws"))
        return Boxes(centers=centers, sizes=sizes, yaws=yaws, counts=(len(keep),), attributes=attributes)

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """Photographs (3 H W) in [0, 1] at the stored size."""
        size = (self.cameras.width, self.cameras.height)
        return list(self.frames(views, size).images)

    def pixel_labels(self, views: Sequence[int]) -> list[Tensor]:
        """(H W) int64 class of what is under each pixel centre, at the stored size."""
        size = (self.cameras.width, self.cameras.height)
        return list(self.instance_labels[self.instance_maps(views, size)])

    def mesh(self) -> RoomMesh:
        """The surface that everything else was sampled from."""
        data = read_cached(self.folder, "mesh.npz", arrays, PART)
        instance = torch.from_numpy(data["instance"].astype(np.int64))
        return RoomMesh(
            torch.from_numpy(data["vertices"]),
            torch.from_numpy(data["faces"]),
            self.instance_labels[instance],
            instance,
            torch.from_numpy(data["color"].astype(np.float32) / 255),
        )

    @property
    def instance_labels(self) -> Tensor:
        """(M) int64 class of every instance, structure included."""
        return _boxes(self.folder)["labels"]


@lru_cache(maxsize=1024)
def _cameras(folder: Path) -> Cameras:
    data = small_arrays(folder, "cameras.npz", PART)
    poses, intrinsics, (width, height) = data["poses"], data["intrinsics"], data["size"].tolist()
    count = len(poses)
    return Cameras(
        world_to_camera=torch.from_numpy(np.linalg.inv(poses)).float(),
        intrinsics=torch.from_numpy(intrinsics).float().expand(count, 3, 3).clone(),
        width=width,
        height=height,
        counts=(count,),
        attributes={"frame": torch.arange(count)},
    )


@lru_cache(maxsize=1024)
def _boxes(folder: Path) -> dict[str, Tensor]:
    stored = {name: torch.from_numpy(array) for name, array in small_arrays(folder, "boxes.npz", PART).items()}
    return {**stored, "labels": stored["labels"].long()}


@registry.readers.register(
    "rooms",
    RoomsConfig,
    {
        "default": {},
        "tiny": {"rooms": 6, "frames": 12, "size": (64, 48), "points": 6000, "side": (3.0, 3.8)},
        "demo": {"rooms": 32, "points": 30000},
    },
)
class RoomsReader(Reader):
    """Procedural furnished rooms, made on first use and cached.

    Args:
        config: which rooms.
        path: not used; rooms come from their seed.
    """

    needs_path = False
    classes = CLASSES

    def __init__(self, config: RoomsConfig, path: Path | None = None) -> None:
        self.config = config

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Never: rooms are asked for by name."""
        return False

    def scenes(self) -> list[RoomsScene]:
        """Every room, made where it is missing.

        Raises:
            UserError: the cache cannot be written.
        """
        config = self.config
        folders = WORKSHOP.ensure(config.recipe, config.rooms, config.workers or cores())
        return [RoomsScene(folder, f"room-{config.seed}-{index:04d}") for index, folder in enumerate(folders)]
