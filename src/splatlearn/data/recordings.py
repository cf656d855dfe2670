"""How posed RGB-D recordings are laid out on disk: which files belong to a frame, and which camera took them.

Nothing is decoded here. Poses on disk are camera-to-world, metres, OpenCV axes in every layout below.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from splatlearn.data.folders import walk
from splatlearn.data.imagery import COLOR_SUFFIXES, DEPTH_SUFFIXES
from splatlearn.errors import BadData

_NUMBER = re.compile(r"(\d+)")


class Entry(NamedTuple):
    """The files of one frame, relative to the recording; `None` where one is missing.

    Plain strings, since data sets have millions of frames. `pose` is a 4x4 text file, or the matrix itself.
    """

    name: str
    frame: int
    color: str
    depth: str | None
    pose: str | np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A recording as its folder tells it.

    Args:
        entries: by raw frame index, ascending.
        color_intrinsics: (3 3) as on disk, pixels of the native colour image.
        depth_intrinsics: (3 3) of the depth image, or None where colour's hold for both.
        pixel_center: whether the source counts the centre of the first pixel as 0.5 (`half`) or 0 (`integer`).
        depth_scale: metres per unit.
        assumed_size: (width, height) that the intrinsics belong to when they are the data set's nominal ones
            and no file says so; None otherwise.
        z_up: whether the source's world is +z up.
        split: `train`, `val`, or empty where the source says nothing.
        notes: what the source has that this package does not undo, in sentences for people.
    """

    entries: tuple[Entry, ...]
    color_intrinsics: np.ndarray
    depth_intrinsics: np.ndarray | None
    pixel_center: Literal["half", "integer"]
    depth_scale: float = 0.001
    assumed_size: tuple[int, int] | None = None
    z_up: bool = False
    split: str = ""
    notes: tuple[str, ...] = ()


class Layout(ABC):
    """One way to lay out a recording.

    Attributes:
        expects: what the layout looks like, for messages.
    """

    expects: str

    @abstractmethod
    def matches(self, folder: Path) -> bool:
        """Whether the folder itself holds a recording of this layout."""

    @abstractmethod
    def listing(self, folder: Path, intrinsics: np.ndarray | None) -> Listing:
        """The frames of a folder that `matches`.

        Args:
            folder: the recording.
            intrinsics: (3 3) given by the user; it replaces what is on disk.

        Raises:
            BadData: intrinsics are missing or are no pinhole matrix.
        """


class SevenScenes(Layout):
    """7-Scenes, and exports in its form.

    The focal length 585 and principal point (320, 240) are nominal: the exact middle of 640x480 when pixel centres
    lie at half integers. A shift by half a pixel would move the axis off the middle, so none is made.
    """

    expects = "frame-000000.color.jpg|png, frame-000000.depth.png, frame-000000.pose.txt, camera-intrinsics.txt"
    nominal = np.array([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]])

    def matches(self, folder: Path) -> bool:
        """A `frame-*.color.*` is there."""
        return any(True for _ in folder.glob("frame-*.color.*"))

    def listing(self, folder: Path, intrinsics: np.ndarray | None) -> Listing:
        """Frames by name; intrinsics from the folder or the one above, else the nominal ones of 7-Scenes."""
        entries = []
        colors = _files(folder, COLOR_SUFFIXES, lambda stem: stem.endswith(".color"))
        depths = _files(folder, DEPTH_SUFFIXES, lambda stem: stem.endswith(".depth"))
        poses = _files(folder, (".txt",), lambda stem: stem.endswith(".pose"))
        for stem, color in colors.items():
            name = stem.removesuffix(".color")
            entries.append(Entry(name, _index(name), color, depths.get(f"{name}.depth"), poses.get(f"{name}.pose")))
        files = [folder / "camera-intrinsics.txt", folder.parent / "camera-intrinsics.txt"]
        matrix = intrinsics if intrinsics is not None else _first_matrix(files)
        return Listing(
            entries=_sorted(entries),
            color_intrinsics=self.nominal if matrix is None else matrix,
            depth_intrinsics=None,
            pixel_center="half",
            assumed_size=(640, 480) if matrix is None else None,
            split=_seven_scenes_split(folder),
        )


class ScanNet(Layout):
    """The ScanNet export (`color/ depth/ pose/ intrinsic/`): two cameras with one pose, colour larger than depth.

    Its depth camera's principal point is (319.5, 239.5) for 640x480: pixel centres at integers, so 0.5 is added.
    """

    expects = "color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_color.txt, intrinsic/intrinsic_depth.txt"

    def matches(self, folder: Path) -> bool:
        """`color/` is there with one of its companions."""
        return (folder / "color").is_dir() and any((folder / part).is_dir() for part in ("depth", "pose"))

    def listing(self, folder: Path, intrinsics: np.ndarray | None) -> Listing:
        """Frames by number, whatever the zero padding and the stride of the export."""
        depths = {_index(stem): f"depth/{file}" for stem, file in _files(folder / "depth", DEPTH_SUFFIXES).items()}
        poses = {_index(stem): f"pose/{file}" for stem, file in _files(folder / "pose", (".txt",)).items()}
        entries = [
            Entry(stem, _index(stem), f"color/{file}", depths.get(_index(stem)), poses.get(_index(stem)))
            for stem, file in _files(folder / "color", COLOR_SUFFIXES).items()
        ]
        color, depth = (self._matrix(folder, kind) for kind in ("color", "depth"))
        matrix = intrinsics if intrinsics is not None else color
        if matrix is None:
            raise BadData(
                f"{folder}: no intrinsics; intrinsic/intrinsic_color.txt (4x4 or 3x3, pixels) expected; "
                "or give --data.intrinsics fx,fy,cx,cy"
            )
        return Listing(
            entries=_sorted(entries),
            color_intrinsics=matrix,
            depth_intrinsics=depth,
            pixel_center="integer",
            z_up=True,
        )

    @staticmethod
    def _matrix(folder: Path, kind: str) -> np.ndarray | None:
        names = (f"intrinsic/intrinsic_{kind}.txt", f"intrinsics/intrinsic_{kind}.txt", f"intrinsic_{kind}.txt")
        return _first_matrix([folder / name for name in names])


class Tum(Layout):
    """TUM RGB-D (`rgb.txt`, `depth.txt`, `groundtruth.txt`): streams joined by time stamps, within 20 ms.

    The depth images are registered to colour with the sensor driver's own camera, 525 px and (319.5, 239.5) at
    integer centres, which the data set's authors recommend for its clouds, without undoing the lens distortion of
    freiburg1 and freiburg2, since that of registered depth cannot be undone. The motion-capture world is z-up.
    """

    expects = "rgb.txt, depth.txt, groundtruth.txt"
    nominal = np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]])
    window = 0.02
    rectified = "freiburg3"
    distorted = (
        "lens distortion is not removed: colour and depth are taken as a pinhole's, as the authors of TUM RGB-D "
        "recommend; only freiburg3 has none"
    )

    def matches(self, folder: Path) -> bool:
        """The two image lists are there."""
        return (folder / "rgb.txt").is_file() and (folder / "depth.txt").is_file()

    def listing(self, folder: Path, intrinsics: np.ndarray | None) -> Listing:
        """Frames by rank in `rgb.txt`; the nearest depth image and pose of each."""
        truth = folder / "groundtruth.txt"
        colors, depths = _stream(folder / "rgb.txt", 2), _stream(folder / "depth.txt", 2)
        poses = _stream(truth, 8) if truth.is_file() else _Stream(np.zeros(0), [])
        depth_at, pose_at = (nearest_in_time(colors.times, s.times, self.window) for s in (depths, poses))
        entries = [
            Entry(
                name=Path(row[1]).stem,
                frame=frame,
                color=row[1],
                depth=None if depth < 0 else depths.rows[depth][1],
                pose=None if pose < 0 else _quaternion_pose(poses.rows[pose], truth),
            )
            for frame, (row, depth, pose) in enumerate(zip(colors.rows, depth_at, pose_at))
        ]
        return Listing(
            entries=tuple(entries),
            color_intrinsics=self.nominal if intrinsics is None else intrinsics,
            depth_intrinsics=None,
            pixel_center="integer",
            depth_scale=1 / 5000,
            assumed_size=(640, 480) if intrinsics is None else None,
            z_up=True,
            notes=() if self.rectified in folder.resolve().name else (self.distorted,),
        )


LAYOUTS: dict[str, Layout] = {"7scenes": SevenScenes(), "scannet": ScanNet(), "tum": Tum()}


def find_recordings(path: Path, layout: str = "auto", breadth: int | None = None) -> list[tuple[Path, Layout]]:
    """Recordings at `path` or in the folders below it, sorted by path.

    Args:
        path: one recording, or a folder of recordings.
        layout: a key of `LAYOUTS`, or `auto`.
        breadth: look into the first so many folders of each folder only.
    """
    layouts = list(LAYOUTS.values()) if layout == "auto" else [LAYOUTS[layout]]

    def match(folder: Path) -> bool:
        return any(one.matches(folder) for one in layouts)

    return [(p, next(one for one in layouts if one.matches(p))) for p in walk(path, match, breadth=breadth)]


def check_intrinsics(matrix: np.ndarray, source: object) -> np.ndarray:
    """(3 3) pinhole intrinsics; a 4x4 matrix gives its upper left part.

    Raises:
        BadData: another shape, non-finite or non-positive focal lengths, skew, or a last row that is not 0 0 1.
    """
    if matrix.shape not in ((3, 3), (4, 4)):
        raise BadData(f"{source}: intrinsics of 3x3 (or 4x4) numbers expected, got shape {matrix.shape}")
    matrix = matrix[:3, :3]
    pinhole = np.isfinite(matrix).all() and (matrix.diagonal() > 0).all()
    if not pinhole or np.abs(matrix[[0, 1, 2, 2], [1, 0, 0, 1]]).max() > 1e-6 or abs(matrix[2, 2] - 1) > 1e-6:
        raise BadData(
            f"{source}: no pinhole matrix; [fx 0 cx; 0 fy cy; 0 0 1] with fx, fy > 0 expected, got {matrix.tolist()}"
        )
    return matrix


def nearest_in_time(times: np.ndarray, candidates: np.ndarray, window: float) -> list[int]:
    """For each time the row of the nearest candidate, the earlier of two equally near; -1 beyond `window` seconds.

    Args:
        times: (N) seconds, in any order.
        candidates: (M) seconds, in any order.
        window: seconds.
    """
    if not len(candidates):
        return [-1] * len(times)
    order = np.argsort(candidates, kind="stable")
    later = np.searchsorted(candidates, times, sorter=order).clip(max=len(order) - 1)
    earlier = (later - 1).clip(min=0)
    gaps = np.abs(candidates[order[[earlier, later]]] - times)
    found = np.where(gaps[0] <= gaps[1], order[earlier], order[later])
    return np.where(gaps.min(0) <= window, found, -1).tolist()


def read_matrix(path: Path) -> np.ndarray:
    """Numbers of a text file as (rows, columns).

    Raises:
        ValueError: not numbers, or rows of different lengths.
    """
    rows = [[float(word) for word in line.replace(",", " ").split()] for line in path.read_text().splitlines()]
    return np.array([row for row in rows if row], dtype=np.float64)


def _files(folder: Path, suffixes: tuple[str, ...], keep: Callable[[str], bool] = bool) -> dict[str, str]:
    """Stem -> file name, sorted."""
    if not folder.is_dir():
        return {}
    parts = ((*os.path.splitext(name), name) for name in sorted(os.listdir(folder)))
    return {stem: name for stem, suffix, name in parts if suffix.lower() in suffixes and keep(stem)}


def _index(name: str) -> int:
    numbers = _NUMBER.findall(name)
    if not numbers:
        raise BadData(f"{name}: a frame number is expected in the file's name")
    return int(numbers[-1])


def _sorted(entries: list[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: (entry.frame, entry.name)))


def _first_matrix(files: list[Path]) -> np.ndarray | None:
    for path in files:
        if path.is_file():
            try:
                return check_intrinsics(read_matrix(path), path)
            except BadData:
                raise
            except ValueError as error:
                raise BadData(f"{path}: intrinsics of 3x3 numbers expected, got text ({error})") from None
    return None


def _seven_scenes_split(folder: Path) -> str:
    """`TrainSplit.txt` beside the sequences names them `sequence1`, the folders are `seq-01`."""
    for split, name in (("train", "TrainSplit.txt"), ("val", "TestSplit.txt")):
        path = folder.parent / name
        if path.is_file() and _NUMBER.search(folder.name):
            numbers = {int(n) for n in _NUMBER.findall(path.read_text())}
            if _index(folder.name) in numbers:
                return split
    return ""


class _Stream(NamedTuple):
    """A list of TUM: time stamps (N) in seconds, and the words of its rows."""

    times: np.ndarray
    rows: list[list[str]]


def _stream(path: Path, columns: int) -> _Stream:
    rows = [line.split() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    rows = [row for row in rows if not row[0].startswith("#")]
    wrong = next((row for row in rows if len(row) < columns), None)
    if wrong is not None:
        raise BadData(f"{path}: {columns} columns expected in every row, got {' '.join(wrong)!r}")
    wrong = next((row for row in rows if not _is_time(row[0])), None)
    if wrong is not None:
        raise BadData(f"{path}: a time stamp in seconds expected first in every row, got {' '.join(wrong)!r}")
    return _Stream(np.array([float(row[0]) for row in rows]), rows)


def _is_time(word: str) -> bool:
    try:
        return isfinite(float(word))
    except ValueError:
        return False


def _quaternion_pose(row: list[str], source: Path) -> np.ndarray:
    """(4 4) from `time tx ty tz qx qy qz qw`."""
    try:
        x, y, z, w = np.array(row[4:8], dtype=np.float64) / np.linalg.norm(np.array(row[4:8], dtype=np.float64))
        pose = np.eye(4)
        pose[:3, 3] = np.array(row[1:4], dtype=np.float64)
    except ValueError:
        raise BadData(f"{source}: numbers expected, got {' '.join(row)!r}") from None
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return pose
