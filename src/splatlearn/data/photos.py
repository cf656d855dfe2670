"""Posed photographs, with or without depth maps: transforms.json (nerfstudio, instant-ngp) and COLMAP's sparse models.

Legend: V usable photographs, H W pixels, N points. Poses become world-to-camera with OpenCV axes, and every photograph
that of an ideal pinhole: lens distortion is removed here, and no pixel is without a photograph behind it. The unit of
length is the source's, and nobody knows it unless `scale` says so.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from splatlearn.data import colmap, transforms_json
from splatlearn.data.captures import Capture, CloudFile, Usable, by, usable_photos
from splatlearn.data.folders import GLANCE, walk
from splatlearn.data.imagery import UnreadableImage, gather_depth, read_color, read_depth, resample_indices
from splatlearn.data.lenses import reading_size, undistort, undistort_depth
from splatlearn.data.orientation import find_world, glance, parse_up
from splatlearn.data.scene import Reader, Rejected, Scene, Skipped, reasons
from splatlearn.errors import BadData, MissingData, UserError
from splatlearn.ply import PlyFile, columns_of
from splatlearn.registry import readers
from splatlearn.structures import Cameras, Frames, Points

T = TypeVar("T")
Size = tuple[int, int]
log = logging.getLogger("splatlearn")


@dataclass(frozen=True, kw_only=True)
class PhotosConfig:
    """How to read posed photographs.

    Args:
        up: `auto` and `estimate` (from the cameras, and the floor where there is depth), `known` (the source is z-up),
            `unknown`, or the vector `x,y,z` that points up in the source's world.
        layout: `auto` (transforms.json before COLMAP), or the one to look for.
        images: folder of the photographs, relative to the capture, instead of what the source says (`images_4`).
        model: folder of COLMAP's sparse model, relative to the capture, instead of the first that is found.
        depth: whether depth maps are read where the source names some; `none` takes photographs without one too.
        depth_scale: the source's units of length a unit of an integer depth map; None is the source's own, else 0.001.
        max_depth: units of length, after `scale`; farther measurements count as none. None keeps all.
        scale: metres a unit of the source's length; None leaves the unit as it is, and unknown.
        stride: keep every n-th photograph.
        max_frames: keep at most the first n of those; None keeps all.
    """

    up: str | tuple[float, float, float] = "auto"
    layout: Literal["auto", "transforms", "colmap"] = "auto"
    images: str = ""
    model: str = ""
    depth: Literal["auto", "none"] = "auto"
    depth_scale: float | None = None
    max_depth: float | None = None
    scale: float | None = None
    stride: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        parse_up(self.up)
        if self.stride < 1 or (self.max_frames is not None and self.max_frames < 2):
            raise ValueError(f"stride >= 1 and max_frames >= 2 expected, got {self.stride} and {self.max_frames}")
        for name in ("depth_scale", "max_depth", "scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}: above zero, or none, expected, got {value}")


class PhotoScene(Scene):
    """One capture, or what one split of it names. What only decoding shows raises `Rejected`.

    Attributes:
        world_from_source: (4 4) float64, from the source's world and unit to this scene's (+z up where known).

    Args:
        capture: what the source says.
        name: its name in the data set.
        config: reading options.

    Raises:
        BadData: fewer than two usable photographs.
    """

    def __init__(self, capture: Capture, name: str, config: PhotosConfig) -> None:
        self.name, self._cloud = name, capture.cloud
        self._table, self.skipped = usable_photos(
            capture, stride=config.stride, most=config.max_frames, depth=config.depth == "auto"
        )
        if self.skipped:
            log.warning("%s: %d photographs are left out: %s", name, len(self.skipped), reasons(self.skipped))
        self.metric = "unknown" if config.scale is None else "known"
        unit = config.scale or 1.0
        self._unit, self._depth_scale = unit, config.depth_scale or capture.depth_scale
        self._max_depth = config.max_depth or np.inf
        for text in capture.notes:
            self.note(text, logging.WARNING)
        for text in self._remarks(config):
            self.note(text)
        self._intrinsics = self._table.intrinsics()
        self._set_world(config, np.diag([unit, unit, unit, 1.0]))

    def parts(self) -> list["PhotoScene"]:
        """Itself, or a scene for each split that the source names; they share one world, and one cloud."""
        splits = sorted({photo.split for photo in self._table.photos})
        return [self._part(split, first=split == splits[0], alone=len(splits) == 1) for split in splits]

    @cached_property
    def cameras(self) -> Cameras:
        """All V ideal pinholes at the size of most photographs."""
        poses = self.world_from_source @ np.stack([photo.pose for photo in self._table.photos])
        poses[:, :3, :3] /= np.cbrt(np.linalg.det(self.world_from_source[:3, :3]))
        return Cameras(
            world_to_camera=_float32(np.linalg.inv(poses)),
            intrinsics=_float32(self._intrinsics),
            width=self._table.size[0],
            height=self._table.size[1],
            attributes={"frame": torch.tensor([photo.frame for photo in self._table.photos])},
        )

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """Colour without lens distortion, by area averaging and bilinear sampling; depth by the nearest pixel.

        Raises:
            Rejected: a file cannot be decoded, or a depth map is empty.
        """
        index = torch.as_tensor(list(views), dtype=torch.int64)
        images = [self._color(self._table.photos[view], size) for view in views]
        attributes = {}
        if self._table.has_depth:
            attributes["depth"] = torch.from_numpy(np.stack([self.depth(view, size) for view in views]))
        return Frames(images=torch.stack(images), cameras=self.cameras.rows(index).resize(*size), attributes=attributes)

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """Photographs (3 H W) at the cameras' native size, as the ideal pinholes see them."""
        return [self._color(self._table.photos[view], self._table.size) for view in views]

    def depth(self, view: int, size: tuple[int, int]) -> np.ndarray:
        """(H W) float32 along z on the ideal pinhole's pixels at `size`, in units of length; 0 where there is none.

        Raises:
            Rejected: the file cannot be decoded, or holds no depth.
        """
        photo = self._table.photos[view]
        native = self._read(photo.depth, lambda path: read_depth(path, self._depth_scale))
        if not native.any():
            raise Rejected("no pixel has depth", f"{self.name}: {photo.depth}")
        native = native * np.float32(self._unit)
        if photo.lens.bends:
            depth = undistort_depth(native, photo.lens, size)
        else:
            whole = (native.shape[1], native.shape[0])
            rows, columns = resample_indices(np.diag([*whole, 1.0]), np.diag([*size, 1.0]), whole, size)
            depth = gather_depth(native, rows, columns)
        return np.where(depth <= self._max_depth, depth, np.float32(0))

    def points(self) -> Points:
        """The sparse cloud: `color`, and of COLMAP's `error` and `track`.

        Raises:
            MissingData: the source has none, or an empty one.
            BadData: a damaged file, or coordinates that are not finite.
        """
        if self._cloud is None:
            raise MissingData(f"{self.name} has no point cloud: no points3D file, and no ply_file_path")
        xyz, attributes = _read_cloud(self._cloud)
        if not len(xyz):
            raise MissingData(f"{self.name} has no point cloud: {self._cloud.path} holds no points")
        transform = self.world_from_source @ self._cloud.source_from_file
        with np.errstate(all="ignore"):
            moved = (xyz @ transform[:3, :3].T + transform[:3, 3]).astype(np.float32)
        if wrong := int((~np.isfinite(moved).all(1)).sum()):
            raise BadData(f"{self._cloud.path}: {wrong} of {len(moved)} points are not finite; remove them")
        return Points(xyz=torch.from_numpy(moved), attributes=attributes)

    def _color(self, photo: Usable, size: Size) -> Tensor:
        if photo.lens.bends:
            image = self._read(photo.color, lambda path: read_color(path, reading_size(photo.lens, size)))
            return undistort(image, photo.lens, size)
        image = self._read(photo.color, lambda path: read_color(path, size))
        return torch.tensor(image).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format) / 255

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        try:
            return read(self._table.folder / name)
        except UnreadableImage as error:
            raise Rejected("an image cannot be read", f"{self.name}: {name}: {error}") from error

    def _part(self, split: str, *, first: bool, alone: bool) -> "PhotoScene":
        part = copy.copy(self)
        vars(part).pop("cameras", None)
        chosen = [i for i, photo in enumerate(self._table.photos) if photo.split == split]
        part._table = replace(self._table, photos=tuple(self._table.photos[i] for i in chosen))
        part._intrinsics, part.split = self._intrinsics[chosen], split
        part.name = self.name if alone else f"{self.name}/{split}"
        part.skipped = self.skipped if first else ()
        return part

    def _remarks(self, config: PhotosConfig) -> list[str]:
        """What is done to the photographs, for people."""
        remarks, photos = [], self._table.photos
        bent = Counter(photo.lens.model for photo in photos if photo.lens.bends)
        for model, count in bent.items():
            factors = [_factor(photo) for photo in photos if photo.lens.model == model and photo.lens.bends]
            remarks.append(
                f"{count} photographs of a lens {model}: distortion is removed, the pinhole's focal length is "
                f"{min(factors):.3f} to {max(factors):.3f} of the lens', so that every pixel is a photograph's"
            )
        if scaled := sum(photo.scaled for photo in photos):
            remarks.append(f"{scaled} photographs are not of the size that their cameras say: intrinsics are scaled")
        if other := sum(photo.lens.size != self._table.size for photo in photos):
            remarks.append(f"{other} photographs are resized to {by(self._table.size)}, the size of most")
        if self._table.has_depth and config.depth_scale is None and config.scale is None:
            remarks.append(f"depth maps are taken as {self._depth_scale:g} of a unit of length, as the poses' unit")
        return remarks

    def _set_world(self, config: PhotosConfig, scaled: np.ndarray) -> None:
        poses = np.stack([photo.pose for photo in self._table.photos])
        poses[:, :3, 3] *= scaled[0, 0]
        wish = "estimate" if config.up == "auto" else parse_up(config.up)
        world = find_world(wish, poses, lambda: self._glance(poses))
        self.world_from_source, self.up = world.from_source @ scaled, world.up
        if world.note:
            self.note(world.note, logging.WARNING if self.up == "unknown" else logging.INFO)

    def _glance(self, poses: np.ndarray) -> list[np.ndarray]:
        """Grids for `estimate_orientation`; none without depth."""
        return glance(poses, self._intrinsics, self._table.size, self.depth) if self._table.has_depth else []


@readers.register("photos", PhotosConfig, presets={"default": {}, "tiny": {"max_frames": 30}})
class PhotosReader(Reader):
    """Posed photographs: transforms.json (nerfstudio, instant-ngp) and COLMAP models; one capture or a folder of them.

    Args:
        config: reading options.
        path: the folder, or a transforms.json.
    """

    def __init__(self, config: PhotosConfig, path: Path) -> None:
        self.config, self.path = config, path

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A transforms.json or a sparse model lies at the path or up to three folders below it."""
        return any(True for _ in walk(path, lambda p: bool(_files(p)) or _has_model(p), breadth=GLANCE))

    def scenes(self) -> list[Scene]:
        """Every usable capture, sorted by name, one scene a split; those that are not are named in `skipped`."""
        scenes: list[Scene] = []
        failures = []
        for folder in walk(self.path, self._matches):
            at_root = folder == self.path
            name = _own_name(folder) if at_root else folder.relative_to(self.path).as_posix()
            try:
                scenes += PhotoScene(self._capture(folder), name, self.config).parts()
            except UserError as error:
                failures.append(Skipped(name, str(error)))
                log.warning("capture %s is left out: %s", name, error)
        self.skipped = tuple(failures)
        if not scenes:
            self._refuse(failures)
        return scenes

    def _matches(self, path: Path) -> bool:
        wanted = self.config.layout
        if self.config.model and wanted != "transforms":
            return bool(colmap.encoding(path / self.config.model))
        return (wanted != "colmap" and bool(_files(path))) or (wanted != "transforms" and _has_model(path))

    def _capture(self, path: Path) -> Capture:
        files = [] if self.config.model or self.config.layout == "colmap" else _files(path)
        if files:
            return transforms_json.read_capture(files, self.config.images)
        model = path / self.config.model if self.config.model else colmap.find_model(path)
        assert model is not None
        return colmap.read_capture(path, model, self.config.images)

    def _refuse(self, failures: list[Skipped]) -> None:
        if failures:
            more = f" (and {len(failures) - 1} more captures)" if len(failures) > 1 else ""
            raise BadData(failures[0].reason + more)
        places = ", ".join(colmap.PLACES) if not self.config.model else self.config.model
        raise BadData(
            f"{self.path}: no posed photographs found; looked for transforms.json | transforms_train.json | "
            f"cameras and images (.bin or .txt) in {places}"
        )


def _files(path: Path) -> list[Path]:
    """The .json files of a capture, where the path is or holds some."""
    if path.is_file():
        return [path] if path.suffix == ".json" and path.name.startswith("transforms") else []
    return transforms_json.find_files(path)


def _own_name(path: Path) -> str:
    """Of the capture's folder, also where a file in it was given."""
    return (path.resolve().parent if path.is_file() else path.resolve()).name


def _has_model(path: Path) -> bool:
    return path.is_dir() and colmap.find_model(path) is not None


def _read_cloud(cloud: CloudFile) -> tuple[np.ndarray, dict[str, Tensor]]:
    """(N 3) float64 as in the file, and attributes."""
    if cloud.path.suffix.lower() == ".ply":
        return _read_ply(cloud.path)
    points = colmap.read_points(cloud.path)
    return points.xyz, {
        "color": torch.from_numpy(points.rgb.astype(np.float32) / 255),
        "error": _float32(points.error),
        "track": torch.from_numpy(points.track.copy()),
    }


def _read_ply(path: Path) -> tuple[np.ndarray, dict[str, Tensor]]:
    rows = PlyFile(path).rows("vertex")
    names = set(rows.dtype.names or ())
    if absent := {"x", "y", "z"} - names:
        raise BadData(f"{path}: vertices with x, y and z expected, {', '.join(sorted(absent))} missing")
    attributes = {}
    if {"red", "green", "blue"} <= names:
        colors = columns_of(rows, ("red", "green", "blue"))
        full = 255 if colors.dtype.kind in "iu" else 1
        attributes["color"] = _float32(colors / full).clamp(0, 1)
    return columns_of(rows, ("x", "y", "z")).astype(np.float64), attributes


def _factor(photo: Usable) -> float:
    matrix = photo.lens.pinhole()
    assert matrix is not None
    return float(matrix[0, 0] / photo.lens.focal[0])


def _float32(array: np.ndarray) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
