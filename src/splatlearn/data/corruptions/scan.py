"""A lidar scan while it is corrupted, and what the corruptions share: power of returns, beams, the ground.

Legend: N points = rays with a return, K beams. Metres, the lidar's frame: the sensor at the origin, +z up. Plain numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Severity = Literal["light", "moderate", "heavy"]
SEVERITIES: tuple[Severity, ...] = ("light", "moderate", "heavy")

THRESHOLD = 0.10 / 50.0**2
"""Weakest power that is detected, as reflectivity over squared metres: a surface of 10 % at 50 m, by the data sheet of
KITTI's HDL-64E, whose other figure (80 % at 120 m) gives nearly the same."""
MEAN_REFLECTIVITY = 0.2
"""Of a scan, at 905 nm: asphalt has 0.1 to 0.2, concrete and leaves 0.3 to 0.5. Our default."""
_GROUND = ("road", "driveable", "drivable", "parking", "sidewalk", "ground", "terrain", "flat", "lane", "driveway")
_VEHICLES = ("car", "truck", "bus", "bicycle", "motorcycle", "two wheeler", "trailer", "vehicle")
_CELL = 2.0
_REACH = 40.0
_ON_GROUND = 0.2


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One return a ray. A corruption gives a scan of the same rays, some of them `lost`, some with a `false` return.

    Args:
        xyz: (N 3) float64 metres.
        intensity: (N) float64 in [0, 1].
        lost: (N) bool, rays that return nothing any more.
        false: (N) bool, returns that no surface of the scene made; they have no class.
        label: (N) int64, -1 = ignored; all -1 where there are no labels.
        beam: (N) int64 number of the laser, from below.
        classes: names of the label ids 0, 1, ...; empty where they are unknown.
    """

    xyz: np.ndarray
    intensity: np.ndarray
    lost: np.ndarray
    false: np.ndarray
    label: np.ndarray
    beam: np.ndarray
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.xyz)

    @cached_property
    def range(self) -> np.ndarray:
        """(N) metres from the sensor, never zero."""
        return np.maximum(np.linalg.norm(self.xyz, axis=1), 1e-6)

    @cached_property
    def ray(self) -> np.ndarray:
        """(N 3) unit vectors from the sensor; zeros for a point in the sensor."""
        return self.xyz / self.range[:, None]

    @cached_property
    def turn(self) -> np.ndarray:
        """(N) time within the sweep in [0, 1), taken from the azimuth: a sweep is one turn, clockwise from behind."""
        return (0.5 - np.arctan2(self.xyz[:, 1], self.xyz[:, 0]) / (2 * np.pi)) % 1.0

    @cached_property
    def unit(self) -> float:
        """Intensity of a surface that reflects all light. Each data set scales intensity in its own way, so it is taken
        from this scan, whose mean reflectivity is `MEAN_REFLECTIVITY`."""
        mean = float(self.intensity.mean()) if len(self) else 0.0
        return mean / MEAN_REFLECTIVITY or 1.0

    def margin(self, rng: np.random.Generator) -> np.ndarray:
        """(N) how many times a return's power exceeds the weakest that is detected; 1 or more.

        By the lidar equation power is reflectivity over squared range. Data sets calibrate intensity, so that it may
        be zero for a point that was measured all the same: such a point has a margin of 1 / u, u uniform in (0, 1],
        and then survives an attenuation a with the chance a (our default: not measured).
        """
        chance = 1 / (1 - rng.random(len(self)))
        return np.maximum(self.intensity / self.unit / (THRESHOLD * self.range**2), chance)

    @cached_property
    def vehicles(self) -> np.ndarray:
        """(N) bool, points of vehicles and two-wheelers by their class; all False where classes are unknown."""
        return self._of_classes(_VEHICLES)

    @cached_property
    def plane(self) -> np.ndarray:
        """(3) a, b, c of the ground z = a x + b y + c: fitted to points of the ground's classes, else to low points."""
        points = self.xyz[self._of_classes(_GROUND)]
        return fit_plane(points if len(points) >= 3 else lowest(self.xyz))

    @cached_property
    def ground(self) -> np.ndarray:
        """(N) bool, by class; by distance from the plane (0.2 m, our default) where no point has a ground's class."""
        labelled = self._of_classes(_GROUND)
        return labelled if labelled.any() else np.abs(self._height()) < _ON_GROUND

    @cached_property
    def incidence(self) -> np.ndarray:
        """(N) cosine of the angle between ray and the ground's normal, in (0, 1]."""
        a, b, _ = self.plane
        normal = np.array([-a, -b, 1.0]) / np.sqrt(1 + a * a + b * b)
        return np.clip(np.abs(self.ray @ normal), 1e-3, 1.0)

    def _height(self) -> np.ndarray:
        a, b, c = self.plane
        return self.xyz[:, 2] - (a * self.xyz[:, 0] + b * self.xyz[:, 1] + c)

    def _of_classes(self, words: Sequence[str]) -> np.ndarray:
        ids = [number for number, name in enumerate(self.classes) if _is_any(name, words)]
        return np.isin(self.label, ids)


def estimate_beams(xyz: np.ndarray, beams: int) -> np.ndarray:
    """(N) int64 number of the laser from the elevation, in `beams` equal steps over what the scan spans.

    A real sensor's lasers are not equally spaced; this groups points by elevation, which is what dropping needs.

    Args:
        xyz: (N 3) metres.
        beams: K.
    """
    if not len(xyz):
        return np.zeros(0, dtype=np.int64)
    elevation = np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1]))
    low, high = np.quantile(elevation, [0.001, 0.999])
    steps = (elevation - low) / max(high - low, 1e-6) * beams
    return np.clip(np.floor(steps), 0, beams - 1).astype(np.int64)


def lowest(xyz: np.ndarray) -> np.ndarray:
    """(M 3) the lowest point of each 2 m cell within 40 m: mostly ground."""
    near = xyz[np.hypot(xyz[:, 0], xyz[:, 1]) < _REACH]
    cells = np.floor(near[:, :2] / _CELL).astype(np.int64)
    order = np.lexsort((near[:, 2], cells[:, 1], cells[:, 0]))
    ordered = cells[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    return near[order[first]]


def fit_plane(points: np.ndarray, rounds: int = 8) -> np.ndarray:
    """(3) a, b, c of z = a x + b y + c by least squares over what lies within 0.3 m of the fit before, from the level
    plane at the lower quartile of z on; a level plane where there are fewer than three such points.

    Args:
        points: (M 3) metres.
        rounds: of fitting.
    """
    plane = np.array([0.0, 0.0, np.quantile(points[:, 2], 0.25) if len(points) else 0.0])
    design = np.column_stack([points[:, :2], np.ones(len(points))])
    for band in np.linspace(0.8, 0.3, rounds):
        near = np.abs(points[:, 2] - design @ plane) < band
        if near.sum() < 3:
            break
        plane = np.linalg.lstsq(design[near], points[near, 2], rcond=None)[0]
    return plane


def _is_any(name: str, words: Sequence[str]) -> bool:
    """Whether a class is one of those: `other_flat`, `traffic-cone`... are compared by their words."""
    parts = name.lower().replace("_", " ").replace("-", " ").replace("/", " ").split()
    return any(word in parts or (word in " ".join(parts) and " " in word) for word in words)
