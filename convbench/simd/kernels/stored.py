"""Elements as they lie in memory: float32, or float16 that becomes float32 on its way into registers and back.

Conversions are one instruction each where the unit has them (AVX-512, F16C, NEON), otherwise a handful of integer
operations with the same results: every float16 is a float32, and a float32 is rounded to nearest, ties to even;
beyond the largest float16 it becomes infinite, and what is small becomes subnormal.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import F32, I32, Emitter, Value
from convbench.simd.target import Target

I16, F16 = ir.IntType(16), ir.HalfType()
#: Bits of a float32: 2^-14 and 2^16 bound the normal float16, and from infinity on there are NaNs alone.
_LEAST_NORMAL, _BEYOND, _INFINITE = (127 - 14) << 23, (127 + 16) << 23, 255 << 23
#: What the exponents' offsets, 127 and 15, differ by.
_OFFSET = (127 - 15) << 23
#: 0.5: the last bit of its fraction stands for 2^-24, like that of a subnormal float16.
_HALF = 126 << 23

#: to[i row_to + j] = from_[i row_from + j] for i < rows, j < columns. Addresses, counts, row strides in elements.
ARGUMENTS = ("rows", "columns", "from_", "row_from", "to", "row_to")


def element(dtype: str) -> ir.Type:
    """The type of an element in memory: of float16, its bits."""
    return {"float32": F32, "float16": I16}[dtype]


def has_instruction(target: Target) -> bool:
    """Whether float16 and float32 are converted by an instruction."""
    return target.name in ("avx512", "neon") or target.has("f16c")


def load(e: Emitter, dtype: str, pointer: Value, mask: Value | None = None) -> Value:
    """A vector of float32 out of elements of a dtype; lanes that the mask turns off are 0 and not read."""
    if dtype == "float32":
        return e.load(pointer, mask)
    kind = ir.VectorType(I16, e.lanes)
    place = e.b.bitcast(pointer, kind.as_pointer())
    if mask is None:
        return widened(e, e.b.load(place, align=2))
    function = ir.FunctionType(kind, [place.type, I32, mask.type, kind])
    masked = e.declare(f"llvm.masked.load.v{e.lanes}i16.p0", function)
    return widened(e, e.b.call(masked, [place, ir.Constant(I32, 2), mask, ir.Constant(kind, [0] * e.lanes)]))


def store(e: Emitter, dtype: str, value: Value, pointer: Value, mask: Value | None = None) -> None:
    """A vector of float32 into elements of a dtype, rounded to nearest; lanes that the mask turns off stay."""
    if dtype == "float32":
        e.store(value, pointer, mask)
        return
    bits = narrowed(e, value)
    place = e.b.bitcast(pointer, bits.type.as_pointer())
    if mask is None:
        e.b.store(bits, place, align=2)
        return
    function = ir.FunctionType(ir.VoidType(), [bits.type, place.type, I32, mask.type])
    masked = e.declare(f"llvm.masked.store.v{e.lanes}i16.p0", function)
    e.b.call(masked, [bits, place, ir.Constant(I32, 2), mask])


def widened(e: Emitter, bits: Value) -> Value:
    """The float32 values of float16 bits."""
    if has_instruction(e.target):
        return e.b.fpext(e.b.bitcast(bits, ir.VectorType(F16, e.lanes)), e.vector)
    word = e.b.zext(bits, ir.VectorType(I32, e.lanes))
    magnitude = e.b.shl(e.b.and_(word, _all(e, 0x7FFF)), _all(e, 13))
    normal = e.b.add(magnitude, _all(e, _OFFSET))
    shifted = e.b.bitcast(e.b.add(magnitude, _all(e, _LEAST_NORMAL)), e.vector)
    least = e.b.bitcast(_all(e, _LEAST_NORMAL), e.vector)
    subnormal = e.b.bitcast(e.b.fsub(shifted, least), word.type)
    value = e.b.select(e.b.icmp_unsigned("<", magnitude, _all(e, 1 << 23)), subnormal, normal)
    infinite = e.b.icmp_unsigned(">=", magnitude, _all(e, 31 << 23))
    value = e.b.select(infinite, e.b.or_(magnitude, _all(e, _INFINITE)), value)
    sign = e.b.shl(e.b.and_(word, _all(e, 0x8000)), _all(e, 16))
    return e.b.bitcast(e.b.or_(value, sign), e.vector)


def narrowed(e: Emitter, value: Value) -> Value:
    """The bits of float32 values rounded to float16."""
    halves = ir.VectorType(I16, e.lanes)
    if has_instruction(e.target):
        return e.b.bitcast(e.b.fptrunc(value, ir.VectorType(F16, e.lanes)), halves)
    word = e.b.bitcast(value, ir.VectorType(I32, e.lanes))
    magnitude = e.b.and_(word, _all(e, 0x7FFFFFFF))
    odd = e.b.and_(e.b.lshr(magnitude, _all(e, 13)), _all(e, 1))
    normal = e.b.lshr(e.b.sub(e.b.add(magnitude, e.b.add(odd, _all(e, 0xFFF))), _all(e, _OFFSET)), _all(e, 13))
    half = e.b.bitcast(_all(e, _HALF), e.vector)
    sum_ = e.b.bitcast(e.b.fadd(e.b.bitcast(magnitude, e.vector), half), word.type)  # the adder rounds
    subnormal = e.b.sub(sum_, _all(e, _HALF))
    rounded = e.b.select(e.b.icmp_unsigned("<", magnitude, _all(e, _LEAST_NORMAL)), subnormal, normal)
    is_nan = e.b.icmp_unsigned(">", magnitude, _all(e, _INFINITE))
    special = e.b.select(is_nan, _all(e, 0x7E00), _all(e, 0x7C00))
    rounded = e.b.select(e.b.icmp_unsigned(">=", magnitude, _all(e, _BEYOND)), special, rounded)
    sign = e.b.and_(e.b.lshr(word, _all(e, 16)), _all(e, 0x8000))
    return e.b.trunc(e.b.or_(rounded, sign), halves)


def _all(e: Emitter, value: int) -> Value:
    return ir.Constant(ir.VectorType(I32, e.lanes), [value] * e.lanes)


@kernel
def convert(target: Target, source_type: str, result_type: str) -> Emitter:
    """Rows of one dtype copied into rows of another; where both lie without gaps they are copied as one."""
    e = Emitter(target, f"convert_{source_type}_{result_type}_{target.name}", ARGUMENTS)
    rows, columns, source, row_from, to, row_to = e.args
    tight = e.b.and_(e.b.icmp_signed("==", row_from, columns), e.b.icmp_signed("==", row_to, columns))
    length = e.b.select(tight, e.mul(rows, columns), columns)
    with e.loop(e.b.select(tight, e.minimum(rows, 1), rows), name="row") as i:
        line = e.at(e.pointer(source, element(source_type)), e.mul(row_from, i.index))
        out = e.at(e.pointer(to, element(result_type)), e.mul(row_to, i.index))
        done = e.i(0)
        for vectors in (4, 1):
            step = vectors * e.lanes
            count = e.mul(e.b.sdiv(e.sub(length, done), e.i(step)), step)
            with e.loop(count, step=step, name=f"by{vectors}_") as j:
                at = [e.add(done, j.index, v * e.lanes) for v in range(vectors)]
                values = [load(e, source_type, e.at(line, place)) for place in at]
                for value, place in zip(values, at, strict=True):
                    store(e, result_type, value, e.at(out, place))
            done = e.add(done, count)
        with e.loop(e.minimum(e.sub(length, done), 1), name="rest"):
            mask = e.mask(e.sub(length, done))
            store(e, result_type, load(e, source_type, e.at(line, done), mask), e.at(out, done), mask)
    return e
