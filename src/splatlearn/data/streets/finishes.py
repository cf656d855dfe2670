"""What a street is made of: colours, patterns and laser reflectance vary at random within every class.

Legend: colours are (3) sRGB values in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps

import numpy as np

from splatlearn.data.procedural import textures
from splatlearn.data.procedural.colors import near, partner, random_color
from splatlearn.data.procedural.textures import Array, Materials, Pattern

GROUNDS = (0.09, 0.28, 0.58, 0.04)
"""Hues that ground is likely to have, whichever kind it is: sand, grass, slate, brick."""


def few(most: int) -> Callable[[Callable[["Finishes"], int]], Callable[["Finishes"], int]]:
    """A decorator: a drive has at most so many materials of a kind, and then uses them again."""

    def decorate(make: Callable[["Finishes"], int]) -> Callable[["Finishes"], int]:
        @wraps(make)
        def draw(self: "Finishes") -> int:
            made = self.made.setdefault(make.__name__, [])
            if len(made) < most:
                made.append(make(self))
                return made[-1]
            return made[int(self.rng.integers(most))]

        return draw

    return decorate


@dataclass
class Finishes:
    """Draws the materials of one drive.

    Args:
        rng: source of every choice.
        materials: where they are added.
        echo: share of an infrared laser's light that each material sends back, beyond what its colour says; above 1
            it throws the light back to where it came from, as signs do.
        made: materials by kind.
    """

    rng: np.random.Generator
    materials: Materials = field(default_factory=Materials)
    echo: list[float] = field(default_factory=list)
    made: dict[str, list[int]] = field(default_factory=dict)

    def add(
        self,
        patterns: tuple[Pattern, ...],
        color: Array,
        size: float,
        glow: float = 0.0,
        glass: bool = False,
        echo: float | None = None,
    ) -> int:
        """A new material of one of the patterns; its echo is drawn at random unless given."""
        pattern = patterns[int(self.rng.integers(len(patterns)))]
        second = partner(self.rng, color)
        second = color + self.rng.uniform(0.2, 0.8) * (second - color)
        self.echo.append(float(self.rng.beta(1.3, 2.2)) if echo is None else echo)
        return self.materials.add(pattern, self.rng, (color, second), size, glow, glass)

    def _anything(self, share: float, hue: float, saturation: float, value: float) -> Array:
        """A colour: with this probability about a hue, else any."""
        if self.rng.random() < share:
            return near(self.rng, hue, 0.04, saturation, value)
        return self._muted()

    def _muted(self) -> Array:
        """Any hue, as paint and stone fade outdoors."""
        color = random_color(self.rng)
        return color.mean() + 0.5 * (color - color.mean())

    def ground(self) -> int:
        """Whatever one walks or drives on: asphalt, slabs, cobbles, gravel, grass, all for every kind of ground."""
        patterns = (
            textures.mottled,
            textures.speckle,
            textures.tiles,
            textures.bricks,
            textures.marble,
            textures.plain,
        )
        color = self._anything(0.75, GROUNDS[int(self.rng.integers(len(GROUNDS)))], 0.15, 0.45)
        return self.add(patterns, np.clip(color, 0.08, 0.85), float(self.rng.uniform(1.0, 3.0)))

    def paint(self) -> int:
        """Road markings, more or less worn."""
        color = near(self.rng, 0.12, 0.05, 0.15 if self.rng.random() < 0.7 else 0.6, 0.9)
        return self.add((textures.plain, textures.mottled), color, 1.0, echo=float(self.rng.uniform(0.3, 1.0)))

    @few(22)
    def facade(self) -> int:
        """Plaster, bricks, stone, boards."""
        patterns = (textures.plain, textures.mottled, textures.bricks, textures.bricks, textures.tiles, textures.planks)
        color = np.clip(0.2 + 0.75 * self._muted(), 0, 0.95)
        return self.add(patterns, color, float(self.rng.uniform(1.5, 3.0)))

    @few(26)
    def hard(self) -> int:
        """Metal, plastic and stone of any colour."""
        patterns = (textures.plain, textures.plain, textures.mottled, textures.speckle)
        color = self._anything(0.4, 0.6, 0.1, 0.5)
        return self.add(patterns, color, float(self.rng.uniform(0.4, 1.2)))

    @few(24)
    def coachwork(self) -> int:
        """Paint of vehicles."""
        return self.add((textures.plain,), self._anything(0.4, 0.6, 0.05, 0.6), 1.5)

    @few(12)
    def wood(self) -> int:
        """Bark, boards."""
        patterns = (textures.grain, textures.mottled, textures.plain, textures.speckle)
        return self.add(patterns, self._anything(0.5, 0.08, 0.4, 0.4), float(self.rng.uniform(0.5, 1.2)))

    @few(30)
    def cloth(self) -> int:
        """Clothes and tarpaulins."""
        patterns = (textures.weave, textures.plain, textures.stripes, textures.checks, textures.mottled)
        return self.add(patterns, random_color(self.rng), float(self.rng.uniform(0.3, 0.8)))

    @few(10)
    def leaf(self) -> int:
        """Foliage: mostly green, else as autumn and gardeners like it."""
        color = self._anything(0.6, 0.28, 0.5, 0.45)
        return self.add((textures.mottled, textures.speckle), color, float(self.rng.uniform(0.3, 0.8)))

    @few(14)
    def plate(self) -> int:
        """The face of a sign; some throw light back."""
        echo = 1.5 if self.rng.random() < 0.4 else None
        return self.add((textures.painting, textures.stripes, textures.plain), random_color(self.rng), 0.7, echo=echo)

    @few(5)
    def glass(self) -> int:
        """Panes: dark, and mostly missed by a laser."""
        color = near(self.rng, 0.58, 0.08, 0.25, 0.3)
        return self.add((textures.mottled, textures.plain), color, 2.0, glass=True, echo=0.04)

    @few(4)
    def black(self) -> int:
        """Tyres and housings."""
        return self.add((textures.plain,), np.full(3, self.rng.uniform(0.08, 0.22)), 1.0)

    def lamp(self, hue: float) -> int:
        """A lit lamp."""
        return self.add((textures.plain,), near(self.rng, hue, 0.01, 0.8, 0.95), 1.0, glow=0.7)

    def sky(self) -> int:
        """Clear to clouded."""
        clear = near(self.rng, 0.58, 0.02, 0.3, 0.9)
        return self.add((textures.mottled, textures.plain), np.clip(clear, 0.55, 0.97), 300.0, glow=1.3)
