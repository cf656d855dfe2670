"""Triangle meshes with what shading needs, and the primitives furniture is built from.

Legend: V vertices, F triangles. Metres; +z up. Texture coordinates are metres on the surface, u along the grain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CELL = 0.25
"""Longest edge of the vertex grid that carries baked light, metres (our default)."""


@dataclass(frozen=True)
class Mesh:
    """Indexed triangles; vertices are shared only within a smooth patch.

    Args:
        vertices: (V 3) metres.
        normals: (V 3) unit, outward.
        uv: (V 2) metres on the surface.
        faces: (F 3) vertex indices, counter-clockwise from outside.
        materials: (F) index into the room's materials.
        instances: (F) index of the object in the room.
    """

    vertices: Array
    normals: Array
    uv: Array
    faces: NDArray[np.int64]
    materials: NDArray[np.int64]
    instances: NDArray[np.int64]

    def transform(self, rotation: ArrayLike, translation: ArrayLike) -> "Mesh":
        """Rotated by a (3 3) rotation, then moved by (3) metres."""
        turn = np.asarray(rotation, dtype=np.float64)
        vertices = self.vertices @ turn.T + np.asarray(translation, dtype=np.float64)
        return replace(self, vertices=vertices, normals=self.normals @ turn.T)

    def scaled(self, factors: ArrayLike) -> "Mesh":
        """Stretched along the axes by (3) positive factors; texture coordinates keep their size."""
        factors = np.asarray(factors, dtype=np.float64)
        normals = self.normals / factors
        return replace(self, vertices=self.vertices * factors, normals=normals / length(normals))

    def owned_by(self, instance: int) -> "Mesh":
        """The same mesh as object `instance`."""
        return replace(self, instances=np.full(len(self.faces), instance))

    @property
    def corners(self) -> Array:
        """(F 3 3) corner positions."""
        return self.vertices[self.faces]

    def corners_of(self, faces: NDArray[np.integer]) -> Array:
        """(N 3 3) corner positions of some triangles (N)."""
        return self.vertices[self.faces[faces]]

    @property
    def bounds(self) -> Array:
        """(2 3) lowest and highest corner."""
        return np.stack([self.vertices.min(0), self.vertices.max(0)])


def length(vectors: Array) -> Array:
    """(... 1) Euclidean lengths, never zero."""
    return np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of all parts; instances and materials are kept."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    return Mesh(
        *(np.concatenate([getattr(mesh, name) for mesh in meshes]) for name in ("vertices", "normals", "uv")),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]),
        materials=np.concatenate([mesh.materials for mesh in meshes]),
        instances=np.concatenate([mesh.instances for mesh in meshes]),
    )


def yaw_matrix(yaw: float) -> Array:
    """(3 3) rotation by `yaw` radians, counter-clockwise about +z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def axis_matrix(axis: int, angle: float) -> Array:
    """(3 3) rotation by `angle` radians about coordinate axis `axis`."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


@lru_cache(maxsize=256)
def _grid(rows: int, columns: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Both parameters in [0, 1] of a (rows+1) x (columns+1) vertex grid, as (V 1) columns, and its triangles."""
    i, j = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    return i.reshape(-1, 1), j.reshape(-1, 1), grid_faces(rows, columns)


@lru_cache(maxsize=256)
def grid_faces(rows: int, columns: int) -> NDArray[np.int64]:
    """Triangles of a (rows+1) x (columns+1) vertex grid, counter-clockwise for (row x column) outward."""
    i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    a = (i * (columns + 1) + j).ravel()
    b, c, d = a + columns + 1, a + columns + 2, a + 1
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def uniform(vertices: Array, normals: Array, uv: Array, faces: NDArray[np.int64], material: int) -> Mesh:
    """A mesh of one material; see `Mesh` for the arguments."""
    return Mesh(vertices, normals, uv, faces, np.full(len(faces), material), np.zeros(len(faces), np.int64))


def patch(origin: ArrayLike, edge_u: ArrayLike, edge_v: ArrayLike, material: int, cell: float = CELL) -> Mesh:
    """A flat rectangle, gridded; its normal is edge_u x edge_v.

    Args:
        origin: (3) a corner; texture coordinates are world-like, so that neighbouring patches match.
        edge_u: (3) one edge, along the grain.
        edge_v: (3) the other edge.
        material: index into the room's materials.
        cell: longest grid edge, metres.
    """
    origin, edge_u, edge_v = (np.asarray(value, dtype=np.float64) for value in (origin, edge_u, edge_v))
    long_u, long_v = float(np.sqrt(edge_u @ edge_u)), float(np.sqrt(edge_v @ edge_v))
    rows, columns = max(1, math.ceil(long_u / cell)), max(1, math.ceil(long_v / cell))
    i, j, faces = _grid(rows, columns)
    vertices = origin + i * edge_u + j * edge_v
    normals = np.broadcast_to(_cross(edge_u, edge_v) / (long_u * long_v), vertices.shape)
    uv = vertices @ np.stack([edge_u / long_u, edge_v / long_v], 1)
    return uniform(vertices, normals, uv, faces, material)


def _cross(a: Array, b: Array) -> Array:
    """(3) cross product; several times faster than numpy's for single vectors."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def box(center: ArrayLike, size: ArrayLike, material: int, cell: float = CELL) -> Mesh:
    """An axis-aligned box; the grain runs along its longest side.

    Args:
        center: (3) metres.
        size: (3) full extents, metres.
        material: index into the room's materials.
        cell: longest grid edge, metres.
    """
    center, size = np.asarray(center, dtype=np.float64), np.asarray(size, dtype=np.float64)
    x, y, z = size.tolist()
    cells = (max(1, math.ceil(x / cell)), max(1, math.ceil(y / cell)), max(1, math.ceil(z / cell)))
    unit, normals, axes, faces = _unit_box(cells, (x >= y, y >= z, x >= z))
    vertices = unit * size + center
    return uniform(vertices, normals, np.take_along_axis(vertices, axes, 1), faces, material)


@lru_cache(maxsize=512)
def _unit_box(
    cells: tuple[int, int, int], longer: tuple[bool, bool, bool]
) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """A cube of side 1 about the origin, gridded.

    Args:
        cells: along x, y, z.
        longer: whether x is at least as long as y, y as z, and x as z.

    Returns:
        Vertices (V 3), normals (V 3), the axis that u and v follow (V 2), triangles (F 3).
    """
    rank = {0: longer[0] + longer[2], 1: (not longer[0]) + longer[1], 2: (not longer[1]) + (not longer[2])}
    parts = []
    for axis in range(3):
        first, second = sorted((k for k in range(3) if k != axis), key=lambda k: -rank[k])
        i, j, faces = _grid(cells[first], cells[second])
        for sign in (-1.0, 1.0):
            vertices, normals = np.zeros((len(i), 3)), np.zeros((len(i), 3))
            vertices[:, [first]], vertices[:, [second]], vertices[:, axis] = i - 0.5, j - 0.5, sign / 2
            normals[:, axis] = sign
            outward = sign * (1 if (second - first) % 3 == 1 else -1)
            axes = np.tile([first, second], (len(i), 1))
            parts.append((vertices, normals, axes, faces if outward > 0 else faces[:, ::-1]))
    starts = np.cumsum([0] + [len(part[0]) for part in parts])
    faces = np.concatenate([part[3] + start for part, start in zip(parts, starts, strict=False)])
    vertices, normals, axes = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return vertices, normals, axes, faces


def lathe(profile: Sequence[tuple[float, float]], material: int, segments: int = 14, cell: float = CELL) -> Mesh:
    """A surface of revolution about +z.

    Args:
        profile: (radius, z) pairs, metres, so that the solid lies to the left when walking along: from the axis at
            the bottom, outward, up, and back to the axis.
        material: index into the room's materials.
        segments: sides.
        cell: longest grid edge along the profile, metres.
    """
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    around = np.stack([np.cos(angles), np.sin(angles)], 1)
    parts = []
    run = 0.0
    for (r0, z0), (r1, z1) in pairwise(profile):
        slope = np.hypot(r1 - r0, z1 - z0)
        if slope < 1e-6:
            continue
        steps = max(1, int(np.ceil(slope / cell)))
        t = np.linspace(0, 1, steps + 1)
        radius, z = r0 + t * (r1 - r0), z0 + t * (z1 - z0)
        vertices = np.empty((steps + 1, segments + 1, 3))
        vertices[..., :2], vertices[..., 2] = radius[:, None, None] * around, z[:, None]
        flat = np.array([(z1 - z0) / slope, -(r1 - r0) / slope])
        normals = np.column_stack([around * flat[0], np.full(segments + 1, flat[1])])
        along = run + t * slope
        widest = max(r0, r1)
        uv = np.stack([np.repeat(along, segments + 1), np.tile(angles * widest, steps + 1)], 1)
        faces = grid_faces(steps, segments)[:, [0, 2, 1]]
        parts.append(uniform(vertices.reshape(-1, 3), np.tile(normals, (steps + 1, 1)), uv, faces, material))
        run += slope
    return join(parts)


def cylinder(radius: float, height: float, material: int, segments: int = 14, cell: float = CELL) -> Mesh:
    """An upright closed cylinder on z = 0."""
    return lathe([(0, 0), (radius, 0), (radius, height), (0, height)], material, segments, cell)


def ball(radius: float, material: int, segments: int = 14, rings: int = 8) -> Mesh:
    """A sphere about the origin."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)
    profile = [(max(0.0, radius * float(np.cos(a))), radius * float(np.sin(a))) for a in angles]
    mesh = lathe(profile, material, segments)
    return replace(mesh, normals=mesh.vertices / length(mesh.vertices))


def cushion(center: ArrayLike, size: ArrayLike, material: int, rounding: float = 0.06) -> Mesh:
    """A box with rounded edges: mattresses, pillows, upholstery.

    Args:
        center: (3) metres.
        size: (3) full extents, metres.
        material: index into the room's materials.
        rounding: radius of the edges, metres, at most half the smallest side.
    """
    half = np.asarray(size, dtype=np.float64) / 2
    radius = min(rounding, 0.999 * half.min())
    ticks = [_rounded_ticks(h, radius) for h in half]
    parts = []
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        for sign in (-1.0, 1.0):
            i, j = np.meshgrid(ticks[a], ticks[b], indexing="ij")
            surface = np.zeros((i.size, 3))
            surface[:, a], surface[:, b], surface[:, axis] = i.ravel(), j.ravel(), sign * half[axis]
            core = np.clip(surface, -(half - radius), half - radius)
            normals = (surface - core) / length(surface - core)
            faces = grid_faces(len(ticks[a]) - 1, len(ticks[b]) - 1)
            long, short = (a, b) if half[a] >= half[b] else (b, a)
            uv = surface[:, [long, short]] + sign * half[axis] + axis * 0.37
            parts.append(uniform(core + radius * normals, normals, uv, faces[:, :: int(sign)], material))
    return join(parts).transform(np.eye(3), center)


def _rounded_ticks(half: float, radius: float) -> Array:
    """Grid lines of one side: dense at the rounded ends."""
    inner = half - radius
    middle = np.linspace(-inner, inner, max(2, int(np.ceil(2 * inner / CELL)) + 1))
    return np.concatenate([[-half, -half + 0.45 * radius], middle, [half - 0.45 * radius, half]])


def sheet(points: Array, material: int) -> Mesh:
    """A thin curved surface of an (R C 3) grid of points; seen from both sides."""
    rows, columns = points.shape[0] - 1, points.shape[1] - 1
    along = np.gradient(points, axis=0)
    across = np.gradient(points, axis=1)
    normals = np.cross(along, across).reshape(-1, 3)
    u = np.cumsum(np.linalg.norm(along, axis=2), 0)
    v = np.cumsum(np.linalg.norm(across, axis=2), 1)
    uv = np.stack([u.ravel(), v.ravel()], 1)
    return uniform(points.reshape(-1, 3), normals / length(normals), uv, grid_faces(rows, columns), material)


def between(
    start: ArrayLike, end: ArrayLike, radius: float, material: int, segments: int = 8, cell: float = CELL
) -> Mesh:
    """A closed cylinder from one point to another: tilted legs, stems, poles."""
    start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    axis = (end - start) / np.linalg.norm(end - start)
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    side = np.cross(helper, axis) / np.linalg.norm(np.cross(helper, axis))
    turn = np.stack([side, np.cross(axis, side), axis], 1)
    return cylinder(radius, float(np.linalg.norm(end - start)), material, segments, cell).transform(turn, start)


@dataclass
class Builder:
    """Collects the parts of one object in its own frame: z up, floor at 0; furniture has x aside and -y in front.

    Args:
        parts: what is there already.
        cell: longest grid edge of boxes, metres.
    """

    parts: list[Mesh] = field(default_factory=list)
    cell: float = CELL

    def add(self, mesh: Mesh, at: ArrayLike = (0.0, 0.0, 0.0), turn: Array | None = None) -> None:
        """Adds a part, rotated by a (3 3) rotation about its own origin and moved to (3) metres."""
        self.parts.append(mesh.transform(np.eye(3) if turn is None else turn, at))

    def box(self, low: ArrayLike, high: ArrayLike, material: int) -> None:
        """Adds an axis-aligned box between two corners."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        self.parts.append(box((low + high) / 2, high - low, material, self.cell))

    def mesh(self) -> Mesh:
        """All parts as one mesh."""
        return join(self.parts)
