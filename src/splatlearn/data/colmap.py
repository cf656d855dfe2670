"""COLMAP's sparse models, binary and text: cameras, images, points3D.

Legend: N points. The layout is that of COLMAP's page "Output Format" and of src/colmap/scene/reconstruction_io.cc.
Poses on disk are world-to-camera with OpenCV axes, quaternions w x y z, pixel centres at half integers. No number of a
file is trusted: counts are held against the bytes that are left before anything is made for them.
"""

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splatlearn.data.captures import Capture, CloudFile, Photo, inside, shown
from splatlearn.data.lenses import MODELS, Lens
from splatlearn.errors import BadData, nearest

PLACES = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", ".")
"""Folders of a capture in which a model is looked for, in this order."""
ENCODINGS = ("bin", "txt")
_BY_NUMBER = {model.number: name for name, model in MODELS.items()}
_LONGEST_NAME, _LONGEST_LINE = 4096, 1 << 22
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
_SLICE = 1 << 16


class SparsePoints(NamedTuple):
    """The points of a model.

    Args:
        xyz: (N 3) float64, the model's world and unit.
        rgb: (N 3) uint8.
        error: (N) float64 mean reprojection error, pixels.
        track: (N) int64 photographs' features that made the point.
    """

    xyz: np.ndarray
    rgb: np.ndarray
    error: np.ndarray
    track: np.ndarray


class _Image(NamedTuple):
    """A registered image; `offset` says where it stands in its file."""

    name: str
    quaternion: tuple[float, ...]
    translation: tuple[float, ...]
    camera: int


def find_model(folder: Path) -> Path | None:
    """The folder of the sparse model of a capture, or None."""
    return next((folder / place for place in PLACES if encoding(folder / place)), None)


def encoding(model: Path) -> str:
    """`bin` or `txt`, whichever is complete (binary first, as COLMAP itself reads); empty where there is no model."""
    return next((e for e in ENCODINGS if all((model / f"{n}.{e}").is_file() for n in ("cameras", "images"))), "")


def read_capture(folder: Path, model: Path, images: str) -> Capture:
    """The photographs of a model.

    Args:
        folder: of the capture.
        model: folder of cameras, images and points3D.
        images: folder of the photographs, relative to `folder`; empty for `images`.

    Raises:
        BadData: a damaged file, an unknown camera model, a camera that is listed twice.
    """
    kind = encoding(model)
    if not kind:
        raise BadData(f"{model}: no sparse model; cameras.bin and images.bin (or .txt) expected")
    cameras = _cameras_of(model / f"cameras.{kind}", kind)
    listed = _images_of(model / f"images.{kind}", kind)
    base = folder / (images or "images")
    photos = tuple(_photo(image, cameras, base) for image in listed)
    if not photos:
        raise BadData(f"{model / f'images.{kind}'}: no image is registered in this model")
    cloud = find_cloud(model)
    notes = [] if cloud else ["no points3D file: the scene has no cloud"]
    parent = model.parent
    others = sorted(p.name for p in parent.iterdir() if p != model and encoding(p)) if model.name.isdigit() else []
    if others:
        notes.append(f"{parent.name}/ holds other models ({', '.join(others[:5])}): --data.model chooses one")
    return Capture(folder=base, photos=photos, notes=tuple(notes), cloud=cloud)


def find_cloud(model: Path, source_from_file: np.ndarray | None = None) -> CloudFile | None:
    """The points of a model, or None; they are in the encoding of its other files.

    Args:
        model: its folder.
        source_from_file: (4 4) from the model's world to the capture's; None where they are one.
    """
    path = model / f"points3D.{encoding(model)}"
    return CloudFile(path, np.eye(4) if source_from_file is None else source_from_file) if path.is_file() else None


def read_points(path: Path) -> SparsePoints:
    """points3D.bin or points3D.txt.

    Raises:
        BadData: a damaged file; with the offset or line.
    """
    return _binary_points(path) if path.suffix == ".bin" else _text_points(path)


def _photo(image: _Image, cameras: dict[int, Lens | str], base: Path) -> Photo:
    lens = cameras.get(image.camera, f"camera {image.camera} is not in the model")
    return Photo(shown(image.name), inside(base, image.name), "", _pose(image), lens)


def _pose(image: _Image) -> np.ndarray | str:
    """(4 4) camera-to-world."""
    quaternion, translation = np.array(image.quaternion), np.array(image.translation)
    with np.errstate(all="ignore"):
        length = np.linalg.norm(quaternion)
    if not np.isfinite(translation).all() or not np.isfinite(length):
        return "pose: not finite"
    if length < 1e-6:
        return "pose: a quaternion of length 0"
    w, x, y, z = quaternion / length
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    with np.errstate(all="ignore"):
        pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ translation
    return pose


def _lens(name: str, size: tuple[int, int], parameters: tuple[float, ...]) -> Lens | str:
    return Lens.of(name, size, dict(zip(MODELS[name].parameters, parameters)))


def _cameras_of(path: Path, kind: str) -> dict[int, Lens | str]:
    cameras: dict[int, Lens | str] = {}
    for number, name, size, parameters in _binary_cameras(path) if kind == "bin" else _text_cameras(path):
        if number in cameras:
            raise BadData(f"{path}: camera {number} is there twice; one entry a camera expected")
        cameras[number] = _lens(name, size, parameters)
    return cameras


def _images_of(path: Path, kind: str) -> list[_Image]:
    return list(_binary_images(path) if kind == "bin" else _text_images(path))


_Camera = tuple[int, str, tuple[int, int], tuple[float, ...]]


class _Bytes:
    """A binary file, read from front to back.

    Args:
        path: the file.
        data: its bytes.
        what: its records are called.
        least: bytes of the smallest record.

    Raises:
        BadData: it declares more records than its bytes could hold.
    """

    def __init__(self, path: Path, data: Any, what: str, least: int) -> None:
        self.path, self.data, self.at, self.what = path, data, 0, what
        (self.count,) = self.take("<Q")
        room = (len(data) - self.at) // least
        if self.count > room:
            raise BadData(f"{path}: declares {self.count} {what}, but its {len(data)} bytes have room for {room}")

    def take(self, layout: str) -> tuple[Any, ...]:
        """The numbers at the current offset."""
        self.need(struct.calcsize(layout))
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def need(self, size: int) -> None:
        """Refuses where fewer bytes are left."""
        if size > len(self.data) - self.at:
            left = len(self.data) - self.at
            raise BadData(f"{self.path}: ends early (truncated): {size} bytes expected at offset {self.at}, got {left}")

    def finish(self) -> None:
        """Refuses bytes after the last record."""
        if left := len(self.data) - self.at:
            raise BadData(
                f"{self.path}: {left} bytes are left over after the {self.count} {self.what} that it declares"
            )


@contextmanager
def _opened(path: Path, what: str, least: int) -> Iterator[_Bytes]:
    """The file, mapped and not copied into memory."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise BadData(f"{path}: the file is empty; {what} expected")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield _Bytes(path, data, what, least)


def _binary_cameras(path: Path) -> Iterator[_Camera]:
    with _opened(path, "cameras", 24 + 24) as source:
        for _ in range(source.count):
            start = source.at
            number, model, width, height = source.take("<IiQQ")
            name = _BY_NUMBER.get(model)
            if name is None:
                known = ", ".join(f"{n} {name}" for n, name in sorted(_BY_NUMBER.items()))
                raise BadData(f"{path}: camera model {model} at offset {start} is unknown (known: {known})")
            yield number, name, (width, height), source.take(f"<{len(MODELS[name].parameters)}d")
        source.finish()


def _binary_images(path: Path) -> Iterator[_Image]:
    with _opened(path, "images", 64 + 2 + 8) as source:
        for _ in range(source.count):
            numbers = source.take("<I7dI")
            end = source.data.find(b"\0", source.at, source.at + _LONGEST_NAME)
            if end < 0:
                raise BadData(f"{path}: image {numbers[0]} at offset {source.at}: its name has no end")
            name = os.fsdecode(source.data[source.at : end])
            source.at = end + 1
            (features,) = source.take("<Q")
            source.need(24 * features)
            source.at += 24 * features
            yield _Image(name, numbers[1:5], numbers[5:8], numbers[8])
        source.finish()


def _binary_points(path: Path) -> SparsePoints:
    with _opened(path, "points", _POINT.itemsize) as source:
        starts, size, track = np.empty(source.count, np.int64), _POINT.itemsize, struct.Struct("<Q")
        for row in range(source.count):
            source.need(size)
            starts[row] = source.at
            source.at += size
            (length,) = track.unpack_from(source.data, source.at - 8)
            source.need(8 * length)
            source.at += 8 * length
        source.finish()
        rows = np.empty(source.count, _POINT)
        whole = np.frombuffer(source.data, np.uint8)
        for first in range(0, len(rows), _SLICE):
            part = starts[first : first + _SLICE]
            rows[first : first + _SLICE] = whole[part[:, None] + np.arange(size)].view(_POINT)[:, 0]
        del whole  # the file cannot be closed while an array looks into it
    return SparsePoints(rows["xyz"], rows["rgb"], rows["error"], rows["track"].astype(np.int64))


def _text_lines(path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Line numbers and lines without comments; empty ones where they mean something."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), 1):
            if len(line) == _LONGEST_LINE:
                raise BadData(f"{path}: line {number} is longer than {_LONGEST_LINE} characters: no sparse model")
            text = line.strip()
            if not text.startswith("#") and (text or blank):
                yield number, text


def _parsed(path: Path, number: int, line: str, expected: str, parse: Callable[[list[str]], Any]) -> Any:
    try:
        return parse(line.split())
    except (ValueError, IndexError, OverflowError):
        raise BadData(f"{path}: line {number}: {expected} expected, got {shown(line)!r}") from None


def _text_cameras(path: Path) -> Iterator[_Camera]:
    def parse(words: list[str]) -> _Camera:
        number, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
        return number, model, (width, height), tuple(map(float, words[4:]))

    for line_number, line in _text_lines(path):
        camera = _parsed(path, line_number, line, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]", parse)
        name, parameters = camera[1], camera[3]
        if name not in MODELS:
            raise BadData(f"{path}: line {line_number}: camera model {shown(name)!r} is unknown{nearest(name, MODELS)}")
        if len(parameters) != len(MODELS[name].parameters):
            wanted = " ".join(MODELS[name].parameters)
            raise BadData(f"{path}: line {line_number}: {name} takes {wanted}, got {len(parameters)} numbers")
        yield camera


def _text_images(path: Path) -> Iterator[_Image]:
    def parse(words: list[str]) -> _Image:
        numbers = [float(word) for word in words[1:8]]
        return _Image(" ".join(words[9:]), tuple(numbers[:4]), tuple(numbers[4:7]), int(words[8]))

    lines = _text_lines(path, blank=True)
    for number, line in lines:
        if not line:
            continue
        if len(line.split(maxsplit=9)) < 10:
            raise BadData(f"{path}: line {number}: {_IMAGE_LINE} expected, got {shown(line)!r}")
        image = _parsed(path, number, line, _IMAGE_LINE, parse)
        yield image._replace(name=line.split(maxsplit=9)[9])
        number, features = next(lines, (number, ""))  # an empty line where there are none
        if len(features.split()) % 3:
            raise BadData(f"{path}: line {number}: X Y POINT3D_ID of each feature expected, got {shown(features)!r}")


_IMAGE_LINE = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and a line of features after each,"


def _text_points(path: Path) -> SparsePoints:
    def parse(words: list[str]) -> tuple[float, ...]:
        colors = [int(word) for word in words[4:7]]
        if min(colors) < 0 or max(colors) > 255 or len(words) < 8:
            raise ValueError
        return (*map(float, words[1:4]), *colors, float(words[7]), len(words[8:]) // 2)

    parts, rows = [np.zeros((0, 8))], []
    for number, line in _text_lines(path):
        rows.append(_parsed(path, number, line, "POINT3D_ID X Y Z R G B ERROR TRACK[]", parse))
        if len(rows) == _SLICE:
            parts.append(np.array(rows))
            rows = []
    if rows:
        parts.append(np.array(rows))
    table = np.concatenate(parts)
    return SparsePoints(table[:, :3], table[:, 3:6].astype(np.uint8), table[:, 6], table[:, 7].astype(np.int64))
