"""Houses. Own frame: x along the street, the front on y = 0 facing -y, z up from the ground. Metres."""

import numpy as np

from splatlearn.data.procedural.mesh import Builder, yaw_matrix
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.solids import Parts, builder, facets

SUNK = 1.5
"""Depth of the foundations: houses stand on sloping ground."""


def house(rng: np.random.Generator, finishes: Finishes, wide: float, deep: float) -> Parts:
    """A terraced house, a villa, a shop or a block of flats, with windows on three sides.

    Args:
        rng: source of its form.
        finishes: source of its materials.
        wide: metres along the street.
        deep: metres away from it.
    """
    made = builder()
    floors, storey = int(rng.integers(1, 6)), rng.uniform(2.7, 3.4)
    high = floors * storey + rng.uniform(0.2, 0.8)
    wall, plinth, glass, frame = finishes.facade(), finishes.facade(), finishes.glass(), finishes.hard()
    made.box((-wide / 2, 0, -SUNK), (wide / 2, deep, high), wall)
    made.box((-wide / 2 - 0.04, -0.04, -SUNK), (wide / 2 + 0.04, deep + 0.04, rng.uniform(0.2, 0.7)), plinth)
    _roof(made, rng, finishes, wide, deep, high)
    sizes = rng.uniform(0.8, 1.4), rng.uniform(1.1, 1.7), rng.uniform(1.9, 3.0)
    _door(made, rng, finishes, wide)
    _windows(made, rng, wide, floors, storey, sizes, (glass, frame))
    for side in (-1, 1):
        gable = builder()
        _windows(gable, rng, deep, floors, storey, sizes, (glass, frame))
        made.add(gable.mesh(), (side * wide / 2, deep / 2, 0), yaw_matrix(side * np.pi / 2))
    if rng.random() < 0.35 and floors > 1:
        _balconies(made, rng, finishes, wide, floors, storey)
    return [("building", made.mesh())]


def _windows(
    made: Builder,
    rng: np.random.Generator,
    wide: float,
    floors: int,
    storey: float,
    sizes: tuple[float, float, float],
    materials: tuple[int, int],
) -> None:
    """Rows of panes in frames on the wall y = 0; sizes are width, height and spacing."""
    across, up, step = sizes
    glass, frame = materials
    columns = max(1, int((wide - 0.8) / step))
    starts = (np.arange(columns) - (columns - 1) / 2) * step
    for floor in range(floors):
        sill = 0.5 + floor * storey + 0.4
        for x in starts[rng.random(columns) < 0.93].tolist():
            low, high = x - across / 2, x + across / 2
            top = sill + min(up, storey - 1.1)
            made.box((low - 0.09, -0.05, sill - 0.1), (high + 0.09, 0.0, top + 0.09), frame)
            made.box((low, -0.06, sill), (x - 0.03, 0.0, top), glass)
            made.box((x + 0.03, -0.06, sill), (high, 0.0, top), glass)


def _door(made: Builder, rng: np.random.Generator, finishes: Finishes, wide: float) -> None:
    x, half = rng.uniform(-0.3, 0.3) * wide, rng.uniform(0.5, 0.8)
    leaf, stone = finishes.wood(), finishes.hard()
    made.box((x - half, -0.1, 0), (x + half, 0.02, 2.15), leaf)
    made.box((x - half - 0.12, -0.14, 0), (x - half, 0, 2.3), stone)
    made.box((x + half, -0.14, 0), (x + half + 0.12, 0, 2.3), stone)
    made.box((x - half - 0.12, -0.5 * rng.random() - 0.14, 2.15), (x + half + 0.12, 0, 2.3), stone)
    made.box((x - half - 0.2, -0.6, -SUNK), (x + half + 0.2, 0, 0.15), stone)


def _balconies(
    made: Builder, rng: np.random.Generator, finishes: Finishes, wide: float, floors: int, storey: float
) -> None:
    slab, rail = finishes.hard(), finishes.hard()
    x, half = rng.uniform(-0.25, 0.25) * wide, rng.uniform(0.9, 1.6)
    for floor in range(1, floors):
        z = floor * storey + 0.4
        made.box((x - half, -1.2, z), (x + half, 0, z + 0.14), slab)
        made.box((x - half, -1.2, z + 0.14), (x + half, -1.15, z + 1.05), rail)


def _roof(made: Builder, rng: np.random.Generator, finishes: Finishes, wide: float, deep: float, high: float) -> None:
    """Flat with a parapet, or with a ridge along the street."""
    tile = finishes.facade()
    if rng.random() < 0.4:
        made.box((-wide / 2 - 0.15, -0.15, high), (wide / 2 + 0.15, deep + 0.15, high + 0.35), tile)
        return
    rise, x, front, back = rng.uniform(0.3, 0.55) * deep, wide / 2 + 0.2, -0.4, deep + 0.4
    ridge = [(-x, deep / 2, high + rise), (x, deep / 2, high + rise)]
    eaves = [(-x, front, high), (x, front, high), (x, back, high), (-x, back, high)]
    made.add(
        facets(
            [
                eaves,
                [eaves[0], eaves[1], ridge[1], ridge[0]],
                [eaves[3], eaves[2], ridge[1], ridge[0]],
                [eaves[0], eaves[3], ridge[0]],
                [eaves[1], eaves[2], ridge[1]],
            ],
            tile,
        )
    )
    chimney = rng.uniform(-0.3, 0.3) * wide
    made.box(
        (chimney - 0.3, deep / 2 - 0.3, high), (chimney + 0.3, deep / 2 + 0.3, high + rise + 0.7), finishes.facade()
    )
