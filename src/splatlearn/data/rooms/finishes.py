"""What things are made of: patterns follow the kind of thing loosely, colours vary at random within every class.

Legend: colours are (3) sRGB values in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from splatlearn.data.procedural import textures
from splatlearn.data.procedural.colors import near, partner, random_color
from splatlearn.data.procedural.textures import Array, Materials, Pattern


@dataclass
class Finishes:
    """Draws materials for one room.

    Args:
        materials: where they are added.
        rng: source of every choice.
    """

    materials: Materials
    rng: np.random.Generator
    _woods: list[int] = field(default_factory=list)

    def _pick(self, patterns: Sequence[Pattern], color: Array, size: tuple[float, float], faint: float = 0.0) -> int:
        """A new material; `faint` is the probability that its two colours are brought close together."""
        pattern = patterns[int(self.rng.integers(len(patterns)))]
        second = partner(self.rng, color)
        if self.rng.random() < faint:
            second = color + self.rng.uniform(0.15, 0.5) * (second - color)
        return self.materials.add(pattern, self.rng, (color, second), float(self.rng.uniform(*size)))

    def wood(self) -> int:
        """Boards of furniture: grained in brown, stained or painted; rooms repeat some of their woods."""
        if self._woods and self.rng.random() < 0.3:
            return self._woods[int(self.rng.integers(len(self._woods)))]
        if self.rng.random() < 0.5:
            made = self._pick((textures.grain,), near(self.rng, 0.08, 0.02, 0.5, 0.6), (0.5, 1.0))
        else:
            made = self._pick(
                (textures.grain, textures.grain, textures.plain, textures.mottled, textures.speckle),
                random_color(self.rng),
                (0.5, 1.2),
            )
        self._woods.append(made)
        return made

    def fabric(self) -> int:
        """Upholstery and bedding."""
        patterns = (
            textures.weave,
            textures.weave,
            textures.weave,
            textures.mottled,
            textures.stripes,
            textures.checks,
            textures.dots,
            textures.damask,
            textures.plain,
        )
        return self._pick(patterns, random_color(self.rng), (0.25, 0.7))

    def hard(self) -> int:
        """Metal, plastic, ceramics."""
        patterns = (textures.plain, textures.plain, textures.mottled, textures.speckle)
        color = near(self.rng, 0.6, 0.3, 0.08, 0.5) if self.rng.random() < 0.5 else random_color(self.rng)
        return self._pick(patterns, color, (0.3, 0.8))

    def anything(self) -> int:
        """Small things of any look."""
        patterns = (
            textures.plain,
            textures.mottled,
            textures.stripes,
            textures.checks,
            textures.dots,
            textures.weave,
            textures.marble,
            textures.painting,
        )
        return self._pick(patterns, random_color(self.rng), (0.2, 0.6))

    def leaf(self) -> int:
        """Foliage, mostly green."""
        color = near(self.rng, 0.3, 0.05, 0.6, 0.45) if self.rng.random() < 0.7 else random_color(self.rng)
        return self._pick((textures.mottled, textures.stripes, textures.plain), color, (0.15, 0.4))

    def wall(self) -> int:
        """Paint, wallpaper, bricks or plaster."""
        patterns = (
            textures.plain,
            textures.plain,
            textures.mottled,
            textures.stripes,
            textures.damask,
            textures.bricks,
            textures.weave,
            textures.dots,
            textures.speckle,
        )
        color = random_color(self.rng)
        if self.rng.random() < 0.7:
            color = 0.55 + 0.4 * color
        return self._pick(patterns, np.clip(color, 0, 0.95), (0.8, 2.2), faint=0.8)

    def floor(self) -> int:
        """Boards, tiles, carpet or stone."""
        patterns = (
            textures.planks,
            textures.planks,
            textures.planks,
            textures.tiles,
            textures.tiles,
            textures.weave,
            textures.speckle,
            textures.mottled,
            textures.marble,
        )
        color = near(self.rng, 0.08, 0.03, 0.4, 0.6) if self.rng.random() < 0.4 else random_color(self.rng)
        return self._pick(patterns, color, (1.0, 2.0))

    def ceiling(self) -> int:
        """Mostly light paint or panels, at times boards."""
        color = 0.6 + 0.35 * random_color(self.rng) if self.rng.random() < 0.7 else random_color(self.rng)
        patterns = (textures.plain, textures.plain, textures.mottled, textures.tiles, textures.planks)
        return self._pick(patterns, np.clip(color, 0, 0.95), (1.2, 2.4))

    def rug(self) -> int:
        """A carpet lying on the floor."""
        patterns = (textures.checks, textures.damask, textures.stripes, textures.weave, textures.dots)
        return self._pick(patterns, random_color(self.rng), (0.5, 1.2))

    def canvas(self, width: float, height: float) -> int:
        """A picture of (width, height) metres; u runs along the longer side."""
        size = (max(width, height), min(width, height))
        colors = (random_color(self.rng), random_color(self.rng))
        return self.materials.add(textures.painting, self.rng, colors, size)

    def view(self, height: float, width: float) -> int:
        """What is seen through a window pane; u points up."""
        colors = (near(self.rng, 0.3, 0.1, 0.4, 0.4), random_color(self.rng))
        return self.materials.add(textures.outdoors, self.rng, colors, (height, width), glow=0.75, glass=True)

    def shade(self) -> int:
        """A lit lamp shade."""
        warm = near(self.rng, 0.1, 0.04, 0.25, 0.95)
        pattern = (textures.plain, textures.weave, textures.stripes)[int(self.rng.integers(3))]
        return self.materials.add(
            pattern, self.rng, (warm, partner(self.rng, warm)), 0.4, glow=float(self.rng.uniform(0.15, 0.6))
        )
