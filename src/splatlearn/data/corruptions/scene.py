"""Corruptions by name, of scans and of scenes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.corruptions import sensor, weather
from splatlearn.data.corruptions.scan import SEVERITIES, Scan, Severity, estimate_beams
from splatlearn.data.scene import Scene
from splatlearn.errors import UserError, nearest
from splatlearn.structures import Boxes, Cameras, Frames, Gaussians, Points

CORRUPTIONS: Mapping[str, Callable[[Scan, Severity, np.random.Generator], Scan]] = {
    "fog": weather.fog,
    "wet_ground": weather.wet_ground,
    "snow": weather.snow,
    "motion_blur": sensor.motion_blur,
    "beam_missing": sensor.beam_missing,
    "crosstalk": sensor.crosstalk,
    "incomplete_echo": sensor.incomplete_echo,
    "cross_sensor": sensor.cross_sensor,
}
"""Name -> generator, in Robo3D's order and under its folder names."""


def corrupt(
    points: Points,
    name: str,
    severity: str,
    rng: np.random.Generator,
    *,
    statistics: tuple[float, float] = (0.0, 1.0),
    classes: Sequence[str] = (),
    beams: int = 64,
) -> Points:
    """A scan under one corruption.

    Lost points vanish, the others keep their order. A false return (fog, a flake, crosstalk) stands in the row of the
    ray it is on, with that ray's `beam`; its `label` and `instance` are -1, so that no score counts it. What class
    Robo3D gives such points is not stated by its public tables and pages; leaving them out is our choice.

    Args:
        points: one scan with `intensity`, in the lidar's frame; `label` and `beam` where they are known. What is
            computed from xyz (neighbours, positions, radii) is to be computed after this.
        name: of `CORRUPTIONS`.
        severity: `light`, `moderate` or `heavy`.
        rng: all randomness.
        statistics: mean and deviation of intensity, by which `reflectance` is computed anew where it is there.
        classes: names of the label ids, by which ground and vehicles are known; without them ground is a plane that is
            fitted, and dark points stand for vehicles.
        beams: lasers of the sensor, for points without `beam`.

    Raises:
        UserError: unknown corruption or severity; several scans at once.
        MissingAttribute: no `intensity`.
    """
    check_known(name, severity)
    if len(points.counts) != 1:
        raise UserError(f"corrupt: one scan at a time is needed, got {len(points.counts)}")
    before = to_scan(points, tuple(classes), beams)
    after = CORRUPTIONS[name](before, SEVERITIES[SEVERITIES.index(severity)], rng)
    return _to_points(points, after, statistics)


def check_known(name: str, severity: str = "light") -> None:
    """Refuses what is no corruption or no severity.

    Raises:
        UserError: with the nearest name.
    """
    for what, value, known in (("corruption", name, tuple(CORRUPTIONS)), ("severity", severity, SEVERITIES)):
        if value not in known:
            raise UserError(f"no {what} {value!r}{nearest(value, known)} (known: {', '.join(known)})")


def to_scan(points: Points, classes: tuple[str, ...] = (), beams: int = 64) -> Scan:
    """The scan as corruptions take it; arguments as of `corrupt`."""
    xyz = points.xyz.double().cpu().numpy()
    none = np.zeros(len(xyz), dtype=bool)
    return Scan(
        xyz=xyz,
        intensity=points["intensity"].double().cpu().numpy(),
        lost=none,
        false=none,
        label=points["label"].cpu().numpy() if "label" in points else np.full(len(xyz), -1),
        beam=points["beam"].cpu().numpy() if "beam" in points else estimate_beams(xyz, beams),
        classes=classes,
    )


class CorruptedScene(Scene):
    """Another scene whose points are corrupted; frames and everything else are that scene's own, uncorrupted.

    The corruption is a function of (seed, scene's name, corruption, severity): the same at every call.

    Args:
        scene: a lidar scene.
        corruption: of `CORRUPTIONS`.
        severity: `light`, `moderate` or `heavy`.
        seed: of the corruption.
        classes: names of the label ids.
        beams: lasers of the sensor, for scans that do not say.

    Raises:
        UserError: unknown corruption or severity.
    """

    def __init__(
        self,
        scene: Scene,
        corruption: str,
        severity: str,
        *,
        seed: int = 0,
        classes: Sequence[str] = (),
        beams: int = 64,
    ) -> None:
        check_known(corruption, severity)
        for attribute in Scene.__annotations__:
            setattr(self, attribute, getattr(scene, attribute))
        self.scene, self.corruption, self.severity = scene, corruption, severity
        self.seed, self.classes, self.beams = seed, tuple(classes), beams
        self.name = f"{scene.name}@{corruption}-{severity}-{seed}"

    def points(self) -> Points:
        """The corrupted scan."""
        return corrupt(
            self.scene.points(),
            self.corruption,
            self.severity,
            self._rng(),
            statistics=getattr(self.scene, "intensity_statistics", (0.0, 1.0)),
            classes=self.classes,
            beams=self.beams,
        )

    @property
    def cameras(self) -> Cameras:
        """The scene's."""
        return self.scene.cameras

    def frames(self, views: Sequence[int], size: tuple[int, int]) -> Frames:
        """The scene's."""
        return self.scene.frames(views, size)

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """The scene's."""
        return self.scene.images(views)

    def gaussians(self) -> Gaussians:
        """The scene's."""
        return self.scene.gaussians()

    def boxes(self) -> Boxes:
        """The scene's."""
        return self.scene.boxes()

    def _rng(self) -> np.random.Generator:
        told = "\n".join([str(self.seed), self.scene.name, self.corruption, self.severity])
        return np.random.default_rng(list(hashlib.sha256(told.encode()).digest()))


def _to_points(points: Points, scan: Scan, statistics: tuple[float, float]) -> Points:
    mean, deviation = statistics
    intensity = torch.from_numpy(np.clip(scan.intensity, 0, 1)).to(points["intensity"])
    changed = {"intensity": intensity}
    if "reflectance" in points:
        changed["reflectance"] = ((intensity - mean) / deviation).to(points["reflectance"])
    false = torch.from_numpy(scan.false).to(points.device)
    for name in {"label", "instance"} & set(points.attributes):
        changed[name] = points[name].masked_fill(false, -1)
    whole = replace(points, xyz=torch.from_numpy(scan.xyz).to(points.xyz)).with_attributes(**changed)
    return whole.rows(torch.from_numpy(~scan.lost).to(points.device))
