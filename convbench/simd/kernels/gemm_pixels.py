"""brgemm over rows from anywhere: the product of implicit-GEMM convolution, for any number of rows (pixels) a call.

pixels      C[c(m) + n] (+)= sum over segments s, sum over k < depth:  A[a(m) + a(s) + k] * B[b(s) + k P + n]
reduce      C[m row_c + n] (+)= sum over k < depth:                    A[a(k) + m] * B[b(k) + n]

`pixels` takes offsets of its rows from a table, so that a block of rows may run over the end of an image row or along
a border; the blocks of rows, all of nearly the same size, are walked inside. B is packed in panels, P columns wide. It
can fetch what the next call will read (`ahead`) into the second-level cache on the way. `reduce` takes its steps of k
from a table and has the rows of A beside each other: the sum over pixels of the backward pass to the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I8, I32, I64, Emitter, Value
from convbench.simd.kernels.gemm import Shape, _write_block
from convbench.simd.target import Target

#: rows: how many pairs (offset into a, offset into c) `table` holds. a, b, c: addresses; offsets in elements.
#: segments: address of `count` pairs (offset into a, offset into b), depth: length of k in each. accumulate: 0 writes,
#: 1 adds to what C holds. ahead, ahead_bytes: what to fetch into the second-level cache; 0 bytes: nothing.
PIXELS = (
    "rows", "columns", "table", "a", "b", "segments", "count", "depth", "c", "accumulate", "ahead", "ahead_bytes",
)  # fmt: skip

#: rows, columns: of the result, any number of rows. table: address of `depth` pairs (offset into a, offset into b).
REDUCE = ("rows", "columns", "table", "depth", "a", "b", "c", "row_c", "accumulate")

#: How many steps of k ahead `reduce` fetches A: its table must go on for so many pairs (of any content) beyond depth.
BEYOND = 16

LINE = 64  # bytes of a cache line


def rows_for(target: Target, vectors: int) -> int:
    """Rows of a block: accumulators, `vectors` registers of B and a broadcast value; row addresses fit in registers."""
    return min(10, (target.registers - vectors - 1) // vectors)


@kernel
def pixels(target: Target, shape: Shape, follow: bool = False) -> Emitter:
    """The kernel for panels of shape.columns(target) columns and blocks of at most shape.rows rows.

    follow: rows of A lie one behind the other, so what follows a block in memory is fetched for the next one.
    """
    name = f"pixels_{target.name}_{shape.rows}x{shape.vectors}_{shape.unroll}{'_follow' if follow else ''}"
    e = Emitter(target, name, PIXELS)
    rows, columns, table, *_, ahead, ahead_bytes = e.args
    masks = [e.mask(e.sub(columns, v * e.lanes)) for v in range(shape.vectors)]
    turn_bytes = e.mul(e.b.sdiv(e.mul(e.args[6], e.args[7]), e.i(shape.unroll)), LINE)

    def block(index: Value, first: Value, count: int) -> None:
        pairs = e.at(e.pointer(table, I64), e.mul(first, 2))
        start = e.mul(turn_bytes, index)
        wanted = e.less(start, ahead_bytes)
        fetch = e.b.select(wanted, e.add(ahead, start), e.args[4])
        _pixel_block(e, shape, count, pairs, masks, (fetch, e.b.select(wanted, e.i(LINE), e.i(0))), follow)

    _blocks(e, rows, shape.rows, block)
    return e


def _blocks(e: Emitter, rows: Value, most: int, block: Callable[[Value, Value, int], None]) -> None:
    """Blocks of rows whose sizes differ by one at most; block(index, first row, rows) writes each size's code."""
    number = e.b.sdiv(e.add(rows, most - 1), e.i(most))
    some = e.b.select(e.less(0, number), number, e.i(1))
    size, longer = e.b.sdiv(rows, some), e.b.srem(rows, some)
    with e.loop(number, name="block") as turn:
        before = e.minimum(turn.index, longer)
        first = e.add(e.mul(turn.index, size), before)
        count = e.add(size, e.b.zext(e.less(turn.index, longer), I64))
        with e.cases(count, range(1, most + 1)) as each:
            for rows_here in each:
                block(turn.index, first, rows_here)


def _pixel_block(
    e: Emitter, shape: Shape, rows: int, pairs: Value, masks: list[Value], fetch: tuple[Value, Value], follow: bool
) -> None:
    _, columns, _, a, b, segments, count, depth, c, accumulate, _, _ = e.args
    vectors, lanes, unroll = shape.vectors, e.lanes, shape.unroll
    width = shape.columns(e.target)
    a_rows = [e.at(e.pointer(a), e.load_int(e.at(pairs, 2 * m))) for m in range(rows)]
    c_rows = [e.at(e.pointer(c), e.load_int(e.at(pairs, 2 * m + 1))) for m in range(rows)]
    for m in range(rows):
        for v in range(0, vectors, max(1, 16 // lanes)):
            prefetch(e, e.at(c_rows[m], v * lanes), write=True)
    sums = _initial(e, accumulate, c_rows, masks)
    table = e.pointer(segments, I64)
    fetches = [fetch[0]] + ([e.b.ptrtoint(e.at(a_rows[-1], depth), I64)] if follow else [])
    levels = (2, 3)  # of B into the second-level cache, of A into the first
    with e.loop(count, [*sums, *fetches], name="segment") as segment:
        pair = e.mul(segment.index, 2)
        offset = e.load_int(e.at(table, pair))
        a_at = [e.at(row, offset) for row in a_rows]
        b_at = e.at(e.pointer(b), e.load_int(e.at(table, e.add(pair, 1))))

        def step(state: list[Value], k: Value, further: int) -> list[Value]:
            *acc, b_k = state
            columns_b = [e.load(e.at(b_k, further * width + v * lanes)) for v in range(vectors)]
            for m in range(rows):
                value = e.broadcast(e.at(a_at[m], k, further))
                for v in range(vectors):
                    acc[m * vectors + v] = e.fma(value, columns_b[v], acc[m * vectors + v])
            return [*acc, b_k]

        turns = e.b.sdiv(depth, e.i(unroll))
        most = len(sums)
        state = [*segment.carried[:most], b_at, *segment.carried[most:]]
        with e.loop(e.mul(turns, unroll), state, step=unroll, name="k") as k:
            now, fetches = k.carried[: most + 1], k.carried[most + 1 :]
            for place, level in zip(fetches, levels, strict=False):
                prefetch(e, e.pointer(place), write=False, level=level)
            for further in range(unroll):
                now = step(now, k.index, further)
            steps = (fetch[1], e.i(LINE))
            fetches = [e.add(place, by) for place, by in zip(fetches, steps, strict=False)]
            k.result = [*now[:-1], e.at(now[-1], unroll * width), *fetches]
        state, fetches = k.result[: most + 1], k.result[most + 1 :]
        if unroll > 1:
            done = e.mul(turns, unroll)
            with e.loop(e.sub(depth, done), state, name="rest") as k:
                now = step(k.carried, e.add(done, k.index), 0)
                k.result = [*now[:-1], e.at(now[-1], width)]
            state = k.result
        segment.result = [*state[:-1], *fetches]
    _write_block(e, segment.result[: len(sums)], c_rows, masks, columns)


def _initial(e: Emitter, accumulate: Value, c_rows: list[Value], masks: list[Value]) -> list[Value]:
    """Accumulators: zero, or what C holds."""

    def zeros() -> list[Value]:
        return [e.splat_constant(0.0)] * (len(c_rows) * len(masks))

    def held() -> list[Value]:
        return [e.load(e.at(row, v * e.lanes), mask) for row in c_rows for v, mask in enumerate(masks)]

    return e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), held, zeros)


@kernel
def reduce(target: Target, shape: Shape) -> Emitter:
    """The kernel for at most shape.columns(target) columns; B is read under the mask of its columns."""
    e = Emitter(target, f"reduce_{target.name}_{shape.rows}x{shape.vectors}", REDUCE)
    rows, columns, table, depth, a, b, c, row_c, accumulate = e.args
    vectors, lanes = shape.vectors, e.lanes
    masks = [e.mask(e.sub(columns, v * lanes)) for v in range(vectors)]
    pairs = e.pointer(table, I64)

    def block(_: Value, first: Value, count: int, whole: bool) -> None:
        c_rows = [e.at(e.pointer(c), e.mul(row_c, e.add(first, m))) for m in range(count)]
        for m in range(count):
            for v in range(0, vectors, max(1, 16 // lanes)):
                prefetch(e, e.at(c_rows[m], v * lanes), write=True)
        chosen = [None if whole else mask for mask in masks]
        sums = _initial(e, accumulate, c_rows, masks)
        a_at = e.at(e.pointer(a), first)
        with e.loop(e.mul(depth, 2), sums, step=2, name="k") as k:
            a_k = e.at(a_at, e.load_int(e.at(pairs, k.index)))
            b_k = e.at(e.pointer(b), e.load_int(e.at(pairs, k.index, 1)))
            later = e.load_int(e.at(pairs, k.index, 2 * BEYOND))
            prefetch(e, e.at(a_at, later), write=False, level=3)
            columns_b = [e.load(e.at(b_k, v * lanes), chosen[v]) for v in range(vectors)]
            acc = list(k.carried)
            for m in range(count):
                value = e.broadcast(e.at(a_k, m))
                for v in range(vectors):
                    acc[m * vectors + v] = e.fma(value, columns_b[v], acc[m * vectors + v])
            k.result = acc
        _write_block(e, k.result, c_rows, masks, columns)

    def all_blocks(whole: bool) -> list[Value]:
        _blocks(e, rows, shape.rows, lambda i, first, count: block(i, first, count, whole))
        return []

    # A masked load takes an arithmetic port as well as a load port: 15 % of the multiply-adds of a 6 x 4 block.
    full = e.b.icmp_signed(">=", columns, e.i(vectors * lanes))
    e.choose(full, lambda: all_blocks(True), lambda: all_blocks(False))
    return e


def prefetch(e: Emitter, pointer: Value, write: bool, level: int = 2) -> None:
    """Asks for a cache line: to be written, or to be read (level 3: the first, 2: the second). Any address will do."""
    place = e.b.bitcast(pointer, I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
    constants = [ir.Constant(I32, value) for value in (int(write), 3 if write else level, 1)]
    e.b.call(e.declare("llvm.prefetch.p0", kind), [place, *constants])
