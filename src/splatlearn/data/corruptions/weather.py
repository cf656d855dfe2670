"""Weather: fog, wet ground, snow. What air and water do to a pulse's power, by the lidar equation.

A return's power is reflectivity * exp(-2 alpha R) / R^2, with alpha the extinction of the air in 1/m. It is lost below
`scan.THRESHOLD`. Rays that never had a return are not in a scan, and get none: fog and snow before the sky are missing.

Legend: N rays. Metres unless another unit is said.
"""

from dataclasses import replace

import numpy as np

from splatlearn.data.corruptions.scan import THRESHOLD, Scan, Severity

VISIBILITY: dict[Severity, float] = {"light": 300.0, "moderate": 100.0, "heavy": 50.0}
"""Fog: meteorological optical range, metres. Below 1000 m it is fog, below 200 thick, below 50 dense (Met Office)."""
FILM: dict[Severity, float] = {"light": 0.3, "moderate": 0.8, "heavy": 2.0}
"""Wet ground: depth of the water, millimetres. Our default."""
SNOWFALL: dict[Severity, float] = {"light": 0.5, "moderate": 1.0, "heavy": 2.5}
"""Snow: rate, millimetres of water an hour. Our default; visibility comes to about 1300, 900 and 530 m."""

LIDAR_RATIO = 18.8
"""Extinction over backscatter of water droplets, sr, at 905 nm (O'Connor et al. 2004)."""
PULSE = 1.5
"""Half the length of a pulse of 10 ns, metres: the depth of fog that returns light at one time."""
NEAR = (1.5, 10.0)
"""Metres in which fog returns enough to be detected. Our default."""
WATER_INDEX = 1.33
WET_ALBEDO = 0.5
"""What is left of a rough surface's reflectivity when it is wet (about half for asphalt; Lekner and Dorf 1988)."""
TEXTURE = 0.6
"""Depth of a road's texture, millimetres, over which a film turns it into a mirror (dense asphalt has 0.4 to 0.9)."""
DIVERGENCE = 3e-3
"""Full angle of a beam, radians. Our default; Velodyne's sensors have 2e-3 to 3e-3."""
APERTURE = 0.01
"""Width of a beam at the sensor, metres. Our default."""
FLAKE_REFLECTIVITY = 0.3
"""Of a single flake, which lets most light through; fallen snow has more. Our default."""
FLAKE_GROWTH = 10 ** (1 / 3)
"""A flake's diameter over that of the drop it melts to, at a tenth of water's density."""
LEAST_FLAKE = 2e-3
"""Metres: smaller flakes only dim."""
FLAKE_RANGE = (NEAR[0], 20.0)
"""Metres between which a flake can make a return."""


def fog(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """Returns weaken by exp(-2 alpha R), alpha = ln(20) / visibility; those too weak are lost, or fog returns instead.

    A lost pulse comes back from the fog with the chance 1 - exp(-2 alpha 10 m), at a range r between 1.5 m and 10 m
    whose density is that of the returned power, exp(-2 alpha r) / r^2, if the surface is not nearer. Such a point is as
    bright as a surface of reflectivity pi (alpha / S) l: S the lidar ratio, l half the pulse's length.
    """
    alpha = np.log(20) / VISIBILITY[severity]
    through = np.exp(-2 * alpha * scan.range)
    weak = scan.margin(rng) * through < 1
    scattered = rng.random(len(scan)) < 1 - np.exp(-2 * alpha * NEAR[1])
    places = _scatter_range(alpha, rng.random(len(scan)))
    false = weak & scattered & (places < scan.range)
    return replace(
        scan,
        xyz=np.where(false[:, None], scan.ray * places[:, None], scan.xyz),
        intensity=np.where(false, scan.unit * np.pi * alpha / LIDAR_RATIO * PULSE, scan.intensity * through),
        lost=weak & ~false,
        false=false,
    )


def wet_ground(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """Ground weakens by what its film of water mirrors away; where too little is left, the point is lost.

    A share f = 1 - exp(-film / texture) of the ground is covered. There the light enters and leaves through the film,
    (1 - F)^2 with F Fresnel's reflectance at the angle of incidence, and the ground is darker by `WET_ALBEDO`:
    the factor is 1 - f + f `WET_ALBEDO` (1 - F)^2. Absorption in water (7 / m) is left out: 3 % at most.
    """
    covered = 1 - np.exp(-FILM[severity] / TEXTURE)
    left = 1 - covered + covered * WET_ALBEDO * (1 - fresnel(scan.incidence)) ** 2
    left = np.where(scan.ground, left, 1.0)
    weak = scan.margin(rng) * left < 1
    return replace(scan, intensity=scan.intensity * left, lost=weak)


def snow(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """Flakes in the beam: the strongest return wins, a flake's or that of the surface seen through the snow.

    Flakes follow Gunn and Marshall (1958): N(D) = N0 exp(-L D) a cubic metre, N0 = 3800 R^-0.87 / mm and
    L = 2.55 R^-0.48 / mm, D the diameter when melted and R the snowfall. Their number in a beam is Poisson, their
    place uniform in its volume. One of diameter d at r returns reflectivity * (d / w)^2 / r^2, w the beam's width.
    The surface weakens by exp(-2 alpha range), alpha twice the flakes' cross-section a volume.
    """
    number, rate, alpha = snowflakes(SNOWFALL[severity])
    rays, places, fill = _flakes(scan, number, rate, rng)
    power = FLAKE_REFLECTIVITY * fill * np.exp(-2 * alpha * places) / places**2
    order = np.argsort(power)
    best, place, share = np.zeros(len(scan)), np.ones(len(scan)), np.zeros(len(scan))
    for values, of in ((best, power), (place, places), (share, fill)):
        values[rays[order]] = of[order]  # the strongest is written last
    through = np.exp(-2 * alpha * scan.range)
    left = scan.margin(rng) * through
    false = best > THRESHOLD * np.maximum(left, 1)
    return replace(
        scan,
        xyz=np.where(false[:, None], scan.ray * place[:, None], scan.xyz),
        intensity=np.where(false, scan.unit * FLAKE_REFLECTIVITY * share, scan.intensity * through),
        lost=(left < 1) & ~false,
        false=false,
    )


def snowflakes(snowfall: float) -> tuple[float, float, float]:
    """N0 in 1 / (m^3 mm) and L in 1 / mm of `snow`, and the extinction in 1 / m, twice the integral of N(D) pi d^2 / 4.

    Args:
        snowfall: millimetres of water an hour.
    """
    number, rate = 3800 * snowfall**-0.87, 2.55 * snowfall**-0.48
    return number, rate, 2 * np.pi / 4 * FLAKE_GROWTH**2 * 2 * number / rate**3 * 1e-6


def fresnel(cosine: np.ndarray) -> np.ndarray:
    """Share of unpolarised light that a level surface of water mirrors, by the cosine of its angle of incidence."""
    inside = np.sqrt(1 - (1 - cosine**2) / WATER_INDEX**2)
    across = (cosine - WATER_INDEX * inside) / (cosine + WATER_INDEX * inside)
    along = (inside - WATER_INDEX * cosine) / (inside + WATER_INDEX * cosine)
    return (across**2 + along**2) / 2


def _scatter_range(alpha: float, chance: np.ndarray) -> np.ndarray:
    """Ranges in `NEAR` with density exp(-2 alpha r) / r^2, from uniform numbers."""
    grid = np.geomspace(*NEAR, 256)
    density = np.exp(-2 * alpha * grid) / grid**2
    steps = np.diff(grid) * (density[1:] + density[:-1]) / 2
    return np.interp(chance, np.concatenate([[0.0], np.cumsum(steps) / steps.sum()]), grid)


def _flakes(
    scan: Scan, number: float, rate: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flakes between sensor and surface: (F) ray, (F) metres from the sensor, (F) share of the beam's section."""
    least = LEAST_FLAKE / FLAKE_GROWTH * 1e3
    density = number / rate * np.exp(-rate * least)
    start = APERTURE + DIVERGENCE * FLAKE_RANGE[0]
    end = APERTURE + DIVERGENCE * np.clip(scan.range, *FLAKE_RANGE)
    cubes = end**3 - start**3
    counts = rng.poisson(density * np.pi / 4 * cubes / (3 * DIVERGENCE))
    rays = np.repeat(np.arange(len(scan)), counts)
    width = np.cbrt(start**3 + rng.random(len(rays)) * cubes[rays])
    diameter = (least + rng.exponential(1 / rate, len(rays))) * FLAKE_GROWTH * 1e-3
    return rays, (width - APERTURE) / DIVERGENCE, np.minimum(diameter / width, 1.0) ** 2
