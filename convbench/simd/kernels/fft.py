"""Two-dimensional real FFTs of small tiles, straight-line code in one dimension, on many channels at once.

A tile of height x width real values has height width / 2 + 2 different frequencies: a real transform along the width,
then along the height a complex one for the columns 1 .. width / 2 - 1 and a real one for the columns 0 and width / 2.
Four frequencies are real. Radix 2, decimation in time, with each twiddle factor folded into fused multiply-adds (six
for a butterfly): Linzer and Feig, "Implementation of Efficient FFT Algorithms on Fused Multiply-Add Architectures",
IEEE Trans. Signal Processing 41 (1993). Inputs known to be zero and outputs that nobody wants cost nothing.

Spectra lie in planes, so that the products per frequency are plain real matrix products. Of a complex frequency
a = a_r + i a_i (data) times b (filter, already conjugated and scaled) there are

    three products   data a_r + a_i, a_r, a_i;   filter b_r, b_i - b_r, b_r + b_i;   result k1 - k3, k1 + k2  (Gauss)
    four products    data a_r, a_i;              filter b_r, b_i;                    result as it is

Order of the frequencies: columns 1 .. width / 2 - 1, `height` rows each; then column 0 and column width / 2, rows
1 .. height / 2 - 1 each; then the four real ones, a plane each: rows 0 and height / 2 of column 0, and of width / 2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convbench.simd.compiler import kernel
from convbench.simd.emit import Emitter, Value
from convbench.simd.target import Target

Complex = tuple[Any, Any]  # real and imaginary vector; None is zero
Size = tuple[int, int]

#: Planes that `forward` writes for a complex frequency.
DATA_3, DATA_4, FILTER_3, FILTER_4 = "data3", "data4", "filter3", "filter4"
PLANES = {DATA_3: 3, DATA_4: 2, FILTER_3: 3, FILTER_4: 2}

#: Data of tile (i, j) at x + 4 (i row + j pixel + channel); zero unless top <= i < bottom and left <= j < right.
#: zeros: a vector of zeros. scratch: `scratch_elements`. v: the first plane; plane: elements from plane to plane.
FORWARD = ("channels", "x", "row", "pixel", "top", "bottom", "left", "right", "zeros", "scratch", "v", "plane")

#: m: the first plane of the products. Results i < rows, j < columns go to y + 4 (i row + j pixel + channel).
#: dump: a vector's place for results that nobody wants.
INVERSE = ("channels", "m", "plane", "scratch", "y", "row", "pixel", "rows", "columns", "dump")

#: c[i, n] = a[i, n] b[n] for i < rows, n < columns: products of a convolution with one channel a group. Rows of all
#: three may be read and written up to the next whole vector.
MULTIPLY = ("rows", "columns", "a", "row_a", "b", "c", "row_c")

#: c[n] (+)= sum over i < rows of a[i, n] b[i, n]; the same for backward weights.
MULTIPLY_SUM = ("rows", "columns", "a", "row_a", "b", "row_b", "c", "accumulate")


def complex_frequencies(size: Size) -> int:
    """Frequencies of a tile that are complex; four more are real."""
    return size[0] * size[1] // 2 - 2


def scratch_elements(size: Size, target: Target) -> int:
    """Elements of scratch for one call: a half-transformed tile of one vector of channels."""
    return (size[0] + 1) * size[1] * target.lanes


class Butterflies:
    """Writes transforms over lists of vectors with an Emitter, and counts the operations."""

    def __init__(self, e: Any) -> None:
        self.e = e

    # ---- arithmetic in which None is zero

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""
        return y if x is None else x if y is None else self.e.fadd(x, y)

    def sub(self, x: Value, y: Value) -> Value:
        """x - y."""
        return self.neg(y) if x is None else x if y is None else self.e.fsub(x, y)

    def neg(self, x: Value) -> Value:
        """-x."""
        return None if x is None else self.e.fneg(x)

    def times(self, factor: float, x: Value, y: Value = None) -> Value:
        """factor x + y."""
        if x is None:
            return y
        constant = self.e.splat_constant(factor)
        return self.e.fmul(constant, x) if y is None else self.e.fma(constant, x, y)

    # ---- transforms, not scaled

    def turned(self, x: Complex, k: int, n: int, sign: int) -> tuple[float, Value, Value]:
        """(factor, u, v) with factor (u + i v) = x exp(sign 2 pi i k / n); the larger of cosine and sine outside."""
        re, im = x
        k %= n
        if k == 0:
            return 1.0, re, im
        if 4 * k == n:
            return float(sign), self.neg(im), re
        c, d = math.cos(2 * math.pi * k / n), sign * math.sin(2 * math.pi * k / n)
        if abs(c) >= abs(d):
            return c, self.times(-d / c, im, re), self.times(d / c, re, im)
        return d, self.times(c / d, re, self.neg(im)), self.times(c / d, im, re)

    def pair(self, x: Complex, y: Complex, k: int, n: int, sign: int) -> tuple[Complex, Complex]:
        """x + y t and x - y t for t = exp(sign 2 pi i k / n)."""
        if 4 * (k % n) == n:  # i y without a negation
            (a, b), (c, d) = x, y
            first, second = (self.sub(a, d), self.add(b, c)), (self.add(a, d), self.sub(b, c))
            return (first, second) if sign > 0 else (second, first)
        factor, u, v = self.turned(y, k, n, sign)
        if factor == 1.0:
            return (self.add(x[0], u), self.add(x[1], v)), (self.sub(x[0], u), self.sub(x[1], v))
        plus = self.times(factor, u, x[0]), self.times(factor, v, x[1])
        return plus, (self.times(-factor, u, x[0]), self.times(-factor, v, x[1]))

    def complex(self, x: Sequence[Complex], sign: int) -> list[Complex]:
        """sum over j of x[j] exp(sign 2 pi i j k / n) for k < n, a power of two."""
        n = len(x)
        if n == 1:
            return list(x)
        even, odd = self.complex(x[::2], sign), self.complex(x[1::2], sign)
        both = [self.pair(a, b, k, n, sign) for k, (a, b) in enumerate(zip(even, odd, strict=True))]
        return [first for first, _ in both] + [second for _, second in both]

    def real(self, x: Sequence[Value]) -> list[Complex]:
        """Frequencies 0 .. n / 2 of real data; the first and the last are real (imaginary part None)."""
        n = len(x)
        if n == 1:
            return [(x[0], None)]
        even, odd = self.real(x[::2]), self.real(x[1::2])
        half = n // 2
        out: list[Complex] = [(None, None)] * (half + 1)
        out[0], out[half] = (self.add(even[0][0], odd[0][0]), None), (self.sub(even[0][0], odd[0][0]), None)
        for k in range(1, (half + 1) // 2):
            factor, u, v = self.turned(odd[k], k, n, -1)
            out[k] = self.times(factor, u, even[k][0]), self.times(factor, v, even[k][1])
            out[half - k] = self.times(-factor, u, even[k][0]), self.times(factor, v, self.neg(even[k][1]))
        if half > 1:
            out[half // 2] = even[half // 2][0], self.neg(odd[half // 2][0])
        return out

    def real_inverse(self, x: Sequence[Complex]) -> list[Value]:
        """The n real values whose frequencies 0 .. n / 2 are given, times n."""
        half = len(x) - 1
        if half == 0:
            return [x[0][0]]
        if half == 1:
            return [self.add(x[0][0], x[1][0]), self.sub(x[0][0], x[1][0])]
        n = 2 * half
        even: list[Complex] = [(self.add(x[0][0], x[half][0]), None)]
        odd: list[Complex] = [(self.sub(x[0][0], x[half][0]), None)]
        for k in range(1, half // 2):
            (a, b), (c, d) = x[k], x[half - k]
            even.append((self.add(a, c), self.sub(b, d)))
            re, im = self.sub(a, c), self.add(b, d)
            cosine, sine = math.cos(2 * math.pi * k / n), math.sin(2 * math.pi * k / n)
            odd.append((self.times(-sine, im, self.times(cosine, re)), self.times(cosine, im, self.times(sine, re))))
        re, im = x[half // 2]
        even.append((self.add(re, re), None))
        odd.append((self.times(-2.0, im), None))
        pairs = zip(self.real_inverse(even), self.real_inverse(odd), strict=True)
        return [value for both in pairs for value in both]


@dataclass(frozen=True, eq=False)
class _Result:
    """A value that is counted instead of computed: operations, and what it is made of."""

    flops: int = 0
    parts: tuple[Any, ...] = ()


class _Counter:
    """Stands in for an Emitter: the same calls, and `total` says what the results that are wanted take."""

    def splat_constant(self, value: float) -> _Result:
        """A constant costs nothing."""
        return _Result()

    def fneg(self, x: _Result) -> _Result:
        """A sign costs nothing."""
        return _Result(0, (x,))

    def fadd(self, x: _Result, y: _Result) -> _Result:
        """One operation."""
        return _Result(1, (x, y))

    fsub = fmul = fadd

    def fma(self, x: _Result, y: _Result, z: _Result) -> _Result:
        """Two operations."""
        return _Result(2, (x, y, z))

    @staticmethod
    def total(wanted: Sequence[Any]) -> int:
        """Operations that the wanted results need, each value once."""
        seen: set[_Result] = set()
        waiting = [value for value in wanted if value is not None]
        while waiting:
            value = waiting.pop()
            if value not in seen:
                seen.add(value)
                waiting.extend(value.parts)
        return sum(value.flops for value in seen)


@functools.cache
def forward_operations(size: Size, used: Size) -> int:
    """Floating-point operations of a forward transform for one channel; a fused multiply-add counts as two."""
    (height, width), count = size, Butterflies(_Counter())
    row = count.real([_Result() if j < used[1] else None for j in range(width)])
    edge = count.real([_Result() if i < used[0] else None for i in range(height)])
    column = count.complex([(_Result(), _Result()) if i < used[0] else (None, None) for i in range(height)], -1)
    each = [_Counter.total([part for value in values for part in value]) for values in (row, edge, column)]
    return used[0] * each[0] + 2 * each[1] + (width // 2 - 1) * each[2]


@functools.cache
def inverse_operations(size: Size, kept: Size) -> int:
    """The same for an inverse transform whose first `kept` rows and columns are wanted."""
    (height, width), count = size, Butterflies(_Counter())

    def halves(length: int) -> list[Complex]:
        ends = [(_Result(), None)]
        return [*ends, *[(_Result(), _Result()) for _ in range(length // 2 - 1)], *ends]

    edge = _Counter.total(count.real_inverse(halves(height))[: kept[0]])
    found = count.complex([(_Result(), _Result()) for _ in range(height)], 1)[: kept[0]]
    column = _Counter.total([part for value in found for part in value])
    row = _Counter.total(count.real_inverse(halves(width))[: kept[1]])
    return 2 * edge + (width // 2 - 1) * column + kept[0] * row


@kernel
def forward(target: Target, size: Size, used: Size, planes: str) -> Emitter:
    """Transforms tiles of `size` whose values beyond the first `used` rows and columns are zero.

    Whole vectors are written to each plane: a row of a plane ends at a multiple of the lanes. Where masks are not
    free, whole vectors of channels are read as well, and the caller sees to it that they are there.
    """
    e = Emitter(target, f"fft_{planes}_{target.name}_{size[0]}x{size[1]}_{used[0]}x{used[1]}", FORWARD)
    channels, x, row, pixel, top, bottom, left, right, zeros, scratch, v, plane = e.args
    height, width = size
    nothing, half = e.pointer(zeros), e.pointer(scratch)
    part = (height + 1) * e.lanes  # from one part of a column's values to the next
    with e.loop(channels, step=e.lanes, name="channel") as c:
        mask = e.mask(e.sub(channels, c.index)) if target.free_masks else None
        with e.loop(e.i(used[0]), name="row") as i:
            inside = e.b.icmp_unsigned("<", e.sub(i.index, top), e.sub(bottom, top))
            count = e.b.select(inside, e.sub(right, left), e.i(0))
            at = e.at(e.pointer(x), e.mul(i.index, row), c.index)
            values: list[Value] = []
            for j in range(used[1]):
                there = e.b.icmp_unsigned("<", e.sub(j, left), count)
                values.append(e.load(e.b.select(there, at, nothing), mask))
                at = e.at(at, pixel)
            frequencies = Butterflies(e).real([*values, *[None] * (width - used[1])])
            to = e.at(half, e.mul(i.index, e.lanes))
            _store_halves(e, frequencies, to, part)
        base = e.at(e.pointer(v), c.index)
        _columns(e, size, used[0], planes, half, base, plane)
    return e


def _store_halves(e: Emitter, frequencies: Sequence[Complex], to: Value, part: int) -> None:
    """A half-transformed row: parts 0 and 1 are the real frequencies 0 and n / 2, 2 u and 2 u + 1 frequency u."""
    last = len(frequencies) - 1
    for u, (re, im) in enumerate(frequencies):
        zero = e.splat_constant(0.0)
        e.store(zero if re is None else re, e.at(to, (1 if u == last else 2 * u) * part))
        if 0 < u < last:
            e.store(zero if im is None else im, e.at(to, (2 * u + 1) * part))


def _columns(e: Emitter, size: Size, used: int, planes: str, half: Value, base: Value, plane: Value) -> None:
    """Second half of the forward transform, along the height, into the planes."""
    height, width = size
    each = PLANES[planes]
    part = (height + 1) * e.lanes
    unused = height - used
    last = e.at(base, e.mul(plane, each * complex_frequencies(size)))  # the planes of the real frequencies
    scale = 1.0 / (height * width)

    def put(value: Complex, to: Value, step: int) -> None:
        for index, piece in enumerate(_pieces(e, value, planes, scale)):
            e.store(piece, e.at(to, e.mul(plane, step + index)))

    with e.loop(e.i(2), name="edge") as column:
        at = e.at(half, e.mul(column.index, part))
        values: list[Value] = [e.load(e.at(at, i * e.lanes)) for i in range(used)]
        found = Butterflies(e).real([*values, *[None] * unused])
        first = (width // 2 - 1) * height
        to = e.at(base, e.mul(plane, e.add(first * each, e.mul(column.index, (height // 2 - 1) * each))))
        for k in range(1, height // 2):
            put(found[k], to, (k - 1) * each)
        to = e.at(last, e.mul(plane, e.mul(column.index, 2)))
        for index, k in enumerate((0, height // 2)):
            value = found[k][0]
            if planes in (FILTER_3, FILTER_4):
                value = e.fmul(e.splat_constant(scale), value)
            e.store(value, e.at(to, e.mul(plane, index)))
    with e.loop(e.i(width // 2 - 1), name="column") as column:
        at = e.at(half, e.mul(e.add(column.index, 1), 2 * part))
        both: list[Complex] = [
            (e.load(e.at(at, i * e.lanes)), e.load(e.at(at, part + i * e.lanes))) for i in range(used)
        ]
        found = Butterflies(e).complex([*both, *[(None, None)] * unused], -1)
        to = e.at(base, e.mul(plane, e.mul(column.index, height * each)))
        for k, value in enumerate(found):
            put(value, to, k * each)


def _pieces(e: Emitter, value: Complex, planes: str, scale: float) -> list[Value]:
    """What the planes hold of one complex frequency; filters are conjugated and scaled."""
    zero = e.splat_constant(0.0)
    re, im = (zero if part is None else part for part in value)
    if planes == DATA_3:
        return [e.fadd(re, im), re, im]
    if planes == DATA_4:
        return [re, im]
    factor, minus = e.splat_constant(scale), e.splat_constant(-scale)
    if planes == FILTER_4:
        return [e.fmul(factor, re), e.fmul(minus, im)]
    return [e.fmul(factor, re), e.fmul(minus, e.fadd(im, re)), e.fmul(factor, e.fsub(re, im))]


@kernel
def inverse(target: Target, size: Size, kept: Size, products: int) -> Emitter:
    """The first `kept` rows and columns of the tile whose spectrum is in planes of three or four products.

    Where masks are not free, whole vectors of channels are written, and the caller sees to it that there is room.
    """
    e = Emitter(target, f"fft_inverse{products}_{target.name}_{size[0]}x{size[1]}_{kept[0]}x{kept[1]}", INVERSE)
    channels, m, plane, scratch, y, row, pixel, rows, columns, dump = e.args
    height, width = size
    each = 3 if products == 3 else 2
    half, waste = e.pointer(scratch), e.pointer(dump)
    part = (height + 1) * e.lanes

    def get(at: Value, step: int) -> Complex:
        pieces = [e.load(e.at(at, e.mul(plane, step + index))) for index in range(each)]
        if products == 4:
            return pieces[0], pieces[1]
        return e.fsub(pieces[0], pieces[2]), e.fadd(pieces[0], pieces[1])

    with e.loop(channels, step=e.lanes, name="channel") as c:
        mask = e.mask(e.sub(channels, c.index)) if target.free_masks else None
        base = e.at(e.pointer(m), c.index)
        last = e.at(base, e.mul(plane, each * complex_frequencies(size)))
        with e.loop(e.i(2), name="edge") as column:
            first = (width // 2 - 1) * height
            at = e.at(base, e.mul(plane, e.add(first * each, e.mul(column.index, (height // 2 - 1) * each))))
            ends = [e.load(e.at(last, e.mul(plane, e.add(e.mul(column.index, 2), index)))) for index in range(2)]
            middle = [get(at, (k - 1) * each) for k in range(1, height // 2)]
            values = Butterflies(e).real_inverse([(ends[0], None), *middle, (ends[1], None)])
            to = e.at(half, e.mul(column.index, part))
            for i in range(kept[0]):
                e.store(values[i], e.at(to, i * e.lanes))
        with e.loop(e.i(width // 2 - 1), name="column") as column:
            at = e.at(base, e.mul(plane, e.mul(column.index, height * each)))
            found = Butterflies(e).complex([get(at, k * each) for k in range(height)], 1)
            to = e.at(half, e.mul(e.add(column.index, 1), 2 * part))
            for i in range(kept[0]):
                e.store(found[i][0], e.at(to, i * e.lanes))
                e.store(found[i][1], e.at(to, part + i * e.lanes))
        with e.loop(rows, name="row") as line:
            at = e.at(half, e.mul(line.index, e.lanes))
            pairs: list[Complex] = [(e.load(at), None)]
            for u in range(1, width // 2):
                pairs.append((e.load(e.at(at, 2 * u * part)), e.load(e.at(at, (2 * u + 1) * part))))
            pairs.append((e.load(e.at(at, part)), None))
            results = Butterflies(e).real_inverse(pairs)
            to = e.at(e.pointer(y), e.mul(line.index, row), c.index)
            for j in range(kept[1]):
                e.store(results[j], e.b.select(e.less(j, columns), to, waste), mask)
                to = e.at(to, pixel)
    return e


@kernel
def multiply(target: Target) -> Emitter:
    """The products of a frequency where each channel has a filter of its own."""
    e = Emitter(target, f"fft_multiply_{target.name}", MULTIPLY)
    rows, columns, a, row_a, b, c, row_c = e.args
    with e.loop(columns, step=e.lanes, name="column") as n:
        factor = e.load(e.at(e.pointer(b), n.index))
        with e.loop(rows, name="row") as i:
            value = e.load(e.at(e.pointer(a), e.mul(i.index, row_a), n.index))
            e.store(e.fmul(value, factor), e.at(e.pointer(c), e.mul(i.index, row_c), n.index))
    return e


@kernel
def multiply_sum(target: Target) -> Emitter:
    """The products of a frequency, summed over tiles, where each channel has a filter of its own."""
    e = Emitter(target, f"fft_multiply_sum_{target.name}", MULTIPLY_SUM)
    rows, columns, a, row_a, b, row_b, c, accumulate = e.args
    with e.loop(columns, step=e.lanes, name="column") as n:
        to = e.at(e.pointer(c), n.index)
        start = e.choose(
            e.b.icmp_signed("!=", accumulate, e.i(0)), lambda to=to: [e.load(to)], lambda: [e.splat_constant(0.0)]
        )
        with e.loop(rows, start, name="row") as i:
            x = e.load(e.at(e.pointer(a), e.mul(i.index, row_a), n.index))
            y = e.load(e.at(e.pointer(b), e.mul(i.index, row_b), n.index))
            i.result = [e.fma(x, y, i.carried[0])]
        e.store(i.result[0], to)
    return e
