"""Lidar scans with calibrated cameras: what the readers of driving data share.

Legend: N points, V views. Metres. The world of a scan is the lidar sensor's frame at the scan's time, +z up; what the
car moves between the scan and a photograph is in `world_to_camera`. A size is (width, height).
"""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from splatlearn.config import require
from splatlearn.data.captures import by
from splatlearn.data.imagery import UnreadableImage, probe, read_color
from splatlearn.data.lenses import Lens, reading_size, undistort
from splatlearn.data.records import Files
from splatlearn.data.scene import Reader, Rejected, Scene, Skipped, reasons
from splatlearn.errors import BadData, nearest
from splatlearn.structures import Cameras, Frames, Points

Size = tuple[int, int]
log = logging.getLogger("splatlearn")


@dataclass(frozen=True, kw_only=True)
class LidarConfig:
    """What every reader of lidar scans offers.

    Args:
        cameras: names of the cameras to use, in this order; empty takes all of them.
        labels: whether point labels are read, where there are any.
        max_scans: read at most the first n of each split; None reads all.
    """

    cameras: tuple[str, ...] = ()
    labels: bool = True
    max_scans: int | None = None

    def __post_init__(self) -> None:
        many = self.max_scans is None or self.max_scans >= 1
        require({f"max_scans: 1 or more is needed, got {self.max_scans}": many})


class Intensity(NamedTuple):
    """What a data set's intensities are, in its own unit.

    Args:
        full: the value that becomes 1.
        mean: over the data set.
        std: over the data set.
    """

    full: float
    mean: float
    std: float

    @property
    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of what is scaled to [0, 1]."""
        return self.mean / self.full, self.std / self.full


class Returns(NamedTuple):
    """A scan as its file has it, N points in file order.

    Args:
        xyz: (N 3) metres, the lidar's frame.
        intensity: (N) in the data set's unit, or None.
        beam: (N) ring, 0 lowest, or None.
        label: (N) class id, -1 = ignored, or None.
    """

    xyz: np.ndarray
    intensity: np.ndarray | None = None
    beam: np.ndarray | None = None
    label: np.ndarray | None = None


class View(NamedTuple):
    """A photograph of a scan.

    Args:
        camera: its name.
        image: the file.
        size: pixels that the intrinsics, and the photograph, have.
        world_to_camera: (4 4) float64 rigid, from the lidar's frame.
        intrinsics: (3 3) of the pinhole, pixel centres at half integers.
        lens: that bends, where one does.
    """

    camera: str
    image: Path
    size: Size
    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    lens: Lens | None = None


class LidarScene(Scene):
    """One scan with the photographs of its moment; subclasses read the files.

    Args:
        name: its name in the data set.
        scan: the scan's file.
        intensity: of the data set; None where the scans have none.
        split: `train`, `val`, `test`, or empty.
        frame: raw index in the drive.
        drive: its name; by default the folders of the scan's name, or the whole data set.
        cameras: names of the photographs' cameras, in the order of `views()`.
        labels: file of the point labels, where they have one.
        labelled: whether `read` gives labels without such a file.
        skipped: photographs that are missing, with reasons.
    """

    def __init__(
        self,
        name: str,
        scan: Path,
        *,
        intensity: Intensity | None,
        split: str = "",
        frame: int = 0,
        drive: str | None = None,
        cameras: Sequence[str] = (),
        labels: Path | None = None,
        labelled: bool = False,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.name, self.scan, self.split, self.frame = name, scan, split, frame
        self.drive = (name.rpartition("/")[0] or ".") if drive is None else drive
        self.camera_names, self.skipped = tuple(cameras), tuple(skipped)
        self.labels, self.labelled = labels, labelled or labels is not None
        self._intensity = intensity
        if intensity is not None:
            self.intensity_statistics = intensity.statistics

    def from_files(self, scan: Path, labels: Path) -> Self:
        """The same scan as other files have it, with labels of their own."""
        other = copy(self)
        other.scan, other.labels, other.labelled = scan, labels, True
        return other

    @abstractmethod
    def read(self) -> Returns:
        """The scan.

        Raises:
            BadData: a damaged file.
        """

    @abstractmethod
    def views(self) -> list[View]:
        """The photographs that exist, one a camera name.

        Raises:
            BadData: a calibration that is none.
        """

    def points(self) -> Points:
        """The scan in file order: `intensity`, `reflectance`, `beam`, `label`, as far as the source has them.

        Raises:
            BadData: a damaged file, no finite point, or intensities beyond the data set's unit.
        """
        returns = self.read()
        values = [v for v in (returns.xyz, returns.intensity) if v is not None]
        finite = np.logical_and.reduce([np.isfinite(v).reshape(len(v), -1).all(1) for v in values])
        if not finite.any():
            raise BadData(f"{self.scan}: {len(finite)} points, none of them finite; leave the scan out")
        if lost := len(finite) - int(np.count_nonzero(finite)):
            self._remark(f"{lost} of {len(finite)} points are not finite and left out")
            extras = (v if v is None else v[finite] for v in returns[1:])
            returns = Returns(returns.xyz[finite], *extras)
        attributes = self._brightness(returns.intensity)
        for name, value in (("beam", returns.beam), ("label", returns.label)):
            if value is not None:
                attributes[name] = torch.from_numpy(value.astype(np.int64))
        return Points(xyz=_float32(returns.xyz), attributes=attributes)

    @cached_property
    def cameras(self) -> Cameras:
        """The cameras of the photographs at the first one's size, attribute `frame`."""
        views = self._views
        if not views:
            return super().cameras
        size = views[0].size
        scaled = [_scaled(view.intrinsics, view.size, size) for view in views]
        return Cameras(
            world_to_camera=_float32(np.stack([view.world_to_camera for view in views])),
            intrinsics=_float32(np.stack(scaled)),
            width=size[0],
            height=size[1],
            attributes={"frame": torch.full((len(views),), self.frame, dtype=torch.int64)},
        )

    def frames(self, views: Sequence[int], size: Size) -> Frames:
        """Photographs by area averaging, without depth; one item.

        Raises:
            Rejected: a photograph cannot be decoded, or has another size than its camera.
        """
        images = [self._photograph(self._views[view], size) for view in views]
        index = torch.as_tensor(list(views), dtype=torch.int64)
        return Frames(
            images=torch.stack(images) if images else torch.zeros(0, 3, size[1], size[0]),
            cameras=self.cameras.rows(index).resize(*size),
        )

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """Photographs (3 H W) at their native sizes."""
        return [self._photograph(self._views[view], self._views[view].size) for view in views]

    @cached_property
    def _views(self) -> list[View]:
        return self.views()

    def _photograph(self, view: View, size: Size) -> Tensor:
        try:
            if (found := probe(view.image)) != view.size:
                raise UnreadableImage(f"{by(found)} pixels, but its camera {view.camera} has {by(view.size)}")
            if view.lens is not None:
                return undistort(read_color(view.image, reading_size(view.lens, size)), view.lens, size)
            image = torch.tensor(read_color(view.image, size)).permute(2, 0, 1)
        except UnreadableImage as error:
            raise Rejected("an image cannot be read", f"{self.name}: {view.image.name}: {error}") from error
        return image.to(torch.float32, memory_format=torch.contiguous_format) / 255

    def _brightness(self, intensity: np.ndarray | None) -> dict[str, Tensor]:
        if intensity is None or self._intensity is None:
            return {}
        unit = intensity.astype(np.float32) / np.float32(self._intensity.full)
        if unit.min() < 0 or unit.max() > 1.001:
            raise BadData(
                f"{self.scan}: intensities from {intensity.min():g} to {intensity.max():g}, but 0 to "
                f"{self._intensity.full:g} expected; is the layout of the records, or the intensity's unit, another?"
            )
        mean, std = self.intensity_statistics
        return {"intensity": _float32(unit.clip(0, 1)), "reflectance": _float32((unit - mean) / std)}

    def _remark(self, text: str) -> None:
        if text not in self.notes:
            self.note(text, logging.WARNING)


class LidarReader(Reader):
    """What readers of lidar scans share: the same left out, cut and told in the same way.

    Args:
        config: reading options.
        path: the data set.
    """

    expects: str
    """What is looked for, for messages."""

    def __init__(self, config: LidarConfig, path: Path) -> None:
        self.config: LidarConfig = config
        self.path, self.files = path, Files()

    def scenes(self) -> list[Scene]:
        """Every usable scan, sorted by name; those that are not are named in `skipped` and in the log."""
        left_out: list[Skipped] = []
        found = sorted(self.find(left_out), key=lambda scene: scene.name)
        kept = list(_first_of_each_split(self._alike(found, left_out), self.config.max_scans))
        self.skipped = tuple(sorted(left_out))
        if self.skipped:
            log.warning("%s: %d scans are left out: %s", self.path, len(self.skipped), reasons(self.skipped))
        if absent := [skipped for scene in kept for skipped in scene.skipped]:
            log.warning("%s: %d photographs are left out: %s", self.path, len(absent), reasons(absent))
        if not kept:
            why = f": {reasons(self.skipped)}" if self.skipped else ""
            raise BadData(f"{self.path}: no scan that could be used{why}; looked for {self.expects}")
        return [*kept]

    @abstractmethod
    def find(self, left_out: list[Skipped]) -> list[LidarScene]:
        """The scans.

        Args:
            left_out: to which those are added that cannot be used, with reasons.
        """

    def chosen(self, cameras: Sequence[str]) -> list[str]:
        """Of the cameras that a data set has, those that the config asks for.

        Raises:
            BadData: it asks for one that is not there.
        """
        wanted = self.config.cameras or tuple(cameras)
        if unknown := [name for name in wanted if name not in cameras]:
            raise BadData(
                f"--data.cameras: {', '.join(unknown)}: no such camera{nearest(unknown[0], cameras)} "
                f"({self.path} has: {', '.join(cameras) or 'none'})"
            )
        return list(wanted)

    def _alike(self, scenes: list[LidarScene], left_out: list[Skipped]) -> list[LidarScene]:
        """Without the unlabelled scans of a split that has labelled ones: what is packed needs the same attributes."""
        labelled = {scene.split for scene in scenes if scene.labelled}
        alike = [scene for scene in scenes if scene.labelled or scene.split not in labelled]
        lost = {scene.name for scene in scenes} - {scene.name for scene in alike}
        left_out += [Skipped(name, "its labels are missing, and others of the split have some") for name in lost]
        return alike


def _first_of_each_split(scenes: list[LidarScene], most: int | None) -> Iterator[LidarScene]:
    taken: Counter[str] = Counter()
    for scene in scenes:
        taken[scene.split] += 1
        if most is None or taken[scene.split] <= most:
            yield scene


def _scaled(intrinsics: np.ndarray, size: Size, wanted: Size) -> np.ndarray:
    return intrinsics * np.array([wanted[0] / size[0], wanted[1] / size[1], 1.0])[:, None]


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
