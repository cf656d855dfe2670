"""Small folders of images with labels, for tests: the class of a pixel shows in its colour."""

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220]], np.uint8)
SIZE = (40, 28)


def labels(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H W) uint8: three vertical stripes at random places, the classes in random order."""
    cuts = np.sort(rng.integers(4, size[0] - 4, 2))
    row = rng.permutation(3)[np.searchsorted(cuts, np.arange(size[0]), side="right")]
    return np.tile(row.astype(np.uint8), (size[1], 1))


def image(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H W 3) uint8 in the colours of the classes, with noise."""
    noise = rng.integers(-20, 20, (*label.shape, 3))
    return np.clip(COLORS[label % 3].astype(int) + noise, 0, 255).astype(np.uint8)


def write_camvid(folder: Path, train: int = 6, val: int = 3, ignored: bool = True, seed: int = 0) -> Path:
    """CamVid's folders, ids 0 to 2, and one column of id 11, which is ignored."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for part in (split, f"{split}annot"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            label = labels(rng)
            Image.fromarray(image(label, rng)).save(folder / split / f"{number:03d}.png")
            if ignored:
                label[:, 0] = 11
            Image.fromarray(label).save(folder / f"{split}annot" / f"{number:03d}.png")
    return folder


def write_classes(folder: Path, train: int = 12, val: int = 4, classes: int = 3, seed: int = 0) -> Path:
    """ImageNet's folders, `train/NAME/0.png`: each class has its colour."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for number in range(classes):
            where = folder / split / f"color{number}"
            where.mkdir(parents=True)
            for one in range(count):
                label = np.full((24, 30), number, np.uint8)
                Image.fromarray(image(label, rng)).save(where / f"{one}.png")
    return folder
