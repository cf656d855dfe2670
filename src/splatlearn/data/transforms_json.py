"""`transforms.json`: posed photographs as nerfstudio, instant-ngp and the synthetic NeRF scenes list them.

`transform_matrix` is camera-to-world with OpenGL axes (x right, y up, looking along -z), pixel centres lie at half
integers. Sources: nerfstudio's page "Data conventions" and its dataparser, instant-ngp's page "NeRF dataset tips".
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite, tan
from pathlib import Path
from typing import Any

import numpy as np

from splatlearn.data import colmap
from splatlearn.data.captures import Capture, CloudFile, Photo, inside, shown
from splatlearn.data.imagery import COLOR_SUFFIXES, UnreadableImage, probe
from splatlearn.data.lenses import MODELS, Lens
from splatlearn.data.scene import Skipped
from splatlearn.errors import BadData

SPLITS = ("train", "val", "test")
_OPENGL = np.diag([1.0, -1, -1, 1])
_LARGEST = 20 << 20
"""Bytes of a .json file, some 60,000 frames without line breaks: what Python makes of text can be 15 times that."""
_SPARSE = 24
"""Bytes a bracket, on average: a frame has 6, and 200 bytes at least. `[[],[],...` would be twenty times its size."""
_COEFFICIENTS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
_FISHEYE = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "FISHEYE", "SIMPLE_FISHEYE")
_UNREAD = ("mask_path", "normal_file_path", "semantic_path")


class _Wrong(Exception):
    """A value of a frame is not what it should be; the message says which."""


def find_files(folder: Path) -> list[Path]:
    """`transforms.json`, or else those of `transforms_train.json`, `_val` and `_test` that are there."""
    if (folder / "transforms.json").is_file():
        return [folder / "transforms.json"]
    return [path for split in SPLITS if (path := folder / f"transforms_{split}.json").is_file()]


def read_capture(files: list[Path], images: str) -> Capture:
    """The photographs of one world.

    Args:
        files: of one folder, as `find_files` gives them.
        images: folder to take the photographs from, instead of the first folder in their names; empty for none.

    Raises:
        BadData: no JSON, no frames, or a table that is not what it should be.
    """
    folder, photos, skipped, notes = files[0].parent, [], [], []
    tables = [_load(file) for file in files]
    for file, table in zip(files, tables):
        split = file.stem.removeprefix("transforms").removeprefix("_")
        for number, frame in enumerate(table["frames"]):
            try:
                photos.append(_photo(folder, table, frame, images, split if split in SPLITS else ""))
            except _Wrong as error:
                named = frame.get("file_path")
                skipped.append(Skipped(shown(named) if isinstance(named, str) else f"frame {number}", str(error)))
        for key in _UNREAD:
            if count := sum(key in frame for frame in table["frames"]):
                notes.append(f"{count} frames name a {key}: it is not read")
    photos, others = _with_splits(files[0], tables[0], photos, notes)
    cloud = _cloud(files[0], tables[0], notes)
    return Capture(
        folder=folder,
        photos=tuple(photos),
        skipped=(*skipped, *others),
        notes=tuple(notes),
        cloud=cloud,
        depth_scale=_depth_scale(files[0], tables[0]),
    )


def _load(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _LARGEST:
        raise BadData(f"{file}: {file.stat().st_size} bytes; {_LARGEST} at most are read of such a file")
    text = file.read_bytes()
    if (brackets := text.count(b"[") + text.count(b"{")) > 10_000 + len(text) / _SPARSE:
        raise BadData(f"{file}: {brackets} brackets in {len(text)} bytes: no table of frames")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{file}: not valid JSON: {shown(' '.join(str(error).split()))}") from None
    if not isinstance(table, dict) or not isinstance(table.get("frames"), list):
        keys = ", ".join(map(shown, list(table)[:8])) if isinstance(table, dict) else f"a {type(table).__name__}"
        raise BadData(f"{file}: an object with a list `frames` expected, got {keys or 'an empty object'}")
    wrong = next((i for i, frame in enumerate(table["frames"]) if not isinstance(frame, dict)), None)
    if wrong is not None:
        kind = type(table["frames"][wrong]).__name__
        raise BadData(f"{file}: frames[{wrong}]: an object with file_path and transform_matrix expected, got a {kind}")
    if not table["frames"]:
        raise BadData(f"{file}: `frames` is empty; one entry a photograph expected")
    if not np.isfinite(scale := _table_number(file, table, "applied_scale", 1.0)) or scale <= 0:
        raise BadData(f"{file}: applied_scale: a number above zero expected, got {scale:g}")
    return table


def _photo(folder: Path, table: Mapping[str, Any], frame: Mapping[str, Any], images: str, split: str) -> Photo:
    name = frame.get("file_path")
    if not isinstance(name, str) or not name:
        raise _Wrong("no file_path")
    listed, color = (_with_suffix(folder, inside(folder, n)) for n in (name, _moved(name, images)))
    depth = frame.get("depth_file_path", frame.get("depth_path", ""))
    if not isinstance(depth, str):
        raise _Wrong(f"depth_file_path: a name expected, got {shown(depth)}")
    return Photo(
        name=shown(name),
        color=color,
        depth=inside(folder, depth) if depth else "",
        pose=_pose(frame.get("transform_matrix"), float(table.get("applied_scale", 1.0))),
        lens=_lens({**table, **frame}, [folder / n for n in dict.fromkeys((listed, color)) if n]),
        split=split,
    )


def _moved(name: str, images: str) -> str:
    """The name with its first folder replaced, when another one is asked for."""
    if not images:
        return name
    parts = Path(name).parts
    return str(Path(images, *(parts[1:] if len(parts) > 1 else parts)))


def _with_suffix(folder: Path, color: str | None) -> str | None:
    """The synthetic scenes leave the suffix out."""
    if color is None or (folder / color).is_file():
        return color
    return next((color + suffix for suffix in COLOR_SUFFIXES if (folder / (color + suffix)).is_file()), color)


def _pose(value: Any, applied_scale: float) -> np.ndarray | str:
    """(4 4) camera-to-world, OpenCV axes; `applied_scale`, which is on the positions alone, is taken back."""
    if value is None:
        return "no transform_matrix"
    try:
        matrix = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return "transform_matrix: 4x4 numbers expected"
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0, 0, 0, 1]]])
    if matrix.shape != (4, 4):
        return f"transform_matrix: 4x4 numbers expected, got shape {matrix.shape}"
    with np.errstate(all="ignore"):
        matrix[:3, 3] /= applied_scale
        return matrix @ _OPENGL


def _lens(values: Mapping[str, Any], photographs: Sequence[Path]) -> Lens | str:
    """The lens of a frame.

    Args:
        values: each the frame's own, else the table's.
        photographs: as the table names it, then as it is read; the first that is there has the size that the values
            belong to, unless they say one.
    """
    try:
        width, height = _number(values, "w", 0), _number(values, "h", 0)
        if not (isfinite(width) and isfinite(height)):
            return "camera: w, h: pixels expected"
        size = int(width), int(height)
        if 0 in size and not {"w", "h"} & set(values) and photographs:
            there = next((path for path in photographs if path.is_file()), photographs[-1])
            if there != photographs[0] and {"fl_x", "fl_y", "cx", "cy"} & set(values):
                return "camera: no w and h, and the listed photograph, whose pixels fl_x and cx count, is not there"
            size = probe(there)
        fx, fy = (_focal(values, axis, size[i]) for i, axis in enumerate("xy"))
        if fx is None and fy is None:
            return "camera: no focal length (fl_x in pixels, or camera_angle_x)"
        bend = {key: _number(values, key, 0) for key in _COEFFICIENTS}
        given = {
            "fx": fy if fx is None else fx,
            "fy": fx if fy is None else fy,
            "cx": _number(values, "cx", size[0] / 2),
            "cy": _number(values, "cy", size[1] / 2),
        }
    except _Wrong as error:
        return f"camera: {error}"
    except UnreadableImage as error:
        return f"photograph: {error}"
    model = "OPENCV_FISHEYE" if values.get("is_fisheye") is True else str(values.get("camera_model", "OPENCV"))
    return _of_model(model, size, given, bend)


def _of_model(model: str, size: tuple[int, int], given: dict[str, float], bend: dict[str, float]) -> Lens | str:
    """Without a rational model's name, k1 to k3 are a polynomial's; what else is not zero is nobody's."""
    if model in _FISHEYE:
        name, used = "OPENCV_FISHEYE", ("k1", "k2", "k3", "k4")
    elif model in _PERSPECTIVE:
        name, used = "OPENCV", ("k1", "k2", "k3", "p1", "p2")
    elif model == "FULL_OPENCV":
        name, used = model, _COEFFICIENTS
    elif model in MODELS:
        return f"camera: lens distortion of the model {model} is not removed here, as transforms.json writes it"
    else:
        return f"camera: camera_model {shown(model)} is not known"
    if unused := [key for key, value in bend.items() if value and key not in used]:
        return f"camera: {', '.join(unused)} of the model {model} is not removed here"
    return Lens.of(name, size, given | {key: bend[key] for key in used})


def _focal(values: Mapping[str, Any], axis: str, size: int) -> float | None:
    """Pixels along an axis, or None where it is not given."""
    if f"fl_{axis}" in values:
        return _number(values, f"fl_{axis}", 0)
    for key, unit in ((f"camera_angle_{axis}", 1.0), (f"{axis}_fov", np.pi / 180)):
        if key in values:
            angle = _number(values, key, 0) * unit
            if not 0 < angle < np.pi:
                raise _Wrong(f"{key}: an angle below 180 degrees expected, got {angle:g} radians")
            return size / 2 / tan(angle / 2)
    return None


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _Wrong(f"{key}: a number expected, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise _Wrong(f"{key}: a number expected, got one of {len(str(value))} digits") from None


def _with_splits(file: Path, table: Mapping[str, Any], photos: list[Photo], notes: list[str]):
    """The photographs with the splits that `train_filenames` and its like name; those that none names are left out.

    Returns:
        Photographs, and `Skipped`.
    """
    lists = {split: table[f"{split}_filenames"] for split in SPLITS if f"{split}_filenames" in table}
    if not lists:
        return photos, []
    for split, names in lists.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadData(f"{file}: {split}_filenames: a list of names expected")
    of = {inside(file.parent, name): split for split, names in lists.items() for name in names}
    if absent := set(of) - {inside(file.parent, photo.name) for photo in photos}:
        first = shown(min(map(str, absent)))
        notes.append(f"{len(absent)} names in train_filenames and its like are no frame's (first: {first})")
    named, others = [], []
    for photo in photos:
        if (split := of.get(inside(file.parent, photo.name))) is not None:
            named.append(photo._replace(split=split))
        else:
            others.append(Skipped(photo.name, f"in none of {', '.join(f'{split}_filenames' for split in lists)}"))
    return named, others


def _cloud(file: Path, table: Mapping[str, Any], notes: list[str]) -> CloudFile | None:
    """`ply_file_path`, which is in the frames' world; else the COLMAP model beside it, if its transform is known."""
    transform = _applied_transform(file, table)
    if (name := table.get("ply_file_path")) is not None:
        inner = inside(file.parent, name) if isinstance(name, str) else None
        if inner and (file.parent / inner).is_file():
            return CloudFile(file.parent / inner)
        why = "is missing" if inner else "leads out of the folder"
        notes.append(f"ply_file_path {shown(name)} {why}: the scene has no cloud")
        return None
    model = colmap.find_model(file.parent)
    return colmap.find_cloud(model, transform) if model is not None and transform is not None else None


def _applied_transform(file: Path, table: Mapping[str, Any]) -> np.ndarray | None:
    """(4 4) from the world of the COLMAP model to that of the frames; None where the file does not say."""
    if "applied_transform" not in table:
        return None
    try:
        matrix = np.array(table["applied_transform"], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        matrix = np.zeros(0)
    if (
        matrix.shape not in ((3, 4), (4, 4))
        or not np.isfinite(matrix).all()
        or abs(np.linalg.det(matrix[:3, :3])) < 1e-9
    ):
        raise BadData(f"{file}: applied_transform: 3x4 finite numbers with an inverse expected")
    return np.concatenate([matrix[:3], [[0, 0, 0, 1]]])


def _depth_scale(file: Path, table: Mapping[str, Any]) -> float:
    """Units of length a depth unit: nerfstudio's rule is a thousandth; instant-ngp writes `integer_depth_scale`."""
    key = next((k for k in ("depth_unit_scale_factor", "integer_depth_scale") if k in table), "")
    scale = _table_number(file, table, key, 0.001) if key else 0.001
    if not isfinite(scale) or scale <= 0:
        raise BadData(f"{file}: {key}: a number above zero expected, got {scale:g}")
    return scale


def _table_number(file: Path, table: Mapping[str, Any], key: str, default: float) -> float:
    try:
        return _number(table, key, default)
    except _Wrong as error:
        raise BadData(f"{file}: {error}") from None
