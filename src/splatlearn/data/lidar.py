"""Any lidar with cameras, as a plain folder. Legend: N points, V views. Metres, pixels; numbers are little-endian.

    DATA/calibration.json
    DATA/scans/NAME.bin | NAME.npy | NAME.ply            NAME may have folders in it (`drive3/000017`)
    DATA/images/CAMERA/NAME.jpg | .jpeg | .png           as far as they exist
    DATA/labels/NAME.label | NAME.npy                    optional: one class id a point
    DATA/poses/NAME.json                                 optional: {"CAMERA": 4x4}, instead of `lidar_to_camera`, or
                                                         {"CAMERA": {"lidar_to_camera": 4x4, "K": 3x3}}, without a lens

`calibration.json` is one object; only the cameras' `K` and `lidar_to_camera` are required, and no cameras are allowed:

    {
      "columns": ["x", "y", "z", "intensity"],     of a record of float32 in .bin, of a column in .npy; also `ring`
                                                   (0 lowest); other names are read past. A .ply has names of its own.
      "intensity": {"full": 255, "mean": 18.7, "std": 22.0},
                                                   full: the value that becomes 1 (default 1); mean and std over the
                                                   data set in the same unit (default: measured on up to 20 scans)
      "cameras": {
        "front": {
          "K": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],   pixels of the stored images, pixel centres at half integers
          "lidar_to_camera": [[...], [...], [...], [0, 0, 0, 1]],
                                                   rigid, metres, to axes x right, y down, z forward; what the car
                                                   moves between scan and photograph belongs into it (poses/)
          "size": [width, height],                 default: that of the first image
          "distortion": {"model": "OPENCV", "k1": ..., "k2": ..., "p1": ..., "p2": ...}
                                                   a perspective or fisheye model of COLMAP; it is removed
        }
      },
      "classes": ["road", ...],                    names of the class ids 0, 1, ...
      "ignore": [255],                             class ids that become -1, besides negative ones
      "splits": {"train": ["drive1", ...], "val": [...]},   names of scans, or of the folders they are in
      "projection": {"min_depth": 1.0, "border": 1.0}       default: as here; see `data/projection.py`
    }

Scans keep their own axes (x y z of the lidar), which must have +z up. A `.label` file is uint32, of which the low 16
bits are the class (as SemanticKITTI has it); a `.npy` file has N whole numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from splatlearn.config import configure
from splatlearn.data.imagery import COLOR_SUFFIXES, UnreadableImage, probe
from splatlearn.data.pandaset import is_pandaset
from splatlearn.data.projection import ProjectionRule
from splatlearn.data.recordings import check_intrinsics
from splatlearn.data.records import (
    IGNORED,
    load_array,
    numbers,
    read_columns,
    read_json,
    read_labels,
    rigid_motion,
    splits_of,
)
from splatlearn.data.rigs import Camera, Rig, lens_of
from splatlearn.data.scans import Intensity, LidarConfig, LidarReader, LidarScene, Returns, Size, View
from splatlearn.data.scene import Skipped
from splatlearn.errors import BadData, Problems, nearest
from splatlearn.registry import readers

CALIBRATION = "calibration.json"
COLUMNS = ("x", "y", "z", "intensity")
SUFFIXES = (".bin", ".npy", ".ply")
_KEYS = ("columns", "intensity", "cameras", "classes", "ignore", "splits", "projection")
_OWN = ("lidar_to_camera", "K")
_MEASURED = 20


@dataclass(frozen=True, kw_only=True)
class CalibratedConfig(LidarConfig):
    """How to read a calibrated folder; what the data is stands in its calibration.json."""


class CalibratedScan(LidarScene):
    """A scan of the folder. Built as `LidarScene`, and with

    Args:
        rig: of the folder.
        images: camera -> photograph.
        labels: file of class ids, or None.
        poses: file of this scan's own camera poses, or None.
    """

    def __init__(
        self,
        name: str,
        scan: Path,
        *,
        rig: Rig,
        images: Mapping[str, Path],
        labels: Path | None,
        poses: Path | None,
        intensity: Intensity | None,
        split: str,
        frame: int,
        skipped: Sequence[Skipped],
    ) -> None:
        super().__init__(
            name,
            scan,
            intensity=intensity,
            split=split,
            frame=frame,
            cameras=tuple(images),
            labels=labels,
            skipped=skipped,
        )
        self._rig, self._images, self._poses = rig, images, poses
        self.projection = rig.projection

    def read(self) -> Returns:
        """The columns that have a meaning here, and the labels."""
        columns = read_columns(self.scan, self._rig.columns)
        xyz = np.stack([columns[axis] for axis in "xyz"], 1)
        label = None if self.labels is None else self._label(self.labels, len(xyz))
        return Returns(xyz, columns.get("intensity"), columns.get("ring"), label)

    def views(self) -> list[View]:
        """The cameras whose photograph exists."""
        own = read_json(self._poses) if self._poses else {}
        if not isinstance(own, dict):
            raise BadData(f"{self._poses}: an object of camera names and 4x4 matrices expected")
        if unknown := [name for name in own if name not in self._rig.names]:
            raise BadData(
                f"{self._poses}: {unknown[0]!r}: {CALIBRATION} has no such camera{nearest(unknown[0], self._rig.names)}"
            )
        return [self._view(self._rig.cameras[name], image, own.get(name)) for name, image in self._images.items()]

    def _view(self, camera: Camera, image: Path, own: Any) -> View:
        pose, matrix, where = camera.pose, camera.intrinsics, f"{self._poses}: {camera.name}"
        given = own if isinstance(own, dict) else {} if own is None else {"lidar_to_camera": own}
        if unknown := [key for key in given if key not in _OWN]:
            raise BadData(f"{where}: {unknown[0]!r}: unknown{nearest(unknown[0], _OWN)} (known: {', '.join(_OWN)})")
        if "lidar_to_camera" in given:
            pose = rigid_motion(given["lidar_to_camera"], where)
        if "K" in given and camera.lens is not None:
            raise BadData(f"{where}: K of one scan, but the camera has distortion; undistort its images beforehand")
        if "K" in given:
            matrix = check_intrinsics(numbers(given["K"], f"{where}: K"), f"{where}: K")
        return View(camera.name, image, camera.size, pose, matrix, camera.lens)

    def _label(self, file: Path, points: int) -> np.ndarray:
        if file.suffix == ".npy":
            raw = load_array(file)
            if raw.shape != (points,) or raw.dtype.kind not in "iu":
                raise BadData(f"{file}: {points} whole numbers expected, one a point; got {raw.dtype} {raw.shape}")
            raw = raw.astype(np.int64)
        else:
            raw = read_labels(file, "<u4", points) & 0xFFFF
        label = np.where((raw < 0) | np.isin(raw, self._rig.ignore), IGNORED, raw)
        if self._rig.classes and label.max(initial=-1) >= len(self._rig.classes):
            raise BadData(
                f"{file}: class id {label.max()}, but {CALIBRATION} has {len(self._rig.classes)} classes (ids 0 to "
                f'{len(self._rig.classes) - 1}); mend "classes" there, or put the id into "ignore"'
            )
        return label


@readers.register("calibrated", CalibratedConfig, presets={"default": {}, "tiny": {"max_scans": 4}})
class CalibratedReader(LidarReader):
    """Any lidar with cameras: scans/, images/CAMERA/ and calibration.json (PandaSet, too, once it is converted)."""

    expects = f"{CALIBRATION} and scans/*.bin, .npy or .ply"

    def __init__(self, config: CalibratedConfig, path: Path) -> None:
        super().__init__(config, path)
        file = path / CALIBRATION
        if is_pandaset(path):
            raise BadData(
                f"{path}: PandaSet is converted once: `splatlearn convert {path} TARGET`, then give "
                "--data TARGET/pandar64 or TARGET/pandargt"
            )
        if not file.is_file():
            raise BadData(f"{path}: {CALIBRATION} missing; looked for {self.expects}")
        self.table = read_json(file)
        if not isinstance(self.table, dict):
            raise BadData(f"{file}: an object expected, got {type(self.table).__name__}")
        if unknown := [key for key in self.table if key not in _KEYS]:
            raise BadData(f"{file}: {unknown[0]!r}: unknown{nearest(unknown[0], _KEYS)} (known: {', '.join(_KEYS)})")
        self.classes = tuple(map(str, self.table.get("classes", ())))

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A calibration.json stands beside a folder of scans; PandaSet, too, to be told to convert it."""
        return ((path / CALIBRATION).is_file() and (path / "scans").is_dir()) or is_pandaset(path)

    def find(self, left_out: list[Skipped]) -> list[LidarScene]:
        """Every scan, by name."""
        folder = self.path / "scans"
        found = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES) if folder.is_dir() else []
        names = [file.relative_to(folder).with_suffix("").as_posix() for file in found]
        if not found:
            return []
        rig, splits = self._rig(names), self._splits()
        intensity = self._intensity(found, rig)
        scenes: list[LidarScene] = []
        for number, (file, name) in enumerate(zip(found, names)):
            split = _split(name, splits)
            if split is None:
                left_out.append(Skipped(name, f"it is in no split of {CALIBRATION}"))
                continue
            images = {camera: self._one(self.path / "images" / camera, name, COLOR_SUFFIXES) for camera in rig.cameras}
            there = {camera: image for camera, image in images.items() if image is not None}
            labels = self._one(self.path / "labels", name, (".label", ".npy")) if self.config.labels else None
            scenes.append(
                CalibratedScan(
                    name,
                    file,
                    rig=rig,
                    images=there,
                    labels=labels,
                    poses=self._one(self.path / "poses", name, (".json",)),
                    intensity=intensity,
                    split=split,
                    frame=number,
                    skipped=[Skipped(camera, "the image is missing") for camera in images if camera not in there],
                )
            )
        return scenes

    def _one(self, folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
        return next((path for suffix in suffixes if (path := folder / f"{name}{suffix}") in self.files), None)

    @cached_property
    def _where(self) -> str:
        return str(self.path / CALIBRATION)

    def _rig(self, names: Sequence[str]) -> Rig:
        columns = tuple(map(str, self.table.get("columns", COLUMNS)))
        if not {"x", "y", "z"} <= set(columns) or len(set(columns) - {""}) < len(columns):
            raise BadData(f"{self._where}: columns: x, y, z and other names, each once, expected, got {list(columns)}")
        given = self.table.get("cameras", {})
        if not isinstance(given, dict):
            raise BadData(f"{self._where}: cameras: an object of names expected")
        return Rig(
            columns=columns,
            names=tuple(given),
            cameras={name: self._camera(name, given[name], names) for name in self.chosen(list(given))},
            classes=self.classes,
            ignore=tuple(map(int, self.table.get("ignore", ()))),
            projection=configure(ProjectionRule, self.table.get("projection", {}), f"{self._where}: projection"),
        )

    def _camera(self, name: str, given: Any, names: Sequence[str]) -> Camera:
        where = f"{self._where}: cameras: {name}"
        if not isinstance(given, dict) or not {"K", "lidar_to_camera"} <= set(given):
            raise BadData(f"{where}: an object with K and lidar_to_camera expected")
        matrix = check_intrinsics(numbers(given["K"], f"{where}: K"), f"{where}: K")
        pose = rigid_motion(given["lidar_to_camera"], f"{where}: lidar_to_camera")
        size = self._size(name, given.get("size"), names)
        lens = lens_of(given.get("distortion"), matrix, size, where)
        if lens is None:
            return Camera(name, pose, matrix, size, None)
        pinhole = lens.pinhole()
        if pinhole is None:
            raise BadData(f"{where}: distortion: no pinhole fits into the image; are the coefficients right?")
        return Camera(name, pose, pinhole, size, lens)

    def _size(self, camera: str, given: Any, names: Sequence[str]) -> Size:
        if given is not None:
            size = numbers(given, f"{self._where}: cameras: {camera}: size")
            if size.shape != (2,) or not (size >= 1).all():
                raise BadData(f"{self._where}: cameras: {camera}: size: width and height expected, got {given}")
            return int(size[0]), int(size[1])
        for name in names:
            image = self._one(self.path / "images" / camera, name, COLOR_SUFFIXES)
            try:
                if image is not None:
                    return probe(image)
            except UnreadableImage:
                continue
        raise BadData(
            f"{self.path / 'images' / camera}: no image of the camera that could be read; images/{camera}/NAME.jpg "
            f"expected, with the names of the scans (such as {names[0]}), or take the camera out of {CALIBRATION}"
        )

    def _splits(self) -> dict[str, str]:
        return splits_of(self.table["splits"], f"{self._where}: splits") if "splits" in self.table else {}

    def _intensity(self, scans: Sequence[Path], rig: Rig) -> Intensity | None:
        given = self.table.get("intensity", {})
        if not isinstance(given, dict) or not set(given) <= {"full", "mean", "std"}:
            raise BadData(f"{self._where}: intensity: an object of full, mean and std expected, got {given}")
        full = float(given.get("full", 1.0))
        if {"mean", "std"} <= set(given):
            return Intensity(full, float(given["mean"]), float(given["std"]))
        step = max(1, len(scans) // _MEASURED)
        problems = Problems()
        measured = scans[::step][:_MEASURED]
        found = [problems.catch(lambda scan=scan: read_columns(scan, rig.columns)) for scan in measured]
        if not any(found):
            problems.tell()  # a damaged scan is told when it is read; all of them cannot be measured
        columns = [read["intensity"] for read in found if read and "intensity" in read]
        values = np.concatenate([v[np.isfinite(v)] for v in columns] or [[]]).astype(np.float64)
        if not len(values):
            return None
        return Intensity(full, float(values.mean()), max(float(values.std()), 1e-6 * full))


def _split(name: str, splits: Mapping[str, str]) -> str | None:
    """Of a scan: by its own name, or that of a folder it is in; empty where there are no splits, None if in none."""
    if not splits:
        return ""
    places = [name, *(parent.as_posix() for parent in Path(name).parents)]
    return next((splits[place] for place in places if place in splits), None)
