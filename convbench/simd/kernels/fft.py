"""Two-dimensional real FFTs of small tiles, straight-line code in one dimension, on many channels at once.

A tile of height x width real values has height width / 2 + 2 different frequencies: a real transform along the width,
then along the height a complex one for the columns 1 .. width / 2 - 1 and a real one for the columns 0 and width / 2.
Four frequencies are real. Height and width are even.

Spectra lie in planes, so that the products per frequency are plain real matrix products. Of a complex frequency
a = a_r + i a_i (data) times b (filter, already conjugated and scaled) there are

    three products   data a_r + a_i, a_r, a_i;   filter b_r, b_i - b_r, b_r + b_i;   result k1 - k3, k1 + k2  (Gauss)
    four products    data a_r, a_i;              filter b_r, b_i;                    result as it is

Order of the frequencies: columns 1 .. width / 2 - 1, `height` rows each; then column 0 and column width / 2, rows
1 .. height / 2 - 1 each; then the four real ones, a plane each: rows 0 and height / 2 of column 0, and of width / 2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from convbench.simd.compiler import kernel
from convbench.simd.emit import Emitter, Value
from convbench.simd.kernels.butterflies import Butterflies, Complex, Counter, Result
from convbench.simd.target import Target

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


@functools.cache
def row_operations(width: int, used: int) -> int:
    """Floating-point operations of a row's forward transform for one channel; a fused multiply-add counts as two."""
    return _total(Butterflies(Counter()).real([Result() if j < used else None for j in range(width)]))


@functools.cache
def column_operations(size: Size, used: int) -> int:
    """The same for all columns of a tile."""
    height, count = size[0], Butterflies(Counter())
    edge = _total(count.real([Result() if i < used else None for i in range(height)]))
    inner = _total(count.complex([(Result(), Result()) if i < used else (None, None) for i in range(height)], -1))
    return 2 * edge + (size[1] // 2 - 1) * inner


def forward_operations(size: Size, used: Size) -> int:
    """The same for a tile."""
    return used[0] * row_operations(size[1], used[1]) + column_operations(size, used[0])


@functools.cache
def row_inverse_operations(width: int, kept: int) -> int:
    """The same for a row's inverse transform whose first `kept` results are wanted."""
    found = Butterflies(Counter()).real_inverse(_frequencies(width), width)
    return Counter.total(found[:kept])


@functools.cache
def column_inverse_operations(size: Size, kept: int) -> int:
    """The same for all columns of a tile."""
    height, count = size[0], Butterflies(Counter())
    edge = Counter.total(count.real_inverse(_frequencies(height), height)[:kept])
    inner = _total(count.complex([(Result(), Result()) for _ in range(height)], 1)[:kept])
    return 2 * edge + (size[1] // 2 - 1) * inner


def inverse_operations(size: Size, kept: Size) -> int:
    """The same for a tile."""
    return column_inverse_operations(size, kept[0]) + kept[0] * row_inverse_operations(size[1], kept[1])


def _frequencies(length: int) -> list[Complex]:
    ends = [(Result(), None)]
    return [*ends, *[(Result(), Result()) for _ in range(length // 2 - 1)], *ends]


def _total(values: Sequence[Complex]) -> int:
    return Counter.total([part for value in values for part in value])


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
    last = e.at(base, e.mul(plane, each * complex_frequencies(size)))  # the planes of the real frequencies
    with e.loop(e.i(2), name="edge") as column:
        at = e.at(half, e.mul(column.index, part))
        values = [e.load(e.at(at, i * e.lanes)) for i in range(used)]
        first = e.at(base, e.mul(plane, (width // 2 - 1) * height * each))
        real_column(e, size, values, planes, column.index, first, last, plane)
    with e.loop(e.i(width // 2 - 1), name="column") as column:
        at = e.at(half, e.mul(e.add(column.index, 1), 2 * part))
        both = [(e.load(e.at(at, i * e.lanes)), e.load(e.at(at, part + i * e.lanes))) for i in range(used)]
        complex_column(e, size, both, planes, e.at(base, e.mul(plane, e.mul(column.index, height * each))), plane)


def real_column(
    e: Emitter, size: Size, values: Sequence[Value], planes: str, column: Value, first: Value, last: Value, plane: Value
) -> None:
    """Column 0 (column = 0) or width / 2 (1) into the planes from `first` on, its real frequencies from `last` on."""
    height, each, scale = size[0], PLANES[planes], 1.0 / (size[0] * size[1])
    found = Butterflies(e).real([*values, *[None] * (height - len(values))])
    to = e.at(first, e.mul(plane, e.mul(column, (height // 2 - 1) * each)))
    for k in range(1, height // 2):
        for index, piece in enumerate(_pieces(e, found[k], planes, scale)):
            e.store(piece, e.at(to, e.mul(plane, (k - 1) * each + index)))
    to = e.at(last, e.mul(plane, e.mul(column, 2)))
    for index, k in enumerate((0, height // 2)):
        value = found[k][0]
        if planes in (FILTER_3, FILTER_4):
            value = e.fmul(e.splat_constant(scale), value)
        e.store(value, e.at(to, e.mul(plane, index)))


def complex_column(e: Emitter, size: Size, values: Sequence[Complex], planes: str, to: Value, plane: Value) -> None:
    """Any other column into the planes from `to` on."""
    each, scale = PLANES[planes], 1.0 / (size[0] * size[1])
    found = Butterflies(e).complex([*values, *[(None, None)] * (size[0] - len(values))], -1)
    for k, value in enumerate(found):
        for index, piece in enumerate(_pieces(e, value, planes, scale)):
            e.store(piece, e.at(to, e.mul(plane, k * each + index)))


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

    with e.loop(channels, step=e.lanes, name="channel") as c:
        mask = e.mask(e.sub(channels, c.index)) if target.free_masks else None
        base = e.at(e.pointer(m), c.index)
        last = e.at(base, e.mul(plane, each * complex_frequencies(size)))
        with e.loop(e.i(2), name="edge") as column:
            first = e.at(base, e.mul(plane, (width // 2 - 1) * height * each))
            values = real_column_inverse(e, height, products, column.index, first, last, plane)
            to = e.at(half, e.mul(column.index, part))
            for i in range(kept[0]):
                e.store(values[i], e.at(to, i * e.lanes))
        with e.loop(e.i(width // 2 - 1), name="column") as column:
            at = e.at(base, e.mul(plane, e.mul(column.index, height * each)))
            found = complex_column_inverse(e, height, products, at, plane)
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
            results = Butterflies(e).real_inverse(pairs, width)
            to = e.at(e.pointer(y), e.mul(line.index, row), c.index)
            for j in range(kept[1]):
                e.store(results[j], e.b.select(e.less(j, columns), to, waste), mask)
                to = e.at(to, pixel)
    return e


def _product(e: Emitter, products: int, at: Value, k: int, plane: Value) -> Complex:
    """A complex frequency, the k-th one of those in the planes from `at` on, out of three or two planes."""
    each = 3 if products == 3 else 2
    pieces = [e.load(e.at(at, e.mul(plane, each * k + index))) for index in range(each)]
    if products == 4:
        return pieces[0], pieces[1]
    return e.fsub(pieces[0], pieces[2]), e.fadd(pieces[0], pieces[1])


def real_column_inverse(
    e: Emitter, height: int, products: int, column: Value, first: Value, last: Value, plane: Value
) -> list[Value]:
    """The reverse of `real_column`."""
    each = 3 if products == 3 else 2
    at = e.at(first, e.mul(plane, e.mul(column, (height // 2 - 1) * each)))
    ends = [e.load(e.at(last, e.mul(plane, e.add(e.mul(column, 2), index)))) for index in range(2)]
    middle = [_product(e, products, at, k, plane) for k in range(height // 2 - 1)]
    return Butterflies(e).real_inverse([(ends[0], None), *middle, (ends[1], None)], height)


def complex_column_inverse(e: Emitter, height: int, products: int, at: Value, plane: Value) -> list[Complex]:
    """The reverse of `complex_column`."""
    return Butterflies(e).complex([_product(e, products, at, k, plane) for k in range(height)], 1)


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
