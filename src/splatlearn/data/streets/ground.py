"""The ground of a street: road with markings, pavements with kerbs, uneven terrain behind them.

Legend: s metres along the centre line, t metres to its left. Map: metres.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from splatlearn.data.procedural.mesh import Array, Mesh
from splatlearn.data.streets.finishes import Finishes
from splatlearn.data.streets.route import Route
from splatlearn.data.streets.solids import Parts, surface

EDGE = 48.0
"""Metres to each side that the ground is worked out in detail."""


@dataclass(frozen=True)
class Profile:
    """The cross section of a street, and where other streets cross it.

    Args:
        half: metres from the centre line to the kerbs.
        kerb: height of the pavements above the road, metres.
        verge: width of the strip of terrain between road and pavement, metres; 0 = none.
        pavement: width, metres.
        junctions: s of each crossing street.
        crossing: half the width of crossing streets.
        low: first s.
        high: last s.
    """

    half: float
    kerb: float
    verge: float
    pavement: float
    junctions: tuple[float, ...]
    crossing: float
    low: float
    high: float

    @property
    def inner(self) -> float:
        """|t| at which the pavement begins."""
        return self.half + self.verge

    @property
    def outer(self) -> float:
        """|t| at which the pavement ends."""
        return self.inner + self.pavement

    def blocks(self) -> list[tuple[float, float]]:
        """(from, to) in s of each stretch between crossing streets."""
        starts = [self.low, *(place + self.crossing for place in self.junctions)]
        ends = [*(place - self.crossing for place in self.junctions), self.high]
        return list(zip(starts, ends, strict=True))


class Ground:
    """Builds the surfaces of one street and says how high they lie.

    Args:
        route: its course.
        profile: its cross section.
        rng: source of bumps and of wear.
        finishes: source of materials.
    """

    def __init__(self, route: Route, profile: Profile, rng: np.random.Generator, finishes: Finishes) -> None:
        self.route, self.profile, self.rng = route, profile, rng
        self.bank = rng.uniform(-0.03, 0.09, 2)
        self.bumps = rng.uniform(0.04, 0.09)
        self.materials = {name: finishes.ground() for name in ("road", "pavement", "kerb", "terrain", "terrain2")}
        self.crossing = self.materials["road"] if rng.random() < 0.5 else finishes.ground()
        self.paint = finishes.paint()

    def height(self, t: float) -> float:
        """Metres above the hills at t, away from crossing streets; bumps left out."""
        p, far = self.profile, abs(t)
        if far < p.half:
            return 0.0
        rise = float(self.bank[int(t > 0)]) * max(0.0, min(far, 25.0) - p.outer)
        return p.kerb + rise

    def parts(self) -> Parts:
        """Every surface with its class."""
        p, made = self.profile, []
        made.append(("road", self._sheet(p.low, p.high, -p.half, p.half, 0.0, self.materials["road"])))
        made += [("road", mesh) for mesh in self._markings()]
        for place in p.junctions:
            for side in (-1, 1):
                span = (place - p.crossing, place + p.crossing)
                made.append(("road", self._sheet(*span, side * p.half, side * EDGE, 0.0, self.crossing)))
        for start, end in p.blocks():
            for side in (-1, 1):
                made += self._block(start, end, side)
        made.append(("terrain", self._backdrop()))
        return made

    def _block(self, start: float, end: float, side: int) -> Parts:
        """Kerb, pavement and terrain of one side between two crossing streets, which have pavements too."""
        p, made = self.profile, []
        paved, kerb = self.materials["pavement"], self.materials["kerb"]
        near = p.pavement
        corner = (start > p.low, end < p.high)
        inside = (start + near * corner[0], end - near * corner[1])
        if p.verge:
            made.append(("terrain", self._rough(*inside, side * p.half, side * p.inner, self.materials["terrain2"])))
            for flag, (a, b) in zip(corner, ((start, start + near), (end - near, end)), strict=True):
                if flag:
                    made.append(("pavement", self._sheet(a, b, side * p.half, side * p.inner, p.kerb, paved)))
        made.append(("pavement", self._sheet(start, end, side * p.inner, side * p.outer, p.kerb, paved)))
        made.append(("pavement", self._step(start, end, side * p.half, kerb)))
        for flag, a, b in zip(corner, (start, end), (start + near, end - near), strict=True):
            if flag:
                strip = self._sheet(min(a, b), max(a, b), side * p.outer, side * EDGE, p.kerb, paved)
                t = side * np.linspace(p.half, EDGE, 20)
                face = self._riser((np.full(20, a), t), (np.full(20, a - 0.02 * (b - a) / near), t), kerb)
                made += [("pavement", strip), ("pavement", face)]
        made.append(("terrain", self._rough(*inside, side * p.outer, side * EDGE, self.materials["terrain"])))
        return made

    def _sheet(self, s0: float, s1: float, t0: float, t1: float, z: float, material: int, lift: float = 0.0) -> Mesh:
        """Smooth ground."""
        s, t = self._ticks(s0, s1, 1.5), self._ticks(t0, t1, 2.0)
        return self._surface(s, t, z + lift, material)

    def _surface(self, s: Array, t: Array, z: Array | float, material: int) -> Mesh:
        grid = np.stack(np.meshgrid(s, t, indexing="ij"), -1)
        return surface(self.route.place(grid[..., 0], grid[..., 1], z), grid, material)

    def _rough(self, s0: float, s1: float, t0: float, t1: float, material: int) -> Mesh:
        """Terrain: bumps that fade out at its borders, on a bank."""
        near = np.arange(min(abs(t0), abs(t1)), min(14.0, max(abs(t0), abs(t1))), 0.45)
        far = np.arange(14.0, max(abs(t0), abs(t1)), 2.0)
        t = np.sign(t0) * np.unique(np.concatenate([near, far[far > near[-1] + 0.2], [max(abs(t0), abs(t1))]]))
        s = self._ticks(s0, s1, 0.6)
        bump = ndimage.gaussian_filter(self.rng.standard_normal((len(s), len(t))), 0.7) * 2.2
        fade = np.minimum(np.minimum(np.abs(t - t0), np.abs(t1 - t)) / 0.6, 1.0)
        heights = np.array([self.height(float(value)) for value in t])
        return self._surface(s, t, heights + self.bumps * bump * fade, material)

    def _step(self, start: float, end: float, t: float, material: int) -> Mesh:
        s = self._ticks(start, end, 1.5)
        return self._riser((s, np.full(len(s), t)), (s, np.full(len(s), t - 0.02 * np.sign(t))), material)

    def _riser(self, top: tuple[Array, Array], foot: tuple[Array, Array], material: int) -> Mesh:
        """The face of a kerb between two lines (s, t), hardly leaning back."""
        points = np.stack([self.route.place(*foot), self.route.place(*top, self.profile.kerb)], 1)
        run = np.arange(len(points), dtype=np.float64) * 1.5
        uv: Array = np.stack([np.stack([run, 0 * run + z], 1) for z in (0.0, self.profile.kerb)], 1)
        return surface(points, uv, material)

    def _markings(self) -> list[Mesh]:
        """Dashes in the middle, lines at the edges, zebras and stop lines at crossings."""
        p, strips = self.profile, []
        dash, gap, lane = self.rng.uniform(2, 4), self.rng.uniform(3, 6), p.half
        solid = self.rng.random() < 0.3
        for start, end in p.blocks():
            start, end = start + p.verge + 3.5, end - p.verge - 3.5
            starts = np.arange(start, end - dash, dash + gap)
            strips += [(start, end, 0.0)] if solid else [(a, a + dash, 0.0) for a in starts.tolist()]
            strips += [(start, end, side * (lane - 0.35)) for side in (-1, 1) if self.rng.random() < 0.6]
        meshes = [self._sheet(a, b, t - 0.07, t + 0.07, 0.0, self.paint, 0.012) for a, b, t in strips if b > a]
        for place in p.junctions:
            for side in (-1, 1):
                near = place + side * (p.crossing + 0.6)
                far = near + side * 2.4
                for t in np.arange(-p.half + 0.5, p.half - 0.4, 1.0):
                    meshes.append(self._sheet(min(near, far), max(near, far), t, t + 0.5, 0.0, self.paint, 0.012))
        return meshes

    def _backdrop(self) -> Mesh:
        """Hills below and beyond everything else."""
        ticks = np.linspace(-260, 260, 40)
        xy = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1) + self.route.at(0.5 * self.profile.high, 0.0)
        points = np.concatenate([xy, self.route.height(xy)[..., None] - 1.2], -1)
        return surface(points, xy, self.materials["terrain"])

    @staticmethod
    def _ticks(low: float, high: float, step: float) -> Array:
        return np.linspace(low, high, max(1, int(np.ceil(abs(high - low) / step))) + 1)
