"""Products of backward weights in the Winograd domain: for each frequency, a sum of outer products over tiles.

C[f, m, n] (+)= sum over t:  A[f, t, m] * B[f, t, n]

Both operands lie in vectors of `lanes` channels: [channel / lanes][frequency][tile][channel % lanes], so that every
read is a whole line of the cache, and channels that do not exist hold zeros.
"""

from __future__ import annotations

from convbench.simd.compiler import kernel
from convbench.simd.emit import Emitter, Value
from convbench.simd.target import Target

#: rows: of this block. a, b, c: addresses. plane_a, plane_b, plane_c: elements between frequencies, `planes` of them.
#: vector_b: elements between the vectors of B. depth: tiles. row_c: elements between rows of C. accumulate: 0 writes,
#: 1 adds to what C holds.
ARGUMENTS = (
    "rows", "a", "plane_a", "b", "plane_b", "vector_b", "planes", "depth", "c", "row_c", "plane_c", "accumulate",
)  # fmt: skip


def most_rows(target: Target, vectors: int) -> int:
    """Rows of a block beside `vectors` registers of B; all of them lie in one vector of A."""
    return max(1, min(target.lanes, (target.registers - vectors - 1) // vectors))


@kernel
def outer(target: Target, vectors: int) -> Emitter:
    """The kernel for blocks of `vectors` registers: 1 to most_rows(target, vectors) rows."""
    e = Emitter(target, f"outer_{target.name}_{vectors}", ARGUMENTS)
    with e.cases(e.args[0], range(1, most_rows(target, vectors) + 1)) as each:
        for rows in each:
            _block(e, rows, vectors)
    return e


def _block(e: Emitter, rows: int, vectors: int) -> None:
    _, a, plane_a, b, plane_b, vector_b, planes, depth, c, row_c, plane_c, accumulate = e.args
    lanes = e.lanes
    places = [(m, v) for m in range(rows) for v in range(vectors)]
    with e.loop(planes, name="plane") as plane:
        a_at = e.at(e.pointer(a), e.mul(plane_a, plane.index))
        b_at = e.at(e.pointer(b), e.mul(plane_b, plane.index))
        c_at = e.at(e.pointer(c), e.mul(plane_c, plane.index))
        out = [e.at(c_at, e.mul(row_c, m), v * lanes) for m, v in places]

        def held(out: list[Value] = out) -> list[Value]:
            return [e.load(place) for place in out]

        def zeros(out: list[Value] = out) -> list[Value]:
            return [e.splat_constant(0.0)] * len(out)

        def step(state: list[Value]) -> list[Value]:
            *acc, a_t, b_t = state
            columns = [e.load(e.at(b_t, e.mul(vector_b, v))) for v in range(vectors)]
            for m in range(rows):
                value = e.broadcast(e.at(a_t, m))
                for v in range(vectors):
                    acc[m * vectors + v] = e.fma(value, columns[v], acc[m * vectors + v])
            return [*acc, e.at(a_t, lanes), e.at(b_t, lanes)]

        sums = e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), held, zeros)
        state = [*sums, a_at, b_at]
        for steps in (2, 1):
            turns = e.b.sdiv(depth, e.i(2)) if steps == 2 else e.b.srem(depth, e.i(2))
            with e.loop(turns, state, name=f"t{steps}_") as t:
                t.result = t.carried
                for _ in range(steps):
                    t.result = step(t.result)
            state = t.result
        for value, place in zip(state[:-2], out, strict=True):
            e.store(value, place)
