"""Complex matrix products of tiled FFT convolution, over separate planes of real and imaginary parts.

C[m, n] (+)= sum over k of A[m, k] B[k, n], all complex, four real multiply-adds each. Real and imaginary sums stay in
registers together, so each element of A and B is loaded once for two of them: fewer loads for the same operations
than a real matrix product has. Meanwhile the B of the product that comes next is fetched into the cache: where few
tiles share a filter, reading its spectra is what the time goes to.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I8, I32, Emitter, Value
from convbench.simd.target import Target

#: rows, columns of C. Addresses of the real parts; *_imaginary: elements from there to the imaginary parts. row_*:
#: strides; step_a: from k to k + 1 in A. ahead: where the next B begins (laid out as this one, read only into the
#: cache, so it need not exist). accumulate: 0 writes, 1 adds.
ARGUMENTS = (
    "rows", "columns", "a", "row_a", "step_a", "a_imaginary", "b", "row_b", "b_imaginary", "depth", "c", "row_c",
    "c_imaginary", "ahead", "accumulate",
)  # fmt: skip


def rows_for(target: Target, vectors: int) -> int:
    """Rows of C whose complex sums fit the registers beside B's two parts, two values of A and one to spare."""
    return max(1, min(12, (target.registers - 2 * vectors - 3) // (2 * vectors)))


@kernel
def complex_product(target: Target, vectors: int, masked: bool) -> Emitter:
    """For blocks of up to `rows_for` rows and `vectors` registers of columns.

    masked: B is read under the mask of the columns. Otherwise its rows are read whole: panels, padded.
    """
    name = f"fft_product_{target.name}_{vectors}{'_masked' if masked else ''}"
    e = Emitter(target, name, ARGUMENTS)
    masks = [e.mask(e.sub(e.args[1], v * e.lanes)) for v in range(vectors)]
    with e.cases(e.args[0], range(1, rows_for(target, vectors) + 1)) as each:
        for rows in each:
            _block(e, rows, masks, masked)
    return e


def _block(e: Emitter, rows: int, masks: list[Value], masked: bool) -> None:
    (_, columns, a, row_a, step_a, a_im, b, row_b, b_im, depth, c, row_c, c_im, ahead, accumulate) = e.args
    vectors = len(masks)
    outputs = [e.at(e.pointer(c), e.mul(row_c, m)) for m in range(rows)]
    places = [
        (e.at(at, v * e.lanes), masks[v]) for part in (0, c_im) for at in (e.at(o, part) for o in outputs)
        for v in range(vectors)
    ]  # fmt: skip
    zeros = [e.splat_constant(0.0)] * len(places)
    start = e.choose(
        e.b.icmp_signed("!=", accumulate, e.i(0)), lambda: [e.load(at, mask) for at, mask in places], lambda: zeros
    )
    half = rows * vectors
    with e.loop(depth, [*start, e.pointer(a), e.pointer(b), e.pointer(ahead)], name="k") as k:
        *sums, a_k, b_k, next_k = k.carried
        b_re, b_imag = (
            [e.load(e.at(b_k, part, v * e.lanes), masks[v] if masked else None) for v in range(vectors)]
            for part in (0, b_im)
        )
        for v in range(vectors):
            _prefetch(e, e.at(next_k, v * e.lanes))
            _prefetch(e, e.at(next_k, b_im, v * e.lanes))
        for m in range(rows):
            re, im = (e.broadcast(e.at(a_k, e.mul(row_a, m), part)) for part in (0, a_im))
            minus = e.fneg(im)  # folded into the multiply-add
            for v in range(vectors):
                at = m * vectors + v
                sums[at] = e.fma(re, b_re[v], sums[at])
                sums[half + at] = e.fma(re, b_imag[v], sums[half + at])
            for v in range(vectors):
                at = m * vectors + v
                sums[at] = e.fma(minus, b_imag[v], sums[at])
                sums[half + at] = e.fma(im, b_re[v], sums[half + at])
        k.result = [*sums, e.at(a_k, step_a), e.at(b_k, row_b), e.at(next_k, row_b)]

    def write(under_mask: bool) -> list[Value]:
        for (at, mask), value in zip(places, k.result, strict=False):
            e.store(value, at, mask if under_mask else None)
        return []

    if e.target.free_masks:
        write(True)
    else:
        full = e.b.icmp_signed(">=", columns, e.i(vectors * e.lanes))
        e.choose(full, lambda: write(False), lambda: write(True))


def _prefetch(e: Emitter, pointer: Value) -> None:
    """Fetches a line into the first-level cache, if the address exists."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    place = e.b.bitcast(pointer, I8.as_pointer())
    words = [ir.Constant(I32, value) for value in (0, 3, 1)]  # to read, near, data
    e.b.call(e.declare("llvm.prefetch.p0", kind), [place, *words])
