"""direct_simd and pointwise_simd: their micro-kernels, their tables, and all passes against im2col in whole numbers."""

from __future__ import annotations

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms._gemm_simd import plan
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.simd import target as units
from convbench.simd.kernels import gemm_pixels, pack
from convbench.simd.kernels.gemm import Shape

UNITS = [name for name in ("avx512", "avx2", "neon", "generic") if units.runs_here(name)]
make = ConvShape.make

SHAPES = [
    make(1, 16, 6, 6, 16, 3, 3, padding=1),
    make(2, 3, 9, 8, 5, 3, 3, padding=1),
    make(1, 3, 20, 20, 64, 7, 7, stride=2, padding=3),
    make(2, 64, 14, 14, 100, 3, 3, padding=1, stride=2),
    make(1, 17, 1, 1, 19, 1, 1),
    make(1, 17, 1, 1, 19, 3, 3, padding=1),
    make(3, 8, 9, 7, 8, 1, 1, stride=2),
    make(1, 4, 5, 5, 4, 1, 1, stride=3, padding=2),
    make(2, 12, 11, 13, 18, 3, 2, stride=(2, 3), padding=((2, 1), (0, 3)), dilation=(2, 1), groups=3),
    make(1, 8, 10, 10, 8, 3, 3, groups=8, padding=1),
    make(1, 5, 4, 4, 7, 3, 3, padding=5),
    make(1, 2, 13, 13, 3, 13, 13, padding=6),
    make(1, 300, 9, 9, 33, 3, 3, padding=1),
    make(1, 100, 6, 6, 1000, 1, 1),
    make(3, 96, 30, 31, 50, 3, 3, padding=1),
    make(1, 4, 12, 12, 4, 2, 2, stride=4),
    make(2, 18, 33, 35, 39, 1, 1, groups=3),
    make(1, 1200, 32, 32, 7, 1, 1),
]


def whole_numbers(rng: np.random.Generator, shape: tuple[int, ...] | int) -> np.ndarray:
    array = aligned_empty(shape, np.float32)
    array[...] = rng.integers(-4, 5, shape)
    return array


def table(*columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.stack(columns, axis=1), dtype=np.int64)


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("follow", [False, True])
def test_pixels_kernel(follow: bool, unit: str, vectors: int) -> None:
    target, rng = units.named(unit), np.random.default_rng(1)
    rows = gemm_pixels.rows_for(target, vectors)
    kernel, p = gemm_pixels.pixels(target, Shape(rows, vectors, 2), follow), vectors * target.lanes
    for n in range(1, 2 * rows + 2):
        for columns, depth, accumulate in ((p, 1, 0), (p - 1, 2, 1), (1, 5, 0), (max(1, p - target.lanes), 8, 1)):
            a, b, c = (whole_numbers(rng, size) for size in (3000, 3 * depth * p, n * (p + 3)))
            starts, places = rng.integers(0, 1900, n), rng.permutation(n) * (p + 3)
            pairs, segments = table(starts, places), table(np.array([5, 100, 1000]), np.arange(3) * depth * p)
            want = c.copy()
            for start, to in pairs:
                total = want[to : to + columns] * accumulate
                for from_a, from_b in segments:
                    panel = b[from_b : from_b + depth * p].reshape(depth, p)
                    total = total + a[start + from_a : start + from_a + depth] @ panel[:, :columns]
                want[to : to + columns] = total
            kernel(
                n, columns, address(pairs), address(a), address(b), address(segments), 3, depth, address(c),
                accumulate, address(b), 640,
            )  # fmt: skip
            np.testing.assert_array_equal(c, want)


@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
@pytest.mark.parametrize("unit", UNITS)
def test_reduce_kernel(unit: str, vectors: int) -> None:
    target, rng, depth = units.named(unit), np.random.default_rng(2), 7
    rows = gemm_pixels.rows_for(target, vectors)
    kernel, p = gemm_pixels.reduce(target, Shape(rows, vectors)), vectors * target.lanes
    for n in range(1, 2 * rows + 2):
        for columns, accumulate in ((p, 0), (p, 1), (p - 1, 1), (1, 0)):
            a, b, c = (whole_numbers(rng, size) for size in (3000, 3000, n * (p + 3)))
            pairs = table(*rng.integers(0, 2900, (2, depth + gemm_pixels.BEYOND)))
            want = c.copy()
            part = want.reshape(n, p + 3)[:, :columns]
            total = sum(a[i : i + n, None] * b[None, j : j + columns] for i, j in pairs[:depth])
            part[...] = part * accumulate + total
            kernel(n, columns, address(pairs), depth, address(a), address(b), address(c), p + 3, accumulate)
            np.testing.assert_array_equal(c, want)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("columns", [1, 9, 16, 33, 70])
def test_packing_kernels(unit: str, rows: int, columns: int) -> None:
    target, rng = units.named(unit), np.random.default_rng(3)
    source = whole_numbers(rng, rows * (columns + 5))
    matrix = source.reshape(rows, columns + 5)[:, :columns]
    for build, given in ((pack.turn, matrix.T), (pack.place, matrix)):
        lines, width = given.shape
        order = rng.permutation(lines).astype(np.int64)
        to, want = np.full((lines, width + 3), 9, np.float32), np.full((lines, width + 3), 9, np.float32)
        want[order, :width] = given
        places = order * (width + 3)
        build(target)(rows, columns, address(source), columns + 5, address(to), address(places))
        np.testing.assert_array_equal(to, want)


def run(name: str, problem: Problem, threads: int, packed: bool, operands: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The result, in a buffer whose surroundings must stay as they were."""
    row = catalog.load().implementations[name]
    a, b = operands
    plan = make_plan(row, problem, CpuContext(threads), b if packed else None)
    size = int(np.prod(problem.out_shape))
    buffer = np.full(size + 128, np.nan, np.float32)
    out = buffer[64 : 64 + size].reshape(problem.out_shape)
    plan.run(a, b, out)
    assert np.isnan(buffer[:64]).all()
    assert np.isnan(buffer[64 + size :]).all()
    return out


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
def test_exact_on_whole_numbers(pass_: Pass, layout: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rng = units.named(unit), np.random.default_rng(4)
    monkeypatch.setattr(units, "host", lambda: target)
    for shape in SHAPES if unit == UNITS[0] else SHAPES[::2]:
        problem = Problem(shape, pass_, "float32", layout)
        operands = whole_numbers(rng, problem.a_shape), whole_numbers(rng, problem.b_shape)
        want = run("im2col_numpy", problem, 1, False, operands)
        for name in ("direct_simd", "pointwise_simd"):
            if name == "pointwise_simd" and (shape.r, shape.s) != (1, 1):
                continue
            for packed, threads in ((False, 1), (pass_ is not Pass.BACKWARD_WEIGHTS, 2)):
                np.testing.assert_array_equal(run(name, problem, threads, packed, operands), want, str(shape))


def test_taps_on_padding_are_not_multiplied() -> None:
    problem = Problem(make(1, 64, 7, 7, 64, 3, 3, padding=1), layout="nhwc")
    row = catalog.load().implementations["direct_simd"]
    for pass_ in Pass:
        part = Problem(problem.shape, pass_, "float32", "nhwc")
        assert row.executed_flops(part) == {"multiply": problem.valid_flops}


def test_zeros_between_the_pixels_of_a_strided_gradient_are_not_multiplied() -> None:
    problem = Problem(make(1, 32, 28, 28, 48, 3, 3, padding=1, stride=2), Pass.BACKWARD_DATA, "float32", "nhwc")
    row = catalog.load().implementations["direct_simd"]
    assert row.executed_flops(problem) == {"multiply": problem.valid_flops}


def test_every_output_pixel_is_in_one_group_of_one_tile() -> None:
    for shape in SHAPES:
        for pass_ in (Pass.FORWARD, Pass.BACKWARD_DATA):
            problem = Problem(shape, pass_, "float32", "nhwc")
            made = plan(problem, 64, 6, 1)
            g, seen = made.geometry, []
            for tile in made.tiles:
                for pairs, *_ in made.kinds[tile.kind]:
                    seen.extend(pairs[:, 1] // (g.filters * g.groups) + tile.first * g.width)
            assert sorted(seen) == list(range(g.height * g.width)), shape


def test_pointwise_takes_one_tap_only() -> None:
    row = catalog.load().implementations["pointwise_simd"]
    reason = row.why_not(Problem(make(1, 4, 5, 5, 4, 3, 1)))
    assert reason == "pointwise: filter must be 1x1, not 3x1"
