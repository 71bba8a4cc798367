"""The numbers that define low precision: how many bits, where the binary point is, what is drawn for a rounding.

A row and the oracle that judges it both take these from here, and nothing else from each other. Definitions, on
float32 operands x and w (or dy), n = products summed into one result:

INT8 (forward). All of it in float32 arithmetic, rint to even. lo = min(0, min x), hi = max(0, max x), scale
s = (hi - lo) / 255 (1 where that is below INT8_LEAST), inverse i = 1 / s, zero point
z = clip(rint(-128 - lo i), -128, 127), q = clip(rint(x i) + z, -128, 127). Of each filter: m = max |w|, s_k = m / 127
(1 where below INT8_LEAST), i_k = 1 / s_k, q = clip(rint(w i_k), -127, 127). y = (s s_k) * sum of (q_x - z) q_w, the sum
exact, s s_k rounded to float32, the product rounded once.

FIXED16 <IL, FL>: IL + FL = 16; a number v is clip(round(v 2^FL), -2^15, 2^15 - 1) 2^-FL. Operands have FIXED_FRACTION
fraction bits. The sum of products is exact; the result has `fixed_result_fraction(n)` fraction bits, so that four
standard deviations of a sum of standard normal products fit. Rounding to nearest, ties to even; or stochastic: up with
probability equal to the distance from the number below, decided by whether 24 random bits, `rounding.uniform24`, are
less than that distance (an operand's in float32, a result's in units of 2^-24 of its step, rounded down). They are
drawn at the element's index in logical (N, C, H, W) order, with the operand's seed out of ROUNDING_SEEDS. Gupta et al.,
"Deep Learning with Limited Numerical Precision", arXiv 1502.02551, section 3.

DYNAMIC_FIXED: an operand is clip(rint(v 2^(B-1-e)), -2^(B-1), 2^(B-1) - 1) 2^(e-B+1), B = 10, with the least exponent
e that leaves at most one in OVERFLOW_ONE_IN of its elements with |v| >= 2^e (never below LEAST_EXPONENT). The result
has B = 10 bits (dw: 12), the exponent of `dynamic_result_exponent`, and an exact sum that is rounded once. Courbariaux,
David and Bengio, "Training deep neural networks with low precision multiplications", arXiv 1412.7024, sections 5 and 6
(where overflow in earlier batches sets e).

XNOR: alpha_k = mean of |w| over a filter, beta = mean of |x| over the channels of a group, averaged over the window
(R S places, padding counted as 0); y = alpha_k * beta * (sum of the products of signs). Rastegari et al., "XNOR-Net",
arXiv 1603.05279, section 3. BINARY_WEIGHTS: x with alpha_k sign(w), there section 3.1.

Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from convbench.problem import ITEM_BYTES, Pass, Problem, Semantics

INT8_LEAST = 2.0**-100
FIXED_BITS = 16
FIXED_FRACTION = 12
DYNAMIC_BITS = 10
UPDATE_BITS = 12
OVERFLOW_ONE_IN = 10_000
LEAST_EXPONENT = -60
#: From there on float32 leaves out whole numbers.
MOST_SIGNS = 2**24
#: Operand a, operand b, result.
ROUNDING_SEEDS = (1, 2, 3)

#: What the machine multiplies in, by semantics, where a row does not say something narrower.
ARITHMETIC = {
    Semantics.BINARY: "binary",
    Semantics.XNOR: "binary",
    Semantics.BINARY_WEIGHTS: "float32",
    Semantics.INT8: "int8-acc32",
    Semantics.FIXED16: "int16-acc64",
    Semantics.FIXED16_STOCHASTIC: "int16-acc64",
    Semantics.DYNAMIC_FIXED: "int10-acc64",
}
#: Which passes have a meaning. A gradient through signs is that of a real convolution: BINARY_WEIGHTS, or linear.
PASSES: dict[Semantics, tuple[Pass, ...]] = {
    Semantics.LINEAR: tuple(Pass),
    Semantics.BINARY: (Pass.FORWARD,),
    Semantics.XNOR: (Pass.FORWARD,),
    Semantics.BINARY_WEIGHTS: (Pass.FORWARD, Pass.BACKWARD_DATA),
    Semantics.INT8: (Pass.FORWARD,),
    Semantics.FIXED16: tuple(Pass),
    Semantics.FIXED16_STOCHASTIC: tuple(Pass),
    Semantics.DYNAMIC_FIXED: tuple(Pass),
}
_WEIGHT_BITS = {
    Semantics.BINARY: 1,
    Semantics.XNOR: 1,
    Semantics.BINARY_WEIGHTS: 1,
    Semantics.INT8: 8,
    Semantics.FIXED16: 16,
    Semantics.FIXED16_STOCHASTIC: 16,
    Semantics.DYNAMIC_FIXED: 10,
}
#: Semantics whose filters have a float32 scale each.
_SCALED = (Semantics.XNOR, Semantics.BINARY_WEIGHTS, Semantics.INT8)


def undefined(problem: Problem) -> str | None:
    """A sentence where the semantics has no meaning for the problem's type or pass, or None."""
    semantics, passes = problem.semantics, PASSES[problem.semantics]
    if semantics is not Semantics.LINEAR and problem.dtype != "float32":
        return f"semantics {semantics} is defined on float32 operands, not {problem.dtype}: give it float32"
    if problem.pass_ not in passes:
        return f"semantics {semantics} is defined for {' and '.join(passes)}, not for {problem.pass_}"
    return None


def too_many_signs(problem: Problem) -> str | None:
    """A sentence where a BINARY result, a whole number, may be none that float32 holds; None elsewhere."""
    n = problem.accumulation_length
    if problem.semantics is not Semantics.BINARY or n <= MOST_SIGNS:
        return None
    return f"sums of more than 2^24 signs may be no float32 numbers, these have {n}"


def half_log2(n: int) -> int:
    """ceil(log2(sqrt(n))): the least t with 4^t >= n."""
    return (max(n, 1) - 1).bit_length() + 1 >> 1


def fixed_result_fraction(n: int) -> int:
    """Fraction bits of a FIXED16 result of n products: 2^(15 - FL) >= 4 sqrt(n)."""
    return FIXED_BITS - 1 - 2 - half_log2(n)


def dynamic_bits(pass_: Pass) -> int:
    """Bits of a DYNAMIC_FIXED result."""
    return UPDATE_BITS if pass_ is Pass.BACKWARD_WEIGHTS else DYNAMIC_BITS


@dataclass(frozen=True)
class DynamicOperand:
    """A DYNAMIC_FIXED operand: its exponent, how many elements it has, and the sum of the squares of its whole numbers.

    Whole numbers are those before the last factor 2^(exponent - DYNAMIC_BITS + 1).
    """

    exponent: int
    size: int
    squares: int


def dynamic_result_exponent(a: DynamicOperand, b: DynamicOperand, n: int) -> int:
    """Exponent of a DYNAMIC_FIXED result: the least e with 2^e >= 4 rms(a) rms(b) sqrt(n), in exact arithmetic.

    Four standard deviations of a sum of n products with mean 0. a.exponent + b.exponent where an operand is all 0.
    """
    lift = a.exponent + b.exponent - 2 * (DYNAMIC_BITS - 1)  # a product of whole numbers is so many powers of two
    need, have = 16 * n * a.squares * b.squares, a.size * b.size  # 4^(e - lift) have >= need
    if not need:
        return a.exponent + b.exponent
    e = (need.bit_length() - have.bit_length()) // 2 - 1  # at most the right one, and hardly less
    while 4 ** max(e, 0) * have < need * 4 ** max(-e, 0):
        e += 1
    return e + lift


def weight_bytes(problem: Problem) -> int:
    """Bytes in which the filter is stored in this format: its numbers, and its scales where it has them."""
    s = problem.shape
    count = s.k * s.cg * s.r * s.s
    bits = _WEIGHT_BITS.get(problem.semantics, 8 * ITEM_BYTES[problem.dtype])
    return -(-count * bits // 8) + (4 * s.k if problem.semantics in _SCALED else 0)
