"""strassen_simd: its kernels on every vector unit, all shapes against im2col in whole numbers, its counts."""

from __future__ import annotations

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms import _strassen_simd_plan as planning
from convbench.algorithms._strassen_simd import prepare
from convbench.algorithms._strassen_simd_plan import Axis, bytes_of, flops, plan
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.registry import Implementation
from convbench.simd import target as units
from convbench.simd.kernels import gemm_pixels, strassen
from convbench.simd.kernels.gemm import Shape
from convbench.simd.target import Target
from tests.simd_helpers import SENTINEL, UNITS, Arena, address, integers, target  # noqa: F401

make = ConvShape.make
PASSES = (Pass.FORWARD, Pass.BACKWARD_DATA)

SHAPES = [
    make(1, 16, 6, 6, 16, 1, 1),
    make(3, 17, 7, 5, 19, 1, 1),
    make(1, 5, 1, 1, 4, 1, 1),
    make(1, 1, 3, 3, 1, 1, 1),
    make(2, 64, 14, 13, 100, 1, 1),
    make(3, 8, 9, 7, 8, 1, 1, stride=2),
    make(2, 7, 11, 10, 9, 1, 1, stride=(2, 3)),
    make(1, 4, 5, 5, 4, 1, 1, stride=3, padding=2),
    make(2, 6, 8, 9, 10, 1, 1, padding=((2, 0), (1, 3))),
    make(1, 4, 1, 2, 6, 1, 1, padding=((0, 3), (3, 0)), stride=4),
    make(2, 18, 33, 35, 39, 1, 1, groups=3),
    make(2, 10, 5, 6, 5, 1, 1, groups=5),
    make(1, 600, 9, 9, 70, 1, 1),
    make(1, 1201, 12, 13, 33, 1, 1),
    make(1, 30, 40, 41, 330, 1, 1),
    make(1, 4, 1, 2, 6, 1, 1, padding=((0, 0), (1, 0)), stride=7),
    make(1, 515, 4, 4, 131, 1, 1),
    make(1, 66, 17, 17, 259, 1, 1),
]


def row() -> Implementation:
    return catalog.load().implementations["strassen_simd"]


def whole_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    array = aligned_empty(shape, np.float32)
    array[...] = rng.integers(-4, 5, shape)
    return array


def run(name: str, problem: Problem, threads: int, packed: bool, operands: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The second result of one plan, in a buffer whose surroundings must stay as they were."""
    a, b = operands
    made = make_plan(catalog.load().implementations[name], problem, CpuContext(threads), b if packed else None)
    size = int(np.prod(problem.out_shape))
    buffer = np.full(size + 128, np.nan, np.float32)
    out = buffer[64 : 64 + size].reshape(problem.out_shape)
    made.run(2 * a, b if packed else 3 * b, out)  # leaves traces in every buffer
    out.fill(np.nan)
    made.run(a, b, out)
    assert np.isnan(buffer[:64]).all()
    assert np.isnan(buffer[64 + size :]).all()
    return out


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", PASSES)
def test_exact_on_whole_numbers(pass_: Pass, layout: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, rng = units.named(unit), np.random.default_rng(4)
    monkeypatch.setattr(planning, "LEAST_SIDE", 1)
    monkeypatch.setattr(units, "host", lambda: chosen)
    for shape in SHAPES if unit == UNITS[0] else SHAPES[1::2]:
        problem = Problem(shape, pass_, "float32", layout)
        operands = whole_numbers(rng, problem.a_shape), whole_numbers(rng, problem.b_shape)
        want = run("im2col_numpy", problem, 1, False, operands)
        for packed, threads in ((False, 1), (True, 2), (False, 2), (True, 1)):
            np.testing.assert_array_equal(run("strassen_simd", problem, threads, packed, operands), want, str(shape))


def panel_of(b: np.ndarray, width: int) -> np.ndarray:
    """The seven matrices of B (depth, columns), whose halves are one panel wide at most."""
    half, left = b.shape[0] // 2, -(-b.shape[1] // 2)
    b11, b12, b21, b22 = (
        np.pad(part, ((0, 0), (0, width - part.shape[1])))
        for part in (b[:half, :left], b[:half, left:], b[half:, :left], b[half:, left:])
    )
    t1, t3 = b12 - b11, b22 - b12
    t2 = b22 - t1
    return np.stack([b11, b21, t2, t3, b21 - t2, t1, b22])  # (7, half, width)


@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
def test_tiles_kernel(vectors: int, target: Target) -> None:  # noqa: F811
    rng, width = np.random.default_rng(5), vectors * target.lanes
    shape = Shape(gemm_pixels.rows_for(target, vectors), vectors, 4)
    kernel, sums_kernel = strassen.tiles(target, shape), strassen.left_sums(target)
    scratch = np.zeros(2 * shape.rows * width, np.float32)
    for rows in range(1, 2 * shape.rows + 2):
        for columns, half, accumulate in ((2 * width, 1, 0), (2 * width - 1, 6, 1), (1, 5, 0), (width + 3, 21, 1)):
            left, right = -(-columns // 2), columns // 2
            a, b = integers(rng, 2 * rows, 2 * half + 3), integers(rng, 2 * half, columns)
            sums = np.full((rows, 4 * half + 1), SENTINEL, np.float32)
            c = Arena(2 * rows * columns).holding(integers(rng, 2 * rows, columns))
            want = c * accumulate + a[:, 3:] @ b
            table = np.array(
                [[address(a[m]), address(a[rows + m]), address(sums[m]), address(c[m]), address(c[rows + m])]
                 for m in range(rows)], np.int64)  # fmt: skip
            sums_kernel(rows, address(table), 3, half)
            (a11, a12), (a21, a22) = ((part[:, 3 : 3 + half], part[:, 3 + half :]) for part in (a[:rows], a[rows:]))
            s2 = a21 + a22 - a11
            np.testing.assert_array_equal(sums[:, :-1], np.concatenate([a21 + a22, s2, a11 - a21, a12 - s2], axis=1))
            assert (sums[:, -1] == SENTINEL).all()
            panel = panel_of(b, width)
            kernel(
                rows, left, right, address(table), 3, half, address(panel), 0, left, accumulate, address(scratch),
                address(panel), 640,
            )  # fmt: skip
            np.testing.assert_array_equal(c, want)


def test_right_sums_kernel(target: Target) -> None:  # noqa: F811
    b, width = integers(np.random.default_rng(6), 10, 2 * target.lanes), target.lanes
    want = panel_of(b, width)
    panel = want.copy()
    panel[[2, 3, 4]] = SENTINEL
    panel[strassen.RIGHT] = b[:5, width:]
    strassen.right_sums(target)(address(panel), 5 * width)
    np.testing.assert_array_equal(panel, want)


@pytest.mark.parametrize("pass_", PASSES)
def test_the_grid_holds_the_pixels_that_are_not_on_padding(pass_: Pass) -> None:
    for shape in SHAPES:
        problem = Problem(shape, pass_)
        for which, size, outputs in ((0, shape.h, shape.p), (1, shape.w, shape.q)):
            stride, begin = shape.stride[which], shape.padding[2 * which]
            pairs = [(o * stride - begin, o) for o in range(outputs) if 0 <= o * stride - begin < size]
            if pass_ is Pass.BACKWARD_DATA:
                pairs = [(o, i) for i, o in pairs]
            x = Axis.of(problem, which)
            grid = [(x.a_start + n * x.a_step, x.out_start + n * x.out_step) for n in range(x.count)]
            assert grid == pairs, (shape, which)


def test_an_eighth_of_the_multiplications_is_saved() -> None:
    problem = Problem(make(1, 256, 28, 28, 512, 1, 1), layout="nhwc")
    executed = flops(plan(problem, units.host(), True))
    assert executed["multiply"] == 7 / 8 * problem.direct_flops
    assert 0 < sum(executed.values()) - executed["multiply"] < 0.02 * problem.direct_flops
    assert executed["filter_sums"] == 256 * 512


def test_workspace_is_what_the_plan_says() -> None:
    for layout in LAYOUTS:
        for shape in SHAPES:
            problem = Problem(shape, Pass.FORWARD, "float32", layout)
            for threads, weights in ((1, None), (2, np.zeros(problem.b_shape, np.float32))):
                context = CpuContext(threads)
                prepare(problem, context, weights, units.host())
                assert context.workspace_bytes == bytes_of(plan(problem, units.host(), weights is None), threads)


def test_small_products_stay_whole() -> None:
    for shape, whole in ((make(1, 7, 9, 9, 8, 1, 1), True), (make(1, 8, 9, 9, 7, 1, 1), True),
                         (make(9, 8, 2, 3, 8, 1, 1), True), (make(1, 8, 2, 4, 8, 1, 1), False)):  # fmt: skip
        problem = Problem(shape)
        direct = catalog.load().implementations["direct_simd"]
        assert (row().executed_flops(problem) == direct.executed_flops(problem)) is whole
        assert (row().workspace_estimate(problem) == direct.workspace_estimate(problem)) is whole
        rng = np.random.default_rng(7)
        operands = whole_numbers(rng, problem.a_shape), whole_numbers(rng, problem.b_shape)
        want = run("im2col_numpy", problem, 1, False, operands)
        np.testing.assert_array_equal(run("strassen_simd", problem, 1, True, operands), want)


def test_what_it_refuses() -> None:
    refused = row().why_not
    assert refused(Problem(make(1, 4, 5, 5, 4, 3, 1))) == "strassen: filter must be 1x1, not 3x1"
    assert "pass must be fwd or bwd_data" in refused(Problem(make(1, 4, 5, 5, 4, 1, 1), Pass.BACKWARD_WEIGHTS))
    assert "dtype must be float32" in refused(Problem(make(1, 4, 5, 5, 4, 1, 1), dtype="float64"))
