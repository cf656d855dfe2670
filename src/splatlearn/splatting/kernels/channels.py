"""Feature channels: blended with the weights of colour, their gradient, and the adjoint that lifts maps to Gaussians.

A weight counts for all channels of a pixel, so it is computed once. Going forward, a tile collects its weights and
spreads rows of features over its pixels; going back, a band of tiles lists its weights by hit and every Gaussian
gathers rows of pixels. No two tasks add to one number, and all sums run in a fixed order.

Legend: V views, N Gaussians, P pairs (view, Gaussian), I (tile, pair) hits, E entries (hit, pixel) of a band,
C channels.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, prange, void

from splatlearn.splatting.kernels.compilation import helper, kernel
from splatlearn.splatting.kernels.compositing import (
    ACROSS,
    BLOCK_X,
    BLOCK_Y,
    BLOCKS,
    I64,
    TILE,
    VECTOR,
    Block,
    covered,
    intrinsic,
    lowest_bit,
    open_tile,
    pointer_of,
)
from splatlearn.splatting.kernels.lanes import WIDTH, Lanes
from splatlearn.splatting.kernels.projection import CHUNK, chunk_starts_of, group_of

COLLECTED = 8192
"""Entries of a tile that are spread together: their features and pixels stay in the cache."""
SPREAD = 128
"""Channels that are spread together."""
WIDE = 4 * WIDTH
Layout = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""(B + 1) rows and (B + 1) views of each item, (V + 1) pairs and (V) first row of each view."""
Binned = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""records, boxes, hits, tile_starts, slot_starts."""
Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""(hits of the band + 1) first entry of each hit; (E) pixel within the tile, block by block; (E) weight; (I) the hit
of each slot, written for the band."""


@intrinsic
def weigh_block(typingctx, state, at, record, limits, u, dy, weights):
    """`draw_block` without colours: writes eight weights to weights[at:]; `state` has the transmittance only."""

    def generate(context, builder, signature, arguments):
        state, record, limits, weights = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 3, 6))
        block = Block(builder, state, arguments[1], (record, limits, arguments[4], arguments[5]))
        block.weight.store(weights, arguments[1])
        return block.open()

    return int64(VECTOR, int64, VECTOR, VECTOR, float32, float32, VECTOR), generate


def _spreading(vectors: int) -> Any:
    @intrinsic
    def add_scaled(typingctx, out, at, source, start, weight):
        """out[at:] += weight * source[start:], `vectors` times eight numbers."""

        def generate(context, builder, signature, arguments):
            out, source = (pointer_of(context, builder, arguments[k]) for k in (0, 2))
            weight = Lanes.splat(builder, arguments[4])
            for vector in range(vectors):
                step = ir.Constant(I64, vector * WIDTH)
                place, origin = builder.add(arguments[1], step), builder.add(arguments[3], step)
                weight.times(Lanes.load(builder, source, origin), Lanes.load(builder, out, place)).store(out, place)
            return context.get_dummy_value()

        return void(VECTOR, int64, VECTOR, int64, float32), generate

    return add_scaled


def _gathering(vectors: int) -> Any:
    @intrinsic
    def add_and_dot(typingctx, out, at, source, start, weight, features):
        """out[at:] += weight * source[start:]; returns the dot product of source[start:] with features[at:]."""

        def generate(context, builder, signature, arguments):
            out, source, features = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 5))
            weight, total = Lanes.splat(builder, arguments[4]), None
            for vector in range(vectors):
                step = ir.Constant(I64, vector * WIDTH)
                place, origin = builder.add(arguments[1], step), builder.add(arguments[3], step)
                values = Lanes.load(builder, source, origin)
                weight.times(values, Lanes.load(builder, out, place)).store(out, place)
                feature = Lanes.load(builder, features, place)
                total = feature * values if total is None else feature.times(values, total)
            assert total is not None
            return total.sum()

        return float32(VECTOR, int64, VECTOR, int64, float32, VECTOR), generate

    return add_and_dot


add_scaled_wide, add_scaled_narrow = _spreading(WIDE // WIDTH), _spreading(1)
add_and_dot_wide, add_and_dot_narrow = _gathering(WIDE // WIDTH), _gathering(1)


@helper
def add_scaled(out: np.ndarray, at: int, source: np.ndarray, start: int, weight: float, count: int) -> None:
    """out[at:] += weight * source[start:], `count` numbers of flat arrays."""
    done = 0
    while done + WIDE <= count:
        add_scaled_wide(out, at + done, source, start + done, weight)
        done += WIDE
    while done + WIDTH <= count:
        add_scaled_narrow(out, at + done, source, start + done, weight)
        done += WIDTH
    for c in range(done, count):
        out[at + c] += weight * source[start + c]


@helper
def add_and_dot(
    out: np.ndarray, at: int, source: np.ndarray, start: int, weight: float, features: np.ndarray, count: int
) -> np.float32:
    """`add_scaled`, and the dot product of source[start:] with features[at:]."""
    done, total = 0, np.float32(0)
    while done + WIDE <= count:
        total += add_and_dot_wide(out, at + done, source, start + done, weight, features)
        done += WIDE
    while done + WIDTH <= count:
        total += add_and_dot_narrow(out, at + done, source, start + done, weight, features)
        done += WIDTH
    for c in range(done, count):
        value = source[start + c]
        out[at + c] += weight * value
        total += features[at + c] * value
    return total


@helper
def weigh_hit(
    state: np.ndarray,
    weights: np.ndarray,
    record: np.ndarray,
    left: int,
    top: int,
    live: int,
    limits: np.ndarray,
    places: np.ndarray,
    values: np.ndarray,
    end: int,
) -> tuple[int, int]:
    """Appends the pixels that one Gaussian of a tile lights, and their weights, at `end`; returns the blocks still
    open and the new end."""
    blocks = covered(record, np.float32(left), np.float32(top)) & live
    dy0 = np.float32(top) + np.float32(0.5) - record[1]
    u0 = np.float32(left) + np.float32(0.5) - record[0] - record[3] * dy0
    while blocks:
        block = lowest_bit(blocks)
        blocks &= blocks - 1
        down = np.float32(block // ACROSS * BLOCK_Y)
        u = u0 + np.float32(block % ACROSS * BLOCK_X) - record[3] * down
        passing = weigh_block(state, block * WIDTH, record, limits, u, dy0 + down, weights)
        live &= ~((1 - passing) << block)
        for place in range(block * WIDTH, (block + 1) * WIDTH):
            if weights[place] > 0:
                places[end] = place
                values[end] = weights[place]
                end += 1
    return live, end


@helper
def pixel_of(place: int, left: int, top: int) -> tuple[int, int]:
    """Column and row of a pixel of the tile at left, top."""
    block, lane = place // WIDTH, place % WIDTH
    return left + block % ACROSS * BLOCK_X + lane % BLOCK_X, top + block // ACROSS * BLOCK_Y + lane // BLOCK_X


@helper
def spread(
    features: np.ndarray,
    owners: np.ndarray,
    places: np.ndarray,
    values: np.ndarray,
    count: int,
    starts: np.ndarray,
    output: np.ndarray,
    channels: int,
) -> None:
    """Adds weighed rows of features to a tile's pixels. starts: (256) where each pixel's channels begin."""
    for begin in range(0, channels, SPREAD):
        width = min(SPREAD, channels - begin)
        for e in range(count):
            origin = owners[e] * channels + begin
            add_scaled(output, starts[places[e]] + begin, features, origin, values[e], width)


@helper
def blend_tiles(
    worker: int,
    workers: int,
    layout: Layout,
    binned: Binned,
    limits: np.ndarray,
    size: tuple[int, int],
    features: np.ndarray,
    output: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Every `workers`-th tile of `blend`."""
    _, _, pair_starts, first = layout
    records, _, hits, tile_starts, _ = binned
    (width, height), channels = size, features.shape[1]
    flat, target = features.reshape(-1), output.reshape(-1)
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    state, weights = np.empty(BLOCKS * WIDTH, np.float32), np.empty(BLOCKS * WIDTH, np.float32)
    room = COLLECTED + BLOCKS * WIDTH
    places, values, owners = np.empty(room, np.uint8), np.empty(room, np.float32), np.empty(room, np.int64)
    starts = np.empty(BLOCKS * WIDTH, np.int64)
    for index in range(worker, len(tile_starts) - 1, workers):
        view, tile = index // (tiles_x * tiles_y), index % (tiles_x * tiles_y)
        left, top = tile % tiles_x * TILE, tile // tiles_x * TILE
        live = open_tile(state, WIDTH, min(TILE, width - left), min(TILE, height - top))
        for place in range(BLOCKS * WIDTH):
            x, y = pixel_of(place, left, top)
            starts[place] = ((view * height + y) * width + x) * channels
        count, shift = 0, first[view] - pair_starts[view]
        for hit in range(tile_starts[index], tile_starts[index + 1]):
            if live == 0:
                counts[hit] = 0
                continue
            live, end = weigh_hit(state, weights, records[hits[hit]], left, top, live, limits, places, values, count)
            counts[hit] = end - count
            owners[count:end] = hits[hit] + shift
            count = end
            if channels == 0:
                count = 0
            elif count > COLLECTED:
                spread(flat, owners, places, values, count, starts, target, channels)
                count = 0
        spread(flat, owners, places, values, count, starts, target, channels)


@kernel
def blend(
    layout: Layout,
    binned: Binned,
    limits: np.ndarray,
    size: tuple[int, int],
    workers: int,
    features: np.ndarray,
    output: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Composites features.

    Args:
        layout: of the call.
        binned: of `projection.project` and `binning.bin_pairs`.
        limits: (3) float32 alpha_min, alpha_max, transmittance_min.
        size: width and height, pixels.
        workers: parallel tasks.
        features: (N C); C may be 0, to count only.
        output: (V H W C), zero before.
        counts: output (I) int16, the pixels that each hit lights.
    """
    for worker in prange(workers):
        blend_tiles(np.int64(worker), workers, layout, binned, limits, size, features, output, counts)


@helper
def list_tiles(
    worker: int,
    workers: int,
    tiles: tuple[int, int],
    binned: Binned,
    limits: np.ndarray,
    size: tuple[int, int],
    band: Band,
) -> None:
    """Every `workers`-th tile of `list_weights`."""
    records, boxes, hits, tile_starts, slot_starts = binned
    entry_starts, places, values, slot_hits = band
    width, height = size
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    state, weights = np.empty(BLOCKS * WIDTH, np.float32), np.empty(BLOCKS * WIDTH, np.float32)
    base = tile_starts[tiles[0]]
    for index in range(tiles[0] + worker, tiles[1], workers):
        tile = index % (tiles_x * tiles_y)
        column, row = tile % tiles_x, tile // tiles_x
        left, top = column * TILE, row * TILE
        live = open_tile(state, WIDTH, min(TILE, width - left), min(TILE, height - top))
        for hit in range(tile_starts[index], tile_starts[index + 1]):
            pair = hits[hit]
            box = boxes[pair]
            slot_hits[slot_starts[pair] + (row - box[2]) * (box[1] - box[0]) + column - box[0]] = hit
            if live:
                begin = entry_starts[hit - base]
                live, _ = weigh_hit(state, weights, records[pair], left, top, live, limits, places, values, begin)


@kernel
def list_weights(
    tiles: tuple[int, int],
    binned: Binned,
    limits: np.ndarray,
    size: tuple[int, int],
    workers: int,
    band: Band,
) -> None:
    """Lists the weights of a band: the tiles from tiles[0] to before tiles[1]. Other arguments as in `blend`."""
    for worker in prange(workers):
        list_tiles(np.int64(worker), workers, tiles, binned, limits, size, band)


@helper
def entries_of(
    slot: int, local: int, box: np.ndarray, bounds: tuple[int, int], band: Band
) -> tuple[int, int, int, int]:
    """First and past-last entry of a pair's slot, none where it lies outside the band, and its tile's left and top.

    local: number of the slot within its pair. box: of the pair. bounds: first and past-last hit of the band.
    """
    entry_starts, _, _, slot_hits = band
    hit: int = slot_hits[slot]
    across: int = box[1] - box[0]
    left, top = (box[0] + local % across) * TILE, (box[2] + local // across) * TILE
    if hit < bounds[0] or hit >= bounds[1]:
        return 0, 0, left, top
    return entry_starts[hit - bounds[0]], entry_starts[hit - bounds[0] + 1], left, top


@helper
def gather_pair(
    pair: int,
    i: int,
    view: int,
    bounds: tuple[int, int],
    binned: Binned,
    band: Band,
    size: tuple[int, int],
    channels: int,
    features: np.ndarray,
    by_output: np.ndarray,
    by_features: np.ndarray,
    gains: np.ndarray,
) -> None:
    """One Gaussian in one view of `gather`; arrays are flat."""
    _, boxes, _, _, slot_starts = binned
    _, places, values, _ = band
    width, height = size
    for slot in range(slot_starts[pair], slot_starts[pair + 1]):
        begin, end, left, top = entries_of(slot, slot - slot_starts[pair], boxes[pair], bounds, band)
        for e in range(begin, end):
            x, y = pixel_of(places[e], left, top)
            start = ((view * height + y) * width + x) * channels
            gains[e] = add_and_dot(by_features, i * channels, by_output, start, values[e], features, channels)


@kernel
def gather(
    layout: Layout,
    bounds: tuple[int, int],
    binned: Binned,
    band: Band,
    size: tuple[int, int],
    features: np.ndarray,
    by_output: np.ndarray,
    by_features: np.ndarray,
    gains: np.ndarray,
) -> None:
    """The gradient of `blend` over a band.

    Args:
        layout, binned, size, features: as blended.
        bounds: first and past-last hit of the band.
        band: of `list_weights`.
        by_output: (V H W C) gradient of the loss by the output.
        by_features: (N C), added to.
        gains: output (E), the gradient of the loss by each weight.
    """
    gaussian_starts, view_starts, pair_starts, _ = layout
    channels = features.shape[1]
    flat, source, target = features.reshape(-1), by_output.reshape(-1), by_features.reshape(-1)
    tiles_of = binned[4]
    chunk_starts = chunk_starts_of(gaussian_starts)
    for task in prange(chunk_starts[-1]):
        chunk = np.int64(task)
        b = group_of(chunk, chunk_starts)
        begin = gaussian_starts[b] + (chunk - chunk_starts[b]) * CHUNK
        for i in range(begin, min(begin + CHUNK, gaussian_starts[b + 1])):
            for view in range(view_starts[b], view_starts[b + 1]):
                pair = pair_starts[view] + i - gaussian_starts[b]
                if tiles_of[pair + 1] > tiles_of[pair]:
                    gather_pair(pair, i, view, bounds, binned, band, size, channels, flat, source, target, gains)


@helper
def taps(position: int, size: int, coarse: int) -> tuple[int, int, float]:
    """Bilinear reading at a pixel centre, as torch's `interpolate` without aligned corners: two cells and the share
    of the second."""
    place = max((np.float64(position) + 0.5) * coarse / size - 0.5, 0.0)
    first = min(int(place), coarse - 1)
    return first, min(first + 1, coarse - 1), place - first


@helper
def lift_pair(
    pair: int,
    bounds: tuple[int, int],
    binned: Binned,
    band: Band,
    size: tuple[int, int],
    coarse: tuple[int, int],
    shares: np.ndarray,
) -> tuple[float, int, int]:
    """Adds a pair's weights to `shares` (coarse rows, coarse columns) through the adjoint of bilinear reading; returns
    their sum and the rows that were touched."""
    _, boxes, _, _, slot_starts = binned
    _, places, values, _ = band
    total, lowest, highest = 0.0, coarse[1], -1
    for slot in range(slot_starts[pair], slot_starts[pair + 1]):
        begin, end, left, top = entries_of(slot, slot - slot_starts[pair], boxes[pair], bounds, band)
        for e in range(begin, end):
            x, y = pixel_of(places[e], left, top)
            x0, x1, across_share = taps(x, size[0], coarse[0])
            y0, y1, down_share = taps(y, size[1], coarse[1])
            weight = np.float64(values[e])
            total += weight
            lowest, highest = min(lowest, y0), max(highest, y1)
            shares[y0, x0] += weight * (1 - across_share) * (1 - down_share)
            shares[y0, x1] += weight * across_share * (1 - down_share)
            shares[y1, x0] += weight * (1 - across_share) * down_share
            shares[y1, x1] += weight * across_share * down_share
    return total, lowest, highest


@kernel
def lift(
    layout: Layout,
    bounds: tuple[int, int],
    binned: Binned,
    band: Band,
    size: tuple[int, int],
    maps: np.ndarray,
    sums: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Adds to every Gaussian the maps that it is seen in, weighed as it is blended; over a band.

    Args:
        layout, binned, size: as blended.
        bounds, band: as in `gather`.
        maps: (V h w C), read bilinearly at the pixels.
        sums: (N C), added to.
        weights: (N) float64, added to.
    """
    gaussian_starts, view_starts, pair_starts, _ = layout
    rows, columns, channels = maps.shape[1:]
    source, target = maps.reshape(-1), sums.reshape(-1)
    slot_starts = binned[4]
    chunk_starts = chunk_starts_of(gaussian_starts)
    for task in prange(chunk_starts[-1]):
        chunk = np.int64(task)
        b = group_of(chunk, chunk_starts)
        begin = gaussian_starts[b] + (chunk - chunk_starts[b]) * CHUNK
        shares = np.zeros((rows, columns))
        for i in range(begin, min(begin + CHUNK, gaussian_starts[b + 1])):
            for view in range(view_starts[b], view_starts[b + 1]):
                pair = pair_starts[view] + i - gaussian_starts[b]
                if slot_starts[pair + 1] == slot_starts[pair]:
                    continue
                total, low, high = lift_pair(pair, bounds, binned, band, size, (columns, rows), shares)
                weights[i] += total
                for y in range(low, high + 1):
                    for x in range(columns):
                        if shares[y, x] > 0:
                            start = ((view * rows + y) * columns + x) * channels
                            share = np.float32(shares[y, x])
                            add_scaled(target, i * channels, source, start, share, channels)
                            shares[y, x] = 0
