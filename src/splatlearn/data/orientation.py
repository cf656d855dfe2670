"""Which way is up, and where the floor is, for recordings whose world is not z-up.

Legend: K frames, H W pixels. Metres; "source" is the recording's own world. Plain numpy in float64.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from splatlearn.data.scene import Certainty, Rejected

FACING = 35.0
"""Degrees around the cameras' mean up axis in which normals may vote; hand-held cameras pitch about that much."""
_SHRINKING = (FACING, 20.0, 12.0, 8.0)
_BIN = 0.04
_LEVEL = 0.25
"""A level surface counts when its histogram bin holds this share of the fullest bin."""
_MIN_VOTES = 200
_MAX_CORRECTION = 5.0
_GLANCES = 16
_GLANCE_SIZE = (80, 60)


class Orientation(NamedTuple):
    """A z-up world for a recording.

    Args:
        world_from_source: (4 4) float64 rigid: +z up, floor at z = 0, mean camera at x = y = 0.
        up: (3) unit, up in the source's world.
        text: what was found, for people.
    """

    world_from_source: np.ndarray
    up: np.ndarray
    text: str


class World(NamedTuple):
    """The world that a recording's scene lives in.

    Args:
        from_source: (4 4) float64 rigid, from the recording's own world.
        up: whether its +z is up.
        note: what was found, for people; empty where nothing was looked for.
    """

    from_source: np.ndarray
    up: Certainty
    note: str


def find_world(
    wish: Literal["known", "unknown", "estimate"] | np.ndarray,
    poses: np.ndarray,
    grids: Callable[[], Sequence[np.ndarray]],
) -> World:
    """The world as a reader's option `up` wishes it.

    Args:
        wish: `known` and `unknown` leave the world as it is, `estimate` and (3) up in the source turn it.
        poses: (K 4 4) camera-to-world of all cameras, source, OpenCV axes.
        grids: gives those of `estimate_orientation`; asked where they are needed.
    """
    if not isinstance(wish, np.ndarray) and wish != "estimate":
        return World(np.eye(4), wish, "")
    given = wish if isinstance(wish, np.ndarray) else None
    found = estimate_orientation(poses, grids(), given)
    if found is None:
        text = "up could not be estimated: the cameras share no down axis; give --data.up x,y,z"
        return World(np.eye(4), "unknown", text)
    return World(found.world_from_source, "estimated" if given is None else "known", found.text)


def glance(
    poses: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
    depth_of: Callable[[int, tuple[int, int]], np.ndarray],
) -> list[np.ndarray]:
    """Grids for `estimate_orientation`: small depth maps of some frames, spread over the recording, back-projected.

    Args:
        poses: (K 4 4) camera-to-world, source, OpenCV axes.
        intrinsics: (K 3 3) in pixels at `size`, pixel centres at half integers.
        size: width and height that the intrinsics belong to.
        depth_of: frame and (width, height) to its depth map (H W), 0 where there is none; a frame for which it raises
            `Rejected` is left out.

    Returns:
        (H W 3) float64 each, NaN without depth; in the unit of depths and poses.
    """
    width, height = _GLANCE_SIZE
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    grids = []
    for frame in np.unique(np.linspace(0, len(poses) - 1, min(_GLANCES, len(poses))).round().astype(int)):
        try:
            depth = depth_of(int(frame), _GLANCE_SIZE)
        except Rejected:
            continue
        matrix = intrinsics[frame] * np.array([width / size[0], height / size[1], 1])[:, None]
        rays = np.stack([(x - matrix[0, 2]) / matrix[0, 0], (y - matrix[1, 2]) / matrix[1, 1], np.ones_like(x)], -1)
        z = np.where(depth > 0, depth, np.nan).astype(np.float64)
        grids.append((rays * z[..., None]) @ poses[frame, :3, :3].T + poses[frame, :3, 3])
    return grids


def estimate_orientation(
    poses: np.ndarray, grids: Sequence[np.ndarray], up: np.ndarray | None = None
) -> Orientation | None:
    """Up from the cameras' mean image-down axis, refined by the normals of level surfaces and a plane through
    the lowest large one, the floor.

    The heading is that of the smallest rotation which makes up +z.

    Args:
        poses: (K 4 4) camera-to-world of all cameras, source, OpenCV axes.
        grids: (H W 3) source points of some frames in pixel order, NaN where there is no depth.
        up: (3) up in the source's world, where it is known: only the floor's height is looked for.

    Returns:
        The orientation, or None when the cameras do not agree on a down axis.
    """
    seen = -poses[:, :3, 1].mean(0)
    if up is None and np.linalg.norm(seen) < 0.3:
        return None
    axis = _unit(seen if up is None else np.asarray(up, dtype=np.float64))
    points, normals = _surface(grids, poses[:, :3, 3].mean(0))
    how = "the given vector" if up is not None else "the cameras' mean down axis alone (no level surface seen)"
    if up is None and len(points):
        refined = _level_axis(normals, axis)
        if refined is not None:
            axis, how = refined, "level surfaces"
    level = points[normals @ axis > np.cos(np.radians(15))] if len(points) else points
    floor = _floor_height(level @ axis) if len(level) >= _MIN_VOTES else None
    if floor is not None and up is None:
        axis, moved = _fit_plane(level, axis, floor)
        how += ", refined on the floor" if moved else ""
        floor = _floor_height(level @ axis)
    return _describe(poses, axis, floor, how)


def rotation_to_z(up: np.ndarray) -> np.ndarray:
    """(3 3) the smallest rotation that takes the unit vector `up` to +z."""
    x, y, z = up
    if z < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + z)


def parse_up(up: str | Sequence[float]) -> Any:
    """A keyword (`auto`, `estimate`, `known` or `unknown`), or the unit vector, (3) float64.

    Raises:
        ValueError: neither.
    """
    words = ("auto", "estimate", "known", "unknown")
    if up in words:
        return str(up)
    try:
        parts = up.strip("[]()").split(",") if isinstance(up, str) else up
        vector = np.array([float(part) for part in parts])
    except ValueError:
        vector = np.zeros(0)
    if vector.shape != (3,) or not np.isfinite(vector).all() or not vector.any():
        raise ValueError(f"up: {', '.join(words)} or a vector x,y,z expected, got {up!r}")
    return vector / np.linalg.norm(vector)


def _describe(poses: np.ndarray, axis: np.ndarray, floor: float | None, how: str) -> Orientation:
    centre = poses[:, :3, 3].mean(0)
    rotation = rotation_to_z(axis)
    shift = rotation @ centre
    if floor is None:
        height = f"no floor found, z = 0 at the mean camera; up from {how}"
    else:
        height = f"floor {shift[2] - floor:.2f} m below the mean camera; up from {how}"
        shift[2] = floor
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation, -shift
    return Orientation(world, axis, f"up is ({axis[0]:.3f}, {axis[1]:.3f}, {axis[2]:.3f}) in the source; {height}")


def _surface(grids: Sequence[np.ndarray], toward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M 3) points and (M 3) unit normals that face the cameras; pixels at depth edges are left out."""
    points, normals = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for grid in grids:
        right, below = grid[1:-1, 2:] - grid[1:-1, :-2], grid[2:, 1:-1] - grid[:-2, 1:-1]
        middle, normal = grid[1:-1, 1:-1], np.cross(right, below)
        to_camera = toward - middle
        reach = 0.1 * np.linalg.norm(to_camera, axis=-1)
        with np.errstate(invalid="ignore"):
            smooth = (np.linalg.norm(right, axis=-1) < reach) & (np.linalg.norm(below, axis=-1) < reach)
        length = np.linalg.norm(normal, axis=-1)
        keep = smooth & np.isfinite(length) & (length > 0)
        unit = normal[keep] / length[keep][:, None]
        facing = np.sign((unit * to_camera[keep]).sum(-1))
        points.append(middle[keep])
        normals.append(unit * facing[:, None])
    return np.concatenate(points), np.concatenate(normals)


def _level_axis(normals: np.ndarray, axis: np.ndarray) -> np.ndarray | None:
    """Mean shift over the normals near `axis`, in a shrinking cone; None with too few votes."""
    for degrees in _SHRINKING:
        for _ in range(3):
            near = normals[normals @ axis > np.cos(np.radians(degrees))]
            if len(near) < _MIN_VOTES:
                return None
            axis = _unit(near.mean(0))
    return axis


def _floor_height(heights: np.ndarray) -> float | None:
    """Height of the lowest large level surface: the lowest peak of a histogram."""
    start = heights.min()
    bins = np.bincount(((heights - start) / _BIN).astype(np.int64))
    peak = int(np.argmax(bins >= _LEVEL * bins.max()))
    while peak + 1 < len(bins) and bins[peak + 1] > bins[peak]:
        peak += 1
    near = heights[np.abs(heights - (start + (peak + 0.5) * _BIN)) < _BIN]
    return float(np.median(near)) if len(near) else None


def _fit_plane(points: np.ndarray, axis: np.ndarray, height: float) -> tuple[np.ndarray, bool]:
    """The normal of the plane through the points near `height`, and whether it was taken.

    A plane that tilts by more than 5 degrees is no refinement (a ramp, too few points): `axis` is kept.
    """
    near = points[np.abs(points @ axis - height) < _BIN]
    if len(near) < _MIN_VOTES:
        return axis, False
    _, values, vectors = np.linalg.svd(near - near.mean(0), full_matrices=False)
    normal = vectors[2] * np.sign(vectors[2] @ axis)
    # A thin strip of floor leaves the tilt across it undetermined.
    thin = values[1] < 5 * values[2]
    return (axis, False) if thin or normal @ axis < np.cos(np.radians(_MAX_CORRECTION)) else (normal, True)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
