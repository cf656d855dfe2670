"""Labelled clouds: points on every surface that can be seen from where a person could stand. Legend: N points."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatlearn.data.procedural.light import Hits
from splatlearn.data.procedural.mesh import Array
from splatlearn.data.procedural.photograph import tone
from splatlearn.data.rooms.floorplan import STEP
from splatlearn.data.rooms.world import World

STATIONS = 10
"""Places from which a surface may be seen to be part of the cloud, besides some views of the walk (our default)."""
ROUGHNESS = 0.003
"""Deviation of points along their normal, metres: what is left after fusing many frames (our default)."""


@dataclass(frozen=True)
class Cloud:
    """Points with everything known about them.

    Args:
        xyz: (N 3) metres, world.
        color: (N 3) uint8 as photographed.
        normal: (N 3) unit, towards the viewer.
        instance: (N) object.
    """

    xyz: Array
    color: NDArray[np.uint8]
    normal: Array
    instance: NDArray[np.int64]


def sample_cloud(world: World, poses: Array, count: int, rng: np.random.Generator, noise: float = 1.0) -> Cloud:
    """At most `count` points, uniform over the visible surface.

    Args:
        world: the room, exposed.
        poses: (V 4 4) camera-to-world; about five of them count as places to look from.
        count: points wanted.
        rng: source of the points.
        noise: factor on ROUGHNESS.
    """
    eyes = np.concatenate([_stations(world, rng), poses[:: max(1, len(poses) // 5), :3, 3]])
    hits, xyz = _scatter(world, int(1.8 * count), rng)
    normals = world.face_normals[hits.face]
    seen, facing = _visible(world, xyz, normals, eyes)
    chosen = np.flatnonzero(seen)
    if len(chosen) > count:
        chosen = np.sort(rng.choice(chosen, count, replace=False))
    part = Hits(hits.distance[chosen], hits.face[chosen], hits.u[chosen], hits.v[chosen])
    color = tone(world.color(part, np.full(len(chosen), 0.012, np.float32)))
    normal = normals[chosen] * facing[chosen, None]
    moved = xyz[chosen] + normal * (noise * ROUGHNESS * rng.standard_normal((len(chosen), 1)))
    instance = world.mesh.instances[part.face]
    return Cloud(moved, np.clip(np.round(color * 255), 0, 255).astype(np.uint8), normal, instance)


def _scatter(world: World, count: int, rng: np.random.Generator) -> tuple[Hits, Array]:
    """Uniform points on all triangles, as hits and as positions."""
    total = np.cumsum(world.face_areas)
    picks = (np.arange(count) + rng.random(count)) / count * total[-1]
    face = np.minimum(np.searchsorted(total, picks), len(total) - 1).astype(np.int32)
    u, v = rng.random((2, count))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    a, b, c = world.mesh.corners[face].transpose(1, 0, 2)
    xyz = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    return Hits(np.zeros(count, np.float32), face, u.astype(np.float32), v.astype(np.float32)), xyz


def _stations(world: World, rng: np.random.Generator) -> Array:
    """(K 3) eye positions over the walkable floor, world."""
    cells = np.argwhere(world.plan.walkable(0.2))
    picks = cells[rng.integers(len(cells), size=STATIONS)]
    room = np.column_stack([(picks + 0.5) * STEP, rng.uniform(0.9, 1.9, STATIONS)])
    return world.to_world(np.asarray(room, dtype=np.float64))


def _visible(world: World, xyz: Array, normals: Array, eyes: Array) -> tuple[NDArray[np.bool_], Array]:
    """Which points some eye sees at under 80 degrees from the normal, and the sign of the normal that faces it."""
    seen, facing = np.zeros(len(xyz), bool), np.ones(len(xyz))
    for eye in eyes:
        left = np.flatnonzero(~seen)
        toward = eye - xyz[left]
        cosine = np.einsum("ki,ki->k", toward, normals[left]) / np.sqrt(np.einsum("ki,ki->k", toward, toward))
        left, toward, cosine = (value[np.abs(cosine) > 0.17] for value in (left, toward, cosine))
        side = np.sign(cosine)
        starts = xyz[left] + 0.004 * side[:, None] * normals[left]
        clear = ~world.caster.blocked(starts, toward)
        seen[left[clear]] = True
        facing[left[clear]] = side[clear]
    return seen, facing
