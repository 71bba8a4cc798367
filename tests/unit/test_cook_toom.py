"""Cook-Toom matrices: proven by algebra for every pair in use, and equal to the published ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import sympy

from convbench.algorithms._cook_toom import CookToom, as_array, cook_toom, kron_array

# forward and backward data: F(m, r); backward weights: F(r, m)
FORWARD = [(2, 3), (4, 3), (6, 3), (2, 5), (4, 5)]
PAIRS = FORWARD + [(r, m) for m, r in FORWARD]


def symbols(name: str, *sizes: int) -> np.ndarray:
    return np.array(sympy.symbols(f"{name}:{int(np.prod(sizes))}"), dtype=object).reshape(sizes)


def rational(matrix: tuple) -> np.ndarray:
    rows = [[sympy.Rational(v.numerator, v.denominator) for v in row] for row in matrix]
    return np.array(rows, dtype=object)


def is_zero(expression: sympy.Expr) -> bool:
    return sympy.expand(expression) == 0


@pytest.mark.parametrize(("m", "r"), PAIRS)
def test_one_dimension_is_correlation(m: int, r: int) -> None:
    f = cook_toom(m, r)
    at, g, bt = map(rational, (f.at, f.g, f.bt))
    assert at.shape == (m, m + r - 1) and g.shape == (m + r - 1, r) and bt.shape == (m + r - 1, m + r - 1)
    d, w = symbols("d", m + r - 1), symbols("w", r)
    y = at @ ((g @ w) * (bt @ d))
    for i in range(m):
        assert is_zero(y[i] - sum(w[t] * d[i + t] for t in range(r)))


@pytest.mark.parametrize(("m", "r"), PAIRS)
def test_two_dimensions_are_correlation_of_every_tap_with_every_input(m: int, r: int) -> None:
    """The nested algorithm is bilinear: its coefficient of w[u, v] d[a, b] in y[i, j], for all of them."""
    f = cook_toom(m, r)
    at, g, bt = (np.array(x, dtype=object) for x in (f.at, f.g, f.bt))
    # one-dimensional tensor: coefficient of w[u] d[a] in y[i]
    one = np.einsum("if,fu,fa->iua", at, g, bt)
    nested = np.einsum("iua,jvb->ijuvab", one, one)
    assert all(isinstance(value, Fraction | int) for value in nested.flat)
    alpha = m + r - 1
    i, j, u, v, a, b = np.ogrid[:m, :m, :r, :r, :alpha, :alpha]
    want = ((a == i + u) & (b == j + v)).astype(int)
    assert (nested == want).all()


def test_two_dimensions_symbolically() -> None:
    f = cook_toom(2, 3)
    at, g, bt = map(rational, (f.at, f.g, f.bt))
    d, w = symbols("d", 4, 4), symbols("w", 3, 3)
    y = at @ ((g @ w @ g.T) * (bt @ d @ bt.T)) @ at.T
    for i in range(2):
        for j in range(2):
            want = sum(w[u, v] * d[i + u, j + v] for u in range(3) for v in range(3))
            assert is_zero(y[i, j] - want)


def up_to_signs(got: CookToom, at: str, g: str, bt: str) -> None:
    """Same matrices if, point by point, the three signs cancel; published as rows separated by ';'."""
    want_at, want_g, want_bt = (
        np.array([[Fraction(v) for v in row.split()] for row in text.split(";")], dtype=object)
        for text in (at, g, bt)
    )
    got_at, got_g, got_bt = (np.array(x, dtype=object) for x in (got.at, got.g, got.bt))
    for point in range(got.alpha):
        signs = []
        for mine, theirs in (
            (got_at[:, point], want_at[:, point]),
            (got_g[point], want_g[point]),
            (got_bt[point], want_bt[point]),
        ):
            assert (mine == theirs).all() or (mine == -theirs).all(), f"point {point}"
            signs.append(1 if (mine == theirs).all() else -1)
        assert np.prod(signs) == 1, f"point {point}: signs {signs} change the result"


def test_f23_as_published() -> None:
    up_to_signs(
        cook_toom(2, 3),
        at="1 1 1 0;0 1 -1 -1",
        g="1 0 0;1/2 1/2 1/2;1/2 -1/2 1/2;0 0 1",
        bt="1 0 -1 0;0 1 1 0;0 -1 1 0;0 1 0 -1",
    )


def test_f43_with_lavins_points() -> None:
    up_to_signs(
        cook_toom(4, 3, tuple(map(Fraction, (0, 1, -1, 2, -2)))),
        at="1 1 1 1 1 0;0 1 -1 2 -2 0;0 1 1 4 4 0;0 1 -1 8 -8 1",
        g="1/4 0 0;-1/6 -1/6 -1/6;-1/6 1/6 -1/6;1/24 1/12 1/6;1/24 -1/12 1/6;0 0 1",
        bt="4 0 -5 0 1 0;0 -4 -4 1 1 0;0 4 -4 -1 1 0;0 -2 -1 2 1 0;0 2 -1 -2 1 0;0 4 0 -5 0 1",
    )


def test_f33_with_lavins_points() -> None:
    up_to_signs(
        cook_toom(3, 3, tuple(map(Fraction, (0, 1, -1, 2)))),
        at="1 1 1 1 0;0 1 -1 2 0;0 1 1 4 1",
        g="1/2 0 0;-1/2 -1/2 -1/2;-1/6 1/6 -1/6;1/6 1/3 2/3;0 0 1",
        bt="2 -1 -2 1 0;0 -2 -1 1 0;0 2 -3 1 0;0 -1 0 1 0;0 2 -1 -2 1",
    )


def test_f63_as_published() -> None:
    up_to_signs(
        cook_toom(6, 3),
        at="1 1 1 1 1 1 1 0;0 1 -1 2 -2 1/2 -1/2 0;0 1 1 4 4 1/4 1/4 0;0 1 -1 8 -8 1/8 -1/8 0;"
        "0 1 1 16 16 1/16 1/16 0;0 1 -1 32 -32 1/32 -1/32 1",
        g="1 0 0;-2/9 -2/9 -2/9;-2/9 2/9 -2/9;1/90 1/45 2/45;1/90 -1/45 2/45;32/45 16/45 8/45;"
        "32/45 -16/45 8/45;0 0 1",
        bt="1 0 -21/4 0 21/4 0 -1 0;0 1 1 -17/4 -17/4 1 1 0;0 -1 1 17/4 -17/4 -1 1 0;"
        "0 1/2 1/4 -5/2 -5/4 2 1 0;0 -1/2 1/4 5/2 -5/4 -2 1 0;0 2 4 -5/2 -5 1/2 1 0;"
        "0 -2 4 5/2 -5 -1/2 1 0;0 -1 0 21/4 0 -21/4 0 1",
    )


def test_weight_gradient_f32_as_published() -> None:
    up_to_signs(
        cook_toom(3, 2),
        at="1 1 1 0;0 1 -1 0;0 1 1 1",
        g="1 0;1/2 1/2;1/2 -1/2;0 1",
        bt="1 0 -1 0;0 1 1 0;0 -1 1 0;0 -1 0 1",
    )


@pytest.mark.parametrize("points", [(0, 1), (0, 1, 1), (0, 1, -1, 2)])
def test_wrong_points_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"F\(2,3\) needs 3 different finite points"):
        cook_toom(2, 3, tuple(map(Fraction, points)))


def test_sizes_without_a_table_are_refused() -> None:
    with pytest.raises(ValueError, match=r"F\(9,3\) needs 10 different finite points"):
        cook_toom(9, 3)


def test_arrays_round_the_exact_value_once() -> None:
    f = cook_toom(6, 3)
    assert as_array(f.g, np.float32)[3, 0] == np.float32(1 / 90)
    assert kron_array(f.g, np.float32).shape == (64, 9)
    assert kron_array(f.g, np.float64)[3 * 8 + 1, 0] == pytest.approx(-2 / 9 / 90, rel=1e-15)
