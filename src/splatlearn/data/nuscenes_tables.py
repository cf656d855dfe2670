"""The JSON tables of nuScenes (`v1.0-*`): key frames with their scan, photographs, poses and boxes.

Legend: M boxes. Metres; quaternions w x y z. Poses are folded in float64: the global frame is kilometres wide. Names of
tables and fields are those of the nuScenes schema (github.com/nutonomy/nuscenes-devkit, docs/schema_nuscenes.md).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splatlearn.data.recordings import check_intrinsics
from splatlearn.data.records import motion, numbers, read_json
from splatlearn.errors import BadData

Record = Mapping[str, Any]
LIDAR = "LIDAR_TOP"
_LEAST = ("scene", "sample", "sample_data", "calibrated_sensor", "ego_pose", "sensor")


class Shot(NamedTuple):
    """What one sensor recorded at a key frame: its `sample_data`, `calibrated_sensor` and `ego_pose`."""

    data: Record
    sensor: Record
    ego: Record

    @property
    def global_from_sensor(self) -> np.ndarray:
        """(4 4) float64 at the sensor's own time."""
        mounted = motion(self.sensor["rotation"], self.sensor["translation"], f"calibrated_sensor {self.name}")
        return motion(self.ego["rotation"], self.ego["translation"], f"ego_pose {self.name}") @ mounted

    @property
    def intrinsics(self) -> np.ndarray:
        """(3 3) of a camera."""
        where = f"calibrated_sensor {self.name}: camera_intrinsic"
        return check_intrinsics(numbers(self.sensor["camera_intrinsic"], where), where)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.sensor['token']} of {self.data['filename']}"


class Annotation(NamedTuple):
    """A box in the global frame: its `sample_annotation` and the name of its category."""

    record: Record
    category: str


@dataclass(frozen=True, kw_only=True)
class KeyFrame:
    """A key frame.

    Args:
        drive: name of its scene.
        number: of key frames before it in the scene.
        token: of its `sample`.
        shots: channel -> what it recorded.
        labels: file of the point labels, relative to the data set; empty where there is none.
        annotations: its boxes; None where the data set has no table of them.
    """

    drive: str
    number: int
    token: str
    shots: Mapping[str, Shot]
    labels: str
    annotations: tuple[Annotation, ...] | None


def tables_folder(path: Path) -> Path | None:
    """The folder of tables: the path itself, or the first `v1.0-*` in it that has them."""
    inside = sorted(path.glob("v1.0-*")) if path.is_dir() else []
    return next((folder for folder in (path, *inside) if (folder / "sample_data.json").is_file()), None)


def read_key_frames(folder: Path) -> list[KeyFrame]:
    """Every key frame with a scan, by scene and time.

    Args:
        folder: of the tables.

    Raises:
        BadData: a table is missing or no table, or a token leads nowhere.
    """
    if absent := [name for name in _LEAST if not (folder / f"{name}.json").is_file()]:
        raise BadData(f"{folder}: {', '.join(f'{name}.json' for name in absent)} missing")
    try:
        return _join(folder)
    except KeyError as error:
        raise BadData(f"{folder}: the tables do not fit together: nothing has the token or field {error}") from error


def _join(folder: Path) -> list[KeyFrame]:
    shots = _shots(folder)
    labels = _optional(folder, "lidarseg", lambda table: {row["sample_data_token"]: row["filename"] for row in table})
    annotations = _optional(folder, "sample_annotation", lambda table: _annotations(folder, table))
    names = {row["token"]: row["name"] for row in _table(folder, "scene")}
    passed: dict[str, int] = defaultdict(int)
    frames = []
    for sample in sorted(_table(folder, "sample"), key=lambda row: (names[row["scene_token"]], row["timestamp"])):
        drive, token = names[sample["scene_token"]], sample["token"]
        if LIDAR in shots[token]:
            frames.append(
                KeyFrame(
                    drive=drive,
                    number=passed[drive],
                    token=token,
                    shots=shots[token],
                    labels=(labels or {}).get(shots[token][LIDAR].data["token"], ""),
                    annotations=None if annotations is None else tuple(annotations.get(token, ())),
                )
            )
        passed[drive] += 1
    return frames


def _shots(folder: Path) -> dict[str, dict[str, Shot]]:
    """Sample -> channel -> shot, of key frames alone: one in eight of the rows."""
    channels = {row["token"]: row["channel"] for row in _table(folder, "sensor")}
    sensors = {row["token"]: row for row in _table(folder, "calibrated_sensor")}
    keys = [row for row in _table(folder, "sample_data") if row["is_key_frame"]]
    wanted = {row["ego_pose_token"] for row in keys}
    poses = {row["token"]: row for row in _table(folder, "ego_pose") if row["token"] in wanted}
    shots: dict[str, dict[str, Shot]] = defaultdict(dict)
    for row in keys:
        sensor = sensors[row["calibrated_sensor_token"]]
        channel = channels[sensor["sensor_token"]]
        if channel == LIDAR or channel.startswith("CAM_"):
            shots[row["sample_token"]][channel] = Shot(row, sensor, poses[row["ego_pose_token"]])
    return shots


def _annotations(folder: Path, table: list[Record]) -> dict[str, list[Annotation]]:
    categories = {row["token"]: row["name"] for row in _table(folder, "category")}
    instances = {row["token"]: categories[row["category_token"]] for row in _table(folder, "instance")}
    found: dict[str, list[Annotation]] = defaultdict(list)
    for row in table:
        found[row["sample_token"]].append(Annotation(row, instances[row["instance_token"]]))
    return found


def _optional(folder: Path, name: str, make: Callable[[list[Record]], dict[str, Any]]) -> dict[str, Any] | None:
    return make(_table(folder, name)) if (folder / f"{name}.json").is_file() else None


def _table(folder: Path, name: str) -> list[Record]:
    file = folder / f"{name}.json"
    table = read_json(file)
    if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
        raise BadData(f"{file}: a list of records expected")
    return table
