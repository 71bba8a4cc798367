"""The four FFT implementations against loops in float64, on shapes chosen to hurt."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from functools import cache

import numpy as np
import pytest

from convbench.algorithms import _fft_backends, _fft_scheme, _mkl
from convbench.algorithms._fft_geometry import WholeAxis
from convbench.algorithms.fft_pyfftw import FftPyfftw
from convbench.algorithms.fft_scipy import FftScipy
from convbench.algorithms.fft_tiled_pyfftw import FftTiledPyfftw
from convbench.algorithms.fft_tiled_scipy import FftTiledScipy
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem

CLASSES = (FftScipy, FftPyfftw, FftTiledScipy, FftTiledPyfftw)
make = ConvShape.make
SHAPES = {
    "odd channels": make(1, 17, 19, 23, 33, 3, 3, padding=1),
    "batch of three, row filter": make(3, 4, 9, 7, 6, 1, 5, padding=((0, 0), (2, 1))),
    "column filter, strided": make(2, 4, 9, 7, 6, 5, 1, stride=2, padding=3),
    "unequal strides, asymmetric": make(1, 3, 30, 31, 4, 7, 7, stride=(2, 3), padding=((3, 2), (2, 3))),
    "groups and dilation": make(2, 6, 12, 10, 9, 3, 3, groups=3, padding=1, dilation=(2, 3)),
    "depthwise with multiplier": make(2, 8, 11, 11, 16, 3, 3, groups=8, padding=1),
    "large groups": make(1, 20, 20, 20, 40, 3, 3, groups=2, padding=1),
    "padding beyond the filter": make(1, 2, 5, 5, 3, 3, 3, padding=7),
    "one pixel": make(2, 3, 1, 1, 4, 1, 1),
    "one pixel, wide padding": make(2, 3, 1, 2, 4, 5, 5, padding=2),
    "taps that skip the image": make(1, 2, 2, 3, 2, 3, 3, padding=5, dilation=5),
    "one channel": make(1, 1, 1, 1, 1, 3, 3, padding=1),
    "strided 1x1 with padding": make(1, 3, 17, 13, 2, 1, 1, stride=3, padding=2),
    "many tiles": make(3, 2, 20, 70, 3, 5, 13, padding=((2, 2), (6, 6))),
    "even filter": make(1, 2, 5, 6, 3, 4, 2, padding=((0, 3), (1, 0))),
    "stride jumps over the image": make(1, 2, 3, 3, 3, 2, 2, stride=9, padding=8),
}


@cache
def loops(shape: ConvShape, pass_: Pass, seed: int, weights_seed: int, squares: bool = False) -> np.ndarray:
    """The definition, one (output position, tap) at a time, float64, nchw."""
    s, problem = shape, Problem(shape, pass_, "float64")
    a, b = operands(problem, seed)[0], operands(problem, weights_seed)[1]
    if squares:
        a, b = a * a, b * b
    out = np.zeros(problem.out_shape)
    for p, q, r, t in np.ndindex(s.p, s.q, s.r, s.s):
        h = p * s.stride[0] - s.padding[0] + r * s.dilation[0]
        w = q * s.stride[1] - s.padding[2] + t * s.dilation[1]
        if not (0 <= h < s.h and 0 <= w < s.w):
            continue
        for g in range(s.groups):
            cs, ks = slice(g * s.cg, (g + 1) * s.cg), slice(g * s.kg, (g + 1) * s.kg)
            if pass_ is Pass.FORWARD:
                out[:, ks, p, q] += a[:, cs, h, w] @ b[ks, :, r, t].T
            elif pass_ is Pass.BACKWARD_DATA:
                out[:, cs, h, w] += a[:, ks, p, q] @ b[ks, :, r, t]
            else:
                out[ks, :, r, t] += b[:, ks, p, q].T @ a[:, cs, h, w]
    return out


def operands(problem: Problem, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same float32 numbers for every dtype and layout."""
    rng = np.random.default_rng(seed)
    first = Problem(problem.shape, problem.pass_)
    arrays = []
    for shape, nchw_shape in ((problem.a_shape, first.a_shape), (problem.b_shape, first.b_shape)):
        array = aligned_empty(shape, problem.dtype)
        values = rng.standard_normal(nchw_shape, dtype=np.float32)
        array[...] = values if problem.layout == "nchw" else values.transpose(0, 2, 3, 1)
        arrays.append(array)
    return arrays[0], arrays[1]


def check(implementation, problem: Problem, got: np.ndarray, seeds: tuple[int, int]) -> None:
    """Within the bound of the conformance suite, with the whole result as footprint."""
    want = loops(problem.shape, problem.pass_, *seeds)
    scale = np.sqrt(loops(problem.shape, problem.pass_, *seeds, squares=True).max())
    if problem.layout == "nhwc":
        got = got.transpose(0, 3, 1, 2)
    eps = np.finfo(problem.dtype).eps
    bound = implementation.error_growth * eps * np.sqrt(problem.accumulation_length) * scale
    bad = ~(np.abs(got - want) <= bound)
    assert not bad.any(), f"{bad.sum()} of {bad.size} wrong, first at {np.argwhere(bad)[0]}"


def run_twice(implementation, problem: Problem, packed: bool) -> None:
    """Raw: two inputs in turn. Packed: the first weights stay whatever is passed later."""
    a, b = operands(problem, 1)
    a2, b2 = operands(problem, 2)
    plan = make_plan(implementation, problem, CpuContext(2), b if packed else None)
    for i, (x, y) in enumerate(((a, b), (a2, b2), (a, b))):
        seed = 1 + i % 2
        out = np.full(problem.out_shape, np.nan, problem.dtype)
        kept = x.copy(), y.copy()
        plan.run(x, y, out)
        assert np.array_equal(x, kept[0])
        assert np.array_equal(y, kept[1])
        check(implementation, problem, out, (seed, 1 if packed else seed))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("cls", CLASSES)
def test_equals_the_loops(cls, name, pass_, layout):
    for dtype in ("float32", "float64"):
        problem = Problem(SHAPES[name], pass_, dtype, layout)
        implementation = cls()
        if implementation.why_not(problem):
            assert cls.__name__.startswith("FftTiled")
            assert problem.shape.stride != (1, 1) or problem.shape.dilation != (1, 1)
            continue
        run_twice(implementation, problem, packed=False)
        if pass_ is not Pass.BACKWARD_WEIGHTS:
            run_twice(implementation, problem, packed=True)


@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("kept", [0, 1 << 40])
def test_small_blocks_give_the_same(cls, pass_, kept, monkeypatch):
    """Several blocks of strips and of frequencies, some within one v; filters kept or made again."""
    monkeypatch.setattr(_fft_backends.OnCpu, "strip_bytes", 1 << 16)
    monkeypatch.setattr(_fft_backends.OnCpu, "frequency_bytes", 1 << 13)
    monkeypatch.setattr(_fft_scheme, "KEPT_BYTES", kept)
    for shape in (make(5, 6, 20, 23, 4, 3, 3, padding=1), make(5, 6, 20, 21, 6, 3, 3, padding=1, groups=6)):
        problem = Problem(shape, pass_, "float32", "nchw")
        scheme = cls().scheme(problem)
        assert len(scheme.blocks) > 1
        if kept == 0:
            assert scheme.strips_per_block < scheme.grid.strips
        run_twice(cls(), problem, packed=False)
        if pass_ is not Pass.BACKWARD_WEIGHTS:
            run_twice(cls(), problem, packed=True)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (make(1, 1, 9, 9, 1, 3, 3, stride=2), "fft_tiled: stride must be 1, not 2"),
        (make(1, 1, 9, 9, 1, 3, 3, stride=(1, 2)), "fft_tiled: stride must be 1, not 1x2"),
        (make(1, 1, 9, 9, 1, 3, 3, dilation=2), "fft_tiled: dilation must be 1, not 2"),
        (make(1, 1, 9, 99, 1, 3, 65), "fft_tiled: the filter must fit a tile of 64x64, not 3x65"),
    ],
)
def test_tiled_says_what_it_does_not_take(shape, words):
    assert FftTiledScipy().why_not(Problem(shape)) == words
    assert FftTiledPyfftw().why_not(Problem(shape)) == words
    assert FftScipy().why_not(Problem(shape)) is None


def test_a_filter_as_large_as_the_largest_tile():
    problem = Problem(make(1, 1, 66, 5, 1, 64, 1, padding=1))
    run_twice(FftTiledScipy(), problem, packed=False)


@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "shape",
    [
        make(1, 64, 56, 56, 32, 3, 3, padding=1),
        make(6, 48, 60, 60, 48, 5, 5, padding=2),
        make(1, 64, 40, 40, 64, 3, 3, padding=1, groups=64),
        make(1, 2, 6, 6, 3, 3, 3),
    ],
)
def test_workspace_estimate_is_near_what_is_measured(cls, pass_, shape):
    problem = Problem(shape, pass_)
    for weights in ["raw"] if pass_ is Pass.BACKWARD_WEIGHTS else ["raw", "packed"]:
        a, b = operands(problem, 1)
        out = np.empty(problem.out_shape, problem.dtype)
        plan = make_plan(cls(), problem, CpuContext(1), b if weights == "packed" else None)
        plan.run(a, b, out)
        tracemalloc.start()
        plan.run(a, b, out)
        measured = plan.workspace_bytes + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        estimate = cls().estimate(problem, weights)
        assert measured <= 1.25 * estimate + (1 << 20)
        assert estimate <= 4 * measured + (1 << 20)


VGG = [
    (3, 224, 64), (64, 224, 64), (64, 112, 128), (128, 112, 128), (128, 56, 256), (256, 56, 256),
    (256, 28, 512), (512, 28, 512), (512, 14, 512),
]  # fmt: skip


@pytest.mark.parametrize("weights", ["raw", "packed"])
@pytest.mark.parametrize("cls", CLASSES)
def test_vgg_needs_less_than_two_gigabytes(cls, weights):
    for c, size, k in VGG:
        for pass_ in Pass:
            problem = Problem(make(1, c, size, size, k, 3, 3, padding=1), pass_)
            assert cls().estimate(problem, weights) < 2 << 30


@pytest.mark.parametrize("cls", CLASSES)
def test_executed_flops_by_hand(cls):
    """One channel pair, one 8x8 tile (or transform): every phase counted on paper."""
    problem = Problem(make(1, 1, 8, 8, 1, 3, 3))
    flops = cls().executed_flops(problem)
    one = 2.5 * 64 * 6
    assert flops == {
        "transform_input": one,
        "transform_filter": 2 * 2 * 3 * 3 * 5 + 2 * 4 * 3 * 40,
        "multiply": 8 * 40,
        "transform_output": one,
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_taps_over_padding_alone_leave_no_trace(cls):
    """A huge tap that never meets the image must not drown the small one that does; its gradient is exactly 0."""
    shape = make(1, 1, 1, 1, 1, 3, 3, padding=1)
    w = np.full((1, 1, 3, 3), 1e9, np.float32)
    w[0, 0, 1, 1] = 1e-3
    x, y, dw = np.full((1, 1, 1, 1), 2, np.float32), np.empty((1, 1, 1, 1), np.float32), np.empty_like(w)
    make_plan(cls(), Problem(shape), CpuContext(1)).run(x, w, y)
    assert y[0, 0, 0, 0] == pytest.approx(2e-3, rel=1e-6)
    make_plan(cls(), Problem(shape, Pass.BACKWARD_WEIGHTS), CpuContext(1)).run(x, x, dw)
    assert np.count_nonzero(dw) == 1
    assert dw[0, 0, 1, 1] == 4


def test_padding_on_both_sides_shares_its_zeros():
    """SAME padding 1 on 56: a circle of 57 is enough, 58 (padded size) is not needed."""
    assert WholeAxis(size=56, outputs=56, extent=3, stride=1, begin=1).needed == 57


def test_a_shorter_circle_would_alias():
    """`needed` is the least length: brute force over every length for many axes."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, extent, stride, begin = (int(v) for v in rng.integers((1, 2, 1, 0), (9, 6, 4, 8)))
        outputs = (size + begin + 3 - extent) // stride + 1
        if outputs < 1:
            continue
        axis = WholeAxis(size, outputs, extent, stride, begin)
        good = [t for t in range(max(size, extent), 40) if circle_is_right(axis, t)]
        assert axis.needed in good
        if stride == 1:
            assert min(good) == axis.needed


def circle_is_right(axis: WholeAxis, length: int) -> bool:
    """Every output that reads the image reads the same elements on the circle, and no two share a place."""
    places = []
    for p in range(axis.outputs):
        m = p * axis.stride - axis.begin
        if not -axis.extent < m < axis.size:
            continue
        places.append(m % length)
        for tap in range(axis.extent):
            on_circle = (m + tap) % length
            if 0 <= m + tap < axis.size:
                if on_circle != m + tap:
                    return False
            elif on_circle < axis.size:
                return False
    return len(set(places)) == len(places)


AFTER_MKL = """
import numpy as np
from convbench.algorithms import _mkl
from convbench.algorithms._fft_backends import Fftw
from convbench.devices.cpu import CpuContext

square = np.eye(64, dtype=np.float32)
_mkl.load(1).gemm(square, square, square.copy())
tiles = np.random.default_rng(1).standard_normal((3, 16, 16, 4)).astype(np.float32)
spectra = Fftw.forward(tiles, CpuContext(1))()
assert np.allclose(spectra, np.fft.rfft2(tiles, axes=(1, 2)), atol=1e-4)
"""


@pytest.mark.skipif(_mkl.find_library() is None, reason="needs mkl")
def test_fftw_is_fftw_after_mkl_was_loaded():
    """MKL exports FFTW's names; in a fresh process, because what was loaded first decides."""
    done = subprocess.run([sys.executable, "-c", AFTER_MKL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
