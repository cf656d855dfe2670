"""The three products of a tile: W f, f dO' and W' dO, of its sparse weights W with features f or their gradients dO.

A hit's entries, the pixels that it lights and their weights, lie together, and few lie in one block of pixels. So one
row of features stays in registers while the entries go by, against a copy of the tile's pixels that fits the cache and
has WIDE channels.

Legend: I (tile, pair) hits, E entries (hit, pixel), T tiles of all views, V views, C channels.
"""

import numpy as np

from splatlearn.splatting.kernels.compilation import allocating, helper
from splatlearn.splatting.kernels.lanes import WIDTH
from splatlearn.splatting.kernels.rows import WIDE, dot_row, fetch, gather_row, spread_row, stride_of
from splatlearn.splatting.kernels.tiles import PIXELS, corner_of, pixel_of

AHEAD = 6
"""Hits whose rows are asked for before they are used."""
OVERRUN = WIDTH
"""Entries that may be read, and are not used, past the last."""
Listed = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Weights of a range of tiles: (I) int16 entries of each hit, (T) int64 first entry of each tile; (E) uint16 place of
the pixel in its tile and (E) float32 weight, hit after hit."""
Further = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""What channels beside colour add: (V) int64 what added to a pair's number gives its Gaussian; (N C) features;
(V H W C) gradient of the loss by their picture; the four of `Listed`."""


@helper
def load_pixels(
    source: np.ndarray, corner: tuple[int, int, int], size: tuple[int, int], part: tuple[int, int, int], out: np.ndarray
) -> None:
    """Copies channels of a tile's pixels from a flat (V H W C) array; zeros outside of the image.

    part: C, the first channel and their number.
    """
    (view, left, top), (channels, begin, count) = corner, part
    stride = stride_of(count)
    for place in range(PIXELS):
        x, y = pixel_of(place, left, top)
        many = count if x < size[0] and y < size[1] else 0
        start, at = ((view * size[1] + y) * size[0] + x) * channels + begin, place * stride
        for c in range(many):
            out[at + c] = source[start + c]
        for c in range(many, stride):
            out[at + c] = 0


@helper
def store_pixels(
    out: np.ndarray, corner: tuple[int, int, int], size: tuple[int, int], part: tuple[int, int, int], block: np.ndarray
) -> None:
    """The reverse of `load_pixels`."""
    (view, left, top), (channels, begin, count) = corner, part
    stride = stride_of(count)
    for place in range(PIXELS):
        x, y = pixel_of(place, left, top)
        if x < size[0] and y < size[1]:
            start, at = ((view * size[1] + y) * size[0] + x) * channels + begin, place * stride
            for c in range(count):
                out[start + c] = block[at + c]


@helper
def spread_tile(
    index: int,
    shift: int,
    hits: np.ndarray,
    tile_starts: np.ndarray,
    listed: Listed,
    features: np.ndarray,
    part: tuple[int, int, int],
    pixels: np.ndarray,
    row: np.ndarray,
) -> None:
    """Adds weighed features of a tile's Gaussians to its pixels: W f.

    Args:
        index: of the tile.
        shift: what added to a pair's number gives its Gaussian.
        hits, tile_starts: of `binning.bin_pairs`.
        listed: weights.
        features: (N C), flat.
        part: C, the first channel and their number.
        pixels: (PIXELS stride) of the part, flat; added to.
        row: (WIDE) scratch.
    """
    counts, firsts, places, values = listed
    channels, low, many = part
    stride, end, last = stride_of(many), firsts[index], tile_starts[index + 1]
    row[:] = 0
    for hit in range(tile_starts[index], last):
        begin, end = end, end + counts[hit]
        if many == stride and hit + AHEAD < last and counts[hit + AHEAD] > 0:
            fetch(features, (hits[hit + AHEAD] + shift) * channels + low, many)
        if begin == end:
            continue
        start = (hits[hit] + shift) * channels + low
        if many == stride:
            spread_row(stride, pixels, features, start, places, values, begin, end)
            continue
        for c in range(many):
            row[c] = features[start + c]
        spread_row(stride, pixels, row, 0, places, values, begin, end)


@helper
def gather_tile(
    index: int,
    shift: int,
    hits: np.ndarray,
    tile_starts: np.ndarray,
    listed: Listed,
    target: np.ndarray,
    part: tuple[int, int, int],
    pixels: np.ndarray,
    row: np.ndarray,
) -> None:
    """Adds weighed pixels of a tile to its Gaussians: W' dO. Arguments as in `spread_tile`; target: (N C), flat."""
    counts, firsts, places, values = listed
    channels, low, many = part
    stride, end, last = stride_of(many), firsts[index], tile_starts[index + 1]
    for hit in range(tile_starts[index], last):
        begin, end = end, end + counts[hit]
        if many == stride and hit + AHEAD < last and counts[hit + AHEAD] > 0:
            fetch(target, (hits[hit + AHEAD] + shift) * channels + low, many)
        if begin == end:
            continue
        start = (hits[hit] + shift) * channels + low
        if many == stride:
            gather_row(stride, target, start, pixels, places, values, begin, end)
            continue
        row[:] = 0
        gather_row(stride, row, 0, pixels, places, values, begin, end)
        for c in range(many):
            target[start + c] += row[c]


@helper
def dot_tile(
    index: int,
    shift: int,
    hits: np.ndarray,
    tile_starts: np.ndarray,
    listed: Listed,
    features: np.ndarray,
    part: tuple[int, int, int],
    pixels: np.ndarray,
    row: np.ndarray,
    gains: np.ndarray,
) -> None:
    """Adds to `gains` (entries of the tile) the products of features with pixels: f dO' where W has entries.
    Other arguments as in `spread_tile`."""
    counts, firsts, places, _ = listed
    channels, low, many = part
    stride, end, last = stride_of(many), firsts[index], tile_starts[index + 1]
    row[:] = 0
    for hit in range(tile_starts[index], last):
        begin, end = end, end + counts[hit]
        if many == stride and hit + AHEAD < last and counts[hit + AHEAD] > 0:
            fetch(features, (hits[hit + AHEAD] + shift) * channels + low, many)
        if begin == end:
            continue
        start = (hits[hit] + shift) * channels + low
        if many == stride:
            dot_row(stride, gains, firsts[index], features, start, pixels, places, begin, end)
            continue
        for c in range(many):
            row[c] = features[start + c]
        dot_row(stride, gains, firsts[index], row, 0, pixels, places, begin, end)


@allocating
def gains_of(
    index: int,
    hits: np.ndarray,
    tile_starts: np.ndarray,
    further: Further,
    size: tuple[int, int],
    pixels: np.ndarray,
    row: np.ndarray,
) -> np.ndarray:
    """The gradient of the loss by each weight of a tile, through the channels of `further`; OVERRUN more at the end.

    pixels: (PIXELS WIDE) scratch, flat. row: (WIDE) scratch.
    """
    shifts, features, by_output, counts, firsts, places, values = further
    listed, channels, corner = (counts, firsts, places, values), features.shape[1], corner_of(index, size)
    flat, source = features.reshape(-1), by_output.reshape(-1)
    many = OVERRUN
    for hit in range(tile_starts[index], tile_starts[index + 1]):
        many += counts[hit]
    gains = np.zeros(many, np.float32)
    for begin in range(0, channels, WIDE):
        part = (channels, begin, min(WIDE, channels - begin))
        load_pixels(source, corner, size, part, pixels)
        dot_tile(index, shifts[corner[0]], hits, tile_starts, listed, flat, part, pixels, row, gains)
    return gains
