"""The engine of the narrow rows: every unit, plan and end gives the definition's numbers, and no plan reads outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convbench.algorithms import _dot_simd as engine
from convbench.algorithms import _dot_simd_plan as planner
from convbench.algorithms._dot_simd_formats import BFLOAT16, INT8
from convbench.algorithms._simd import address_of
from convbench.devices.arrays import narrowed, storage, widened
from convbench.devices.cpu import CpuContext
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.simd.kernels import amx, ends, strips
from convbench.simd.target import Target, host, named, runs_here
from convbench.testing.guard_pages import Fenced
from convbench.verify.oracle import convolve

make = ConvShape.make


def without_tiles() -> Target:
    """This machine's widest unit, without AMX."""
    features = (f"-{f[1:]}" if f[1:].startswith("amx") else f for f in host().features.split(","))
    return replace(host(), features=",".join(features))


UNITS = {"host": host, "without tiles": without_tiles}
UNITS |= {name: lambda name=name: named(name) for name in ("avx2", "generic") if runs_here(name)}

SHAPES = {
    "rows of 14": make(1, 64, 14, 14, 40, 3, 3, padding=1),
    "rows read on": make(2, 16, 9, 9, 17, 3, 3, padding=1),
    "merged taps": make(1, 3, 20, 37, 33, 3, 3, padding=1),
    "few channels, stride 2": make(1, 3, 30, 35, 20, 7, 7, stride=2, padding=3),
    "in place": make(1, 128, 7, 9, 70, 1, 1),
    "in place, taps": make(1, 64, 8, 9, 32, 3, 2),
    "only what is read": make(1, 32, 15, 13, 48, 1, 1, stride=2),
    "many steps": make(1, 200, 9, 8, 33, 3, 3, padding=1),
    "words apart": make(1, 640, 5, 20, 65, 2, 2, padding=1),
    "no divisor": make(1, 1000, 4, 4, 36, 1, 1),
    "depthwise": make(1, 20, 9, 10, 20, 3, 3, padding=1, groups=20),
    "groups": make(2, 24, 9, 10, 36, 3, 3, padding=((2, 0), (0, 1)), groups=3),
    "stride and dilation": make(1, 10, 21, 17, 19, 3, 2, (2, 3), ((2, 1), (0, 3)), (3, 2)),
    "nothing but padding": make(1, 3, 1, 1, 4, 1, 1, stride=3, padding=1),
}


def operands(problem: Problem, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All of int8; whole numbers whose sums bfloat16 products give exactly in float32."""
    rng = np.random.default_rng(seed)
    if problem.dtype == "int8":
        a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in (problem.a_shape, problem.b_shape))
        return a, b
    a, b = (rng.integers(-9, 9, s, endpoint=True).astype(np.float32) for s in (problem.a_shape, problem.b_shape))
    return narrowed(a, "bfloat16"), narrowed(b, "bfloat16")


def wanted(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By the definition, in float64: every sum here is a whole number below 2^53."""
    x, y = (widened(v) if v.dtype == np.uint16 else v.astype(np.float64) for v in (a, b))
    if problem.layout == "nchw":
        return convolve(problem.shape, problem.pass_, x, y)
    x, y = (v.transpose(0, 3, 1, 2) for v in (x, y))
    return convolve(problem.shape, problem.pass_, x, y).transpose(0, 2, 3, 1)


def check(problem: Problem, form: engine.Format, unit: Target, weights: bool, threads: int = 1) -> None:
    a, b = operands(problem)
    exact = wanted(problem, a, b)
    fences = [Fenced(v.shape, v.dtype, place) for v, place in ((a, "flush"), (b, "start"))]
    for fence, value in zip(fences, (a, b), strict=True):
        fence.array[...] = value
    out = Fenced(problem.out_shape, storage(problem.out_dtype), "flush").array
    out[...] = 99
    context = CpuContext(threads)
    run = engine.prepare_products(problem, context, fences[1].array if weights else None, unit, form)
    for _ in range(2):
        run(fences[0].array, out) if weights else run(fences[0].array, fences[1].array, out)
        expected = narrowed(exact.astype(np.float32), "bfloat16") if form is BFLOAT16 else exact.astype(np.int64)
        assert np.array_equal(out, expected), (problem, unit.name)
    if threads == 1:
        estimate = engine.workspace(problem, unit, form)
        assert estimate / 4 <= context.workspace_bytes <= estimate * 1.05


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_exact(unit, shape, layout):
    check(Problem(shape, dtype="int8", layout=layout), INT8, unit(), weights=layout == "nhwc")
    for pass_ in (Pass.FORWARD, Pass.BACKWARD_DATA):
        check(Problem(shape, pass_, "bfloat16", layout), BFLOAT16, unit(), weights=layout == "nchw")


def test_the_shapes_meet_every_form_of_plan():
    found = set()
    unit = planner.Unit(16, 2, 16, 32, 1, True, True)
    for shape in SHAPES.values():
        made = planner.plan(Problem(shape, dtype="int8", layout="nhwc"), unit, 1)
        group = made.kinds[0][0]
        found |= {("strip", made.strip), ("merged", made.merged), ("direct", group.row_c > 0)}
        found |= {("step", made.step[1] > 1), ("apart", made.strip and made.pixel > made.words)}
        found |= {("segments", made.together < made.words)}
        found |= {("read on", any(len(pairs) < len(at) * group.rows for at, pairs in group.blocks))}
    assert found == {(k, v) for k, _ in found for v in (False, True)}


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(threads):
    for shape in (SHAPES["rows of 14"], SHAPES["groups"], make(1, 40, 30, 8, 33, 3, 3, padding=1)):
        for layout in LAYOUTS:
            check(Problem(shape, dtype="int8", layout=layout), INT8, host(), False, threads)


def test_small_budgets(monkeypatch):
    """Many tiles, and one panel at a time, give the same."""
    monkeypatch.setattr(planner, "STRIP_BYTES", 1000)
    monkeypatch.setattr(engine, "NEAR_PANELS_BYTES", 1)
    planner.plan.cache_clear()
    try:
        for shape in (SHAPES["rows of 14"], SHAPES["merged taps"]):
            for layout in LAYOUTS:
                problem = Problem(shape, dtype="int8", layout=layout)
                assert len(engine.plan_of(problem, host(), INT8, 1).tiles) > 3
                check(problem, INT8, host(), False)
    finally:
        planner.plan.cache_clear()


def test_a_nan_stays_where_it_belongs():
    """What rounds channels up to words must not carry a pixel's NaN to others."""
    problem = Problem(make(1, 3, 9, 40, 5, 3, 3, padding=1), dtype="bfloat16", layout="nhwc")
    for unit in UNITS.values():
        a, b = operands(problem)
        a[0, 4, 20, 1] = 0x7FC0
        out = np.zeros(problem.out_shape, np.uint16)
        engine.prepare_products(problem, CpuContext(1), None, unit(), BFLOAT16)(a, b, out)
        bad = np.isnan(widened(out)).all(axis=-1)[0]
        where = np.zeros((9, 40), bool)
        where[3:6, 19:22] = True
        assert np.array_equal(bad, where) and np.array_equal(np.isnan(widened(out)).any(axis=-1)[0], where)


def test_a_row_of_ones_own():
    """Another epilogue (scales), unsigned input with a zero point, and its padding: what the docstring promises."""
    zero_point = 7
    form = replace(
        INT8, kind="u8s8", bias=zero_point, direct=False, end=ends.scaled, held=ends.scaled, copies=False,
        fill_few=None, blank=lambda target, flip: strips.blank(target, 1, zero_point),
    )  # fmt: skip
    for layout in LAYOUTS:
        problem = Problem(SHAPES["groups"], dtype="int8", layout=layout)
        for unit in UNITS.values():
            rng = np.random.default_rng(1)
            x = rng.integers(0, 256, problem.a_shape).astype(np.uint8)
            w = rng.integers(-128, 128, problem.b_shape).astype(np.int8)
            scales = rng.random(problem.shape.k, np.float32)
            constants = np.array([0, address_of(scales)], np.int64)
            out = np.empty(problem.out_shape, np.float32)
            engine.prepare_products(problem, CpuContext(1), None, unit(), form, constants)(x, w, out)
            exact = wanted(problem, x.astype(np.int16) - zero_point, w).astype(np.float32)
            by = scales if layout == "nhwc" else scales[:, None, None]
            assert np.array_equal(out, exact * by)


def test_flips_only_without_tiles():
    assert engine.Format.flips(INT8, without_tiles()) and INT8.bias_of(without_tiles()) == 128
    assert INT8.flips(host()) is not amx.has_instruction(host(), "s8s8")
    assert not BFLOAT16.flips(without_tiles())
