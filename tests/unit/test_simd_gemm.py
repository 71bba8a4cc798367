"""brgemm against NumPy: every row count, column remainder and unroll remainder, between forbidden pages, exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convbench.simd.kernels import gemm
from tests.simd_helpers import SENTINEL, Arena, address, integers, panel_kernel, target

__all__ = ["target"]

DEPTHS = (0, 1, 2, 3, 7)
MOST_SEGMENTS = 3


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "strided"])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
def test_every_block(target, vectors, packed):
    """rows x columns x depth x segments x accumulate; C, and the last rows of A and B, end at forbidden pages."""
    kernel, shape = panel_kernel(target, vectors, packed)
    width = shape.columns(target)
    rng = np.random.default_rng(vectors)
    a_all, b_all, c_all, before = (Arena(4 * 64 * 64) for _ in range(4))
    table = Arena(2 * MOST_SEGMENTS, np.int64)
    for rows, depth, count in itertools.product(range(1, shape.rows + 1), DEPTHS, (0, 1, MOST_SEGMENTS)):
        for columns, accumulate in itertools.product(range(1, width + 1), (0, 1)):
            step = 1 if packed else 1 + (columns + rows) % 3
            wide = width if packed else columns
            # one array for all segments, used last segment first
            a = a_all.holding(integers(rng, count, rows, max(depth, 1) * step))
            b = b_all.holding(integers(rng, count, depth, wide))
            pairs = table.cut(count, 2)
            order = np.arange(count)[::-1]
            pairs[:, 0], pairs[:, 1] = order * rows * max(depth, 1) * step, order * depth * wide
            row_c = columns + columns % 3
            c_all.all[:] = SENTINEL
            c_flat = c_all.cut((rows - 1) * row_c + columns)
            c = np.lib.stride_tricks.as_strided(c_flat, (rows, columns), (4 * row_c, 4))
            if accumulate:
                c[...] = integers(rng, rows, columns)
            wanted_all = before.holding(c_all.all)
            wanted_flat = before.cut(len(c_flat))
            wanted = np.lib.stride_tricks.as_strided(wanted_flat, (rows, columns), (4 * row_c, 4))
            product = sum((a[s, :, : depth * step : step] @ b[s, :, :columns] for s in range(count)), np.float32(0))
            wanted[...] = product + (wanted if accumulate else 0)
            kernel(
                rows, columns, address(a), a.shape[2], step, address(b), wide, address(pairs), count, depth,
                address(c_flat), row_c, accumulate,
            )  # fmt: skip
            if not np.array_equal(c_all.all, wanted_all):
                pytest.fail(f"{rows=} {columns=} {depth=} {count=} {accumulate=} {step=} {row_c=}")


@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("count", [0, 1])
def test_results_that_sum_nothing(target, count, accumulate):
    """Depth 0 or no segment: zeros are written, or C is left as it is."""
    kernel, shape = panel_kernel(target, 2)
    c = np.full((shape.rows, shape.columns(target)), 3.0, np.float32)
    pairs = np.zeros((1, 2), np.int64)
    kernel(*c.shape, 64, 1, 1, 64, 1, address(pairs), count, 0, address(c), c.shape[1], accumulate)
    assert (c == (3.0 if accumulate else 0.0)).all()


def test_rows_beyond_the_block_write_nothing(target):
    kernel, shape = panel_kernel(target, 3)
    c = np.full((shape.rows + 1, shape.columns(target)), SENTINEL, np.float32)
    pairs = np.zeros((1, 2), np.int64)
    for rows in (0, -1, shape.rows + 1):
        kernel(rows, c.shape[1], 64, 1, 1, 64, 1, address(pairs), 1, 4, address(c), c.shape[1], 0)
    assert (c == SENTINEL).all()


def test_rows_of_a_may_overlap_and_go_backwards(target):
    """A window that slides over one row: row_a = 1; and one that is mirrored: row_a = -1."""
    kernel, shape = panel_kernel(target, 3)
    rng, width, depth = np.random.default_rng(3), shape.columns(target), 5
    line, b = integers(rng, shape.rows + depth), integers(rng, depth, width)
    pairs, c = np.zeros((1, 2), np.int64), np.empty((shape.rows, width), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(line, depth)[: shape.rows]
    for row_a, first, wanted in ((1, 0, windows), (-1, shape.rows - 1, windows[::-1])):
        start = address(line) + 4 * first
        kernel(*c.shape, start, row_a, 1, address(b), width, address(pairs), 1, depth, address(c), width, 0)
        assert np.array_equal(c, wanted @ b)


def test_blocks_fit_the_registers(target):
    for vectors in (1, 2, 3, 4):
        shape = gemm.shape_for(target, vectors)
        assert 1 <= shape.rows <= 14
        assert shape.rows * vectors + vectors + 1 <= target.registers
    if target.name == "avx512":
        assert [gemm.shape_for(target, v).rows for v in (3, 4)] == [9, 6]


def test_panels_are_as_wide_as_the_matrix_needs(target):
    lanes = target.lanes
    assert gemm.vectors_for(target, 1) == gemm.vectors_for(target, lanes) == 1
    assert gemm.vectors_for(target, 12 * lanes) == 3
    for columns in range(1, 20 * lanes):
        assert gemm.vectors_for(target, columns) in (1, 2, 3, 4)
