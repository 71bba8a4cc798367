"""The direct and GEMM-based algorithms against float64 loops: every pass and layout, awkward shapes."""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from convbench.algorithms import _mkl, im2col_tiled_numpy
from convbench.algorithms.strassen_im2col_numpy import Strassen
from convbench.devices.base import Plan, make_plan
from convbench.devices.cpu import CpuContext, aligned_empty, poison
from convbench.errors import Unavailable
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import implementations

NAMES = (
    "direct_naive_numba",
    "direct_numpy",
    "im2col_numpy",
    "im2col_caffe_numpy",
    "im2col_tiled_numpy",
    "im2col_mkl",
    "kn2row_numpy",
    "strassen_im2col_numpy",
)
for _name in NAMES:
    importlib.import_module(f"convbench.algorithms.{_name}")

make = ConvShape.make
SHAPES = {
    "plain": make(2, 3, 8, 9, 4, 3, 3, padding=1),
    "pointwise": make(3, 5, 6, 7, 4, 1, 1),
    "pointwise strided": make(2, 4, 7, 8, 6, 1, 1, stride=(2, 3)),
    "pointwise padded": make(2, 2, 3, 3, 3, 1, 1, padding=((1, 0), (2, 1))),
    "pointwise grouped": make(2, 6, 5, 5, 4, 1, 1, groups=2),
    "one of everything": make(1, 1, 1, 1, 1, 1, 1),
    "1xS": make(2, 3, 5, 12, 2, 1, 5, padding=(0, 2)),
    "Rx1 strided dilated": make(1, 2, 17, 4, 3, 4, 1, stride=(3, 1), dilation=(2, 1), padding=(3, 0)),
    "asymmetric": make(3, 2, 7, 10, 5, 3, 2, stride=2, padding=((0, 1), (1, 0))),
    "padding exceeds filter": make(2, 3, 4, 3, 2, 2, 3, padding=((5, 4), (3, 6))),
    "windows that see nothing": make(2, 2, 1, 1, 3, 2, 2, padding=1, dilation=2),
    "stride exceeds filter": make(2, 3, 11, 13, 4, 2, 3, stride=(4, 5), padding=1),
    "groups": make(2, 12, 6, 5, 6, 3, 3, groups=3, padding=1),
    "depthwise": make(2, 9, 7, 6, 9, 3, 3, groups=9, padding=1, stride=(1, 2)),
    "depthwise multiplier": make(2, 4, 5, 5, 12, 3, 2, groups=4, dilation=2, padding=2),
    "groups of one output": make(2, 8, 5, 6, 4, 2, 2, groups=4),
    "large filter": make(1, 2, 9, 9, 3, 7, 9, padding=4),
    "odd channels": make(1, 17, 6, 6, 19, 3, 3, padding=1, stride=(2, 1), dilation=(1, 2)),
    "every side odd": make(1, 9, 5, 7, 11, 3, 3, padding=1),
    "groups of odd channels": make(1, 27, 5, 5, 33, 3, 1, padding=1, groups=3),
    "images in several products": make(3, 2, 45, 47, 3, 3, 3, padding=1),
    "images in uneven products, strided": make(7, 2, 61, 58, 3, 3, 2, stride=2, padding=((1, 0), (0, 2))),
    "pointwise image by image": make(3, 3, 16, 17, 2, 1, 1),
    "unread rows": make(2, 2, 10, 11, 2, 3, 3, stride=4),
}


def reference(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The result in float64, by loops over taps, outputs and groups; knows nothing of what it judges."""
    s, first = problem.shape, problem.layout == "nchw"
    forward, weights = problem.pass_ is Pass.FORWARD, problem.pass_ is Pass.BACKWARD_WEIGHTS

    def turned(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64) if first else array.astype(np.float64).transpose(0, 3, 1, 2)

    out = np.zeros(problem.out_shape if first else tuple(problem.out_shape[i] for i in (0, 3, 1, 2)))
    a, b = turned(a), turned(b)
    for p, q, r, t in itertools.product(range(s.p), range(s.q), range(s.r), range(s.s)):
        i = p * s.stride[0] + r * s.dilation[0] - s.padding[0]
        j = q * s.stride[1] + t * s.dilation[1] - s.padding[2]
        if not (0 <= i < s.h and 0 <= j < s.w):
            continue
        for g in range(s.groups):
            c, k = slice(g * s.cg, (g + 1) * s.cg), slice(g * s.kg, (g + 1) * s.kg)
            if forward:
                out[:, k, p, q] += np.einsum("nc,kc->nk", a[:, c, i, j], b[k, :, r, t])
            elif weights:
                out[k, :, r, t] += np.einsum("nc,nk->kc", a[:, c, i, j], b[:, k, p, q])
            else:
                out[:, c, i, j] += np.einsum("nk,kc->nc", a[:, k, p, q], b[k, :, r, t])
    return out if first else out.transpose(0, 2, 3, 1)


def operand(shape: tuple[int, ...], dtype: str, rng: np.random.Generator, kind: str, peak: int) -> np.ndarray:
    array = aligned_empty(shape, dtype)
    array[...] = rng.integers(-peak, peak + 1, shape) if kind == "integer" else rng.standard_normal(shape)
    array.flags.writeable = False
    return array


def operands(problem: Problem, kind: str, seed: int, headroom: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that may not be written to; integers so large that float32 sums just stay exact."""
    rng = np.random.default_rng(seed)
    peak = int(np.sqrt((2**24 - 1) / (problem.accumulation_length * headroom)))
    return (
        operand(problem.a_shape, problem.dtype, rng, kind, min(peak, 4097)),
        operand(problem.b_shape, problem.dtype, rng, kind, min(peak, 4097)),
    )


def result(problem: Problem) -> np.ndarray:
    out = aligned_empty(problem.out_shape, problem.dtype)
    poison(out)
    return out


@functools.cache
def expected(problem: Problem, kind: str, seed: int, headroom: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The result for `operands` of the same arguments and, for normal inputs, the convolution of the squares."""
    a, b = operands(problem, kind, seed, headroom)
    squares = reference(problem, a.astype(np.float64) ** 2, b.astype(np.float64) ** 2) if kind == "normal" else None
    return reference(problem, a, b), squares


def check(plan: Plan, kind: str, seed: int, headroom: int = 1) -> None:
    """One run of a plan against the reference: equal for integers, within the promised bound otherwise."""
    problem, implementation = plan.problem, plan.implementation
    a, b = operands(problem, kind, seed, headroom)
    out = result(problem)
    plan.run(a, b, out)
    want, squares = expected(problem, kind, seed, headroom)
    where = f"{implementation.name} {problem}"
    if squares is None:
        assert np.array_equal(out, want), f"{where}: {np.count_nonzero(out != want)} of {out.size} differ"
        return
    scale = np.sqrt(squares)
    if implementation.error_footprint(problem) is not None:
        scale = scale.max((2, 3) if problem.layout == "nchw" else (1, 2), keepdims=True)
    bound = implementation.error_growth * np.finfo(problem.dtype).eps * np.sqrt(problem.accumulation_length) * scale
    outside = ~(np.abs(out - want) <= bound)
    assert not outside.any(), f"{where}: {np.count_nonzero(outside)} of {out.size} exceed their bound"


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", NAMES)
def test_every_shape_raw(name: str, pass_: Pass, layout: str) -> None:
    every_shape(name, pass_, layout)


def every_shape(name: str, pass_: Pass, layout: str) -> None:
    implementation = implementations()[name]
    headroom = getattr(implementation, "integer_headroom", 1)
    for i, shape in enumerate(SHAPES.values()):
        for dtype, kind in (("float32", "integer"), ("float32", "normal"), ("float64", "normal")):
            problem = Problem(shape, pass_, dtype, layout)
            assert implementation.why_not(problem) is None
            plan = make_plan(implementation, problem, CpuContext(2))
            for seed in (i, i + 100):  # twice, with other arrays: nothing of the first call may remain
                check(plan, kind, seed, headroom if kind == "integer" else 1)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("tile_bytes", [1, 700])
def test_tiles_of_one_row_or_channel_and_uneven_ones(
    tile_bytes: int, pass_: Pass, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(im2col_tiled_numpy, "TILE_BYTES", tile_bytes)
    every_shape("im2col_tiled_numpy", pass_, layout)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", [Pass.FORWARD, Pass.BACKWARD_DATA])
@pytest.mark.parametrize("name", NAMES)
def test_packed_weights_are_a_private_copy(name: str, pass_: Pass, layout: str) -> None:
    implementation = implementations()[name]
    for label in ("plain", "depthwise", "groups", "pointwise", "every side odd"):
        problem = Problem(SHAPES[label], pass_, "float32", layout)
        for seed in (1, 2):  # other weights afterwards, in a plan of their own
            weights = operands(problem, "integer", seed, 8)[1].copy()
            plan = make_plan(implementation, problem, CpuContext(1), weights=weights)
            poison(weights)
            check(plan, "integer", seed, 8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", NAMES)
def test_workspace_estimate_matches_what_is_taken(name: str, pass_: Pass, layout: str) -> None:
    implementation = implementations()[name]
    shapes = [
        *SHAPES.values(),
        make(2, 32, 40, 40, 48, 3, 3, padding=1),
        make(5, 24, 57, 57, 24, 3, 3, padding=1, groups=24),
        make(2, 16, 90, 90, 16, 5, 5, padding=2, stride=2),
        make(20, 64, 14, 14, 96, 1, 1),
        make(2, 256, 8, 9, 300, 3, 3, padding=1),
        make(1, 256, 12, 12, 512, 5, 5, groups=2),
    ]
    for shape in shapes:
        problem = Problem(shape, pass_, "float32", layout)
        context = CpuContext(1)
        plan = make_plan(implementation, problem, context)
        a, b = operands(problem, "normal", 3)
        out = result(problem)
        plan.run(a, b, out)
        tracemalloc.start()
        plan.run(a, b, out)
        measured = context.workspace_bytes + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        estimate = implementation.workspace_estimate(problem)
        assert measured <= 1.05 * estimate + 100_000, f"{name} {problem}: takes {measured}, promised {estimate}"
        assert estimate <= 1.05 * measured + 100_000, f"{name} {problem}: takes {measured}, promised {estimate}"


def test_strassen_executes_seven_eighths() -> None:
    implementation = implementations()["strassen_im2col_numpy"]
    for pass_ in Pass:
        problem = Problem(make(1, 64, 32, 32, 64, 3, 3, padding=1), pass_)
        flops = implementation.executed_flops(problem)
        assert flops["multiply"] == problem.direct_flops * 7 / 8
        assert 0 < flops["add"] < 0.1 * flops["multiply"]


@pytest.mark.parametrize("order", list(itertools.product("CF", repeat=3)), ids="".join)
def test_strassen_splits_odd_sides_in_either_storage_order(order: tuple[str, str, str]) -> None:
    rng = np.random.default_rng(7)
    for m, k, n in itertools.product((8, 9, 31), repeat=3):
        assert Strassen.workspace((m, k, n), 4) > 0
        multiply = Strassen((m, k, n), "float64", CpuContext(1))
        a, b = rng.integers(-99, 99, (m, k)).astype(float), rng.integers(-99, 99, (k, n)).astype(float)
        out = np.full((m, n), np.nan, order=order[2])
        multiply(np.array(a, order=order[0]), np.array(b, order=order[1]), out)
        assert np.array_equal(out, a @ b)


def test_strassen_needs_its_headroom_to_be_exact() -> None:
    """Sums of quadrants overflow 24 bits where the result itself does not; with the headroom they do not."""
    implementation = implementations()["strassen_im2col_numpy"]
    problem = Problem(make(1, 64, 8, 8, 32, 1, 1))
    exact = {}
    for headroom in (1, implementation.integer_headroom):
        peak = int(np.sqrt((2**24 - 1) / (64 * headroom)))
        rng = np.random.default_rng(0)
        a = rng.integers(peak - 3, peak + 1, problem.a_shape).astype(np.float32)
        b = rng.integers(peak - 3, peak + 1, problem.b_shape).astype(np.float32)
        out = result(problem)
        make_plan(implementation, problem, CpuContext(1)).run(a, b, out)
        exact[headroom] = np.array_equal(out, reference(problem, a, b))
    assert exact == {1: False, 8: True}


def test_depthwise_nhwc_of_one_pixel_and_two_groups() -> None:
    for name, pass_ in itertools.product(NAMES, Pass):
        problem = Problem(make(1, 2, 2, 2, 2, 2, 2, groups=2), pass_, "float32", "nhwc")
        plan = make_plan(implementations()[name], problem, CpuContext(1))
        check(plan, "integer", 5, 8)


def test_kn2row_counts_whole_images() -> None:
    implementation = implementations()["kn2row_numpy"]
    problem = Problem(make(2, 3, 10, 10, 4, 3, 3))
    assert implementation.executed_flops(problem)["multiply"] == 2 * 2 * 4 * 3 * 9 * 100


# ---- MKL through ctypes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mkl_gemm_and_batch_with_distant_rows(dtype: str) -> None:
    mkl, rng = _mkl.load(2), np.random.default_rng(0)
    for across_a, across_b, (m, n, k) in itertools.product(
        (False, True), (False, True), ((5, 7, 3), (1, 1, 1), (1, 9, 4), (33, 1, 65))
    ):
        big_a = rng.standard_normal((3, k + 2, m + 3) if across_a else (3, m + 2, k + 3)).astype(dtype)
        big_b = rng.standard_normal((3, n + 1, k + 1) if across_b else (3, k + 1, n + 1)).astype(dtype)
        a = big_a[:, : k if across_a else m, : m if across_a else k]
        b = big_b[:, : n if across_b else k, : k if across_b else n]
        want = (a.swapaxes(1, 2) if across_a else a) @ (b.swapaxes(1, 2) if across_b else b)
        out = np.full((3, m, n + 2), np.nan, dtype)
        mkl.gemm_batch(a, b, out[:, :, :n], across_a, across_b)
        np.testing.assert_allclose(out[:, :, :n], want, rtol=0, atol=1e-4)
        assert np.isnan(out[:, :, n:]).all()
        one = np.ones((m, n), dtype)
        mkl.gemm(a[1], b[1], one, across_a, across_b, alpha=2.0, beta=3.0)
        np.testing.assert_allclose(one, 2 * want[1] + 3, rtol=0, atol=1e-4)


def test_mkl_refuses_what_it_cannot_read() -> None:
    mkl, square = _mkl.load(1), np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match="rows must be contiguous"):
        mkl.gemm(square.T[:2, :4], square, np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="all alike"):
        mkl.gemm(square, square.astype(np.float64), square.copy())
    with pytest.raises(ValueError, match="does not give"):
        mkl.gemm(square, square, np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match="one length"):
        mkl.gemm_batch(square[None], np.ones((2, 4, 4), np.float32), square[None].copy())


def test_without_mkl_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mkl, "find_library", lambda: None)
    sentence = implementations()["im2col_mkl"].unavailable()
    assert sentence == "im2col_mkl needs mkl: pip install 'convbench[mkl]'"
    _mkl._library.cache_clear()
    with pytest.raises(Unavailable, match="pip install"):
        _mkl.load(1)


# ---- the seven loops


def test_naive_loops_compile_where_no_cache_folder_can_be_written(tmp_path: Path) -> None:
    """A copy of the kernels beside a file called __pycache__, and a home that cannot exist."""
    import convbench.algorithms._naive_loops as loops

    shutil.copy(str(loops.__file__), tmp_path / "stranded_loops.py")
    (tmp_path / "__pycache__").write_text("no folder")
    code = """
import numpy as np
import stranded_loops as loops
from numba.core import config
assert not config.CACHE_DIR
x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
y = np.empty((1, 1, 2, 2), np.float32)
loops.compiled(loops.forward, "float32", "float32")(x, w, y, (1, 1, 0, 0, 1, 1, 1))
assert (y == 4).all()
print(config.CACHE_DIR)
"""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = done.stdout.strip()
    assert "convbench-numba-" in folder
    assert not os.path.exists(folder)


def test_naive_loops_sum_in_float32() -> None:
    """2^24 + 1 is lost in single precision; a wider accumulator would keep it."""
    implementation = implementations()["direct_naive_numba"]
    problem = Problem(make(1, 3, 1, 1, 1, 1, 1))
    x = np.array([2.0**24, 1.0, 1.0], np.float32).reshape(1, 3, 1, 1)
    w, out = np.ones((1, 3, 1, 1), np.float32), result(problem)
    make_plan(implementation, problem, CpuContext(1)).run(x, w, out)
    assert out[0, 0, 0, 0] == 2.0**24
