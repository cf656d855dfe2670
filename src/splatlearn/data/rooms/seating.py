"""Chairs, sofas and beds. Sizes in metres are ours, after common furniture."""

import numpy as np

from splatlearn.data.procedural.mesh import Builder, axis_matrix, between, cushion, cylinder, sheet
from splatlearn.data.rooms.finishes import Finishes
from splatlearn.data.rooms.furniture import Piece, Surface, chance, finish, legs, span


def chair(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A dining chair, an office chair or a shell chair."""
    builder = Builder()
    kind = rng.choice(3, p=(0.5, 0.25, 0.25))
    (_dining_chair, _office_chair, _shell_chair)[int(kind)](builder, rng, finishes)
    return finish("chair", builder)


def _dining_chair(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    width, depth = span(rng, 0.38, 0.48), span(rng, 0.38, 0.48)
    seat, top, thick = span(rng, 0.43, 0.48), span(rng, 0.8, 1.05), span(rng, 0.03, 0.045)
    frame = finishes.wood()
    x, y = width / 2 - thick / 2, depth / 2 - thick / 2
    legs(builder, x, y, seat, thick, frame, False)
    builder.box((-width / 2, -depth / 2, seat - 0.03), (width / 2, depth / 2, seat), frame)
    if chance(rng, 0.6):
        pad = finishes.fabric()
        builder.add(cushion((0, 0, seat + 0.02), (width * 0.94, depth * 0.9, 0.05), pad, 0.02))
    lean = axis_matrix(0, -span(rng, 0.05, 0.18))
    back = _chair_back(rng, width, top - seat, thick, frame, finishes)
    builder.add(back.mesh(), (0, y, seat), lean)


def _chair_back(
    rng: np.random.Generator, width: float, height: float, thick: float, frame: int, finishes: Finishes
) -> Builder:
    back, x = Builder(), width / 2 - thick / 2
    t = thick / 2
    for side in (-x, x):
        back.box((side - t, -t, -0.02), (side + t, t, height), frame)
    style = int(rng.integers(3))
    if style == 0:
        for z in np.linspace(0.12, height - 0.04, int(rng.integers(2, 5))):
            back.box((-x, -0.01, z - 0.03), (x, 0.01, z + 0.03), frame)
    elif style == 1:
        back.box((-x, -t, height - 0.06), (x, t, height), frame)
        for side in np.linspace(-x, x, int(rng.integers(4, 7)))[1:-1]:
            back.box((side - 0.012, -0.01, 0), (side + 0.012, 0.01, height - 0.06), frame)
    else:
        back.add(cushion((0, 0, 0.55 * height), (width * 0.96, 0.05, 0.8 * height), finishes.fabric(), 0.02))
    return back


def _office_chair(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    seat, width = span(rng, 0.42, 0.52), span(rng, 0.44, 0.52)
    metal, pad = finishes.hard(), finishes.fabric()
    reach = span(rng, 0.26, 0.32)
    turn = span(rng, 0, 6)
    for angle in turn + np.arange(5) * 2 * np.pi / 5:
        tip = (reach * np.cos(angle), reach * np.sin(angle))
        builder.parts.append(between((0, 0, 0.1), (*tip, 0.06), 0.018, metal, 6))
        builder.add(cylinder(0.025, 0.05, metal, 8), (*tip, 0.0))
    builder.add(cylinder(0.03, seat - 0.12, metal, 10), (0, 0, 0.08))
    builder.add(cushion((0, 0, seat), (width, width, 0.09), pad, 0.04))
    tall = span(rng, 0.4, 0.65)
    lean = axis_matrix(0, -span(rng, 0.05, 0.2))
    builder.add(cushion((0, 0, tall / 2 + 0.1), (width * 0.92, 0.07, tall), pad, 0.03), (0, width / 2, seat), lean)
    builder.box((-0.03, width / 2 - 0.05, seat - 0.04), (0.03, width / 2 + 0.0, seat + 0.2), metal)
    if chance(rng, 0.6):
        for side in (-1, 1):
            x = side * (width / 2 + 0.02)
            builder.box((x - 0.02, -0.12, seat + 0.2), (x + 0.02, 0.16, seat + 0.23), metal)
            builder.box((x - 0.015, 0.0, seat - 0.04), (x + 0.015, 0.04, seat + 0.2), metal)


def _shell_chair(builder: Builder, rng: np.random.Generator, finishes: Finishes) -> None:
    seat, width, back = span(rng, 0.42, 0.47), span(rng, 0.42, 0.5), span(rng, 0.3, 0.42)
    across = np.linspace(-1, 1, 7)
    along = np.linspace(0, 1, 9)
    rows = []
    for t in along:
        y = -0.22 + 0.42 * min(t / 0.55, 1.0) + 0.1 * max(0.0, t - 0.55)
        z = back * max(0.0, (t - 0.5) / 0.5) ** 1.2 - 0.02 * np.sin(np.pi * min(t / 0.5, 1.0))
        rows.append(np.column_stack([across * width / 2, np.full(7, y) - 0.06 * across**2 * t, z + 0.05 * across**2]))
    shell = np.stack(rows)
    material = finishes.hard()
    builder.add(sheet(shell[:, ::-1], material), (0, 0, seat))
    builder.add(sheet(shell - np.array([0, 0.004, 0.012]), material), (0, 0, seat))
    metal = finishes.wood() if chance(rng, 0.5) else finishes.hard()
    for x in (-0.16, 0.16):
        for y in (-0.14, 0.14):
            builder.parts.append(between((x * 1.3, y * 1.3, 0), (x * 0.7, y * 0.7, seat + 0.0), 0.014, metal))


def sofa(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """One to three seats, with arms, cushions and at times a chaise."""
    builder = Builder()
    seats = int(rng.choice([1, 2, 3], p=[0.25, 0.4, 0.35]))
    place, deep, arm = span(rng, 0.55, 0.68), span(rng, 0.8, 0.95), span(rng, 0.1, 0.24)
    width, seat, back = seats * place + 2 * arm, span(rng, 0.4, 0.46), span(rng, 0.72, 0.92)
    cloth = finishes.fabric()
    pad = cloth if chance(rng, 0.7) else finishes.fabric()
    foot = span(rng, 0.03, 0.14)
    legs(builder, width / 2 - 0.08, deep / 2 - 0.08, foot, 0.05, finishes.wood(), False)
    thick = 0.16
    base = seat - 0.13
    builder.add(cushion((0, 0, (foot + base) / 2), (width, deep, base - foot), cloth, 0.03))
    builder.add(cushion((0, (deep - thick) / 2, (foot + back) / 2), (width - 2 * arm, thick, back - foot), cloth, 0.05))
    arm_top = seat + span(rng, 0.1, 0.22)
    for side in (-1, 1):
        at = (side * (width - arm) / 2, 0, (foot + arm_top) / 2)
        builder.add(cushion(at, (arm, deep, arm_top - foot), cloth, 0.045))
    for index in range(seats):
        x = (index - (seats - 1) / 2) * place
        builder.add(cushion((x, -thick / 2, seat - 0.055), (place - 0.015, deep - thick - 0.01, 0.15), pad, 0.05))
        lean = axis_matrix(0, -0.2)
        builder.add(cushion((0, 0, 0), (place - 0.03, 0.13, 0.36), pad, 0.06), (x, deep / 2 - 0.21, seat + 0.19), lean)
    if seats > 1 and chance(rng, 0.3):
        side = (-1 if chance(rng, 0.5) else 1) * (width - place) / 2 + 0.0
        side -= np.sign(side) * arm
        builder.add(cushion((side, -deep / 2 - 0.3, (0.03 + base) / 2), (place, 0.66, base - 0.03), cloth, 0.03))
        builder.add(cushion((side, -deep / 2 - 0.3, seat - 0.055), (place - 0.015, 0.64, 0.15), pad, 0.05))
    for _ in range(int(rng.integers(0, 3))):
        x, side = span(rng, -0.4, 0.4) * (width - 2 * arm), span(rng, 0.34, 0.44)
        lean = axis_matrix(0, -span(rng, 0.4, 0.6)) @ axis_matrix(1, span(rng, -0.2, 0.2))
        builder.add(
            cushion((0, 0, 0), (side, 0.12, side), finishes.fabric(), 0.055),
            (x, deep / 2 - 0.42, seat + 0.22),
            lean,
        )
    return finish("sofa", builder)


def bed(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A single or double bed: frame, headboard, mattress, blanket, pillows; the head is at the back."""
    builder = Builder()
    width, long = (span(rng, 0.85, 1.05), 2.0) if chance(rng, 0.55) else (span(rng, 1.35, 1.7), 2.05)
    rail, top = span(rng, 0.2, 0.34), span(rng, 0.42, 0.58)
    wood, sheet_, blanket = finishes.wood(), finishes.fabric(), finishes.fabric()
    low = 0.0 if chance(rng, 0.3) else span(rng, 0.06, 0.16)
    half_x, half_y = width / 2 + 0.03, long / 2 + 0.03
    if low:
        legs(builder, half_x - 0.06, half_y - 0.06, low, 0.07, wood, False)
    builder.box((-half_x, -half_y, low), (half_x, half_y, rail), wood)
    head = span(rng, 0.75, 1.2)
    if chance(rng, 0.5):
        builder.box((-half_x, half_y, 0), (half_x, half_y + 0.05, head), wood)
    else:
        builder.add(cushion((0, half_y + 0.04, head / 2), (2 * half_x, 0.09, head), finishes.fabric(), 0.035))
    if chance(rng, 0.4):
        builder.box((-half_x, -half_y - 0.04, 0), (half_x, -half_y, span(rng, top, 0.8)), wood)
    builder.add(cushion((0, 0, (rail + top) / 2), (width, long, top - rail), sheet_, 0.06))
    cover = span(rng, 0.5, 0.72) * long
    drop = top - rail + span(rng, -0.05, 0.1)
    builder.add(cushion((0, -(long - cover) / 2, top + 0.035 - drop / 2), (width + 0.1, cover, drop), blanket, 0.045))
    pillows = 1 if width < 1.2 else 2
    for index in range(pillows):
        x = (index - (pillows - 1) / 2) * width / 2
        size = (span(rng, 0.5, 0.62), span(rng, 0.34, 0.42), 0.15)
        tilt = axis_matrix(0, span(rng, 0.05, 0.5)) @ axis_matrix(2, span(rng, -0.1, 0.1))
        builder.add(cushion((0, 0, 0), size, finishes.fabric(), 0.07), (x, long / 2 - 0.28, top + 0.1), tilt)
    surface = Surface((-width / 2 + 0.1, -long / 2 + 0.1), (width / 2 - 0.1, 0.2), top + 0.035)
    return finish("bed", builder, (surface,))
