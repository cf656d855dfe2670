"""PandaSet, converted once into calibrated folders (`data/lidar.py`): one for each of its two lidars.

Legend: N points. Metres. PandaSet's points and poses are in a world frame; a converted scan is in the car's frame at
the scan's time: moved by the inverse of the lidar's pose and lowered by 1.6 m, as ScaLR's code does (the road then lies
about 1.7 m below the origin). Its tables are pickles of pandas; `data/pickles.py` lets nothing else in.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splatlearn.data.folders import GLANCE, walk
from splatlearn.data.pickles import read_table
from splatlearn.data.records import map_classes, motion, read_json
from splatlearn.errors import BadData, UserError

CAMERAS = ("back_camera", "front_camera", "front_left_camera", "front_right_camera", "left_camera", "right_camera")
SIZE = (1920, 1080)
CLASSES = (
    *("road", "traffic sign", "barrier", "pedestrian", "vegetation", "road marking", "sidewalk", "manmade"),
    *("traffic cone", "car", "motorcycle", "truck", "bus", "bicycle", "other vehicle", "ground", "driveway"),
)
_RAW = (
    *((7,), (36, 38), (35, 39), (30, 31), (5,), (8, 9, 10), (11,), (41, 42), (34, 37), (13,), (18,), (14, 15, 16)),
    *((23,), (26,), (17, 19, 20, 21, 27, 28, 29), (6,), (12,)),
)
NONE = 255
CLASS_MAP = dict.fromkeys(range(44), NONE) | {raw: label for label, ids in enumerate(_RAW) for raw in ids}
"""ScaLR's map of the ids 0 to 43; those that belong to none of the 17 classes are ignored."""
SOUTH = 37.6
"""Degrees of latitude: drives north of it (San Francisco) train, those south of it (El Camino Real) validate."""
LOWERED = 1.6
"""Metres that the scans are lowered by."""
_COLUMNS, _INTENSITY, _SENSOR = 6, 3, 5
log = logging.getLogger("splatlearn")


class Sensor(NamedTuple):
    """One of the two lidars.

    Args:
        name: of the folder that is written.
        number: in the column `d`.
        cameras: that look where it does.
        mean: of its intensities, 0 to 255, by ScaLR's numbers; `std` likewise.
    """

    name: str
    number: int
    cameras: tuple[str, ...]
    mean: float
    std: float


SENSORS = (
    Sensor("pandar64", 0, CAMERAS, 18.23640649, 25.86983417),
    Sensor("pandargt", 1, ("front_camera",), 23.06113565, 16.76273235),
)


@dataclass(frozen=True)
class ConvertedScans:
    """What was converted.

    Args:
        source: PandaSet.
        target: the folder of two calibrated folders.
        drives: that have labels, and were converted.
        scans: of each lidar.
        left_out: drives without labels.
    """

    source: Path
    target: Path
    drives: int
    scans: int
    left_out: int

    def __str__(self) -> str:
        names = " and ".join(f"{self.target / sensor.name}" for sensor in SENSORS)
        more = f"; {self.left_out} drives without labels are left out" if self.left_out else ""
        return f"{self.source} -> {names}: {self.drives} drives, {self.scans} scans of each lidar{more}"


def is_pandaset(path: Path) -> bool:
    """Whether a folder is PandaSet: drives with the poses of a lidar and of a front camera."""
    return any(True for _ in walk(path, _is_drive, depth=1, breadth=GLANCE))


def convert_pandaset(
    source: Path, target: Path, *, overwrite: bool = False, tell: Callable[[str], None] = log.info
) -> ConvertedScans:
    """Writes `target/pandar64` and `target/pandargt`.

    Photographs are linked where the file system can, else copied. Labels are uint8, 255 = ignored.

    Args:
        source: PandaSet, with a folder a drive.
        target: a new folder.
        overwrite: write into a folder that is there.
        tell: is told of every drive.

    Raises:
        UserError: the target is there, or pandas is not installed.
        BadData: no labelled drive, or a damaged file.
    """
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists; give another folder, or --overwrite")
    drives = _drives(source)
    labelled = [drive for drive in drives if any(_scans(drive))]
    if not labelled:
        raise BadData(f"{source}: {len(drives)} drives, none with a scan and its annotations/semseg")
    splits: dict[str, list[str]] = {"train": [], "val": []}
    scans = 0
    for drive in labelled:
        tell(f"{drive.name} of {len(labelled)} drives")
        splits["train" if _latitude(drive) > SOUTH else "val"].append(drive.name)
        scans += sum(_write_scan(scan, target) for scan in _scans(drive))
    for sensor in SENSORS:
        _write_calibration(target / sensor.name, sensor, labelled, splits)
    return ConvertedScans(source, target, len(labelled), scans, len(drives) - len(labelled))


class _Scan(NamedTuple):
    """A moment of a drive: `number` as in file names (`07`), poses (4 4) to the world."""

    drive: Path
    number: str
    lidar: np.ndarray
    cameras: Mapping[str, np.ndarray]
    intrinsics: Mapping[str, np.ndarray]


def _drives(path: Path) -> list[Path]:
    return list(walk(path, _is_drive, depth=1))


def _is_drive(path: Path) -> bool:
    return (path / "lidar/poses.json").is_file() and (path / "camera").is_dir()


def _scans(drive: Path) -> Iterator[_Scan]:
    lidar = _poses(drive / "lidar")
    cameras = [name for name in CAMERAS if (drive / "camera" / name / "poses.json").is_file()]
    poses = {name: _poses(drive / "camera" / name) for name in cameras}
    intrinsics = {name: _intrinsics(drive / "camera" / name) for name in cameras}
    for i, pose in enumerate(lidar):
        number = f"{i:02d}"
        if (
            _table_file(drive / "lidar", number).is_file()
            and _table_file(drive / "annotations/semseg", number).is_file()
        ):
            there = {name: own[i] for name, own in poses.items() if i < len(own)}
            yield _Scan(drive, number, pose, there, intrinsics)


def _write_scan(scan: _Scan, target: Path) -> bool:
    lidar = _table_file(scan.drive / "lidar", scan.number)
    rows = read_table(lidar)
    if rows.ndim != 2 or rows.shape[1] != _COLUMNS:
        raise BadData(f"{lidar}: columns x y z i t d expected, got shape {rows.shape}")
    labels = _table_file(scan.drive / "annotations/semseg", scan.number)
    raw = read_table(labels)[:, 0].astype(np.int64)
    if len(raw) != len(rows):
        raise BadData(f"{labels}: {len(raw)} labels, but {lidar} has {len(rows)} points")
    label = map_classes(raw, CLASS_MAP, labels).astype(np.uint8)
    car_from_world = np.linalg.inv(scan.lidar @ _raised())
    xyz = rows[:, :3] @ car_from_world[:3, :3].T + car_from_world[:3, 3]
    records = np.concatenate([xyz, rows[:, _INTENSITY : _INTENSITY + 1]], 1).astype("<f4")
    for sensor in SENSORS:
        mine = rows[:, _SENSOR] == sensor.number
        _save(target / sensor.name, sensor, scan, records[mine], label[mine])
    return True


def _save(folder: Path, sensor: Sensor, scan: _Scan, records: np.ndarray, label: np.ndarray) -> None:
    name, poses = f"{scan.drive.name}/{scan.number}", {}
    records.tofile(_made(folder / "scans" / f"{name}.bin"))
    np.save(_made(folder / "labels" / f"{name}.npy"), label)
    for camera in sensor.cameras:
        photograph = scan.drive / "camera" / camera / f"{scan.number}.jpg"
        if camera in scan.cameras and photograph.is_file():
            pose = np.linalg.inv(scan.cameras[camera]) @ scan.lidar @ _raised()
            poses[camera] = {"lidar_to_camera": pose.tolist(), "K": scan.intrinsics[camera].tolist()}
            _link(photograph, _made(folder / "images" / camera / f"{name}.jpg"))
    _made(folder / "poses" / f"{name}.json").write_text(json.dumps(poses) + "\n")


def _write_calibration(
    folder: Path, sensor: Sensor, drives: Sequence[Path], splits: Mapping[str, Sequence[str]]
) -> None:
    """The rig; every scan has poses and intrinsics of its own, so those here are of the first drive with the camera."""
    cameras = {}
    for name in sensor.cameras:
        if first := next((scan for drive in drives for scan in _scans(drive) if name in scan.cameras), None):
            pose = np.linalg.inv(first.cameras[name]) @ first.lidar @ _raised()
            cameras[name] = {"K": first.intrinsics[name].tolist(), "lidar_to_camera": pose.tolist(), "size": SIZE}
    table = {
        "columns": ["x", "y", "z", "intensity"],
        "intensity": {"full": 255, "mean": sensor.mean, "std": sensor.std},
        "cameras": cameras,
        "classes": CLASSES,
        "ignore": [NONE],
        "splits": {split: names for split, names in splits.items() if names},
        "projection": {"min_depth": 0.0},
    }
    _made(folder / "calibration.json").write_text(json.dumps(table, indent=1) + "\n")


def _raised() -> np.ndarray:
    """From a converted scan's frame to the lidar's pose."""
    up = np.eye(4)
    up[2, 3] = LOWERED
    return up


def _poses(folder: Path) -> list[np.ndarray]:
    file = folder / "poses.json"
    return [_pose(pose, f"{file}[{i}]") for i, pose in enumerate(read_json(file))]


def _pose(pose: Any, where: str) -> np.ndarray:
    try:
        turn, place = pose["heading"], pose["position"]
        return motion([turn[key] for key in "wxyz"], [place[key] for key in "xyz"], where)
    except (KeyError, TypeError) as error:
        raise BadData(f"{where}: heading w x y z and position x y z expected") from error


def _intrinsics(folder: Path) -> np.ndarray:
    file = folder / "intrinsics.json"
    try:
        fx, fy, cx, cy = (float(read_json(file)[key]) for key in ("fx", "fy", "cx", "cy"))
    except (KeyError, TypeError) as error:
        raise BadData(f"{file}: fx, fy, cx, cy expected") from error
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _latitude(drive: Path) -> float:
    file = drive / "meta/gps.json"
    try:
        return float(read_json(file)[0]["lat"])
    except (LookupError, TypeError) as error:
        raise BadData(f"{file}: a list of objects with `lat` expected") from error


def _table_file(folder: Path, number: str) -> Path:
    return folder / f"{number}.pkl.gz"


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
