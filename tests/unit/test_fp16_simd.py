"""float16 on the CPU: conversions of every value, copies that convert, products in single and in half precision."""

from __future__ import annotations

import numpy as np
import pytest

from convbench import catalog
from convbench.devices.arrays import as_real, narrowed
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.simd import target as units
from convbench.simd.kernels import gemm_pixels, half_pixels, pack
from convbench.simd.kernels.gemm import Shape
from convbench.simd.kernels.stored import convert
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import Target
from tests.simd_helpers import UNITS, Arena, address, target

__all__ = ["target"]

make = ConvShape.make
MULTIPLY = [units.named(name) for name in UNITS if half_pixels.has_instruction(units.named(name))]
SHAPES = [
    make(1, 16, 6, 6, 16, 3, 3, padding=1),
    make(2, 3, 9, 8, 5, 3, 3, padding=1),
    make(1, 3, 20, 20, 64, 7, 7, stride=2, padding=3),
    make(1, 17, 1, 1, 19, 3, 3, padding=1),
    make(3, 8, 9, 7, 8, 1, 1, stride=2),
    make(2, 12, 11, 13, 18, 3, 2, stride=(2, 3), padding=((2, 1), (0, 3)), dilation=(2, 1), groups=3),
    make(1, 8, 10, 10, 8, 3, 3, groups=8, padding=1),
    make(1, 5, 4, 4, 7, 3, 3, padding=5),
    make(1, 300, 9, 9, 33, 3, 3, padding=1),
    make(2, 100, 6, 6, 200, 1, 1),
    make(3, 96, 20, 31, 50, 3, 3, padding=1),
    make(2, 18, 33, 35, 39, 1, 1, groups=3),
]


def every_half() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Equal to the last bit, signs of zeros too; NaN only where NaN is wanted."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    real = ~np.isnan(want)
    np.testing.assert_array_equal(got[real].view(f"u{got.itemsize}"), want[real].view(f"u{want.itemsize}"))


def between_halves() -> np.ndarray:
    """Every float16, the middle to its neighbour, and the float32 next to both; and what lies beyond all of them."""
    halves = every_half()[: 31 << 10].astype(np.float32)  # without infinities
    middles = (halves[:-1] + halves[1:]) / np.float32(2)
    beyond = np.array([65504, 65519.996, 65520, 65536, 1e6, 3e38, np.inf, np.nan, 2**-25, 2**-26, 1e-45], np.float32)
    values = np.concatenate([halves, middles, beyond])
    values = np.concatenate([values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(0))])
    return np.concatenate([values, -values]).astype(np.float32)


def test_every_half_becomes_its_float(target: Target) -> None:
    halves, out = every_half(), np.full(1 << 16, 7, np.float32)
    convert(target, "float16", "float32")(1, 1 << 16, address(halves), 0, address(out), 0)
    same(out, halves.astype(np.float32))


def test_floats_are_rounded_to_nearest_even(target: Target) -> None:
    values = between_halves()
    out = np.full(values.size, 7, np.float16)
    convert(target, "float32", "float16")(1, values.size, address(values), 0, address(out), 0)
    with np.errstate(over="ignore"):
        same(out, values.astype(np.float16))


@pytest.mark.parametrize("types", [("float16", "float32"), ("float32", "float16")])
@pytest.mark.parametrize("place", ["flush", "start"])
def test_copies_and_transposes_stay_inside(target: Target, types: tuple[str, str], place: str) -> None:
    rng = np.random.default_rng(5)
    source_arena, to_arena = (Arena(8000, np.dtype(t), place) for t in types)
    for rows in (1, 3, 16, 37):
        for columns in (1, 5, 16, 64, 75):
            values = rng.integers(-99, 99, (rows, columns))
            source = source_arena.holding(values.astype(types[0]))
            arguments = (rows, columns, address(source), columns)
            for kernel, want in ((convert, values), (transpose, values.T)):
                to_arena.all.fill(1000)
                out = to_arena.cut(*want.shape)
                kernel(target, *types)(*arguments, address(out), want.shape[1])
                np.testing.assert_array_equal(out, want)
                assert np.count_nonzero(to_arena.all == 1000) == to_arena.all.size - want.size


def test_copies_keep_their_strides(target: Target) -> None:
    source = np.arange(5 * 40, dtype=np.float16).reshape(5, 40)
    out = np.full((5, 50), -1, np.float32)
    convert(target, "float16", "float32")(5, 37, address(source), 40, address(out), 50)
    np.testing.assert_array_equal(out[:, :37], source[:, :37])
    assert (out[:, 37:] == -1).all()


def test_packing_converts(target: Target) -> None:
    rng = np.random.default_rng(3)
    for rows, columns in ((1, 1), (17, 9), (40, 70)):
        source = rng.integers(-99, 99, (rows, columns + 5)).astype(np.float16)
        matrix = source[:, :columns]
        for build, given in ((pack.turn, matrix.T), (pack.place, matrix)):
            lines, width = given.shape
            order = rng.permutation(lines).astype(np.int64)
            to, want = (np.full((lines, width + 3), 9, np.float32) for _ in range(2))
            want[order, :width] = given
            places = order * (width + 3)
            build(target, "float16")(rows, columns, address(source), columns + 5, address(to), address(places))
            np.testing.assert_array_equal(to, want)


def run(name: str, problem: Problem, threads: int, packed: bool, operands: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The result, in a buffer whose surroundings must stay as they were."""
    a, b = operands
    plan = make_plan(catalog.load().implementations[name], problem, CpuContext(threads), b if packed else None)
    size = int(np.prod(problem.out_shape))
    buffer = np.full(size + 128, np.nan, problem.dtype)
    out = buffer[64 : 64 + size].reshape(problem.out_shape)
    plan.run(a, b, out)
    assert np.isnan(buffer[:64]).all() and np.isnan(buffer[64 + size :]).all()
    return out


def aligned(values: np.ndarray) -> np.ndarray:
    array = aligned_empty(values.shape, values.dtype)
    array[...] = values
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
def test_results_are_those_of_single_precision_rounded_once(
    pass_: Pass, layout: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole numbers to 60: single precision sums them exactly, and half precision has to round what exceeds 2,048."""
    monkeypatch.setattr(units, "host", lambda: target)
    rng = np.random.default_rng(4)
    for shape in SHAPES if target.name in ("avx512", "neon") else SHAPES[1::2]:
        half, single = (Problem(shape, pass_, dtype, layout) for dtype in ("float16", "float32"))
        wide = [rng.integers(-60, 61, s).astype(np.float32) for s in (half.a_shape, half.b_shape)]
        want = run("im2col_numpy", single, 1, False, (wide[0], wide[1]))
        assert np.abs(want).max() < 2**24
        with np.errstate(over="ignore"):
            want = want.astype(np.float16)
        operands = aligned(wide[0].astype(np.float16)), aligned(wide[1].astype(np.float16))
        for packed, threads in ((False, 1), (pass_ is not Pass.BACKWARD_WEIGHTS, 2)):
            got = run("direct_fp16_simd", half, threads, packed, operands)
            np.testing.assert_array_equal(got, want, str(shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
def test_winograd_is_that_of_single_precision_rounded_once(
    pass_: Pass, layout: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sums in the same order: to the last bit what the float32 row gives, rounded."""
    monkeypatch.setattr(units, "host", lambda: target)
    rng = np.random.default_rng(11)
    for shape in (
        make(2, 17, 13, 11, 19, 3, 3, padding=1),
        make(1, 5, 10, 15, 7, 3, 3, padding=((1, 0), (0, 2))),
        make(1, 80, 20, 21, 70, 3, 3, padding=1),
        make(2, 8, 9, 8, 12, 3, 3, padding=1, groups=4),
    ):
        half, single = (Problem(shape, pass_, dtype, layout) for dtype in ("float16", "float32"))
        operands = [aligned(rng.standard_normal(s).astype(np.float16)) for s in (half.a_shape, half.b_shape)]
        wide = [aligned(x.astype(np.float32)) for x in operands]
        for name in ("winograd_f2_{}simd", "winograd_f4_{}simd"):
            for packed, threads in ((False, 1), (pass_ is not Pass.BACKWARD_WEIGHTS, 2)):
                want = run(name.format(""), single, threads, packed, (wide[0], wide[1])).astype(np.float16)
                got = run(name.format("fp16_"), half, threads, packed, (operands[0], operands[1]))
                np.testing.assert_array_equal(got, want, f"{name} {shape}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pass_", list(Pass))
def test_numpy_form_rounds_once(pass_: Pass, dtype: str) -> None:
    """What BLAS sums exactly in float32 comes out rounded to the format; sums beyond float16 become infinite."""
    rng = np.random.default_rng(6)
    for shape in SHAPES[1::3]:
        for layout in LAYOUTS:
            half, single = (Problem(shape, pass_, d, layout) for d in (dtype, "float32"))
            shapes = half.a_shape, half.b_shape
            narrow = [narrowed(rng.integers(-60, 61, s).astype(np.float32) * 4, dtype) for s in shapes]
            wide = [aligned(as_real(x).astype(np.float32)) for x in narrow]
            want = run("im2col_numpy", single, 1, False, (wide[0], wide[1]))
            with np.errstate(over="ignore"):
                want = narrowed(want, dtype)
            plan = make_plan(catalog.load().implementations["im2col_half_numpy"], half, CpuContext(1))
            out = np.zeros(half.out_shape, want.dtype)
            plan.run(*narrow, out)
            np.testing.assert_array_equal(out, want)


# ---- products in float16: on the machines that have them, and nowhere else


def words_of(matrix: np.ndarray) -> np.ndarray:
    """(rows, channels) of float16 as (rows, words): an odd number gets a 0."""
    rows, channels = matrix.shape
    padded = np.zeros((rows, channels + channels % 2), np.float16)
    padded[:, :channels] = matrix
    return padded.view(np.uint32)


def test_pixels_become_words() -> None:
    rng = np.random.default_rng(7)
    source_arena, to_arena = Arena(6000, np.float16), Arena(4000, np.uint32)
    for unit in MULTIPLY:
        for pixels in (1, 3, 16, 37):
            for channels in (1, 2, 5, 31, 32, 33, 64, 75):
                values = rng.integers(-99, 99, (pixels, channels)).astype(np.float16)
                want = words_of(values)
                for kernel, given in ((half_pixels.copy_words, values), (half_pixels.turn_words, values.T)):
                    to_arena.all.fill(7)
                    out = to_arena.cut(*want.shape)
                    source = source_arena.holding(given)
                    kernel(unit)(*given.shape, address(source), given.shape[1], address(out), want.shape[1])
                    np.testing.assert_array_equal(out, want)
                    assert np.count_nonzero(to_arena.all == 7) >= to_arena.all.size - want.size


def test_panels_become_words() -> None:
    rng = np.random.default_rng(8)
    for unit in MULTIPLY:
        panel = rng.integers(-99, 99, (10, 32)).astype(np.float32)
        words = np.zeros((5, 32), np.uint32)
        half_pixels.pair(unit)(5, 32, address(panel), address(words))
        pairs = panel.astype(np.float16).reshape(5, 2, 32).transpose(0, 2, 1)
        np.testing.assert_array_equal(words, np.ascontiguousarray(pairs).view(np.uint32)[..., 0])


def test_half_pixels_kernel() -> None:
    """Depths below, at and beyond LIMIT, and segments that share an addition to the sums in float32."""
    rng = np.random.default_rng(9)
    for unit in MULTIPLY:
        for vectors in (1, 2, 3, 4):
            rows, width = gemm_pixels.rows_for(unit, vectors), vectors * unit.lanes
            kernel = half_pixels.pixels(unit, Shape(rows, vectors, 2))
            for n, depth, accumulate in ((1, 1, 0), (rows + 1, 43, 1), (rows, 128, 0), (2 * rows - 1, 300, 1)):
                a = rng.integers(-3, 4, (4000, 2)).astype(np.float16)
                b = rng.integers(-3, 4, (3 * depth, width, 2)).astype(np.float16)
                c = rng.integers(-9, 10, (n, width)).astype(np.float32)
                starts, offsets = rng.integers(0, 1900, n), (5, 100, 1000)
                pairs = np.stack([starts, np.arange(n) * width], axis=1).astype(np.int64)
                segments = np.array([(o, i * depth * width) for i, o in enumerate(offsets)], np.int64)
                taken = np.stack([[a[s + o : s + o + depth] for o in offsets] for s in starts]).astype(np.float64)
                taken = taken.reshape(n, 3 * depth, 2)
                want = c * accumulate + np.einsum("nki,kwi->nw", taken, b.astype(np.float64))
                kernel(
                    n, width, address(pairs), address(a), address(b), address(segments), 3, depth, address(c),
                    accumulate, address(b), 640,
                )  # fmt: skip
                np.testing.assert_array_equal(c, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", [Pass.FORWARD, Pass.BACKWARD_DATA])
def test_sums_in_half_precision_are_exact_while_they_are_small(pass_: Pass, layout: str) -> None:
    rng = np.random.default_rng(10)
    if catalog.load().implementations["direct_fp16acc16_simd"].unavailable():
        assert not MULTIPLY
        return
    for shape in SHAPES:
        half, single = (Problem(shape, pass_, dtype, layout) for dtype in ("float16", "float32"))
        wide = [rng.integers(-1, 2, s).astype(np.float32) for s in (half.a_shape, half.b_shape)]
        want = run("im2col_numpy", single, 1, False, (wide[0], wide[1]))
        operands = aligned(wide[0].astype(np.float16)), aligned(wide[1].astype(np.float16))
        for packed, threads in ((False, 1), (True, 2)):
            got = run("direct_fp16acc16_simd", half, threads, packed, operands)
            np.testing.assert_array_equal(got, want, str(shape))


def test_no_accumulator_of_eleven_bits_takes_a_whole_sum() -> None:
    """9 x 700 ones: an accumulator in float16 would stay at 2,048."""
    problem = Problem(make(1, 700, 5, 5, 3, 3, 3), Pass.FORWARD, "float16", "nhwc")
    for _ in MULTIPLY:
        ones = aligned(np.ones(problem.a_shape, np.float16)), aligned(np.ones(problem.b_shape, np.float16))
        assert (run("direct_fp16acc16_simd", problem, 1, False, ones) == np.float16(6300)).all()


def test_machines_without_the_instruction_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "host", lambda: units.named("generic"))
    row = catalog.load().implementations["direct_fp16acc16_simd"]
    assert row.unavailable() == (
        "direct_fp16acc16_simd needs a processor that multiplies float16 (AVX512_FP16)"
    )
