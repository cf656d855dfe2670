"""Eight pixels at a time: a small notation for vector code inside a Numba kernel.

Numba has no vector types, and what LLVM makes of a scalar loop with early exits differs between versions. The
functions that run billions of times are therefore written with `Lanes`, which emits LLVM vector instructions; LLVM
maps them to the host (one AVX register, two of SSE or NEON).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import float32, types, uint16
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

WIDTH = 8
FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
INTS = ir.VectorType(ir.IntType(32), WIDTH)
I64 = ir.IntType(64)
VECTOR = types.Array(float32, 1, "C")
PLACES = types.Array(uint16, 1, "C")
intrinsic: Any = _intrinsic  # it takes the typing context away from the signature
EXP2 = (
    0.0013266970388625158,
    0.009675459745571574,
    0.05550742615995987,
    0.2402212175356033,
    0.6931469491610673,
    1.000000071029701,
)
"""2^f for f in [-1/2, 1/2], highest power first: Chebyshev fit of the relative error, below 2.2e-7 in float32."""


class Mask:
    """Eight truth values."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.builder, self.builder.and_(self.value, other.value))

    def select(self, yes: Lanes, no: Lanes) -> Lanes:
        """`yes` where true, else `no`."""
        return Lanes(self.builder, self.builder.select(self.value, yes.value, no.value))

    def any(self) -> Any:
        """Whether one is true, as an LLVM i1."""
        byte = self.builder.bitcast(self.value, ir.IntType(WIDTH))
        return self.builder.icmp_unsigned("!=", byte, ir.Constant(ir.IntType(WIDTH), 0))


class Lanes:
    """Eight float32 values; arithmetic emits instructions. A plain number stands for eight copies of it."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @classmethod
    def splat(cls, builder: Any, scalar: Any) -> Lanes:
        """Eight copies of an LLVM float."""
        return cls(builder, cls.repeat(builder, scalar, FLOATS))

    @staticmethod
    def repeat(builder: Any, scalar: Any, kind: Any) -> Any:
        """Eight copies of an LLVM number, as a plain LLVM vector of `kind`."""
        single = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(single, single, ir.Constant(INTS, [0] * WIDTH))

    @classmethod
    def load(cls, builder: Any, pointer: Any, index: Any) -> Lanes:
        """Eight neighbours starting at pointer[index]."""
        return cls(builder, builder.load(_vector_pointer(builder, pointer, index), align=4))

    def store(self, pointer: Any, index: Any) -> None:
        """Writes the eight values to pointer[index] and on."""
        self.builder.store(self.value, _vector_pointer(self.builder, pointer, index), align=4)

    def like(self, values: float | list[float]) -> Lanes:
        """A constant, one number for all lanes or one each."""
        numbers = values if isinstance(values, list) else [values] * WIDTH
        return Lanes(self.builder, ir.Constant(FLOATS, numbers))

    def __add__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fsub(self.value, other.value))

    def __mul__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fdiv(self.value, other.value))

    def times(self, factor: Lanes, plus: Lanes) -> Lanes:
        """self * factor + plus, fused where the host can."""
        kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
        multiply_add = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fmuladd.v{WIDTH}f32")
        return Lanes(self.builder, self.builder.call(multiply_add, [self.value, factor.value, plus.value]))

    def compare(self, relation: str, other: Lanes) -> Mask:
        """Elementwise `<`, `<=`, `>` or `>=`; false for NaN."""
        return Mask(self.builder, self.builder.fcmp_ordered(relation, self.value, other.value))

    def at_most(self, limit: Lanes) -> Lanes:
        """The smaller of the two, lane by lane."""
        return self.compare("<", limit).select(self, limit)

    def negative(self) -> Lanes:
        """Changed signs."""
        return Lanes(self.builder, self.builder.fneg(self.value))

    def sum(self) -> Any:
        """The sum of the lanes, always added in the same order, as an LLVM float."""
        total = self.value
        for step in (4, 2, 1):
            order = ir.Constant(INTS, [(lane + step) % WIDTH for lane in range(WIDTH)])
            total = self.builder.fadd(total, self.builder.shuffle_vector(total, total, order))
        return self.builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    @staticmethod
    def sums(eight: list[Lanes]) -> Lanes:
        """The sum of each of eight, always added in the same order."""
        pairs = [left.fold(right) for left, right in zip(eight[::2], eight[1::2], strict=True)]
        low, high = pairs[0].fold(pairs[1]), pairs[2].fold(pairs[3])
        return low.shuffled(high, [0, 1, 2, 3, 8, 9, 10, 11]) + low.shuffled(high, [4, 5, 6, 7, 12, 13, 14, 15])

    def fold(self, other: Lanes) -> Lanes:
        """Sums of neighbours, of self and other in turn within each half of the lanes."""
        return self.shuffled(other, [0, 2, 8, 10, 4, 6, 12, 14]) + self.shuffled(other, [1, 3, 9, 11, 5, 7, 13, 15])

    def shuffled(self, other: Lanes, order: list[int]) -> Lanes:
        """Lanes of self (0 to 7) and other (8 to 15)."""
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, other.value, ir.Constant(INTS, order)))

    def exp2(self) -> Lanes:
        """2 to the power of the lanes, for values in (-127, 0]; relative error below 3e-7."""
        builder = self.builder
        nearest = builder.fptosi((self - self.like(0.5)).value, INTS)
        fraction = self - Lanes(builder, builder.sitofp(nearest, FLOATS))
        result = self.like(EXP2[0])
        for coefficient in EXP2[1:]:
            result = result.times(fraction, self.like(coefficient))
        exponent = builder.add(nearest, ir.Constant(INTS, [127] * WIDTH))
        bits = builder.shl(exponent, ir.Constant(INTS, [23] * WIDTH))
        return result * Lanes(builder, builder.bitcast(bits, FLOATS))


def pointer_of(context: Any, builder: Any, array: Any, kind: Any = VECTOR) -> Any:
    """Where the data of an array argument of an intrinsic begin."""
    return context.make_array(kind)(context, builder, array).data


def _vector_pointer(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), FLOATS.as_pointer())
