"""Binary, XNOR and binary-weight rows: packing, padding, signs of zero, scales, and NumPy against SIMD bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms import _sign_tiles_run, _signs_simd_run
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.errors import RegistrationError
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem, Semantics
from convbench.registry import Context, Implementation, Run
from convbench.simd import target as units
from convbench.simd.kernels import sign_bytes, signs
from convbench.simd.target import Target
from convbench.testing import conformance, fuzz
from convbench.verify import Verifier
from tests.simd_helpers import UNITS, Arena, address, target

__all__ = ["target"]

make = ConvShape.make
ROWS = catalog.load().implementations
TILES = units.host().tiles("amx-int8")
#: Units of the popcount rows, and AMX where it is.
WAYS = [*UNITS, *(["amx"] if TILES else [])]
#: Numbers whose signs are easily got wrong: both zeros, NaN, what is nearly nothing, infinities.
ODD = np.array([0.0, -0.0, np.nan, -np.nan, 1e-45, -1e-45, np.inf, -np.inf, 1.5, -1.5], np.float32)
FINITE = ODD[np.isfinite(ODD)]


def operand(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of both signs, some of them zeros of both signs."""
    array = aligned_empty(shape, np.float32)
    array[...] = rng.standard_normal(shape)
    array[rng.random(shape) < 0.1] = 0.0
    array[rng.random(shape) < 0.1] = -0.0
    return array


def prepared(way: str, problem: Problem, weights: Any = None, threads: int = 1) -> Run:
    """A binary row's run on one unit, or on AMX."""
    if way == "amx":
        return _sign_tiles_run.prepare_tiles(problem, CpuContext(threads), weights, units.host())
    return _signs_simd_run.prepare_signs(problem, CpuContext(threads), weights, units.named(way))


def lesson(problem: Problem, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What the NumPy row of these semantics gives."""
    name = {"binary": "binary_packed_numpy", "xnor": "xnor_packed_numpy"}[problem.semantics]
    out = np.full(problem.out_shape, np.nan, np.float32)
    make_plan(ROWS[name], problem, CpuContext()).run(a, b, out)
    return out


def run(call: Run, problem: Problem, *operands: np.ndarray) -> np.ndarray:
    out = aligned_empty(problem.out_shape, np.float32)
    out.fill(np.nan)
    call(*operands, out)
    return out


# ---- packing


def expected_bits(x: np.ndarray) -> np.ndarray:
    """(PIXELS, C) -> (PIXELS, WORDS): the words x, x ^ y of each 64 channels."""
    pixels, channels = x.shape
    bits = np.zeros((pixels, 32 * signs.words_of(channels)), np.uint8)
    bits[:, :channels] = ~(x >= 0)
    words = np.packbits(bits, axis=1, bitorder="little").view(np.uint32).copy()
    words[:, 1::2] ^= words[:, ::2]
    return words


@pytest.mark.parametrize("from_planes", [False, True])
def test_signs_of_every_remainder_of_channels(target: Target, from_planes: bool) -> None:
    rng = np.random.default_rng(3)
    kernel = (signs.planes if from_planes else signs.pixels)(target, True)
    source = Arena(150 * 19)
    for channels in [*range(1, 67), 95, 96, 97, 127, 128, 129, 150]:
        pixels = int(rng.integers(1, 20))
        x = rng.choice(FINITE, (pixels, channels))
        words = signs.words_of(channels)
        to, sums = np.zeros((pixels, words), np.uint32), np.zeros(pixels, np.float32)
        given = source.holding(x.T if from_planes else x)
        row = pixels if from_planes else channels
        kernel(pixels, channels, address(given), row, address(to), words, 1, address(sums))
        assert np.array_equal(to, expected_bits(x)), channels
        np.testing.assert_allclose(sums, np.abs(x).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("from_planes", [False, True])
def test_signs_of_odd_numbers(target: Target, from_planes: bool) -> None:
    kernel = (signs.planes if from_planes else signs.pixels)(target, False)
    to = np.zeros((1, 2), np.uint32)
    kernel(1, len(ODD), address(ODD), 1 if from_planes else len(ODD), address(to), 2, 1, 0)
    assert f"{to[0, 0]:010b}"[::-1] == "0011010101"  # zeros are not negative, NaN is


def test_words_of_a_pixel_may_be_apart(target: Target) -> None:
    """As in a panel, where the other filters' words lie between them."""
    x = np.random.default_rng(4).standard_normal((3, 100)).astype(np.float32)
    to = np.full((3, 4, 7), 99, np.uint32)
    signs.pixels(target, False)(3, 100, address(x), 100, address(to), 28, 7, 0)
    assert np.array_equal(to[:, :, 0], expected_bits(x))
    assert (to[:, :, 1:] == 99).all()


@pytest.mark.parametrize("from_planes", [False, True])
def test_bytes_of_every_remainder_of_channels(from_planes: bool) -> None:
    if not units.runs_here("avx512"):
        return  # the kernels are for that unit alone
    rng, unit = np.random.default_rng(5), units.named("avx512")
    kernel = (sign_bytes.planes if from_planes else sign_bytes.pixels)(unit, True)
    source = Arena(150 * 40)
    for channels in [*range(1, 67), 127, 128, 129, 150]:
        pixels, words = int(rng.integers(1, 40)), -(-channels // 4)
        x = rng.choice(FINITE, (pixels, channels))
        to, sums = np.zeros((pixels, words, 4), np.int8), np.zeros(pixels, np.float32)
        given = source.holding(x.T if from_planes else x)
        kernel(pixels, channels, address(given), given.shape[1], address(to), words, 1, address(sums))
        flat = to.reshape(pixels, -1)
        assert np.array_equal(flat[:, :channels], np.where(x >= 0, 1, -1)), channels
        assert not flat[:, channels:].any()
        np.testing.assert_allclose(sums, np.abs(x).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("r", "s", "stride", "dilation"), [(3, 3, 1, 1), (1, 1, 1, 1), (5, 2, 3, 2), (2, 7, 1, 3)])
def test_windows(target: Target, r: int, s: int, stride: int, dilation: int) -> None:
    rng, width = np.random.default_rng(6), 37
    columns = (width - 1) * stride + (s - 1) * dilation + 1
    x = rng.random((r, columns), np.float32)
    held, to = np.zeros(columns, np.float32), np.zeros(width, np.float32)
    factor = int(np.float32(0.25).view(np.int32))
    signs.windows(target)(r, columns, s, stride, dilation, columns, width, *map(address, (x, held, to)), factor)
    down = x.sum(axis=0)
    want = [0.25 * sum(down[q * stride + j * dilation] for j in range(s)) for q in range(width)]
    np.testing.assert_allclose(to, want, rtol=1e-6)


# ---- whole convolutions


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_every_remainder_of_channels(way: str, layout: str) -> None:
    """Bits beyond the last channel must not count."""
    rng = np.random.default_rng(7)
    for channels in [*range(1, 36), 63, 64, 65, 68, 95, 100, 127, 128, 129, 191, 257]:
        problem = Problem(make(1, channels, 4, 5, 3, 3, 3, padding=1), layout=layout, semantics=Semantics.BINARY)
        a, b = operand(rng, problem.a_shape), operand(rng, problem.b_shape)
        assert np.array_equal(run(prepared(way, problem), problem, a, b), lesson(problem, a, b)), channels


BORDERS = {
    "asymmetric": make(2, 5, 6, 7, 33, 3, 4, padding=((2, 0), (1, 3))),
    "beyond_the_filter": make(1, 70, 2, 3, 17, 3, 3, padding=5),
    "dilated": make(1, 4, 9, 9, 5, 3, 3, padding=4, dilation=(2, 3)),
    "strided": make(1, 8, 11, 9, 40, 5, 3, stride=(3, 2), padding=(2, 1), groups=4),
    "no_tap_inside": make(1, 3, 1, 1, 2, 2, 2, stride=3, padding=3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BORDERS)
def test_padding_adds_nothing(name: str, way: str, layout: str) -> None:
    """Of ones and ones the sum is how many taps fall within the image; of ones and minus ones it is as much below 0."""
    problem = Problem(BORDERS[name], layout=layout, semantics=Semantics.BINARY)
    s = problem.shape
    inside = np.zeros((s.p, s.q))
    for i, j in np.ndindex(s.r, s.s):
        rows = np.arange(s.p) * s.stride[0] + i * s.dilation[0] - s.padding[0]
        columns = np.arange(s.q) * s.stride[1] + j * s.dilation[1] - s.padding[2]
        inside += np.outer((rows >= 0) & (rows < s.h), (columns >= 0) & (columns < s.w))
    for sign in (1.0, -1.0):
        a, b = (np.full(shape, value, np.float32) for shape, value in ((problem.a_shape, 1), (problem.b_shape, sign)))
        got = run(prepared(way, problem), problem, a, b)
        got = got if layout == "nchw" else got.transpose(0, 3, 1, 2)
        assert np.array_equal(got, np.broadcast_to(sign * s.cg * inside, got.shape))


@pytest.mark.parametrize("way", [*WAYS, "numpy"])
def test_signs_of_zeros_and_of_nan(way: str) -> None:
    problem = Problem(make(1, 10, 1, 1, 1, 1, 1), semantics=Semantics.BINARY)
    b = np.ones(problem.b_shape, np.float32)
    for i, sign in enumerate([1, 1, -1, -1, 1, -1, 1, -1, 1, -1]):
        a = np.ones(problem.a_shape, np.float32)
        a[0, i] = ODD[i]
        got = lesson(problem, a, b) if way == "numpy" else run(prepared(way, problem), problem, a, b)
        assert got.item() == 9 + sign
        got = lesson(problem, b, a) if way == "numpy" else run(prepared(way, problem), problem, b, a)
        assert got.item() == 9 + sign


@pytest.mark.parametrize("way", [*WAYS, "numpy"])
def test_scales_of_xnor(way: str) -> None:
    """alpha = (1 + 2 + 3 + 6) / 4 = 3; beta: half of the window lies on padding, (|4| + |-2|) / 2 / 2 = 1.5."""
    problem = Problem(make(1, 2, 1, 1, 1, 1, 2, padding=((0, 0), (1, 0))), semantics=Semantics.XNOR)
    a = np.array([4.0, -2.0], np.float32).reshape(problem.a_shape)
    b = np.array([1.0, -2.0, 3.0, -6.0], np.float32).reshape(problem.b_shape)  # (channel, tap)
    got = lesson(problem, a, b) if way == "numpy" else run(prepared(way, problem), problem, a, b)
    assert got.item() == 3 * 1.5 * (-1 + 1)
    a = np.abs(a)
    got = lesson(problem, a, -b) if way == "numpy" else run(prepared(way, problem), problem, a, np.abs(b))
    assert got.item() == 3 * 1.5 * 2


@pytest.mark.parametrize("part", range(10))
def test_numpy_and_simd_agree_bit_for_bit(part: int) -> None:
    """52 random shapes a part, each on one unit, raw or packed, in one thread or two."""
    draw, rng = random.Random(f"binary {part}"), np.random.default_rng(part)
    for number in range(52):
        problem = fuzz.draw_problem(draw, ROWS["binary_popcount_simd"])
        while problem.shape.macs > 300_000:
            problem = fuzz.draw_problem(draw, ROWS["binary_popcount_simd"])
        a, b = operand(rng, problem.a_shape), operand(rng, problem.b_shape)
        way, packed, threads = WAYS[number % len(WAYS)], draw.random() < 0.5, draw.randint(1, 2)
        call = prepared(way, problem, b if packed else None, threads)
        got = run(call, problem, a) if packed else run(call, problem, a, b)
        assert np.array_equal(got, lesson(problem, a, b)), (way, problem)
        scaled = Problem(problem.shape, problem.pass_, problem.dtype, problem.layout, Semantics.XNOR)
        got = run(prepared(way, scaled, None, threads), scaled, a, b)
        np.testing.assert_allclose(got, lesson(scaled, a, b), rtol=2e-5, atol=1e-30, err_msg=f"{way} {scaled}")


@pytest.mark.parametrize("name", ["binary_popcount_simd", "xnor_popcount_simd", "bwn_direct_simd"])
@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != units.host().name])
def test_conforms_on_narrower_units(name: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "host", lambda: units.named(unit))
    for shape in ("odd_channels", "asymmetric_everything", "filter_5x5", "depthwise", "many_channels"):
        for layout in LAYOUTS:
            problem = Problem(conformance.SHAPES[shape], layout=layout, semantics=ROWS[name].semantics)
            outcome = conformance.check(ROWS[name], problem, "packed" if layout == "nhwc" else "raw")
            assert outcome.status == "ok", (shape, outcome.reason)


def test_without_amx_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "host", lambda: units.named("generic"))
    assert "AMX" in (ROWS["xnor_amx_simd"].unavailable() or "")


PREPARES = """
import numpy as np
from convbench.algorithms._sign_tiles_run import prepare_tiles
from convbench.devices.cpu import CpuContext
from convbench.errors import Unavailable
from convbench.problem import ConvShape, Problem
from convbench.simd.target import host
problem = Problem(ConvShape.make(1, 64, 4, 4, 16, 3, 3), semantics="binary")
out = np.empty(problem.out_shape, np.float32)
try:
    call = prepare_tiles(problem, CpuContext(), None, host())
except Unavailable:
    print("no tiles")
else:
    call(np.ones(problem.a_shape, np.float32), np.ones(problem.b_shape, np.float32), out)
    print(np.unique(out))
"""


def test_prepare_asks_for_the_right_to_tiles() -> None:
    """In a fresh process nobody else has: without the right the first instruction on tiles is illegal."""
    done = subprocess.run([sys.executable, "-c", PREPARES], capture_output=True, text=True, timeout=120)
    assert done.stdout == ("[576.]\n" if TILES else "no tiles\n"), done.stderr


# ---- binary weights


@pytest.mark.parametrize("name", ["bwn_direct_simd", "bwn_im2col_numpy"])
@pytest.mark.parametrize("pass_", [Pass.FORWARD, Pass.BACKWARD_DATA])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_binary_weights_are_signs_times_means(name: str, pass_: Pass, layout: str) -> None:
    """The linear convolution of what the filter means; raw and packed."""
    rng, shape = np.random.default_rng(8), make(2, 6, 7, 6, 8, 3, 3, padding=1, groups=2)
    problem = Problem(shape, pass_, "float32", layout, Semantics.BINARY_WEIGHTS)
    a, w = operand(rng, problem.a_shape), operand(rng, problem.b_shape)
    mean = np.abs(w).mean(axis=(1, 2, 3), keepdims=True)
    want = np.empty(problem.out_shape, np.float32)
    linear = Problem(shape, pass_, "float32", layout)
    make_plan(ROWS["im2col_numpy"], linear, CpuContext()).run(a, np.where(w >= 0, mean, -mean), want)
    for weights in (None, w):
        got = np.full(problem.out_shape, np.nan, np.float32)
        make_plan(ROWS[name], problem, CpuContext(), weights).run(a, w, got)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_binary_rows_have_no_backward_pass() -> None:
    with pytest.raises(RegistrationError, match="binary"):
        from convbench.registry import register

        register(type("Bad", (ROWS["binary_packed_numpy"].__class__,), {"name": "binary_bad", "passes": tuple(Pass)}))


# ---- mutants: each is one plausible mistake, and verification must see it


class Mutant(Implementation):
    """Binary convolution tap by tap in float64, with one change."""

    name = "binary_mutant_numpy"
    passes = (Pass.FORWARD,)
    dtypes = ("float32",)
    semantics = Semantics.BINARY
    sign: Callable[[np.ndarray], np.ndarray] = staticmethod(lambda x: np.where(x >= 0, 1.0, -1.0))
    border = 0.0
    extra = 0.0
    alpha: Callable[[np.ndarray], np.ndarray] = staticmethod(lambda w: np.abs(w).mean(axis=(1, 2, 3)))
    beta_border = 0.0
    mean: Callable[[np.ndarray], np.ndarray] = staticmethod(lambda x: np.abs(x).mean(axis=1, keepdims=True))

    def workspace_estimate(self, problem: Problem) -> int:
        return 64 * problem.elements

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        s = problem.shape

        def convolve(x: np.ndarray, w: np.ndarray, border: float) -> np.ndarray:
            top, bottom, left, right = s.padding
            full = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=border)
            y = np.zeros((s.n, len(w), s.p, s.q))
            for i, j in np.ndindex(s.r, s.s):
                rows = slice(i * s.dilation[0], i * s.dilation[0] + (s.p - 1) * s.stride[0] + 1, s.stride[0])
                columns = slice(j * s.dilation[1], j * s.dilation[1] + (s.q - 1) * s.stride[1] + 1, s.stride[1])
                y += np.einsum("nchw,kc->nkhw", full[:, :, rows, columns], w[:, :, i, j])
            return y

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            y = convolve(self.sign(a), self.sign(b), self.border) + self.extra
            if problem.semantics is Semantics.XNOR:
                box = np.full((1, 1, s.r, s.s), 1 / (s.r * s.s))
                y *= convolve(self.mean(a.astype(np.float64)), box, self.beta_border)
                y *= self.alpha(b.astype(np.float64))[:, None, None]
            out[...] = y

        return run


def mutant(semantics: Semantics, **changes: Any) -> Implementation:
    held = {name: staticmethod(value) if callable(value) else value for name, value in changes.items()}
    return type("Mutated", (Mutant,), {"semantics": semantics, **held})()


BINARY_MUTANTS: dict[str, dict[str, Any]] = {
    "padding_counts_as_-1": {"border": -1.0},
    "padding_counts_as_+1": {"border": 1.0},
    "sign_of_0_is_-1": {"sign": lambda x: np.where(x > 0, 1.0, -1.0)},
    "sign_of_0_is_0": {"sign": np.sign},
    "the_sign_bit_of_-0": {"sign": lambda x: np.where(np.signbit(x), -1.0, 1.0)},
    "bits_beyond_C_count": {"extra": 1.0},
    "signs_of_x_turned_over": {"sign": lambda x: np.where(x >= 0, 1.0, -1.0) * (1 if x.shape[0] > 3 else -1)},
}
XNOR_MUTANTS: dict[str, dict[str, Any]] = {
    **BINARY_MUTANTS,
    "alpha_forgotten": {"alpha": lambda w: np.ones(len(w))},
    "alpha_of_w_not_of_its_magnitude": {"alpha": lambda w: np.abs(w.mean(axis=(1, 2, 3)))},
    "alpha_a_sum": {"alpha": lambda w: np.abs(w).sum(axis=(1, 2, 3))},
    "alpha_of_all_filters": {"alpha": lambda w: np.full(len(w), np.abs(w).mean())},
    "beta_forgotten": {"mean": lambda x: np.ones_like(x[:, :1])},
    "beta_of_all_pixels": {"mean": lambda x: np.full_like(x[:, :1], np.abs(x).mean())},
    "beta_of_x_not_of_its_magnitude": {"mean": lambda x: x.mean(axis=1, keepdims=True)},
    "padding_has_magnitude_1": {"beta_border": 1.0},
}
SHAPE = make(3, 18, 9, 8, 20, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2)))


@pytest.mark.parametrize("semantics", [Semantics.BINARY, Semantics.XNOR])
@pytest.mark.parametrize("full_macs", [1 << 40, 0])
def test_the_unchanged_convolution_is_accepted(semantics: Semantics, full_macs: int) -> None:
    verifier = Verifier(Problem(SHAPE, semantics=semantics), full_macs=full_macs)
    _, verdict = verifier.verify(mutant(semantics), CpuContext)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("full_macs", [1 << 40, 0])
@pytest.mark.parametrize(
    ("semantics", "name"),
    [(Semantics.BINARY, name) for name in BINARY_MUTANTS] + [(Semantics.XNOR, name) for name in XNOR_MUTANTS],
)
def test_every_mutant_is_rejected(semantics: Semantics, name: str, full_macs: int) -> None:
    changed = mutant(semantics, **XNOR_MUTANTS[name])
    _, verdict = Verifier(Problem(SHAPE, semantics=semantics), full_macs=full_macs).verify(changed, CpuContext)
    assert not verdict.ok, name
