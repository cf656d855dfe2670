"""Reading what a procedural world keeps on disk. Legend: V views, H W pixels."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
import torch
from torch import Tensor

from splatlearn.data.imagery import UnreadableImage, gather_depth, read_color, read_depth, resample_indices
from splatlearn.errors import BadData

T = TypeVar("T")


def view_file(kind: str, view: int, suffix: str) -> str:
    """`color/000003.jpg`: a view's file of one kind."""
    return f"{kind}/{int(view):06d}.{suffix}"


def read_cached(folder: Path, file: str, reader: Callable[[Path], T], part: str) -> T:
    """What `reader` makes of a file of the cache.

    Args:
        folder: of the part.
        file: within it.
        reader: takes the file's path.
        part: what the folder is (`room`).

    Raises:
        BadData: it cannot be read; not `Rejected`, since another draw would not mend the part.
    """
    try:
        return reader(folder / file)
    except (UnreadableImage, OSError, EOFError, ValueError, BadZipFile, ZlibError) as error:
        raise BadData(
            f"{folder / file}: damaged ({error}); delete the folder {folder}, and the {part} is made again"
        ) from error


@lru_cache(maxsize=1024)
def small_arrays(folder: Path, file: str, part: str) -> dict[str, np.ndarray]:
    """The arrays of a small npz, kept in memory."""
    return read_cached(folder, file, arrays, part)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def read_images(folder: Path, views: Sequence[int], size: tuple[int, int], part: str) -> Tensor:
    """(V 3 H W) float32 in [0, 1], the photographs at (width, height)."""
    images = [read_cached(folder, view_file("color", v, "jpg"), lambda p: read_color(p, size), part) for v in views]
    pixels = np.stack(images) if images else np.zeros((0, size[1], size[0], 3), np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255


def read_nearest(
    folder: Path, kind: str, views: Sequence[int], size: tuple[int, int], scale: float, part: str
) -> Tensor:
    """(V H W) float32 of 16-bit images, times `scale`, at (width, height) by the nearest pixel."""
    maps = [_nearest(folder, view_file(kind, view, "png"), size, scale, part) for view in views]
    return torch.from_numpy(np.stack(maps) if maps else np.zeros((0, size[1], size[0]), np.float32))


def _nearest(folder: Path, file: str, size: tuple[int, int], scale: float, part: str) -> np.ndarray:
    stored = read_cached(folder, file, lambda path: read_depth(path, scale), part)
    native = (stored.shape[1], stored.shape[0])
    if size == native:
        return stored
    rows, columns = resample_indices(_unit(native), _unit(size), native, size)
    return gather_depth(stored, rows, columns)


def _unit(size: tuple[int, int]) -> np.ndarray:
    """A pinhole whose image plane is the unit square, in pixels of `size`."""
    return np.diag([float(size[0]), float(size[1]), 1.0])
