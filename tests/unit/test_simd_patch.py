"""Transposes of every remainder size, and strips of activations against NumPy, between forbidden pages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convbench.simd import patch
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import host
from tests.simd_helpers import SENTINEL, Arena, address, integers, target

__all__ = ["target"]


@pytest.mark.parametrize("place", ["flush", "start"])
def test_transposes_of_every_size(target, place):
    kernel, lanes = transpose(target), target.lanes
    rng = np.random.default_rng(0)
    sizes = (0, *range(1, lanes + 2), 2 * lanes - 1, 2 * lanes, 3 * lanes + 5)
    most = (3 * lanes + 5) * (3 * lanes + 9)
    source, result = Arena(most, place=place), Arena(most, place=place)
    for rows, columns in itertools.product(sizes, sizes):
        row_from, row_to = columns + rows % 3, rows + columns % 4
        flat = source.cut(max(0, (rows - 1) * row_from + columns) if rows else 0)
        values = np.lib.stride_tricks.as_strided(flat, (rows, columns), (4 * row_from, 4))
        values[...] = integers(rng, rows, columns, most=9999)
        result.all.fill(SENTINEL)
        out_flat = result.cut((columns - 1) * row_to + rows if columns else 0)
        out = np.lib.stride_tricks.as_strided(out_flat, (columns, rows), (4 * row_to, 4))
        kernel(rows, columns, address(flat), row_from, address(out_flat), row_to)
        assert np.array_equal(out, values.T), (rows, columns)
        assert np.count_nonzero(result.all != SENTINEL) == rows * columns, (rows, columns)


def strip_of(x: np.ndarray, first: int, count: int, top: int, rows: int, left: int, columns: int) -> np.ndarray:
    """What gather should give for one image x (H, W, C): zeros outside."""
    h, w, _ = x.shape
    strip = np.zeros((rows, columns, count), x.dtype)
    for i, j in itertools.product(range(rows), range(columns)):
        if 0 <= top + i < h and 0 <= left + j < w:
            strip[i, j] = x[top + i, left + j, first : first + count]
    return strip


H, W, C = 5, 7, 19
#: top, rows, left, columns: inside, over each edge, wholly outside on each side, wider than the image
WINDOWS = [
    (0, H, 0, W), (1, 3, 2, 4), (-2, 4, -3, 6), (3, 5, 5, 6), (-9, 4, 0, W), (H, 3, 0, 2), (0, 2, W, 3),
    (0, 2, W + 4, 3), (0, 2, -5, 5), (0, 2, -9, 4), (-1, H + 2, -2, W + 5), (2, 0, 1, 3), (2, 1, 3, 1),
    (-20, 3, -20, 3),
]  # fmt: skip
CHANNELS = [(0, C), (0, 1), (3, 16), (C - 1, 1), (2, 17), (5, 3)]


@pytest.mark.parametrize("nchw", [0, 1])
@pytest.mark.parametrize("tight", [True, False], ids=["tight", "padded"])
def test_gather_and_scatter(nchw, tight):
    kernel = transpose(host()).address
    rng = np.random.default_rng(1)
    images = integers(rng, 2, H, W, C)
    laid_out = images.transpose(0, 3, 1, 2) if nchw else images
    x = Arena(images.size).holding(np.ascontiguousarray(laid_out))
    y_arena, strips = Arena(images.size), Arena(40 * 40 * 40)
    for (top, rows, left, columns), (first, count), image in itertools.product(WINDOWS, CHANNELS, (0, 1)):
        pixel = count if tight else count + 5
        row = columns * pixel + (0 if tight else 11)
        strips.all.fill(SENTINEL)
        flat = strips.cut(max(0, (rows - 1) * row + (columns - 1) * pixel + count) if rows and columns else 0)
        strip = np.lib.stride_tricks.as_strided(flat, (rows, columns, count), (4 * row, 4 * pixel, 4))
        where = (nchw, C, H, W, image, first, count, top, rows, left, columns, address(flat), row, pixel, kernel)
        patch.gather(address(x), *where)
        wanted = strip_of(images[image], first, count, top, rows, left, columns)
        assert np.array_equal(strip, wanted), (top, rows, left, columns, first, count)
        assert np.count_nonzero(strips.all != SENTINEL) == strip.size

        strip[...] = integers(rng, *strip.shape)
        y_arena.all.fill(SENTINEL)
        y = y_arena.cut(*x.shape)
        patch.scatter(address(y), *where)
        wanted_y = np.full((2, H, W, C), SENTINEL, np.float32)
        for i, j in itertools.product(range(rows), range(columns)):
            if 0 <= top + i < H and 0 <= left + j < W:
                wanted_y[image, top + i, left + j, first : first + count] = strip[i, j]
        got = y.transpose(0, 2, 3, 1) if nchw else y
        assert np.array_equal(got, wanted_y), (top, rows, left, columns, first, count)


def test_shares_are_even_and_whole():
    for total, parts in itertools.product(range(40), range(1, 9)):
        shares = [patch.share(total, parts, part) for part in range(parts)]
        assert [i for first, end in shares for i in range(first, end)] == list(range(total))
        sizes = [end - first for first, end in shares]
        assert max(sizes) - min(sizes) <= 1
