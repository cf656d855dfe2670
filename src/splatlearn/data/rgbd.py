"""Posed RGB-D recordings: 7-Scenes, ScanNet export and TUM folders.

Legend: V kept frames, H W pixels. Metres. On disk poses are camera-to-world with OpenCV axes; the scene turns them
round, moves intrinsics to half-integer pixel centres, and rotates the world to +z up where the source is not.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.folders import GLANCE
from splatlearn.data.frame_filter import usable_frames
from splatlearn.data.imagery import (
    UnreadableImage,
    gather_depth,
    read_color,
    read_depth,
    resample_indices,
)
from splatlearn.data.orientation import find_world, glance, parse_up
from splatlearn.data.recordings import (
    LAYOUTS,
    Listing,
    check_intrinsics,
    find_recordings,
)
from splatlearn.data.scene import Reader, Rejected, Scene, Skipped, reasons
from splatlearn.errors import BadData, UserError
from splatlearn.registry import readers
from splatlearn.structures import Cameras, Frames

T = TypeVar("T")
Size = tuple[int, int]
log = logging.getLogger("splatlearn")


@dataclass(frozen=True, kw_only=True)
class RgbdConfig:
    """How to read posed RGB-D recordings.

    Args:
        up: `auto` (ScanNet and TUM are z-up, 7-Scenes is estimated), `estimate` (from the cameras and the floor),
            `known` (the source is z-up), `unknown`, or the vector `x,y,z` that points up in the source's world.
        layout: `auto`, or the one to look for.
        intrinsics: fx, fy, cx, cy in pixels of the native colour image, instead of what is on disk.
        pixel_center: whether the intrinsics count the first pixel's centre as 0.5 (`half`) or 0 (`integer`);
            `auto` is the layout's own rule.
        depth_scale: metres per unit of an integer depth image; None is the layout's own (0.001; TUM 0.0002).
        max_depth: metres; farther measurements count as none. None keeps all.
        stride: keep every n-th frame.
        max_frames: keep at most the first n of those; None keeps all.
    """

    up: str | tuple[float, float, float] = "auto"
    layout: Literal["auto", "7scenes", "scannet", "tum"] = "auto"
    intrinsics: tuple[float, float, float, float] | None = None
    pixel_center: Literal["auto", "half", "integer"] = "auto"
    depth_scale: float | None = None
    max_depth: float | None = None
    stride: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        parse_up(self.up)
        if self.stride < 1 or (self.max_frames is not None and self.max_frames < 2):
            raise ValueError(f"stride >= 1 and max_frames >= 2 expected, got {self.stride} and {self.max_frames}")
        for name in ("depth_scale", "max_depth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}: above zero, or none, expected, got {value}")


class RgbdScene(Scene):
    """One recording. Frames that cannot be used are in `skipped`; what only decoding shows raises `Rejected`.

    Attributes:
        world_from_source: (4 4) float64, from the recording's world to this scene's (+z up where known).

    Args:
        folder: the recording.
        name: its name in the data set.
        listing: its files.
        config: reading options.

    Raises:
        BadData: fewer than two usable frames, or images that the intrinsics do not belong to.
    """

    def __init__(self, folder: Path, name: str, listing: Listing, config: RgbdConfig) -> None:
        self.name, self.folder, self.split = name, folder, listing.split
        entries = listing.entries[:: config.stride][: config.max_frames]
        self._depth_scale = listing.depth_scale if config.depth_scale is None else config.depth_scale
        self._table, self.skipped = usable_frames(folder, entries, listing, self._depth_scale)
        if self.skipped:
            log.warning(
                "%s: %d of %d frames are left out: %s", name, len(self.skipped), len(entries), reasons(self.skipped)
            )
        self._size, self._depth_size = self._table.color_size, self._table.depth_size
        self._max_depth = config.max_depth or np.inf
        for text in listing.notes:
            self.note(text, logging.WARNING)
        self._set_intrinsics(listing, config)
        self._set_world(listing, config)

    @cached_property
    def cameras(self) -> Cameras:
        """All V cameras at the native colour size."""
        poses = self.world_from_source @ self._table.poses
        intrinsics = np.broadcast_to(self._intrinsics, (len(poses), 3, 3))
        return Cameras(
            world_to_camera=_float32(np.linalg.inv(poses)),
            intrinsics=_float32(intrinsics),
            width=self._size[0],
            height=self._size[1],
            attributes={"frame": torch.from_numpy(self._table.frame.copy())},
        )

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """Colour by area averaging, depth by the nearest pixel of the depth camera; one item.

        Raises:
            Rejected: a file cannot be decoded, or a depth image is empty.
        """
        index = torch.as_tensor(list(views), dtype=torch.int64)
        images = [self._read(v, "color", lambda path: read_color(path, size)) for v in views]
        depths = [self.depth(v, size) for v in views]
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Frames(
            images=stacked.to(torch.float32, memory_format=torch.contiguous_format) / 255,
            cameras=self.cameras.rows(index).resize(*size),
            attributes={"depth": torch.from_numpy(np.stack(depths))},
        )

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """Photographs (3 H W) at their native size."""
        arrays = [self._read(v, "color", read_color) for v in views]
        return [torch.from_numpy(a.copy()).permute(2, 0, 1).float() / 255 for a in arrays]

    def depth(self, view: int, size: tuple[int, int]) -> np.ndarray:
        """(H W) float32 metres on the colour camera's pixels at `size`; 0 where there is none.

        Raises:
            Rejected: the file cannot be decoded, or holds no depth.
        """
        native = self._read(view, "depth", lambda path: read_depth(path, self._depth_scale))
        if not native.any():
            raise Rejected("no pixel has depth", f"{self.name}: {self._table.file('depth', view).name}")
        scale = np.array([size[0] / self._size[0], size[1] / self._size[1], 1])
        target = self._intrinsics * scale[:, None]
        rows, columns = resample_indices(self._depth_intrinsics, target, self._depth_size, size)
        depth = gather_depth(native, rows, columns)
        return np.where(depth <= self._max_depth, depth, np.float32(0))

    def _read(self, view: int, kind: Literal["color", "depth"], read: Callable[[Path], T]) -> T:
        path = self._table.file(kind, view)
        try:
            return read(path)
        except UnreadableImage as error:
            raise Rejected("an image cannot be read", f"{self.name}: {path.name}: {error}") from error

    def _set_intrinsics(self, listing: Listing, config: RgbdConfig) -> None:
        rule = listing.pixel_center if config.pixel_center == "auto" else config.pixel_center
        shift = np.zeros((3, 3))
        shift[:2, 2] = 0.5 if rule == "integer" else 0.0
        self._intrinsics = listing.color_intrinsics + shift
        if listing.depth_intrinsics is not None:
            self._depth_intrinsics = listing.depth_intrinsics + shift
        else:
            ratio = np.array([self._depth_size[0] / self._size[0], self._depth_size[1] / self._size[1], 1])
            self._depth_intrinsics = self._intrinsics * ratio[:, None]

    def _set_world(self, listing: Listing, config: RgbdConfig) -> None:
        poses = self._table.poses
        intrinsics = np.broadcast_to(self._intrinsics, (len(poses), 3, 3))
        wish = ("known" if listing.z_up else "estimate") if config.up == "auto" else parse_up(config.up)
        world = find_world(wish, poses, lambda: glance(poses, intrinsics, self._size, self.depth))
        self.world_from_source, self.up = world.from_source, world.up
        if world.note:
            self.note(world.note, logging.WARNING if self.up == "unknown" else logging.INFO)


@readers.register("rgbd", RgbdConfig, presets={"default": {}, "tiny": {"max_frames": 30}})
class RgbdReader(Reader):
    """Posed RGB-D folders: 7-Scenes, ScanNet export, TUM; one recording or a folder of them.

    Args:
        config: reading options.
        path: the folder.
    """

    def __init__(self, config: RgbdConfig, path: Path) -> None:
        self.config, self.path = config, path

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """A recording of a known layout lies at the path or up to three folders below it."""
        return bool(find_recordings(path, breadth=GLANCE))

    def scenes(self) -> list[Scene]:
        """Every usable recording, sorted by name; those that are not are named in `skipped` and in the log."""
        found = find_recordings(self.path, self.config.layout)
        if not found:
            raise BadData(f"{self.path}: no recording found; looked for " + " | ".join(self._expected()))
        scenes, failures = [], []
        matrix = _given_intrinsics(self.config)
        for folder, layout in found:
            name = folder.relative_to(self.path).as_posix() if folder != self.path else folder.resolve().name
            try:
                scenes.append(RgbdScene(folder, name, layout.listing(folder, matrix), self.config))
            except UserError as error:
                failures.append(Skipped(name, str(error)))
                log.warning("recording %s is left out: %s", name, error)
        self.skipped = tuple(failures)
        if not scenes:
            more = f" (and {len(failures) - 1} more recordings)" if len(failures) > 1 else ""
            raise BadData(failures[0].reason + more)
        return scenes

    def _expected(self) -> list[str]:
        chosen = self.config.layout
        return [layout.expects for name, layout in LAYOUTS.items() if chosen in ("auto", name)]


def _given_intrinsics(config: RgbdConfig) -> np.ndarray | None:
    if config.intrinsics is None:
        return None
    fx, fy, cx, cy = config.intrinsics
    return check_intrinsics(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), "--data.intrinsics")


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
