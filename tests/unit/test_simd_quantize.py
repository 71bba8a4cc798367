"""Quantising kernels against the definitions in NumPy, on every vector unit, between forbidden pages."""

from __future__ import annotations

import numpy as np
import pytest

from convbench.rounding import bits24
from convbench.simd.kernels import quantize
from tests.simd_helpers import Arena, address, target

__all__ = ["target"]

SEED = 2
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 2.0**-13, -3 * 2.0**-13, 8 - 2.0**-13, 8.0, -8.0, -8.5, 100.0, -1e30, 1e-30,
                    -1e-30], np.float32)  # fmt: skip


def values(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Normal numbers, a quarter of them at the edges."""
    normal = rng.standard_normal((rows, columns), dtype=np.float32) * 3
    edges = rng.choice(SPECIAL, (rows, columns))
    return np.where(rng.random((rows, columns)) < 0.25, edges, normal).astype(np.float32)


def constants_of(mode: str) -> np.ndarray:
    if mode == "stochastic":
        return np.array([quantize.rounding_key(SEED), 0], np.uint32).view(np.float32)
    known = {"int8": [17.3, -31.0], "int8_filter": [40.1, 0], "fixed16": [0, 0], "dynamic": [64.0, 0]}
    return np.array(known[mode], np.float32)


def whole(mode: str, x: np.ndarray, index: np.ndarray) -> np.ndarray:
    c = constants_of(mode)
    if mode == "int8":
        return np.clip(np.rint(x * c[0]) + c[1], -128, 127).astype(np.int64) + 128
    if mode == "int8_filter":
        return np.clip(np.rint(x * c[0]), -127, 127).astype(np.int64)
    if mode == "dynamic":
        return np.clip(np.rint(x * c[0]), -512, 511).astype(np.int64)
    scaled = x * np.float32(4096)
    if mode == "fixed16":
        return np.clip(np.rint(scaled), -32768, 32767).astype(np.int64)
    below = np.floor(scaled)
    return np.clip(below + (bits24(SEED, index) * 2.0**-24 < scaled - below), -32768, 32767).astype(np.int64)


def parts_of(parts: str, numbers: np.ndarray) -> list[np.ndarray]:
    if parts == "byte":
        return [(numbers & 255).astype(np.uint8)]
    if parts == "bytes":
        return [(numbers >> 8 & 255).astype(np.uint8), (numbers & 255).astype(np.uint8)]
    if parts == "short":
        return [numbers.astype(np.int16)]
    high = numbers + 128 >> 8
    return [high.astype(np.int16), (numbers - 256 * high).astype(np.int16)]


CASES = [("int8", "byte"), ("int8_filter", "byte"), ("fixed16", "bytes"), ("fixed16", "short"), ("fixed16", "shorts"),
         ("stochastic", "bytes"), ("stochastic", "short"), ("dynamic", "bytes"), ("dynamic", "short")]  # fmt: skip


@pytest.mark.parametrize("place", ["flush", "start"])
@pytest.mark.parametrize(("mode", "parts"), CASES)
def test_every_mode_straight_and_turned(target, mode, parts, place):
    rng = np.random.default_rng(3)
    element = np.uint8 if "byte" in parts else np.int16
    source, result = Arena(1 << 14, np.float32, place), Arena(1 << 15, element, place)
    constants = constants_of(mode)
    sizes = [(1, 1), (3, 2), (2, 17), (16, 16), (17, 33), (5, 64), (33, 7), (8, 8), (40, 19)]
    for number, (rows, columns) in enumerate(sizes):
        step = 1 + number % 3  # of the straight kernel's columns
        x = source.holding(values(rng, rows, columns * step))
        first, index_row, index_column = 2**32 - 50 if number == 3 else 7 * number, 3, 1000
        at = first + index_row * np.arange(rows)[:, None] + index_column * np.arange(columns)
        count = quantize.PARTS[parts][1]
        for turn, kernel in ((False, quantize.straight), (True, quantize.turned)):
            used = x[:, ::step] if not turn else x[:, :columns]
            want = parts_of(parts, whole(mode, used, at % 2**32))
            out = result.cut(count, columns if turn else rows, rows if turn else columns)
            out[...] = 77
            kernel(target, mode, parts)(
                rows, columns, address(x), columns * step, step, address(out), out.shape[2], out[0].nbytes,
                address(constants), first, index_row, index_column,
            )  # fmt: skip
            for got, part in zip(out, want, strict=True):
                np.testing.assert_array_equal(got, part.T if turn else part, err_msg=f"{rows} x {columns} {turn}")


def test_what_lies_between_rows_is_left_alone(target):
    x = values(np.random.default_rng(1), 5, 21)
    for kernel in (quantize.straight, quantize.turned):
        out = np.full((2, 40, 40), 77, np.uint8)
        kernel(target, "fixed16", "bytes")(5, 21, address(x), 21, 1, address(out), 40, 1600, 0, 0, 0, 0)
        rows, columns = (5, 21) if kernel is quantize.straight else (21, 5)
        out[:, :rows, :columns] = 77
        assert (out == 77).all()


def test_reductions(target):
    rng = np.random.default_rng(4)
    arena = Arena(5000, np.float32)
    for count in (0, 1, 5, 16, 17, 63, 64, 65, 4999):
        x = arena.holding(values(rng, 1, count).ravel())
        found = np.full(2, np.nan, np.float32)
        quantize.extremes(target)(count, address(x), 0, address(found))
        assert found.tolist() == [min(0, *x, 0), max(0, *x, 0)]
        thresholds, counts = np.array([8, 2, 0.5, 2.0**-13], np.float32), np.full(4, -1, np.int64)
        quantize.beyond(target)(count, address(x), address(thresholds), address(counts))
        assert counts.tolist() == [int((np.abs(x) >= t).sum()) for t in thresholds]
        scale, total = constants_of("dynamic"), np.full(1, -1, np.int64)
        quantize.squares(target)(count, address(x), address(scale), address(total))
        assert total[0] == (whole("dynamic", x, np.zeros(0, int)) ** 2).sum()


def test_the_largest_sum_of_squares_fits(target):
    x, scale = np.full(quantize.SQUARES_COUNT, -100, np.float32), np.full(2, 512, np.float32)
    total = np.zeros(1, np.int64)
    quantize.squares(target)(len(x), address(x), address(scale), address(total))
    assert total[0] == len(x) * 512**2


def test_row_sums_and_blanks(target):
    rng = np.random.default_rng(5)
    for rows, columns in ((1, 4), (3, 12), (7, 64), (2, 4608)):
        x = rng.integers(-128, 127, (rows, columns), np.int8, endpoint=True)
        sums = np.zeros(rows, np.int32)
        quantize.row_sums(target)(rows, columns, address(x), columns, address(sums))
        np.testing.assert_array_equal(sums, x.sum(axis=1, dtype=np.int32))
    for count in (0, 1, 15, 64, 100, 131):
        out = np.zeros(200, np.uint8)
        quantize.blank(target)(count, address(out), 0xA5)
        assert (out[:count] == 0xA5).all() and not out[count:].any()
