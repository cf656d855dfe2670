"""Where things may stand: rasters of the floor and of the walls. Room frame, metres."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from splatlearn.data.procedural.mesh import Array
from splatlearn.data.rooms.shell import Shell

STEP = 0.05
"""Side of a floor cell, metres."""


def footprint(center: tuple[float, float], yaw: float, size: tuple[float, float], step: float = STEP) -> Array:
    """(K 2) points that cover a turned rectangle at `step` metres, its edge included."""
    x = np.linspace(-size[0] / 2, size[0] / 2, max(2, int(np.ceil(size[0] / step)) + 1))
    y = np.linspace(-size[1] / 2, size[1] / 2, max(2, int(np.ceil(size[1] / step)) + 1))
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
    c, s = np.cos(yaw), np.sin(yaw)
    return grid @ np.array([[c, s], [-s, c]]) + np.asarray(center)


@dataclass
class Floorplan:
    """Cells taken by objects (`owner`, -1 = none) and cells that must stay free (`keep`)."""

    shell: Shell
    owner: NDArray[np.int64] = field(init=False)
    keep: NDArray[np.bool_] = field(init=False)
    on_walls: dict[int, list[tuple[float, float, float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (int(np.ceil(self.shell.width / STEP)), int(np.ceil(self.shell.depth / STEP)))
        self.owner = np.full(shape, -1)
        self.keep = np.zeros(shape, bool)
        for opening in self.shell.openings:
            self._mark_opening(opening.wall, opening.low, opening.high, opening.label)
        if self.shell.pillar:
            low, high = np.array(self.shell.pillar.low), np.array(self.shell.pillar.high)
            size = high - low
            middle = (low + high) / 2
            self.take(footprint((middle[0], middle[1]), 0.0, (size[0], size[1])), 0)

    def _mark_opening(self, wall: int, low: tuple[float, float], high: tuple[float, float], label: str) -> None:
        self.on_walls.setdefault(wall, []).append((low[0] - 0.12, high[0] + 0.12, low[1] - 0.15, high[1] + 0.12))
        if label == "door":
            side = self.shell.walls[wall]
            middle = side.at((low[0] + high[0]) / 2, 0.45)
            cells = footprint((middle[0], middle[1]), side.yaw, (high[0] - low[0], 0.9))
            self.keep[self._cells(cells)] = True

    def _cells(self, points: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        index = np.floor(points / STEP).astype(np.int64)
        return np.clip(index[:, 0], 0, self.owner.shape[0] - 1), np.clip(index[:, 1], 0, self.owner.shape[1] - 1)

    def inside(self, points: Array, margin: float = 0.0) -> bool:
        """Whether all points lie in the room, `margin` away from its walls."""
        high = np.array([self.shell.width, self.shell.depth]) - margin
        return bool((points >= margin).all() and (points <= high).all())

    def clear(self, points: Array, beside: int = -1) -> bool:
        """Whether no object (but `beside`) and no kept cell is under the points."""
        cells = self._cells(points)
        owners = self.owner[cells]
        return bool(((owners < 0) | (owners == beside)).all() and not self.keep[cells].any())

    def take(self, points: Array, owner: int) -> None:
        """Gives the cells under the points to an object."""
        cells = self._cells(points)
        self.owner[cells] = owner

    def wall_free(self, wall: int, s0: float, s1: float, z0: float, z1: float) -> bool:
        """Whether a rectangle of a wall is empty."""
        taken = self.on_walls.get(wall, [])
        return all(s1 <= a or b <= s0 or z1 <= c or d <= z0 for a, b, c, d in taken)

    def take_wall(self, wall: int, s0: float, s1: float, z0: float, z1: float) -> None:
        """Marks a rectangle of a wall as hung or covered."""
        self.on_walls.setdefault(wall, []).append((s0, s1, z0, z1))

    def distance(self) -> Array:
        """(X Y) metres from each cell to the nearest object or wall."""
        free = np.pad(self.owner < 0, 1, constant_values=False)
        return ndimage.distance_transform_edt(free)[1:-1, 1:-1] * STEP  # type: ignore[index]

    def walkable(self, margin: float = 0.33) -> NDArray[np.bool_]:
        """(X Y) the largest connected part of the floor at least `margin` metres from everything."""
        parts, count = ndimage.label(self.distance() > margin)  # type: ignore[misc]
        if not count:
            return np.zeros_like(self.keep)
        sizes = np.bincount(parts.ravel())[1:]
        return parts == 1 + int(np.argmax(sizes))
