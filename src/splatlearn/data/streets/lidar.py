"""A spinning lidar: where its beams look, what comes back, and how strong. Legend: N returns. Metres, radians."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatlearn.data.procedural.light import Hits
from splatlearn.data.procedural.mesh import Array
from splatlearn.data.procedural.photograph import dot
from splatlearn.data.streets.world import World

HEIGHT = 1.8
"""Of the sensor above the road, metres (nuScenes: 1.84)."""
REACH = 80.0
"""Farthest return, metres."""
NEAREST = 1.5
"""Nearest return, metres."""
SPREAD = 0.002
"""Footprint of a beam, metres a metre of distance: about 3 mrad of divergence, half of it counted."""
STRENGTH = 78000.0
"""Square metres: at 70 m, 4 of 5 pulses that meet a surface of 10 % head on come back (our default)."""
MISSED = 0.7
"""Share of pulses that go through, or are mirrored away by, a pane (our default)."""
ELEVATIONS: dict[int, Array] = {
    32: np.deg2rad(np.linspace(-30.67, 10.67, 32)),
    64: np.deg2rad(np.concatenate([-24.33 + 0.5 * np.arange(32), -8.33 + np.arange(32) / 3])),
}
"""Of the beams, the lowest first: HDL-32E (nuScenes) and HDL-64E (KITTI) by their data sheets."""


@dataclass(frozen=True)
class Scan:
    """One turn, in order of azimuth and then of beam.

    Args:
        xyz: (N 3) metres, the sensor's frame: x forward, y left, z up.
        intensity: (N) in [0, 1].
        beam: (N) 0 = the lowest.
        instance: (N) object.
    """

    xyz: Array
    intensity: Array
    beam: NDArray[np.int64]
    instance: NDArray[np.int64]


def scan(world: World, pose: Array, beams: int, columns: int, rng: np.random.Generator, noise: float = 1.0) -> Scan:
    """One turn of a lidar that stands still meanwhile.

    Args:
        world: as it stands.
        pose: (4 4) sensor-to-map.
        beams: a key of ELEVATIONS.
        columns: directions in a turn.
        rng: source of noise and losses.
        noise: 1 = a sensor's; 0 = exact, and every beam that meets something in reach comes back.
    """
    azimuth = np.repeat(np.pi - (np.arange(columns) + 0.5) / columns * 2 * np.pi, beams)
    beam = np.tile(np.arange(beams), columns)
    up = ELEVATIONS[beams][beam]
    aim = np.stack([np.cos(azimuth) * np.cos(up), np.sin(azimuth) * np.cos(up), np.sin(up)], 1)
    directions = aim @ pose[:3, :3].T
    hits = world.caster.first(np.broadcast_to(pose[:3, 3], aim.shape), directions)
    rows = np.flatnonzero((hits.distance > NEAREST) & (hits.distance < REACH))
    hits = Hits(hits.distance[rows], hits.face[rows], hits.u[rows], hits.v[rows])
    returned, power = _echo(world, hits, directions[rows])
    luck, pane, unrest = rng.random(len(rows)), rng.random(len(rows)), rng.standard_normal((len(rows), 2))
    glass = world.sampler.glass[world.mesh.materials[hits.face]]
    keep = (noise == 0) | ((luck < returned) & ~(glass & (pane < MISSED)))
    distance = hits.distance + noise * 0.015 * unrest[:, 0]
    intensity = np.clip(power * (1 + noise * 0.08 * unrest[:, 1]), 0, 1)
    return Scan(
        (aim[rows] * distance[:, None])[keep],
        intensity[keep],
        beam[rows][keep],
        world.mesh.instances[hits.face][keep],
    )


def _echo(world: World, hits: Hits, directions: Array) -> tuple[Array, Array]:
    """(N) probability that a pulse comes back, and (N) the intensity that the sensor then tells."""
    distance = hits.distance.astype(np.float64)
    color = world.reflectance(hits, (SPREAD * hits.distance).astype(np.float32)).mean(1)
    echo = world.echo[world.mesh.materials[hits.face]]
    share = np.where(echo > 1, echo, 0.4 * color + 0.6 * echo)
    slant = np.abs(dot(world.face_normals[hits.face], directions))
    signal = share * np.where(echo > 1, slant**0.3, slant)
    returned = 1 - np.exp(-STRENGTH * signal / distance**2)
    return returned, 0.6 * share * np.where(echo > 1, slant**0.3, slant**0.7) * np.exp(-distance / 150)
