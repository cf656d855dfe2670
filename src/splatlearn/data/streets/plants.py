"""Trees, bushes, hedges. Own frame: z up, rooted at the origin. Metres."""

import numpy as np

from splatlearn.data.procedural.mesh import Array, Mesh, between, join, lathe, length
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.solids import FLAT, Parts, leaves


def tree(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A broad-leaved tree or a conifer: its trunk, and its crown."""
    bark, leaf = finishes.wood(), finishes.leaf()
    if rng.random() < 0.25:
        return _conifer(rng, bark, leaf)
    bare, radius = rng.uniform(1.7, 3.2), rng.uniform(0.11, 0.28)
    spread, tall = rng.uniform(1.3, 2.8), rng.uniform(2.2, 4.5)
    lean = np.array([*rng.normal(0, 0.07, 2), 1.0])
    fork = lean * (bare + 0.3 * tall)
    wood = [_trunk(rng, radius, bare + 0.3 * tall, lean, bark)]
    blobs: list[tuple[Array, Array]] = []
    for _ in range(int(rng.integers(3, 6))):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.6) * spread
        center = fork + np.array([far * np.cos(angle), far * np.sin(angle), rng.uniform(0.05, 0.45) * tall])
        wood.append(between(fork * rng.uniform(0.6, 0.95), center, 0.35 * radius, bark, 6, FLAT))
        blobs.append((center, np.array([0.65 * spread, 0.65 * spread, 0.33 * tall]) * rng.uniform(0.8, 1.2)))
    return [
        ("trunk", join(wood)),
        ("vegetation", join([_blob(rng, center, half, leaf, 0.42) for center, half in blobs])),
    ]


def bush(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """One to three tufts on the ground."""
    leaf = finishes.leaf()
    tufts = []
    for _ in range(int(rng.integers(1, 4))):
        size = np.array([*rng.uniform(0.35, 0.9, 2), rng.uniform(0.3, 0.8)])
        tufts.append(_blob(rng, np.array([*rng.uniform(-0.5, 0.5, 2), 0.8 * size[2]]), size, leaf, 0.24))
    return [("vegetation", join(tufts))]


def hedge(rng: np.random.Generator, long: float, high: float, leaf: int) -> Parts:
    """A clipped hedge, `long` metres along x."""
    half = np.array([long / 2, 0.35, high / 2])
    count = int(70 * long * high)
    points = rng.uniform(-1, 1, (count, 3))
    side = rng.integers(1, 3, count)
    points[np.arange(count), side] = np.sign(points[np.arange(count), side] + (side == 2)) * rng.uniform(0.8, 1, count)
    normals = np.where(np.arange(3) == side[:, None], points, 0.2 * points)
    mesh = leaves(rng, points * half + [0, 0, high / 2], normals, 0.26, leaf)
    return [("vegetation", mesh)]


def _conifer(rng: np.random.Generator, bark: int, leaf: int) -> Parts:
    bare, tall, wide = rng.uniform(0.5, 1.5), rng.uniform(5.0, 9.0), rng.uniform(1.2, 2.2)
    count = 420
    up = 1 - np.sqrt(rng.random(count))
    angle, far = rng.uniform(0, 2 * np.pi, count), (1 - up) * wide * rng.uniform(0.6, 1.05, count)
    out = np.stack([np.cos(angle), np.sin(angle), np.full(count, 0.4)], 1)
    centers = np.stack([far * np.cos(angle), far * np.sin(angle), bare + up * (tall - bare)], 1)
    trunk = _trunk(rng, rng.uniform(0.1, 0.2), 0.9 * tall, np.array([0, 0, 1.0]), bark)
    return [("trunk", trunk), ("vegetation", leaves(rng, centers, out, 0.42, leaf))]


def _trunk(rng: np.random.Generator, radius: float, high: float, lean: Array, bark: int) -> Mesh:
    """Thicker at the foot, uneven, leaning."""
    heights = np.linspace(0, high, 6)
    radii = radius * np.array([1.5, 1.08, 1.0, 0.9, 0.75, 0.4]) * rng.uniform(0.9, 1.12, 6)
    mesh = lathe([(0, 0), *zip(radii.tolist(), heights.tolist(), strict=True), (0, high)], bark, 9, FLAT)
    shear = np.eye(3)
    shear[:2, 2] = lean[:2]
    return mesh.transform(shear, (0, 0, 0))


def _blob(rng: np.random.Generator, center: Array, half: Array, leaf: int, size: float) -> Mesh:
    """Leaves about an ellipsoid, most of them near its surface."""
    count = int(np.clip(7 * half.prod() ** (2 / 3) / size**2, 50, 220))
    out = rng.standard_normal((count, 3))
    out /= length(out)
    return leaves(rng, center + half * out * rng.uniform(0.55, 1.05, (count, 1)), out / half, size, leaf)
