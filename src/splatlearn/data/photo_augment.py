"""Random crops and colours of one photograph, as DUNE and UNIC train with (DINOv2's code, one view, one strength).

Legend: H W pixels of a photograph (3 H W) RGB in [0, 1]; a size is (width, height). All are functions of the image, the
settings and the generator alone, and results stay in [0, 1]. Numbers are of DUNE's released code.
"""

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from splatlearn.config import require

GREY = (0.2989, 0.587, 0.114)
"""Parts of red, green and blue in the brightness of a pixel (ITU-R BT.601, rounded as torchvision does)."""
BLUR = 9
"""Width of the blur's window, pixels."""
THRESHOLD = 0.5
"""Solarising turns values from here on into their negatives."""
ATTEMPTS = 10
"""Boxes that are drawn until one lies within the photograph (torchvision)."""


@dataclass(frozen=True, kw_only=True)
class PhotoAugmentation:
    """What is changed at random.

    Args:
        crop: smallest and largest part of the photograph's area (UNIC: 0.08 to 1).
        aspect: smallest and largest width over height of the crop, before it is brought to the size wanted.
        flip: chance of being mirrored, left to right.
        jitter: chance that brightness, contrast, saturation and hue are changed, one after another in random order.
        strength: of each of the four: factors are within 1 - s and 1 + s, hues are turned by up to s of a full turn.
        grey: chance of losing all colour.
        blur: chance of a Gaussian blur of 9 pixels.
        sigma: smallest and largest deviation of the blur, pixels.
        solarize: chance that values of 0.5 and more become negatives.
    """

    crop: tuple[float, float] = (0.4, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    blur: float = 0.2
    sigma: tuple[float, float] = (0.1, 5.0)
    solarize: float = 0.2

    def __post_init__(self) -> None:
        rules = {
            f"crop: two ascending parts in (0, 1] are needed, got {self.crop}": 0 < self.crop[0] <= self.crop[1] <= 1,
            f"strength: four within 0 and 1 are needed, the last up to 0.5, got {self.strength}": (
                all(0 <= part <= 1 for part in self.strength) and self.strength[3] <= 0.5
            ),
        }
        for name in ("aspect", "sigma"):
            low, high = getattr(self, name)
            rules[f"{name}: two ascending numbers above zero are needed, got {(low, high)}"] = 0 < low <= high < np.inf
        for name in ("flip", "jitter", "grey", "blur", "solarize"):
            chance = getattr(self, name)
            rules[f"{name}: a chance in [0, 1] is needed, got {chance}"] = 0 <= chance <= 1
        require(rules)


def augment_photo(image: Tensor, size: tuple[int, int], config: PhotoAugmentation, rng: np.random.Generator) -> Tensor:
    """A random crop brought to `size`, mirrored and changed in colour; a small photograph is enlarged."""
    image = resized(image, crop_box(image, config, rng), size)
    if rng.random() < config.flip:
        image = image.flip(2)
    if rng.random() < config.jitter:
        image = jitter(image, config.strength, rng)
    if rng.random() < config.grey:
        image = grey(image).expand(3, -1, -1).contiguous()
    if rng.random() < config.blur:
        image = blur(image, rng.uniform(*config.sigma))
    if rng.random() < config.solarize:
        image = solarize(image)
    return image.clamp(0, 1)


def centre_photo(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest box in the middle that has the proportions of `size`, brought to it; nothing is random."""
    height, width = image.shape[1:]
    scale = min(width / size[0], height / size[1])
    box = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return resized(image, ((width - box[0]) // 2, (height - box[1]) // 2, *box), size)


def crop_box(image: Tensor, config: PhotoAugmentation, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop: area uniform, logarithm of the proportions uniform.

    Where none of ten lies within the photograph, the largest in the middle with allowed proportions (torchvision).
    """
    height, width = image.shape[1:]
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*config.crop)
        aspect = exp(rng.uniform(log(config.aspect[0]), log(config.aspect[1])))
        w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    aspect = min(max(width / height, config.aspect[0]), config.aspect[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h


def resized(image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """(3 H W) of the box (left, top, width, height) at `size`, bicubic; made smaller, pixels are averaged."""
    left, top, width, height = box
    part = image[None, :, top : top + height, left : left + width]
    if (width, height) != size:
        part = functional.interpolate(part, (size[1], size[0]), mode="bicubic", antialias=True).clamp(0, 1)
    return part[0]


def jitter(image: Tensor, strength: tuple[float, float, float, float], rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in random order, each by a factor (hue: a turn) of its own."""
    factors = rng.uniform(1 - np.array(strength[:3]), 1 + np.array(strength[:3]))
    turn = rng.uniform(-strength[3], strength[3])
    for step in rng.permutation(4):
        if step == 0:
            image = (image * float(factors[0])).clamp(0, 1)
        elif step == 1:
            image = _blend(image, grey(image).mean(), float(factors[1]))
        elif step == 2:
            image = _blend(image, grey(image), float(factors[2]))
        else:
            image = turn_hue(image, turn)
    return image


def grey(image: Tensor) -> Tensor:
    """(1 H W) brightness."""
    return (image * image.new_tensor(GREY)[:, None, None]).sum(0, keepdim=True)


def turn_hue(image: Tensor, turn: float) -> Tensor:
    """Hues turned by a part of the full circle; the largest and the smallest of the three values stay (HSV)."""
    high, low = image.amax(0), image.amin(0)
    spread = high - low
    red, green, blue = image
    sector = torch.where(high == red, green - blue, torch.where(high == green, blue - red, red - green))
    sector = sector / spread.clamp_min(1e-12)
    sector = sector + torch.where(high == red, 0.0, torch.where(high == green, 2.0, 4.0)).to(image)
    places = (sector + 6 * turn + image.new_tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
    return high - spread * torch.minimum(places, 4 - places).clamp(0, 1)


def blur(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian of deviation `sigma` pixels, cut to 9 pixels; beyond the edges the image is mirrored."""
    offsets = torch.arange(BLUR, dtype=image.dtype) - BLUR // 2
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    window = (window / window.sum()).to(image.device)
    padded = functional.pad(image[:, None], [BLUR // 2] * 4, mode="reflect")
    across = functional.conv2d(padded, window.view(1, 1, 1, BLUR))
    return functional.conv2d(across, window.view(1, 1, BLUR, 1))[:, 0]


def solarize(image: Tensor) -> Tensor:
    """Values of `THRESHOLD` and more become their negatives."""
    return torch.where(image >= THRESHOLD, 1 - image, image)


def _blend(image: Tensor, other: Tensor, factor: float) -> Tensor:
    return (other + (image - other) * factor).clamp(0, 1)
