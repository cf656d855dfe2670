"""The cameras of a calibrated folder, as its `calibration.json` describes them. Metres, pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from splatlearn.data.lenses import MODELS, Lens
from splatlearn.data.projection import ProjectionRule
from splatlearn.data.scans import Size
from splatlearn.errors import BadData


class Camera(NamedTuple):
    """A camera of the rig.

    Args:
        name: of its folder of images.
        pose: (4 4) float64 lidar to camera.
        intrinsics: (3 3) of the pinhole.
        size: of its images.
        lens: that bends, where one does.
    """

    name: str
    pose: np.ndarray
    intrinsics: np.ndarray
    size: Size
    lens: Lens | None


@dataclass(frozen=True, kw_only=True)
class Rig:
    """What `calibration.json` says.

    Args:
        columns: of a record.
        names: of all cameras.
        cameras: name -> camera, those that are used.
        classes: names of class ids.
        ignore: ids that become -1.
        projection: which points a camera sees.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    cameras: Mapping[str, Camera]
    classes: tuple[str, ...]
    ignore: tuple[int, ...]
    projection: ProjectionRule


def lens_of(given: Any, matrix: np.ndarray, size: Size, where: str) -> Lens | None:
    """The lens that `distortion` describes, where one bends.

    Args:
        given: an object of a model and its coefficients, or None.
        matrix: (3 3) intrinsics.
        size: of the images.
        where: for messages.

    Raises:
        BadData: an unknown model or coefficient, or a model that is not removed here.
    """
    if given is None:
        return None
    model = given.get("model") if isinstance(given, dict) else None
    if model not in MODELS:
        raise BadData(f"{where}: distortion: an object with a model of {', '.join(MODELS)} expected, got {given}")
    own = {"fx": matrix[0, 0], "fy": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2], "f": matrix[0, 0]}
    bends = [name for name in MODELS[model].parameters if name not in own]
    if wrong := [name for name in given if name not in (*bends, "model")]:
        raise BadData(f"{where}: distortion: {model} has {', '.join(bends)} (others are of K); got {wrong[0]!r}")
    values = {name: float(given.get(name, 0.0)) for name in bends} | {name: float(v) for name, v in own.items()}
    lens = Lens.of(model, size, values)
    if isinstance(lens, str):
        raise BadData(f"{where}: {lens}")
    return lens if lens.bends else None
