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
#: which lie behind each other in A, and as rows of a panel in B. rows: of every tile of A. sums: address of 2 rows x
#: width words. c, row_c: where sums are stored as they are, distance of its rows in words; row_c = 0: never. end:
#: address of the epilogue. constants: handed to it. columns: that exist. first: the first of them, counted over the
#: whole result. unit: address of the tile configuration (of narrow_brgemm, in `dot.blocks`).
ARGUMENTS = (
    "blocks", "count", "a", "row_a", "b", "segments", "segment_count", "steps", "chunk", "rows", "sums", "c", "row_c",
    "end", "constants", "columns", "first", "unit",
)  # fmt: skip
#: Arguments of an epilogue: `rows` pairs (row of the sums, place in the result in elements of it) at `entries`.
END = ("rows", "columns", "first", "entries", "sums", "out", "constants")
#: Integers of a block: tiles of A (1 or 2), offset of the first and of the second, pairs in `entries`, their address.
BLOCK = 5

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
    """The kernel for panels of `vectors` (1 or 2) tiles of columns."""
    e = Emitter(target, f"amx_{kind}_{vectors}", ARGUMENTS)
    table, count, unit = e.args[0], e.args[1], e.args[-1]
    place = e.pointer(unit, I8)
    on_tiles(e, "ldtilecfg", [place])
    with e.loop(count, name="block") as turn:
        block = e.at(e.pointer(table, I64), e.mul(turn.index, BLOCK))
        with e.cases(e.load_int(block), (1, 2)) as each:
            for tiles in each:
                _block(e, kind, block, tiles, vectors)
    on_tiles(e, "tilerelease", [])
    return e


def _block(e: Emitter, kind: str, block: Value, tiles: int, vectors: int) -> None:
    _, _, a, row_a, b, segments, segment_count, steps, chunk, rows, sums, c, row_c, end, *_ = e.args
    for m in range(tiles):
        for n in range(vectors):
            on_tiles(e, "tilezero", [tile_number(_SUMS[2 * m + n])])
    a_tiles = [e.add(a, e.mul(e.load_int(e.at(block, 1 + m)), 4)) for m in range(tiles)]
    stride_a, stride_b = e.mul(row_a, 4), e.i(TILE_BYTES * vectors)
    step_a, step_b = e.mul(chunk, 4), e.mul(chunk, TILE_BYTES * vectors)
    table = e.pointer(segments, I64)
    with e.loop(segment_count, name="segment") as segment:
        pair = e.at(table, e.mul(segment.index, 2))
        offset = e.mul(e.load_int(pair), 4)
        a_at = [e.add(tile, offset) for tile in a_tiles]
        b_at = e.add(b, e.mul(e.load_int(e.at(pair, 1)), 4))
        with e.loop(steps, [*a_at, b_at], name="k") as k:
            *a_k, b_k = k.carried
            for n in range(vectors):
                on_tiles(e, "tileloadd64", [tile_number(_B[n]), e.pointer(e.add(b_k, TILE_BYTES * n), I8), stride_b])
            for m in range(tiles):
                on_tiles(e, "tileloadd64", [tile_number(_A[m]), e.pointer(a_k[m], I8), stride_a])
                for n in range(vectors):
                    on_tiles(e, INSTRUCTIONS[kind], [tile_number(t) for t in (_SUMS[2 * m + n], _A[m], _B[n])])
            k.result = [*(e.add(tile, step_a) for tile in a_k), e.add(b_k, step_b)]
    entries = e.load_int(e.at(block, 4))

    def put_down(to: list[Value], row: Value) -> None:
        for m in range(tiles):
            for n in range(vectors):
                at = e.pointer(e.add(to[m], TILE_BYTES * n), I8)
                on_tiles(e, "tilestored64", [at, row, tile_number(_SUMS[2 * m + n])])

    def as_they_are() -> list[Value]:
        places = e.pointer(entries, I64)
        firsts = [e.load_int(e.at(places, e.add(e.mul(rows, 2 * m), 1))) for m in range(tiles)]
        put_down([e.add(c, e.mul(first, 4)) for first in firsts], e.mul(row_c, 4))
        return []

    def through_the_epilogue() -> list[Value]:
        width = TILE_BYTES * vectors
        put_down([e.add(sums, e.mul(rows, m * width)) for m in range(tiles)], e.i(width))
        *_, constants, columns, first, _ = e.args
        arguments = (e.load_int(e.at(block, 3)), columns, first, entries, sums, c, constants)
        call_address(e, end, arguments)
        return []

    e.choose(e.less(0, row_c), as_they_are, through_the_epilogue)


def call_address(e: Emitter, address: Value, arguments: tuple[Value, ...]) -> None:
    """Calls another kernel."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
    e.b.call(e.b.inttoptr(address, kind.as_pointer()), arguments)


def tile_number(number: int) -> Value:
    return ir.Constant(I8, number)


def on_tiles(e: Emitter, instruction: str, arguments: list[Value]) -> None:
    """One instruction on tiles; their numbers are immediate, so LLVM does not allocate them."""
    if instruction == "tilestored64":
        at, row, tile = arguments
        arguments = [tile, at, row]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in arguments])
    e.b.call(e.declare(f"llvm.x86.{instruction}", kind), arguments)
