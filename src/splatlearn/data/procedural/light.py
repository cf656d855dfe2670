"""Ray casting and baked light. Legend: N rays, V vertices, L light samples. Metres, world; light is linear RGB."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatlearn.data.procedural.mesh import Array, Mesh, length
from splatlearn.data.procedural.textures import Sampler

Single = NDArray[np.float32]
CHUNK = 1 << 18
HEMISPHERE = 24
"""Rays a vertex for light from all around (our default)."""


@dataclass(frozen=True)
class Hits:
    """First hits of rays; rows that hit nothing have face -1.

    Args:
        distance: (N) in lengths of the direction.
        face: (N) triangle.
        u: (N) weight of the triangle's second corner.
        v: (N) weight of its third corner.
    """

    distance: Single
    face: NDArray[np.int32]
    u: Single
    v: Single


class Caster:
    """Embree over one mesh.

    Args:
        mesh: in the frame of the rays.
    """

    def __init__(self, mesh: Mesh) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self._scene = EmbreeScene(robust=True)
        TriangleMesh(self._scene, np.ascontiguousarray(mesh.corners, dtype=np.float32))

    def first(self, origins: NDArray[Any], directions: NDArray[Any]) -> Hits:
        """The nearest hit of each ray; origins and directions (N 3)."""
        found = self._scene.run(_single(origins), _single(directions), output=1)
        return Hits(found["tfar"], found["primID"], found["u"], found["v"])

    def blocked(self, origins: NDArray[Any], directions: NDArray[Any], reach: float = 1.0) -> NDArray[np.bool_]:
        """(N) whether anything lies between an origin and origin + reach * direction."""
        far = np.full(len(origins), reach, np.float32)
        return self._scene.run(_single(origins), _single(directions), far, query="OCCLUDED") >= 0


def _single(values: NDArray[Any]) -> Single:
    return np.ascontiguousarray(values, dtype=np.float32)


@dataclass(frozen=True)
class Lights:
    """Small light sources.

    Args:
        positions: (L 3).
        normals: (L 3) direction of strongest emission, or zero for all around.
        power: (L 3) linear RGB.
    """

    positions: Array
    normals: Array
    power: Array


def bake(mesh: Mesh, caster: Caster, sampler: Sampler, lights: Lights, ambient: Array) -> Single:
    """(V 3) irradiance at the vertices: light sources with shadows, and light from all around, darker in corners.

    Args:
        mesh: in the world.
        caster: of the same mesh.
        sampler: of the mesh's materials.
        lights: the sources.
        ambient: (3) linear RGB of the light from all around.
    """
    origins = _receivers(mesh)
    total = ambient * _surroundings(mesh, origins, caster, sampler)
    for position, normal, power in zip(lights.positions, lights.normals, lights.power, strict=True):
        total += power * _direct(mesh, origins, caster, position, normal)[:, None]
    return total.astype(np.float32)


def _receivers(mesh: Mesh) -> Array:
    """(V 3) where light is gathered: just above each vertex and a little inside its faces.

    A vertex on the edge of a part often touches another part, and would be black.
    """
    total, count = np.zeros_like(mesh.vertices), np.bincount(mesh.faces.ravel(), minlength=len(mesh.vertices))
    middles = mesh.corners.mean(1)
    for axis in range(3):
        spread = np.repeat(middles[:, axis], 3)
        total[:, axis] = np.bincount(mesh.faces.ravel(), spread, len(mesh.vertices))
    inside = total / np.maximum(count, 1)[:, None] - mesh.vertices
    inside *= np.minimum(0.25, 0.03 / length(inside))
    return mesh.vertices + inside + 0.008 * mesh.normals


def _direct(mesh: Mesh, origins: Array, caster: Caster, position: Array, normal: Array) -> Array:
    """(V) light from one source: cosine at both ends, inverse square, shadow."""
    toward = position - origins
    square = np.einsum("vi,vi->v", toward, toward)
    distance = np.sqrt(square)
    cosine = np.maximum(np.einsum("vi,vi->v", toward, mesh.normals) / distance, 0)
    if normal.any():
        cosine = cosine * np.maximum(-(toward @ normal) / distance, 0)
    lit = np.flatnonzero(cosine > 1e-3)
    lit = lit[~caster.blocked(origins[lit], toward[lit], 0.98)]
    result = np.zeros(len(origins))
    result[lit] = cosine[lit] / (square[lit] + 0.3)
    return result


def _surroundings(mesh: Mesh, origins: Array, caster: Caster, sampler: Sampler) -> Array:
    """(V 3) mean over cosine-weighted directions: far surfaces send more light than near ones, in their tint."""
    index = np.arange(HEMISPHERE) + 0.5
    radius, angle = np.sqrt(index / HEMISPHERE), index * np.pi * (3 - np.sqrt(5))
    local = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - radius**2)], 1)
    helper = np.eye(3)[np.argmin(np.abs(mesh.normals), 1)]
    tangent = np.cross(helper, mesh.normals)
    tangent /= length(tangent)
    frame = np.stack([tangent, np.cross(mesh.normals, tangent), mesh.normals], 1)
    total = np.zeros((len(origins), 3))
    rows = max(1, CHUNK // HEMISPHERE)
    for start in range(0, len(origins), rows):
        part = slice(start, start + rows)
        rays = (local @ frame[part]).astype(np.float32)
        hits = caster.first(np.repeat(origins[part].astype(np.float32), HEMISPHERE, 0), rays.reshape(-1, 3))
        openness = np.minimum(hits.distance / (hits.distance + 0.45), 1.0)
        tint = 0.45 + 0.55 * sampler.mean[mesh.materials[hits.face]]
        total[part] = (openness[:, None] * tint).reshape(-1, HEMISPHERE, 3).mean(1)
    return total
