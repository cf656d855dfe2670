"""Furnishing a room: what belongs in it, and where it stands. Room frame, metres."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from splatlearn.data.procedural.mesh import Mesh, yaw_matrix
from splatlearn.data.procedural.textures import Materials
from splatlearn.data.rooms import seating, small, woodwork
from splatlearn.data.rooms.finishes import Finishes
from splatlearn.data.rooms.floorplan import STEP, Floorplan, footprint
from splatlearn.data.rooms.furniture import Maker, Piece, Surface, chance, span
from splatlearn.data.rooms.shell import Shell, build_opening, build_walls, draw_shell

WALKABLE = 1.6
"""Square metres of connected floor that furniture leaves free for the camera (our default)."""


@dataclass(frozen=True)
class Placed:
    """An object of the room.

    Args:
        label: class name.
        mesh: in the room frame.
        yaw: radians about +z, the direction of the object's own x.
    """

    label: str
    mesh: Mesh
    yaw: float


@dataclass(frozen=True)
class Standing:
    """A piece that stands somewhere and may carry smaller ones."""

    piece: Piece
    position: tuple[float, float, float]
    yaw: float


@dataclass
class Room:
    """A room while it is being furnished.

    Args:
        shell: sizes and openings.
        plan: what is taken.
        finishes: source of materials.
        rng: source of every choice.
        objects: everything in it, in order of placing; the index is the instance.
    """

    shell: Shell
    plan: Floorplan
    finishes: Finishes
    rng: np.random.Generator
    objects: list[Placed] = field(default_factory=list)
    standing: list[Standing] = field(default_factory=list)

    def put(self, piece: Piece, position: Sequence[float], yaw: float) -> int:
        """Adds a piece without any check; returns its instance."""
        mesh = piece.mesh.transform(yaw_matrix(yaw), position)
        self.objects.append(Placed(piece.label, mesh, yaw))
        self.standing.append(Standing(piece, (position[0], position[1], position[2]), yaw))
        return len(self.objects) - 1

    def try_floor(self, piece: Piece, center: tuple[float, float], yaw: float, beside: int = -1) -> int:
        """Puts a piece on the floor if its footprint is free and enough floor stays walkable, else returns -1."""
        points = footprint(center, yaw, (piece.size[0] + 0.02, piece.size[1] + 0.02))
        if not self.plan.inside(points, -0.011) or not self.plan.clear(points, beside):
            return -1
        before = self.plan.owner.copy()
        self.plan.take(points, len(self.objects))
        if self.plan.walkable().sum() * STEP**2 < WALKABLE:
            self.plan.owner = before
            return -1
        return self.put(piece, (*center, 0.0), yaw)


def furnish(rng: np.random.Generator, side: tuple[float, float]) -> tuple[Room, Materials]:
    """A random furnished room.

    Args:
        rng: source of every choice.
        side: shortest and longest side of the room, metres.
    """
    materials = Materials()
    finishes = Finishes(materials, rng)
    shell = draw_shell(rng, side)
    room = Room(shell, Floorplan(shell), finishes, rng)
    for label, mesh in build_walls(rng, shell, finishes):
        room.objects.append(Placed(label, mesh, 0.0))
    for opening in shell.openings:
        mesh = build_opening(rng, shell, opening, finishes)
        room.objects.append(Placed(opening.label, mesh, shell.walls[opening.wall].yaw))
    for group in _program(rng, shell.width * shell.depth):
        group(room)
    _hang_lamps(room)
    _hang_on_walls(room)
    _top_up(room)
    return room, materials


def _program(rng: np.random.Generator, area: float) -> list[Callable[[Room], None]]:
    """The groups of furniture of one kind of room, big things first; a large room gets more."""
    kinds = (
        [_sleeping, _storing, _working, _storing, _reading],
        [_lounging, _reading, _dining, _storing],
        [_working, _reading, _working, _storing, _lounging],
        [_dining, _storing, _reading, _lounging, _storing],
        [_sleeping, _lounging, _working, _reading],
        [_sleeping, _dining, _storing, _working],
        [_lounging, _dining, _working, _storing, _reading],
    )
    groups = list(kinds[int(rng.integers(len(kinds)))])
    more = (_dining, _lounging, _working, _storing, _reading)
    groups += [more[int(k)] for k in rng.integers(len(more), size=int(area > 15) + int(area > 21))]
    return [*groups, _decorating, _decorating, _littering]


def against_wall(room: Room, make: Maker, gap: float = 0.0, tries: int = 10) -> int:
    """Puts a new piece with its back to a wall; tall pieces take the wall above and keep off windows."""
    piece = make(room.rng, room.finishes)
    wide, deep, high = piece.size
    for _ in range(tries):
        k = int(room.rng.integers(4))
        wall = room.shell.walls[k]
        if wall.length < wide + 0.1:
            continue
        low, top = wide / 2 + 0.03, wall.length - wide / 2 - 0.03
        s = float(room.rng.choice([low, top, span(room.rng, low, top), span(room.rng, low, top)]))
        off = deep / 2 + 0.015 + gap + (span(room.rng, 0, 0.04) if chance(room.rng, 0.5) else 0)
        if not room.plan.wall_free(k, s - wide / 2, s + wide / 2, 0.1, high):
            continue
        at = wall.at(s, off)
        found = room.try_floor(piece, (at[0], at[1]), wall.yaw)
        if found >= 0:
            room.plan.take_wall(k, s - wide / 2, s + wide / 2, 0.0, high + 0.05)
            return found
    return -1


def anywhere(room: Room, make: Maker, margin: float, tries: int = 12, yaw: float | None = None) -> int:
    """Puts a new piece somewhere on the floor, `margin` metres clear of everything."""
    piece = make(room.rng, room.finishes)
    for _ in range(tries):
        center = (span(room.rng, 0.3, room.shell.width - 0.3), span(room.rng, 0.3, room.shell.depth - 0.3))
        turn = span(room.rng, -np.pi, np.pi) if yaw is None else yaw + np.pi / 2 * int(room.rng.integers(4))
        wide = (piece.size[0] + 2 * margin, piece.size[1] + 2 * margin)
        points = footprint(center, turn, wide)
        if room.plan.inside(points) and room.plan.clear(points):
            found = room.try_floor(piece, center, turn)
            if found >= 0:
                return found
    return -1


def _before(room: Room, anchor: int, make: Maker, off: tuple[float, float], aside: float, turn: float = 0.0) -> int:
    """Puts a new piece in front (-y) of a standing one, `off` metres between their faces, `aside` along its x."""
    base = _standing(room, anchor)
    piece = make(room.rng, room.finishes)
    for _ in range(6):
        y = -(base.piece.size[1] / 2 + span(room.rng, *off) + piece.size[1] / 2)
        center = _offset(base, aside + span(room.rng, -0.08, 0.08), y)
        found = room.try_floor(piece, center, base.yaw + turn + span(room.rng, -0.15, 0.15), anchor)
        if found >= 0:
            return found
    return -1


def _standing(room: Room, instance: int) -> Standing:
    return room.standing[instance - (len(room.objects) - len(room.standing))]


def _offset(base: Standing, x: float, y: float) -> tuple[float, float]:
    c, s = np.cos(base.yaw), np.sin(base.yaw)
    return float(base.position[0] + c * x - s * y), float(base.position[1] + s * x + c * y)


def _sleeping(room: Room) -> None:
    found = against_wall(room, seating.bed, tries=20)
    if found < 0:
        return
    base = _standing(room, found)
    for side in (-1, 1):
        if chance(room.rng, 0.75):
            stand = woodwork.nightstand(room.rng, room.finishes)
            x = side * (base.piece.size[0] + stand.size[0] + 0.06) / 2
            y = (base.piece.size[1] - stand.size[1]) / 2 - 0.01
            room.try_floor(stand, _offset(base, x, y), base.yaw)
    if chance(room.rng, 0.7):
        against_wall(room, woodwork.wardrobe)


def _lounging(room: Room) -> None:
    found = against_wall(room, seating.sofa, gap=0.02, tries=20)
    if found >= 0 and chance(room.rng, 0.75):
        _before(room, found, woodwork.coffee_table, (0.25, 0.45), 0.0)
    if chance(room.rng, 0.5):
        against_wall(room, woodwork.dresser)
    if chance(room.rng, 0.35):
        anywhere(room, seating.sofa, 0.1)
    if chance(room.rng, 0.6):
        against_wall(room, small.floor_lamp)


def _working(room: Room) -> None:
    found = against_wall(room, woodwork.desk, tries=16)
    if found >= 0:
        _before(room, found, seating.chair, (0.0, 0.25), span(room.rng, -0.2, 0.2), np.pi)
    if chance(room.rng, 0.5):
        against_wall(room, woodwork.bookshelf)


def _reading(room: Room) -> None:
    for _ in range(1 + chance(room.rng, 0.5)):
        against_wall(room, woodwork.bookshelf, tries=14)
    if chance(room.rng, 0.4):
        against_wall(room, small.floor_lamp)


def _storing(room: Room) -> None:
    against_wall(room, woodwork.dresser if chance(room.rng, 0.6) else woodwork.wardrobe, tries=14)


def _dining(room: Room) -> None:
    turn = 0.0 if chance(room.rng, 0.7) else span(room.rng, -0.5, 0.5)
    found = anywhere(room, woodwork.table, 0.3, tries=25, yaw=turn)
    if found < 0:
        found = against_wall(room, woodwork.table)
    if found < 0:
        return
    base = _standing(room, found)
    half_x, half_y = base.piece.size[0] / 2, base.piece.size[1] / 2
    places = [(x * half_x * 0.55, side * half_y, 0.0 if side < 0 else np.pi) for side in (-1, 1) for x in (-1, 1)]
    places += [(side * half_x, 0.0, side * np.pi / 2) for side in (-1, 1)]
    if half_x < 0.68:
        places = [(0.0, -half_y, 0.0), (0.0, half_y, np.pi), *places[4:]]
    keep = span(room.rng, 0.5, 1.0)
    chair = seating.chair(room.rng, room.finishes)
    for x, y, turn in places:
        if chance(room.rng, keep):
            _seat(room, found, chair, (x, y), turn)


def _seat(room: Room, table: int, piece: Piece, edge: tuple[float, float], turn: float) -> None:
    """A chair at the edge of a table, facing it; chairs of one table are alike."""
    base = _standing(room, table)
    for _ in range(4):
        out = np.array([np.sin(turn), -np.cos(turn)])
        off = piece.size[1] / 2 + span(room.rng, -0.2, 0.15)
        center = _offset(base, *(np.array(edge) + out * off).tolist())
        yaw = base.yaw + turn + np.pi + span(room.rng, -0.2, 0.2)
        points = footprint(center, yaw, piece.size[:2])
        if room.plan.inside(points, 0.02) and room.try_floor(piece, center, yaw, table) >= 0:
            return


def _decorating(room: Room) -> None:
    if chance(room.rng, 0.6):
        against_wall(room, small.floor_plant, gap=0.03)
    elif chance(room.rng, 0.7):
        anywhere(room, small.floor_plant, 0.02)
    if chance(room.rng, 0.3):
        anywhere(room, woodwork.coffee_table, 0.1)
    if chance(room.rng, 0.25):
        against_wall(room, small.floor_lamp)
    if chance(room.rng, 0.35):
        against_wall(room, seating.chair)


def _littering(room: Room) -> None:
    for _ in range(int(room.rng.integers(2, 6))):
        if chance(room.rng, 0.6):
            against_wall(room, small.floor_clutter)
        else:
            anywhere(room, small.floor_clutter, 0.02)


def _hang_lamps(room: Room) -> None:
    """One lamp about the middle of the ceiling, at times another."""
    for index in range(1 + chance(room.rng, 0.3)):
        piece = small.pendant(room.rng, room.finishes)
        low, high = (0.4, 0.6) if index == 0 else (0.2, 0.8)
        x, y = room.shell.width * span(room.rng, low, high), room.shell.depth * span(room.rng, low, high)
        blocked = not room.plan.inside(np.array([[x, y]]), 0.4) or _in_pillar(room.shell, x, y)
        if not blocked:
            room.put(piece, (x, y, room.shell.height - 0.001), span(room.rng, 0, 6))


def _in_pillar(shell: Shell, x: float, y: float) -> bool:
    if shell.pillar is None:
        return False
    (x0, y0), (x1, y1) = shell.pillar.low, shell.pillar.high
    return x0 - 0.4 < x < x1 + 0.4 and y0 - 0.4 < y < y1 + 0.4


def _hang_on_walls(room: Room) -> None:
    """Pictures, at times cabinets and shelves, where a wall is empty."""
    makers: list[tuple[Maker, tuple[float, float]]] = []
    makers += [(woodwork.wall_cabinet, (1.35, 1.6))] * (int(room.rng.integers(1, 4)) if chance(room.rng, 0.3) else 0)
    makers += [(woodwork.wall_shelf, (1.15, 1.7))] * int(room.rng.integers(0, 3))
    makers += [(small.picture, (0.95, 1.6))] * int(room.rng.integers(2, 7))
    for make, heights in makers:
        _hang(room, make(room.rng, room.finishes), heights)


def _hang(room: Room, piece: Piece, heights: tuple[float, float]) -> None:
    wide, deep, high = piece.size
    for _ in range(10):
        k = int(room.rng.integers(4))
        wall = room.shell.walls[k]
        if wall.length < wide + 0.2:
            continue
        s, z = span(room.rng, wide / 2 + 0.06, wall.length - wide / 2 - 0.06), span(room.rng, *heights)
        top = z + high
        at = wall.at(s, deep / 2 + 0.001, z)
        free = top < room.shell.height - 0.08 and not _in_pillar(room.shell, at[0], at[1])
        if free and room.plan.wall_free(k, s - wide / 2 - 0.05, s + wide / 2 + 0.05, z, top):
            room.plan.take_wall(k, s - wide / 2, s + wide / 2, z, top)
            room.put(piece, at.tolist(), wall.yaw)
            return


def _top_up(room: Room) -> None:
    """Small things on tables, desks, cabinets and shelves."""
    for base in list(room.standing):
        for surface in base.piece.surfaces:
            few = base.piece.label == "bed"
            _load(room, base, surface, int(room.rng.integers(0, 2 if few else 6)))


def _load(room: Room, base: Standing, surface: Surface, count: int) -> None:
    taken: list[tuple[float, float, float]] = []
    z = base.position[2] + surface.z
    for _ in range(count):
        kind = room.rng.random()
        make = small.table_lamp if kind < 0.14 else small.table_plant if kind < 0.3 else small.top_clutter
        piece = make(room.rng, room.finishes)
        radius = float(np.hypot(*piece.size[:2])) / 2
        room_x = (surface.high[0] - surface.low[0]) / 2 - min(piece.size[0] / 2, radius)
        room_y = (surface.high[1] - surface.low[1]) / 2 - min(piece.size[1] / 2, radius)
        if min(room_x, room_y) < 0 or piece.size[2] > min(surface.clearance, room.shell.height - z - 0.1):
            continue
        x = (surface.high[0] + surface.low[0]) / 2 + span(room.rng, -room_x, room_x)
        y = (surface.high[1] + surface.low[1]) / 2 + span(room.rng, -room_y, room_y)
        if all(np.hypot(x - a, y - b) > radius + r for a, b, r in taken):
            turn = span(room.rng, -0.3, 0.3) if min(room_x, room_y) < radius else span(room.rng, -0.8, 0.8)
            taken.append((x, y, radius))
            room.put(piece, (*_offset(base, x, y), z + 0.001), base.yaw + turn)
