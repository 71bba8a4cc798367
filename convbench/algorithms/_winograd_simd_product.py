"""The product of Winograd convolution at one frequency: all tiles of a block times one panel of the filter.

C[m, n] (+)= sum over k: A[m, k] B[k, n], for a panel of B that is whole (zeros beyond its columns), so nothing is
masked. While it multiplies, it asks for the panel that comes next: a filter beyond the second-level cache would
otherwise be waited for at every panel.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I32, Emitter, Value
from convbench.simd.kernels.gemm import Shape
from convbench.simd.target import Target

#: blocks times `rows` rows of A. a, b, c, ahead: addresses; row_a, row_c: strides in elements; depth: length of k;
#: accumulate: 0 writes, 1 adds to what C holds; first: number of the first block, of those that share `ahead`.
ARGUMENTS = ("rows", "blocks", "a", "row_a", "b", "depth", "c", "row_c", "accumulate", "ahead", "first")
LINE = 16


@kernel
def panel_product(target: Target, shape: Shape, lines: int) -> Emitter:
    """The kernel; B is [depth][shape.columns]. lines: asked for ahead in each step of k (0: nothing is)."""
    e = Emitter(target, f"panel_product_{target.name}_{shape.rows}x{shape.vectors}_{lines}", ARGUMENTS)
    with e.cases(e.args[0], range(1, shape.rows + 1)) as each:
        for rows in each:
            with e.loop(e.args[1], name="block") as block:
                _block(e, rows, shape, lines, block.index)
    return e


def _block(e: Emitter, rows: int, shape: Shape, lines: int, block: Value) -> None:
    _, _, a, row_a, b, depth, c, row_c, accumulate, ahead, first = e.args
    vectors, lanes = shape.vectors, e.lanes
    a_rows = e.at(e.pointer(a), e.mul(e.mul(block, rows), row_a))
    c_first = e.at(e.pointer(c), e.mul(e.mul(block, rows), row_c))
    c_rows = [e.at(c_first, e.mul(row_c, m)) for m in range(rows)]

    def zeros() -> list[Value]:
        return [e.splat_constant(0.0)] * (rows * vectors)

    def held() -> list[Value]:
        return [e.load(e.at(c_rows[m], v * lanes)) for m in range(rows) for v in range(vectors)]

    sums = e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), held, zeros)
    number = e.add(first, block)
    wanted = e.less(e.mul(number, lines * LINE), shape.vectors * lanes)  # the panel is asked for once
    step_ahead = e.b.select(wanted, e.i(lines * LINE), e.i(0))
    start = e.at(e.pointer(ahead), e.b.select(wanted, e.mul(e.mul(number, depth), lines * LINE), e.i(0)))

    def step(state: list[Value]) -> list[Value]:
        *acc, a_k, b_k, next_k = state
        for line in range(lines):
            _prefetch(e, e.at(next_k, line * LINE))
        columns_b = [e.load(e.at(b_k, v * lanes)) for v in range(vectors)]
        for m in range(rows):
            value = e.broadcast(e.at(a_k, e.mul(row_a, m)))
            for v in range(vectors):
                acc[m * vectors + v] = e.fma(value, columns_b[v], acc[m * vectors + v])
        return [*acc, e.at(a_k, 1), e.at(b_k, vectors * lanes), e.at(next_k, step_ahead)]

    state = [*sums, a_rows, e.pointer(b), start]
    for steps in dict.fromkeys((shape.unroll, 1)):
        turns = e.b.sdiv(depth, e.i(steps)) if steps > 1 else depth
        if steps == 1 and shape.unroll > 1:
            turns = e.b.srem(depth, e.i(shape.unroll))
        with e.loop(turns, state, name=f"k{steps}_") as k:
            k.result = k.carried
            for _ in range(steps):
                k.result = step(k.result)
        state = k.result
    for i, value in enumerate(state[:-3]):
        m, v = divmod(i, vectors)
        e.store(value, e.at(c_rows[m], v * lanes))


def _prefetch(e: Emitter, pointer: Value) -> None:
    """Asks for the cache line in the second level; an address that is no memory does no harm."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    call = e.declare("llvm.prefetch.p0", kind)
    e.b.call(call, [pointer, *(ir.Constant(I32, value) for value in (0, 2, 1))])
