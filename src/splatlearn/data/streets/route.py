"""The course of a street and of the vehicle on it.

Legend: s metres along the centre line, t metres to its left; D samples. Map: metres, +z up.
"""

from dataclasses import dataclass

import numpy as np

from splatlearn.data.procedural.mesh import Array

STEP = 0.5
"""Distance between samples of the centre line, metres."""


@dataclass(frozen=True)
class Route:
    """A centre line over gentle hills.

    Args:
        s: (D) metres.
        xy: (D 2) map.
        heading: (D) radians from +x, unwrapped.
        waves: (K 4) wave vector (radians a metre), phase and height (metres) of each hill.
    """

    s: Array
    xy: Array
    heading: Array
    waves: Array

    def at(self, s: Array | float, t: Array | float) -> Array:
        """(... 2) map positions."""
        s, t = np.broadcast_arrays(np.asarray(s, dtype=np.float64), np.asarray(t, dtype=np.float64))
        x, y = (np.interp(s, self.s, column) for column in self.xy.T)
        yaw = self.yaw(s)
        return np.stack([x - t * np.sin(yaw), y + t * np.cos(yaw)], -1)

    def yaw(self, s: Array | float) -> Array:
        """(...) heading, radians."""
        return np.asarray(np.interp(s, self.s, self.heading))

    def height(self, xy: Array) -> Array:
        """(...) metres of the hills at map positions (... 2)."""
        phase = xy @ self.waves[:, :2].T + self.waves[:, 2]
        return np.sin(phase) @ self.waves[:, 3]

    def place(self, s: Array | float, t: Array | float, z: Array | float = 0.0) -> Array:
        """(... 3) map positions, z metres above the hills."""
        xy = self.at(s, t)
        return np.concatenate([xy, (self.height(xy) + z)[..., None]], -1)


def draw_route(rng: np.random.Generator, low: float, high: float, straight: list[float]) -> Route:
    """A street from s = low to high that bends now and then.

    Args:
        rng: source of the bends and hills.
        low: metres.
        high: metres.
        straight: places of junctions, about which there is no bend.
    """
    s = np.arange(low, high + STEP, STEP)
    bend = sum(rng.normal(0, 0.004) * np.sin(s / length + rng.uniform(0, 6.3)) for length in (18.0, 30.0, 55.0))
    bend = bend + rng.normal(0, 0.003)
    for place in straight:
        bend = bend * np.clip((np.abs(s - place) - 12) / 15, 0, 1)
    heading = np.cumsum(np.clip(bend, -0.011, 0.011)) * STEP
    heading += rng.uniform(-np.pi, np.pi) - np.interp(0, s, heading)
    xy = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * STEP
    xy -= [np.interp(0, s, column) for column in xy.T]
    angles, lengths = rng.uniform(0, 2 * np.pi, 4), rng.uniform(60, 180, 4)
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1) * (2 * np.pi / lengths)[:, None]
    heights = rng.uniform(0.1, 0.5, 4) * lengths / 100
    return Route(s, xy, heading, np.column_stack([vectors, rng.uniform(0, 2 * np.pi, 4), heights]))


@dataclass(frozen=True)
class Ride:
    """The vehicle with the sensors: a steady drive along one lane, with a driver's slight unrest.

    Args:
        route: of the street.
        lane: t of its middle, metres.
        speed: metres a second.
        sway: metres to the sides.
    """

    route: Route
    lane: float
    speed: float
    sway: float

    def pose(self, time: float) -> Array:
        """(4 4) vehicle-to-map at `time` seconds: x forward, y left, z up and upright; origin on the road below."""
        ahead = self._on_road(time + 0.05)
        here = self._on_road(time)
        yaw = np.arctan2(*(ahead - here)[1::-1])
        c, s = np.cos(yaw), np.sin(yaw)
        pose = np.eye(4)
        pose[:2, :2] = [[c, -s], [s, c]]
        pose[:3, 3] = here
        return pose

    def _on_road(self, time: float) -> Array:
        s = self.speed * time
        return self.route.place(s, self.lane + self.sway * np.sin(s / 9.0))
