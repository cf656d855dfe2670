"""Files of driving data: plain records, labels, poses. Legend: N points. Metres, radians; numbers are little-endian."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from splatlearn.data.frame_filter import rigid
from splatlearn.errors import BadData
from splatlearn.ply import PlyFile

IGNORED = -1
_OUTSIDE = -2


class Files:
    """Which files exist. A folder is listed once: data sets have 200,000 photographs, and network storage is slow."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
        return name in self._names[folder]


def read_records(path: Path, columns: int, dtype: str = "<f4") -> np.ndarray:
    """(N columns) of a file that is nothing but records.

    Raises:
        BadData: missing, empty, or no whole number of records.
    """
    record = columns * np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
        if size == 0 or size % record:
            raise BadData(
                f"{path}: {size} bytes are no whole number of records of {columns} x {np.dtype(dtype).name} ({record} "
                "bytes); is the file cut short, or are its records of another length?"
            )
        return np.fromfile(path, dtype).reshape(-1, columns)
    except OSError as error:
        raise BadData(f"{path}: cannot be read ({error.strerror or error})") from error


def read_labels(path: Path, dtype: str, points: int) -> np.ndarray:
    """(N) int64 raw class ids.

    Args:
        path: one id a point.
        dtype: of an id.
        points: of the scan.

    Raises:
        BadData: missing, or not one id a point.
    """
    raw = read_records(path, 1, dtype)[:, 0].astype(np.int64)
    if len(raw) != points:
        raise BadData(f"{path}: {len(raw)} labels, but the scan has {points} points; do they belong together?")
    return raw


def map_classes(raw: np.ndarray, table: Mapping[int, int], where: Path) -> np.ndarray:
    """(N) int64 class ids.

    Args:
        raw: (N) the source's ids.
        table: source's id -> class id, or `IGNORED`.
        where: the file, for the message.

    Raises:
        BadData: an id that the table lacks.
    """
    largest = max(table)
    lookup = np.full(largest + 2, _OUTSIDE, np.int64)
    lookup[list(table)] = list(table.values())
    label = lookup[np.where((raw < 0) | (raw > largest), largest + 1, raw)]
    if (label == _OUTSIDE).any():
        unknown = np.unique(raw[label == _OUTSIDE])[:5].tolist()
        raise BadData(f"{where}: class id {', '.join(map(str, unknown))}, which the data set's map of classes lacks")
    return label


def motion(quaternion: Sequence[float], translation: Sequence[float], where: object) -> np.ndarray:
    """(4 4) float64 of a turn (w x y z) and a shift (metres).

    Raises:
        BadData: other lengths, numbers that are not finite, or no unit quaternion.
    """
    turn, shift = np.asarray(quaternion, np.float64), np.asarray(translation, np.float64)
    sound = turn.shape == (4,) and shift.shape == (3,) and np.isfinite(shift).all()
    if not sound or not abs(np.linalg.norm(turn) - 1) < 1e-2:
        raise BadData(f"{where}: a unit quaternion w x y z and a shift x y z expected, got {quaternion}, {translation}")
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_quat(turn[[1, 2, 3, 0]]).as_matrix(), shift
    return matrix


def rigid_motion(values: object, where: object) -> np.ndarray:
    """(4 4) float64, its rotation made exact; three rows of a matrix are completed.

    Raises:
        BadData: another shape, or no rigid motion.
    """
    matrix = numbers(values, where)
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0, 0, 0, 1]]])
    found = rigid(matrix)
    if isinstance(found, str):
        raise BadData(f"{where}: {found.removeprefix('pose: ')}; a rotation and a shift, 4x4, expected")
    return found


def numbers(values: object, where: object) -> np.ndarray:
    """Float64 of nested lists.

    Raises:
        BadData: they are no array of numbers.
    """
    try:
        return np.array(values, np.float64)
    except (ValueError, TypeError) as error:
        raise BadData(f"{where}: an array of numbers expected ({error})") from error


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        BadData: no such file, or no JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{file}: no readable JSON ({error})") from error


def read_splits(file: Path) -> dict[str, str]:
    """Name -> split, of a JSON file `{"train": [names], "val": [names]}`.

    Raises:
        BadData: no such file, another form, or a name that is listed twice.
    """
    return splits_of(read_json(file), file)


def splits_of(table: Any, where: object) -> dict[str, str]:
    """Name -> split, of `{"train": [names], "val": [names]}`.

    Raises:
        BadData: another form, or a name that is listed twice.
    """
    known = isinstance(table, dict) and set(table) <= {"train", "val", "test"}
    if not known or not all(isinstance(names, list) for names in table.values()):
        raise BadData(f'{where}: {{"train": [names], "val": [names], "test": [names]}} expected')
    splits: dict[str, str] = {}
    for split, names in table.items():
        for name in map(str, names):
            if name in splits:
                raise BadData(f"{where}: {name!r} is listed twice")
            splits[name] = split
    return splits


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Name -> (N) values of a scan.

    Args:
        path: a .bin, .npy or .ply file.
        columns: of a record; a .ply names its own.

    Raises:
        BadData: a damaged file, or one with other columns.
    """
    if path.suffix == ".ply":
        rows = PlyFile(path).rows("vertex")
        names = {name.removeprefix("scalar_").lower(): name for name in rows.dtype.names or ()}
        if not {"x", "y", "z"} <= set(names):
            raise BadData(f"{path}: vertices with x, y and z expected, got {', '.join(names) or 'none'}")
        return {name: rows[own] for name, own in names.items()}
    table = load_array(path) if path.suffix == ".npy" else read_records(path, len(columns))
    if table.ndim != 2 or table.shape[1] != len(columns) or table.dtype.kind not in "fiu":
        raise BadData(
            f"{path}: numbers of shape (N, {len(columns)}) expected, for the columns {', '.join(columns)}; got"
            f" {table.dtype} {table.shape}"
        )
    return {name: table[:, i] for i, name in enumerate(columns)}


def load_array(path: Path) -> np.ndarray:
    """An .npy file.

    Raises:
        BadData: it is none, or holds pickled objects.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadData(f"{path}: no readable array: {error}") from error
