"""Products of backward weights in the Winograd domain: for each frequency, a sum of outer products over tiles.

C[f, m, n] (+)= sum over t:  A[f, t, m] * B[f, t, n]

Both operands lie in vectors of `lanes` channels: [channel / lanes][frequency][tile][channel % lanes], so that every
read is a whole line of the cache, and channels that do not exist hold zeros.
"""

from __future__ import annotations

import itertools

from convbench.simd.compiler import kernel
from convbench.simd.emit import Emitter, Value
from convbench.simd.target import Target

#: rows: of this block. a, b, c: addresses. plane_a, plane_b, plane_c: elements between frequencies, `planes` of them.
#: vector_b: elements between the vectors of B. depth: tiles. row_c: elements between rows of C. accumulate: 0 writes,
#: 1 adds to what C holds.
ARGUMENTS = (
    "rows", "a", "plane_a", "b", "plane_b", "vector_b", "planes", "depth", "c", "row_c", "plane_c", "accumulate",
)  # fmt: skip

#: As ARGUMENTS; rows: any number; vector_a: elements between the vectors of A.
PANEL = ("rows", "a", "vector_a", "b", "vector_b", "depth", "c", "row_c", "accumulate")


def most_rows(target: Target, vectors: int) -> int:
    """Rows of a block beside `vectors` registers of B; all of them lie in one vector of A."""
    return max(1, min(target.lanes, (target.registers - vectors - 1) // vectors))


@kernel
def outer(target: Target, vectors: int) -> Emitter:
    """The kernel for blocks of `vectors` registers, 1 to most_rows(target, vectors) rows, and several frequencies."""
    e = Emitter(target, f"outer_{target.name}_{vectors}", ARGUMENTS)
    rows, a, plane_a, b, plane_b, vector_b, planes, depth, c, row_c, plane_c, accumulate = e.args
    with e.cases(rows, range(1, most_rows(target, vectors) + 1)) as each:
        for count in each:
            with e.loop(planes, name="plane") as plane:
                a_at, b_at, c_at = (
                    e.at(e.pointer(base), e.mul(step, plane.index))
                    for base, step in ((a, plane_a), (b, plane_b), (c, plane_c))
                )
                _block(e, count, vectors, (a_at, b_at, vector_b, depth, c_at, row_c, accumulate))
    return e


@kernel
def outer_panel(target: Target, vectors: int) -> Emitter:
    """The kernel for one frequency and all rows of dy beside `vectors` registers of x: PANEL.

    A whole vector of rows is cut into blocks that differ by at most one row; a last, partial one into largest blocks.
    """
    e = Emitter(target, f"outer_panel_{target.name}_{vectors}", PANEL)
    rows, a, vector_a, b, vector_b, depth, c, row_c, accumulate = e.args
    lanes, most = e.lanes, most_rows(target, vectors)
    parts = -(-lanes // most)
    cuts = [part * lanes // parts for part in range(parts + 1)]
    first_b = e.pointer(b)

    def block(count: int, a_at: Value, c_at: Value) -> None:
        _block(e, count, vectors, (a_at, first_b, vector_b, depth, c_at, row_c, accumulate))

    whole = e.b.sdiv(rows, e.i(lanes))
    with e.loop(whole, name="vector") as vector:
        a_at = e.at(e.pointer(a), e.mul(vector_a, vector.index))
        c_at = e.at(e.pointer(c), e.mul(row_c, e.mul(vector.index, lanes)))
        for start, end in itertools.pairwise(cuts):
            block(end - start, e.at(a_at, start), e.at(c_at, e.mul(row_c, start)))
    a_rest = e.at(e.pointer(a), e.mul(vector_a, whole))
    c_rest = e.at(e.pointer(c), e.mul(row_c, e.mul(whole, lanes)))
    rest = e.b.srem(rows, e.i(lanes))
    with e.loop(rest, step=most, name="rest") as part:
        left = e.minimum(e.sub(rest, part.index), most)
        with e.cases(left, range(1, most + 1)) as each:
            for count in each:
                block(count, e.at(a_rest, part.index), e.at(c_rest, e.mul(row_c, part.index)))
    return e


def _block(e: Emitter, rows: int, vectors: int, places: tuple[Value, ...]) -> None:
    """One frequency of a block, its sums in registers through all tiles."""
    a_at, b_at, vector_b, depth, c_at, row_c, accumulate = places
    lanes = e.lanes
    out = [e.at(c_at, e.mul(row_c, m), v * lanes) for m in range(rows) for v in range(vectors)]

    def step(state: list[Value]) -> list[Value]:
        *acc, a_t, b_t = state
        columns = [e.load(e.at(b_t, e.mul(vector_b, v))) for v in range(vectors)]
        for m in range(rows):
            value = e.broadcast(e.at(a_t, m))
            for v in range(vectors):
                acc[m * vectors + v] = e.fma(value, columns[v], acc[m * vectors + v])
        return [*acc, e.at(a_t, lanes), e.at(b_t, lanes)]

    state = [*[e.splat_constant(0.0)] * len(out), a_at, b_at]
    for steps in (2, 1):
        turns = e.b.sdiv(depth, e.i(2)) if steps == 2 else e.b.srem(depth, e.i(2))
        with e.loop(turns, state, name=f"t{steps}_") as t:
            t.result = t.carried
            for _ in range(steps):
                t.result = step(t.result)
        state = t.result
    sums = list(zip(state[:-2], out, strict=True))
    sums_of_all = e.choose(  # earlier sums are added last: errors grow with the chunk's length and their number only
        e.b.icmp_signed("!=", accumulate, e.i(0)),
        lambda: [e.fadd(value, e.load(place)) for value, place in sums],
        lambda: [value for value, _ in sums],
    )
    for value, place in zip(sums_of_all, out, strict=True):
        e.store(value, place)
