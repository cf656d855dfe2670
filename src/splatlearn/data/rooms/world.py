"""A finished room in the world: mesh, light, objects and their boxes.

Legend: V vertices, F triangles, N hits, M objects. World: metres, +z up, floor at z = 0, the room's centre about
the origin, turned by a random angle about up.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatlearn.data.procedural.light import Caster, Hits, Lights, Single, bake
from splatlearn.data.procedural.mesh import Array, Mesh, join, yaw_matrix
from splatlearn.data.procedural.shading import shade
from splatlearn.data.procedural.textures import SIDE, Sampler
from splatlearn.data.rooms.classes import LABELS
from splatlearn.data.rooms.floorplan import Floorplan
from splatlearn.data.rooms.layout import Placed, Room, furnish


@dataclass(frozen=True)
class ObjectBoxes:
    """Oriented boxes of all M objects, structure included.

    Args:
        centers: (M 3).
        sizes: (M 3) along the object's own axes.
        yaws: (M) radians about +z.
        labels: (M) class ids; row i is instance i.
    """

    centers: Array
    sizes: Array
    yaws: Array
    labels: NDArray[np.int64]


class World:
    """A room that can be looked at.

    Args:
        room: furnished, in its own frame.
        sampler: of its materials.
        yaw: radians, the turn of the room in the world.
        rng: source of the light.
    """

    def __init__(self, room: Room, sampler: Sampler, yaw: float, rng: np.random.Generator) -> None:
        self.turn = yaw_matrix(yaw)
        middle = np.array([room.shell.width / 2, room.shell.depth / 2, 0.0])
        self.shift = -self.turn @ middle
        self.plan: Floorplan = room.plan
        self.height = room.shell.height
        self.boxes = object_boxes(room.objects, self.turn, self.shift, yaw)
        parts = [placed.mesh.owned_by(index) for index, placed in enumerate(room.objects)]
        self.mesh: Mesh = join(parts).transform(self.turn, self.shift)
        self.caster = Caster(self.mesh)
        self.sampler = sampler
        lights, ambient = _lights(room, self, rng)
        self.light: Single = bake(self.mesh, self.caster, sampler, lights, ambient)
        corners = self.mesh.corners
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.face_areas = np.linalg.norm(normals, axis=1) / 2
        self.face_normals = normals / np.maximum(2 * self.face_areas[:, None], 1e-12)
        values = np.concatenate([self.mesh.uv, self.light], 1).astype(np.float32)
        self._corner_values = values[self.mesh.faces]
        self.exposure = 1.0

    def to_world(self, points: Array) -> Array:
        """(... 3) from the room's frame."""
        return points @ self.turn.T + self.shift

    def color(self, hits: Hits, footprint: Single) -> Single:
        """Radiance towards the viewer, linear and exposed.

        Args:
            hits: N rows, all of them real hits.
            footprint: (N) metres on the surface that one pixel covers.

        Returns:
            (N 3), zero or more.
        """
        return shade(
            hits.face,
            hits.u,
            hits.v,
            footprint,
            self._corner_values,
            self.mesh.materials,
            self.sampler.texels,
            self.sampler.starts,
            self.sampler.size,
            self.sampler.glow,
            SIDE,
            self.exposure,
        )


def build(seed: tuple[int, ...], side: tuple[float, float]) -> World:
    """The room of a seed: every byte follows from it.

    Args:
        seed: of numpy's SeedSequence.
        side: shortest and longest side of a room, metres.
    """
    rng = np.random.default_rng(seed)
    room, materials = furnish(rng, side)
    return World(room, materials.sampler(), float(rng.uniform(-np.pi, np.pi)), rng)


def object_boxes(objects: list[Placed], turn: Array, shift: Array, yaw: float) -> ObjectBoxes:
    """Tight boxes along each object's own axes, in the world."""
    centers, sizes, yaws = [], [], []
    for placed in objects:
        own = placed.mesh.vertices @ yaw_matrix(placed.yaw)
        low, high = own.min(0), own.max(0)
        centers.append(turn @ yaw_matrix(placed.yaw) @ ((low + high) / 2) + shift)
        sizes.append(high - low)
        yaws.append(placed.yaw + yaw)
    wrapped = (np.array(yaws) + np.pi) % (2 * np.pi) - np.pi
    labels = np.array([LABELS[placed.label] for placed in objects])
    return ObjectBoxes(np.array(centers), np.array(sizes), wrapped, labels)


def _lights(room: Room, world: World, rng: np.random.Generator) -> tuple[Lights, Array]:
    """Windows, ceiling lamps, and lit shades; the light from all around has a tint of its own."""
    day = np.array([1.0, 1.0, 1.0]) + rng.uniform(-0.12, 0.12, 3)
    warm = np.array([1.0, 0.85, 0.65]) + rng.uniform(-0.1, 0.1, 3)
    bright, evening = float(rng.uniform(0.7, 1.6)), float(rng.uniform(0.4, 1.5))
    rows: list[tuple[Array, Array, Array]] = []
    for opening in room.shell.openings:
        if opening.label != "window":
            continue
        wall, area = room.shell.walls[opening.wall], np.prod(np.subtract(opening.high, opening.low))
        for a in (0.2, 0.5, 0.8):
            for b in (0.3, 0.8):
                s, z = (
                    np.array(opening.low) * (1 - np.array([a, b])) + np.array(opening.high) * np.array([a, b])
                ).tolist()
                rows.append((wall.at(s, 0.05, z), np.array([*wall.inward, -0.2]), day * bright * area / 6 * 2.2))
    for placed in room.objects:
        if placed.label != "lamp":
            continue
        low, high = placed.mesh.bounds
        hanging = high[2] > room.shell.height - 0.05
        at = np.array([*((low + high)[:2] / 2), low[2] - 0.04 if hanging else high[2] + 0.04])
        rows.append((at, np.zeros(3), warm * evening * (1.6 if hanging else 0.12)))
    positions, normals, power = (np.array(column) for column in zip(*rows, strict=True))
    ambient = (day * bright + warm * evening) * float(rng.uniform(0.4, 0.8))
    return Lights(world.to_world(positions), normals @ world.turn.T, power), ambient
