"""Photographs with poses, as their source lists them, and which of them can be used. Nothing is decoded here.

Legend: V usable photographs. A size is (width, height), pixels. The source's unit of length, OpenCV camera axes.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from splatlearn.data.frame_filter import rigid
from splatlearn.data.imagery import UnreadableImage, probe
from splatlearn.data.lenses import Lens
from splatlearn.data.scene import Skipped, reasons
from splatlearn.errors import BadData

Size = tuple[int, int]
_NUMBER = re.compile(r"\d+")
_LARGEST_NUMBER = 2**53
_FARTHEST = 1e9


class Photo(NamedTuple):
    """One photograph as the source lists it; nothing is checked but its lens.

    Args:
        name: as the source writes it, printable.
        color: file, relative to the capture's folder; None where the name leads out of it.
        depth: file of its depth map, likewise; empty where the source names none.
        pose: camera-to-world, OpenCV axes, the source's unit; whatever shape and values it has, or why there is none.
        lens: at the size the source gives its parameters for, or why there is none.
        split: `train`, `val`, `test`, or empty.
    """

    name: str
    color: str | None
    depth: str | None
    pose: np.ndarray | str
    lens: Lens | str
    split: str = ""


@dataclass(frozen=True, eq=False)
class CloudFile:
    """A sparse cloud of a capture: points3D.bin, points3D.txt or a .ply.

    Args:
        path: the file.
        source_from_file: (4 4) float64, from the file's axes and unit to those of the capture.
    """

    path: Path
    source_from_file: np.ndarray = field(default_factory=lambda: np.eye(4))


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What one folder says of its photographs.

    Args:
        folder: that file names are relative to.
        photos: in the order of the source.
        skipped: what cannot even be listed, with reasons.
        notes: in sentences for people.
        cloud: of the same world, or None.
        depth_scale: the source's units of length a unit of an integer depth map.
    """

    folder: Path
    photos: tuple[Photo, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    cloud: CloudFile | None = None
    depth_scale: float = 0.001


class Usable(NamedTuple):
    """A photograph that passed the checks: its lens is that of the file's own size."""

    name: str
    frame: int
    color: str
    depth: str
    pose: np.ndarray
    lens: Lens
    split: str
    scaled: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoTable:
    """The V usable photographs, in the order of their raw numbers.

    Args:
        folder: that file names are relative to.
        photos: of them.
        size: of most photographs; those of another size have its proportions.
    """

    folder: Path
    photos: tuple[Usable, ...]
    size: Size

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def has_depth(self) -> bool:
        """Whether every photograph has a depth map; none has one otherwise."""
        return bool(self.photos and self.photos[0].depth)

    def intrinsics(self) -> np.ndarray:
        """(V 3 3) float64 of the ideal pinholes at `size`."""
        matrices = []
        for photo in self.photos:
            matrix = photo.lens.pinhole()
            assert matrix is not None
            ratio = [self.size[0] / photo.lens.width, self.size[1] / photo.lens.height, 1]
            matrices.append(matrix * np.array(ratio)[:, None])
        return np.stack(matrices)


def usable_photos(
    capture: Capture, *, stride: int = 1, most: int | None = None, depth: bool = True
) -> tuple[PhotoTable, tuple[Skipped, ...]]:
    """Checks names, poses, lenses, file ends, headers and sizes; about 0.2 ms a photograph.

    Args:
        capture: what the source says.
        stride: check every n-th, in the order of their raw numbers.
        most: check at most the first n of those; None checks all.
        depth: whether depth maps are wanted where there are any.

    Returns:
        The usable photographs as a `PhotoTable`, and every other one as `Skipped`.

    Raises:
        BadData: fewer than two are left; with the commonest reasons.
    """
    listed = _numbered(capture.photos)[::stride][:most]
    with_depth = depth and any(photo.depth != "" for _, photo in listed)
    kept: list[Usable] = []
    skipped, seen = list(capture.skipped), set()
    for number, photo in listed:
        if photo.color in seen:
            skipped.append(Skipped(photo.name, "listed twice: the first usable one is taken"))
            continue
        checked = _check(capture.folder, number, photo, with_depth)
        if isinstance(checked, str):
            skipped.append(Skipped(photo.name, checked))
        else:
            seen.add(photo.color)
            kept.append(checked)
    kept, other, size = _one_shape(kept)
    _require_two(capture, len(listed) + len(capture.skipped), kept, [*skipped, *other])
    return PhotoTable(folder=capture.folder, photos=tuple(kept), size=size), tuple(sorted([*skipped, *other]))


def inside(folder: Path, name: str) -> str | None:
    """A file name relative to `folder`, or None where it leads out of it; links are not followed to tell.

    Args:
        folder: of the capture.
        name: as the source has it: relative to `folder`, or absolute.
    """
    base = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(base, name))
    if not name or path == base or os.path.commonpath([base, path]) != base:
        return None
    return os.path.relpath(path, base)


def shown(name: object) -> str:
    """A name from a file as it may be printed: 120 characters at most, without control characters."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else "?" for c in text[:120]) or "(no name)"


def _check(folder: Path, number: int, photo: Photo, with_depth: bool) -> Usable | str:
    """The photograph, or why it cannot be used."""
    if photo.color is None:
        return "its name leads out of the folder"
    if isinstance(photo.pose, str):
        return photo.pose
    pose = rigid(photo.pose)
    if isinstance(pose, str):
        return pose
    if np.abs(pose).max() > _FARTHEST:
        return f"pose: more than {_FARTHEST:g} units from the origin"
    if isinstance(photo.lens, str):
        return photo.lens
    if photo.depth == "" and with_depth:
        return "no depth map, though others have one; --data.depth none takes all photographs, without depth"
    try:
        size = _color_size(folder / photo.color)
    except UnreadableImage as error:
        return f"photograph: {error}"
    lens = _fitted(photo.lens, size)
    if isinstance(lens, str):
        return lens
    depth = _check_depth(folder, photo.depth, size) if with_depth else None
    if depth is not None:
        return depth
    scaled = lens.size != photo.lens.size
    return Usable(photo.name, number, photo.color, (photo.depth or "") * with_depth, pose, lens, photo.split, scaled)


def _color_size(path: Path) -> Size:
    if path.suffix == ".npy":
        raise UnreadableImage("an array, where an image was expected")
    return probe(path)


def _check_depth(folder: Path, depth: str | None, size: Size) -> str | None:
    if depth is None:
        return "depth: its name leads out of the folder"
    try:
        found = probe(folder / depth)
    except UnreadableImage as error:
        return f"depth: {error}"
    if not _same_shape(found, size):
        return f"depth is {by(found)}, which is no resized {by(size)}"
    return None


def _fitted(lens: Lens, size: Size) -> Lens | str:
    """The lens at the size of the file, or why it is not this file's."""
    if not _same_shape(size, lens.size):
        return f"photograph is {by(size)}, which is no resized {by(lens.size)} as its camera says"
    fitted = lens if lens.size == size else lens.resize(size)
    if fitted.pinhole() is None:
        return "camera: lens distortion that no pinhole image is free of (a wrong coefficient?)"
    return fitted


def _same_shape(size: Size, of: Size) -> bool:
    """Whether one is the other resized, give or take a rounded pixel."""
    return min(abs(size[0] - of[0] * size[1] / of[1]), abs(size[1] - of[1] * size[0] / of[0])) <= 1


def _one_shape(photos: list[Usable]) -> tuple[list[Usable], list[Skipped], Size]:
    """The photographs of the commonest size and others of its proportions, the rest, and that size."""
    if not photos:
        return [], [], (1, 1)
    ((size, _),) = Counter(photo.lens.size for photo in photos).most_common(1)
    kept = [photo for photo in photos if _same_shape(photo.lens.size, size)]
    other = [photo for photo in photos if not _same_shape(photo.lens.size, size)]
    reason = f"photograph is {{}}, most are {by(size)}: one scene has one shape of images"
    return kept, [Skipped(p.name, reason.format(by(p.lens.size))) for p in other], size


def _numbered(photos: Sequence[Photo]) -> list[tuple[int, Photo]]:
    """Raw numbers, ascending: those of the file names where every one has its own, else ranks by name."""
    found: list[tuple[int, Photo]] = []
    for split in dict.fromkeys(photo.split for photo in photos):
        part = [photo for photo in photos if photo.split == split]
        numbers = [_file_number(photo.name) for photo in part]
        if None in numbers or len(set(numbers)) < len({photo.name for photo in part}):
            rank = {name: i for i, name in enumerate(sorted({photo.name for photo in part}, key=natural))}
            numbers = [rank[photo.name] for photo in part]
        found += [(number or 0, photo) for number, photo in zip(numbers, part)]
    return sorted(found, key=lambda item: item[0])


def _file_number(name: str) -> int | None:
    numbers = _NUMBER.findall(Path(name).stem)
    if not numbers or len(numbers[-1]) > 16 or int(numbers[-1]) > _LARGEST_NUMBER:
        return None
    return int(numbers[-1])


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key: numbers inside a name by value."""
    return [(len(part.lstrip("0")), part.lstrip("0")) if part[:1].isdigit() else (0, part) for part in _parts(name)]


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def _require_two(capture: Capture, total: int, kept: list[Usable], skipped: list[Skipped]) -> None:
    if len(kept) >= 2:
        return
    why, advice = reasons(skipped), ""
    if any("the file is missing" in photo.reason for photo in skipped):
        advice = "; --data.images FOLDER names the folder that the photographs are in"
    raise BadData(
        f"{capture.folder}: at least 2 usable photographs expected, got {len(kept)} of {total}"
        + (f"; left out: {why}" if why else "")
        + advice
    )


def by(size: Size) -> str:
    """WIDTHxHEIGHT."""
    return f"{size[0]}x{size[1]}"
