"""Photographs of a lit mesh. Legend: V views, H W pixels, K rays.

Metres; depth is along z of the camera; OpenCV axes, pixel centres at half integers.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from splatlearn.data.procedural.light import Caster, Hits, Single
from splatlearn.data.procedural.mesh import Array, Mesh
from splatlearn.data.procedural.textures import GAMMA, Sampler

EXTRA = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
"""Places inside a pixel that are sampled where edges cross it."""


class Viewable(Protocol):
    """What can be photographed: every ray hits it.

    Attributes:
        mesh: in the world.
        caster: of the mesh.
        sampler: of its materials.
        face_normals: (F 3) unit.
        exposure: factor on reflected light.
    """

    mesh: Mesh
    caster: Caster
    sampler: Sampler
    face_normals: Array
    exposure: float

    def color(self, hits: Hits, footprint: Single) -> Single:
        """(N 3) exposed linear radiance of N hits; `footprint` (N) metres that one pixel covers."""
        ...


class Photograph(NamedTuple):
    """V views and the rays behind their pixels, view by view and row by row.

    Args:
        linear: (V*H*W 3) exposed radiance.
        hits: V*H*W first hits.
        origins: (V*H*W 3) metres, world.
        directions: (V*H*W 3) with length 1 along the camera's z.
    """

    linear: Single
    hits: Hits
    origins: Array
    directions: Array


def photograph(world: Viewable, poses: Array, camera: Array, size: tuple[int, int]) -> Photograph:
    """Views of (width, height) pixels, smooth at edges.

    Args:
        world: with its exposure set.
        poses: (V 4 4) camera-to-world.
        camera: (3 3) intrinsics.
        size: (width, height), pixels.
    """
    directions = turned(poses, rays(camera, size))
    origins = np.repeat(poses[:, :3, 3], size[0] * size[1], 0)
    hits = world.caster.first(origins, directions)
    linear = _shade(world, hits, directions, camera)
    edges = _edges(hits, world, (len(poses), size[1], size[0]))
    linear[edges] = _antialias(world, poses, camera, size, edges)
    return Photograph(linear, hits, origins, directions)


def develop(linear: Single, shape: tuple[int, int, int], rng: np.random.Generator, noise: float) -> NDArray[np.uint8]:
    """(V H W 3) bytes of exposed radiance, with a sensor's grain where `noise` is above 0."""
    color = tone(linear.reshape(*shape, 3))
    if noise > 0:
        grain = rng.standard_normal(color.shape, dtype=np.float32)
        color = color + noise * (0.004 + 0.006 * (1 - color)) * grain
    return np.clip(np.round(color * 255), 0, 255).astype(np.uint8)


def tone(linear: Single) -> Single:
    """(... 3) linear radiance to sRGB-like values in [0, 1), with a soft shoulder above 0.6."""
    soft = np.where(linear < 0.6, linear, 0.6 + 0.4 * (1 - np.exp(-(np.maximum(linear, 0.6) - 0.6) / 0.4)))
    return soft ** np.float32(1 / GAMMA)


def rays(camera: Array, size: tuple[int, int]) -> Array:
    """(H W 3) camera-frame directions with z = 1 through the pixel centres."""
    x = (np.arange(size[0]) + 0.5 - camera[0, 2]) / camera[0, 0]
    y = (np.arange(size[1]) + 0.5 - camera[1, 2]) / camera[1, 1]
    return np.stack([*np.meshgrid(x, y, indexing="xy"), np.ones(size[::-1])], -1)


def turned(poses: Array, directions: Array) -> Array:
    """(V * H * W 3) the camera-frame rays (H W 3) in the world, view by view."""
    return (directions.reshape(1, -1, 3) @ poses[:, :3, :3].transpose(0, 2, 1)).reshape(-1, 3)


def expose(world: Viewable, poses: Array, camera: Array, size: tuple[int, int]) -> None:
    """Sets one exposure: the median reflected light of some views at 0.2 of white, unless highlights would burn."""
    some = poses[:: max(1, len(poses) // 8)]
    coarse = (size[0] // 8, size[1] // 8)
    directions = turned(some, rays(camera / [[8], [8], [1]], coarse))
    hits = world.caster.first(np.repeat(some[:, :3, 3], coarse[0] * coarse[1], 0), directions)
    hits = _valid(hits)
    world.exposure = 1.0
    glow = world.sampler.glow[world.mesh.materials[hits.face]]
    radiance = world.color(hits, np.full(len(hits.face), 0.03, np.float32)).mean(1)
    middle, bright = np.quantile(radiance[glow == 0], [0.5, 0.92]).tolist()
    world.exposure = min(0.2 / max(middle, 1e-4), 0.6 / max(bright, 1e-4))


def _valid(hits: Hits) -> Hits:
    keep = hits.face >= 0
    return Hits(hits.distance[keep], hits.face[keep], hits.u[keep], hits.v[keep])


def _shade(world: Viewable, hits: Hits, directions: Array, camera: Array) -> Single:
    """(K 3) linear radiance, textures filtered to the pixel's footprint."""
    slant = np.abs(dot(world.face_normals[hits.face], directions)) / np.sqrt(dot(directions, directions))
    footprint = hits.distance / camera[0, 0] / np.sqrt(np.maximum(slant, 0.05))
    return world.color(hits, footprint.astype(np.float32))


def dot(first: Array, second: Array) -> Array:
    """(...) inner products along the last axis."""
    return np.einsum("...k,...k->...", first, second)


def _edges(hits: Hits, world: Viewable, shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Flat indices of pixels on either side of an edge between materials, planes or depths."""
    material = world.mesh.materials[hits.face].reshape(shape)
    normal = world.face_normals[hits.face].reshape(*shape, 3)
    plane = hits.distance.reshape(shape)
    mark = np.zeros(shape, bool)
    for axis in (1, 2):
        low = [slice(None)] * 3
        high = [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(low), tuple(high)
        bend = dot(normal[a], normal[b]) < 0.8
        jump = np.abs(plane[a] - plane[b]) > 0.08 * plane[a]
        edge = (material[a] != material[b]) | bend | jump
        mark[a] |= edge
        mark[b] |= edge
    return np.flatnonzero(mark)


def _antialias(
    world: Viewable, poses: Array, camera: Array, size: tuple[int, int], pixels: NDArray[np.int64]
) -> Single:
    """(K 3) linear radiance of some pixels, averaged over places inside each."""
    view, rest = np.divmod(pixels, size[0] * size[1])
    y, x = np.divmod(rest, size[0])
    total = np.zeros((len(pixels), 3), np.float32)
    for dx, dy in EXTRA:
        through = np.stack(
            [
                (x + 0.5 + dx - camera[0, 2]) / camera[0, 0],
                (y + 0.5 + dy - camera[1, 2]) / camera[1, 1],
                np.ones(len(x)),
            ],
            1,
        )
        directions = np.empty_like(through)
        for number, pose in enumerate(poses):
            directions[view == number] = through[view == number] @ pose[:3, :3].T
        hits = world.caster.first(poses[view, :3, 3], directions)
        total += np.minimum(_shade(world, hits, directions, camera), 2.0) / len(EXTRA)
    return total
