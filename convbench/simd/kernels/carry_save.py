"""Products of signs in 32-bit words, counted in pairs: five instructions for two words where counting takes six.

D[m, n] = sum over words k:  popcount(A[a(m) + a(k)] ^ B[k, n])
out[m, n] = (base[m's class, n] - 2 D[m, n]) (alpha[n] beta[m])

A bit is 1 where a number is negative, so D counts the products that are -1. Let x, y be two words of A, u, v two of B,
s a register of each sum. The sum of the three bits x ^ u, y ^ v and s is a bit and a carry (a full adder):

    s' = s ^ (x ^ y) ^ (u ^ v)        t = x ^ u        carry = majority(s, t, s ^ t ^ s')

and only the carry, which weighs two, has to be counted: D = 2 (sum of popcount(carry)) + popcount(s at the end). Both
operands are stored as (x, x ^ y), so that s' and t take one instruction each, and so does the carry, a function of s, t
and s'. With the count and its addition these are 5 instructions for 2 words (Harley and Seal's counting, in Warren,
"Hacker's Delight", 2nd ed., section 5-1, but with both differences shared between its stages). Another adder on the
carries would save a count and its addition, and take two instructions itself.
"""

from __future__ import annotations

import llvmlite.ir as ir

from convbench.simd.compiler import kernel
from convbench.simd.emit import I32, I64, Emitter, Value
from convbench.simd.target import Target

#: entries: address of `pixels` times ENTRY integers. a, b: addresses; a's offsets count words. steps: address of the
#: offsets into a of `pairs` pairs of words; each pair is two rows of the panel b. base: address of int32. alpha, beta:
#: of float32 (not read unless scaled).
ARGUMENTS = ("pixels", "columns", "entries", "a", "b", "steps", "pairs", "out", "base", "alpha", "beta")
#: Integers of a pixel: its offset into a, into out, into base (elements), its number in beta.
ENTRY = 4
#: majority(s, t, s ^ t ^ w) = t where s = t, otherwise not w, as the truth table of VPTERNLOG over (s, t, w).
_CARRY = 0b11010100


def rows_for(target: Target, vectors: int) -> int:
    """Pixels of a block: two registers for each sum beside four of B and what a step needs; addresses fit too."""
    return max(1, min(7, (target.registers - 2 * vectors - 4) // (2 * vectors)))


@kernel
def products(target: Target, vectors: int, scaled: bool) -> Emitter:
    """The kernel for panels of `vectors` registers. Rows of B are read whole."""
    rows = rows_for(target, vectors)
    e = Emitter(target, f"signs_{target.name}_{rows}x{vectors}{'_scaled' if scaled else ''}", ARGUMENTS)
    pixels, columns, entries = e.args[:3]
    masks = [e.mask(e.sub(columns, v * e.lanes)) for v in range(vectors)]
    with e.loop(pixels, step=rows, name="block") as block:
        table = e.at(e.pointer(entries, I64), e.mul(block.index, ENTRY))
        with e.cases(e.minimum(e.sub(pixels, block.index), rows), range(1, rows + 1)) as each:
            for count in each:
                _block(e, count, table, masks, scaled)
    return e


def _block(e: Emitter, rows: int, table: Value, masks: list[Value], scaled: bool) -> None:
    _, _, _, a, b, steps, pairs, *_ = e.args
    vectors, words = len(masks), ir.VectorType(I32, e.lanes)
    zeros = [ir.Constant(words, [0] * e.lanes)] * (rows * vectors)
    a_rows = [e.at(e.pointer(a, I32), e.load_int(e.at(table, ENTRY * m))) for m in range(rows)]
    panel_row, offsets = vectors * e.lanes, e.pointer(steps, I64)
    with e.loop(pairs, [*zeros, *zeros, e.pointer(b)], name="pair") as k:
        *state, b_k = k.carried
        counts, odd = state[: len(zeros)], state[len(zeros) :]
        offset = e.load_int(e.at(offsets, k.index))
        first, both = (
            [e.b.bitcast(e.load(e.at(b_k, row * panel_row + v * e.lanes)), words) for v in range(vectors)]
            for row in range(2)
        )
        for m in range(rows):
            x, xy = e.broadcast(e.at(a_rows[m], offset)), e.broadcast(e.at(a_rows[m], offset, 1))
            for v in range(vectors):
                i = m * vectors + v
                t = e.b.xor(x, first[v])
                s = e.b.xor(e.b.xor(xy, both[v]), odd[i])
                counts[i] = e.b.add(counts[i], _ones(e, _carry(e, odd[i], t, s)))
                odd[i] = s
        k.result = [*counts, *odd, e.at(b_k, 2 * panel_row)]
    *state, _ = k.result
    _finish(e, table, state[: len(zeros)], state[len(zeros) :], masks, scaled)


def _finish(
    e: Emitter, table: Value, counts: list[Value], odd: list[Value], masks: list[Value], scaled: bool
) -> None:
    *_, out, base, alpha, beta = e.args
    vectors, words = len(masks), ir.VectorType(I32, e.lanes)
    scales = [e.load(e.at(e.pointer(alpha), v * e.lanes), mask) for v, mask in enumerate(masks)] if scaled else []
    for i, (count, s) in enumerate(zip(counts, odd, strict=True)):
        m, v = divmod(i, vectors)
        place, start, number = (e.load_int(e.at(table, ENTRY * m + j)) for j in (1, 2, 3))
        differ = e.b.add(e.b.add(count, count), _ones(e, s))
        most = e.b.bitcast(e.load(e.at(e.pointer(base), start, v * e.lanes), masks[v]), words)
        value = e.b.sitofp(e.b.sub(most, e.b.add(differ, differ)), e.vector)
        if scaled:
            value = e.fmul(value, e.fmul(scales[v], e.broadcast(e.at(e.pointer(beta), number))))
        e.store(value, e.at(e.pointer(out), place, v * e.lanes), masks[v])


def _carry(e: Emitter, s: Value, t: Value, w: Value) -> Value:
    """t where s = t, otherwise not w."""
    if e.target.has("avx512f"):
        kind = ir.FunctionType(s.type, [s.type, s.type, s.type, I32])
        select = e.declare(f"llvm.x86.avx512.pternlog.d.{e.target.bits}", kind)
        return e.b.call(select, [s, t, w, ir.Constant(I32, _CARRY)])
    differ = e.b.xor(s, t)
    return e.b.or_(e.b.and_(s, t), e.b.and_(differ, e.b.not_(w)))


def _ones(e: Emitter, value: Value) -> Value:
    """Ones in each word. LLVM writes the count out where the unit has none."""
    count = e.declare(f"llvm.ctpop.v{e.lanes}i32", ir.FunctionType(value.type, [value.type]))
    return e.b.call(count, [value])


