"""The kernel that convbench/simd/README.md takes apart: a matrix product of two rows. Nothing else uses it."""

from __future__ import annotations

from convbench.simd.compiler import kernel
from convbench.simd.emit import Emitter
from convbench.simd.target import Target


@kernel
def two_rows(target: Target) -> Emitter:
    """C[m, n] = sum over k of A[m, k] B[k, n], for two rows m and one register of columns n < columns."""
    e = Emitter(target, "two_rows", ("a", "row_a", "b", "row_b", "depth", "c", "row_c", "columns"))
    a, row_a, b, row_b, depth, c, row_c, columns = e.args
    zero = e.splat_constant(0.0)
    with e.loop(depth, [zero, zero, e.pointer(a), e.pointer(b)], name="k") as k:
        top, bottom, a_k, b_k = k.carried
        row = e.load(b_k)
        top = e.fma(e.broadcast(a_k), row, top)
        bottom = e.fma(e.broadcast(e.at(a_k, row_a)), row, bottom)
        k.result = [top, bottom, e.at(a_k, 1), e.at(b_k, row_b)]
    top, bottom, *_ = k.result
    mask = e.mask(columns)
    e.store(top, e.pointer(c), mask)
    e.store(bottom, e.at(e.pointer(c), row_c), mask)
    return e
