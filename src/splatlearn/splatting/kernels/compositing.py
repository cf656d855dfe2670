"""Front-to-back compositing of tiles and its gradient: Gaussian by Gaussian, a block of 4 x 2 pixels at a time.

Legend: V views, P pairs (view, Gaussian), T tiles of one view, I (tile, pair) hits.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, prange

from splatlearn.splatting.kernels.compilation import allocating, helper, kernel
from splatlearn.splatting.kernels.lanes import I64, VECTOR, WIDTH, Lanes, Mask, intrinsic, pointer_of
from splatlearn.splatting.kernels.products import OVERRUN, Further, gains_of
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

LANE_X = [float(lane % BLOCK_X) for lane in range(WIDTH)]
LANE_Y = [float(lane // BLOCK_X) for lane in range(WIDTH)]
FORWARD = 5 * WIDTH
"""Floats of a block while drawing: transmittance, red, green, blue, depth."""
BACKWARD = 6 * WIDTH
"""Floats of a block while differentiating: transmittance; what is still to come (a scalar a pixel: the rest of the
sum, weighed by the gradients); the gradients of red, green, blue, depth."""
MOMENTS = 10
"""Sums over the pixels of a (tile, pair) hit. With w the weight and h = d loss / d alpha * exp(-sigma): 0-3 w times
the gradients of red, green, blue, depth; 4 h; 5 h u; 6 h dy; 7 h u u; 8 h u dy; 9 h dy dy."""
Images = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Color (V 3 H W), depth (V 1 H W) and alpha (V 1 H W), float32."""


class Block:
    """Eight pixels under one Gaussian. Both passes build on it, so that both decide alike which pixels are drawn.

    A pixel that is finished has a negative transmittance, one outside the image has none.

    arguments: LLVM values: the record's array and the limits' array, u and dy of the block's first pixel.
    """

    def __init__(self, builder: Any, state: Any, at: Any, arguments: tuple[Any, Any, Any, Any]) -> None:
        record, limits, u, dy = arguments
        self.builder, self.state, self.at = builder, state, at
        bend, shear, row, opacity = (self.scalar(record, field) for field in (2, 3, 4, 5))
        self.values = [self.scalar(record, field) for field in (8, 9, 10, 11)]
        alpha_min, self.alpha_max, least = (self.scalar(limits, field) for field in range(3))
        down = bend.like(LANE_Y)
        self.dy = Lanes.splat(builder, dy) + down
        self.u = (Lanes.splat(builder, u) + bend.like(LANE_X)) - shear * down
        exponent = (self.u * bend).times(self.u, (self.dy * row) * self.dy).at_most(bend.like(126.0))
        self.falloff = exponent.negative().exp2()
        self.raw = opacity * self.falloff
        self.alpha = self.raw.at_most(self.alpha_max)
        self.before = self.field(0)
        zero = bend.like(0.0)
        drawn = self.raw.compare(">=", alpha_min) & self.before.compare(">", zero)
        weight = drawn.select(self.alpha * self.before, zero)
        after = self.before - weight
        stop = drawn & after.compare("<=", least)
        self.weight = stop.select(zero, weight)
        self.after = stop.select(self.before.negative(), after)
        self.after.store(state, self.place(0))

    def scalar(self, pointer: Any, index: int) -> Lanes:
        """Eight copies of pointer[index]."""
        place = self.builder.gep(pointer, [ir.Constant(I64, index)])
        return Lanes.splat(self.builder, self.builder.load(place))

    def place(self, field: int) -> Any:
        """Where the field of this block lies in the state."""
        return self.builder.add(self.at, ir.Constant(I64, field * WIDTH))

    def field(self, field: int) -> Lanes:
        """A field of this block."""
        return Lanes.load(self.builder, self.state, self.place(field))

    def open(self) -> Any:
        """1 where light still passes one of the pixels, else 0, as an LLVM i64."""
        passing: Mask = self.after.compare(">", self.after.like(0.0))
        return self.builder.zext(passing.any(), I64)


@intrinsic
def draw_block(typingctx, state, at, record, limits, u, dy):
    """Adds one Gaussian to the block of `state` (BLOCKS * FORWARD) at index `at`; returns 1 while light passes it.

    record, limits: as in `draw`. u, dy: of the first pixel of the block.
    """

    def generate(context, builder, signature, arguments):
        state, record, limits = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 3))
        block = Block(builder, state, arguments[1], (record, limits, arguments[4], arguments[5]))
        for field, value in enumerate(block.values):
            block.weight.times(value, block.field(1 + field)).store(state, block.place(1 + field))
        return block.open()

    return int64(VECTOR, int64, VECTOR, VECTOR, float32, float32), generate


@intrinsic
def differentiate_block(typingctx, state, at, record, limits, u, dy, sums, gains, place):
    """Replays `draw_block` on `state` (BLOCKS * BACKWARD) and adds the MOMENTS to `sums` (MOMENTS * WIDTH).

    gains: at gains[place:] the gradient of the loss by each pixel's weight through other channels than these four.
    """

    def generate(context, builder, signature, arguments):
        state, record, limits, sums, gains = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 3, 6, 7))
        block = Block(builder, state, arguments[1], (record, limits, arguments[4], arguments[5]))
        weight, values = block.weight, block.values
        gradients = [block.field(2 + field) for field in range(4)]
        gain = Lanes.load(builder, gains, arguments[8])
        for gradient, value in zip(gradients, values, strict=True):
            gain = gradient.times(value, gain)
        rest = weight.negative().times(gain, block.field(1))
        rest.store(state, block.place(1))
        slope = block.before * gain - rest / (weight.like(1.0) - block.alpha)
        zero = weight.like(0.0)
        moved = weight.compare(">", zero) & block.raw.compare("<=", block.alpha_max)
        h = moved.select(slope * block.falloff, zero)
        h_u, h_y = h * block.u, h * block.dy
        left = [weight] * 4 + [h, h, h, h_u, h_u, h_y]
        right = [*gradients, h.like(1.0), block.u, block.dy, block.u, block.dy, block.dy]
        for field, (one, other) in enumerate(zip(left, right, strict=True)):
            place = ir.Constant(I64, field * WIDTH)
            one.times(other, Lanes.load(builder, sums, place)).store(sums, place)
        return block.open()

    return int64(VECTOR, int64, VECTOR, VECTOR, float32, float32, VECTOR, VECTOR, int64), generate


@intrinsic
def total_of(typingctx, sums, field):
    """The sum of the eight lanes of sums[field * WIDTH:]."""

    def generate(context, builder, signature, arguments):
        place = builder.mul(arguments[1], ir.Constant(I64, WIDTH))
        return Lanes.load(builder, pointer_of(context, builder, arguments[0]), place).sum()

    return float32(VECTOR, int64), generate


@helper
def close_tile(state: np.ndarray, left: int, top: int, columns: int, rows: int, view: int, images: Images) -> None:
    """Writes a finished tile of one view."""
    color, depth, alpha = images
    for y in range(rows):
        for x in range(columns):
            at = (y // BLOCK_Y * ACROSS + x // BLOCK_X) * FORWARD + y % BLOCK_Y * BLOCK_X + x % BLOCK_X
            for channel in range(3):
                color[view, channel, top + y, left + x] = state[at + (1 + channel) * WIDTH]
            depth[view, 0, top + y, left + x] = state[at + 4 * WIDTH]
            alpha[view, 0, top + y, left + x] = np.float32(1) - abs(state[at])


@allocating
def draw_tiles(
    worker: int,
    workers: int,
    records: np.ndarray,
    hits: np.ndarray,
    tile_starts: np.ndarray,
    limits: np.ndarray,
    images: Images,
) -> None:
    """Draws every `workers`-th tile."""
    height, width = images[0].shape[2:]
    state = np.empty(BLOCKS * FORWARD, np.float32)
    for index in range(worker, len(tile_starts) - 1, workers):
        view, left, top = corner_of(index, (width, height))
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        live = open_tile(state, FORWARD, columns, rows)
        for hit in range(tile_starts[index], tile_starts[index + 1]):
            record = records[hits[hit]]
            blocks = covered(record, np.float32(left), np.float32(top)) & live
            dy0 = np.float32(top) + np.float32(0.5) - record[1]
            u0 = np.float32(left) + np.float32(0.5) - record[0] - record[3] * dy0
            while blocks:
                block = lowest_bit(blocks)
                blocks &= blocks - 1
                down = np.float32(block // ACROSS * BLOCK_Y)
                u = u0 + np.float32(block % ACROSS * BLOCK_X) - record[3] * down
                passing = draw_block(state, block * FORWARD, record, limits, u, dy0 + down)
                live &= ~((1 - passing) << block)
            if live == 0:
                break
        close_tile(state, left, top, columns, rows, view, images)


@kernel
def draw(
    records: np.ndarray,
    hits: np.ndarray,
    tile_starts: np.ndarray,
    limits: np.ndarray,
    workers: int,
    images: Images,
) -> None:
    """Composites all tiles of all views.

    Args:
        records: (P RECORD) of `projection.project`.
        hits, tile_starts: of `binning.bin_pairs`.
        limits: (3) float32 alpha_min, alpha_max, transmittance_min.
        workers: parallel tasks.
        images: outputs.
    """
    for worker in prange(workers):
        draw_tiles(np.int64(worker), workers, records, hits, tile_starts, limits, images)


@helper
def load_gradients(
    state: np.ndarray,
    left: int,
    top: int,
    columns: int,
    rows: int,
    view: int,
    images: Images,
    gradients: Images,
) -> None:
    """Fills an opened tile with the gradients of its pixels and the whole sum that they weigh."""
    color, depth, alpha = images
    by_color, by_depth, by_alpha = gradients
    for y in range(top, top + rows):
        for x in range(left, left + columns):
            row, column = y - top, x - left
            block, lane = row // BLOCK_Y * ACROSS + column // BLOCK_X, row % BLOCK_Y * BLOCK_X + column % BLOCK_X
            at = block * BACKWARD + lane
            gradient = by_depth[view, 0, y, x]
            total = gradient * depth[view, 0, y, x]
            total -= (np.float32(1) - alpha[view, 0, y, x]) * by_alpha[view, 0, y, x]
            state[at + 5 * WIDTH] = gradient
            for channel in range(3):
                gradient = by_color[view, channel, y, x]
                total += gradient * color[view, channel, y, x]
                state[at + (2 + channel) * WIDTH] = gradient
            state[at + WIDTH] = total


@helper
def differentiate_hit(
    state: np.ndarray,
    sums: np.ndarray,
    record: np.ndarray,
    left: int,
    top: int,
    live: int,
    limits: np.ndarray,
    gains: np.ndarray,
    slot: np.ndarray,
) -> int:
    """Replays one Gaussian on a tile and writes its MOMENTS into `slot`; returns the blocks still open.

    gains: (PIXELS), of `differentiate_block`.
    """
    blocks = covered(record, np.float32(left), np.float32(top)) & live
    if blocks == 0:
        slot[:] = 0
        return live
    sums[:] = 0
    dy0 = np.float32(top) + np.float32(0.5) - record[1]
    u0 = np.float32(left) + np.float32(0.5) - record[0] - record[3] * dy0
    while blocks:
        block = lowest_bit(blocks)
        blocks &= blocks - 1
        down = np.float32(block // ACROSS * BLOCK_Y)
        u = u0 + np.float32(block % ACROSS * BLOCK_X) - record[3] * down
        at, place = block * BACKWARD, block * WIDTH
        passing = differentiate_block(state, at, record, limits, u, dy0 + down, sums, gains, place)
        live &= ~((1 - passing) << block)
    for field in range(MOMENTS):
        slot[field] = total_of(sums, field)
    return live


@helper
def add_totals(
    state: np.ndarray, count: int, first: int, places: np.ndarray, values: np.ndarray, gains: np.ndarray
) -> None:
    """Adds the weighed gains of a tile's entries to what is still to come at their pixels."""
    for entry in range(count):
        place = np.int64(places[first + entry])
        state[place // WIDTH * BACKWARD + WIDTH + place % WIDTH] += values[first + entry] * gains[entry]


@allocating
def differentiate_tiles(
    worker: int,
    workers: int,
    tiles: tuple[int, int],
    records: np.ndarray,
    binned: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    limits: np.ndarray,
    images: Images,
    gradients: Images,
    further: Further,
    slots: np.ndarray,
) -> None:
    """Differentiates every `workers`-th tile. binned: boxes, hits, tile_starts, slot_starts."""
    boxes, hits, tile_starts, slot_starts = binned
    height, width = images[0].shape[2:]
    state, sums = np.empty(BLOCKS * BACKWARD, np.float32), np.empty(MOMENTS * WIDTH, np.float32)
    by_place, wide, end = np.zeros(PIXELS, np.float32), further[1].shape[1] > 0, 0
    gains, block, row = by_place, np.empty(PIXELS * WIDE if wide else 0, np.float32), np.empty(WIDE, np.float32)
    _, _, _, counts, firsts, places, values = further
    for index in range(tiles[0] + worker, tiles[1], workers):
        view, left, top = corner_of(index, (width, height))
        column, down = left // TILE, top // TILE
        columns, rows = min(TILE, width - left), min(TILE, height - top)
        live = open_tile(state, BACKWARD, columns, rows)
        load_gradients(state, left, top, columns, rows, view, images, gradients)
        if wide:
            gains, end = gains_of(index, hits, tile_starts, further, (width, height), block, row), 0
            add_totals(state, len(gains) - OVERRUN, firsts[index], places, values, gains)
        for hit in range(tile_starts[index], tile_starts[index + 1]):
            pair = hits[hit]
            box = boxes[pair]
            slot = slots[slot_starts[pair] + (down - box[2]) * (box[1] - box[0]) + column - box[0]]
            begin = end
            if wide:
                end = begin + counts[hit]
                for entry in range(begin, end):
                    by_place[places[firsts[index] + entry]] = gains[entry]
            live = differentiate_hit(state, sums, records[pair], left, top, live, limits, by_place, slot)
            for entry in range(begin, end):
                by_place[places[firsts[index] + entry]] = 0


@kernel
def differentiate(
    tiles: tuple[int, int],
    records: np.ndarray,
    boxes: np.ndarray,
    hits: np.ndarray,
    tile_starts: np.ndarray,
    slot_starts: np.ndarray,
    limits: np.ndarray,
    workers: int,
    images: Images,
    gradients: Images,
    further: Further,
    slots: np.ndarray,
) -> None:
    """The gradient of `draw`: MOMENTS of every hit, in slots of its own, so that no two tasks add to one number.

    Args:
        tiles: first and past-last tile to treat.
        records, boxes, hits, tile_starts, slot_starts, limits, workers: as drawn.
        images, gradients: what was drawn, and the gradient of the loss by it.
        further: what other channels add; features of no channels where there are none.
        slots: output (I MOMENTS) float32; the tiles of a pair lie together.
    """
    for worker in prange(workers):
        task, binned = np.int64(worker), (boxes, hits, tile_starts, slot_starts)
        differentiate_tiles(task, workers, tiles, records, binned, limits, images, gradients, further, slots)
