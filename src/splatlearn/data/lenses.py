"""Lenses that bend, and the ideal pinholes that their photographs are resampled into.

Legend: H W pixels. A size is (width, height), pixel centres at half integers, as COLMAP and nerfstudio count them too.
Models and the order of their parameters are COLMAP's (src/colmap/sensor/models.h), which takes the formulas from
OpenCV's camera calibration. Going from the pinhole to the photograph needs the forward formula only: no iteration.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]
WIDEST = 60.0
"""Degrees off the axis in a corner of a pinhole made from a fisheye: beyond, most pixels are stretch (our default)."""
_EDGE, _RADIUS, _HALVINGS = 24, 12, 18
_LONGEST = 4.0
"""Times the lens' focal length: who keeps less than a quarter of a photograph's width has wrong coefficients."""
_FOCAL_RANGE = (0.01, 100.0)
"""Of the larger side; what is outside is no photograph (our default; COLMAP itself refuses outside 0.1 to 10)."""


class Model(NamedTuple):
    """A camera model of COLMAP: its number in binary files, its parameters, and which formula bends the rays.

    `fisheye` is None where no formula is here: such files are read, and their photographs are left out.
    """

    number: int
    parameters: tuple[str, ...]
    fisheye: bool | None


def _model(number: int, parameters: str, fisheye: bool | None = False) -> Model:
    return Model(number, tuple(parameters.split()), fisheye)


MODELS = {
    "SIMPLE_PINHOLE": _model(0, "f cx cy"),
    "PINHOLE": _model(1, "fx fy cx cy"),
    "SIMPLE_RADIAL": _model(2, "f cx cy k1"),
    "RADIAL": _model(3, "f cx cy k1 k2"),
    "OPENCV": _model(4, "fx fy cx cy k1 k2 p1 p2"),
    "OPENCV_FISHEYE": _model(5, "fx fy cx cy k1 k2 k3 k4", fisheye=True),
    "FULL_OPENCV": _model(6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
    "FOV": _model(7, "fx fy cx cy omega", fisheye=None),
    "SIMPLE_RADIAL_FISHEYE": _model(8, "f cx cy k1", fisheye=True),
    "RADIAL_FISHEYE": _model(9, "f cx cy k1 k2", fisheye=True),
    "THIN_PRISM_FISHEYE": _model(10, "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", fisheye=True),
    "RAD_TAN_THIN_PRISM_FISHEYE": _model(11, "fx fy cx cy k0 k1 k2 k3 k4 k5 p0 p1 s0 s1 s2 s3", fisheye=None),
    "SIMPLE_DIVISION": _model(12, "f cx cy k", fisheye=None),
    "DIVISION": _model(13, "fx fy cx cy k", fisheye=None),
    "SIMPLE_FISHEYE": _model(14, "f cx cy", fisheye=True),
    "FISHEYE": _model(15, "fx fy cx cy", fisheye=True),
    "EUCM": _model(16, "fx fy cx cy alpha beta", fisheye=None),
}


class Bend(NamedTuple):
    """Distortion coefficients, as OpenCV names them; `k4` is the rational model's, or the fisheye's fourth."""

    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    k5: float = 0.0
    k6: float = 0.0
    sx1: float = 0.0
    sy1: float = 0.0


@dataclass(frozen=True)
class Lens:
    """The camera that took a photograph.

    Args:
        model: its name in `MODELS`, for messages.
        width: pixels of the photograph.
        height: pixels of the photograph.
        focal: (fx, fy) pixels; of a fisheye, pixels a radian at the centre.
        centre: (cx, cy) pixels.
        bend: coefficients.
        fisheye: rays are bent as a fisheye's (by angle), else as a perspective lens' (by slope).
    """

    model: str
    width: int
    height: int
    focal: tuple[float, float]
    centre: tuple[float, float]
    bend: Bend = Bend()
    fisheye: bool = False

    @classmethod
    def of(cls, name: str, size: Size, values: dict[str, float]) -> "Lens | str":
        """The lens, or why there is none that could be used.

        Args:
            name: of a model in `MODELS`.
            size: (width, height) that the parameters belong to.
            values: parameter -> value, as named in `MODELS`.
        """
        if MODELS[name].fisheye is None:
            return f"camera: lens distortion of the model {name} is not removed here"
        fx = values.get("fx", values.get("f", 0.0))
        fy = values.get("fy", fx)
        bend = Bend(**{key: value for key, value in values.items() if key in Bend._fields})
        lens = cls(name, *size, (fx, fy), (values["cx"], values["cy"]), bend, bool(MODELS[name].fisheye))
        return lens._problem() or lens

    @property
    def size(self) -> Size:
        """(width, height) of the photograph."""
        return self.width, self.height

    @property
    def bends(self) -> bool:
        """Whether the photograph is not a pinhole's already."""
        return self.fisheye or any(self.bend)

    def resize(self, size: Size) -> Self:
        """The lens of the same photograph at another size; coefficients do not change."""
        x, y = size[0] / self.width, size[1] / self.height
        (fx, fy), (cx, cy) = self.focal, self.centre
        return replace(self, width=size[0], height=size[1], focal=(fx * x, fy * y), centre=(cx * x, cy * y))

    def project(self, slopes: np.ndarray) -> np.ndarray:
        """Pixels of the photograph.

        Args:
            slopes: (... 2) float64 directions x/z and y/z in the camera, z > 0.

        Returns:
            (... 2) pixels (x, y); infinite or NaN where the formula breaks down.
        """
        with np.errstate(all="ignore"):
            bent = _bend_angles(slopes, self.bend) if self.fisheye else _bend_slopes(slopes, self.bend)
            return bent * self.focal + self.centre

    def pinhole(self) -> np.ndarray | None:
        """(3 3) intrinsics of the ideal camera, for this size; None where there is none.

        The photograph's own, when nothing bends. Else its focal lengths times the smallest factor at which every ray
        of the ideal image, to its very border, meets the photograph once: **no pixel without a photograph behind it**,
        at the price of its rim. The principal point stays. Of a fisheye the corners are `WIDEST` off the axis at most.
        """
        return _pinhole(self)

    def _problem(self) -> str:
        numbers = (*self.focal, *self.centre, *self.bend)
        least, most = (factor * max(self.width, self.height) for factor in _FOCAL_RANGE)
        if not 0 < self.width <= 1 << 20 or not 0 < self.height <= 1 << 20:
            return f"camera: a size in pixels expected, got {self.width:.7g}x{self.height:.7g}"
        if not np.isfinite(numbers).all():
            return "camera: a parameter is not finite"
        if not all(least <= f <= most for f in self.focal):
            return f"camera: focal lengths of {self.focal[0]:g} and {self.focal[1]:g} px for {self.width}x{self.height}"
        if max(map(abs, self.centre)) > 10 * max(self.width, self.height):
            return f"camera: principal point ({self.centre[0]:g}, {self.centre[1]:g}) for {self.width}x{self.height}"
        return ""


def undistort(image: np.ndarray, lens: Lens, size: Size) -> Tensor:
    """A photograph as the ideal pinhole sees it, bilinear; averaged over pixels of twice the size where it shrinks.

    Args:
        image: (h w 3) uint8, the whole photograph at `reading_size` or larger.
        lens: that took it; it bends.
        size: (width, height) wanted.

    Returns:
        (3 H W) float32 in [0, 1].
    """
    finer = _finer(lens, size)
    places = torch.from_numpy(_places(lens, (size[0] * finer, size[1] * finer)) * 2 - 1)
    source = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    seen = torch.nn.functional.grid_sample(source, places[None], padding_mode="border", align_corners=False)
    return torch.nn.functional.avg_pool2d(seen, finer)[0] if finer > 1 else seen[0]


def undistort_depth(depth: np.ndarray, lens: Lens, size: Size) -> np.ndarray:
    """(H W) depth along z as the ideal pinhole sees it: the nearest pixel's, so that none is invented.

    Args:
        depth: (h w) metres of the whole photograph, at any size.
        lens: as of the photograph; it bends.
        size: (width, height) wanted.
    """
    height, width = depth.shape
    pixels = np.floor(_places(lens, size) * np.array([width, height], np.float32)).astype(np.int64)
    return depth[pixels[..., 1].clip(0, height - 1), pixels[..., 0].clip(0, width - 1)]


def reading_size(lens: Lens, size: Size) -> Size:
    """(width, height) at which a photograph is decoded for `undistort`: as fine as the finest part that is wanted."""
    matrix = lens.pinhole()
    assert matrix is not None
    finer, native = _finer(lens, size), lens.size
    wanted = [finer * size[i] * max(matrix[i, i] / lens.focal[i], 1) for i in range(2)]
    return min(native[0], int(np.ceil(wanted[0]))), min(native[1], int(np.ceil(wanted[1])))


def _finer(lens: Lens, size: Size) -> int:
    return 2 if size[0] < lens.width or size[1] < lens.height else 1


def _bend_slopes(slopes: np.ndarray, b: Bend) -> np.ndarray:
    """OpenCV's rational and tangential distortion of (x/z, y/z)."""
    r2 = (slopes**2).sum(-1)
    radial = (1 + r2 * (b.k1 + r2 * (b.k2 + r2 * b.k3))) / (1 + r2 * (b.k4 + r2 * (b.k5 + r2 * b.k6)))
    return slopes * radial[..., None] + _tangential(slopes, r2, b)


def _bend_angles(slopes: np.ndarray, b: Bend) -> np.ndarray:
    """OpenCV's fisheye distortion, with COLMAP's tangential and thin prism terms: of the ray's angle to the axis."""
    length = np.linalg.norm(slopes, axis=-1)
    factor = np.where(length > 1e-9, np.arctan(length) / np.maximum(length, 1e-9), 1.0)
    angles = slopes * factor[..., None]
    t2 = (angles**2).sum(-1)
    radial = 1 + t2 * (b.k1 + t2 * (b.k2 + t2 * (b.k3 + t2 * b.k4)))
    return angles * radial[..., None] + _tangential(angles, t2, b) + t2[..., None] * np.array([b.sx1, b.sy1])


def _tangential(xy: np.ndarray, r2: np.ndarray, b: Bend) -> np.ndarray:
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([2 * b.p1 * x * y + b.p2 * (r2 + 2 * x * x), 2 * b.p2 * x * y + b.p1 * (r2 + 2 * y * y)], -1)


@lru_cache(maxsize=256)
def _pinhole(lens: Lens) -> np.ndarray | None:
    matrix = np.array([[lens.focal[0], 0, lens.centre[0]], [0, lens.focal[1], lens.centre[1]], [0, 0, 1]], float)
    factor = _factor(lens) if lens.bends else 1.0
    if factor is None:
        return None
    matrix[[0, 1], [0, 1]] *= factor
    matrix.setflags(write=False)
    return matrix


def _factor(lens: Lens) -> float | None:
    """The smallest factor on the focal lengths that fits, by halving; None where none up to 4 does."""
    rim = (_outline(lens.size) - lens.centre) / lens.focal
    floor = float(np.linalg.norm(rim, axis=-1).max() / np.tan(np.radians(WIDEST)))
    fits, low = _LONGEST, floor if lens.fisheye else min(1.0, floor)
    if not _is_covered(lens, rim / fits):
        return None
    if _is_covered(lens, rim / low):
        return low
    for _ in range(_HALVINGS):
        middle = np.sqrt(fits * low)
        if _is_covered(lens, rim / middle):
            fits = middle
        else:
            low = middle
    return float(fits)


def _is_covered(lens: Lens, rim: np.ndarray) -> bool:
    """Whether the rays from the axis to the rim all lie in the photograph, and move outwards as their slopes do."""
    steps = np.linspace(0, 1, _RADIUS + 1)[:, None, None]
    pixels = lens.project(rim * steps)
    with np.errstate(invalid="ignore"):
        inside = ((pixels >= 0) & (pixels <= np.array(lens.size))).all()
        outward = (np.diff(pixels / lens.focal, axis=0) * rim).sum(-1) > 0
    return bool(inside and outward.all())


def _outline(size: Size) -> np.ndarray:
    """(4 _EDGE 2) pixels around the border of an image, corners included."""
    run = np.linspace(0, 1, _EDGE, endpoint=False)
    zero, one = np.zeros_like(run), np.ones_like(run)
    sides = [(run, zero), (one, run), (1 - run, one), (zero, 1 - run)]
    return np.concatenate([np.stack(side, -1) for side in sides]) * np.array(size, dtype=np.float64)


@lru_cache(maxsize=2)
def _places(lens: Lens, size: Size) -> np.ndarray:
    """(H W 2) float32: where the ideal pinhole's pixel centres lie in the photograph, as fractions of its sides."""
    matrix = lens.pinhole()
    assert matrix is not None
    x = ((np.arange(size[0]) + 0.5) * (lens.width / size[0]) - matrix[0, 2]) / matrix[0, 0]
    y = ((np.arange(size[1]) + 0.5) * (lens.height / size[1]) - matrix[1, 2]) / matrix[1, 1]
    places = np.empty((size[1], size[0], 2), np.float32)
    for row in range(0, size[1], 256):  # in slices: the formula takes several arrays of its argument's size
        slopes = np.stack(np.meshgrid(x, y[row : row + 256]), -1)
        places[row : row + 256] = lens.project(slopes) / np.array(lens.size)
    places.setflags(write=False)
    return places
