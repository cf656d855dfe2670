"""Cars, trucks and buses. Own frame: x forward, y left, z up. Sizes in metres are ours, after common vehicles."""

import numpy as np

from splatlearn.data.procedural.mesh import Builder, axis_matrix, cylinder
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.solids import FLAT, Parts, builder, prism

SIDEWAYS = axis_matrix(0, -np.pi / 2)
"""Turns an upright cylinder into one along y."""


def car(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A hatchback, saloon, estate or van."""
    made = builder()
    kind = int(rng.integers(4))
    long, wide = rng.uniform(3.6, 4.9), rng.uniform(1.65, 1.9)
    roof = rng.uniform(1.75, 2.0) if kind == 3 else rng.uniform(1.4, 1.6)
    waist, sill, half = roof * rng.uniform(0.56, 0.64), rng.uniform(0.18, 0.28), wide / 2
    nose, tail = long / 2, -long / 2
    body, glass, black = finishes.coachwork(), finishes.glass(), finishes.black()
    hood = waist - rng.uniform(0.08, 0.2)
    lower = [
        (tail + 0.05, sill, half * 0.94),
        (nose - 0.08, sill, half * 0.92),
        (nose, 0.5 * (sill + hood), half * 0.9),
        (nose - 0.1, hood - 0.05, half * 0.9),
        (nose - 0.3 * long + 0.1, waist, half),
        (tail + 0.06, waist, half * 0.97),
        (tail, 0.6 * waist, half * 0.96),
    ]
    made.add(prism(lower, body))
    front = nose - (0.16 if kind == 3 else rng.uniform(0.24, 0.3)) * long
    back = tail + (0.03, 0.2, 0.05, 0.02)[kind] * long
    lean, narrow = (0.1, 0.14, 0.15, 0.06)[kind] * long, half * 0.8
    slope = 0.02 * long if kind >= 2 else 0.09 * long
    cabin = [(back, waist, half * 0.94), (front, waist, half * 0.94)]
    top = roof - 0.05
    made.add(prism([*cabin, (front - lean, top, narrow), (back + slope, top, narrow)], glass))
    made.add(
        prism(
            [
                (back + slope - 0.05, top, narrow + 0.01),
                (front - lean + 0.05, top, narrow + 0.01),
                (front - lean - 0.15, roof, narrow * 0.93),
                (back + slope + 0.1, roof, narrow * 0.93),
            ],
            body,
        )
    )
    for x in (0.5 * (front - lean + back + slope), back + slope + (0.02 if kind < 3 else 0.3)):
        for side in (-1, 1):
            pillar = [
                (x - 0.05, waist, half * 0.95),
                (x + 0.05, waist, half * 0.95),
                (x + 0.05, top, narrow + 0.01),
                (x - 0.05, top, narrow + 0.01),
            ]
            made.add(prism([(a, z, 0.03) for a, z, _ in pillar], body), (0, side * (0.5 * (half * 0.95 + narrow)), 0))
    _wheels(made, rng, (nose - 0.19 * long, tail + 0.2 * long), half, rng.uniform(0.3, 0.35), black, finishes.hard())
    _lights(made, nose - 0.02, tail + 0.02, half, 0.72 * waist, finishes)
    return [("car", made.mesh())]


def truck(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A lorry: a cab, a gap, and a box, a tarpaulin or an open bed."""
    made = builder()
    long, half = rng.uniform(6.0, 9.5), rng.uniform(1.1, 1.25)
    nose, tail, cab = long / 2, -long / 2, rng.uniform(1.6, 2.1)
    high, floor = rng.uniform(2.3, 3.0), rng.uniform(0.85, 1.1)
    body, glass, black = finishes.coachwork(), finishes.glass(), finishes.black()
    waist = 0.58 * high
    made.add(
        prism(
            [
                (nose - cab, 0.45, half * 0.96),
                (nose, 0.45, half * 0.96),
                (nose, waist, half * 0.96),
                (nose - cab, waist, half * 0.96),
            ],
            body,
        )
    )
    made.add(
        prism(
            [
                (nose - cab * 0.75, waist, half * 0.94),
                (nose - 0.03, waist, half * 0.94),
                (nose - 0.25, high - 0.2, half * 0.9),
                (nose - cab * 0.75, high - 0.2, half * 0.9),
            ],
            glass,
        )
    )
    made.box((nose - cab, -half * 0.95, waist), (nose - cab * 0.75, half * 0.95, high - 0.2), body)
    made.box((nose - cab, -half * 0.93, high - 0.2), (nose - 0.25, half * 0.93, high), body)
    made.box((tail, -0.45, 0.55), (nose - cab, 0.45, floor), black)
    load = nose - cab - rng.uniform(0.25, 0.6)
    if rng.random() < 0.75:
        cover = finishes.cloth() if rng.random() < 0.4 else finishes.coachwork()
        made.box((tail, -half, floor), (load, half, rng.uniform(2.9, 3.8)), cover)
    else:
        bed = finishes.hard()
        made.box((tail, -half, floor), (load, half, floor + 0.15), bed)
        for low, top in (((tail, -half), (load, -half + 0.06)), ((tail, half - 0.06), (load, half))):
            made.box((*low, floor), (*top, floor + 0.6), bed)
        made.box((load - 0.1, -half, floor), (load, half, floor + 1.2), bed)
        cargo = finishes.hard()
        made.box(
            (tail + 0.8, -half * 0.7, floor + 0.15), (load - 1.2, half * 0.7, floor + rng.uniform(0.6, 1.4)), cargo
        )
    axles = (nose - 0.9, tail + 1.1, tail + 2.2) if long > 7.5 else (nose - 0.9, tail + 1.3)
    _wheels(made, rng, axles, half, 0.48, black, finishes.hard())
    _lights(made, nose, tail, half, 0.75, finishes)
    return [("truck", made.mesh())]


def bus(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A city bus."""
    made = builder()
    long, half, high = rng.uniform(9.0, 12.5), rng.uniform(1.2, 1.28), rng.uniform(2.85, 3.2)
    nose, tail = long / 2, -long / 2
    body, trim, glass, black = finishes.coachwork(), finishes.coachwork(), finishes.glass(), finishes.black()
    waist = rng.uniform(1.2, 1.45)
    made.add(prism([(tail, 0.32, half), (nose, 0.32, half), (nose, waist, half), (tail, waist, half)], body))
    inner = half - 0.03
    made.add(
        prism(
            [
                (tail + 0.05, waist, inner),
                (nose - 0.03, waist, inner),
                (nose - 0.12, high - 0.35, inner),
                (tail + 0.05, high - 0.35, inner),
            ],
            glass,
        )
    )
    made.add(
        prism(
            [
                (tail, high - 0.35, half),
                (nose - 0.1, high - 0.35, half),
                (nose - 0.2, high, half * 0.92),
                (tail, high, half * 0.92),
            ],
            trim,
        )
    )
    for x in np.arange(tail + 0.1, nose - 0.8, rng.uniform(1.2, 1.7)):
        made.box((x - 0.06, -half, waist), (x + 0.06, half, high - 0.35), body)
    made.box((tail + 1.0, -0.8, high), (tail + 3.2, 0.8, high + 0.2), trim)
    _wheels(made, rng, (nose - 2.3, tail + 2.6), half, 0.47, black, finishes.hard())
    _lights(made, nose, tail, half, 0.7, finishes)
    return [("bus", made.mesh())]


def _wheels(
    made: Builder, rng: np.random.Generator, axles: tuple[float, ...], half: float, radius: float, tyre: int, rim: int
) -> None:
    thick = 0.2 + 0.1 * (radius > 0.4)
    for x in axles:
        for side in (-1, 1):
            middle = side * (half - thick / 2 + 0.01)
            made.add(cylinder(radius, thick, tyre, 14, FLAT), (x, middle - thick / 2, radius), SIDEWAYS)
            made.add(
                cylinder(radius * 0.6, thick + 0.03, rim, 10, FLAT), (x, middle - thick / 2 - 0.015, radius), SIDEWAYS
            )


def _lights(made: Builder, nose: float, tail: float, half: float, height: float, finishes: Finishes) -> None:
    white, red, plate = finishes.hard(), finishes.hard(), finishes.plate()
    for side in (-0.72 * half, 0.72 * half):
        made.box((nose - 0.12, side - 0.16, height - 0.08), (nose, side + 0.16, height + 0.08), white)
        made.box((tail, side - 0.12, height - 0.05), (tail + 0.1, side + 0.12, height + 0.15), red)
    made.box((tail - 0.02, -0.26, height - 0.3), (tail + 0.06, 0.26, height - 0.18), plate)
    made.box((nose - 0.08, -0.26, height - 0.34), (nose + 0.02, 0.26, height - 0.22), plate)
