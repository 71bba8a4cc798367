"""The simd tier's tiled FFT: kernels against NumPy on every vector unit, and whole convolutions for every plan."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convbench.problem import ConvShape, Pass, Problem

pytest.importorskip("numba")

from convbench.algorithms._fft_simd_model import candidates, choose, executed_flops, lengths, row_counts
from convbench.algorithms._fft_simd_plan import Plan
from convbench.algorithms._fft_simd_run import Prepared
from convbench.algorithms.fft_tiled_simd import FftTiledSimd
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.simd import target as targets
from convbench.simd.kernels import fft, fft_halves, fft_product
from convbench.simd.kernels.butterflies import Butterflies

UNITS = [name for name in ("avx512", "avx2", "neon", "generic") if targets.runs_here(name)]
SIZES = [(8, 8), (16, 8), (8, 16), (16, 16), (8, 32), (32, 32), (12, 20), (24, 12), (28, 24), (20, 28)]


def at(array: np.ndarray, offset: int = 0) -> int:
    return array.ctypes.data + array.itemsize * offset


def filled(n: int, value: float) -> np.ndarray:
    array = aligned_empty(n, np.float32)
    array.fill(value)
    return array


def frequencies(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(complex, real) frequencies of a tile (height, width, channels) in the kernels' order."""
    height, width, _ = tile.shape
    spectrum = np.fft.rfft2(tile.astype(np.float64), axes=(0, 1))
    inner = spectrum[:, 1 : width // 2].swapaxes(0, 1).reshape(-1, tile.shape[2])  # (column, row) in one
    edges = [spectrum[1 : height // 2, u] for u in (0, width // 2)]
    real = np.array([spectrum[v, u].real for u in (0, width // 2) for v in (0, height // 2)])
    return np.concatenate([inner, *edges]), real


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("planes", sorted(fft.PLANES))
def test_forward_transform(unit: str, size: tuple[int, int], planes: str) -> None:
    """All planes, zeros outside the window, guard values between the planes."""
    target = targets.named(unit)
    used = (size[0] - 3, size[1] - 2)
    channels = 2 * target.lanes
    rng = np.random.default_rng(1)
    x = aligned_empty((*size, channels), np.float32)
    x[...] = rng.standard_normal(x.shape)
    top, bottom, left, right = 1, used[0] - 1, 2, used[1]
    tile = np.zeros(x.shape)
    tile[top:bottom, left:right] = x[top:bottom, left:right]
    complex_ones, real_ones = frequencies(tile)
    n_complex, each = fft.complex_frequencies(size), fft.PLANES[planes]
    plane = channels + 16
    v = filled((each * n_complex + 4) * plane, 7.0)
    scratch, zeros = filled(fft.scratch_elements(size, target), np.nan), filled(target.lanes, 0.0)
    kernel = fft.forward(target, size, used, planes)
    window = (top, bottom, left, right)
    kernel(channels, at(x), size[1] * channels, channels, *window, at(zeros), at(scratch), at(v), plane)
    got = v.reshape(-1, plane)
    assert (got[:, channels:] == 7.0).all()
    filters = planes in (fft.FILTER_3, fft.FILTER_4)
    b = complex_ones.conj() / (size[0] * size[1]) if filters else complex_ones
    want = {
        fft.DATA_3: [b.real + b.imag, b.real, b.imag], fft.DATA_4: [b.real, b.imag],
        fft.FILTER_3: [b.real, b.imag - b.real, b.real + b.imag], fft.FILTER_4: [b.real, b.imag],
    }[planes]  # fmt: skip
    tolerance = 2e-6 * np.abs(b).max()
    for j, part in enumerate(want):
        assert np.abs(got[j : each * n_complex : each, :channels] - part).max() < tolerance
    scale = size[0] * size[1] if filters else 1
    assert np.abs(got[each * n_complex :, :channels] - real_ones / scale).max() < tolerance


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("products", [3, 4])
def test_inverse_transform(unit: str, size: tuple[int, int], products: int) -> None:
    """The kept part comes back, times the number of points; rows and columns beyond the count are not written."""
    target = targets.named(unit)
    channels, kept = 2 * target.lanes, (size[0] - 2, size[1] - 4)
    rng = np.random.default_rng(2)
    tile = rng.standard_normal((*size, channels))
    complex_ones, real_ones = frequencies(tile)
    n_complex, each = len(complex_ones), 3 if products == 3 else 2
    plane = channels + 16
    m = filled((each * n_complex + 4) * plane, np.nan).reshape(-1, plane)
    if products == 3:  # k1 - k3 and k1 + k2, with any k1
        k1 = rng.standard_normal(complex_ones.shape)
        parts = [k1, complex_ones.imag - k1, k1 - complex_ones.real]
    else:
        parts = [complex_ones.real, complex_ones.imag]
    for j, part in enumerate(parts):
        m[j : each * n_complex : each, :channels] = part
    m[each * n_complex :, :channels] = real_ones
    y = filled(kept[0] * kept[1] * channels, 9.0)
    scratch, dump = filled(fft.scratch_elements(size, target), np.nan), filled(target.lanes, 0.0)
    rows, columns = kept[0] - 1, kept[1] - 2
    fft.inverse(target, size, kept, products)(
        channels, at(m), plane, at(scratch), at(y), kept[1] * channels, channels, rows, columns, at(dump)
    )
    got = y.reshape(*kept, channels)
    assert (got[rows:] == 9.0).all() and (got[:, columns:] == 9.0).all()
    assert np.abs(got[:rows, :columns] / (size[0] * size[1]) - tile[:rows, :columns]).max() < 2e-6


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("size", SIZES[3::2])
@pytest.mark.parametrize("planes", [fft.DATA_3, fft.DATA_4])
def test_halves_forward(unit: str, size: tuple[int, int], planes: str) -> None:
    """Rows, then columns: the planes that the whole transform writes, column by column, and nothing between them."""
    target, (height, width) = targets.named(unit), size
    channels, each, n_complex = 2 * target.lanes, fft.PLANES[planes], fft.complex_frequencies(size)
    x = aligned_empty((height, width, channels), np.float32)
    x[...] = np.random.default_rng(5).standard_normal(x.shape)
    left, right = 1, width - 2
    tile = x.copy()
    tile[:, :left] = tile[:, right:] = 0.0
    plane, row, part = channels + 16, channels + 8, height * (channels + 8) + 16
    want, half = filled((each * n_complex + 4) * plane, 7.0), filled(width * part, 7.0)
    scratch, zeros = filled(fft.scratch_elements(size, target), np.nan), filled(target.lanes, 0.0)
    window = (0, height, 0, width)
    whole = fft.forward(target, size, size, planes)
    whole(channels, at(tile), width * channels, channels, *window, at(zeros), at(scratch), at(want), plane)
    for i in range(height):
        line = at(x[i])
        fft_halves.row(target, width, width)(channels, line, channels, left, right, at(zeros), at(half, i * row), part)
    got = filled(want.size, 7.0)
    for slab in range(width // 2):
        edge = int(slab == width // 2 - 1)
        start = 0 if edge else 2 * (slab + 1)
        kernel = fft_halves.column(target, size, planes)
        kernel(channels, edge, at(half, start * part), row, part, at(got, each * slab * height * plane), plane)
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    gaps = half.reshape(width, part)
    assert (gaps[:, height * row :] == 7.0).all()
    assert (gaps[:, : height * row].reshape(width, height, row)[..., channels:] == 7.0).all()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("size", SIZES[3::2])
@pytest.mark.parametrize("products", [3, 4])
def test_halves_inverse(unit: str, size: tuple[int, int], products: int) -> None:
    """Columns, then rows back: what the whole inverse transform gives; columns beyond the count are not written."""
    target, (height, width) = targets.named(unit), size
    channels, kept, each = 2 * target.lanes, (height - 3, width - 2), 3 if products == 3 else 2
    plane = channels + 16
    m = filled((each * fft.complex_frequencies(size) + 4) * plane, 0.0)
    m[:] = np.random.default_rng(6).standard_normal(m.size)
    want, got = filled(kept[0] * kept[1] * channels, 9.0), filled(kept[0] * kept[1] * channels, 9.0)
    scratch, dump = filled(fft.scratch_elements(size, target), np.nan), filled(target.lanes, 0.0)
    columns = kept[1] - 1
    fft.inverse(target, size, kept, products)(
        channels, at(m), plane, at(scratch), at(want), kept[1] * channels, channels, kept[0], columns, at(dump)
    )
    row, part = channels + 8, kept[0] * (channels + 8) + 16
    half = filled(width * part, 7.0)
    for slab in range(width // 2):
        edge = int(slab == width // 2 - 1)
        start, first = 0 if edge else 2 * (slab + 1), each * slab * height
        kernel = fft_halves.column_inverse(target, size, kept[0], products)
        kernel(channels, edge, at(m, first * plane), plane, at(half, start * part), row, part)
    back = fft_halves.row_inverse(target, width, kept[1])
    for i in range(kept[0]):
        back(channels, at(half, i * row), part, at(got, i * kept[1] * channels), channels, columns, at(dump))
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    assert (got.reshape(*kept, channels)[:, columns:] == 9.0).all()
    assert (half.reshape(width, part)[:, kept[0] * row :] == 7.0).all()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_complex_product(unit: str, vectors: int, masked: bool) -> None:
    """Every row count, every remainder of columns, written and added, guard values around C."""
    target = targets.named(unit)
    width, depth, rng = vectors * target.lanes, 5, np.random.default_rng(3)
    most = fft_product.rows_for(target, vectors)
    kernel = fft_product.complex_product(target, vectors, masked)
    for rows in range(1, most + 1):
        for columns in range(1, width + 1):
            a = aligned_empty((2, depth, most) if masked else (2, most, depth), np.float32)
            b = aligned_empty((2, depth, columns if masked else width), np.float32)
            for array in (a, b):
                array[...] = rng.integers(-3, 4, array.shape)
            row_a, step_a = (1, most) if masked else (depth, 1)
            left = (a[0] + 1j * a[1]).T if masked else a[0] + 1j * a[1]
            want = left[:rows] @ (b[0] + 1j * b[1])[:, :columns]
            c = filled(2 * (most + 1) * (width + 3), 5.0).reshape(2, most + 1, width + 3)
            for accumulate in (0, 1):
                kernel(
                    rows, columns, at(a), row_a, step_a, a[0].size, at(b), b.shape[2], b[0].size, depth, at(c),
                    width + 3, c[0].size, at(b), accumulate,
                )  # fmt: skip
                assert np.array_equal(c[0, :rows, :columns] + 1j * c[1, :rows, :columns], (accumulate + 1) * want)
            assert (c[:, rows:] == 5.0).all() and (c[:, :, columns:] == 5.0).all()


# ---- whole convolutions

SHAPES = [
    ConvShape.make(1, 16, 12, 12, 16, 3, 3, padding=1),
    ConvShape.make(2, 3, 9, 11, 17, 3, 5, padding=((0, 2), (3, 1))),
    ConvShape.make(1, 1, 1, 1, 1, 5, 5, padding=2),
    ConvShape.make(1, 33, 20, 33, 70, 13, 13, padding=6),
    ConvShape.make(2, 8, 7, 7, 8, 3, 3, padding=1, groups=8),
    ConvShape.make(1, 12, 9, 9, 24, 3, 3, padding=1, groups=4),
    ConvShape.make(1, 40, 9, 9, 130, 1, 1, groups=2),
    ConvShape.make(1, 4, 34, 34, 5, 31, 31, padding=15),
    ConvShape.make(1, 17, 4, 4, 3, 3, 3, padding=4),
]


def reference(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The convolution in float64, tap by tap."""
    s, nchw = problem.shape, problem.layout == "nchw"
    a, b = (v.astype(np.float64) if nchw else v.astype(np.float64).transpose(0, 3, 1, 2) for v in (a, b))
    (top, _, left, _), (height, width) = s.padding, (s.p + s.r - 1, s.q + s.s - 1)
    padded = np.zeros((s.n, s.c, max(height, s.h + top), max(width, s.w + left)))
    inside = padded[:, :, top : top + s.h, left : left + s.w]
    windows = [(r, q, np.s_[:, :, r : r + s.p, q : q + s.q]) for r in range(s.r) for q in range(s.s)]
    grouped = (s.n, s.groups, -1, s.p, s.q)
    if problem.pass_ is Pass.BACKWARD_DATA:
        w = b.reshape(s.groups, s.kg, s.cg, s.r, s.s)
        for r, q, window in windows:
            part = np.einsum("ngkpq,gkc->ngcpq", a.reshape(grouped), w[..., r, q])
            padded[window] += part.reshape(s.n, s.c, s.p, s.q)
        result = inside
    elif problem.pass_ is Pass.FORWARD:
        inside[...] = a
        w = b.reshape(s.groups, s.kg, s.cg, s.r, s.s)
        parts = (np.einsum("ngcpq,gkc->ngkpq", padded[z].reshape(grouped), w[..., r, q]) for r, q, z in windows)
        result = sum(parts).reshape(s.n, s.k, s.p, s.q)  # type: ignore[union-attr]
    else:
        inside[...] = a
        result = np.zeros((s.k, s.cg, s.r, s.s))
        for r, q, window in windows:
            part = np.einsum("ngcpq,ngkpq->gkc", padded[window].reshape(grouped), b.reshape(grouped))
            result[:, :, r, q] = part.reshape(s.k, s.cg)
    return result if nchw else result.transpose(0, 2, 3, 1)


def run_plan(plan: Plan, threads: int, packed: bool, a: Any, b: Any, out: Any) -> CpuContext:
    context = CpuContext(threads)
    prepared = Prepared(plan, context)
    if plan.is_weights_pass:
        prepared.run_weights(a, b, out)
    elif packed:
        prepared.transform_filters(b)
        prepared.run(a, out)
    else:
        prepared.run_raw(a, b, out)
    return context


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_plans(unit: str, layout: str, pass_: Pass, index: int) -> None:
    """Two plans of a problem (all of them over the shapes, units, passes and layouts), 1 and 2 threads."""
    problem = Problem(SHAPES[index], pass_, "float32", layout)
    target = targets.named(unit)
    rng = np.random.default_rng(index)
    a, b = (aligned_empty(shape, np.float32) for shape in (problem.a_shape, problem.b_shape))
    for array in (a, b):
        array[...] = rng.standard_normal(array.shape)
    want = reference(problem, a, b)
    every = list(candidates(problem, target))
    picked = rng.choice(len(every), 1)
    for i, plan in enumerate([choose(problem, target), *(every[k] for k in picked)]):
        out = aligned_empty(problem.out_shape, np.float32)
        out.fill(np.nan)
        run_plan(plan, 1 + i % 2, i % 2 == 0, a, b, out)
        assert np.abs(out - want).max() <= 2e-5 * np.abs(want).max(), plan


@pytest.mark.parametrize("pass_", list(Pass))
def test_many_groups_of_tiles(pass_: Pass) -> None:
    """Staged groups and blocks of a few tiles: backward weights adds over them."""
    problem = Problem(ConvShape.make(2, 5, 21, 18, 20, 3, 3, padding=1), pass_, "float32", "nhwc")
    target = targets.host()
    rng = np.random.default_rng(4)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in (problem.a_shape, problem.b_shape))
    want = reference(problem, a, b)
    for plan in candidates(problem, target):
        out = aligned_empty(problem.out_shape, np.float32)
        out.fill(np.nan)
        run_plan(replace(plan, block=min(3, plan.tiles)), 1, True, a, b, out)
        assert np.abs(out - want).max() <= 2e-5 * np.abs(want).max(), plan


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pass_", list(Pass))
def test_estimate(pass_: Pass, threads: int) -> None:
    """The estimate of workspace against what the context counts."""
    row = FftTiledSimd()
    for shape in (*SHAPES, ConvShape.make(1, 64, 56, 56, 64, 13, 13, padding=6)):
        problem = Problem(shape, pass_, "float32", "nhwc")
        context = CpuContext(threads)
        Prepared(row.plan(problem), context)
        measured, estimate = context.workspace_bytes, row.estimate(problem)
        assert measured <= 1.25 * estimate + (1 << 20)
        assert estimate <= 4 * measured + (1 << 20)


def test_executed_operations() -> None:
    """Fewer than the nominal 2.5 T log2 T, more than a transform without multiplications; pruning takes some away."""
    every = fft.forward_operations((8, 8), (8, 8))
    assert fft.forward_operations((8, 8), (3, 3)) < every / 2
    assert fft.inverse_operations((8, 8), (6, 6)) < fft.inverse_operations((8, 8), (8, 8))
    assert 8 * 14 + 2 * 14 + 3 * 48 < every < 2.5 * 64 * 6


@pytest.mark.parametrize("length", [3, 5, 6, 7, 12, 14, 20, 24, 28])
def test_lengths_with_odd_factors(length: int) -> None:
    """One-dimensional transforms against NumPy, in float64 by an emitter that computes instead of writing code."""

    class Numbers:
        splat_constant = staticmethod(float)
        fadd, fsub, fmul = (staticmethod(how) for how in (operator.add, operator.sub, operator.mul))
        fneg = staticmethod(operator.neg)
        fma = staticmethod(lambda x, y, z: x * y + z)

    flies, rng = Butterflies(Numbers()), np.random.default_rng(length)
    x = rng.standard_normal((length, 2))
    as_complex = x[:, 0] + 1j * x[:, 1]
    for sign, want in ((-1, np.fft.fft(as_complex)), (1, np.fft.ifft(as_complex) * length)):
        got = [re + 1j * im for re, im in flies.complex([(re, im) for re, im in x], sign)]
        assert np.allclose(got, want)
    found = flies.real(list(x[:, 0]))
    assert np.allclose([re + 1j * (im or 0.0) for re, im in found], np.fft.rfft(x[:, 0]))
    assert np.allclose(flies.real_inverse(found, length), length * x[:, 0])


def test_rows_are_shared_by_tiles_above_each_other() -> None:
    """Staged plans transform each row of the image once for every column of tiles, and count it so."""
    problem = Problem(ConvShape.make(2, 16, 40, 40, 16, 13, 13, padding=6), layout="nhwc")
    plan = choose(problem, targets.host(), (("tile", (32, 32)), ("staged", True), ("products", 4), ("vectors", 1)))
    assert plan.work_groups == 1 and plan.grid == (2, 2)
    assert row_counts(plan) == (2 * 40 * 2, 2 * 40 * 2)
    single = replace(plan, block=2)  # one row of tiles at a time: those two share rows no more
    assert single.work_groups == 4
    assert row_counts(single)[0] == 2 * 2 * (26 + 26)
    blocked = replace(plan, staged=False)
    assert executed_flops(plan)["input_transform"] < executed_flops(blocked)["input_transform"]


def test_no_tile_that_a_shorter_one_replaces() -> None:
    """As many tiles with fewer points are never worse: 13 taps on 32 results take two tiles of 28 as of 32."""
    assert lengths(13, 32) == [16, 20, 24, 28]
    assert lengths(1, 7) == [8]


def test_limits() -> None:
    """What the mathematics of one tile refuses."""
    row = FftTiledSimd()
    assert row.limits(Problem(ConvShape.make(1, 1, 9, 9, 1, 3, 3, stride=2))) == "fft_tiled: stride must be 1, not 2"
    assert "dilation must be 1" in str(row.limits(Problem(ConvShape.make(1, 1, 9, 9, 1, 3, 3, dilation=2))))
    big = Problem(ConvShape.make(1, 1, 40, 40, 1, 33, 33))
    assert row.limits(big) == "fft_tiled: the filter must fit a tile of 32x32, not 33x33"
    assert row.limits(Problem(ConvShape.make(1, 1, 40, 40, 1, 31, 31))) is None


def test_model_prefers_large_tiles_for_large_filters() -> None:
    """13x13 on 56x56: a tile of 8 cannot hold it, and 32 needs a fraction of the operations of 16."""
    plan = choose(Problem(ConvShape.make(1, 64, 56, 56, 64, 13, 13, padding=6), layout="nhwc"), targets.host())
    assert plan.tile == (32, 32)


def test_plan_can_be_forced() -> None:
    """Fields that a plan must have are kept, whatever the model thinks."""
    problem = Problem(ConvShape.make(1, 64, 56, 56, 64, 5, 5, padding=2), layout="nhwc")
    wanted = (("tile", (8, 32)), ("products", 3), ("staged", False))
    plan = choose(problem, targets.host(), wanted)
    assert (plan.tile, plan.products, plan.staged) == ((8, 32), 3, False)


def test_gradients_of_padding_alone_do_not_reach_the_filter() -> None:
    # Column 0 of dy meets padding only; its values are huge, and what the others give must not show it.
    shape = ConvShape.make(1, 5, 3, 1, 7, 3, 3, padding=((2, 0), (3, 0)))
    rng, problem = np.random.default_rng(8), Problem(shape, Pass.BACKWARD_WEIGHTS, "float32", "nhwc")
    x = rng.standard_normal(problem.a_shape).astype(np.float32)
    dy = rng.standard_normal(problem.b_shape).astype(np.float32)
    first, second = (np.empty(problem.out_shape, np.float32) for _ in range(2))
    run = FftTiledSimd().prepare(problem, CpuContext(1))
    run(x, dy, first)
    dy[:, :, 0] = 1e6
    run(x, dy, second)
    np.testing.assert_array_equal(first, second)
