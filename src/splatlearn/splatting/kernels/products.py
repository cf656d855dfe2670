"""The three products of a tile: W f, f dO' and W' dO, of its sparse weights W with features f or their gradients dO.

A hit's entries, the pixels that it lights and their weights, lie together, and few lie in one block of pixels. So one
row of features stays in registers while the entries go by, against a copy of the tile's pixels that fits the cache and
has WIDE channels.

Legend: I (tile, pair) hits, E entries (hit, pixel), T tiles of all views, V views, C channels.
"""

from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, void
from numba.core import cgutils

from splatlearn.splatting.kernels.compilation import helper
from splatlearn.splatting.kernels.lanes import I64, INTS, PLACES, VECTOR, WIDTH, Lanes, Mask, intrinsic, pointer_of
from splatlearn.splatting.kernels.tiles import PIXELS, corner_of, pixel_of

WIDE, MEDIUM = 8 * WIDTH, 4 * WIDTH
"""Channels treated together, the rest with a kernel of as many or of WIDTH: the pixels of a tile take 64 KiB, and rows
of features are read in whole lines that follow one another."""
LINE = 16
"""Floats of a line of the cache."""
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


def _step(builder: Any, index: Any, by: int) -> Any:
    return builder.add(index, ir.Constant(I64, by))


def _rows(builder: Any, pointer: Any, start: Any, vectors: int) -> list[Lanes]:
    return [Lanes.load(builder, pointer, _step(builder, start, v * WIDTH)) for v in range(vectors)]


def _pixel(builder: Any, places: Any, entry: Any, vectors: int) -> Any:
    """Where the entry's pixel begins in a block of pixels; garbage past the last entry stays inside the tile."""
    place = builder.zext(builder.load(builder.gep(places, [entry])), I64)
    return builder.mul(place, ir.Constant(I64, vectors * WIDTH))


@contextmanager
def _entries(builder: Any, begin: Any, end: Any, step: int) -> Any:
    with cgutils.for_range_slice(builder, begin, end, ir.Constant(I64, step), I64) as (entry, _):
        yield entry


@intrinsic
def fetch(typingctx, array, start, many):
    """Asks for that many numbers of array[start:] to be brought into the cache."""

    def generate(context, builder, signature, arguments):
        data, byte, number = pointer_of(context, builder, arguments[0]), ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        end = builder.add(arguments[1], arguments[2])
        with _entries(builder, arguments[1], end, LINE) as at:
            place = builder.bitcast(builder.gep(data, [at]), byte)
            builder.call(prefetch, [place, *(ir.Constant(number, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return void(VECTOR, int64, int64), generate


def _spreading(vectors: int) -> Any:
    @intrinsic
    def spread_hit(typingctx, pixels, features, start, places, values, begin, end):
        """pixels[place] += weight * features[start:] for the entries from begin to before end."""

        def generate(context, builder, signature, arguments):
            pixels, features, values = (pointer_of(context, builder, arguments[k]) for k in (0, 1, 4))
            places = pointer_of(context, builder, arguments[3], PLACES)
            rows = _rows(builder, features, arguments[2], vectors)
            with _entries(builder, arguments[5], arguments[6], 1) as entry:
                at = _pixel(builder, places, entry, vectors)
                weight = Lanes.splat(builder, builder.load(builder.gep(values, [entry])))
                for v, row in enumerate(rows):
                    place = _step(builder, at, v * WIDTH)
                    weight.times(row, Lanes.load(builder, pixels, place)).store(pixels, place)
            return context.get_dummy_value()

        return void(VECTOR, VECTOR, int64, PLACES, VECTOR, int64, int64), generate

    return spread_hit


def _gathering(vectors: int) -> Any:
    @intrinsic
    def gather_hit(typingctx, target, start, pixels, places, values, begin, end):
        """target[start:] += the sum over entries of weight * pixels[place]; even and odd entries apart."""

        def generate(context, builder, signature, arguments):
            target, pixels, values = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 4))
            places = pointer_of(context, builder, arguments[3], PLACES)
            begin, end = arguments[5:]
            zero = ir.Constant(FLOAT_ROW, [0.0] * WIDTH)
            parity = 2 if vectors < 8 else 1  # enough sums that no addition waits for the one before
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(parity)]

            def add(entry: Any, to: list[Any]) -> None:
                weight = Lanes.splat(builder, builder.load(builder.gep(values, [entry])))
                for read, total in zip(_rows(builder, pixels, _pixel(builder, places, entry, vectors), vectors), to):
                    builder.store(weight.times(read, Lanes(builder, builder.load(total))).value, total)

            with _entries(builder, begin, _step(builder, end, -1), 2) as entry:
                add(entry, sums[0])
                add(_step(builder, entry, 1), sums[-1])
            with builder.if_then(builder.trunc(builder.sub(end, begin), ir.IntType(1))):
                add(_step(builder, end, -1), sums[0])
            for v, parts in enumerate(zip(*sums, strict=True)):
                place = _step(builder, arguments[1], v * WIDTH)
                total = Lanes.load(builder, target, place)
                for part in parts:
                    total = total + Lanes(builder, builder.load(part))
                total.store(target, place)
            return context.get_dummy_value()

        return void(VECTOR, int64, VECTOR, PLACES, VECTOR, int64, int64), generate

    return gather_hit


def _dotting(vectors: int) -> Any:
    @intrinsic
    def dot_hit(typingctx, gains, shift, features, start, pixels, places, begin, end):
        """gains[entry - shift] += features[start:] times pixels[place], eight entries at a time."""

        def generate(context, builder, signature, arguments):
            gains, features, pixels = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 4))
            places = pointer_of(context, builder, arguments[5], PLACES)
            rows = _rows(builder, features, arguments[3], vectors)
            inside = ir.Constant(I64, PIXELS * vectors * WIDTH - 1)
            with _entries(builder, arguments[6], arguments[7], WIDTH) as entry:
                products = []
                for lane in range(WIDTH):
                    at = builder.and_(_pixel(builder, places, _step(builder, entry, lane), vectors), inside)
                    total: Any = None
                    for row, read in zip(rows, _rows(builder, pixels, at, vectors), strict=True):
                        total = row * read if total is None else row.times(read, total)
                    products.append(total)
                left = builder.trunc(builder.sub(arguments[7], entry), ir.IntType(32))
                lanes = ir.Constant(INTS, list(range(WIDTH)))
                used = Mask(builder, builder.icmp_signed("<", lanes, Lanes.repeat(builder, left, INTS)))
                sums = used.select(Lanes.sums(products), products[0].like(0.0))
                place = builder.sub(entry, arguments[1])
                (Lanes.load(builder, gains, place) + sums).store(gains, place)
            return context.get_dummy_value()

        return void(VECTOR, int64, VECTOR, int64, VECTOR, PLACES, int64, int64), generate

    return dot_hit


FLOAT_ROW = ir.VectorType(ir.FloatType(), WIDTH)
spread_wide, spread_medium, spread_narrow = _spreading(WIDE // WIDTH), _spreading(MEDIUM // WIDTH), _spreading(1)
gather_wide, gather_medium, gather_narrow = _gathering(WIDE // WIDTH), _gathering(MEDIUM // WIDTH), _gathering(1)
dot_wide, dot_medium, dot_narrow = _dotting(WIDE // WIDTH), _dotting(MEDIUM // WIDTH), _dotting(1)


@helper
def stride_of(width: int) -> int:
    """Floats of a pixel in a block that holds `width` channels; what is more than these is 0."""
    return WIDE if width > MEDIUM else MEDIUM if width > WIDTH else WIDTH


@helper
def spread_row(
    stride: int,
    pixels: np.ndarray,
    source: np.ndarray,
    start: int,
    places: np.ndarray,
    values: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """`spread_hit` of that many channels."""
    if stride == WIDE:
        spread_wide(pixels, source, start, places, values, begin, end)
    elif stride == MEDIUM:
        spread_medium(pixels, source, start, places, values, begin, end)
    else:
        spread_narrow(pixels, source, start, places, values, begin, end)


@helper
def gather_row(
    stride: int,
    target: np.ndarray,
    start: int,
    pixels: np.ndarray,
    places: np.ndarray,
    values: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """`gather_hit` of that many channels."""
    if stride == WIDE:
        gather_wide(target, start, pixels, places, values, begin, end)
    elif stride == MEDIUM:
        gather_medium(target, start, pixels, places, values, begin, end)
    else:
        gather_narrow(target, start, pixels, places, values, begin, end)


@helper
def dot_row(
    stride: int,
    gains: np.ndarray,
    shift: int,
    source: np.ndarray,
    start: int,
    pixels: np.ndarray,
    places: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """`dot_hit` of that many channels."""
    if stride == WIDE:
        dot_wide(gains, shift, source, start, pixels, places, begin, end)
    elif stride == MEDIUM:
        dot_medium(gains, shift, source, start, pixels, places, begin, end)
    else:
        dot_narrow(gains, shift, source, start, pixels, places, begin, end)


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


@helper
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
