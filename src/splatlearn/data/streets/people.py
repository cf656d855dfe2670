"""People on foot and on two wheels. Own frame: x forward, y left, z up. Metres."""

import numpy as np

from splatlearn.data.procedural.mesh import Builder, ball, between, cushion
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.solids import FLAT, Parts, builder, ring


def pedestrian(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """Somebody walking or standing, at times with a bag."""
    made = builder()
    tall = rng.uniform(1.1, 1.4) if rng.random() < 0.15 else rng.uniform(1.55, 1.92)
    stride = rng.choice([0.0, 1.0]) * rng.uniform(0.15, 0.35)
    swing = 0.8 * stride
    hip, shoulder = 0.5 * tall, 0.81 * tall
    legs, coat, skin = finishes.cloth(), finishes.cloth(), finishes.hard()
    for side, step in ((-1, stride), (1, -stride)):
        _limb(made, (0, side * 0.09, hip), (step, side * 0.1, 0.04), 0.075, legs)
        made.box((step - 0.08, side * 0.1 - 0.05, 0), (step + 0.18, side * 0.1 + 0.05, 0.09), legs)
        hand = (-step * swing / max(stride, 1e-6), side * 0.26, 0.46 * tall)
        _limb(made, (0, side * 0.2, shoulder - 0.02), hand, 0.05, coat)
    _torso(made, (0, 0, 0.5 * (hip + shoulder)), (0.24, 0.4, shoulder - hip + 0.14), coat)
    made.add(ball(0.115, skin, 10, 6), (0.02, 0, tall - 0.115))
    _limb(made, (0, 0, shoulder), (0.01, 0, tall - 0.2), 0.05, skin)
    if rng.random() < 0.35:
        bag = finishes.cloth()
        made.add(cushion((0, 0, 0), (0.2, 0.32, 0.42), bag, 0.06), (-0.2, 0, shoulder - 0.25))
    return [("pedestrian", made.mesh())]


def bicycle(rng: np.random.Generator, finishes: Finishes, ridden: bool) -> Parts:
    """A bicycle, with or without a rider."""
    made = builder()
    frame, black = finishes.coachwork(), finishes.black()
    radius, base = rng.uniform(0.31, 0.36), rng.uniform(0.5, 0.56)
    for x in (-base, base):
        made.add(ring(radius, 0.03, black), (x, 0, radius + 0.03))
        _limb(made, (x - 0.2, 0, radius), (x + 0.2, 0, radius + 0.03), 0.008, frame)
    crank, seat, steer = (-0.05, 0, 0.3), (-0.2, 0, 0.92), (0.42, 0, 0.98)
    for a, b in (
        (crank, seat),
        (crank, (0.4, 0, 0.8)),
        (seat, (0.4, 0, 0.8)),
        ((-base, 0, radius), crank),
        ((-base, 0, radius), (-0.18, 0, 0.8)),
        ((base, 0, radius), steer),
    ):
        _limb(made, a, b, 0.025, frame)
    _limb(made, (0.38, -0.28, 1.0), (0.38, 0.28, 1.0), 0.02, black)
    made.add(cushion((0, 0, 0), (0.26, 0.16, 0.08), black, 0.03), (seat[0], 0, seat[2] + 0.03))
    if ridden:
        _rider(made, rng, finishes, (-0.2, 0.95), (0.36, 1.02), 0.3)
    return [("two-wheeler", made.mesh())]


def motorcycle(rng: np.random.Generator, finishes: Finishes, ridden: bool) -> Parts:
    """A motorcycle or scooter, with or without a rider."""
    made = builder()
    body, black = finishes.coachwork(), finishes.black()
    base, radius = rng.uniform(0.62, 0.75), rng.uniform(0.26, 0.32)
    for x in (-base, base):
        made.add(ring(radius - 0.05, 0.07, black), (x, 0, radius + 0.02))
        _limb(made, (x, -0.07, radius), (x, 0.07, radius), 0.15, body)
    made.add(cushion((0, 0, 0), (0.8, 0.34, 0.36), body, 0.1), (0.05, 0, 0.5))
    made.add(cushion((0, 0, 0), (0.75, 0.28, 0.16), black, 0.06), (-0.35, 0, 0.76))
    made.add(cushion((0, 0, 0), (0.4, 0.3, 0.24), body, 0.09), (0.22, 0, 0.82))
    _limb(made, (base, 0, radius), (0.38, 0, 0.98), 0.05, black)
    _limb(made, (0.36, -0.36, 1.02), (0.36, 0.36, 1.02), 0.02, black)
    if ridden:
        _rider(made, rng, finishes, (-0.3, 0.84), (0.34, 1.02), 0.35)
    return [("two-wheeler", made.mesh())]


def _rider(
    made: Builder,
    rng: np.random.Generator,
    finishes: Finishes,
    seat: tuple[float, float],
    grip: tuple[float, float],
    feet: float,
) -> None:
    coat, legs, helmet = finishes.cloth(), finishes.cloth(), finishes.hard()
    lean = rng.uniform(0.12, 0.3)
    neck = (seat[0] + lean, seat[1] + 0.58)
    _limb(made, (seat[0], 0, seat[1] + 0.05), (neck[0], 0, neck[1] - 0.08), 0.17, coat)
    made.add(ball(0.13, helmet, 10, 6), (neck[0] + 0.05, 0, neck[1] + 0.14))
    for side, lift in ((-1, 0.0), (1, 0.22)):
        knee = (0.16, side * 0.14, seat[1] - 0.25 + 0.6 * lift)
        _limb(made, (seat[0], side * 0.11, seat[1]), knee, 0.075, legs)
        _limb(made, knee, (-0.02, side * 0.14, feet + lift - 0.1), 0.06, legs)
        _limb(made, (neck[0], side * 0.2, neck[1] - 0.1), (grip[0], side * 0.25, grip[1]), 0.05, coat)


def _limb(made: Builder, start: tuple, end: tuple, radius: float, material: int) -> None:
    made.add(between(start, end, radius, material, 7, FLAT))


def _torso(made: Builder, center: tuple, size: tuple, material: int) -> None:
    made.add(cushion((0, 0, 0), size, material, 0.1), center)
