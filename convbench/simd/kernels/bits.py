"""Matrix products of narrow numbers, packed into 32-bit words: 32 bits (popcount of the difference), 4 bytes, 2 bf16.

C[m, n] (+)= sum over segments s, sum over k:  dot(A[a(s) + m row_a + k], B[b(s) + k row_b + n])

A and B hold 32-bit words, C one 32-bit sum for each word of a row of B. The blocks are those of `gemm.brgemm`: a word
of A is broadcast, a row of B is read from a packed panel. What `dot` of two words is:

bits   int32: how many of 32 bits differ. A product of +-1 vectors of n bits is n - 2 dot (Rastegari et al.,
       "XNOR-Net", arXiv 1603.05279, section 3.2).
u8s8   int32: the sum of four products of an unsigned byte of A and a signed byte of B. Exact, modulo 2^32.
bf16   float32: the sum of two products of bfloat16, the first in the lower half of the word.

Where the unit has an instruction for it (AVX512_VPOPCNTDQ; AVX512_VNNI, AVX-VNNI, NEON's I8MM; AVX512_BF16) it is used;
elsewhere a handful of ordinary instructions gives the same numbers, more slowly.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import Kernel, kernel
from convbench.simd.emit import F32, I8, I32, I64, Emitter, Value
from convbench.simd.kernels.gemm import Shape
from convbench.simd.target import Target

KINDS = ("bits", "u8s8", "bf16")
#: As gemm.ARGUMENTS without step_a: words of a row of A are neighbours. Strides and offsets count 32-bit words.
ARGUMENTS = (
    "rows", "columns", "a", "row_a", "b", "row_b", "segments", "count", "depth", "c", "row_c", "accumulate",
)  # fmt: skip


def has_instruction(target: Target, kind: str) -> bool:
    """Whether `dot` of this kind is one instruction (bits: whether counting is) on the unit."""
    if kind == "bits":
        return target.has("avx512vpopcntdq") or target.name == "neon"
    if kind == "u8s8":
        return target.has("avx512vnni") or (target.name == "avx2" and target.has("avxvnni")) or target.has("i8mm")
    return target.has("avx512bf16")


def shape_for(target: Target, kind: str, vectors: int) -> Shape:
    """As many rows as registers allow beside B, the word of A, and what the emulation needs."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    spare = 2 if has_instruction(target, kind) else 5
    return Shape(max(1, min(14, (target.registers - vectors - spare) // vectors)), vectors)


@kernel
def narrow_brgemm(target: Target, shape: Shape, kind: str) -> Emitter:
    """The kernel for one block shape. Rows of B are read whole: its last panel has to be padded to shape.columns."""
    e = Emitter(target, f"{kind}_{target.name}_{shape.rows}x{shape.vectors}", ARGUMENTS)
    masks = [e.mask(e.sub(e.args[1], v * e.lanes)) for v in range(shape.vectors)]
    with e.cases(e.args[0], range(1, shape.rows + 1)) as each:
        for rows in each:
            _block(e, rows, masks, kind)
    return e


def narrow_kernel(target: Target, kind: str, vectors: int = 2) -> tuple[Kernel, Shape]:
    """The kernel of a kind with `vectors` registers of B, and its block shape."""
    shape = shape_for(target, kind, vectors)
    return narrow_brgemm(target, shape, kind), shape


def _block(e: Emitter, rows: int, masks: list[Value], kind: str) -> None:
    _, _, a, row_a, b, row_b, segments, count, depth, c, row_c, accumulate = e.args
    vectors = len(masks)
    element = F32 if kind == "bf16" else I32
    whole = ir.VectorType(element, e.lanes)
    places = [e.at(e.pointer(c), e.mul(row_c, m), v * e.lanes) for m in range(rows) for v in range(vectors)]

    def zeros() -> list[Value]:
        return [ir.Constant(whole, [element(0)] * e.lanes)] * len(places)

    def held() -> list[Value]:
        return [e.b.bitcast(e.load(p, masks[i % vectors]), whole) for i, p in enumerate(places)]

    sums = e.choose(e.b.icmp_signed("!=", accumulate, e.i(0)), held, zeros)
    table = e.pointer(segments, I64)
    with e.loop(count, sums, name="segment") as segment:
        pair = e.mul(segment.index, 2)
        a_at = e.at(e.pointer(a, I32), e.load_int(e.at(table, pair)))
        b_at = e.at(e.pointer(b), e.load_int(e.at(table, e.add(pair, 1))))
        with e.loop(depth, [*segment.carried, a_at, b_at], name="k") as k:
            *acc, a_k, b_k = k.carried
            panel = [e.b.bitcast(e.load(e.at(b_k, v * e.lanes)), ir.VectorType(I32, e.lanes)) for v in range(vectors)]
            for m in range(rows):
                word = e.broadcast(e.at(a_k, e.mul(row_a, m)))
                for v in range(vectors):
                    i = m * vectors + v
                    acc[i] = _DOTS[kind](e, acc[i], word, panel[v])
            k.result = [*acc, e.at(a_k, 1), e.at(b_k, row_b)]
        segment.result = k.result[:-2]
    for i, value in enumerate(segment.result):
        e.store(e.b.bitcast(value, e.vector), places[i], masks[i % vectors])


def _count_differences(e: Emitter, total: Value, x: Value, y: Value) -> Value:
    """total + popcount(x ^ y). LLVM expands the count where the unit has none."""
    differ = e.b.xor(x, y)
    count = e.declare(f"llvm.ctpop.v{e.lanes}i32", ir.FunctionType(differ.type, [differ.type]))
    return e.b.add(total, e.b.call(count, [differ]))


def dot_bytes(e: Emitter, total: Value, x: Value, y: Value) -> Value:
    """total + the four products of x's unsigned and y's signed bytes."""
    words = total.type
    if not has_instruction(e.target, "u8s8"):
        for byte in range(4):
            unsigned = e.b.and_(_shift(e, e.b.lshr, x, 8 * byte), ir.Constant(words, [255] * e.lanes))
            signed = _shift(e, e.b.ashr, _shift(e, e.b.shl, y, 24 - 8 * byte), 24)
            total = e.b.add(total, e.b.mul(unsigned, signed))
        return total
    if e.target.name == "neon":
        octets = ir.VectorType(I8, 4 * e.lanes)
        usdot = e.declare("llvm.aarch64.neon.usdot.v4i32.v16i8", ir.FunctionType(words, [words, octets, octets]))
        return e.b.call(usdot, [total, e.b.bitcast(x, octets), e.b.bitcast(y, octets)])
    name = f"llvm.x86.avx512.vpdpbusd.{e.target.bits}"  # of AVX-VNNI too
    return e.b.call(e.declare(name, ir.FunctionType(words, [words] * 3)), [total, x, y])


def _dot_bf16(e: Emitter, total: Value, x: Value, y: Value) -> Value:
    """total + the two products of the halves of x and y, taken as the upper halves of float32."""
    if has_instruction(e.target, "bf16"):
        kind = ir.FunctionType(e.vector, [e.vector, x.type, x.type])
        return e.b.call(e.declare(f"llvm.x86.avx512bf16.dpbf16ps.{e.target.bits}", kind), [total, x, y])
    upper = ir.Constant(x.type, [-65536] * e.lanes)
    high = [e.b.bitcast(e.b.and_(word, upper), e.vector) for word in (x, y)]
    low = [e.b.bitcast(_shift(e, e.b.shl, word, 16), e.vector) for word in (x, y)]
    return e.fma(low[0], low[1], e.fma(high[0], high[1], total))


def _shift(e: Emitter, operation: object, word: Value, bits: int) -> Value:
    """A word of every lane shifted by a constant."""
    return operation(word, ir.Constant(word.type, [bits] * e.lanes)) if bits else word  # type: ignore[operator]


_DOTS = {"bits": _count_differences, "u8s8": dot_bytes, "bf16": _dot_bf16}
