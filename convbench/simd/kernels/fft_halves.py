"""The halves of a tile's FFT as kernels of their own, for tiles above each other that share their rows' transforms.

A row's frequencies lie `width` parts apart: parts 0 and 1 are the real frequencies 0 and width / 2, parts 2 u and
2 u + 1 the real and imaginary part of frequency u. A column (both edges together count as one) then has a slab of
planes: `height` complex frequencies, or of the edges twice height / 2 - 1 complex and four real ones. The order of
frequencies, what the planes hold, and the transforms themselves: `fft.py`.
"""

from __future__ import annotations

from convbench.simd.compiler import kernel
from convbench.simd.emit import Emitter
from convbench.simd.kernels import fft
from convbench.simd.kernels.butterflies import Butterflies, Complex
from convbench.simd.target import Target

#: Value j of the row at x + 4 (j pixel + channel); zero unless left <= j < right. zeros: a vector of zeros. Part i
#: goes to half + 4 (i part + channel).
ROW = ("channels", "x", "pixel", "left", "right", "zeros", "half", "part")

#: edge: 0 for a complex column, 1 for both edges. Its value in row i is at half + 4 (i row + channel), imaginary part
#: (other edge) `part` elements on. v: the first plane of its slab; plane: elements from plane to plane.
COLUMN = ("channels", "edge", "half", "row", "part", "v", "plane")

#: The same, reversed; m: the first plane of the products' slab.
COLUMN_INVERSE = ("channels", "edge", "m", "plane", "half", "row", "part")

#: Results j < columns go to y + 4 (j pixel + channel). dump: a vector's place for results that nobody wants.
ROW_INVERSE = ("channels", "half", "part", "y", "pixel", "columns", "dump")


@kernel
def row(target: Target, width: int, used: int) -> Emitter:
    """Transforms rows whose values beyond the first `used` are zero. Whole vectors are written, and where masks are
    not free read: the caller sees to it that they are there."""
    e = Emitter(target, f"fft_row_{target.name}_{width}_{used}", ROW)
    channels, x, pixel, left, right, zeros, half, part = e.args
    nothing, count = e.pointer(zeros), e.sub(right, left)
    with e.loop(channels, step=e.lanes, name="channel") as c:
        mask = e.mask(e.sub(channels, c.index)) if target.free_masks else None
        at, values = e.at(e.pointer(x), c.index), []
        for j in range(used):
            there = e.b.icmp_unsigned("<", e.sub(j, left), count)
            values.append(e.load(e.b.select(there, at, nothing), mask))
            at = e.at(at, pixel)
        found = Butterflies(e).real([*values, *[None] * (width - used)])
        zero = e.splat_constant(0.0)
        ordered = [found[0][0], found[-1][0], *[piece for value in found[1:-1] for piece in value]]
        to = e.at(e.pointer(half), c.index)
        for piece in ordered:
            e.store(zero if piece is None else piece, to)
            to = e.at(to, part)
    return e


@kernel
def column(target: Target, size: fft.Size, planes: str) -> Emitter:
    """One column of a tile of which all rows are there, for all channels."""
    e = Emitter(target, f"fft_column_{planes}_{target.name}_{size[0]}x{size[1]}", COLUMN)
    channels, edge, half, row, part, v, plane = e.args
    height = size[0]
    with e.cases(edge, (0, 1)) as each:
        for is_edge in each:
            with e.loop(channels, step=e.lanes, name="channel") as c:
                at, to = e.at(e.pointer(half), c.index), e.at(e.pointer(v), c.index)
                if not is_edge:
                    values: list[Complex] = []
                    for _ in range(height):
                        values.append((e.load(at), e.load(e.at(at, part))))
                        at = e.at(at, row)
                    fft.complex_column(e, size, values, planes, to, plane)
                    continue
                last = e.at(to, e.mul(plane, fft.PLANES[planes] * (height - 2)))
                with e.loop(e.i(2), name="edge") as side:
                    start = e.at(at, e.mul(side.index, part))
                    real = [e.load(e.at(start, e.mul(row, i))) for i in range(height)]
                    fft.real_column(e, size, real, planes, side.index, to, last, plane)
    return e


@kernel
def column_inverse(target: Target, size: fft.Size, kept: int, products: int) -> Emitter:
    """The first `kept` rows of one column, for all channels; whole vectors are written."""
    e = Emitter(target, f"fft_column_inverse{products}_{target.name}_{size[0]}x{size[1]}_{kept}", COLUMN_INVERSE)
    channels, edge, m, plane, half, row, part = e.args
    height = size[0]
    with e.cases(edge, (0, 1)) as each:
        for is_edge in each:
            with e.loop(channels, step=e.lanes, name="channel") as c:
                at, to = e.at(e.pointer(m), c.index), e.at(e.pointer(half), c.index)
                if not is_edge:
                    for re, im in fft.complex_column_inverse(e, height, products, at, plane)[:kept]:
                        e.store(re, to)
                        e.store(im, e.at(to, part))
                        to = e.at(to, row)
                    continue
                last = e.at(at, e.mul(plane, (3 if products == 3 else 2) * (height - 2)))
                with e.loop(e.i(2), name="edge") as side:
                    start = e.at(to, e.mul(side.index, part))
                    values = fft.real_column_inverse(e, height, products, side.index, at, last, plane)
                    for i in range(kept):
                        e.store(values[i], e.at(start, e.mul(row, i)))
    return e


@kernel
def row_inverse(target: Target, width: int, kept: int) -> Emitter:
    """The first `kept` values of rows. Where masks are not free, whole vectors of channels are written, and the caller
    sees to it that there is room."""
    e = Emitter(target, f"fft_row_inverse_{target.name}_{width}_{kept}", ROW_INVERSE)
    channels, half, part, y, pixel, columns, dump = e.args
    waste = e.pointer(dump)
    with e.loop(channels, step=e.lanes, name="channel") as c:
        mask = e.mask(e.sub(channels, c.index)) if target.free_masks else None
        at, parts = e.at(e.pointer(half), c.index), []
        for _ in range(width):
            parts.append(e.load(at))
            at = e.at(at, part)
        middle = [(parts[2 * u], parts[2 * u + 1]) for u in range(1, width // 2)]
        results = Butterflies(e).real_inverse([(parts[0], None), *middle, (parts[1], None)], width)
        to = e.at(e.pointer(y), c.index)
        for j in range(kept):
            e.store(results[j], e.b.select(e.less(j, columns), to, waste), mask)
            to = e.at(to, pixel)
    return e
