"""depthwise_simd: its kernels against NumPy on every vector unit, its plans, every way through it with guards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convbench.algorithms import _depthwise_simd_plan as planning
from convbench.algorithms.depthwise_simd import DepthwiseSimd, Plan
from convbench.algorithms.direct_numpy import DirectNumpy
from convbench.devices.cpu import CpuContext
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.simd import target
from convbench.simd.kernels.depthwise import Pattern, move, sliding, straight

UNITS = [name for name in ("avx512", "avx2", "generic") if target.runs_here(name)]
GUARD = np.float32(7.25e30)


def shape(n: int, c: int, h: int, w: int, r: int, s: int, **rest: object) -> ConvShape:
    return ConvShape.make(n, c, h, w, c, r, s, groups=c, **rest)


SHAPES = {
    "3x3": shape(1, 32, 14, 14, 3, 3, padding=1),
    "tail of channels": shape(2, 19, 9, 13, 3, 3, padding=1),
    "stride 2": shape(1, 33, 11, 12, 3, 3, stride=2, padding=1),
    "5x5 stride 2, asymmetric": shape(1, 16, 12, 17, 5, 5, stride=2, padding=((1, 2), (2, 1))),
    "7x7": shape(1, 17, 10, 11, 7, 7, padding=3),
    "1x9": shape(1, 5, 6, 20, 1, 9, padding=((0, 0), (4, 4))),
    "9x1, stride 3 and 1": shape(1, 5, 20, 6, 9, 1, stride=(3, 1), padding=((4, 4), (0, 0))),
    "dilation": shape(1, 18, 15, 14, 3, 3, dilation=(2, 3), padding=(2, 3)),
    "13x13": shape(2, 20, 14, 16, 13, 13, padding=6),
    "13x11 stride 2, dilation 2 and 1": shape(1, 3, 30, 25, 13, 11, stride=2, dilation=(2, 1), padding=(12, 5)),
    "31x31": shape(1, 16, 17, 18, 31, 31, padding=15),
    "1x1 stride 5": shape(1, 8, 13, 11, 1, 1, stride=5),
    "padding beyond the filter": shape(1, 4, 3, 4, 3, 3, padding=5),
    "one pixel": shape(3, 6, 1, 1, 3, 3, padding=1),
}


def amid(value: float, size: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """What lies before and after (both full of `value`), and `size` elements that start on 64 bytes."""
    buffer = np.full(size + 272, value, np.float32)
    start = 128 + -(buffer.ctypes.data // 4) % 16
    return (buffer[:start], buffer[start + size :]), buffer[start : start + size]


def check(problem: Problem, unit: str, straight: bool | None, packed: bool, threads: int = 1) -> None:
    rng = np.random.default_rng(0)
    operands = [rng.standard_normal(size, dtype=np.float32) for size in (problem.a_shape, problem.b_shape)]
    exact = replace(problem, dtype="float64")
    want = np.empty(exact.out_shape)
    DirectNumpy().prepare(exact, CpuContext(1))(*(x.astype(np.float64) for x in operands), want)
    # NaN around the operands: whatever is read beyond them shows in the result
    a, b = (amid(np.nan, x.size)[1].reshape(x.shape) for x in operands)
    a[...], b[...] = operands
    (before, after), out = amid(GUARD, want.size)
    out = out.reshape(want.shape)
    run = Plan(problem, CpuContext(threads), target.named(unit), straight).run(b if packed else None)
    for _ in range(2):
        out.fill(np.nan)
        if packed:
            run(a, out)
        else:
            run(a, b, out)
        np.testing.assert_allclose(out, want, rtol=0, atol=1e-5 * max(1.0, float(np.abs(want).max())))
    assert (before == GUARD).all()
    assert (after == GUARD).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_agrees_with_the_definition(name: str, pass_: Pass, layout: str) -> None:
    check(Problem(SHAPES[name], pass_, "float32", layout), UNITS[0], None, pass_ is Pass.FORWARD)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize("name", ["3x3", "stride 2", "dilation", "1x1 stride 5", "one pixel"])
def test_small_filters_may_slide_as_well(name: str, pass_: Pass, layout: str) -> None:
    check(Problem(SHAPES[name], pass_, "float32", layout), UNITS[0], False, False)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize("name", ["tail of channels", "stride 2", "13x13"])
def test_every_vector_unit(name: str, pass_: Pass, unit: str) -> None:
    check(Problem(SHAPES[name], pass_, "float32", "nhwc"), unit, None, False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
def test_two_threads(pass_: Pass, layout: str) -> None:
    check(Problem(SHAPES["stride 2"], pass_, "float32", layout), UNITS[0], None, False, threads=2)
    check(Problem(SHAPES["13x13"], pass_, "float32", layout), UNITS[0], None, False, threads=2)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("block", [(1, 5, 1, 1), (2, 3, 1, 3), (3, 2, 2, 1), (4, 2, 1, 2)])
def test_sliding_for_every_number_of_outputs(unit: str, block: tuple[int, int, int, int]) -> None:
    """Every count of rows, columns and channels that are written; the rest of the output is not touched."""
    rows, columns, step, unroll = block
    unit_target = target.named(unit)
    lanes, height, width = unit_target.lanes, rows + 2, 2 * unroll + 1
    kernel = sliding(unit_target, rows, columns, step, unroll)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows + height, columns * step + width, lanes), dtype=np.float32)
    f = rng.standard_normal((height, width, lanes), dtype=np.float32)
    want = np.zeros((rows, columns, lanes), np.float32)
    for j in range(rows):
        for q in range(columns):
            want[j, q] = (x[j : j + height, q * step : q * step + width] * f).sum((0, 1))
    for n_rows in range(1, rows + 1):
        for n_columns in range(1, columns + 1):
            for channels in (1, lanes - 1, lanes):
                for accumulate in (0, 1):
                    y = np.full((rows, columns, lanes), 3, np.float32)
                    expected = y.copy()
                    part = want[:n_rows, :n_columns, :channels] + 3 * accumulate
                    expected[:n_rows, :n_columns, :channels] = part
                    kernel(
                        x.ctypes.data, x.shape[1] * lanes, lanes, f.ctypes.data, width * lanes, lanes, height, width,
                        y.ctypes.data, columns * lanes, lanes, n_rows, n_columns, channels, accumulate,
                    )  # fmt: skip
                    np.testing.assert_allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("channels", [1, 4, 7, 16, 17, 40])
@pytest.mark.parametrize("weights", [False, True])
def test_straight_kernel_through_a_table_is_the_strided_one(unit: str, channels: int, weights: bool) -> None:
    unit_target = target.named(unit)
    lanes = unit_target.lanes
    rows, columns = Pattern.forward(2, 3, 1, 1), Pattern.forward(3, 3, 2, 1)
    strided = straight(unit_target, rows, columns, 9, 3, False, weights)
    tabled = straight(unit_target, rows, columns, 9, 3, True, weights)
    rng = np.random.default_rng(2)
    vectors = -(-channels // lanes)
    x = rng.standard_normal((4, 7, channels), dtype=np.float32)
    f = np.zeros((vectors, 9, lanes), np.float32) if weights else rng.standard_normal((vectors, 9, lanes), np.float32)
    y = rng.standard_normal((2, 3, channels), dtype=np.float32)
    other_f, other_y = f.copy(), y.copy()
    strided(x.ctypes.data, 7 * channels, channels, y.ctypes.data, 3 * channels, channels, f.ctypes.data, channels, 1)
    places = [x[i, j].ctypes.data for i in rows.offsets for j in columns.offsets]
    places += [other_y[i, j].ctypes.data for i in range(2) for j in range(3)]
    table = np.array(places, np.int64)
    tabled(table.ctypes.data, other_f.ctypes.data, channels)
    np.testing.assert_array_equal(y, other_y)
    np.testing.assert_array_equal(f, other_f)
    windows = np.stack([x[i : i + 2, j : j + 5 : 2] for i in range(3) for j in range(3)])  # (9, 2, 3, C)
    flat = f.transpose(1, 0, 2).reshape(9, -1)[:, :channels]  # (R S, C)
    if weights:
        np.testing.assert_allclose(flat, (windows * y).sum((1, 2)), atol=1e-4)
    else:
        np.testing.assert_allclose(y, (windows * flat[:, None, None]).sum(0), atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_move_copies_the_channels_asked_for(unit: str) -> None:
    lanes = target.named(unit).lanes
    source = np.random.default_rng(3).standard_normal((3, 5, lanes), dtype=np.float32)
    for channels in range(1, lanes + 1):
        to = np.full((3, 5, lanes), GUARD)
        move(target.named(unit))(
            2, 4, channels, source.ctypes.data, 5 * lanes, lanes, to.ctypes.data, 5 * lanes, lanes
        )
        np.testing.assert_array_equal(to[:2, :4, :channels], source[:2, :4, :channels])
        assert (to[2] == GUARD).all()
        assert (to[:, 4] == GUARD).all()
        assert (to[:, :, channels:] == GUARD).all()


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", [0, 1, 5])
def test_phases_and_patterns_of_backward_data_cover_each_tap_once(stride: int, dilation: int, padding: int) -> None:
    taps, size = 5, 24
    s = shape(1, 1, size, 40, taps, 1, stride=(stride, 1), dilation=(dilation, 1), padding=((padding, 20), (0, 0)))
    want = {(p * stride + r * dilation - padding, p, r) for p in range(-60, 60) for r in range(taps)}
    want = {use for use in want if 0 <= use[0] < size}
    got = set()
    for phase in planning.phases(Problem(s, Pass.BACKWARD_DATA), 0):
        for i in range(phase.outputs):
            for t in range(phase.taps):
                read = i * phase.stride + t * phase.dilation - phase.padding
                use = (phase.at + i * phase.step, read, phase.first + t * phase.filter_step)
                assert use not in got
                got.add(use)
    assert got == want
    blocks = Pattern.backward(2 * stride, taps, stride, dilation, padding)
    got = set()
    for block in range(-(-size // blocks.size)):
        for j, index, tap in blocks.uses:
            if block * blocks.size + j < size:
                got.add((block * blocks.size + j, block * blocks.step + blocks.offsets[index], tap))
    assert got == want


@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_estimates(name: str, layout: str, pass_: Pass) -> None:
    problem = Problem(SHAPES[name], pass_, "float32", layout)
    row = DepthwiseSimd()
    estimate = row.workspace_estimate(problem)
    for threads in (1, 2):
        context = CpuContext(threads)
        row.prepare(problem, context)
        assert context.workspace_bytes <= 1.25 * estimate + (1 << 20)
        assert estimate <= 4 * context.workspace_bytes + (1 << 20)
    useful = problem.valid_flops
    assert useful <= row.executed_flops(problem)["multiply"]


def test_refuses_what_is_not_depthwise() -> None:
    row = DepthwiseSimd()
    assert row.limits(Problem(SHAPES["3x3"])) is None
    reason = row.limits(Problem(ConvShape.make(1, 8, 5, 5, 16, 3, 3, padding=1, groups=8)))
    assert reason == "depthwise: K must equal C = groups, not K=16 C=8 groups=8"
