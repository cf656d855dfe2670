"""Lamps, plants, pictures and clutter. Sizes in metres are ours."""

import numpy as np

from splatlearn.data.procedural.mesh import (
    Builder,
    Mesh,
    axis_matrix,
    ball,
    between,
    box,
    cushion,
    cylinder,
    lathe,
    sheet,
    yaw_matrix,
)
from splatlearn.data.rooms.finishes import Finishes
from splatlearn.data.rooms.furniture import Piece, chance, finish, span


def _shade(rng: np.random.Generator, finishes: Finishes, radius: float, high: float) -> Mesh:
    upper = radius * span(rng, 0.45, 1.0)
    profile = [(radius - 0.006, 0.0), (radius, 0.0), (upper, high), (upper - 0.006, high), (radius - 0.006, 0.0)]
    return lathe(profile, finishes.shade(), 18)


def floor_lamp(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A standing lamp: foot, pole, shade; at times on three legs."""
    builder, metal, high = Builder(), finishes.hard(), span(rng, 1.3, 1.75)
    radius = span(rng, 0.15, 0.24)
    if chance(rng, 0.4):
        for angle in np.arange(3) * 2 * np.pi / 3:
            foot = (0.24 * np.cos(angle), 0.24 * np.sin(angle), 0)
            builder.parts.append(between(foot, (0, 0, high - 0.25), 0.014, metal))
    else:
        builder.add(cylinder(span(rng, 0.12, 0.17), 0.025, metal, 18))
        builder.add(cylinder(0.012, high - 0.05, metal, 8))
    shade = span(rng, 0.2, 0.34)
    builder.add(_shade(rng, finishes, radius, shade), (0, 0, high - shade))
    builder.add(ball(0.04, finishes.shade(), 8, 6), (0, 0, high - shade / 2))
    return finish("lamp", builder)


def table_lamp(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A lamp with a turned or plain base."""
    builder, base, high = Builder(), finishes.hard(), span(rng, 0.32, 0.5)
    belly = span(rng, 0.03, 0.08)
    profile = [(0, 0), (0.07, 0), (0.07, 0.015), (0.02, 0.03), (belly, 0.12), (0.012, 0.22), (0.012, high - 0.03)]
    builder.add(lathe([*profile, (0, high - 0.03)], base, 14))
    shade = span(rng, 0.12, 0.18)
    builder.add(_shade(rng, finishes, span(rng, 0.09, 0.14), shade), (0, 0, high - shade))
    return finish("lamp", builder)


def pendant(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A lamp that hangs from z = 0 downwards: a shade or globe on a cord, or a flat dome."""
    builder, drop = Builder(), span(rng, 0.35, 0.6)
    if chance(rng, 0.4):
        radius = span(rng, 0.15, 0.25)
        profile = [(0, -0.09), (0.6 * radius, -0.08), (0.92 * radius, -0.05), (radius, 0.0), (0, 0)]
        builder.add(lathe(profile, finishes.shade(), 20))
        return finish("lamp", builder)
    builder.add(cylinder(0.008, drop, finishes.hard(), 6), (0, 0, -drop))
    builder.add(cylinder(0.05, 0.03, finishes.hard(), 12), (0, 0, -0.03))
    if chance(rng, 0.5):
        builder.add(ball(span(rng, 0.11, 0.19), finishes.shade()), (0, 0, -drop))
    else:
        builder.add(_shade(rng, finishes, span(rng, 0.15, 0.26), 0.2), (0, 0, -drop))
        builder.add(ball(0.045, finishes.shade(), 8, 6), (0, 0, -drop + 0.06))
    return finish("lamp", builder)


def floor_plant(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A pot with a bush, arching blades or a small tree."""
    return _plant(rng, finishes, span(rng, 0.75, 1.6), span(rng, 0.12, 0.2))


def table_plant(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A small pot plant."""
    return _plant(rng, finishes, span(rng, 0.22, 0.4), span(rng, 0.04, 0.08))


def _plant(rng: np.random.Generator, finishes: Finishes, high: float, pot: float) -> Piece:
    builder, deep = Builder(), pot * span(rng, 1.3, 2.0)
    rim = [(0, 0), (0.75 * pot, 0), (pot, deep), (0.9 * pot, deep), (0.88 * pot, 0.9 * deep), (0, 0.9 * deep)]
    builder.add(lathe(rim, finishes.hard(), 14))
    leaf, stem = finishes.leaf(), finishes.leaf()
    style = int(rng.integers(3))
    if style == 0:
        _blades(builder, rng, leaf, deep * 0.9, high)
    else:
        _foliage(builder, rng, leaf, stem, deep * 0.9, high, tree=style == 2)
    return finish("plant", builder)


def _leaf(long: float, wide: float, droop: float, material: int) -> Mesh:
    """A pointed leaf along +x from the origin, bending down."""
    t = np.linspace(0, 1, 5)
    half = wide / 2 * np.sin(np.pi * np.clip(t * 0.9 + 0.08, 0, 1))
    rows = [np.column_stack([t * long, side * half, 0.12 * wide * abs(side) - droop * t**2]) for side in (-1, 0, 1)]
    return sheet(np.stack(rows, 1), material)


def _blades(builder: Builder, rng: np.random.Generator, leaf: int, base: float, high: float) -> None:
    for _ in range(int(rng.integers(16, 28))):
        rise = span(rng, 0.6, 1.35)
        long = (high - base) * span(rng, 0.7, 1.05)
        turn = yaw_matrix(span(rng, 0, 2 * np.pi)) @ axis_matrix(1, -rise)
        builder.add(
            _leaf(long, span(rng, 0.07, 0.13) * high + 0.02, span(rng, 0.1, 0.5) * long, leaf), (0, 0, base), turn
        )


def _foliage(
    builder: Builder, rng: np.random.Generator, leaf: int, stem: int, base: float, high: float, tree: bool
) -> None:
    """Leaves about a ball of twigs: low for a bush, on a trunk for a tree."""
    crown = (high - base) * (0.3 if tree else 0.48)
    middle = np.array([0, 0, high - crown])
    builder.parts.append(between((0, 0, base), middle, 0.012 + 0.01 * high, stem, 6))
    size = 0.42 * crown + 0.04
    for _ in range(int(rng.integers(34, 56))):
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        at = middle + direction * crown * span(rng, 0.35, 0.85)
        turn = yaw_matrix(float(np.arctan2(direction[1], direction[0])) + span(rng, -0.5, 0.5)) @ axis_matrix(
            1, -span(rng, -0.5, 0.9)
        )
        builder.add(_leaf(size * span(rng, 0.8, 1.3), 0.7 * size, 0.3 * size, leaf), at, turn)


def picture(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A framed picture for a wall at y = 0, standing on z = 0; now and then a round one."""
    builder = Builder()
    if chance(rng, 0.15):
        radius = span(rng, 0.15, 0.32)
        disc = lathe([(0, 0), (radius, 0), (radius, 0.03), (0, 0.03)], finishes.canvas(1.0, 0.7), 24)
        builder.add(disc, (0, 0, radius), axis_matrix(0, np.pi / 2))
        return finish("picture", builder)
    wide, high = span(rng, 0.3, 1.2), span(rng, 0.3, 0.85)
    canvas = finishes.canvas(wide, high)
    if chance(rng, 0.25):
        builder.box((-wide / 2, -0.025, 0), (wide / 2, 0, high), canvas)
        return finish("picture", builder)
    frame, edge, deep = finishes.wood(), span(rng, 0.02, 0.06), span(rng, 0.02, 0.04)
    builder.box((-wide / 2 + edge, -deep * 0.5, edge), (wide / 2 - edge, 0, high - edge), canvas)
    for x in (-wide / 2, wide / 2 - edge):
        builder.box((x, -deep, 0), (x + edge, 0, high), frame)
    for z in (0.0, high - edge):
        builder.box((-wide / 2 + edge, -deep, z), (wide / 2 - edge, 0, z + edge), frame)
    return finish("picture", builder)


def floor_clutter(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """Something that lies about on the floor."""
    builder = Builder()
    makers = (_carton, _carton, _bin, _ball, _bag, _stack)
    makers[int(rng.integers(len(makers)))](builder, rng, finishes)
    return finish("clutter", builder)


def _carton(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    x, y, z = span(rng, 0.12, 0.3), span(rng, 0.1, 0.24), span(rng, 0.15, 0.42)
    material = finishes.anything()
    if chance(rng, 0.5):
        builder.box((-x, -y, 0), (x, y, z), material)
        builder.box((-x - 0.002, -0.03, z), (x + 0.002, 0.03, z + 0.002), finishes.anything())
        return
    for side in (-1, 1):
        builder.box((min(side * x, side * (x - 0.008)), -y, 0), (max(side * x, side * (x - 0.008)), y, z), material)
        builder.box((-x, min(side * y, side * (y - 0.008)), 0), (x, max(side * y, side * (y - 0.008)), z), material)
        flap = box((side * 0.08, 0, 0), (0.16, 2 * y, 0.006), material)
        builder.add(flap, (side * x, 0, z), axis_matrix(1, side * span(rng, -0.3, 0.9)))
    builder.box((-x, -y, 0), (x, y, 0.01), material)
    builder.box((-0.7 * x, -0.7 * y, 0.01), (0.6 * x, 0.6 * y, 0.6 * z), finishes.anything())


def _bin(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    low, wide, high = span(rng, 0.09, 0.14), span(rng, 0.13, 0.2), span(rng, 0.24, 0.42)
    profile = [(0, 0), (low, 0), (wide, high), (wide - 0.01, high), (low - 0.01, 0.02), (0, 0.02)]
    builder.add(lathe(profile, finishes.anything(), 18))


def _ball(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    radius = span(rng, 0.1, 0.3)
    builder.add(ball(radius, finishes.anything(), 20, 12), (0, 0, radius))


def _bag(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    wide, deep, high = span(rng, 0.3, 0.6), span(rng, 0.18, 0.28), span(rng, 0.3, 0.5)
    cloth = finishes.fabric()
    builder.add(cushion((0, 0, high / 2), (wide, deep, high), cloth, 0.08))
    builder.add(cushion((0, -deep / 2, 0.3 * high), (0.7 * wide, 0.1, 0.45 * high), cloth, 0.04))
    strap = finishes.hard()
    for x in (-0.08, 0.08):
        builder.box((x - 0.012, -0.012, high - 0.01), (x + 0.012, 0.012, high + 0.07), strap)
    builder.box((-0.092, -0.012, high + 0.05), (0.092, 0.012, high + 0.075), strap)


def _stack(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    z = 0.0
    for _ in range(int(rng.integers(2, 5))):
        x, y, high = span(rng, 0.1, 0.2), span(rng, 0.08, 0.16), span(rng, 0.06, 0.2)
        turn = yaw_matrix(span(rng, -0.3, 0.3))
        builder.add(box((0, 0, high / 2), (2 * x, 2 * y, high), finishes.anything()), (0, 0, z), turn)
        z += high


def top_clutter(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """Something small that stands on furniture."""
    builder = Builder()
    makers = (_vase, _vase, _mug, _bottle, _pile, _pile, _parcel, _laptop, _monitor, _bowl)
    makers[int(rng.integers(len(makers)))](builder, rng, finishes)
    return finish("clutter", builder)


def _vase(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    high, radius = span(rng, 0.15, 0.35), span(rng, 0.05, 0.1)
    inner = 0.35 * radius
    profile = [(0, 0), (0.6 * radius, 0), (radius, 0.4 * high), (0.4 * radius, 0.8 * high), (0.6 * radius, high)]
    builder.add(lathe([*profile, (inner, 0.8 * high), (0, 0.3 * high)], finishes.anything(), 16))


def _mug(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    radius, high = span(rng, 0.035, 0.05), span(rng, 0.08, 0.12)
    material = finishes.anything()
    profile = [(0, 0), (radius, 0), (radius, high), (0.85 * radius, high), (0.85 * radius, 0.01), (0, 0.01)]
    builder.add(lathe(profile, material, 14))
    builder.box((radius - 0.004, -0.006, 0.25 * high), (radius + 0.025, 0.006, 0.8 * high), material)


def _bottle(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    radius, high = span(rng, 0.03, 0.05), span(rng, 0.2, 0.34)
    profile = [
        (0, 0),
        (radius, 0),
        (radius, 0.6 * high),
        (0.35 * radius, 0.75 * high),
        (0.35 * radius, high),
        (0, high),
    ]
    builder.add(lathe(profile, finishes.anything(), 12))


def _pile(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    z = 0.0
    for _ in range(int(rng.integers(1, 6))):
        thick = span(rng, 0.015, 0.045)
        book = box((0, 0, thick / 2), (span(rng, 0.18, 0.28), span(rng, 0.13, 0.2), thick), finishes.anything())
        builder.add(book, (0, 0, z), yaw_matrix(span(rng, -0.4, 0.4)))
        z += thick


def _parcel(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    x, y, z = span(rng, 0.06, 0.16), span(rng, 0.05, 0.12), span(rng, 0.06, 0.25)
    builder.box((-x, -y, 0), (x, y, z), finishes.anything())


def _laptop(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    shell = finishes.hard()
    builder.box((-0.16, -0.11, 0), (0.16, 0.11, 0.016), shell)
    lid = Builder()
    lid.box((-0.16, 0, 0), (0.16, 0.008, 0.21), shell)
    lid.box((-0.15, -0.003, 0.01), (0.15, 0, 0.2), finishes.canvas(0.3, 0.2))
    builder.add(lid.mesh(), (0, 0.11, 0.012), axis_matrix(0, -span(rng, 0.1, 0.4)))


def _monitor(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    wide, high, shell = span(rng, 0.24, 0.34), span(rng, 0.28, 0.38), finishes.hard()
    builder.add(cylinder(0.1, 0.015, shell, 16), (0, 0.03, 0))
    builder.box((-0.03, 0.02, 0.01), (0.03, 0.045, 0.2), shell)
    builder.box((-wide, -0.02, 0.1), (wide, 0.02, 0.1 + high), shell)
    builder.box((-wide + 0.015, -0.024, 0.115), (wide - 0.015, -0.02, 0.085 + high), finishes.canvas(2 * wide, high))


def _bowl(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    radius = span(rng, 0.09, 0.16)
    material = finishes.anything()
    profile = [
        (0, 0),
        (0.4 * radius, 0),
        (radius, 0.5 * radius),
        (0.93 * radius, 0.5 * radius),
        (0.4 * radius, 0.03),
        (0, 0.03),
    ]
    builder.add(lathe(profile, material, 18))
    for index in range(int(rng.integers(0, 4))):
        angle = index * 2.1
        at = (0.4 * radius * np.cos(angle), 0.4 * radius * np.sin(angle), 0.35 * radius)
        builder.add(ball(0.3 * radius, finishes.anything(), 10, 6), at)
