"""How the pixels of a tile lie: a block is 4 x 2 pixels, a tile 32 blocks, so that a set of blocks is one integer.

A pixel's place in its tile is 8 * block + lane. Legend: V views, T tiles of one view.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64

from splatlearn.splatting.kernels.compilation import helper
from splatlearn.splatting.kernels.lanes import WIDTH, intrinsic
from splatlearn.splatting.projection import TILE

BLOCK_X, BLOCK_Y = 4, 2
ACROSS = TILE // BLOCK_X
PIXELS = TILE * TILE
BLOCKS = PIXELS // WIDTH
COLUMN = sum(1 << bit for bit in range(0, BLOCKS, ACROSS))
"""The bits of the first column of blocks."""
ROUNDING = np.float32(1e-3)
"""Pixels added around a footprint; what is drawn is decided by its alpha alone."""


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return int64(int64), generate


@helper
def span(low: float, high: float, blocks: int, size: int) -> tuple[int, int]:
    """First and past-last of a tile's `blocks` of `size` pixels with a pixel centre between low and high.

    low, high: pixels from the tile's edge.
    """
    first = min(max(low + np.float32(0.5), np.float32(0)), np.float32(TILE))
    last = min(max(high - np.float32(0.5) + np.float32(size), np.float32(0)), np.float32(TILE))
    return int(first) // size, min(int(last) // size, blocks)


@helper
def covered(record: np.ndarray, left: float, top: float) -> int:
    """The blocks of a tile that the footprint's box touches, as bits."""
    x, y, half_y, half_x = record[0] - left, record[1] - top, record[12] + ROUNDING, record[13] + ROUNDING
    begin_x, end_x = span(x - half_x, x + half_x, ACROSS, BLOCK_X)
    begin_y, end_y = span(y - half_y, y + half_y, BLOCKS // ACROSS, BLOCK_Y)
    if begin_x >= end_x or begin_y >= end_y:
        return 0
    columns = ((1 << end_x) - (1 << begin_x)) * COLUMN
    return columns & ((1 << (ACROSS * end_y)) - (1 << (ACROSS * begin_y)))


@helper
def open_tile(state: np.ndarray, stride: int, columns: int, rows: int) -> int:
    """Resets a tile of which columns x rows pixels lie in the image; returns the blocks that have one, as bits."""
    state[:] = 0
    live = 0
    for y in range(rows):
        for x in range(columns):
            block = y // BLOCK_Y * ACROSS + x // BLOCK_X
            state[block * stride + y % BLOCK_Y * BLOCK_X + x % BLOCK_X] = 1
            live |= 1 << block
    return live


@helper
def corner_of(index: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """View, left and top of a tile, numbered view by view and row by row."""
    tiles_x, tiles_y = (size[0] + TILE - 1) // TILE, (size[1] + TILE - 1) // TILE
    view, tile = index // (tiles_x * tiles_y), index % (tiles_x * tiles_y)
    return view, tile % tiles_x * TILE, tile // tiles_x * TILE


@helper
def pixel_of(place: int, left: int, top: int) -> tuple[int, int]:
    """Column and row of a pixel of the tile at left, top."""
    block, lane = place // WIDTH, place % WIDTH
    return left + block % ACROSS * BLOCK_X + lane % BLOCK_X, top + block // ACROSS * BLOCK_Y + lane // BLOCK_X
