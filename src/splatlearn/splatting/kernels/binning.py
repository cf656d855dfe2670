"""Which pairs touch which tile, nearest first.

Legend: V views, P pairs, T tiles of one view, I (tile, pair) hits.
"""

import numpy as np
from numba import prange

from splatlearn.splatting.kernels.compilation import allocating, helper, kernel

DEPTH = 11
"""Field of a pair's record that holds its depth."""
DIGITS = 2048
"""Radix of one sorting pass: three passes of 11 bits cover the 32 bits of a float32 depth."""


@allocating
def sort_view(keys: np.ndarray, tiles: np.ndarray, begin: int, end: int, order: np.ndarray) -> int:
    """Writes the drawn pairs of one view into order[begin:], by depth, ties by number; returns one past the last.

    keys: (P) uint32, bits of positive depths, which sort as the depths do.
    """
    last = begin
    for pair in range(begin, end):
        if tiles[pair] > 0:
            order[last] = pair
            last += 1
    source, target = order[begin:last], np.empty(last - begin, np.int32)
    starts = np.empty(DIGITS, np.int64)
    for shift in (0, 11, 22):
        starts[:] = 0
        for pair in source:
            starts[(keys[pair] >> np.uint32(shift)) & np.uint32(DIGITS - 1)] += 1
        total = 0
        for digit in range(DIGITS):
            total, starts[digit] = total + starts[digit], total
        for pair in source:
            digit = (keys[pair] >> np.uint32(shift)) & np.uint32(DIGITS - 1)
            target[starts[digit]] = pair
            starts[digit] += 1
        source, target = target, source
    for place in range(begin, last):  # three passes end in the other array
        order[place] = source[place - begin]
    return last


@allocating
def depth_keys(records: np.ndarray) -> np.ndarray:
    """(P) bits of the depths, as uint32."""
    depths = np.empty(len(records), np.float32)
    for pair in range(len(records)):
        depths[pair] = records[pair, DEPTH]
    return depths.view(np.uint32)


@allocating
def running_total(counts: np.ndarray) -> np.ndarray:
    """(len(counts) + 1) sums of what lies before, int64."""
    total = np.zeros(len(counts) + 1, np.int64)
    for i in range(len(counts)):
        total[i + 1] = total[i] + counts[i]
    return total


@helper
def part_of(begin: int, end: int, part: int, parts: int) -> tuple[int, int]:
    """Bounds of one of `parts` nearly equal pieces of a range."""
    return begin + (end - begin) * part // parts, begin + (end - begin) * (part + 1) // parts


@allocating
def start_tiles(cursors: np.ndarray, views: int, parts: int) -> np.ndarray:
    """Turns the counts (V parts, T) of each task and tile into the places where it writes, task after task within
    a tile; returns the first place of every tile (V T + 1)."""
    per_view = cursors.shape[1]
    starts, total = np.empty(views * per_view + 1, np.int64), 0
    for v in range(views):
        for tile in range(per_view):
            starts[v * per_view + tile] = total
            for task in range(v * parts, (v + 1) * parts):
                total, cursors[task, tile] = total + cursors[task, tile], total
    starts[views * per_view] = total
    return starts


@helper
def count_tiles(order: np.ndarray, boxes: np.ndarray, tiles_x: int, counts: np.ndarray) -> None:
    """Adds to counts (T) how many pairs of `order` touch each tile."""
    for pair in order:
        for row in range(boxes[pair, 2], boxes[pair, 3]):
            for tile in range(row * tiles_x + boxes[pair, 0], row * tiles_x + boxes[pair, 1]):
                counts[tile] += 1


@helper
def fill_tiles(order: np.ndarray, boxes: np.ndarray, tiles_x: int, cursors: np.ndarray, hits: np.ndarray) -> None:
    """Writes each pair of `order` at the cursors (T) of its tiles and moves them on."""
    for pair in order:
        for row in range(boxes[pair, 2], boxes[pair, 3]):
            for tile in range(row * tiles_x + boxes[pair, 0], row * tiles_x + boxes[pair, 1]):
                hits[cursors[tile]] = pair
                cursors[tile] += 1


@kernel
def bin_pairs(
    records: np.ndarray,
    boxes: np.ndarray,
    tiles: np.ndarray,
    pair_starts: np.ndarray,
    tiles_x: int,
    tiles_y: int,
    workers: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists the pairs of every tile by depth, ties by number. The result does not depend on `workers`.

    Args:
        records, boxes, tiles: of `project`.
        pair_starts: (V + 1).
        tiles_x, tiles_y: tiles in a row and in a column of a view.
        workers: parallel tasks.

    Returns:
        hits (I) int32 pairs; tile_starts (V T + 1) into hits; slot_starts (P + 1): the place of a pair's first tile
        in an array that holds the tiles of each pair together.
    """
    views, pairs, per_view = len(pair_starts) - 1, len(tiles), tiles_x * tiles_y
    keys = depth_keys(records)
    order, ends = np.empty(pairs, np.int32), np.empty(views, np.int64)
    for index in prange(views):
        v = np.int64(index)
        ends[v] = sort_view(keys, tiles, pair_starts[v], pair_starts[v + 1], order)
    parts = (workers + views - 1) // max(views, 1)
    cursors = np.zeros((views * parts, per_view), np.int64)
    for index in prange(views * parts):
        task = np.int64(index)
        low, high = part_of(pair_starts[task // parts], ends[task // parts], task % parts, parts)
        count_tiles(order[low:high], boxes, tiles_x, cursors[task])
    tile_starts = start_tiles(cursors, views, parts)
    hits = np.empty(tile_starts[-1], np.int32)
    for index in prange(views * parts):
        task = np.int64(index)
        low, high = part_of(pair_starts[task // parts], ends[task // parts], task % parts, parts)
        fill_tiles(order[low:high], boxes, tiles_x, cursors[task], hits)
    return hits, tile_starts, running_total(tiles)
