"""One hit's part of the products of a tile, written with `Lanes`: a row of features stays in registers while the pixels
that the hit lights go by.

Entries are pixels that a hit lights, with its weights there. A block of pixels is flat, `stride` numbers a pixel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, void
from numba.core import cgutils

from splatlearn.splatting.kernels.compilation import helper
from splatlearn.splatting.kernels.lanes import (
    FLOATS,
    I64,
    INTS,
    PLACES,
    VECTOR,
    WIDTH,
    Lanes,
    Mask,
    intrinsic,
    pointer_of,
)
from splatlearn.splatting.kernels.tiles import PIXELS

WIDE, MEDIUM = 8 * WIDTH, 4 * WIDTH
"""Channels treated together, the rest with a kernel of as many or of WIDTH: the pixels of a tile take 64 KiB, and rows
of features are read in whole lines that follow one another."""
LINE = 16
"""Floats of a line of the cache."""


def _step(builder: Any, index: Any, by: int) -> Any:
    return builder.add(index, ir.Constant(I64, by))


def _rows(builder: Any, pointer: Any, start: Any, vectors: int) -> list[Lanes]:
    return [Lanes.load(builder, pointer, _step(builder, start, v * WIDTH)) for v in range(vectors)]


def _pixel(builder: Any, places: Any, entry: Any, vectors: int) -> Any:
    """Where the entry's pixel begins in a block of pixels."""
    place = builder.zext(builder.load(builder.gep(places, [entry])), I64)
    return builder.mul(place, ir.Constant(I64, vectors * WIDTH))


@contextmanager
def _entries(builder: Any, begin: Any, end: Any, step: int) -> Iterator[Any]:
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
        """target[start:] += the sum over entries of weight * pixels[place], in the same order whatever `vectors`."""

        def generate(context, builder, signature, arguments):
            target, pixels, values = (pointer_of(context, builder, arguments[k]) for k in (0, 2, 4))
            places = pointer_of(context, builder, arguments[3], PLACES)
            zero = ir.Constant(FLOATS, [0.0] * WIDTH)
            rows = [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)]
            with _entries(builder, arguments[5], arguments[6], 1) as entry:
                weight = Lanes.splat(builder, builder.load(builder.gep(values, [entry])))
                reads = _rows(builder, pixels, _pixel(builder, places, entry, vectors), vectors)
                for read, total in zip(reads, rows, strict=True):
                    builder.store(weight.times(read, Lanes(builder, builder.load(total))).value, total)
            for v, total in enumerate(rows):
                place = _step(builder, arguments[1], v * WIDTH)
                sums = Lanes.load(builder, target, place) + Lanes(builder, builder.load(total))
                sums.store(target, place)
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
            inside = ir.Constant(I64, PIXELS * vectors * WIDTH - 1)  # keeps what lies past the last entry in the tile
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
