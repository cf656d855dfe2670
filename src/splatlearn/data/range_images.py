"""Labelled lidar scans as range images: `.npy` files (H W 6), or `.npz` files with one called `scan`.

Legend: N points, H beams, W steps of azimuth. Channels: x, y, z (metres, the lidar's frame, +z up), intensity, range,
label. Row 0 is the highest beam. A range of 0 is no return. 64 beams are SemanticKITTI's scans, 32 nuScenes', each with
label ids of its own (`ika-rwth-aachen/PCLSegmentation` writes both). There are no cameras.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from splatlearn.data import kitti, nuscenes
from splatlearn.data.folders import GLANCE, walk
from splatlearn.data.records import IGNORED, load_array, map_classes
from splatlearn.data.scans import Intensity, LidarConfig, LidarReader, LidarScene, Returns, View
from splatlearn.data.scene import Skipped
from splatlearn.errors import BadData
from splatlearn.registry import readers

Layout = Literal["semantic_kitti", "nuscenes"]
_CHANNELS = 6
SUFFIXES = (".npz", ".npy")
_SPLITS = ("train", "val", "test")


class Kind(NamedTuple):
    """What the images of a data set are.

    Args:
        beams: rows.
        classes: names of the class ids.
        labels: id in the file -> class id, or ignored.
        intensity: of the data set.
    """

    beams: int
    classes: tuple[str, ...]
    labels: dict[int, int]
    intensity: Intensity


_NUSCENES = ("road", "sidewalk", "building", "pole", "vegetation", "person", "two-wheeler", "car", "truck", "bus")
KINDS: dict[str, Kind] = {
    "semantic_kitti": Kind(64, kitti.CLASSES, {i: i - 1 if i else IGNORED for i in range(20)}, kitti.INTENSITY),
    "nuscenes": Kind(32, _NUSCENES, {i: i if i < 10 else IGNORED for i in range(11)}, nuscenes.INTENSITY),
}


@dataclass(frozen=True, kw_only=True)
class RangeImageConfig(LidarConfig):
    """How to read range images.

    Args:
        layout: whose labels they have; `auto` tells by the number of beams.
    """

    layout: Literal["auto", "semantic_kitti", "nuscenes"] = "auto"


class RangeImageScan(LidarScene):
    """One range image.

    Args:
        name: its name.
        file: the .npz or .npy file.
        kind: what it is.
        split: `train`, `val`, `test`, or empty.
        labels: whether labels are read.
    """

    def __init__(self, name: str, file: Path, kind: Kind, split: str, labels: bool) -> None:
        super().__init__(name, file, intensity=kind.intensity, split=split, labelled=labels)
        self._kind = kind

    def read(self) -> Returns:
        """Its returns, row by row from the top beam; `beam` counts from the lowest."""
        image = read_image(self.scan, self._kind)
        row, column = np.nonzero(image[..., 4] != 0)
        values = image[row, column]
        label = None
        if self.labelled:
            if not np.isfinite(values[:, 5]).all():
                raise BadData(f"{self.scan}[scan]: labels that are not finite")
            label = map_classes(values[:, 5].astype(np.int64), self._kind.labels, self.scan)
        return Returns(values[:, :3], values[:, 3], self._kind.beams - 1 - row, label)

    def views(self) -> list[View]:
        """None."""
        return []


@readers.register("rangeimage", RangeImageConfig, presets={"default": {}, "tiny": {"max_scans": 4}})
class RangeImageReader(LidarReader):
    """Labelled lidar range images: .npy files (H W 6), or .npz with `scan`, in train/ and val/ or not; no cameras."""

    config: RangeImageConfig
    expects = ".npy files (H W 6), or .npz with `scan`: x, y, z, intensity, range, label"

    def __init__(self, config: RangeImageConfig, path: Path) -> None:
        super().__init__(config, path)
        self._found = list(walk(path, _is_range_image, suffixes=SUFFIXES))
        self._kind = self._one_kind()
        self.classes = self._kind.classes

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A range image lies at the path or up to three folders below it."""
        return any(True for _ in walk(path, _is_range_image, suffixes=SUFFIXES, breadth=GLANCE))

    def find(self, left_out: list[Skipped]) -> list[LidarScene]:
        """Every image."""
        return [self._scan(file) for file in self._found]

    def _scan(self, file: Path) -> RangeImageScan:
        name = file.stem if file == self.path else file.relative_to(self.path).with_suffix("").as_posix()
        split = file.parent.name if file.parent.name in _SPLITS else ""
        return RangeImageScan(name, file, self._kind, split, self.config.labels)

    def _one_kind(self) -> Kind:
        """Of all images, by the first of every folder."""
        if not self._found:
            raise BadData(f"{self.path}: no range image found; looked for {self.expects}")
        firsts = {file.parent: file for file in reversed(self._found)}.values()
        if self.config.layout != "auto":
            return KINDS[self.config.layout]
        kinds = {_kind_of(file) for file in firsts}
        if len(kinds) > 1:
            raise BadData(
                f"{self.path}: holds {' and '.join(sorted(kinds))} scans, whose classes differ; give one folder"
            )
        return KINDS[kinds.pop()]


def read_image(file: Path, kind: Kind) -> np.ndarray:
    """(H W 6) float32.

    Raises:
        BadData: no such array, or of another shape.
    """
    image = _load(file)
    if image.ndim != 3 or image.shape[0] != kind.beams or image.shape[2] != _CHANNELS or image.dtype.kind != "f":
        raise BadData(
            f"{file}[scan]: floats of shape ({kind.beams}, W, {_CHANNELS}) expected, got {image.dtype} {image.shape}"
        )
    return image.astype(np.float32, copy=False)


def _kind_of(file: Path) -> str:
    beams = len(_load(file))
    for name, kind in KINDS.items():
        if kind.beams == beams:
            return name
    known = ", ".join(f"{kind.beams} ({name})" for name, kind in KINDS.items())
    raise BadData(f"{file}[scan]: {beams} beams; {known} are known: give --data.layout to say whose labels these are")


def _load(file: Path) -> np.ndarray:
    if file.suffix == ".npy":
        return load_array(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["scan"]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BadData(f"{file}[scan]: no readable array: {error}") from error


def _is_range_image(path: Path) -> bool:
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False).shape[2:] == (_CHANNELS,)
        with zipfile.ZipFile(path) as archive:
            return "scan.npy" in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError):
        return False
