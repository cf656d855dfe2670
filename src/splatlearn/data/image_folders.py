"""Folders of images without cameras, nested in any way: each image is a scene of its own.

Legend: H W pixels.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from splatlearn import registry
from splatlearn.config import require
from splatlearn.data.folders import GLANCE, walk
from splatlearn.data.imagery import COLOR_SUFFIXES, UnreadableImage, probe, read_upright
from splatlearn.data.progress import progress
from splatlearn.data.scene import Reader, Rejected, Scene, Skipped, reasons
from splatlearn.errors import BadData

SUFFIXES = (*COLOR_SUFFIXES, ".webp", ".bmp", ".tif", ".tiff")
"""Of images, in small or capital letters."""
SPLITS = ("train", "val", "test")
THREADS = 8
"""Files looked at side by side: most of it is waiting for the disk."""
log = logging.getLogger("splatlearn")


def require_choice(pattern: str, max_images: int | None) -> None:
    """Raises: ConfigError: no pattern, or fewer than one image is to be kept."""
    few = max_images is not None and max_images < 1
    require(
        {
            "pattern: give one, * fits all": bool(pattern),
            f"max_images: 1 or more, or none, expected, got {max_images}": not few,
        }
    )


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """How to read folders of images.

    Args:
        pattern: only files whose path below the folder fits it (`*.color.jpg`, `kitchen/*`), `*` being anything.
        check: look at the header and the end of every file first (0.2 ms each), so that a damaged one is named before
            the run; without it, and where the damage lies in between, it is drawn again when its turn comes.
        max_images: keep at most so many, evenly spaced in the order of names; None keeps all.
        rotate_clockwise: files whose path fits this pattern are turned by 90 degrees clockwise, after what EXIF says;
            empty turns none (DUNE: `*closeup*` of BEDLAM, whose close-ups lie on their side).
    """

    pattern: str = "*"
    check: bool = True
    max_images: int | None = None
    rotate_clockwise: str = ""

    def __post_init__(self) -> None:
        require_choice(self.pattern, self.max_images)


class Photograph(Scene):
    """One image file, without a camera.

    Args:
        root: folder that the file is named in.
        file: its path below that, which is its name, too; in a folder `train`, `val` or `test`, that is its split.
        turned: whether it is turned by 90 degrees clockwise.
    """

    turned: bool = False

    def __init__(self, root: Path, file: str, turned: bool = False) -> None:
        self.root, self.name, self.turned = root, file, turned
        if (first := file.split("/", 1)[0]) in SPLITS:
            self.split = first

    def source(self) -> Path | BinaryIO:
        """The file, as its path or open."""
        return self.root / self.name

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return str(self.root / self.name)

    def decode(self, file: Path | BinaryIO) -> np.ndarray:
        """(H W 3) uint8 of its file, wherever that was read to; raises `UnreadableImage`."""
        return read_upright(file)

    def images(self, views: Sequence[int]) -> list[Tensor]:
        """The image (3 H W) in [0, 1] at its native size, once for each of `views`.

        Raises:
            Rejected: the file cannot be decoded.
        """
        try:
            pixels = torch.tensor(self.decode(self.source())).permute(2, 0, 1)
        except UnreadableImage as error:
            _warn(self.place, str(error))
            raise Rejected("an image cannot be read", f"{self.name}: {error}") from error
        if self.turned:
            pixels = pixels.rot90(-1, (1, 2))
        return [pixels.to(torch.float32, memory_format=torch.contiguous_format) / 255 for _ in views]


@registry.readers.register("images", ImagesConfig, presets={"default": {}, "tiny": {"max_images": 64}})
class ImagesReader(Reader):
    """Folders of images without cameras: JPEG, PNG, WebP, BMP, TIFF, nested in any way.

    Args:
        config: reading options.
        path: the folder.
    """

    def __init__(self, config: ImagesConfig, path: Path) -> None:
        self.config, self.path = config, path

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """An image lies up to three folders below the path, and no other reader takes it."""
        return holds(path, SUFFIXES) and not taken_by_another(path, "images")

    def scenes(self) -> list[Scene]:
        """Every image, sorted by name; damaged ones are named in `skipped` and in the log.

        Raises:
            BadData: no folder, or no usable image in it.
        """
        names = sorted(name for name in files_below(self.path, SUFFIXES) if fnmatch(name, self.config.pattern))
        if self.config.max_images and len(names) > self.config.max_images:
            names = [names[i * len(names) // self.config.max_images] for i in range(self.config.max_images)]
        found = len(names)
        if self.config.check:
            names = self._checked(names)
        if not names:
            why = f"all {found} are damaged: {reasons(self.skipped)}" if found else f"of {', '.join(SUFFIXES)}"
            raise BadData(f"{self.path}: no image found that fits {self.config.pattern!r}, {why}")
        return [Photograph(self.path, name, fnmatch(name, self.config.rotate_clockwise)) for name in names]

    def _checked(self, names: list[str]) -> list[str]:
        damaged: list[Skipped] = []
        with progress(f"checking images of {self.path}", len(names)) as tell, ThreadPoolExecutor(THREADS) as pool:
            for done, (name, reason) in enumerate(zip(names, pool.map(self._damage, names), strict=True)):
                tell(done)
                if reason:
                    damaged.append(Skipped(name, reason))
        self.skipped = tuple(damaged)
        if damaged:
            log.warning("%s: %d images are left out: %s", self.path, len(damaged), reasons(damaged))
        gone = {name for name, _ in damaged}
        return [name for name in names if name not in gone]

    def _damage(self, name: str) -> str:
        try:
            probe(self.path / name)
        except UnreadableImage as error:
            return str(error)
        return ""


def files_below(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files with some suffixes, in small letters, below a folder and relative to it; links are followed, what is hidden
    is left alone."""
    for folder, inside, files in os.walk(root, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield (below / name).as_posix()


def holds(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a quick look into a folder finds a file with one of some suffixes, in small or capital letters."""

    def fits(file: Path) -> bool:
        return file.name.lower().endswith(suffixes) and file.is_file()

    cases = suffixes + tuple(suffix.upper() for suffix in suffixes)
    return path.is_dir() and any(True for _ in walk(path, fits, suffixes=cases, breadth=GLANCE))


def taken_by_another(path: Path, *but: str) -> bool:
    """Whether a reader takes a path that is none of those named."""
    others = [registry.readers.family(name).cls for name in registry.readers.families() if name not in but]
    return any(other.needs_path and other.accepts(path) for other in others)


@lru_cache(maxsize=10_000)
def _warn(file: str, why: str) -> None:
    """Names a damaged file in the log, once a process."""
    log.warning("%s: %s; others are drawn in its place", file, why)
