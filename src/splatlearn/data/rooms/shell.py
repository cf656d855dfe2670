"""The room itself: floor, ceiling, walls with openings, doors and windows, an optional pillar in a corner.

Room frame: x in [0, width], y in [0, depth], z in [0, height], metres. Walls run counter-clockwise seen from
above, starting with the one at y = 0; a position on one is (s, z), with s measured from its start.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from splatlearn.data.procedural.mesh import Array, Builder, Mesh, ball, box, join, patch
from splatlearn.data.rooms.finishes import Finishes
from splatlearn.data.rooms.furniture import chance, span

SILL = 0.12
"""Depth of window reveals behind the wall, metres (our default)."""


@dataclass(frozen=True)
class Wall:
    """One side of the room.

    Args:
        start: (x, y) of its beginning.
        along: unit (x, y) in which s grows.
        inward: unit (x, y) into the room.
        length: metres.
    """

    start: Array
    along: Array
    inward: Array
    length: float

    @property
    def yaw(self) -> float:
        """Turn that brings a piece's back (+y) to this wall."""
        return float(np.arctan2(-self.inward[1], -self.inward[0]) - np.pi / 2)

    def at(self, s: float, off: float, z: float = 0.0) -> Array:
        """(3) the point at s, `off` metres into the room, at height z."""
        return np.array([*(self.start + s * self.along + off * self.inward), z])


@dataclass(frozen=True)
class Opening:
    """A door or window in wall `wall`, from (s0, z0) to (s1, z1)."""

    wall: int
    low: tuple[float, float]
    high: tuple[float, float]
    label: str


@dataclass(frozen=True)
class Pillar:
    """A block in a corner, which makes the room L-shaped: (x, y) of two corners."""

    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True)
class Shell:
    """Sizes and openings of a room."""

    width: float
    depth: float
    height: float
    openings: tuple[Opening, ...] = ()
    pillar: Pillar | None = None
    walls: tuple[Wall, ...] = field(init=False)

    def __post_init__(self) -> None:
        w, d = self.width, self.depth
        corners = np.array([[0, 0], [w, 0], [w, d], [0, d]], dtype=np.float64)
        along = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], dtype=np.float64)
        inward = np.array([[0, 1], [-1, 0], [0, -1], [1, 0]], dtype=np.float64)
        sides = (w, d, w, d)
        walls = tuple(Wall(corners[k], along[k], inward[k], sides[k]) for k in range(4))
        object.__setattr__(self, "walls", walls)


def draw_shell(rng: np.random.Generator, side: tuple[float, float]) -> Shell:
    """A random room with one or two doors and one to three windows.

    Args:
        rng: source of every choice.
        side: shortest and longest side, metres.
    """
    width, depth, height = span(rng, *side), span(rng, *side), span(rng, 2.35, 2.8)
    pillar = None
    if chance(rng, 0.3) and min(width, depth) > 3.6:
        a, b = span(rng, 0.5, 0.3 * width), span(rng, 0.5, 0.3 * depth)
        x = 0.0 if chance(rng, 0.5) else width - a
        y = 0.0 if chance(rng, 0.5) else depth - b
        pillar = Pillar((x, y), (x + a, y + b))
    shell = Shell(width, depth, height, (), pillar)
    openings: list[Opening] = []
    doors, windows = 1 + chance(rng, 0.3), 1 + int(rng.integers(0, 3))
    for label in ["door"] * doors + ["window"] * windows:
        _try_opening(rng, shell, openings, label)
    return Shell(width, depth, height, tuple(openings), pillar)


def _try_opening(rng: np.random.Generator, shell: Shell, openings: list[Opening], label: str) -> None:
    for _ in range(12):
        k = int(rng.integers(4))
        if label == "door":
            wide, z0, z1 = span(rng, 0.75, 0.95), 0.0, span(rng, 1.98, 2.1)
        else:
            wide, z0 = span(rng, 0.7, 1.8), span(rng, 0.5, 1.0)
            z1 = min(z0 + span(rng, 0.9, 1.5), shell.height - 0.2)
        s0 = span(rng, 0.15, max(0.16, shell.walls[k].length - wide - 0.15))
        found = Opening(k, (s0, z0), (s0 + wide, z1), label)
        if s0 + wide < shell.walls[k].length - 0.1 and _fits(shell, openings, found):
            openings.append(found)
            return


def _fits(shell: Shell, openings: list[Opening], new: Opening) -> bool:
    for old in openings:
        if old.wall == new.wall and old.low[0] < new.high[0] + 0.2 and new.low[0] < old.high[0] + 0.2:
            return False
    if shell.pillar is None:
        return True
    wall = shell.walls[new.wall]
    low, high = np.array(shell.pillar.low), np.array(shell.pillar.high)
    ends = np.stack([wall.at(new.low[0], 0.4)[:2], wall.at(new.high[0], 0.4)[:2]])
    return bool((ends.max(0) < low - 0.3).any() or (ends.min(0) > high + 0.3).any())


def build_walls(rng: np.random.Generator, shell: Shell, finishes: Finishes) -> list[tuple[str, Mesh]]:
    """Floor, ceiling, each wall with its skirting, and the pillar, as (label, mesh); normals point inward."""
    w, d, h = shell.width, shell.depth, shell.height
    parts = [
        ("floor", patch((0, 0, 0), (w, 0, 0), (0, d, 0), finishes.floor())),
        ("ceiling", patch((0, 0, h), (0, d, 0), (w, 0, 0), finishes.ceiling())),
    ]
    paint, skirting = finishes.wall(), finishes.wood() if chance(rng, 0.7) else -1
    other = finishes.wall() if chance(rng, 0.4) else paint
    feature = int(rng.integers(4))
    for k in range(len(shell.walls)):
        meshes = _wall_patches(shell, k, other if k == feature else paint)
        if skirting >= 0:
            meshes += _skirting(shell, k, skirting)
        parts.append(("wall", join(meshes)))
    if shell.pillar:
        low, high = (*shell.pillar.low, 0.0), (*shell.pillar.high, h)
        center = (np.array(low) + np.array(high)) / 2
        parts.append(("wall", box(center, np.array(high) - np.array(low), paint)))
    if chance(rng, 0.6):
        parts[0] = ("floor", join([parts[0][1], _rug(rng, shell, finishes)]))
    return parts


def _rug(rng: np.random.Generator, shell: Shell, finishes: Finishes) -> Mesh:
    half_x, half_y = span(rng, 0.5, 0.3 * shell.width + 0.1), span(rng, 0.4, 0.3 * shell.depth + 0.1)
    center = (shell.width * span(rng, 0.4, 0.6), shell.depth * span(rng, 0.4, 0.6), 0.004)
    return box(center, (2 * half_x, 2 * half_y, 0.008), finishes.rug())


def _wall_patches(shell: Shell, k: int, material: int) -> list[Mesh]:
    """The wall without its openings, cut along the openings' edges."""
    wall = shell.walls[k]
    holes = [o for o in shell.openings if o.wall == k]
    s_cuts = sorted({0.0, wall.length, *(v for o in holes for v in (o.low[0], o.high[0]))})
    meshes = []
    for s0, s1 in pairwise(s_cuts):
        blocks = sorted((o.low[1], o.high[1]) for o in holes if o.low[0] < (s0 + s1) / 2 < o.high[0])
        z = 0.0
        for z0, z1 in [*blocks, (shell.height, shell.height)]:
            if z0 - z > 1e-6:
                up, along = np.array([0, 0, z0 - z]), np.array([*(wall.along * (s1 - s0)), 0])
                meshes.append(patch(wall.at(s0, 0, z), up, along, material))
            z = z1
    return meshes


def _skirting(shell: Shell, k: int, material: int) -> list[Mesh]:
    wall = shell.walls[k]
    doors = sorted((o.low[0], o.high[0]) for o in shell.openings if o.wall == k and o.label == "door")
    meshes, s = [], 0.0
    for s0, s1 in [*doors, (wall.length, wall.length)]:
        if s0 - s > 0.05:
            center = wall.at((s + s0) / 2, 0.006, 0.04)
            size = np.abs(wall.along) * (s0 - s) + np.abs(wall.inward) * 0.012
            meshes.append(box(center, (*size, 0.08), material))
        s = s1
    return meshes


def build_opening(rng: np.random.Generator, shell: Shell, opening: Opening, finishes: Finishes) -> Mesh:
    """A door or window in the room frame, set into its wall."""
    make = _door if opening.label == "door" else _window
    wide, high = opening.high[0] - opening.low[0], opening.high[1] - opening.low[1]
    piece = make(rng, wide, high, finishes)
    wall = shell.walls[opening.wall]
    c, s = np.cos(wall.yaw), np.sin(wall.yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return piece.transform(turn, wall.at((opening.low[0] + opening.high[0]) / 2, 0, opening.low[1]))


def _casing(builder: Builder, half: float, high: float, edge: float, proud: float, material: int, sill: bool) -> None:
    """The frame on the wall around an opening; +y is into the wall, the wall's surface is y = 0."""
    for x0, x1 in ((-half - edge, -half), (half, half + edge)):
        builder.box((x0, -proud, -edge if sill else 0), (x1, 0, high + edge), material)
    builder.box((-half, -proud, high), (half, 0, high + edge), material)
    if sill:
        builder.box((-half, -proud, -edge), (half, 0, 0), material)


def _reveal(builder: Builder, half: float, high: float, deep: float, material: int) -> None:
    builder.add(patch((-half, deep, 0), (0, 0, high), (0, -deep, 0), material))
    builder.add(patch((half, 0, 0), (0, 0, high), (0, deep, 0), material))
    builder.add(patch((-half, deep, high), (2 * half, 0, 0), (0, -deep, 0), material))
    builder.add(patch((-half, 0, 0), (2 * half, 0, 0), (0, deep, 0), material))


def _door(rng: np.random.Generator, wide: float, high: float, finishes: Finishes) -> Mesh:
    builder, half = Builder(), wide / 2
    frame, leaf, handle = finishes.wood(), finishes.wood(), finishes.hard()
    deep = span(rng, 0.02, 0.08)
    _casing(builder, half, high, span(rng, 0.05, 0.09), span(rng, 0.012, 0.03), frame, sill=False)
    _reveal(builder, half, high, deep, frame)
    builder.box((-half, deep, 0), (half, deep + 0.04, high), leaf)
    rows, columns = int(rng.integers(0, 4)), int(rng.integers(1, 3))
    panel = finishes.wood() if chance(rng, 0.3) else leaf
    for i in range(columns):
        for j in range(rows):
            x0, x1 = -half + wide * i / columns + 0.07, -half + wide * (i + 1) / columns - 0.07
            z0, z1 = 0.06 + (high - 0.06) * j / rows + 0.05, 0.06 + (high - 0.06) * (j + 1) / rows - 0.08
            # Thinner than the height above a surface at which light is gathered, or the leaf would be black.
            builder.box((x0, deep - 0.005, z0), (x1, deep, z1), panel)
    x = (half - 0.07) * (1 if chance(rng, 0.5) else -1)
    builder.add(ball(0.022, handle, 10, 6), (x, deep - 0.045, 1.02))
    long = -np.sign(x) * 0.11
    builder.box((min(x, x + long), deep - 0.055, 1.01), (max(x, x + long), deep - 0.035, 1.03), handle)
    return builder.mesh()


def _window(rng: np.random.Generator, wide: float, high: float, finishes: Finishes) -> Mesh:
    builder, half = Builder(), wide / 2
    frame = finishes.wood()
    _casing(builder, half, high, span(rng, 0.04, 0.08), span(rng, 0.012, 0.03), frame, sill=True)
    _reveal(builder, half, high, SILL, finishes.wall())
    builder.box((-half - 0.05, -span(rng, 0.05, 0.14), -0.03), (half + 0.05, SILL, 0.0), frame)
    pane = finishes.view(high, wide)
    builder.add(patch((half, SILL, 0), (0, 0, high), (-2 * half, 0, 0), pane))
    edge = 0.045
    columns = max(1, round(wide / span(rng, 0.5, 0.9)))
    for i in range(columns + 1):
        x = -half + wide * i / columns
        builder.box((max(x - edge, -half), SILL - 0.04, 0), (min(x + edge, half), SILL, high), frame)
    bars = [0.0, high] if chance(rng, 0.5) else [0.0, high * span(rng, 0.4, 0.75), high]
    for z in bars:
        builder.box((-half, SILL - 0.035, max(z - edge, 0)), (half, SILL, min(z + edge, high)), frame)
    return builder.mesh()
