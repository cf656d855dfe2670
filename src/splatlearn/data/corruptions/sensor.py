"""Disturbances and faults of the sensor: motion blur, missing beams, crosstalk, incomplete echo, another sensor.

Legend: N rays, K beams. Metres. Severities are our defaults unless a source is named.
"""

from dataclasses import replace

import numpy as np

from splatlearn.data.corruptions.scan import Scan, Severity

SHAKE: dict[Severity, float] = {"light": 0.05, "moderate": 0.1, "heavy": 0.2}
"""Motion blur: root mean square of the displacement along each axis, metres."""
MISSING: dict[Severity, float] = {"light": 0.25, "moderate": 0.5, "heavy": 0.75}
"""Beam missing: share of the beams that is gone; of 64 beams 48, 32 and 16 are left."""
CROSSTALK: dict[Severity, float] = {"light": 0.02, "moderate": 0.05, "heavy": 0.10}
"""Crosstalk: share of the returns that another sensor's pulse made."""
SILENT: dict[Severity, float] = {"light": 0.5, "moderate": 0.75, "heavy": 0.95}
"""Incomplete echo: share of the points of dark things that is gone."""
BEAMS: dict[Severity, tuple[int, int]] = {"light": (48, 24), "moderate": (32, 16), "heavy": (16, 12)}
"""Cross-sensor: beams left of 64 and of 32 (the sensors of SemanticKITTI and nuScenes); other numbers in proportion
to the nearer of the two."""
FIRINGS: dict[Severity, float] = {"light": 1.0, "moderate": 0.75, "heavy": 0.5}
"""Cross-sensor: share of a beam's shots that is left, evenly spaced."""

SWEEP = 0.1
"""Seconds of a sweep: 10 Hz, KITTI's."""
FREQUENCIES = (10.0, 80.0)
"""Hz between which a vehicle shakes its sensor."""
TONES = 4
NEAREST = 1.0
"""Metres: the least range of a false return."""
FARTHEST = 100.0
"""Metres that a sensor listens for at least."""
DARK = 0.1
"""Quantile of intensity below which a thing is dark where classes are unknown."""


def motion_blur(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """Points move with the sensor: half of the variance shakes along the sweep, half is noise of each shot.

    The shake is a sum of sines in time, of random frequency in 10 to 80 Hz, phase and axis; time is the azimuth.
    No point is lost, and labels stay.
    """
    amplitude = SHAKE[severity] / np.sqrt(2)
    frequency = rng.uniform(*FREQUENCIES, (TONES, 3))
    phase = rng.uniform(0, 2 * np.pi, (TONES, 3))
    waves = np.sin(2 * np.pi * frequency * SWEEP * scan.turn[:, None, None] + phase)
    shake = amplitude * np.sqrt(2 / TONES) * waves.sum(1)
    return replace(scan, xyz=scan.xyz + shake + rng.normal(0, amplitude, scan.xyz.shape))


def beam_missing(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """A random share of the beams returns nothing."""
    beams = np.unique(scan.beam)
    gone = rng.permutation(beams)[: round(MISSING[severity] * len(beams))]
    return replace(scan, lost=np.isin(scan.beam, gone))


def crosstalk(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """A random share of the returns is another sensor's pulse.

    It comes at any time within the listening window: the range along the ray is uniform between 1 m and the farther of
    100 m and the scan's farthest point. Its strength has nothing to do with the scene: intensity is uniform in [0, 1].
    """
    false = rng.random(len(scan)) < CROSSTALK[severity]
    farthest = max(FARTHEST, scan.range.max(initial=0.0))
    places = rng.uniform(NEAREST, farthest, len(scan))
    strength = rng.random(len(scan))
    return replace(
        scan,
        xyz=np.where(false[:, None], scan.ray * places[:, None], scan.xyz),
        intensity=np.where(false, strength, scan.intensity),
        false=false,
    )


def incomplete_echo(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """Dark things swallow the pulse: a random share of their points is lost.

    They are vehicles and two-wheelers by class; where classes are unknown, the tenth of the points with the least
    intensity.
    """
    dark = scan.vehicles
    if len(scan) and not (scan.classes and (scan.label >= 0).any()):
        dark = scan.intensity <= np.quantile(scan.intensity, DARK)
    return replace(scan, lost=dark & (rng.random(len(scan)) < SILENT[severity]))


def cross_sensor(scan: Scan, severity: Severity, rng: np.random.Generator) -> Scan:
    """A sensor with fewer beams and coarser steps of azimuth: evenly spaced ones stay, from a random start."""
    beams, place = np.unique(scan.beam, return_inverse=True)
    span = int(beams.max() - beams.min()) + 1 if len(beams) else 0
    few, firings = BEAMS[severity][0] / 64 if span > 48 else BEAMS[severity][1] / 32, FIRINGS[severity]
    stays = _even(len(beams), few, rng.random())[place]
    order = np.lexsort((scan.turn, place))
    starts = np.searchsorted(place[order], np.arange(len(beams)))
    shot = np.empty(len(scan), dtype=np.int64)
    shot[order] = np.arange(len(scan)) - starts[place[order]]
    return replace(scan, lost=~(stays & _even(int(shot.max(initial=0)) + 1, firings, rng.random())[shot]))


def _even(count: int, share: float, start: float) -> np.ndarray:
    """(count) bool, True for a share of the places, evenly spaced."""
    edges = np.floor(np.arange(count + 1) * share + start)
    return np.diff(edges) > 0
