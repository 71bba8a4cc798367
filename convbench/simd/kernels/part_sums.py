"""Blocks of exact sums of products of numbers that are stored in parts, each short enough for the machine's products.

C[i, j] = sum over segments s, sum over k:  A[i row_a + a(s) + k] * B[b(s) + k, j]

in parts: a 16-bit number is 256 high + low, so that its products are three sums, of high high, of high low and low
high, and of low low. `Scheme` says which parts there are, which are multiplied, and what power of two belongs to each
sum. A word (32 bits) of A holds neighbours along k: 4 bytes or 2 shorts. A row of a panel of B is one word for each
column. `Scheme.bound` products can be summed before a sum may leave 32 bits; then the caller puts them down
(`roundings.keep`).

tiles    AMX: 16 x 16 sums of 64 bytes of k, signed and unsigned bytes in any pairing
pairs    VPDPWSSD, or PMADDWD and an addition: two 16-bit products a word
bytes    what INT8 takes where there is no AMX: VPDPBUSD, or ordinary instructions (`bits`)
"""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I8, I32, I64, Emitter, Value
from convbench.simd.kernels import amx, bits
from convbench.simd.target import Target

#: a: address of a row of A; row_a, plane_a: bytes between rows and between parts. b: address of a panel; plane_b,
#: panel_b: bytes between parts and between panels. segments: address of `count` pairs (bytes into a, bytes into b),
#: each `steps` times `chunk` words of k long. sums: address of int32 [sum][row][column], whole blocks.
BLOCK = ("a", "row_a", "plane_a", "b", "plane_b", "panel_b", "segments", "count", "steps", "chunk", "sums")
TILE_ROWS, TILE_WORDS = amx.TILE_ROWS, amx.TILE_BYTES // 4


@dataclass(frozen=True)
class Scheme:
    """How one kind of numbers is multiplied on one unit.

    a, b: parts of the operands (quantize.PARTS). products: (part of a, part of b, sum). shifts: power of two of each
    sum. bound: products that a sum can take. rows, panels, width: of a block (panels of `width` columns each). whole:
    the sum of all parts fits 32 bits as well.
    """

    how: str
    a: str
    b: str
    products: tuple[tuple[int, int, int], ...]
    shifts: tuple[int, ...]
    bound: int
    rows: int
    panels: int
    width: int
    whole: bool = False

    @property
    def word(self) -> int:
        """Elements of a word of 32 bits."""
        return 4 if self.a.startswith("byte") else 2

    @property
    def columns(self) -> int:
        """Of a whole block."""
        return self.panels * self.width

    @property
    def chunk_words(self) -> int:
        """Most words of one step."""
        return TILE_WORDS if self.how == "tiles" else self.bound // self.word


#: |sum| <= n |a| |b| < 2^31. Bytes of INT8: 255 * 127. Bytes of a 16-bit number: -128 .. 127 and 0 .. 255, and two
#: products of them in the middle sum: 2 * 128 * 255. Shorts: 2^15 times -128 .. 128. Ten bits: 2^9 * 2^9.
INT8_BOUND = (2**31 - 1) // (255 * 127)
BYTES_BOUND = (2**31 - 1) // (2 * 128 * 255)
SHORTS_BOUND = (2**31 - 1) // 2**22
TEN_BITS_BOUND = (2**31 - 1) // 2**18


def scheme_for(target: Target, kind: str) -> Scheme:
    """kind: int8, fixed16 or dynamic."""
    tiles = target.tiles("amx-int8")
    if kind == "int8":
        if tiles:
            return Scheme("tiles", "byte", "byte", ((0, 0, 0),), (0,), INT8_BOUND, 32, 2, 16)
        shape = bits.shape_for(target, "u8s8", 2)
        return Scheme("bytes", "byte", "byte", ((0, 0, 0),), (0,), INT8_BOUND, shape.rows, 1, shape.columns(target))
    if tiles:
        parts = ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2))
        bound = BYTES_BOUND if kind == "fixed16" else TEN_BITS_BOUND
        return Scheme("tiles", "bytes", "bytes", parts, (16, 8, 0), bound, 16, 1, 16, kind == "dynamic")
    spare = 1 if _has_vpdpwssd(target) else 2
    if kind == "fixed16":
        rows = (target.registers - 2 - spare) // 2
        return Scheme("pairs", "short", "shorts", ((0, 0, 0), (0, 1, 1)), (8, 0), SHORTS_BOUND, rows, 1, target.lanes)
    rows = (target.registers - 2 - spare) // 2
    return Scheme("pairs", "short", "short", ((0, 0, 0),), (0,), TEN_BITS_BOUND, rows, 1, 2 * target.lanes, True)


@kernel
def configure(target: Target) -> Emitter:
    """Sets this thread's tiles up. Argument: address of an `amx.configuration` for TILE_ROWS rows."""
    e = Emitter(target, "tiles_configure", ("unit",))
    amx.on_tiles(e, "ldtilecfg", [e.pointer(e.args[0], I8)])
    return e


@kernel
def release(target: Target) -> Emitter:
    """Gives this thread's tiles back."""
    e = Emitter(target, "tiles_release", ("unit",))
    amx.on_tiles(e, "tilerelease", [])
    return e


@kernel
def block(target: Target, scheme: Scheme, row_tiles: int, panels: int) -> Emitter:
    """The kernel of a scheme for fewer tiles of rows, or fewer panels, than a whole block has (tiles only)."""
    if scheme.how == "tiles":
        return _tiles(target, scheme, row_tiles, panels)
    return _words(target, scheme)


# ---- AMX

#: Numbers of the tiles of A and of B, as `amx.configuration` has them; sums are in 0 to 3.
_A, _B = (4, 5), (6, 7)


def _tiles(target: Target, scheme: Scheme, row_tiles: int, panels: int) -> Emitter:
    """Tiles of A and B: one part of two tiles (INT8), or two parts of one tile, so that all eight tiles are in use."""
    e = Emitter(target, f"tiles_{scheme.a}_{row_tiles}x{panels}", BLOCK)
    a, row_a, plane_a, b, plane_b, panel_b, segments, count, steps, chunk, sums = e.args
    parts = 2 if scheme.a == "bytes" else 1
    held = {(m, n, s): (m * panels + n) * len(scheme.shifts) + s
            for m in range(row_tiles) for n in range(panels) for s in range(len(scheme.shifts))}  # fmt: skip
    for tile in held.values():
        amx.on_tiles(e, "tilezero", [amx.tile_number(tile)])
    a_parts = [(m, p, e.add(a, e.mul(row_a, TILE_ROWS * m), e.mul(plane_a, p)))
               for m in range(row_tiles) for p in range(parts)]  # fmt: skip
    b_parts = [(n, p, e.add(b, e.mul(panel_b, n), e.mul(plane_b, p))) for n in range(panels) for p in range(parts)]
    table, line = e.pointer(segments, I64), e.i(4 * TILE_WORDS)
    step_a, step_b = e.mul(chunk, 4), e.mul(chunk, 4 * TILE_WORDS)
    with e.loop(count, name="segment") as segment:
        pair = e.at(table, e.mul(segment.index, 2))
        a_from, b_from = e.load_int(pair), e.load_int(e.at(pair, 1))
        with e.loop(steps, [a_from, b_from], name="k") as k:
            a_at, b_at = k.carried
            for i, (_, _, place) in enumerate(b_parts):
                amx.on_tiles(e, "tileloadd64", [amx.tile_number(_B[i]), e.pointer(e.add(place, b_at), I8), line])
            for i, (_, _, place) in enumerate(a_parts):
                amx.on_tiles(e, "tileloadd64", [amx.tile_number(_A[i]), e.pointer(e.add(place, a_at), I8), row_a])
            for i, (m, part_a, _) in enumerate(a_parts):
                for j, (n, part_b, _) in enumerate(b_parts):
                    to = next(s for x, y, s in scheme.products if (x, y) == (part_a, part_b))
                    tiles = [amx.tile_number(t) for t in (held[m, n, to], _A[i], _B[j])]
                    amx.on_tiles(e, _instruction(scheme, part_a, part_b), tiles)
            k.result = [e.add(a_at, step_a), e.add(b_at, step_b)]
    width = 4 * TILE_WORDS * panels  # bytes of a row of the sums
    for (m, n, s), tile in held.items():
        at = ((s * row_tiles + m) * TILE_ROWS) * width + 4 * TILE_WORDS * n
        amx.on_tiles(e, "tilestored64", [e.pointer(e.add(sums, at), I8), e.i(width), amx.tile_number(tile)])
    return e


def _instruction(scheme: Scheme, part_a: int, part_b: int) -> str:
    """Signs of the bytes: x of INT8 is unsigned, of 16-bit numbers the second part is."""
    signs = "u8s8" if scheme.a == "byte" else ("s8s8", "s8u8", "u8s8", "u8u8")[2 * part_a + part_b]
    return amx.INSTRUCTIONS[signs]


# ---- words of two shorts, or of four bytes


def _words(target: Target, scheme: Scheme) -> Emitter:
    e = Emitter(target, f"{scheme.how}_{scheme.b}_{target.name}_{scheme.rows}", BLOCK)
    a, row_a, _, b, plane_b, _, segments, count, steps, chunk, sums = e.args
    vectors, parts, words = scheme.width // e.lanes, len(scheme.shifts), ir.VectorType(I32, e.lanes)
    zero = ir.Constant(words, [0] * e.lanes)
    places = [(m, p, v) for m in range(scheme.rows) for p in range(parts) for v in range(vectors)]
    table = e.pointer(segments, I64)
    with e.loop(count, [zero] * len(places), name="segment") as segment:
        pair = e.at(table, e.mul(segment.index, 2))
        a_at, b_at = e.add(a, e.load_int(pair)), e.add(b, e.load_int(e.at(pair, 1)))
        with e.loop(e.mul(steps, chunk), [*segment.carried, a_at, b_at], name="k") as k:
            *sums_, a_k, b_k = k.carried
            panel = [[e.b.bitcast(e.load(e.pointer(e.add(b_k, e.mul(plane_b, p), 4 * v * e.lanes))), words)
                      for v in range(vectors)] for p in range(parts)]  # fmt: skip
            for i, (m, p, v) in enumerate(places):
                if p == v == 0:
                    place = e.pointer(e.add(a_k, e.mul(row_a, m)), I32)
                    word = e.splat(e.b.load(place, align=1))  # taps of a gradient begin at any element
                sums_[i] = _dot(e, scheme, sums_[i], word, panel[p][v])
            k.result = [*sums_, e.add(a_k, 4), e.add(b_k, 4 * scheme.width)]
        segment.result = k.result[:-2]
    for (m, p, v), value in zip(places, segment.result, strict=True):
        at = 4 * ((p * scheme.rows + m) * scheme.width + v * e.lanes)
        e.store(e.b.bitcast(value, e.vector), e.pointer(e.add(sums, at)))
    return e


def _has_vpdpwssd(target: Target) -> bool:
    return target.has("avx512vnni") or (target.name == "avx2" and target.has("avxvnni"))


def _dot(e: Emitter, scheme: Scheme, total: Value, x: Value, y: Value) -> Value:
    """total + the products of the shorts, or bytes, of two words."""
    if scheme.how == "bytes":
        return bits.dot_bytes(e, total, x, y)
    words = total.type
    if _has_vpdpwssd(e.target):
        name = f"llvm.x86.avx512.vpdpwssd.{e.target.bits}"
        return e.b.call(e.declare(name, ir.FunctionType(words, [words] * 3)), [total, x, y])
    if e.target.name == "neon":
        sixteen = ir.Constant(words, [16] * e.lanes)
        high = e.b.mul(e.b.ashr(x, sixteen), e.b.ashr(y, sixteen))
        low = [e.b.ashr(e.b.shl(word, sixteen), sixteen) for word in (x, y)]
        return e.b.add(total, e.b.add(high, e.b.mul(*low)))
    shorts = ir.VectorType(ir.IntType(16), 2 * e.lanes)
    name = {512: "avx512.pmaddw.d.512", 256: "avx2.pmadd.wd", 128: "sse2.pmadd.wd"}[e.target.bits]
    both = e.declare(f"llvm.x86.{name}", ir.FunctionType(words, [shorts, shorts]))
    return e.b.add(total, e.b.call(both, [e.b.bitcast(x, shorts), e.b.bitcast(y, shorts)]))
