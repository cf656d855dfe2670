"""Info files of mmdetection3d (1.1 and later): scans, photographs, calibration and boxes in one pickle.

Legend: M boxes. Metres; a scan's world is its lidar's frame. Read through `data/pickles.py`, which runs nothing. Names
in the file: `data_list`, each with `lidar_points`, `images`, `instances`, and `metainfo` with `categories`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splatlearn.data.pickles import read_pickle
from splatlearn.data.recordings import check_intrinsics
from splatlearn.data.records import Files, numbers, rigid_motion
from splatlearn.errors import BadData

_PEEK = 1 << 18
_SPLITS = ("train", "val", "test")


class Info(NamedTuple):
    """One scan of an info file.

    Args:
        name: of the scan's file, without suffixes.
        scan: as the file names it.
        images: camera -> photograph as the file names it; those that have one.
        cameras: camera -> the mapping with `cam2img` and `lidar2cam`.
        labels: file of point labels, or empty.
        instances: boxes, as they are.
    """

    name: str
    scan: str
    images: Mapping[str, str]
    cameras: Mapping[str, Mapping[str, Any]]
    labels: str
    instances: Sequence[Mapping[str, Any]]


class InfoFile(NamedTuple):
    """An info file.

    Args:
        path: where it lies.
        split: last word of its name, or empty.
        categories: of the boxes, by their label.
        lengths_first: whether boxes are length, width, height with a yaw from +x, as since version 1.1 of the infos.
        infos: its scans.
    """

    path: Path
    split: str
    categories: Mapping[int, str]
    lengths_first: bool
    infos: tuple[Info, ...]


def looks_like(path: Path, mark: bytes) -> bool:
    """Whether a file is a pickle that names a camera early on; nothing is unpickled.

    Args:
        path: a file.
        mark: name of the camera.
    """
    if path.suffix != ".pkl" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_PEEK)
    return mark in head and b"lidar_points" in head


def find_infos(path: Path, mark: bytes) -> list[Path]:
    """The info files at a path: itself, or those in the folder, sorted; of a folder without the file of all that
    others hold by split."""
    files = sorted(path.glob("*.pkl")) if path.is_dir() else [path]
    found = [file for file in files if looks_like(file, mark)]
    parts = [file for file in found if not file.stem.endswith("trainval")]
    return parts or found


def read_infos(path: Path) -> InfoFile:
    """The scans of an info file.

    Raises:
        BadData: no such pickle, an older format, or entries without a scan.
    """
    table = read_pickle(path)
    entries = table.get("data_list") if isinstance(table, dict) else None
    if not isinstance(entries, list):
        raise BadData(
            f"{path}: a mapping with `data_list` expected, as mmdetection3d 1.1 and later write it; bring older infos "
            "up to date with its tools/dataset_converters/update_infos_to_v2.py"
        )
    meta = table.get("metainfo") or {}
    categories = {int(index): str(name) for name, index in dict(meta.get("categories") or {}).items()}
    last = path.stem.rpartition("_")[2]
    split = last if last in _SPLITS else ""
    infos = tuple(_info(entry, f"{path}[{i}]") for i, entry in enumerate(entries))
    return InfoFile(path, split, categories, bool(meta.get("info_version")), infos)


def resolve(folder: Path, name: str, places: Sequence[str], files: Files) -> Path | None:
    """Where a file of an info lies: at the name itself or its last part, in the folder or one of the places in it."""
    plain = Path(name).name
    tries = [folder / name, folder / plain, *(folder / place / plain for place in places)]
    return next((path for path in tries if path in files), None)


def projection(camera: Mapping[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera (4 4) and intrinsics (3 3) of a camera of an info.

    A matrix of KITTI's rectified cameras has a fourth column: it is folded into the pose.

    Raises:
        BadData: a missing or wrong matrix.
    """
    if absent := [name for name in ("cam2img", "lidar2cam") if name not in camera]:
        raise BadData(f"{where}: {' and '.join(absent)} missing")
    matrix = numbers(camera["cam2img"], f"{where}: cam2img")
    pose = rigid_motion(camera["lidar2cam"], f"{where}: lidar2cam")
    if matrix.shape not in ((3, 3), (3, 4), (4, 4)):
        raise BadData(f"{where}: cam2img: 3x3, 3x4 or 4x4 numbers expected, got shape {matrix.shape}")
    intrinsics = check_intrinsics(matrix[:3, :3], f"{where}: cam2img")
    return (pose if matrix.shape[1] == 3 else fold(matrix[:3], pose)), intrinsics


def fold(matrix: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """The pose of the camera that a rectified projection (3 4) belongs to: its fourth column is a shift K t."""
    shifted = pose.copy()
    shifted[:3, 3] += np.linalg.solve(matrix[:, :3], matrix[:, 3])
    return shifted


def _info(entry: Any, where: str) -> Info:
    lidar = entry.get("lidar_points") if isinstance(entry, dict) else None
    if not isinstance(lidar, dict) or not isinstance(lidar.get("lidar_path"), str):
        raise BadData(f"{where}: an entry with lidar_points and lidar_path in it expected")
    listed = dict(entry.get("images") or {}).items()
    cameras = {str(name): camera for name, camera in listed if isinstance(camera, dict)}  # R0_rect stands among them
    images = {name: str(camera["img_path"]) for name, camera in cameras.items() if camera.get("img_path")}
    return Info(
        name=Path(lidar["lidar_path"]).name.partition(".")[0],
        scan=lidar["lidar_path"],
        images=images,
        cameras=cameras,
        labels=str(entry.get("pts_semantic_mask_path") or ""),
        instances=tuple(entry.get("instances") or ()),
    )
