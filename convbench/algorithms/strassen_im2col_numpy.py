"""im2col whose product takes one level of Strassen's algorithm: seven products of half size instead of eight.

V. Strassen 1969, "Gaussian elimination is not optimal", Numerische Mathematik 13; for convolutions: J. Cong and
B. Xiao 2014, "Minimizing computation in convolutional neural networks".
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from convbench.algorithms._im2col import Im2col, images_of_problem
from convbench.algorithms._window import is_transposed
from convbench.algorithms._window import product as plain_product
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register

# Seven products (a) @ (b) and where they are added: quadrants are numbered 11 12 21 22 as (row, column).
_Q11, _Q12, _Q21, _Q22 = (0, 0), (0, 1), (1, 0), (1, 1)
#: A product with a shorter side is not split: nothing to gain, and errors of quadrants of unlike size would mix.
LEAST_SIDE = 8

Quadrant = tuple[int, int]
Terms = tuple[tuple[Quadrant, int], ...]
_STEPS: tuple[tuple[Terms, Terms, Terms], ...] = (
    (((_Q11, 1), (_Q22, 1)), ((_Q11, 1), (_Q22, 1)), ((_Q11, 1), (_Q22, 1))),
    (((_Q21, 1), (_Q22, 1)), ((_Q11, 1),), ((_Q21, 1), (_Q22, -1))),
    (((_Q11, 1),), ((_Q12, 1), (_Q22, -1)), ((_Q12, 1), (_Q22, 1))),
    (((_Q22, 1),), ((_Q21, 1), (_Q11, -1)), ((_Q11, 1), (_Q21, 1))),
    (((_Q11, 1), (_Q12, 1)), ((_Q22, 1),), ((_Q11, -1), (_Q12, 1))),
    (((_Q21, 1), (_Q11, -1)), ((_Q11, 1), (_Q12, 1)), ((_Q22, 1),)),
    (((_Q12, 1), (_Q22, -1)), ((_Q21, 1), (_Q22, 1)), ((_Q11, 1),)),
)


@register
class StrassenIm2colNumpy(Implementation):
    """One level of Strassen on the im2col product, group by group; products with a side below 8 stay whole.

    Odd sides: a quadrant that is one row or column short counts as padded with zeros; nothing is copied for it.

    Integers stay exact when the range leaves headroom: a sum of two quadrants doubles each operand, so that a
    product over n/2 terms reaches 2 n max|x| max|w|, and the first quadrant collects 2 + 1 + 1 + 2 of them in the
    worst case: 6 n max|x| max|w| must stay below 2^24, hence `integer_headroom` 8.

    error_growth 5: twice the largest measured, 2.5 (the factor's maximum taken over the image, see error_footprint),
    over 13 shapes (up to C = 512, 3x3; 1x1, 5x5 stride 2, depthwise, N P Q up to 40,000), three passes, both
    layouts, two seeds, in float32; relative L2 at most 0.44.
    """

    name = "strassen_im2col_numpy"
    reference = "Strassen 1969; Cong and Xiao 2014"
    error_growth = 5.0
    integer_headroom: ClassVar[int] = 8

    def error_footprint(self, problem: Problem) -> tuple[int, int] | None:
        """Quadrants of the product mix pixels of the whole image."""
        height, width = problem.out_shape[2:] if problem.layout == "nchw" else problem.out_shape[1:3]
        return height, width

    def workspace_estimate(self, problem: Problem) -> int:
        """im2col's, and half by half for two sums and one product."""
        return Im2col.workspace(problem) + Strassen.workspace(_sides(problem), problem.item_bytes)

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Seven products of half size, and the additions of quadrants before and after them."""
        shape = problem.shape
        images = images_of_problem(problem)
        multiply = add = 0.0
        for m in {images, shape.n % images or images}:
            count = shape.n // images if m == images else 1
            sides = (m * shape.p * shape.q, shape.cg * shape.r * shape.s, shape.kg)
            if problem.pass_ is Pass.BACKWARD_DATA:
                sides = (sides[0], sides[2], sides[1])
            elif problem.pass_ is Pass.BACKWARD_WEIGHTS:
                sides = (sides[2], sides[0], sides[1])
            one = Strassen.flops(*sides)
            multiply += count * shape.groups * one[0]
            add += count * shape.groups * one[1]
        return {"multiply": multiply, "add": add}

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; there is nothing to pack."""
        multiply = Strassen(_sides(problem), problem.dtype, context)

        def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            for i in range(a.shape[0]):
                multiply(a[i], b[i], out[i])

        return bind_weights(Im2col(problem, context, product).run(), weights, context)


def _sides(problem: Problem) -> tuple[int, int, int]:
    """Pixels, taps and output channels of the largest product."""
    s = problem.shape
    return images_of_problem(problem) * s.p * s.q, s.cg * s.r * s.s, s.kg


class Strassen:
    """out = a @ b for matrices up to the given sides, through seven products of quadrants."""

    def __init__(self, sides: tuple[int, int, int], dtype: str, context: Context) -> None:
        self._flat = None
        if min(sides) >= LEAST_SIDE:
            self._flat = context.empty(Strassen.workspace(sides, 1), dtype)

    @staticmethod
    def workspace(sides: tuple[int, int, int], item_bytes: int) -> int:
        """Bytes for a sum of quadrants of a, one of b, and one product; the order of the sides is the same."""
        if min(sides) < LEAST_SIDE:
            return 0
        m, k, n = (_halves(side)[0] for side in sides)
        return (m * k + k * n + m * n) * item_bytes

    @staticmethod
    def flops(m: int, k: int, n: int) -> tuple[float, float]:
        """Operations of the products, and of the additions around them."""
        if min(m, k, n) < LEAST_SIDE:
            return 2.0 * m * k * n, 0.0
        multiply = add = 0
        fresh = set()
        for left, right, to in _STEPS:
            (rows, inner_a), (inner_b, cols) = _extent(left, m, k), _extent(right, k, n)
            multiply += 2 * rows * min(inner_a, inner_b) * cols
            add += (len(left) - 1) * rows * inner_a + (len(right) - 1) * inner_b * cols
            for quadrant, _ in to:
                r, c = _extent(((quadrant, 1),), m, n)
                add += min(r, rows) * min(c, cols) if quadrant in fresh else 0
                fresh.add(quadrant)
        return float(multiply), float(add)

    def __call__(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """a (M, K), b (K, N), out (M, N), each stored by rows or by columns."""
        if is_transposed(out[None]):
            a, b, out = b.T, a.T, out.T
        (m, k), n = a.shape, b.shape[1]
        if min(m, k, n) < LEAST_SIDE:
            plain_product(a[None], b[None], out[None])
            return
        assert self._flat is not None
        m1, k1, n1 = (_halves(side)[0] for side in (m, k, n))
        sum_a, sum_b = self._flat[: m1 * k1], self._flat[m1 * k1 : m1 * k1 + k1 * n1]
        results = self._flat[m1 * k1 + k1 * n1 :]
        fresh: set[Quadrant] = set()
        for left, right, to in _STEPS:
            one, two = _signed_sum(a, left, sum_a), _signed_sum(b, right, sum_b)
            inner = min(one.shape[1], two.shape[0])  # beyond it one of the two is padded with zeros
            result = results[: one.shape[0] * two.shape[1]].reshape(one.shape[0], two.shape[1])
            np.matmul(one[:, :inner], two[:inner], out=result)
            for quadrant, sign in to:
                _add(_quadrant(out, quadrant), result, sign, quadrant not in fresh)
                fresh.add(quadrant)


def _halves(side: int) -> tuple[int, int]:
    return (side + 1) // 2, side // 2


def _quadrant(matrix: np.ndarray, quadrant: Quadrant) -> np.ndarray:
    """One of the four parts; the second row and column of parts are the shorter ones of an odd side."""
    rows, cols = (_halves(side)[0] for side in matrix.shape)
    down, right = quadrant
    return matrix[rows if down else 0 : None if down else rows, cols if right else 0 : None if right else cols]


def _extent(terms: Terms, rows: int, cols: int) -> tuple[int, int]:
    """Shape of a sum of quadrants of a (rows, cols) matrix."""
    return max(_halves(rows)[q[0]] for q, _ in terms), max(_halves(cols)[q[1]] for q, _ in terms)


def _signed_sum(matrix: np.ndarray, terms: Terms, buffer: np.ndarray) -> np.ndarray:
    """The sum in the matrix's own storage order, in the buffer; a single quadrant is a view."""
    parts = [_quadrant(matrix, quadrant) for quadrant, _ in terms]
    if len(parts) == 1:
        return parts[0]
    rows, cols = _extent(terms, *matrix.shape)
    flat = buffer[: rows * cols]
    total = flat.reshape(cols, rows).T if is_transposed(matrix[None]) else flat.reshape(rows, cols)
    if parts[0].shape == parts[1].shape:
        (np.add if terms[1][1] > 0 else np.subtract)(parts[0], parts[1], out=total)
        return total
    total.fill(0)
    for part, (_, sign) in zip(parts, terms, strict=True):
        _add(total[: part.shape[0], : part.shape[1]], part, sign, fresh=False)
    return total


def _add(to: np.ndarray, part: np.ndarray, sign: int, fresh: bool) -> None:
    """to += sign * part where both exist; `fresh`: to = part, which then covers it (its sign is +1)."""
    rows, cols = min(to.shape[0], part.shape[0]), min(to.shape[1], part.shape[1])
    target, source = to[:rows, :cols], part[:rows, :cols]
    if fresh:
        np.copyto(target, source)
    else:
        (np.add if sign > 0 else np.subtract)(target, source, out=target)
