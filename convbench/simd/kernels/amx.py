"""Products of narrow numbers in AMX tiles: 16 x 16 sums of 32 bits from 64 bytes of each row of A and column of B.

C[m, n] = sum over segments s, sum over k:  A[a(m) + a(s) + k] * B[b(s) + k, n]

A tile of A is up to 16 rows of up to 64 bytes, equally far apart: pixels beside each other, and some of their channels.
A tile of B is up to 16 rows of 16 words; a word holds 4 bytes (or 2 bfloat16) of one column, so B has the panels of
`bits.narrow_brgemm`. A block is 2 x 2 tiles of sums, which with two tiles of A and two of B are all eight there are;
each step loads four tiles and multiplies four times. (Intel 64 and IA-32 Architectures Software Developer's Manual,
volume 1, chapter 18 "Programming with Intel AMX".)

The state of the tiles belongs to the thread and to whoever configured it last: a kernel configures them when it begins
and releases them when it ends. The sums of a block pass through memory to an epilogue, a kernel with the arguments END,
or are stored to C as they are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir
import numpy as np

from convbench.simd.compiler import kernel
from convbench.simd.emit import I8, I64, Emitter, Value
from convbench.simd.target import Target

#: The instruction of each kind: signs of the bytes of A and B, or bfloat16 with sums in float32.
INSTRUCTIONS = {
    "s8s8": "tdpbssd", "s8u8": "tdpbsud", "u8s8": "tdpbusd", "u8u8": "tdpbuud", "bf16": "tdpbf16ps",
}  # fmt: skip
TILE_ROWS, TILE_BYTES = 16, 64

#: blocks: address of `count` blocks, BLOCK integers each. a, b: addresses; offsets and row_a count 32-bit words.
#: segments: address of `segment_count` pairs (offset into a, offset into b); each is `steps` times `chunk` words of k,
#: which lie behind each other in A, and as rows of a panel in B. rows: of every tile of A. sums: address of 4 rows x
#: width words. c: the result. row_c: distance of its rows in words, where sums of whole panels are stored as they are;
#: 0: never. end: address of the epilogue. constants: handed to it. panels: how many of B each block is multiplied with,
#: one after the other, so that A is still near. columns: that exist of the last one. first: the first column, counted
#: over the whole result. b_next, c_next: words, and bytes, from a panel to the next. unit: address of the tile
#: configuration (of narrow_brgemm, in `dot.blocks`).
ARGUMENTS = (
    "blocks", "count", "a", "row_a", "b", "segments", "segment_count", "steps", "chunk", "rows", "sums", "c", "row_c",
    "end", "constants", "panels", "columns", "first", "b_next", "c_next", "unit",
)  # fmt: skip
#: Arguments of an epilogue: `rows` pairs (row of the sums, place in the result in elements of it) at `entries`.
END = ("rows", "columns", "first", "entries", "sums", "out", "constants")
#: Integers of a block: tiles of A (1 or 2), offset of the first and of the second, pairs in `entries`, their address.
BLOCK = 5

#: Rows of the block before that are finished in each step.
DRAINED = 4

_SUMS, _A, _B = (0, 1, 2, 3), (4, 5), (6, 7)


def configuration(rows: int, chunk: int) -> np.ndarray:
    """64 bytes for LDTILECFG: tiles of A with `rows` rows of `chunk` words, tiles of B with `chunk` rows."""
    flat = np.zeros(64, np.uint8)
    flat[0] = 1  # the palette
    bytes_of_row, rows_of = flat[16:48].view(np.uint16), flat[48:]
    for tile in (*_SUMS, *_A):
        rows_of[tile] = rows
    for tile in _B:
        rows_of[tile] = chunk
    bytes_of_row[: len((*_SUMS, *_A, *_B))] = TILE_BYTES
    for tile in _A:
        bytes_of_row[tile] = 4 * chunk
    return flat


def has_instruction(target: Target, kind: str) -> bool:
    """Whether the unit multiplies tiles of this kind, and the system lets this process use them."""
    return target.tiles("amx-bf16" if kind == "bf16" else "amx-int8")


@kernel
def blocks(target: Target, kind: str, vectors: int) -> Emitter:
    """The kernel for panels of `vectors` (1 or 2) tiles of columns.

    The epilogue of a block runs beside the products of the next one, DRAINED rows a step, so that tiles wait for
    nothing: `sums` has room for two blocks.
    """
    e = Emitter(target, f"amx_{kind}_{vectors}", ARGUMENTS)
    at = dict(zip(ARGUMENTS, e.args, strict=True))
    on_tiles(e, "ldtilecfg", [e.pointer(at["unit"], I8)])
    sums = at["sums"]
    nothing = _Pending(e.i(0), e.i(0), sums, at["c"], at["columns"], at["first"])
    other = e.add(sums, e.mul(at["rows"], 2 * TILE_BYTES * vectors))
    with e.loop(at["count"], [*nothing.values(), other], name="block") as turn:
        block = e.at(e.pointer(at["blocks"], I64), e.mul(turn.index, BLOCK))
        with e.loop(at["panels"], turn.carried, name="panel") as panel:
            *before, free = panel.carried
            here = panel_at(e, at, panel.index, vectors * e.lanes)

            def products(tiles: int, *given: Any) -> list[Value]:
                return _block(e, (kind, tiles, vectors), *given)

            given = (at, here, block, _Pending(*before), free)
            one, two = (functools.partial(products, tiles, *given) for tiles in (1, 2))
            rows, entries = e.choose(e.less(e.load_int(block), 2), one, two)
            panel.result = [rows, entries, free, here["c"], here["columns"], here["first"], before[2]]
        turn.result = panel.result
    _end(e, at, _Pending(*turn.result[:-1]))
    on_tiles(e, "tilerelease", [])
    return e


@dataclass(frozen=True)
class _Pending:
    """A block whose epilogue has not run: pairs in `entries`, their address, its sums, and where results go."""

    rows: Value
    entries: Value
    sums: Value
    c: Value
    columns: Value
    first: Value

    def values(self) -> list[Value]:
        """In the order of the constructor."""
        return [self.rows, self.entries, self.sums, self.c, self.columns, self.first]


def panel_at(e: Emitter, at: dict[str, Value], index: Value, width: int) -> dict[str, Value]:
    """b, c, columns and first of one panel, and its row_c: 0 where not all columns exist."""
    last = e.b.icmp_signed("==", e.add(index, 1), at["panels"])
    columns = e.b.select(last, at["columns"], e.i(width))
    return {
        "b": e.add(at["b"], e.mul(e.mul(at["b_next"], 4), index)),
        "c": e.add(at["c"], e.mul(at["c_next"], index)),
        "columns": columns,
        "first": e.add(at["first"], e.mul(index, width)),
        "row_c": e.b.select(e.less(columns, width), e.i(0), at["row_c"]),
    }


def _block(
    e: Emitter, form: tuple[str, int, int], at: dict[str, Value], here: dict[str, Value], block: Value,
    before: _Pending, free: Value,
) -> list[Value]:  # fmt: skip
    """Products of a block with a panel, and the epilogue of the one before. Gives its own rows and entries."""
    _, tiles, vectors = form
    for m in range(tiles):
        for n in range(vectors):
            on_tiles(e, "tilezero", [tile_number(_SUMS[2 * m + n])])
    a_tiles = [e.add(at["a"], e.mul(e.load_int(e.at(block, 1 + m)), 4)) for m in range(tiles)]
    table = e.pointer(at["segments"], I64)
    with e.loop(at["segment_count"], [e.i(0)], name="segment") as segment:
        pair = e.at(table, e.mul(segment.index, 2))
        offset = e.mul(e.load_int(pair), 4)
        starts = [*(e.add(tile, offset) for tile in a_tiles), e.add(here["b"], e.mul(e.load_int(e.at(pair, 1)), 4))]
        with e.loop(at["steps"], [*starts, *segment.carried], name="k") as k:
            *a_k, b_k, done = k.carried
            _step(e, form, at, a_k, b_k)
            done = _drain(e, at, before, done)
            step_a, step_b = e.mul(at["chunk"], 4), e.mul(at["chunk"], TILE_BYTES * vectors)
            k.result = [*(e.add(tile, step_a) for tile in a_k), e.add(b_k, step_b), done]
        segment.result = k.result[-1:]
    _end(e, at, before, segment.result[0])
    return _put_down(e, form, at, here, block, free)


def _step(e: Emitter, form: tuple[str, int, int], at: dict[str, Value], a_k: list[Value], b_k: Value) -> None:
    """Loads of one step of k, then the products of all their pairs.

    (The first products right behind their own loads: 6 to 9 % slower in layers whose panels come from the second-level
    cache; 1 thread of a Xeon with AMX, 2026-11.)
    """
    kind, _, vectors = form
    for n in range(vectors):
        place = e.pointer(e.add(b_k, TILE_BYTES * n), I8)
        on_tiles(e, "tileloadd64", [tile_number(_B[n]), place, e.i(TILE_BYTES * vectors)])
    for m, place in enumerate(a_k):
        on_tiles(e, "tileloadd64", [tile_number(_A[m]), e.pointer(place, I8), e.mul(at["row_a"], 4)])
    for m in range(len(a_k)):
        for n in range(vectors):
            on_tiles(e, INSTRUCTIONS[kind], [tile_number(t) for t in (_SUMS[2 * m + n], _A[m], _B[n])])


def _put_down(
    e: Emitter, form: tuple[str, int, int], at: dict[str, Value], here: dict[str, Value], block: Value,
    free: Value,
) -> list[Value]:  # fmt: skip
    """Sums into the result as they are, or beside for the epilogue: rows that it has to finish, their entries."""
    _, tiles, vectors = form
    entries, rows = e.load_int(e.at(block, 4)), at["rows"]

    def store(to: list[Value], row: Value) -> None:
        for m in range(tiles):
            for n in range(vectors):
                place = e.pointer(e.add(to[m], TILE_BYTES * n), I8)
                on_tiles(e, "tilestored64", [place, row, tile_number(_SUMS[2 * m + n])])

    def as_they_are() -> list[Value]:
        places = e.pointer(entries, I64)
        firsts = [e.load_int(e.at(places, e.add(e.mul(rows, 2 * m), 1))) for m in range(tiles)]
        store([e.add(here["c"], e.mul(first, 4)) for first in firsts], e.mul(here["row_c"], 4))
        return [e.i(0)]

    def for_the_epilogue() -> list[Value]:
        width = TILE_BYTES * vectors
        store([e.add(free, e.mul(rows, m * width)) for m in range(tiles)], e.i(width))
        return [e.load_int(e.at(block, 3))]

    return [*e.choose(e.less(0, here["row_c"]), as_they_are, for_the_epilogue), entries]


def _drain(e: Emitter, at: dict[str, Value], before: _Pending, done: Value) -> Value:
    """The epilogue of some more rows of the block before; how many are done now."""

    def some() -> list[Value]:
        now = e.minimum(e.sub(before.rows, done), DRAINED)
        _end(e, at, before, done, now)
        return [e.add(done, now)]

    return e.choose(e.less(done, before.rows), some, lambda: [done])[0]


def _end(e: Emitter, at: dict[str, Value], block: _Pending, done: Value = 0, rows: Value | None = None) -> None:
    """The epilogue of a block's rows from `done` on, of which there may be none: of all, or of so many."""
    entries = e.add(block.entries, e.mul(done, 16))
    count = e.sub(block.rows, done) if rows is None else rows
    arguments = (count, block.columns, block.first, entries, block.sums, block.c, at["constants"])
    call_address(e, at["end"], arguments)


def call_address(e: Emitter, address: Value, arguments: tuple[Value, ...]) -> None:
    """Calls another kernel."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
    e.b.call(e.b.inttoptr(address, kind.as_pointer()), arguments)


def tile_number(number: int) -> Value:
    """A tile as an immediate operand."""
    return ir.Constant(I8, number)


def on_tiles(e: Emitter, instruction: str, arguments: list[Value]) -> None:
    """One instruction on tiles; their numbers are immediate, so LLVM does not allocate them."""
    if instruction == "tilestored64":
        at, row, tile = arguments
        arguments = [tile, at, row]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in arguments])
    e.b.call(e.declare(f"llvm.x86.{instruction}", kind), arguments)
