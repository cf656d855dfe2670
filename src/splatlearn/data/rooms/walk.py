"""A smooth handheld walk through a room.

Legend: V views, D dense samples of the path. Room frame, metres, radians.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from splatlearn.data.procedural.mesh import Array
from splatlearn.data.rooms.classes import CLASSES, STRUCTURE
from splatlearn.data.rooms.floorplan import STEP, Floorplan
from splatlearn.data.rooms.world import World

PACE = 0.038
"""Metres that cost as much as one frame; 30 frames a second at a walk of 1.1 m/s (our default)."""
SWING = np.deg2rad(1.25)
"""Radians of turning that cost as much as one frame: five frames keep about 87 % of the view (our default)."""


@dataclass(frozen=True)
class Track:
    """Camera positions and view directions.

    Args:
        positions: (D 3) room frame.
        yaws: (D) of the viewing direction about +z from +x, unwrapped.
        pitches: (D) above the horizon.
        rolls: (D) about the viewing direction.
    """

    positions: Array
    yaws: Array
    pitches: Array
    rolls: Array

    def at(self, index: Array) -> "Track":
        """Linear interpolation at fractional rows."""
        grid = np.arange(len(self.yaws))
        positions = np.stack([np.interp(index, grid, column) for column in self.positions.T], 1)
        return Track(positions, *(np.interp(index, grid, c) for c in (self.yaws, self.pitches, self.rolls)))

    def poses(self) -> Array:
        """(D 4 4) camera-to-room, OpenCV axes."""
        cp, sp = np.cos(self.pitches), np.sin(self.pitches)
        cy, sy = np.cos(self.yaws), np.sin(self.yaws)
        forward = np.stack([cp * cy, cp * sy, sp], 1)
        side = np.stack([sy, -cy, np.zeros_like(sy)], 1)
        down = np.cross(forward, side)
        c, s = np.cos(self.rolls)[:, None], np.sin(self.rolls)[:, None]
        poses = np.tile(np.eye(4), (len(cy), 1, 1))
        poses[:, :3, 0], poses[:, :3, 1] = c * side + s * down, c * down - s * side
        poses[:, :3, 2], poses[:, :3, 3] = forward, self.positions
        return poses


class Targets(NamedTuple):
    """What may be looked at.

    Args:
        centers: (M 3) room frame.
        weights: (M) how likely each is; rare classes and low things more.
    """

    centers: Array
    weights: Array


def walk(world: World, rng: np.random.Generator, frames: int, fov: float, candidates: int = 6) -> Array:
    """(V 4 4) camera-to-world poses: the best of several random walks.

    A walk is better when it sees more classes and objects, and when no view is filled by something near.

    Args:
        world: the room.
        rng: source of the walks.
        frames: V.
        fov: horizontal field of view, radians.
        candidates: walks to choose from.
    """
    best, best_score = None, -np.inf
    for _ in range(candidates):
        poses = _candidate(world, rng, frames)
        score = _score(world, poses, fov)
        if score > best_score:
            best, best_score = poses, score
    assert best is not None
    return best


def _candidate(world: World, rng: np.random.Generator, frames: int) -> Array:
    centers = (world.boxes.centers - world.shift) @ world.turn
    things = np.array([i for i, label in enumerate(world.boxes.labels) if CLASSES[label] not in STRUCTURE])
    labels = world.boxes.labels[things]
    height = centers[things, 2]
    liking = np.where(height < 1.0, 2.5, np.where(height > 1.9, 0.3, 1.0))
    targets = Targets(centers[things], liking / np.bincount(labels)[labels])
    cost = 0.0
    ground = _wander(world.plan, rng, 2.5)
    for length in (2.5, 5.0, 10.0, 20.0, 40.0):
        if length > 2.5:
            ground = np.concatenate([ground, _wander(world.plan, rng, length, tuple(ground[-1]))[1:]])
        track = _look(world, rng, ground, targets)
        index, cost = _timing(track)
        if cost[-1] >= frames - 1:
            break
    start = rng.uniform(0, max(0.0, cost[-1] - (frames - 1)))
    step = min(1.0, cost[-1] / max(frames - 1, 1))
    poses = track.at(np.interp(start + step * np.arange(frames), cost, index)).poses()
    poses[:, :3] = world.turn @ poses[:, :3]
    poses[:, :3, 3] += world.shift
    return poses


def _timing(track: Track) -> tuple[Array, Array]:
    """Row index and the frames that pass until there, at PACE and SWING."""
    moved = np.linalg.norm(np.diff(track.positions, axis=0), axis=1) / PACE
    turned = np.hypot(np.diff(track.yaws) * np.cos(track.pitches[1:]), np.diff(track.pitches)) / SWING
    cost = np.concatenate([[0.0], np.cumsum(np.hypot(moved, turned))])
    return np.arange(len(cost), dtype=np.float64), cost


def _wander(plan: Floorplan, rng: np.random.Generator, long: float, start: tuple[float, ...] = ()) -> Array:
    """(D 2) a smooth line of about `long` metres over the walkable floor, a point each centimetre or two."""
    free = plan.walkable()
    cells = np.argwhere(free)
    number = np.full(free.shape, -1)
    number[free] = np.arange(len(cells))
    graph = _neighbours(number)
    here = _nearest_cell(cells, start) if start else int(rng.integers(len(cells)))
    line = [(cells[here] + 0.5) * STEP]
    total = 0.0
    for _ in range(12):
        distance, before = dijkstra(graph, indices=here, return_predecessors=True)
        reach = np.flatnonzero(np.isfinite(distance) & (distance > 0.5 * distance[np.isfinite(distance)].max()))
        goal = int(reach[rng.integers(len(reach))])
        route = [goal]
        while route[-1] != here:
            route.append(int(before[route[-1]]))
        line += [(cells[cell] + 0.5) * STEP for cell in reversed(route[:-1])]
        total += float(distance[goal])
        here = goal
        if total >= long:
            break
    return _smooth(np.array(line), plan)


def _nearest_cell(cells: NDArray[np.int64], point: tuple[float, ...]) -> int:
    return int(np.argmin(np.linalg.norm((cells + 0.5) * STEP - np.array(point), axis=1)))


def _neighbours(number: NDArray[np.int64]) -> csr_matrix:
    """Walking distances between adjacent free cells, diagonals included."""
    rows, columns, weights = [], [], []
    for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
        a = number[: number.shape[0] - dx, max(0, -dy) : number.shape[1] - max(0, dy)]
        b = number[dx:, max(0, dy) : number.shape[1] + min(0, dy)]
        both = (a >= 0) & (b >= 0)
        rows.append(a[both])
        columns.append(b[both])
        weights.append(np.full(int(both.sum()), STEP * np.hypot(dx, dy)))
    count = int(number.max()) + 1
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    one_way = csr_matrix(entries, (count, count))
    return one_way + one_way.T


def _smooth(line: Array, plan: Floorplan) -> Array:
    """Rounds the corners as far as 0.29 m of clearance allow."""
    dense = np.stack([np.interp(np.arange(0, len(line) - 0.75, 0.25), np.arange(len(line)), c) for c in line.T], 1)
    clear = plan.distance()
    for sigma in (24.0, 12.0, 6.0, 3.0):
        rounded = ndimage.gaussian_filter1d(dense, sigma, axis=0, mode="nearest")
        if clear[tuple((rounded / STEP).astype(int).T)].min() > 0.29:
            return rounded
    return dense


def _look(world: World, rng: np.random.Generator, ground: Array, targets: Targets) -> Track:
    """Turns the eyes from object to object along the way, with a hand's slow unrest."""
    count = len(ground)
    knots = np.unique(np.linspace(0, count - 1, max(3, round(count / 60))).astype(int))
    height = rng.uniform(1.15, 1.6)
    yaws, pitches = [], []
    yaw = float(rng.uniform(-np.pi, np.pi))
    for knot in knots:
        yaw, pitch = _next_target(world, rng, np.array([*ground[knot], height]), targets, yaw, first=knot == 0)
        yaws.append(yaw)
        pitches.append(pitch)
    row = np.arange(count)
    angles = [ndimage.gaussian_filter1d(np.interp(row, knots, a), 14.0, mode="nearest") for a in (yaws, pitches)]
    bob = np.column_stack([_unrest(rng, count, 0.006), _unrest(rng, count, 0.006), _unrest(rng, count, 0.012)])
    positions = np.column_stack([ground, np.full(count, height)]) + bob
    shake = [_unrest(rng, count, np.deg2rad(d)) for d in (0.5, 0.5, 1.5)]
    return Track(positions, angles[0] + shake[0], angles[1] + shake[1], shake[2])


def _next_target(
    world: World, rng: np.random.Generator, eye: Array, targets: Targets, yaw: float, first: bool
) -> tuple[float, float]:
    """Yaw and pitch towards an object that is neither near nor far off the present direction."""
    toward = targets.centers - eye
    flat = np.hypot(toward[:, 0], toward[:, 1])
    turn = (np.arctan2(toward[:, 1], toward[:, 0]) - yaw + np.pi) % (2 * np.pi) - np.pi
    fit = (flat > 1.1) & (flat < 5.0) & (first | (np.abs(turn) < np.deg2rad(75)))
    if not fit.any():
        return yaw + float(rng.uniform(-0.6, 0.6)), -0.25
    weights = targets.weights * fit
    pick = int(rng.choice(len(weights), p=weights / weights.sum()))
    pitch = float(np.clip(np.arctan2(toward[pick, 2], flat[pick]) + rng.normal(0, 0.06), -0.6, 0.2))
    return yaw + float(turn[pick]), pitch


def _unrest(rng: np.random.Generator, count: int, size: float) -> Array:
    """(count) slow noise of about this size."""
    values = ndimage.gaussian_filter1d(rng.standard_normal(count), 20.0, mode="reflect")
    return size * values / max(float(values.std()), 1e-6) if count > 1 else values * 0


def _score(world: World, poses: Array, fov: float) -> float:
    """Classes and objects seen, less a penalty for views onto something near or onto one surface only."""
    across, down = np.tan(fov / 2), np.tan(fov / 2) * 0.75
    x, y = np.meshgrid(np.linspace(-across, across, 14), np.linspace(-down, down, 10))
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    some = poses[::3]
    directions = np.einsum("vij,kj->vki", some[:, :3, :3], rays)
    origins = np.repeat(some[:, :3, 3], len(rays), 0)
    hits = world.caster.first(origins, directions.reshape(-1, 3))
    depth = hits.distance.reshape(len(some), -1)
    seen = world.mesh.instances[hits.face].reshape(len(some), -1)
    near = (np.quantile(depth, 0.1, axis=1) < 0.55) | (np.median(depth, axis=1) < 1.1)
    dull = np.array([len(np.unique(row)) < 4 for row in seen])
    found = np.flatnonzero(np.bincount(seen.ravel(), minlength=len(world.boxes.labels)) >= 6)
    classes = len(np.unique(world.boxes.labels[found]))
    return classes + 0.3 * len(found) - 40.0 * float(near.mean()) - 20.0 * float(dull.mean())
