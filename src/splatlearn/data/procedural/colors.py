"""Random colours. Legend: a colour is (3) sRGB values in [0, 1]."""

from colorsys import hsv_to_rgb

import numpy as np

from splatlearn.data.procedural.textures import Array


def random_color(rng: np.random.Generator) -> Array:
    """Any colour, half of them muted."""
    saturation = rng.uniform(0.0, 0.35) if rng.random() < 0.5 else rng.uniform(0.3, 0.85)
    return np.array(hsv_to_rgb(rng.random(), saturation, rng.uniform(0.25, 0.95)))


def near(rng: np.random.Generator, hue: float, spread: float, saturation: float, value: float) -> Array:
    """A colour about a hue (0 to 1), with a spread of saturation and value."""
    return np.array(
        hsv_to_rgb(
            (hue + rng.normal(0, spread)) % 1.0,
            float(np.clip(saturation + rng.normal(0, 0.15), 0, 1)),
            float(np.clip(value + rng.normal(0, 0.2), 0.15, 0.98)),
        )
    )


def partner(rng: np.random.Generator, color: Array) -> Array:
    """A second colour: a darker or lighter tone of the first, or now and then any other."""
    if rng.random() < 0.2:
        return random_color(rng)
    return np.clip(color * rng.uniform(0.45, 0.75) if color.mean() > 0.4 else color * rng.uniform(1.4, 2.0), 0.02, 1)
