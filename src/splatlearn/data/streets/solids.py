"""Shapes of the outdoors. Legend: K corners, M leaves, R C a grid. Own frame of a thing: x forward, y left, z up."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from splatlearn.data.procedural.mesh import Array, Builder, Mesh, grid_faces, join, length, uniform

FLAT = 8.0
"""Longest grid edge of flat parts, metres: light is worked out where it is seen, so large triangles do."""

Parts = list[tuple[str, Mesh]]
"""A thing's parts, each with its class; parts of one class are one object."""


def builder() -> Builder:
    """A builder of few triangles."""
    return Builder(cell=FLAT)


def facets(polygons: Sequence[ArrayLike], material: int) -> Mesh:
    """Flat convex polygons (K 3) that bound a convex solid, turned outward."""
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    middle = np.concatenate(polygons).mean(0)
    parts = []
    for corners in polygons:
        normal = np.cross(corners, np.roll(corners, -1, 0)).sum(0)
        if normal @ (corners.mean(0) - middle) < 0:
            corners, normal = corners[::-1], -normal
        kept = [axis for axis in range(3) if axis != int(np.argmax(np.abs(normal)))]
        fan = np.array([[0, k, k + 1] for k in range(1, len(corners) - 1)])
        normals = np.broadcast_to(normal / length(normal), corners.shape)
        parts.append(uniform(corners, normals, corners[:, kept[::-1]], fan, material))
    return join(parts)


def prism(profile: Sequence[tuple[float, float, float]], material: int) -> Mesh:
    """A convex side view made solid.

    Args:
        profile: (x, z, half width) of each corner, in order around.
        material: of all sides.
    """
    x, z, half = np.array(profile).T
    left, right = np.stack([x, half, z], 1), np.stack([x, -half, z], 1)
    following = (*range(1, len(x)), 0)
    skin = [np.stack([left[i], left[j], right[j], right[i]]) for i, j in enumerate(following)]
    return facets([left, right, *skin], material)


def surface(points: Array, uv: Array, material: int) -> Mesh:
    """Ground over an (R C 3) grid with texture coordinates (R C 2); its normals look up."""
    normals = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1)).reshape(-1, 3)
    upward = normals.sum(0)[2] > 0
    faces = grid_faces(points.shape[0] - 1, points.shape[1] - 1)
    if not upward:
        normals, faces = -normals, faces[:, ::-1]
    return uniform(points.reshape(-1, 3), normals / length(normals), uv.reshape(-1, 2), faces, material)


def leaves(rng: np.random.Generator, centers: Array, outward: Array, size: float, material: int) -> Mesh:
    """Many small square sheets, lit as the surface of the crown that they make up.

    Args:
        rng: source of their turns.
        centers: (M 3).
        outward: (M 3) normals for their light.
        size: mean side, metres.
        material: of all.
    """
    count = len(centers)
    first = rng.standard_normal((count, 3))
    first /= length(first)
    second = np.cross(first, rng.standard_normal((count, 3)))
    second /= length(second)
    side = size * rng.uniform(0.6, 1.4, (count, 1, 1)) / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    offsets = corners[None, :, :1] * first[:, None] + corners[None, :, 1:] * second[:, None]
    vertices = (centers[:, None] + side * offsets).reshape(-1, 3)
    faces = (np.arange(count)[:, None, None] * 4 + np.array([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    uv = np.tile(corners * size / 2, (count, 1)) + np.repeat(rng.uniform(0, 1, (count, 2)), 4, 0)
    normals = np.repeat(outward / length(outward), 4, 0)
    return uniform(vertices, normals, uv, faces, material)


def ring(radius: float, thick: float, material: int) -> Mesh:
    """A wheel without spokes, upright in the x-z plane, its middle at the origin."""
    around, across = np.linspace(0, 2 * np.pi, 15), np.linspace(0, 2 * np.pi, 5)
    a, b = np.meshgrid(around, across, indexing="ij")
    out = np.stack([np.cos(a) * np.cos(b), np.sin(b), np.sin(a) * np.cos(b)], -1)
    points = radius * np.stack([np.cos(a), 0 * a, np.sin(a)], -1) + thick * out
    uv = np.stack([a * radius, b * thick], -1).reshape(-1, 2)
    return uniform(points.reshape(-1, 3), out.reshape(-1, 3), uv, grid_faces(14, 4), material)
