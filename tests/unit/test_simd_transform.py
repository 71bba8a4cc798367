"""Constant-matrix transforms against NumPy: all Cook-Toom matrices in use, any channel count, tables or strides."""

from __future__ import annotations

import numpy as np
import pytest

from convbench.algorithms._cook_toom import as_array, cook_toom
from convbench.simd.kernels.transform import operations, transform2d
from tests.simd_helpers import SENTINEL, Arena, address, integers, target

__all__ = ["target"]

FILTERS = [(m, r) for m in range(2, 7) for r in range(2, 7) if m + r - 2 in (3, 5, 7)]
MATRICES = {
    f"F({m},{r}) {name}": matrix
    for m, r in FILTERS
    for name, matrix in (("at", cook_toom(m, r).at), ("g", cook_toom(m, r).g), ("bt", cook_toom(m, r).bt))
}
ODD = {
    "zero row": ((0.0, 0.0), (1.0, -1.0)),
    "one element": ((1.0,),),
    "minus first": ((-1.0, 1.0, -2.0), (0.5, -1.0, 3.0)),
    "mirrored": ((1.0, 2.0, 3.0, 4.0), (1.0, -2.0, 3.0, -4.0), (-1.0, -2.0, -3.0, -4.0)),
    "twice the same": ((1.0, 1.0), (1.0, 1.0)),
}


def plain(matrix) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)


def check(target, matrix, gather: bool, scatter: bool, counts) -> None:
    kernel = transform2d(target, matrix, gather, scatter)
    m = np.array(matrix)
    rows, columns = m.shape
    rng = np.random.default_rng(rows)
    room = 128
    for channels in counts:
        x_arena, y_arena = Arena(columns * columns * room), Arena(rows * rows * room)
        step_x, step_y = channels + channels % 3, channels + channels % 5
        x_flat = x_arena.cut((columns * columns - 1) * step_x + channels)
        x = np.lib.stride_tricks.as_strided(x_flat, (columns * columns, channels), (4 * step_x, 4))
        x[...] = integers(rng, *x.shape)
        order = rng.permutation(columns * columns) if gather else np.arange(columns * columns)
        from_table = address(x_flat) + 4 * step_x * order
        y_arena.all.fill(SENTINEL)
        y_flat = y_arena.cut((rows * rows - 1) * step_y + channels)
        y = np.lib.stride_tricks.as_strided(y_flat, (rows * rows, channels), (4 * step_y, 4))
        places = rng.permutation(rows * rows) if scatter else np.arange(rows * rows)
        to_table = address(y_flat) + 4 * step_y * places
        kernel(
            channels,
            address(from_table) if gather else address(x_flat), step_x,
            address(to_table) if scatter else address(y_flat), step_y,
        )  # fmt: skip
        tile = x[order].astype(np.float64).reshape(columns, columns, channels)
        want = np.einsum("ij,jkc,lk->ilc", m, tile, m).reshape(rows * rows, channels)
        got = y[places]
        scale = np.einsum("ij,jkc,lk->ilc", abs(m), abs(tile), abs(m)).reshape(got.shape)
        assert (np.abs(got - want) <= 8 * 2**-24 * scale).all(), channels
        outside = np.count_nonzero(y_arena.all != SENTINEL)
        assert outside == y.size, "something else was written"


@pytest.mark.parametrize("name", MATRICES)
def test_cook_toom_matrices(target, name):
    check(target, plain(MATRICES[name]), False, False, (1, target.lanes, 2 * target.lanes + 3))


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("part", ["at", "bt", "g"])
def test_any_number_of_channels(target, part, gather, scatter):
    check(target, plain(getattr(cook_toom(4, 3), part)), gather, scatter, range(3 * target.lanes + 2))


@pytest.mark.parametrize("name", ODD)
def test_odd_matrices(target, name):
    check(target, ODD[name], False, False, (1, target.lanes + 1))


def test_operations_are_fewer_than_those_of_the_dense_product():
    for matrix in MATRICES.values():
        dense = 2 * len(matrix) * len(matrix[0])
        assert 0 < operations(plain(matrix)) < dense
    assert operations(((1.0, 1.0), (0.0, 2.0))) == 2  # x + y, 2 y
    assert operations(((1.0, 0.5), (0.0, 0.0))) == 2  # one multiply-add


def test_the_exact_matrices_are_what_is_rounded():
    for matrix in MATRICES.values():
        assert np.array_equal(np.array(plain(matrix)), as_array(matrix, np.float64))
