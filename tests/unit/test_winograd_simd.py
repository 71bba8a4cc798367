"""Fused Winograd on vector kernels: every plan, unit, layout and pass against the plain loops; products; counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convbench.algorithms._cook_toom import cook_toom
from convbench.algorithms._winograd_simd_build import build
from convbench.algorithms._winograd_simd_plan import choose, flops, geometry
from convbench.algorithms._winograd_simd_product import panel_product
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.simd import target as targets
from convbench.simd.kernels.gemm import Shape, shape_for
from convbench.simd.kernels.transform import operations

UNITS = [name for name in ("avx512", "avx2", "neon", "generic") if targets.runs_here(name)]
#: Plans that the model would not choose for shapes this small: pieces of the filter on the fly, whole, two stages.
PLANS = ({}, {"fly": 1, "chunk": 16, "tiles": 5}, {"fly": 0, "tiles": 7, "vectors": 2, "together": 2}, {"split": 1})
SHAPES = {
    "odd": (ConvShape.make(2, 17, 13, 11, 19, 3, 3, padding=1), 4, 3),
    "lopsided": (ConvShape.make(1, 5, 10, 15, 70, 3, 3, padding=((1, 0), (0, 2))), 2, 3),
    "groups": (ConvShape.make(2, 6, 5, 5, 9, 3, 3, padding=4, groups=3), 6, 3),
    "one": (ConvShape.make(1, 1, 1, 1, 1, 3, 3, padding=1), 4, 3),
    "five": (ConvShape.make(1, 67, 9, 8, 5, 5, 5, padding=2), 4, 5),
    "strided_3": (ConvShape.make(2, 18, 13, 12, 19, 3, 3, stride=2, padding=((1, 0), (3, 1))), 4, 2),
    "strided_7": (ConvShape.make(1, 3, 23, 22, 20, 7, 7, stride=2, padding=3), 4, 4),
}
EPS = float(np.finfo(np.float32).eps)


def random(shape: tuple[int, ...], seed: int) -> np.ndarray:
    array = aligned_empty(shape, np.float32)
    array[...] = np.random.default_rng(seed).standard_normal(shape)
    return array


def to_nchw(array: np.ndarray, layout: str) -> np.ndarray:
    return array if layout == "nchw" else np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def expected(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In double precision, by sums over taps."""
    s = problem.shape
    a, b = (to_nchw(v, problem.layout).astype(np.float64) for v in (a, b))
    top, bottom, left, right = s.padding
    padded = (s.h + top + bottom + s.r, s.w + left + right + s.s)
    x = np.zeros((s.n, s.c, *padded))
    backward = problem.pass_ is Pass.BACKWARD_DATA
    if not backward:
        x[:, :, top : top + s.h, left : left + s.w] = a
    y = np.zeros((s.n, s.k, s.p, s.q))
    for g in range(s.groups):
        c, k = slice(g * s.cg, (g + 1) * s.cg), slice(g * s.kg, (g + 1) * s.kg)
        for i in range(s.r):
            for j in range(s.s):
                rows = slice(i, i + s.stride[0] * (s.p - 1) + 1, s.stride[0])
                columns = slice(j, j + s.stride[1] * (s.q - 1) + 1, s.stride[1])
                if backward:
                    x[:, c, rows, columns] += np.einsum("nkpq,kc->ncpq", a[:, k], b[k, :, i, j])
                else:
                    y[:, k] += np.einsum("ncpq,kc->nkpq", x[:, c, rows, columns], b[k, :, i, j])
    return x[:, :, top : top + s.h, left : left + s.w] if backward else y


def computed(problem: Problem, tile: int, taps: int, unit: str, packed: bool, threads: int, **plan: int) -> np.ndarray:
    """The second of two runs, between guard values."""
    a, b = random(problem.a_shape, 1), random(problem.b_shape, 2)
    size = int(np.prod(problem.out_shape))
    guarded = aligned_empty(size + 64, np.float32)
    guarded.fill(7.0)
    out = guarded[32 : 32 + size].reshape(problem.out_shape)
    run = build(problem, CpuContext(threads), b if packed else None, tile, taps, targets.named(unit), **plan)
    for _ in range(2):
        out.fill(np.nan)
        run(*((a, out) if packed else (a, b, out)))
    assert (guarded[:32] == 7).all() and (guarded[-32:] == 7).all()
    return to_nchw(out, problem.layout)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_plan_computes_the_convolution(name: str, plan: dict[str, int], unit: str) -> None:
    shape, tile, taps = SHAPES[name]
    passes = (Pass.FORWARD,) if shape.stride != (1, 1) else (Pass.FORWARD, Pass.BACKWARD_DATA)
    for pass_ in passes:
        for layout in LAYOUTS:
            problem = Problem(shape, pass_=pass_, layout=layout)
            want = expected(problem, random(problem.a_shape, 1), random(problem.b_shape, 2))
            for packed in (True, False):
                got = computed(problem, tile, taps, unit, packed, 2 if "split" in plan else 1, **plan)
                np.testing.assert_allclose(got, want, atol=300 * EPS * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_product_kernel_for_every_number_of_rows(unit: str, lines: int) -> None:
    target = targets.named(unit)
    for vectors in (1, 2, 3):
        shape: Shape = shape_for(target, vectors)
        width, blocks, row_a, row_c = shape.columns(target), 2, 24, shape.columns(target) + 16
        kernel = panel_product(target, shape, lines)
        for rows in range(1, shape.rows + 1):
            for depth, add in ((1, 0), (7, 1), (20, 0)):
                a, b = random((rows * blocks, row_a), rows), random((depth, width), depth)
                c = random((rows * blocks + 1, row_c), 3)
                before = c.copy()
                pointers = [v.ctypes.data for v in (a, b, c)]
                kernel(rows, blocks, pointers[0], row_a, pointers[1], depth, pointers[2], row_c, add, pointers[1], 0)
                want = before.copy()
                product = a[:, :depth] @ b
                want[:-1, :width] = product + (before[:-1, :width] if add else 0)
                np.testing.assert_allclose(c, want, atol=1e-4)
                assert (c[:-1, width:] == before[:-1, width:]).all() and (c[-1] == before[-1]).all()


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (6, 3), (2, 5), (4, 5)])
def test_shared_sums_never_cost_more_than_the_plain_ones(m: int, r: int) -> None:
    transform = cook_toom(m, r)
    for matrix in (transform.bt, transform.g, transform.at):
        floats = tuple(tuple(float(v) for v in row) for row in matrix)
        plain = 0
        for row in floats:
            factors = sorted((f for f in row if f), key=lambda f: f != 1)
            plain += int(factors[0] != 1) + sum(1 if f in (1, -1) else 2 for f in factors[1:])
        assert operations(floats) <= plain


def test_transform_of_four_tiles_costs_what_lavin_and_gray_say() -> None:
    """F(4x4,3x3): at most their 12 x 12 multiply-adds and additions a tile beyond the sharing of their points."""
    problem = Problem(ConvShape.make(1, 1, 4, 4, 1, 3, 3, padding=1))
    counted = flops(geometry(problem, 4, 3))
    assert counted["multiply"] == 2 * 36
    assert counted["input_transform"] == 26 * 12
    assert counted["output_transform"] == 18 * 10


def test_executed_operations_count_whole_tiles() -> None:
    shape = ConvShape.make(1, 16, 5, 5, 8, 3, 3, padding=1)
    assert flops(geometry(Problem(shape), 4, 3))["multiply"] == 2 * 36 * 4 * 16 * 8


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("raw", [True, False])
def test_workspace_is_what_the_plan_says(threads: int, raw: bool) -> None:
    problem = Problem(ConvShape.make(2, 70, 30, 30, 90, 3, 3, padding=1), layout="nchw")
    context = CpuContext(threads)
    build(problem, context, None if raw else random(problem.b_shape, 1), 4, 3)
    plan = choose(geometry(problem, 4, 3), targets.host(), threads, raw)
    assert context.workspace_bytes == plan.bytes(raw, threads)


def test_blocks_divide_over_threads_and_few_tiles_are_split_by_channels() -> None:
    shape = ConvShape.make(1, 64, 56, 56, 64, 3, 3, padding=1)
    target = targets.host()
    many = choose(geometry(Problem(shape), 4, 3), target, 2, False)
    few = choose(geometry(Problem(replace(shape, h=7, w=7)), 4, 3), target, 2, False)
    assert not many.split and many.blocks % 2 == 0
    assert few.split and few.blocks == 1
