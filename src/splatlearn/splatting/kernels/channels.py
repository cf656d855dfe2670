"""Feature channels: blended with the weights of colour, their gradient, and the adjoint that lifts maps to Gaussians.

A weight counts for all channels of a pixel, so it is computed once: a tile lists its weights while it is drawn, and all
that follows are the products of `products` with that list. Lists are made for a range of tiles at a time. Pictures are
made tile by tile, and gradients of features by ranges of channels: no two tasks add to one number, all sums run in a
fixed order, and no task needs memory that grows with Gaussians times channels.

Legend: V views, N Gaussians, I (tile, pair) hits, E entries (hit, pixel), T tiles of all views, C channels.
"""

import numpy as np
from llvmlite import ir
from numba import float32, int64, prange
from numba.core import cgutils

from splatlearn.splatting.kernels.cells import CELLS, load_cells, to_cells, weigh_cells
from splatlearn.splatting.kernels.compilation import allocating, helper, kernel
from splatlearn.splatting.kernels.compositing import FORWARD, Block, Images, close_tile
from splatlearn.splatting.kernels.lanes import I64, PLACES, VECTOR, WIDTH, Lanes, intrinsic, pointer_of
from splatlearn.splatting.kernels.products import Listed, gather_tile, load_pixels, spread_tile, store_pixels
from splatlearn.splatting.kernels.rows import WIDE
from splatlearn.splatting.kernels.tiles import (
    ACROSS,
    BLOCK_X,
    BLOCK_Y,
    BLOCKS,
    PIXELS,
    corner_of,
    covered,
    lowest_bit,
    open_tile,
)
from splatlearn.splatting.projection import TILE

MOST = CELLS + 2 * WIDTH
"""Entries that are free before a hit is listed: it may write that many, or read past its own."""
SHORTS = ir.VectorType(ir.IntType(16), WIDTH)
ORDER = [[lane for lane in range(WIDTH) if bits >> lane & 1] for bits in range(1 << WIDTH)]
"""The set bits of each byte."""
Binned = tuple[np.ndarray, np.ndarray, np.ndarray]
"""records, hits, tile_starts of `projection.project` and `binning.bin_pairs`."""


@intrinsic
def list_block(typingctx, state, at, record, limits, u, dy, drawing, places, values, end, first):
    """`draw_block`, with colours where `drawing`, that also appends the pixels it lights and their weights at `end`.

    first: place of the block's first pixel. Returns twice the new end, and 1 more while light passes the block.
    """

    def generate(context, builder, signature, arguments):
        state, record, limits, values = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 3, 8))
        places, end = pointer_of(context, builder, arguments[7], PLACES), arguments[9]
        block = Block(builder, state, arguments[1], (record, limits, arguments[4], arguments[5]))
        with builder.if_then(builder.icmp_signed("!=", arguments[6], ir.Constant(I64, 0))):
            for field, value in enumerate(block.values):
                block.weight.times(value, block.field(1 + field)).store(state, block.place(1 + field))
        lit = builder.bitcast(block.weight.compare(">", block.weight.like(0.0)).value, ir.IntType(WIDTH))
        many = builder.zext(builder.ctpop(lit), I64)
        with builder.if_then(builder.icmp_unsigned("!=", lit, ir.Constant(ir.IntType(WIDTH), 0))):
            rows = [ir.Constant(SHORTS, order + [0] * (WIDTH - len(order))) for order in ORDER]
            table = cgutils.global_constant(builder, "order", ir.Constant(ir.ArrayType(SHORTS, len(rows)), rows))
            lanes = builder.load(builder.gep(table, [ir.Constant(I64, 0), builder.zext(lit, I64)]))
            start = Lanes.repeat(builder, builder.trunc(arguments[10], ir.IntType(16)), SHORTS)
            target = builder.bitcast(builder.gep(places, [end]), SHORTS.as_pointer())
            builder.store(builder.add(lanes, start), target, align=2)
            cursor = end
            for lane in range(WIDTH):
                number = ir.Constant(ir.IntType(32), lane)
                builder.store(builder.extract_element(block.weight.value, number), builder.gep(values, [cursor]))
                bit = builder.and_(builder.lshr(lit, ir.Constant(ir.IntType(WIDTH), lane)), ir.Constant(lit.type, 1))
                cursor = builder.add(cursor, builder.zext(bit, I64))
        return builder.add(builder.shl(builder.add(end, many), ir.Constant(I64, 1)), block.open())

    numbers = (VECTOR, int64, VECTOR, VECTOR, float32, float32, int64, PLACES, VECTOR, int64, int64)
    return int64(*numbers), generate


@helper
def list_hit(
    state: np.ndarray,
    stride: int,
    record: np.ndarray,
    left: int,
    top: int,
    live: int,
    limits: np.ndarray,
    places: np.ndarray,
    values: np.ndarray,
    end: int,
) -> tuple[int, int]:
    """Appends the entries of one Gaussian of a tile at `end`; returns the blocks still open and the new end."""
    blocks = covered(record, np.float32(left), np.float32(top)) & live
    dy0 = np.float32(top) + np.float32(0.5) - record[1]
    u0 = np.float32(left) + np.float32(0.5) - record[0] - record[3] * dy0
    drawing = np.int64(stride == FORWARD)
    while blocks:
        block = lowest_bit(blocks)
        blocks &= blocks - 1
        down = np.float32(block // ACROSS * BLOCK_Y)
        u = u0 + np.float32(block % ACROSS * BLOCK_X) - record[3] * down
        found = list_block(
            state, block * stride, record, limits, u, dy0 + down, drawing, places, values, end, block * WIDTH
        )
        end = found >> 1
        live &= ~((1 - (found & 1)) << block)
    return live, end


@allocating
def list_tiles(
    worker: int,
    workers: int,
    begin: int,
    binned: Binned,
    limits: np.ndarray,
    size: tuple[int, int],
    images: Images,
    coarse: tuple[int, int],
    listed: Listed,
    sums: np.ndarray,
) -> int:
    """Every `workers`-th tile of `list_weights`; returns the first for which there is no room."""
    records, hits, tile_starts = binned
    counts, firsts, places, values = listed
    room = len(places)
    end, last = room * worker // workers, room * (worker + 1) // workers
    stride = FORWARD if images[0].size else WIDTH
    state, scratch, many = np.empty(BLOCKS * stride, np.float32), np.empty(CELLS, np.float32), 0
    cells, shares = np.empty((PIXELS, 4), np.int64), np.empty((PIXELS, 4), np.float32)
    for index in range(begin + worker, len(tile_starts) - 1, workers):
        view, left, top = corner_of(index, size)
        columns, rows = min(TILE, size[0] - left), min(TILE, size[1] - top)
        live, firsts[index] = open_tile(state, stride, columns, rows), end
        if coarse[0] > 0:
            many = weigh_cells(size, coarse, left, top, cells, shares)
        for hit in range(tile_starts[index], tile_starts[index + 1]):
            if live == 0:
                counts[hit : tile_starts[index + 1]] = 0
                if len(sums):
                    sums[hit : tile_starts[index + 1]] = 0
                break
            if end + MOST > last:
                return index
            first = end
            live, end = list_hit(state, stride, records[hits[hit]], left, top, live, limits, places, values, end)
            if len(sums):
                total = 0.0
                for entry in range(first, end):
                    total += np.float64(values[entry])
                sums[hit] = total
            if coarse[0] > 0:
                end = to_cells(many, cells, shares, places, values, first, end, scratch)
            counts[hit] = end - first
        if images[0].size:
            close_tile(state, left, top, columns, rows, view, images)
    return len(tile_starts) - 1


@kernel
def list_weights(
    begin: int,
    binned: Binned,
    limits: np.ndarray,
    size: tuple[int, int],
    workers: int,
    images: Images,
    coarse: tuple[int, int],
    listed: Listed,
    sums: np.ndarray,
) -> int:
    """Lists the weights of as many tiles as there is room for, each worker in a part of its own.

    Args:
        begin: first tile.
        binned: of the call.
        limits: (3) float32 alpha_min, alpha_max, transmittance_min.
        size: width and height, pixels.
        workers: parallel tasks.
        images: outputs as of `draw`; empty arrays are left alone.
        coarse: columns and rows of maps whose cells stand for pixels: their weights are then listed, by which the maps
            are read bilinearly; (0, 0) for pixels.
        listed: outputs, of which places and weights end the range.
        sums: output (I) float64 sums of the hits' weights, unless it is empty.

    Returns:
        The past-last tile of the range.
    """
    reached = np.empty(workers, np.int64)
    for task in prange(workers):
        worker = np.int64(task)
        reached[worker] = list_tiles(worker, workers, begin, binned, limits, size, images, coarse, listed, sums)
    return reached.min()


@kernel
def blend(
    tiles: tuple[int, int],
    shifts: np.ndarray,
    binned: Binned,
    size: tuple[int, int],
    workers: int,
    listed: Listed,
    features: np.ndarray,
    output: np.ndarray,
) -> None:
    """Composites features.

    Args:
        tiles: first and past-last tile of the range that is listed.
        shifts: (V) what added to a pair's number gives its Gaussian.
        binned, size, workers: as listed.
        listed: of `list_weights`.
        features: (N C).
        output: (V H W C), written where the tiles are.
    """
    channels = features.shape[1]
    flat, target = features.reshape(-1), output.reshape(-1)
    _, hits, tile_starts = binned
    for task in prange(workers):
        pixels, row = np.empty(PIXELS * WIDE, np.float32), np.empty(WIDE, np.float32)
        for index in range(tiles[0] + np.int64(task), tiles[1], workers):
            corner = corner_of(index, size)
            for begin in range(0, channels, WIDE):
                part = (channels, begin, min(WIDE, channels - begin))
                pixels[:] = 0
                spread_tile(index, shifts[corner[0]], hits, tile_starts, listed, flat, part, pixels, row)
                store_pixels(target, corner, size, part, pixels)


@kernel
def gather(
    tiles: tuple[int, int],
    layout: tuple[np.ndarray, np.ndarray],
    binned: Binned,
    size: tuple[int, int],
    workers: int,
    coarse: tuple[int, int],
    listed: Listed,
    source: np.ndarray,
    target: np.ndarray,
) -> None:
    """The adjoint of `blend`: the gradient by features, or maps lifted to Gaussians.

    Args:
        tiles, binned, size, workers, listed: as blended.
        layout: (V) shifts as blended, and (B + 1) first view of each item.
        coarse: as listed.
        source: (V H W C), or (V rows columns C) maps where `coarse` is not (0, 0).
        target: (N C), added to.
    """
    shifts, view_starts = layout
    channels, per_view = target.shape[1], (len(binned[2]) - 1) // max(len(shifts), 1)
    flat, sums = source.reshape(-1), target.reshape(-1)
    _, hits, tile_starts = binned
    vectors = (channels + WIDTH - 1) // WIDTH
    pieces = min(workers, vectors)
    for task in prange(pieces * (len(view_starts) - 1)):
        item, piece = np.int64(task) // pieces, np.int64(task) % pieces
        low, high = vectors * piece // pieces * WIDTH, min(vectors * (piece + 1) // pieces * WIDTH, channels)
        pixels, row = np.empty(CELLS * WIDE, np.float32), np.empty(WIDE, np.float32)
        for index in range(
            max(tiles[0], view_starts[item] * per_view), min(tiles[1], view_starts[item + 1] * per_view)
        ):
            corner = corner_of(index, size)
            for begin in range(low, high, WIDE):
                part = (channels, begin, min(WIDE, high - begin))
                if coarse[0] > 0:
                    load_cells(flat, corner, size, coarse, part, pixels)
                else:
                    load_pixels(flat, corner, size, part, pixels)
                gather_tile(index, shifts[corner[0]], hits, tile_starts, listed, sums, part, pixels, row)
