"""Which frames of a recording can be used, and why the others cannot: cheap checks, nothing is decoded.

Legend: a size is (width, height), pixels.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from splatlearn.data.imagery import UnreadableImage, probe, read_depth
from splatlearn.data.recordings import Entry, Listing, read_matrix
from splatlearn.data.scene import Skipped, reasons
from splatlearn.errors import BadData

Size = tuple[int, int]
RIGID_TOLERANCE = 0.01
"""Largest entry of R R^T - I (our default; the 7-Scenes poses, printed after a float32 tracker, reach 0.0005)."""
NO_DEPTH = "no depth image"
_SUSPICIOUS = 100
"""A depth PNG that is packed better than this is decoded at opening: an all-zero image packs about 900 to 1."""


class FrameFiles(NamedTuple):
    """A frame that passed the checks at opening; its files are relative to the recording."""

    name: str
    frame: int
    color: str
    depth: str
    pose: np.ndarray
    color_size: Size
    depth_size: Size


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameTable:
    """The V usable frames of a recording, in columns: a data set of millions of frames stays in memory as scenes.

    Args:
        folder: the recording.
        color: (V) names of files, relative to it.
        depth: (V) names of files, relative to it.
        frame: (V) int64 raw index.
        poses: (V 4 4) float64 camera-to-world, source.
        color_size: of every colour image.
        depth_size: of every depth image.
    """

    folder: Path
    color: np.ndarray
    depth: np.ndarray
    frame: np.ndarray
    poses: np.ndarray
    color_size: Size
    depth_size: Size

    def __len__(self) -> int:
        return len(self.frame)

    def file(self, kind: Literal["color", "depth"], view: int) -> Path:
        """The path of an image."""
        return self.folder / os.fsdecode(getattr(self, kind)[view])


def usable_frames(
    folder: Path, entries: Sequence[Entry], listing: Listing, scale: float
) -> tuple[FrameTable, tuple[Skipped, ...]]:
    """Checks poses, file ends, headers and sizes; about 0.3 ms a frame, since nothing is decoded.

    Args:
        folder: the recording.
        entries: the frames to check.
        listing: what the recording says of its cameras.
        scale: metres per depth unit.

    Returns:
        The frames of the commonest sizes, and every other one with its reason, sorted by name.

    Raises:
        BadData: fewer than two are left, or the intrinsics do not belong to these images.
    """
    frames: list[FrameFiles] = []
    skipped: list[Skipped] = []
    for entry in entries:
        checked = _check_entry(folder, entry, scale)
        if isinstance(checked, FrameFiles):
            frames.append(checked)
        else:
            skipped.append(Skipped(entry.name, checked))
    if frames:
        frames, other = _one_size(frames)
        skipped = sorted([*skipped, *other])
        _check_sizes(folder, frames[0], listing)
    _require_two(folder, len(entries), frames, skipped)
    return _table(folder, frames), tuple(skipped)


def rigid(matrix: np.ndarray) -> np.ndarray | str:
    """(4 4) float64 with its rotation made exact, or why the matrix is no rigid motion."""
    if matrix.shape != (4, 4):
        return f"pose: 4x4 numbers expected, got shape {matrix.shape}"
    if not np.isfinite(matrix).all():
        return "pose: not finite"
    rotation = matrix[:3, :3]
    with np.errstate(all="ignore"):
        error = np.nan_to_num(np.abs(rotation @ rotation.T - np.eye(3)), nan=np.inf).max()
    if error > RIGID_TOLERANCE or np.linalg.det(rotation) < 0 or np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        return "pose: not a rigid motion"
    left, _, right = np.linalg.svd(rotation)
    exact = np.eye(4)
    exact[:3, :3], exact[:3, 3] = left @ right, matrix[:3, 3]
    return exact


def _table(folder: Path, frames: list[FrameFiles]) -> FrameTable:
    """Names are kept as bytes, an eighth of what strings take."""
    return FrameTable(
        folder=folder,
        color=np.array([os.fsencode(f.color) for f in frames]),
        depth=np.array([os.fsencode(f.depth) for f in frames]),
        frame=np.array([f.frame for f in frames], dtype=np.int64),
        poses=np.stack([f.pose for f in frames]),
        color_size=frames[0].color_size,
        depth_size=frames[0].depth_size,
    )


def _check_entry(folder: Path, entry: Entry, scale: float) -> FrameFiles | str:
    """The frame, or why it cannot be used."""
    if entry.depth is None:
        return NO_DEPTH
    pose = _check_pose(folder, entry.pose)
    if isinstance(pose, str):
        return pose
    sizes = []
    for kind, file in (("colour", entry.color), ("depth", entry.depth)):
        try:
            sizes.append(probe(folder / file))
        except UnreadableImage as error:
            return f"{kind}: {error}"
    if _is_empty(folder / entry.depth, sizes[1], scale):
        return "depth: no pixel has depth"
    return FrameFiles(entry.name, entry.frame, entry.color, entry.depth, pose, *sizes)


def _check_pose(folder: Path, pose: str | np.ndarray | None) -> np.ndarray | str:
    """(4 4) camera-to-world with its rotation made exact, or why it is none."""
    if pose is None:
        return "no pose"
    try:
        matrix = read_matrix(folder / pose) if isinstance(pose, str) else pose
    except (ValueError, OSError) as error:
        return f"pose: 4x4 numbers expected ({error})"
    return rigid(matrix)


def _is_empty(path: Path, size: Size, scale: float) -> bool:
    if path.stat().st_size * _SUSPICIOUS > 2 * size[0] * size[1]:
        return False
    try:
        return not read_depth(path, scale).any()
    except UnreadableImage:
        return False


def _one_size(frames: list[FrameFiles]) -> tuple[list[FrameFiles], list[Skipped]]:
    """The frames of the commonest pair of sizes, and the others."""
    (color, depth), _ = Counter((f.color_size, f.depth_size) for f in frames).most_common(1)[0]
    kept, skipped = [], []
    for frame in frames:
        if frame.color_size != color:
            reason = f"colour is {_by(frame.color_size)}, the recording's is {_by(color)}"
        elif frame.depth_size != depth:
            reason = f"depth is {_by(frame.depth_size)}, the recording's is {_by(depth)}"
        else:
            kept.append(frame)
            continue
        skipped.append(Skipped(frame.name, reason))
    return kept, skipped


def _check_sizes(folder: Path, frame: FrameFiles, listing: Listing) -> None:
    color, depth, assumed = frame.color_size, frame.depth_size, listing.assumed_size
    if color != depth and listing.depth_intrinsics is None:
        raise BadData(
            f"{folder / frame.depth}: depth is {_by(depth)} and colour {_by(color)}, but one set of intrinsics is for "
            "both; equal sizes expected, or intrinsic_depth.txt in the ScanNet layout"
        )
    if assumed not in (None, color):
        raise BadData(
            f"{folder}: no intrinsics on disk; the data set's nominal ones are for {_by(assumed)}, but colour is "
            f"{_by(color)}; add camera-intrinsics.txt (3x3) or give --data.intrinsics fx,fy,cx,cy"
        )


def _require_two(folder: Path, total: int, frames: list[FrameFiles], skipped: list[Skipped]) -> None:
    if len(frames) >= 2:
        return
    why, advice = reasons(skipped), ""
    if any(frame.reason == "no pose" for frame in skipped):
        advice = "; every image needs its 4x4 camera-to-world pose in metres beside it"
    if skipped and all(frame.reason == NO_DEPTH for frame in skipped) and not frames:
        advice = "; `--data.reader images` reads them as photographs without cameras"
    raise BadData(
        f"{folder}: at least 2 usable frames expected, got {len(frames)} of {total}"
        + (f"; left out: {why}" if why else "")
        + advice
    )


def _by(size: Size | None) -> str:
    return "none" if size is None else f"{size[0]}x{size[1]}"
