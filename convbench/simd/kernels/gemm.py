"""brgemm: the batch-reduce matrix product that direct, 1x1, Winograd and FFT convolution are all made of.

C[m, n] (+)= sum over segments s, sum over k:  A[a(s) + m row_a + k step_a] * B[b(s) + k row_b + n]

for m < rows, n < columns; rows <= Shape.rows, columns <= Shape.columns. The accumulators, Shape.rows x Shape.vectors
registers, stay there through the whole reduction. Georganas et al., "High-Performance Deep Learning via a Single
Building Block", arXiv 1906.06440.
"""

from __future__ import annotations

from dataclasses import dataclass

from convbench.simd.compiler import kernel
from convbench.simd.emit import I64, Emitter, Value
from convbench.simd.target import Target

#: rows, columns: of this block. a, b, c: addresses. row_a, step_a, row_b, row_c: strides in elements.
#: segments: address of `count` pairs (offset into a, offset into b), in elements. depth: length of k in each segment.
#: accumulate: 0 writes, 1 adds to what C holds.
ARGUMENTS = (
    "rows", "columns", "a", "row_a", "step_a", "b", "row_b", "segments", "count", "depth", "c", "row_c", "accumulate",
)  # fmt: skip


#: Speed with 1, 2, 3 and 4 registers of B, relative to the best: 9 x 3 and 6 x 4 blocks with two steps of k a turn
#: ran at 195 GFLOP/s where the multiply-add peak was 214 and 14 x 2 blocks reached 183, 14 x 1 149 (1 thread of a Xeon
#: with AVX-512, 2026-11).
EFFICIENCY = {1: 0.75, 2: 0.94, 3: 1.0, 4: 0.99}


@dataclass(frozen=True)
class Shape:
    """The largest block: rows of A, vectors of B's columns beside each other; unroll: steps of k in a turn."""

    rows: int
    vectors: int
    unroll: int = 1

    def columns(self, target: Target) -> int:
        """Width of a block (and of a packed panel of B), in elements."""
        return self.vectors * target.lanes


def shape_for(target: Target, vectors: int) -> Shape:
    """As many rows as registers allow, beside `vectors` registers of B and one for the broadcast value.

    Two steps of k a turn only where few rows leave registers for the second step's B: elsewhere LLVM spills.
    """
    rows = min(14, (target.registers - vectors - 1) // vectors)
    return Shape(rows, vectors, 2 if vectors >= 3 else 1)


def vectors_for(target: Target, columns: int) -> int:
    """How many registers wide the panels of a B with so many columns are best: least work at each width's speed."""
    needed = -(-columns // target.lanes)
    return min(EFFICIENCY, key=lambda v: (-(-needed // v) * v / EFFICIENCY[v], -v))


@kernel
def brgemm(target: Target, shape: Shape, packed: bool = True) -> Emitter:
    """The kernel for one block shape.

    packed: step_a is 1 whatever is passed (a constant makes the better loop), and rows of B are read whole, so a last
    panel has to be padded. Otherwise step_a is an argument, and B is read under a mask.
    """
    e = Emitter(target, f"brgemm_{target.name}_{shape.rows}x{shape.vectors}{'' if packed else '_strided'}", ARGUMENTS)
    columns = e.args[1]
    masks = [e.mask(e.sub(columns, v * e.lanes)) for v in range(shape.vectors)]
    with e.cases(e.args[0], range(1, shape.rows + 1)) as each:
        for rows in each:
            _block(e, rows, shape.unroll, masks, packed)
    return e


def _block(e: Emitter, rows: int, unroll: int, masks: list[Value], packed: bool) -> None:
    _, columns, a, row_a, step_a, b, row_b, segments, count, depth, c, row_c, accumulate = e.args
    vectors, lanes = len(masks), e.lanes
    if packed:
        step_a = e.i(1)
    c_rows = [e.at(e.pointer(c), e.mul(row_c, m)) for m in range(rows)]

    def zeros() -> list[Value]:
        return [e.splat_constant(0.0)] * (rows * vectors)

    def held() -> list[Value]:
        return [e.load(e.at(c_rows[m], v * lanes), masks[v]) for m in range(rows) for v in range(vectors)]

    sums = e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), held, zeros)
    table = e.pointer(segments, I64)
    with e.loop(count, sums, name="segment") as segment:
        pair = e.mul(segment.index, 2)
        a_at = e.at(e.pointer(a), e.load_int(e.at(table, pair)))
        b_at = e.at(e.pointer(b), e.load_int(e.at(table, e.add(pair, 1))))

        def step(state: list[Value]) -> list[Value]:
            *acc, a_k, b_k = state
            columns_b = [e.load(e.at(b_k, v * lanes), None if packed else masks[v]) for v in range(vectors)]
            for m in range(rows):
                value = e.broadcast(e.at(a_k, e.mul(row_a, m)))
                for v in range(vectors):
                    acc[m * vectors + v] = e.fma(value, columns_b[v], acc[m * vectors + v])
            return [*acc, e.at(a_k, step_a), e.at(b_k, row_b)]

        state = [*segment.carried, a_at, b_at]
        for steps in dict.fromkeys((unroll, 1)):  # the remainder of an unrolled loop one by one
            turns = e.b.sdiv(depth, e.i(unroll)) if steps > 1 else e.b.srem(depth, e.i(unroll)) if unroll > 1 else depth
            with e.loop(turns, state, name=f"k{steps}_") as k:
                k.result = k.carried
                for _ in range(steps):
                    k.result = step(k.result)
            state = k.result
        segment.result = state[:-2]
    _write_block(e, segment.result, c_rows, masks, columns)


def _write_block(e: Emitter, sums: list[Value], c_rows: list[Value], masks: list[Value], columns: Value) -> None:
    def write(masked: bool) -> list[Value]:
        for i, value in enumerate(sums):
            m, v = divmod(i, len(masks))
            e.store(value, e.at(c_rows[m], v * e.lanes), masks[v] if masked else None)
        return []

    if e.target.free_masks:
        write(True)
    else:  # masked stores are slow there: only where they are needed
        full = e.b.icmp_signed(">=", columns, e.i(len(masks) * e.lanes))
        e.choose(full, lambda: write(False), lambda: write(True))
