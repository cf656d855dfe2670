"""Tables, desks, cabinets and bookshelves. Sizes in metres are ours, after common furniture."""

import numpy as np

from splatlearn.data.procedural.mesh import Builder, axis_matrix, ball, between, box, cylinder, lathe
from splatlearn.data.rooms.finishes import Finishes
from splatlearn.data.rooms.furniture import Piece, Surface, chance, finish, legs, span


def table(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A dining table: four legs, a trestle, or a round top on one foot."""
    builder, high = Builder(), span(rng, 0.7, 0.78)
    thick = span(rng, 0.025, 0.06)
    top, frame = finishes.wood(), finishes.wood()
    if chance(rng, 0.3):
        radius = span(rng, 0.42, 0.62)
        builder.add(cylinder(radius, thick, top, 28), (0, 0, high - thick))
        profile = [(0, 0), (0.28, 0), (0.26, 0.03), (0.05, 0.08), (0.045, high - thick), (0, high - thick)]
        builder.add(lathe(profile, frame, 16))
        inner = 0.65 * radius
        return finish("table", builder, (Surface((-inner, -inner), (inner, inner), high),))
    half_x, half_y = span(rng, 0.5, 0.95), span(rng, 0.36, 0.48)
    builder.box((-half_x, -half_y, high - thick), (half_x, half_y, high), top)
    if chance(rng, 0.7):
        wide = span(rng, 0.04, 0.09)
        inset = wide / 2 + 0.02
        legs(builder, half_x - inset, half_y - inset, high - thick, wide, frame, chance(rng, 0.4))
        if chance(rng, 0.6):
            drop = high - thick - 0.07
            for y in (-half_y + inset, half_y - inset):
                builder.box((-half_x + inset, y - 0.01, drop), (half_x - inset, y + 0.01, high - thick), frame)
    else:
        for x in (-half_x + 0.25, half_x - 0.25):
            builder.box((x - 0.03, -half_y + 0.08, 0), (x + 0.03, half_y - 0.08, 0.05), frame)
            builder.box((x - 0.03, -0.05, 0.05), (x + 0.03, 0.05, high - thick), frame)
        builder.box((-half_x + 0.25, -0.02, 0.25), (half_x - 0.25, 0.02, 0.33), frame)
    return finish("table", builder, (Surface((-half_x, -half_y), (half_x, half_y), high),))


def coffee_table(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A low table, round or with a lower shelf."""
    builder, high = Builder(), span(rng, 0.36, 0.48)
    top = finishes.wood()
    if chance(rng, 0.35):
        radius = span(rng, 0.3, 0.45)
        builder.add(cylinder(radius, 0.03, top, 24), (0, 0, high - 0.03))
        for angle in np.arange(3) * 2 * np.pi / 3:
            foot = 0.85 * radius * np.array([np.cos(angle), np.sin(angle)])
            builder.parts.append(between((*foot, 0), (*(0.6 * foot), high - 0.03), 0.018, top))
        inner = 0.6 * radius
        return finish("table", builder, (Surface((-inner, -inner), (inner, inner), high),))
    half_x, half_y = span(rng, 0.38, 0.6), span(rng, 0.25, 0.36)
    builder.box((-half_x, -half_y, high - 0.04), (half_x, half_y, high), top)
    legs(builder, half_x - 0.04, half_y - 0.04, high - 0.04, 0.05, finishes.wood(), False)
    if chance(rng, 0.5):
        builder.box((-half_x + 0.04, -half_y + 0.04, 0.12), (half_x - 0.04, half_y - 0.04, 0.14), top)
    return finish("table", builder, (Surface((-half_x, -half_y), (half_x, half_y), high),))


def desk(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A writing desk: a drawer block on one side, panels or legs on the other, at times a raised shelf."""
    builder, high = Builder(), span(rng, 0.71, 0.77)
    half_x, half_y, thick = span(rng, 0.55, 0.8), span(rng, 0.28, 0.36), span(rng, 0.02, 0.035)
    top, body = finishes.wood(), finishes.wood()
    builder.box((-half_x, -half_y, high - thick), (half_x, half_y, high), top)
    side = -1 if chance(rng, 0.5) else 1
    block = span(rng, 0.34, 0.42)
    inner, outer = side * (half_x - block), side * (half_x - 0.01)
    low_x, high_x = min(inner, outer), max(inner, outer)
    _fronted_block(
        builder, rng, finishes, (low_x, -half_y + 0.03, 0.03), (high_x, half_y - 0.01, high - thick), body, False
    )
    far = -side * half_x
    builder.box(
        (min(far, far + side * 0.03), -half_y + 0.01, 0),
        (max(far, far + side * 0.03), half_y - 0.01, high - thick),
        body,
    )
    builder.box((-half_x + 0.03, half_y - 0.03, 0.3), (half_x - 0.03, half_y - 0.012, high - thick), body)
    surfaces = [Surface((-half_x, -half_y), (half_x, half_y - 0.02), high, 0.45)]
    if chance(rng, 0.3):
        raised = high + span(rng, 0.3, 0.5)
        for x in (-half_x, half_x - 0.02):
            builder.box((x, half_y - 0.22, high), (x + 0.02, half_y, raised), body)
        builder.box((-half_x, half_y - 0.22, raised), (half_x, half_y, raised + 0.02), body)
        surfaces = [Surface((-half_x, -half_y), (half_x, half_y - 0.24), high, 0.28)]
        surfaces.append(Surface((-half_x, half_y - 0.2), (half_x, half_y), raised + 0.02, 0.4))
    return finish("desk", builder, tuple(surfaces))


def wardrobe(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A tall cabinet with doors."""
    size = (span(rng, 0.8, 1.7), span(rng, 0.5, 0.62), span(rng, 1.75, 2.2))
    return _cabinet(rng, finishes, size, doors=True)


def dresser(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A chest of drawers or a sideboard."""
    if chance(rng, 0.5):
        return _cabinet(rng, finishes, (span(rng, 0.7, 1.2), span(rng, 0.4, 0.5), span(rng, 0.75, 1.1)), doors=False)
    return _cabinet(rng, finishes, (span(rng, 1.1, 1.8), span(rng, 0.36, 0.46), span(rng, 0.42, 0.7)), chance(rng, 0.6))


def nightstand(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A small cabinet beside a bed."""
    return _cabinet(rng, finishes, (span(rng, 0.35, 0.5), span(rng, 0.34, 0.42), span(rng, 0.4, 0.6)), chance(rng, 0.4))


def wall_cabinet(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """A cabinet that hangs on a wall; its lower side is at z = 0 here."""
    return _cabinet(rng, finishes, (span(rng, 0.6, 1.6), span(rng, 0.28, 0.36), span(rng, 0.4, 0.7)), True, feet=False)


def _cabinet(
    rng: np.random.Generator, finishes: Finishes, size: tuple[float, float, float], doors: bool, feet: bool = True
) -> Piece:
    builder, body = Builder(), finishes.wood()
    half_x, half_y, high = size[0] / 2, size[1] / 2, size[2]
    foot = span(rng, 0.03, 0.15) if feet and chance(rng, 0.6) else 0.0
    if foot:
        legs(builder, half_x - 0.05, half_y - 0.05, foot, 0.05, finishes.wood(), False)
    builder.box((-half_x, -half_y, high - 0.025), (half_x, half_y, high), finishes.wood() if chance(rng, 0.3) else body)
    _fronted_block(
        builder,
        rng,
        finishes,
        (-half_x + 0.005, -half_y + 0.025, foot),
        (half_x - 0.005, half_y, high - 0.025),
        body,
        doors,
    )
    surface = Surface((-half_x, -half_y), (half_x, half_y), high, 0.6)
    return finish("cabinet", builder, (surface,) if high < 1.9 else ())


def _fronted_block(
    builder: Builder,
    rng: np.random.Generator,
    finishes: Finishes,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    body: int,
    doors: bool,
) -> None:
    """A closed body whose front (-y) carries doors or drawers with gaps and handles."""
    builder.box(low, high, body)
    front = finishes.wood() if chance(rng, 0.35) else body
    handle = finishes.hard()
    wide, tall = high[0] - low[0], high[2] - low[2]
    columns = max(1, round(wide / span(rng, 0.38, 0.6)))
    rows = (1 if tall < 1.0 or chance(rng, 0.5) else 2) if doors else max(2, round(tall / span(rng, 0.17, 0.28)))
    thick, gap, knob = 0.02, 0.006, chance(rng, 0.5)
    for i in range(columns):
        for j in range(rows):
            x0, x1 = low[0] + wide * i / columns + gap, low[0] + wide * (i + 1) / columns - gap
            z0, z1 = low[2] + tall * j / rows + gap, low[2] + tall * (j + 1) / rows - gap
            builder.box((x0, low[1] - thick, z0), (x1, low[1], z1), front)
            x = ((x1 - 0.05) if i % 2 == 0 else (x0 + 0.05)) if doors else (x0 + x1) / 2
            _handle(builder, x, low[1] - thick, (z0 + z1) / 2, handle, doors, knob)


def _handle(builder: Builder, x: float, y: float, z: float, material: int, upright: bool, knob: bool) -> None:
    if knob:
        builder.add(ball(0.017, material, 8, 4), (x, y - 0.014, z))
        return
    long = (0.01, 0.07) if upright else (0.07, 0.01)
    builder.box((x - long[0], y - 0.03, z - long[1]), (x + long[0], y, z + long[1]), material)


def bookshelf(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """Open shelves with books; the books belong to it."""
    size = (span(rng, 0.6, 1.4), span(rng, 0.25, 0.36), span(rng, 0.9, 2.1))
    return _shelves(rng, finishes, size, max(2, round(size[2] / span(rng, 0.3, 0.42))))


def wall_shelf(rng: np.random.Generator, finishes: Finishes) -> Piece:
    """One or two boards with books that hang on a wall; its lower side is at z = 0 here."""
    return _shelves(
        rng, finishes, (span(rng, 0.6, 1.2), span(rng, 0.2, 0.28), span(rng, 0.3, 0.6)), int(rng.integers(1, 3))
    )


def _shelves(rng: np.random.Generator, finishes: Finishes, size: tuple[float, float, float], rows: int) -> Piece:
    builder, wood, thick = Builder(), finishes.wood(), 0.022
    half_x, half_y, high = size[0] / 2, size[1] / 2, size[2]
    for x in (-half_x, half_x - thick):
        builder.box((x, -half_y, 0), (x + thick, half_y, high), wood)
    if chance(rng, 0.6):
        builder.box((-half_x + thick, half_y - 0.012, 0.01), (half_x - thick, half_y, high), finishes.wood())
    covers = [finishes.anything() for _ in range(5)]
    bottom = 0.03
    step = (high - thick - bottom) / rows
    for row in range(rows + 1):
        z = bottom + row * step
        builder.box(
            (-half_x + thick, -half_y + 0.002, z - thick / 2), (half_x - thick, half_y - 0.002, z + thick / 2), wood
        )
        if row < rows:
            _books(builder, rng, covers, (half_x - thick - 0.01, half_y), z + thick / 2, step - thick)
    return finish(
        "bookshelf", builder, (Surface((-half_x, -half_y), (half_x, half_y), high, 0.35),) if high < 1.7 else ()
    )


def _books(
    builder: Builder, rng: np.random.Generator, covers: list[int], half: tuple[float, float], z: float, room: float
) -> None:
    """Fills one shelf from the left: upright books, gaps, flat stacks, the last one leaning."""
    x = -half[0] + 0.004
    while x < half[0] - 0.09:
        cover = covers[int(rng.integers(len(covers)))]
        if chance(rng, 0.12):
            x += span(rng, 0.05, 0.25)
        elif chance(rng, 0.1) and x < half[0] - 0.26:
            tall = z
            for _ in range(int(rng.integers(2, 4))):
                thick = span(rng, 0.02, 0.04)
                cover = covers[int(rng.integers(len(covers)))]
                builder.parts.append(
                    box((x + 0.12, 0, tall + thick / 2), (span(rng, 0.18, 0.23), half[1] * 1.5, thick), cover)
                )
                tall += thick
            x += 0.25
        else:
            thick, tall = span(rng, 0.02, 0.06), min(span(rng, 0.17, 0.31), 0.94 * room)
            deep = span(rng, 0.6, 0.85) * 2 * half[1]
            tilt = span(rng, 0.06, 0.2) if chance(rng, 0.06) else 0.0
            book = box((0, 0, 0), (thick, deep, tall), cover)
            at = (
                x + thick / 2 + tall * np.sin(tilt) / 2,
                half[1] - 0.02 - deep / 2,
                z + tall * 0.5 + thick * np.sin(tilt) / 2,
            )
            builder.add(book, at, axis_matrix(1, -tilt))
            x += thick + tall * float(np.sin(tilt)) + 0.002
