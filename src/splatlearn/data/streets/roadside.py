"""What stands beside a road: lamps, signs, lights, walls, fences. Own frame: x along the road, y left, z up. Metres."""

import numpy as np

from splatlearn.data.procedural.mesh import axis_matrix, between, cylinder, lathe
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.solids import FLAT, Parts, builder

FACING = axis_matrix(1, -np.pi / 2)
"""Turns an upright cylinder into one along -x, towards traffic that comes from behind."""


def lamp_post(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A street lamp whose arm reaches to the left."""
    made = builder()
    metal, high, radius = finishes.hard(), rng.uniform(5.5, 8.5), rng.uniform(0.06, 0.1)
    made.add(
        lathe(
            [(0, 0), (1.5 * radius, 0), (1.5 * radius, 0.8), (radius, 0.9), (0.7 * radius, high), (0, high)],
            metal,
            9,
            FLAT,
        )
    )
    if rng.random() < 0.7:
        reach = rng.uniform(0.8, 2.0)
        made.add(between((0, 0, high - 0.1), (0, reach, high + 0.25), 0.045, metal, 7, FLAT))
        made.box((-0.12, reach - 0.1, high + 0.18), (0.12, reach + 0.5, high + 0.32), metal)
    else:
        made.add(lathe([(0, high), (0.2, high + 0.1), (0.26, high + 0.4), (0, high + 0.5)], metal, 9, FLAT))
    return [("pole", made.mesh())]


def utility_pole(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A wooden pole with a crossbar."""
    made = builder()
    wood, high = finishes.wood(), rng.uniform(6.5, 9.0)
    made.add(lathe([(0, 0), (0.13, 0), (0.09, high), (0, high)], wood, 9, FLAT))
    made.box((-0.05, -0.9, high - 0.7), (0.05, 0.9, high - 0.58), wood)
    return [("pole", made.mesh())]


def bollard(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A knee-high post."""
    return [("pole", cylinder(rng.uniform(0.05, 0.1), rng.uniform(0.75, 1.1), finishes.hard(), 9, FLAT))]


def traffic_sign(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """One or two plates on a post: round, three-cornered, eight-cornered, square or long; they face -x."""
    post, plates = builder(), builder()
    metal, back = finishes.hard(), finishes.hard()
    top = rng.uniform(2.3, 3.2)
    post.add(cylinder(0.035, top, metal, 8, FLAT))
    z = top
    for _ in range(1 + (rng.random() < 0.35)):
        shape, size = int(rng.integers(4)), rng.uniform(0.3, 0.45)
        face = finishes.plate()
        z -= size
        if shape < 3:
            sides = (20, 3, 8)[shape]
            turn = axis_matrix(0, np.pi / sides * (sides == 8)) @ FACING
            plates.add(cylinder(size, 0.02, face, sides, FLAT), (-0.04, 0, z), turn)
            plates.add(cylinder(size, 0.012, back, sides, FLAT), (-0.026, 0, z), turn)
        else:
            half = rng.uniform(0.3, 0.7)
            plates.box((-0.06, -half, z - 0.8 * size), (-0.04, half, z + 0.8 * size), face)
            plates.box((-0.04, -half, z - 0.8 * size), (-0.035, half, z + 0.8 * size), back)
        z -= size + 0.08
    return [("pole", post.mesh()), ("traffic sign", plates.mesh())]


def traffic_light(rng: np.random.Generator, finishes: Finishes) -> Parts:
    """A signal on a post, with a second one on an arm over the road (to the left) at times; it faces -x."""
    post, heads = builder(), builder()
    metal, black = finishes.hard(), finishes.black()
    arm = rng.uniform(2.5, 4.5) if rng.random() < 0.5 else 0.0
    high = 5.6 if arm else rng.uniform(3.0, 3.6)
    post.add(cylinder(0.09 if arm else 0.06, high, metal, 9, FLAT))
    places = [(0.0, min(high, 3.4) - 1.05)]
    if arm:
        post.add(between((0, 0, high - 0.1), (0, arm, high), 0.05, metal, 7, FLAT))
        places.append((arm - 0.2, high - 1.1))
    lit = int(rng.integers(3))
    lamps = [finishes.lamp(hue) if k == lit else finishes.black() for k, hue in enumerate((0.4, 0.13, 0.0))]
    for y, z in places:
        heads.box((-0.38, y - 0.17, z), (-0.12, y + 0.17, z + 1.0), black)
        for k, lamp in enumerate(lamps):
            middle = z + 0.18 + 0.32 * k
            heads.add(cylinder(0.11, 0.03, lamp, 10, FLAT), (-0.38, y, middle), FACING)
            heads.box((-0.56, y - 0.12, middle + 0.11), (-0.38, y + 0.12, middle + 0.13), black)
    return [("pole", post.mesh()), ("traffic light", heads.mesh())]


def garden_wall(rng: np.random.Generator, long: float, high: float, material: int, cap: int) -> Parts:
    """A piece of wall, `long` metres along x."""
    made = builder()
    thick = 0.11
    made.box((-long / 2, -thick, 0), (long / 2, thick, high), material)
    made.box((-long / 2, -thick - 0.04, high), (long / 2, thick + 0.04, high + 0.07), cap)
    if rng.random() < 0.4:
        made.box((-long / 2, -thick - 0.08, 0), (-long / 2 + 0.35, thick + 0.08, high + 0.25), cap)
    return [("barrier", made.mesh())]


def fence(long: float, high: float, gap: float, material: int) -> Parts:
    """A piece of fence, `long` metres along x, with pickets `gap` metres apart."""
    made = builder()
    for z in (0.2 * high, 0.85 * high):
        made.box((-long / 2, -0.025, z), (long / 2, 0.025, z + 0.07), material)
    made.box((-long / 2 - 0.05, -0.05, 0), (-long / 2 + 0.05, 0.05, high + 0.1), material)
    for x in np.arange(-long / 2 + gap, long / 2, gap):
        made.box((x - 0.03, -0.04, 0.08), (x + 0.03, -0.02, high), material)
    return [("barrier", made.mesh())]
