"""A piece of furniture in its own frame: x to the side, +y its back, z up, standing on z = 0. Metres."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splatlearn.data.procedural.mesh import Builder, Mesh
from splatlearn.data.rooms.finishes import Finishes


@dataclass(frozen=True)
class Surface:
    """A level rectangle that things can stand on.

    Args:
        low: (x, y) of one corner in the piece's frame.
        high: (x, y) of the opposite corner.
        z: height.
        clearance: free height above.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    z: float
    clearance: float = 0.5


@dataclass(frozen=True)
class Piece:
    """One object.

    Args:
        label: class name.
        mesh: centred on its footprint, back towards +y.
        surfaces: where smaller things may stand.
    """

    label: str
    mesh: Mesh
    surfaces: tuple[Surface, ...] = ()

    @property
    def size(self) -> tuple[float, float, float]:
        """Extents along x, y, z, with z from the floor."""
        low, high = self.mesh.bounds
        return float(high[0] - low[0]), float(high[1] - low[1]), float(high[2])


Maker = Callable[[np.random.Generator, Finishes], Piece]


def finish(label: str, builder: Builder, surfaces: tuple[Surface, ...] = ()) -> Piece:
    """Centres what was built on its footprint and names it."""
    mesh = builder.mesh()
    middle = mesh.bounds.mean(0)
    moved = mesh.transform(np.eye(3), (-middle[0], -middle[1], 0.0))
    shifted = tuple(
        Surface(
            (s.low[0] - middle[0], s.low[1] - middle[1]),
            (s.high[0] - middle[0], s.high[1] - middle[1]),
            s.z,
            s.clearance,
        )
        for s in surfaces
    )
    return Piece(label, moved, shifted)


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return bool(rng.random() < probability)


def span(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number."""
    return float(rng.uniform(low, high))


def legs(
    builder: Builder, half_x: float, half_y: float, height: float, thick: float, material: int, round_: bool
) -> None:
    """Four legs at the corners of a rectangle, square or round."""
    for x in (-half_x, half_x):
        for y in (-half_y, half_y):
            if round_:
                builder.parts.append(_round_leg(x, y, height, thick, material))
            else:
                t = thick / 2
                builder.box((x - t, y - t, 0), (x + t, y + t, height), material)


def _round_leg(x: float, y: float, height: float, thick: float, material: int) -> Mesh:
    from splatlearn.data.procedural.mesh import between

    return between((x * 1.08, y * 1.08, 0), (x, y, height), thick / 2, material)
