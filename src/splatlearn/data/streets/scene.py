"""Drives as scenes, one a scan. Legend: V views, H W pixels, N points, M boxes. Metres, the lidar's frame, +z up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splatlearn import registry
from splatlearn.data.procedural.cache import cores
from splatlearn.data.procedural.files import arrays, read_cached, read_images, read_nearest, small_arrays
from splatlearn.data.scene import Reader, Scene
from splatlearn.data.streets.cache import LENGTH_UNIT, WORKSHOP, Recipe, scan_folder
from splatlearn.data.streets.capture import CAMERAS
from splatlearn.data.streets.classes import CLASSES
from splatlearn.data.streets.lidar import ELEVATIONS
from splatlearn.structures import Boxes, Cameras, Frames, Points

PART = WORKSHOP.part
HELD_OUT = 4
"""Every so many drives one is for validation, beginning with the second."""
STATISTICS = (0.106, 0.075)
"""Mean and standard deviation of `intensity` over the scans of the default preset."""


@dataclass(frozen=True, kw_only=True)
class StreetsConfig:
    """Procedural drives through streets.

    Args:
        drives: how many; every fourth, from the second on, is for validation.
        scans: of a drive, a second and 5.5 to 9.5 metres apart.
        seed: drives of other seeds have nothing in common.
        beams: of the lidar, 32 (as HDL-32E) or 64 (as HDL-64E).
        columns: directions of each beam in a turn (nuScenes: about 1085; KITTI: about 2000).
        size: (width, height) of the pictures of all six cameras, pixels.
        noise: 1 = the noise and losses of a sensor; 0 = exact images and points.
        workers: processes that make missing drives; 0 = one a core, at most 8. The result does not depend on it.
    """

    drives: int = 20
    scans: int = 8
    seed: int = 0
    beams: int = 32
    columns: int = 1084
    size: tuple[int, int] = (320, 160)
    noise: float = 1.0
    workers: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.drives < 1 or not 1 <= self.scans <= 100:
            problems.append("drives must be 1 or more, scans 1 to 100")
        if self.beams not in ELEVATIONS:
            problems.append(f"beams must be one of {', '.join(map(str, ELEVATIONS))}, got {self.beams}")
        if self.columns < 16:
            problems.append(f"columns must be 16 or more, got {self.columns}")
        if min(self.size) < 16:
            problems.append(f"size must be 16 x 16 pixels or more, got {self.size}")
        if self.noise < 0 or self.seed < 0 or self.workers < 0:
            problems.append("noise, seed and workers must not be negative")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def recipe(self) -> Recipe:
        """What the bytes of a drive follow from."""
        return Recipe(
            seed=self.seed,
            scans=self.scans,
            beams=self.beams,
            columns=self.columns,
            size=self.size,
            noise=float(self.noise),
        )


class StreetScene(Scene):
    """One scan of a drive: labelled points, six photographs, boxes of vehicles and people.

    Args:
        folder: of the scan in the cache.
        name: unique among the drives of one seed.
        split: `train` or `val`.

    Attributes:
        camera_names: of the views, in their order.
        intensity_statistics: mean and standard deviation of `intensity`, by which `reflectance` is standardised.
    """

    group = "streets"
    camera_names: tuple[str, ...] = CAMERAS
    intensity_statistics: tuple[float, float] = STATISTICS

    def __init__(self, folder: Path, name: str, split: str = "") -> None:
        self.folder = folder
        self.name = name
        self.split = split

    @property
    def cameras(self) -> Cameras:
        """All V views at their stored size; the vehicle's motion between scan and picture is in their poses."""
        data = small_arrays(self.folder, "cameras.npz", PART)
        poses, intrinsics, (width, height) = data["world_to_camera"], data["intrinsics"], data["size"].tolist()
        count = len(poses)
        return Cameras(
            world_to_camera=torch.from_numpy(poses).float(),
            intrinsics=torch.from_numpy(intrinsics).float().expand(count, 3, 3).clone(),
            width=width,
            height=height,
            counts=(count,),
            attributes={"frame": torch.arange(count)},
        )

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """The chosen views at (width, height)."""
        cameras = self.cameras.rows(torch.as_tensor(list(views), dtype=torch.int64))
        images = read_images(self.folder, views, size, PART)
        return Frames(images=images, cameras=cameras.resize(*size), counts=(len(images),))

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """Photographs (3 H W) in [0, 1] at the stored size."""
        return list(self.frames(views, (self.cameras.width, self.cameras.height)).images)

    def instance_maps(self, views: Sequence[int], size: tuple[int, int]) -> Tensor:
        """(V H W) int64 object under each pixel centre."""
        return read_nearest(self.folder, "instance", views, size, 1.0, PART).round().long()

    def label_maps(self, views: Sequence[int], size: tuple[int, int]) -> Tensor:
        """(V H W) int64 class under each pixel centre; -1 = sky."""
        return self.instance_labels[self.instance_maps(views, size)]

    def points(self) -> Points:
        """The scan: `intensity` in [0, 1], `reflectance` (standardised), `beam` (0 = lowest), `label`, `instance`."""
        data = read_cached(self.folder, "points.npz", arrays, PART)
        xyz = torch.from_numpy(data["xyz"]).float() * LENGTH_UNIT
        intensity = torch.from_numpy(data["intensity"]).float() / 255
        instance = torch.from_numpy(data["instance"].astype("int64"))
        mean, deviation = self.intensity_statistics
        attributes = {
            "intensity": intensity,
            "reflectance": (intensity - mean) / deviation,
            "beam": torch.from_numpy(data["beam"]).long(),
            "label": self.instance_labels[instance],
            "instance": instance,
        }
        return Points(xyz=xyz, counts=(len(xyz),), attributes=attributes)

    def boxes(self) -> Boxes:
        """Boxes of vehicles and people that a point lies on; `instance` refers to the points'."""
        stored = {n: torch.from_numpy(a) for n, a in small_arrays(self.folder, "boxes.npz", PART).items()}
        attributes = {"label": stored["labels"].long(), "instance": stored["instances"].long()}
        centers, sizes, yaws = (stored[name] for name in ("centers", "sizes", "yaws"))
        return Boxes(centers=centers, sizes=sizes, yaws=yaws, counts=(len(centers),), attributes=attributes)

    @property
    def instance_labels(self) -> Tensor:
        """(M) int64 class of every instance of the drive, -1 = sky."""
        return torch.from_numpy(small_arrays(self.folder, "instances.npz", PART)["labels"]).long()


@registry.readers.register(
    "streets",
    StreetsConfig,
    {
        "default": {},
        "tiny": {"drives": 3, "scans": 2, "columns": 256, "size": (96, 48)},
        "demo": {"drives": 12},
    },
)
class StreetsReader(Reader):
    """Procedural drives through streets, made on first use and cached.

    Args:
        config: which drives.
        path: not used; drives come from their seed.
    """

    needs_path = False
    classes = CLASSES

    def __init__(self, config: StreetsConfig, path: Path | None = None) -> None:
        self.config = config

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Never: streets are asked for by name."""
        return False

    def scenes(self) -> list[StreetScene]:
        """Every scan of every drive, made where it is missing.

        Raises:
            UserError: the cache cannot be written.
        """
        config = self.config
        drives = WORKSHOP.ensure(config.recipe, config.drives, config.workers or cores())
        return [
            StreetScene(
                scan_folder(drive, number),
                f"street-{config.seed}-{index:04d}/scan-{number:02d}",
                "val" if index % HELD_OUT == 1 else "train",
            )
            for index, drive in enumerate(drives)
            for number in range(config.scans)
        ]
