"""Maps that are coarser than the pictures: which of their cells a tile reads, and with which weights.

A tile's cells are numbered row by row, as its pixels are by their place. Legend: V views, C channels.
"""

import numpy as np

from splatlearn.splatting.kernels.compilation import helper
from splatlearn.splatting.kernels.rows import stride_of
from splatlearn.splatting.kernels.tiles import pixel_of
from splatlearn.splatting.projection import TILE

CELLS = (TILE + 2) ** 2
"""Cells that a tile reads at most: maps are no finer than the pictures."""


@helper
def taps(position: int, size: int, coarse: int) -> tuple[int, int, float]:
    """Bilinear reading at a pixel centre, as torch's `interpolate` without aligned corners: two cells and the share
    of the second."""
    place = max((np.float64(position) + 0.5) * coarse / size - 0.5, 0.0)
    first = min(int(place), coarse - 1)
    return first, min(first + 1, coarse - 1), place - first


@helper
def reach(start: int, size: int, coarse: int) -> tuple[int, int]:
    """First cell, and number of cells, that the pixels of a tile read along one axis."""
    first, _, _ = taps(start, size, coarse)
    _, last, _ = taps(min(start + TILE, size) - 1, size, coarse)
    return first, last - first + 1


@helper
def weigh_cells(
    size: tuple[int, int], coarse: tuple[int, int], left: int, top: int, cells: np.ndarray, shares: np.ndarray
) -> int:
    """Writes the four cells (PIXELS 4) that each pixel of a tile reads, and their shares; returns how many cells the
    tile reads."""
    (first_x, across), (first_y, down) = reach(left, size[0], coarse[0]), reach(top, size[1], coarse[1])
    for place in range(len(cells)):
        x, y = pixel_of(place, left, top)
        x0, x1, share_x = taps(min(x, size[0] - 1), size[0], coarse[0])
        y0, y1, share_y = taps(min(y, size[1] - 1), size[1], coarse[1])
        for corner in range(4):
            right, below = corner % 2 == 1, corner >= 2
            cells[place, corner] = ((y1 if below else y0) - first_y) * across + (x1 if right else x0) - first_x
            part = share_x if right else 1 - share_x
            shares[place, corner] = part * (share_y if below else 1 - share_y)
    return across * down


@helper
def to_cells(
    many: int,
    cells: np.ndarray,
    shares: np.ndarray,
    places: np.ndarray,
    values: np.ndarray,
    begin: int,
    end: int,
    sums: np.ndarray,
) -> int:
    """Replaces the entries of a hit, pixels, by the cells that they read; returns the new end.

    many, cells, shares: of `weigh_cells`. sums: (CELLS) scratch.
    """
    sums[:many] = 0
    for entry in range(begin, end):
        place = np.int64(places[entry])
        for corner in range(4):
            sums[cells[place, corner]] += values[entry] * shares[place, corner]
    for cell in range(many):
        if sums[cell] > 0:
            places[begin], values[begin] = cell, sums[cell]
            begin += 1
    return begin


@helper
def load_cells(
    maps: np.ndarray,
    corner: tuple[int, int, int],
    size: tuple[int, int],
    coarse: tuple[int, int],
    part: tuple[int, int, int],
    out: np.ndarray,
) -> None:
    """Copies channels of the cells that a tile reads from flat (V rows columns C) maps, as `products.load_pixels`."""
    (view, left, top), (channels, begin, count) = corner, part
    (first_x, across), (first_y, down) = reach(left, size[0], coarse[0]), reach(top, size[1], coarse[1])
    stride = stride_of(count)
    for y in range(down):
        for x in range(across):
            start = ((view * coarse[1] + first_y + y) * coarse[0] + first_x + x) * channels + begin
            at = (y * across + x) * stride
            for c in range(count):
                out[at + c] = maps[start + c]
            for c in range(count, stride):
                out[at + c] = 0
