"""What stands and drives where along a street. Legend: s metres along the centre line, t metres to its left."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splatlearn.data.procedural.mesh import Mesh, join
from splatlearn.data.streets import people, plants, roadside, vehicles
from splatlearn.data.streets.buildings import house
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.ground import EDGE, Ground, Profile
from splatlearn.data.streets.route import Ride, draw_route
from splatlearn.data.streets.solids import Parts

MARGIN = 85.0
"""Metres of street before the first and beyond the last scan."""
LANE = 3.3
"""Width of a lane, metres (our default)."""
TURN = np.pi


@dataclass(frozen=True)
class Thing:
    """One object of one class on the street.

    Args:
        label: its class.
        mesh: in its own frame: x forward, y left, z up from the ground.
        s: where it stands at time 0.
        t: likewise.
        turn: radians from the street's heading to its x.
        speed: metres a second along s.
    """

    label: str
    mesh: Mesh
    s: float
    t: float
    turn: float = 0.0
    speed: float = 0.0

    def s_at(self, time: float) -> float:
        """Where it is at `time` seconds."""
        return self.s + self.speed * time


@dataclass(frozen=True)
class Street:
    """A street with everything on it.

    Args:
        ride: of the vehicle with the sensors, and the route.
        ground: its surfaces.
        surfaces: one mesh a class of ground.
        things: all that stands or moves on it.
        finishes: materials.
    """

    ride: Ride
    ground: Ground
    surfaces: dict[str, Mesh]
    things: list[Thing]
    finishes: Finishes

    def moving(self, time: float) -> list[tuple[int, Thing]]:
        """Moving things that are on the street at `time` seconds, with their numbers."""
        p = self.ground.profile
        return [
            (row, thing) for row, thing in enumerate(self.things) if thing.speed and p.low < thing.s_at(time) < p.high
        ]

    def crosses(self, s: float) -> bool:
        """Whether s lies in a crossing street."""
        p = self.ground.profile
        return any(abs(s - place) < p.crossing for place in p.junctions)


def lay_out(rng: np.random.Generator, scans: int) -> Street:
    """A street for a drive of this many scans, a second apart."""
    speed = rng.uniform(5.5, 9.5)
    low, high = -MARGIN, speed * (scans - 1) + MARGIN
    profile = _profile(rng, low, high, speed * scans)
    route = draw_route(rng, low, high, list(profile.junctions))
    finishes = Finishes(rng)
    ground = Ground(route, profile, rng, finishes)
    surfaces: dict[str, list[Mesh]] = {}
    for label, mesh in ground.parts():
        surfaces.setdefault(label, []).append(mesh)
    ride = Ride(route, -LANE / 2, speed, rng.uniform(0, 0.15))
    things = _Planner(rng, finishes, profile, ride).plan()
    return Street(ride, ground, {label: join(meshes) for label, meshes in surfaces.items()}, things, finishes)


def _profile(rng: np.random.Generator, low: float, high: float, long: float) -> Profile:
    junctions = [float(rng.uniform(0.15, 0.9) * long)]
    for place in (junctions[0] - rng.uniform(50, 75), junctions[0] + rng.uniform(50, 75)):
        if low + 25 < place < high - 25:
            junctions.append(float(place))
    parking = 2.3 if rng.random() < 0.75 else 0.4
    return Profile(
        half=LANE + parking,
        kerb=float(rng.uniform(0.1, 0.17)),
        verge=float(rng.uniform(1.2, 2.2)) if rng.random() < 0.5 else 0.0,
        pavement=float(rng.uniform(1.8, 3.6)),
        junctions=tuple(sorted(junctions)),
        crossing=float(rng.uniform(3.2, 4.5)),
        low=low,
        high=high,
    )


class _Row:
    """Stretches of one line along s that are taken."""

    def __init__(self, taken: list[tuple[float, float]]) -> None:
        self.taken = list(taken)

    def take(self, s: float, half: float) -> bool:
        """Takes s +- half if it is free."""
        if any(s + half > low and s - half < high for low, high in self.taken):
            return False
        self.taken.append((s - half, s + half))
        return True


class _Planner:
    """Fills a street, one kind of thing after another."""

    def __init__(self, rng: np.random.Generator, finishes: Finishes, profile: Profile, ride: Ride) -> None:
        self.rng, self.finishes, self.profile, self.ride = rng, finishes, profile, ride
        self.things: list[Thing] = []
        wide = profile.crossing + profile.pavement
        self.crossings = [(place - wide - 1.5, place + wide + 1.5) for place in profile.junctions]

    def plan(self) -> list[Thing]:
        """All things."""
        for side in (-1, 1):
            self._parked(side)
            self._kerbside(side)
            self._walkers(side)
            for start, end in self.profile.blocks():
                self._plots(start, end, side)
        self._traffic()
        self._signals()
        return self.things

    def _add(self, parts: Parts, s: float, t: float, turn: float = 0.0, speed: float = 0.0) -> None:
        self.things += [Thing(label, mesh, float(s), float(t), float(turn), float(speed)) for label, mesh in parts]

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _any_vehicle(self, weights: tuple[float, float, float]) -> tuple[Parts, float]:
        """A vehicle and half its length."""
        make = (vehicles.car, vehicles.truck, vehicles.bus)[int(self.rng.choice(3, p=weights))]
        parts = make(self.rng, self.finishes)
        return parts, float(parts[0][1].bounds[1, 0])

    def _parked(self, side: int) -> None:
        """Vehicles and two-wheelers at the kerb, where there is a lane for them."""
        if self.profile.half < LANE + 2:
            return
        row, s, share = _Row(self.crossings), self.profile.low + 5, self.rng.uniform(0.25, 0.8)
        while s < self.profile.high - 8:
            if self._chance(0.12):
                make = people.motorcycle if self._chance(0.5) else people.bicycle
                if row.take(s, 1.2):
                    self._add(
                        make(self.rng, self.finishes, False), s, side * (self.profile.half - 0.6), self._wobble(0.2)
                    )
                s += 2.0
            elif self._chance(share):
                parts, half = self._any_vehicle((0.87, 0.1, 0.03))
                s += half
                if row.take(s, half + 0.3):
                    turn = (TURN if side > 0 else 0.0) + (TURN if self._chance(0.1) else 0.0)
                    self._add(parts, s, side * (self.profile.half - 1.15 - 0.05 * half / 3), turn + self._wobble(0.02))
                s += half + self.rng.uniform(0.7, 2.5)
            else:
                s += self.rng.uniform(2, 7)

    def _traffic(self) -> None:
        """Vehicles ahead, behind and oncoming, and riders at the edges of the lanes."""
        long = self.profile.high - self.profile.low
        for s in (self.rng.uniform(14, 24), self.rng.uniform(-24, -14), self.rng.uniform(45, 60)):
            if self._chance(0.75):
                parts, half = self._any_vehicle((0.6, 0.2, 0.2))
                self._add(parts, s + np.sign(s) * half, -LANE / 2, self._wobble(0.02), self.ride.speed)
        row, speed = _Row([]), self.rng.uniform(4, 9)
        far = self.profile.high + speed * (long - 2 * MARGIN) / self.ride.speed
        for s in self.rng.uniform(self.profile.low, far, int((far - self.profile.low) / 26)).tolist():
            parts, half = self._any_vehicle((0.64, 0.18, 0.18))
            if row.take(s, half + 4):
                self._add(parts, s, LANE / 2 + 0.1, TURN + self._wobble(0.02), -speed)
        edge = LANE - 0.1 if self.profile.half > LANE + 2 else LANE - 0.5
        ahead, slow = _Row([(-10, 10)]), self.rng.uniform(3.5, 5)
        for side in (-1, 1):
            for s in self.rng.uniform(self.profile.low, self.profile.high, 4).tolist():
                make = people.motorcycle if self._chance(0.35) else people.bicycle
                if ahead.take(s, 2):
                    t = side * edge if side > 0 else -edge - 0.35
                    self._add(make(self.rng, self.finishes, True), s, t, TURN * (side > 0), -side * slow * 0.6)

    def _kerbside(self, side: int) -> None:
        """Lamps, poles, bollards, signs and trees between road and pavement."""
        p, rng = self.profile, self.rng
        row = _Row([(a - 1.0, b + 1.0) for a, b in self.crossings])
        t = side * (p.half + (0.5 if p.verge == 0 else 0.5 * p.verge))
        turn = 0.0 if side < 0 else TURN
        makers: list[tuple[Callable[..., Parts], float]] = [
            (roadside.lamp_post, 26.0),
            (roadside.traffic_sign, 17.0),
            (plants.tree, rng.uniform(9.0, 22.0)),
            (roadside.bollard, rng.uniform(12.0, 40.0)),
            (roadside.utility_pole, rng.uniform(30.0, 200.0)),
        ]
        for make, every in makers:
            for s in np.arange(p.low + rng.uniform(0, every), p.high, every).tolist():
                s = s + rng.uniform(-2.5, 2.5)
                if row.take(s, 1.2 if make is plants.tree else 0.5):
                    facing = turn + (TURN if make is roadside.traffic_sign and self._chance(0.25) else 0.0)
                    self._add(make(rng, self.finishes), s, t, facing + self._wobble(0.15))

    def _walkers(self, side: int) -> None:
        """People along the pavement, some of them in pairs; bicycles that lean there."""
        p, rng = self.profile, self.rng
        row = _Row([])
        for s in rng.uniform(p.low, p.high, int(rng.integers(10, 24))).tolist():
            if not row.take(s, 1.1):
                continue
            t = side * rng.uniform(p.inner + 1.1, p.outer - 0.3)
            if self._chance(0.15):
                self._add(people.bicycle(rng, self.finishes, False), s, side * (p.outer - 0.4), self._wobble(0.4))
                continue
            way = 1 if self._chance(0.5) else -1
            turn = (0.0 if way > 0 else TURN) + self._wobble(0.3)
            for aside in (0.0, 0.65)[: 1 + self._chance(0.25)]:
                parts = people.pedestrian(rng, self.finishes)
                self._add(parts, s + 0.3 * aside, t - side * aside, turn, way * rng.uniform(0.6, 1.4))

    def _signals(self) -> None:
        """Traffic lights at crossings, and people who cross."""
        p, rng = self.profile, self.rng
        for place in p.junctions:
            for side, along in ((-1, -1), (1, 1), (-1, 1), (1, -1)):
                if self._chance(0.9):
                    s = place + along * (p.crossing + rng.uniform(0.5, 0.9))
                    turn = 0.0 if side < 0 else TURN
                    self._add(roadside.traffic_light(rng, self.finishes), s, side * (p.half + 0.5), turn)
            for _ in range(int(rng.integers(0, 3))):
                s, t = place + (p.crossing + 1.8) * rng.choice([-1, 1]), rng.uniform(LANE + 0.3, p.half)
                self._add(
                    people.pedestrian(rng, self.finishes), s, t * rng.choice([-1, 1]), TURN / 2 * rng.choice([-1, 1])
                )
            for side in (-1, 1):
                parts, half = self._any_vehicle((0.7, 0.15, 0.15))
                t = side * (p.outer + rng.uniform(2, 14) + half)
                self._add(parts, place - side * 0.45 * p.crossing, t, -side * TURN / 2)

    def _plots(self, start: float, end: float, side: int) -> None:
        """Houses at the pavement or behind gardens, and small parks."""
        p, rng = self.profile, self.rng
        start += (p.pavement + 0.6) * (start > p.low)
        end -= (p.pavement + 0.6) * (end < p.high)
        dense = rng.uniform(0.2, 0.6)
        while end - start > 7:
            wide = min(float(rng.uniform(9, 19)), end - start)
            kind = rng.random()
            if kind < dense:
                self._house(start, wide, side, rng.uniform(0.15, 1.0))
            elif kind < 0.88:
                deep = rng.uniform(4.5, 9.0)
                self._house(start, wide * 0.9, side, deep)
                self._garden(start, wide, side, deep)
            else:
                self._garden(start, wide, side, 18.0)
            self._background(start, wide, side)
            start += wide + (rng.uniform(0, 4) if self._chance(0.5) else 0.1)

    def _house(self, start: float, wide: float, side: int, back: float) -> None:
        front = side * (self.profile.outer + back)
        parts = house(self.rng, self.finishes, wide - 0.4, float(self.rng.uniform(7, 11)))
        self._add(parts, start + wide / 2, front, 0.0 if side > 0 else TURN)

    def _garden(self, start: float, wide: float, side: int, deep: float) -> None:
        """A border towards the pavement, and plants."""
        p, rng = self.profile, self.rng
        self._border(start, wide, side * (p.outer + 0.35))
        for _ in range(int(rng.integers(1, 4) + (deep > 10) * 4)):
            s, t = start + rng.uniform(1, max(1.1, wide - 1)), side * (p.outer + rng.uniform(1.5, max(1.6, deep - 1.2)))
            make = plants.tree if self._chance(0.45) else plants.bush
            self._add(make(rng, self.finishes), s, t, rng.uniform(0, 6))

    def _border(self, start: float, wide: float, t: float) -> None:
        """A wall, a fence, a hedge, or nothing; with a gap to walk through."""
        rng, f = self.rng, self.finishes
        kind, piece, gap = int(rng.integers(5)), 2.0, int(rng.integers(1, 4))
        if kind == 4:
            return
        first, second, high, step = f.facade(), f.hard(), rng.uniform(0.6, 1.7), rng.uniform(0.14, 0.3)
        leaf = f.leaf()
        for k in range(int(wide / piece)):
            if k == gap:
                continue
            if kind == 0:
                parts = roadside.garden_wall(rng, piece, high, first, second)
            elif kind < 3:
                parts = roadside.fence(piece, high, step, second)
            else:
                parts = plants.hedge(rng, piece, high, leaf)
            self._add(parts, start + piece * (k + 0.5), t)

    def _background(self, start: float, wide: float, side: int) -> None:
        """Trees and houses of the next street."""
        t = side * self.rng.uniform(30, EDGE - 6)
        if self._chance(0.5):
            self._house(start, wide, side, abs(t) - self.profile.outer)
        else:
            self._add(plants.tree(self.rng, self.finishes), start + wide / 2, t)

    def _wobble(self, size: float) -> float:
        return float(self.rng.normal(0, size))
