"""Every Winograd implementation against plain loops in float64: passes, layouts, dtypes, awkward shapes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from convbench.algorithms import _mkl, winograd_mkl, winograd_numpy
from convbench.algorithms._winograd_steps import Tiling
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty, poison
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import Implementation

THREE = [winograd_numpy.WinogradF2(), winograd_numpy.WinogradF4(), winograd_numpy.WinogradF6()]
FIVE = [winograd_numpy.WinogradF2Filter5(), winograd_numpy.WinogradF4Filter5()]
if _mkl.find_library():
    THREE.append(winograd_mkl.WinogradF4Mkl())
EVERY = THREE + FIVE
EPS = {"float32": np.finfo(np.float32).eps, "float64": np.finfo(np.float64).eps}

# n, c, h, w, k, padding, groups; the filter is the implementation's own
SHAPES = {
    "plain": (1, 3, 8, 8, 4, 1, 1),
    "odd everything": (3, 5, 11, 13, 7, 1, 1),
    "one output": (2, 3, 5, 5, 4, 0, 1),
    "one pixel, padded": (1, 2, 1, 1, 3, 2, 1),
    "one channel": (2, 1, 9, 7, 1, 1, 1),
    "seventeen": (1, 17, 10, 19, 17, 2, 1),
    "asymmetric padding": (1, 4, 9, 10, 3, ((0, 2), (3, 1)), 1),
    "padding beyond the filter": (1, 3, 6, 5, 2, ((7, 6), (8, 5)), 1),
    "two groups": (2, 6, 9, 9, 4, 1, 2),
    "depthwise": (2, 6, 9, 12, 6, 1, 6),
    "depthwise, two filters each": (1, 4, 7, 9, 8, 2, 4),
    "several images a block": (9, 2, 7, 6, 3, 1, 1),
    "several blocks": (2, 5, 60, 47, 4, 1, 1),
}


def problems(implementation: Implementation, name: str, dtype: str, layout: str) -> list[Problem]:
    n, c, h, w, k, padding, groups = SHAPES[name]
    shape = ConvShape.make(n, c, h, w, k, implementation.taps, implementation.taps, 1, padding, 1, groups)
    return [Problem(shape, pass_, dtype, layout) for pass_ in Pass]


def to_nchw(array: np.ndarray, layout: str) -> np.ndarray:
    return np.moveaxis(array, -1, 1) if layout == "nhwc" else array


def loops(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The result in float64 and nchw order, tap by tap over the padded image, and never in another way."""
    s = problem.shape
    a, b = (to_nchw(v, problem.layout).astype(np.float64) for v in (a, b))
    top, bottom, left, right = s.padding
    padded = np.zeros((s.n, s.c, s.h + top + bottom, s.w + left + right))
    inner = padded[:, :, top : top + s.h, left : left + s.w]
    y = np.zeros((s.n, s.k, s.p, s.q))
    dw = np.zeros((s.k, s.cg, s.r, s.s))
    if problem.pass_ is not Pass.BACKWARD_DATA:
        inner[...] = a
    for k in range(s.k):
        for j in range(s.cg):
            c = (k // s.kg) * s.cg + j
            for u in range(s.r):
                for v in range(s.s):
                    window = padded[:, c, u : u + s.p, v : v + s.q]
                    if problem.pass_ is Pass.FORWARD:
                        y[:, k] += window * b[k, j, u, v]
                    elif problem.pass_ is Pass.BACKWARD_DATA:
                        window += a[:, k] * b[k, j, u, v]
                    else:
                        dw[k, j, u, v] = (window * b[:, k]).sum()
    return {Pass.FORWARD: y, Pass.BACKWARD_DATA: inner, Pass.BACKWARD_WEIGHTS: dw}[problem.pass_]


def operands(problem: Problem, seed: int, integer: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    made = []
    for shape in (problem.a_shape, problem.b_shape):
        array = aligned_empty(shape, problem.dtype)
        array[...] = random.integers(-integer, integer + 1, shape) if integer else random.standard_normal(shape)
        made.append(array)
    out = aligned_empty(problem.out_shape, problem.dtype)
    poison(out)
    return made[0], made[1], out


def check(implementation: Implementation, problem: Problem, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Within the class's own bound, the largest of the tile's; L2 as well."""
    got, want = to_nchw(out, problem.layout), loops(problem, a, b)
    squares = loops(problem, a.astype(np.float64) ** 2, b.astype(np.float64) ** 2)
    scale = EPS[problem.dtype] * np.sqrt(problem.accumulation_length) * implementation.error_growth
    tolerance = scale * np.sqrt(largest_of_block(squares, *implementation.error_footprint(problem)))
    assert not (~(np.abs(got - want) <= tolerance)).any(), f"{problem}: {np.abs(got - want).max()}"
    assert np.linalg.norm(got - want) <= scale * np.linalg.norm(want)


def largest_of_block(values: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.empty_like(values)
    for i in range(0, values.shape[2], height):
        for j in range(0, values.shape[3], width):
            block = values[:, :, i : i + height, j : j + width]
            out[:, :, i : i + height, j : j + width] = block.max((2, 3), keepdims=True)
    return out


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", EVERY, ids=lambda i: i.name)
def test_all_passes_raw_and_packed(implementation: Implementation, shape: str, layout: str) -> None:
    for dtype in ("float32", "float64"):
        for problem in problems(implementation, shape, dtype, layout):
            assert implementation.why_not(problem) is None
            a, b, out = operands(problem, 1)
            kept = a.copy(), b.copy()
            plan = make_plan(implementation, problem, CpuContext())
            plan.run(a, b, out)
            check(implementation, problem, a, b, out)
            assert (a == kept[0]).all() and (b == kept[1]).all()
            other_a, other_b, out = operands(problem, 2)
            plan.run(other_a, other_b, out)  # remembers nothing of its first inputs
            check(implementation, problem, other_a, other_b, out)
            if problem.pass_ is not Pass.BACKWARD_WEIGHTS:
                packed = make_plan(implementation, problem, CpuContext(), weights=other_b)
                poison(out)
                packed.run(a, b, out)
                check(implementation, problem, a, other_b, out)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_f2_is_exact_on_integers(shape: str, layout: str) -> None:
    """Up to the range that `integer_headroom` promises, in all three passes."""
    implementation = winograd_numpy.WinogradF2()
    for problem in problems(implementation, shape, "float32", layout):
        limit = 2**24 // (problem.accumulation_length * implementation.integer_headroom)
        a, b, out = operands(problem, 3, integer=int(np.sqrt(limit)))
        make_plan(implementation, problem, CpuContext()).run(a, b, out)
        assert (to_nchw(out, layout) == loops(problem, a, b)).all()


@pytest.mark.parametrize("shape", ["plain", "odd everything", "one output", "several blocks"])
def test_f2_headroom_holds_for_the_worst_signs(shape: str) -> None:
    """Operands all at the limit, with the signs that make B^T d and G g largest; one more bit would round."""
    implementation = winograd_numpy.WinogradF2()
    for problem in problems(implementation, shape, "float32", "nchw"):
        limit = 2**24 // (problem.accumulation_length * implementation.integer_headroom)
        if limit < 4:
            continue
        a, b, out = operands(problem, 4, integer=1)
        for pattern in ((1, 1), (1, -1), (-1, 1)):
            side = int(np.sqrt(limit))
            for array in (a, b):
                i, j = np.indices(array.shape[2:])
                array[...] = side * np.where(i % 2, pattern[0], 1) * np.where(j % 2, pattern[1], 1)
            make_plan(implementation, problem, CpuContext()).run(a, b, out)
            assert (out == loops(problem, a, b)).all()


@pytest.mark.parametrize("shape", ["plain", "seventeen", "several blocks", "depthwise"])
@pytest.mark.parametrize("implementation", EVERY, ids=lambda i: i.name)
def test_workspace_estimate_covers_what_is_measured(implementation: Implementation, shape: str) -> None:
    for layout in ("nchw", "nhwc"):
        for problem in problems(implementation, shape, "float32", layout):
            a, b, out = operands(problem, 5)
            context = CpuContext()
            plan = make_plan(implementation, problem, context)
            plan.run(a, b, out)
            tracemalloc.start()
            plan.run(a, b, out)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            measured = context.workspace_bytes + peak
            assert measured <= implementation.workspace_estimate(problem) <= 1.05 * measured + 2**18


@pytest.mark.parametrize("implementation", EVERY, ids=lambda i: i.name)
def test_executed_flops_fall_short_of_direct_ones(implementation: Implementation) -> None:
    m, r = implementation.tile, implementation.taps
    shape = ConvShape.make(1, 256, 48, 48, 256, r, r, 1, r // 2)
    for pass_ in Pass:
        problem = Problem(shape, pass_)
        phases = implementation.executed_flops(problem)
        assert phases["multiply"] * (m * r) ** 2 == problem.direct_flops * (m + r - 1) ** 2
        assert sum(phases.values()) < problem.direct_flops


def limits_of(implementation: Implementation, r: int, s: int, **geometry: int) -> str | None:
    return implementation.limits(Problem(ConvShape.make(1, 2, 20, 20, 2, r, s, **geometry)))


def test_sentences() -> None:
    f4, f2_5x5 = winograd_numpy.WinogradF4(), winograd_numpy.WinogradF2Filter5()
    assert limits_of(f4, 3, 3) is None
    assert limits_of(f4, 3, 3, stride=2) == "winograd: stride must be 1, not 2"
    assert limits_of(f4, 3, 3, stride=(1, 2)) == "winograd: stride must be 1, not 1x2"
    assert limits_of(f4, 3, 3, dilation=3) == "winograd: dilation must be 1, not 3"
    assert limits_of(f4, 5, 5) == "winograd_f4: filter must be 3x3, not 5x5"
    assert limits_of(f4, 3, 1) == "winograd_f4: filter must be 3x3, not 3x1"
    assert limits_of(f2_5x5, 3, 3) == "winograd_f2_5x5: filter must be 5x5, not 3x3"


def test_blocks_cover_every_tile_once() -> None:
    for n, down, across, target in ((1, 14, 14, 96), (5, 3, 2, 16), (2, 1, 500, 96), (7, 9, 3, 1), (1, 1, 1, 99)):
        tiling = Tiling.cut(n, down, across, target)
        seen = np.zeros((n, down), int)
        for first, images, row, rows in tiling.blocks():
            assert images * rows * across <= tiling.most
            seen[first : first + images, row : row + rows] += 1
        assert (seen == 1).all()


def test_mkl_says_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mkl, "find_library", lambda: None)
    sentence = winograd_mkl.WinogradF4Mkl().unavailable()
    assert sentence == "winograd_f4_mkl needs mkl: pip install 'convbench[mkl]'"
