"""Cook-Toom matrices of minimal filtering algorithms F(m, r), exact, for any interpolation points.

Toom (1963) and Cook (1966) multiply polynomials by evaluating at points, one of them infinity; the transposed
algorithm (Winograd, "Arithmetic Complexity of Computations", 1980, chapter 4) turns the product into a
correlation: Y = A^T [(G g) * (B^T d)], Lavin and Gray, arXiv 1509.09308, section 4. Points: see POINTS.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Matrix = tuple[tuple[Fraction, ...], ...]

_HALF = Fraction(1, 2)
#: Finite points by their number m + r - 2; infinity is always added. Barabasz, Anderson, Soodhalter and Gregg
#: (arXiv 1803.10986) found them to lose least: {1/2, -2} halves the error of Lavin's +-2, and +-1/2 beats
#: +-3 by a factor of 100 at eight points.
POINTS: dict[int, tuple[Fraction, ...]] = {
    3: (Fraction(0), Fraction(1), Fraction(-1)),
    5: (Fraction(0), Fraction(1), Fraction(-1), _HALF, Fraction(-2)),
    7: (Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2), _HALF, -_HALF),
}


@dataclass(frozen=True)
class CookToom:
    """F(m, r): m outputs of an r-tap correlation from alpha = m + r - 1 products, in exact fractions.

    `at` is (m, alpha), `g` is (alpha, r), `bt` is (alpha, alpha): y = at @ ((g @ w) * (bt @ d)) for taps w, alpha
    inputs d.
    """

    m: int
    r: int
    at: Matrix
    g: Matrix
    bt: Matrix

    @property
    def alpha(self) -> int:
        """Points, infinity included: products per m outputs and inputs per tile."""
        return self.m + self.r - 1


@functools.cache
def cook_toom(m: int, r: int, points: tuple[Fraction, ...] | None = None) -> CookToom:
    """F(m, r) over `points` and infinity; without points, those of POINTS for m + r - 2 of them.

    The factors 1/f of Lagrange interpolation sit in G, so that B^T and A^T hold small numbers; signs are such
    that G's first column is positive where the point is 0. Raises ValueError unless there are m + r - 2
    different points.
    """
    points = POINTS.get(m + r - 2) if points is None else tuple(Fraction(p) for p in points)
    if points is None or len(set(points)) != len(points) or len(points) != m + r - 2:
        raise ValueError(f"F({m},{r}) needs {m + r - 2} different finite points, not {points}")
    at, g, bt = [], [], []
    for j, point in enumerate(points):
        others = points[:j] + points[j + 1 :]
        factor = functools.reduce(lambda f, other: f * (point - other), others, Fraction(1))
        sign = -1 if point == 0 and factor < 0 else 1
        at.append([point**i for i in range(m)])
        g.append([sign * point**i / factor for i in range(r)])
        bt.append([sign * c for c in _from_roots(others)] + [Fraction(0)])
    at.append([Fraction(int(i == m - 1)) for i in range(m)])
    g.append([Fraction(int(i == r - 1)) for i in range(r)])
    bt.append(_from_roots(points))
    return CookToom(m, r, tuple(zip(*at, strict=True)), _frozen(g), _frozen(bt))


def as_array(matrix: Matrix, dtype: Any) -> np.ndarray:
    """A matrix of fractions, each rounded once to `dtype`."""
    return np.array([[float(value) for value in row] for row in matrix], dtype)


def kron_array(matrix: Matrix, dtype: Any) -> np.ndarray:
    """The Kronecker square: (rows^2, columns^2), a two-sided transform as one product; rounded once."""
    wide = as_array(matrix, np.float64)
    return np.kron(wide, wide).astype(dtype)


def _from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest power first, of the product of (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _frozen(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)
