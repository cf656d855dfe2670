"""Procedural materials: tileable colour textures with mip levels, looked up at surface coordinates.

Legend: S texture side in texels, N lookups. Textures hold linear reflectance (sRGB value ** 2.2).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Pattern = Callable[[np.random.Generator, Array, Array], Array]

SIDE = 128
GAMMA = 2.2


def noise(rng: np.random.Generator, roughness: float = 1.6, stretch: float = 1.0, side: int = SIDE) -> Array:
    """(S S) tileable fractal noise, mean 0 and deviation 1.

    Args:
        rng: source of the phases.
        roughness: the amplitude falls with frequency to this power.
        stretch: features are this much longer along u (the first axis).
        side: S.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * _filter(roughness, stretch, side)
    values = np.fft.irfft2(spectrum, (side, side))
    return values / values.std()


@lru_cache(maxsize=64)
def _filter(roughness: float, stretch: float, side: int) -> Array:
    """(S S/2+1) amplitude at each frequency; the mean is taken out."""
    u = np.fft.fftfreq(side)[:, None] * side * stretch
    v = np.fft.rfftfreq(side)[None] * side
    radius = np.sqrt(u**2 + v**2)
    radius[0, 0] = np.inf
    return radius**-roughness


def _mix(weight: Array, first: Array, second: Array) -> Array:
    return first + np.clip(weight, 0, 1)[..., None] * (second - first)


@lru_cache(maxsize=4)
def _grid(side: int = SIDE) -> tuple[Array, Array]:
    ticks = (np.arange(side) + 0.5) / side
    return np.meshgrid(ticks, ticks, indexing="ij")  # type: ignore[return-value]


def plain(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Paint: hardly visible mottling."""
    return _mix(0.06 * np.abs(noise(rng, 1.2)), first, second)


def mottled(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Cloudy plaster, leather or stone."""
    return _mix(0.35 + 0.25 * noise(rng, 1.4), first, second)


def grain(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Wood grain along u."""
    v = _grid()[1]
    rings = np.sin(2 * np.pi * (int(rng.integers(4, 9)) * v + 0.25 * noise(rng, 2.0, 6.0)))
    return _mix(0.4 + 0.25 * rings + 0.18 * noise(rng, 0.8, 16.0), first, second)


def planks(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Boards along u with seams, each of another tone."""
    u, v = _grid()
    count = int(rng.integers(5, 9))
    board = np.minimum((v * count).astype(int), count - 1)
    ends = rng.random(count)[board]
    piece = ((u - ends) % 1.0 > 0.5).astype(int)
    tone = rng.normal(0, 0.22, (count, 2))[board, piece]
    color = _mix(0.4 + tone + 0.16 * noise(rng, 0.9, 14.0), first, second)
    seam = ((v * count) % 1.0 < 0.05) | (((u - ends) % 0.5) < 0.012)
    return np.where(seam[..., None], 0.45 * color, color)


def tiles(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Square tiles with grout."""
    u, v = _grid()
    count = int(rng.integers(3, 7))
    tone = rng.normal(0, 0.12, (count, count))[(u * count).astype(int), (v * count).astype(int)]
    color = _mix(0.2 + tone + 0.08 * noise(rng, 1.2), first, second)
    grout = ((u * count) % 1.0 < 0.05) | ((v * count) % 1.0 < 0.05)
    return np.where(grout[..., None], 0.35 + 0.4 * second, color)


def bricks(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Running bond along v, so that courses are level on walls."""
    u, v = _grid()
    rows, columns = 12, 4
    row = (u * rows).astype(int)
    shifted = (v * columns + 0.5 * (row % 2)) % columns
    tone = rng.normal(0, 0.2, (rows, columns))[row, shifted.astype(int)]
    color = _mix(0.4 + tone + 0.12 * noise(rng, 0.8), first, second)
    mortar = ((u * rows) % 1.0 < 0.14) | (shifted % 1.0 < 0.06)
    return np.where(mortar[..., None], 0.3 + 0.5 * color.mean((0, 1)), color)


def stripes(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Bands across v of two widths."""
    v = _grid()[1] * int(rng.integers(3, 12)) % 1.0
    return _mix((v < rng.uniform(0.25, 0.6)) + 0.05 * noise(rng, 0.6), first, second)


def checks(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Tartan: bands both ways."""
    u, v = (axis * int(rng.integers(4, 10)) % 1.0 for axis in _grid())
    return _mix(0.45 * (u < 0.5) + 0.45 * (v < 0.5) + 0.05 * noise(rng, 0.5), first, second)


def weave(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Coarse cloth: fine threads and uneven dye."""
    u, v = (np.sin(2 * np.pi * 24 * axis) for axis in _grid())
    return _mix(0.4 + 0.22 * u * v + 0.16 * noise(rng, 0.5) + 0.08 * noise(rng, 1.6), first, second)


def dots(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Round spots in rows."""
    count = int(rng.integers(4, 9))
    u, v = (axis * count % 1.0 - 0.5 for axis in _grid())
    return _mix((np.hypot(u, v) < rng.uniform(0.2, 0.4)) + 0.05 * noise(rng, 0.6), first, second)


def damask(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Wallpaper ornament: interfering waves."""
    u, v = (2 * np.pi * axis * int(rng.integers(2, 5)) for axis in _grid())
    wave = np.sin(u) * np.sin(v) + 0.6 * np.sin(2 * u + np.cos(v)) + 0.5 * np.cos(3 * v + np.sin(u))
    return _mix(0.5 + 0.6 * np.tanh(3 * wave) + 0.04 * noise(rng, 0.6), first, second)


def marble(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Veins."""
    u = _grid()[0]
    vein = np.abs(np.sin(2 * np.pi * (u + 0.35 * noise(rng, 1.7))))
    return _mix(1.0 - vein**0.35, first, second)


def speckle(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """Terrazzo, granite, carpet pile."""
    return _mix(0.25 + 0.7 * (noise(rng, 0.7) > 1.0) + 0.12 * noise(rng, 0.2), first, second)


def painting(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """An abstract picture: smooth fields cut by thresholds, with a few blocks."""
    u, v = _grid()
    color = _mix(0.5 + 0.5 * noise(rng, 2.2), first, second)
    for _ in range(int(rng.integers(3, 8))):
        other = rng.uniform(0.02, 0.9, 3)
        if rng.random() < 0.5:
            cu, cv, ru, rv = rng.uniform(0.1, 0.9, 2).tolist() + rng.uniform(0.05, 0.3, 2).tolist()
            inside = ((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 < 1
        else:
            inside = noise(rng, 2.2) > rng.uniform(0.2, 1.2)
        color = np.where(inside[..., None], other, color)
    return np.clip(color + 0.04 * noise(rng, 0.8)[..., None], 0, 1)


def outdoors(rng: np.random.Generator, first: Array, second: Array) -> Array:
    """A bright blurred view: sky over greenery or houses; u points up."""
    u = _grid()[0]
    horizon = rng.uniform(0.25, 0.55) + 0.05 * noise(rng, 2.0, 0.1)[0][None]
    sky = _mix(u, np.array([0.95, 0.97, 1.0]), np.array([0.55, 0.72, 0.95]))
    ground = _mix(0.5 + 0.3 * noise(rng, 1.4), first, second)
    return np.where((u > horizon)[..., None], sky, ground)


@dataclass(frozen=True)
class Material:
    """A surface finish.

    Args:
        texture: (S S 3) linear reflectance in [0, 1].
        size: metres that one repeat of the texture covers, or (metres along u, metres along v).
        glow: radiance added by itself, as a fraction of white; lamps and windows.
        glass: whether a depth sensor often sees nothing there.
    """

    texture: NDArray[np.float32]
    size: tuple[float, float]
    glow: float = 0.0
    glass: bool = False


@dataclass
class Materials:
    """All materials of one room, in order of making, with a lookup over all of them at once."""

    entries: list[Material] = field(default_factory=list)

    def add(
        self,
        pattern: Pattern,
        rng: np.random.Generator,
        colors: tuple[Array, Array],
        size: float | tuple[float, float],
        glow: float = 0.0,
        glass: bool = False,
    ) -> int:
        """Makes a material and returns its index.

        Args:
            pattern: a function of this module.
            rng: source of the pattern.
            colors: two (3) sRGB colours in [0, 1].
            size: metres of one repeat.
            glow: see `Material`.
            glass: see `Material`.
        """
        linear = pattern(rng, colors[0] ** GAMMA, colors[1] ** GAMMA)
        both = (size, size) if isinstance(size, int | float) else size
        self.entries.append(Material(np.clip(linear, 0.003, 0.97).astype(np.float32), both, glow, glass))
        return len(self.entries) - 1

    def sampler(self) -> "Sampler":
        """The lookup of everything added so far."""
        return Sampler(self.entries)


class Sampler:
    """The textures of many materials in one array, with mip levels, as `shading.shade` reads them.

    Args:
        materials: at least one; all textures have side `SIDE`.

    Attributes:
        size: (materials 2) metres of one repeat.
        glow: (materials) see `Material`.
        glass: (materials) see `Material`.
        mean: (materials 3) mean reflectance.
        texels: (T 3) all levels one after another, materials within a level, row-major.
        starts: first texel of each level.
    """

    def __init__(self, materials: list[Material]) -> None:
        self.size = np.array([m.size for m in materials], np.float32)
        self.glow = np.array([m.glow for m in materials], np.float32)
        self.glass = np.array([m.glass for m in materials])
        level: NDArray[np.float32] = np.stack([m.texture for m in materials])
        self.mean = level.mean((1, 2))
        levels = [level]
        while level.shape[1] > 2:
            four = level[:, ::2, ::2] + level[:, 1::2, ::2] + level[:, ::2, 1::2] + level[:, 1::2, 1::2]
            level = four * np.float32(0.25)
            levels.append(level)
        self.starts = np.cumsum([0] + [part[..., 0].size for part in levels])[:-1]
        self.texels = np.concatenate([part.reshape(-1, 3) for part in levels])
