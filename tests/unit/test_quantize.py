"""Quantised numbers: ranges, rounding and its randomness, and convolution against sums in whole numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import convbench
from convbench import (
    Affine,
    FixedPoint,
    choose_affine,
    conv2d_quantized,
    dequantize,
    formats,
    quantize_int8,
    requantize,
)
from convbench.errors import ProblemError, Unsupported
from convbench.requantize import requantised, rounded_once
from convbench.rounding import uniform24

RNG = np.random.default_rng


# ---- int8 with scale and zero point


def test_the_range_is_covered_and_zero_is_exact() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (-1e-3, 1e4)):
        x = np.linspace(low, high, 1001, dtype=np.float32)
        affine = choose_affine(x)
        q = quantize_int8(x, affine)
        assert q.dtype == np.int8 and affine.scale.dtype == np.float32
        assert float(affine.scale) == np.float32(max(high, 0) - np.float32(min(low, 0))) / np.float32(255)
        assert np.abs(dequantize(q, affine) - x).max() <= 0.501 * affine.scale + 1e-6 * high
        assert dequantize(quantize_int8(np.zeros(1, np.float32), affine), affine)[0] == 0


def test_symmetric_scales_per_channel_are_those_of_each_filter() -> None:
    sizes = np.array([1, 10, 1e-3, 0, 7], np.float32)
    w = RNG(0).normal(size=(5, 3, 2, 2)).astype(np.float32) * sizes[:, None, None, None]
    affine = choose_affine(w, symmetric=True, axis=0)
    assert affine.scale.shape == (5,) and affine.scale[3] == 1 and not affine.zero_point
    q = quantize_int8(w, affine)
    assert [np.abs(q[k]).max() for k in range(5)] == [127, 127, 127, 0, 127]
    for k in range(5):
        alone = choose_affine(w[k], symmetric=True)
        assert alone.scale == affine.scale[k] and (quantize_int8(w[k], alone) == q[k]).all()
    last = choose_affine(w.transpose(1, 2, 3, 0), symmetric=True, axis=-1)
    assert (last.scale == affine.scale).all() and last.axis == -1
    assert (quantize_int8(w.transpose(1, 2, 3, 0), last) == q.transpose(1, 2, 3, 0)).all()
    assert (dequantize(q, affine) == q.astype(np.float32) * affine.scale[:, None, None, None]).all()


def test_int8_saturates_and_rounds_ties_to_even() -> None:
    x = np.array([-1e38, -64.5, -64.25, -0.75, -0.25, 0.25, 0.75, 1.25, 63.25, 63.5, 3e38], np.float32)
    assert quantize_int8(x, Affine(0.5)).tolist() == [-128, -128, -128, -2, 0, 0, 2, 2, 126, 127, 127]
    assert quantize_int8(x, Affine(0.5, -3)).tolist() == [-128, -128, -128, -5, -3, -3, -1, -1, 123, 124, 127]
    assert quantize_int8(np.array([1e38], np.float32), Affine(1e-38)).tolist() == [127]
    per_channel = Affine(np.array([1.0, 2.0]), np.array([0, 100]))
    assert quantize_int8(np.full((2, 2), 40.0), per_channel).tolist() == [[40, 40], [120, 120]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    x = np.array([1.0, bad, bad, 2.0], np.float32)
    calls = (
        lambda: choose_affine(x), lambda: quantize_int8(x, Affine(1.0)), lambda: FixedPoint(4, 12).quantize(x),
        lambda: FixedPoint(4, 12).quantize(x.astype(np.float64), "stochastic"),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ProblemError, match="x: 2 of 4 elements are NaN or infinite"):
            call()
    with pytest.raises(ProblemError, match="x: its largest element does not fit in float32"):
        quantize_int8(np.array([1e300]), Affine(1.0))
    with pytest.raises(ProblemError, match="x: its range, largest less least, does not fit in float32"):
        choose_affine(np.array([-3e38, 3e38], np.float32))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Affine(0.0), "scale must be finite and > 0"),
        (lambda: Affine("a"), "scale must be a number or an array of numbers"),
        (lambda: Affine(np.ones((2, 2))), "scale must be a number or an array of one axis"),
        (lambda: Affine(1.0, 128), "zero_point must be from -128 to 127"),
        (lambda: Affine(1.0, 0.5), "zero_point must be a whole number"),
        (lambda: Affine(np.ones(3), np.zeros(2, int)), r"zero_point: shape must be \(\) or that of scale, \(3,\)"),
        (lambda: quantize_int8(np.ones((4, 2)), Affine(np.ones(3))), "x: shape .* has not the 3 channels"),
        (lambda: quantize_int8([1.0], Affine(1.0)), "x must be a NumPy array, not list"),
        (lambda: quantize_int8(np.ones(2, int), Affine(1.0)), "x: dtype must be a floating-point one"),
        (lambda: dequantize(np.ones(2), Affine(1.0)), "q: dtype must be int8, not float64"),
        (lambda: choose_affine(np.ones((2, 2)), axis=2), "axis must be one of the 2 of x"),
        (lambda: choose_affine(np.ones(0)), "x has no elements"),
        (lambda: FixedPoint(0, 8), "il must be a whole number >= 1"),
        (lambda: FixedPoint(8, -1), "fl must be a whole number >= 0"),
        (lambda: FixedPoint(8, 9), "il [+] fl must be at most 16, not 8 [+] 9"),
        (lambda: FixedPoint(8, 8).quantize(np.ones(1), "up"), "rounding must be nearest or stochastic, not 'up'"),
        (lambda: FixedPoint(8, 8).dequantize(np.ones(1)), "q: dtype must be int16"),
    ],
)
def test_wrong_arguments_are_named(call, sentence) -> None:
    with pytest.raises(ProblemError, match=sentence):
        call()


# ---- fixed point


@pytest.mark.parametrize(("il", "fl"), [(4, 12), (8, 8), (1, 15), (16, 0), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fixed_point_saturates_at_its_edges(il: int, fl: int, dtype: type) -> None:
    number = FixedPoint(il, fl)
    assert (number.least, number.most) == (-(2.0 ** (il - 1)), 2.0 ** (il - 1) - 2.0**-fl)
    bound = 2 ** (il + fl - 1)
    largest = float(np.finfo(dtype).max)
    beyond = np.array([-largest, number.least * 1.5, number.least, min(number.most * 2, largest), largest], dtype)
    for rounding in ("nearest", "stochastic"):
        q = number.quantize(beyond, rounding, seed=9)
        assert q.dtype == np.int16 and q.tolist() == [-bound, -bound, -bound, bound - 1, bound - 1]
    assert number.dequantize(np.array([-bound, bound - 1], np.int16)).tolist() == [number.least, number.most]


def test_nearest_takes_the_even_of_two_and_whole_numbers_stay() -> None:
    number = FixedPoint(4, 2)
    assert number.quantize(np.array([0.125, 0.375, -0.125, -0.375, 0.13, 7.8, 7.875, 7.9])).tolist() == [
        0, 2, 0, -2, 1, 31, 31, 31
    ]  # fmt: skip
    every = np.arange(-32768, 32768).astype(np.int16)
    wide = FixedPoint(4, 12)
    for rounding in ("nearest", "stochastic"):
        assert (wide.quantize(wide.dequantize(every), rounding) == every).all()


@pytest.mark.parametrize("value", [0.3, -0.7001, 1e-5, 7.9989, -3.14159])
def test_stochastic_rounding_is_unbiased(value: float) -> None:
    n, number = 1_000_000, FixedPoint(4, 12)
    mean = number.dequantize(number.quantize(np.full(n, value), "stochastic", seed=20)).astype(np.float64).mean()
    chance = value * 2**12 - np.floor(value * 2**12)
    assert abs(mean - value) <= 3 * np.sqrt(chance * (1 - chance) / n) * number.resolution


def test_stochastic_rounding_is_unbiased_over_many_values_where_nearest_is_not() -> None:
    n, number = 1_000_000, FixedPoint(8, 4)
    x = RNG(3).uniform(0.0, 0.45 * number.resolution, n)
    nearest, stochastic = (
        number.dequantize(number.quantize(x, rounding, seed=1)).astype(np.float64) - x
        for rounding in ("nearest", "stochastic")
    )
    standard_error = stochastic.std() / np.sqrt(n)
    assert abs(stochastic.mean()) <= 3 * standard_error
    assert abs(nearest.mean()) > 30 * standard_error


def test_stochastic_rounding_depends_on_seed_and_place_alone() -> None:
    number, x = FixedPoint(4, 12), RNG(4).normal(size=(4, 6, 5, 7)).astype(np.float32)
    q = number.quantize(x, "stochastic", seed=5)
    assert (number.quantize(x, "stochastic", seed=5) == q).all()
    assert (number.quantize(np.asfortranarray(x), "stochastic", seed=5) == q).all()
    channels_last = number.quantize(x.transpose(0, 2, 3, 1), "stochastic", seed=5, layout="nhwc")
    assert (channels_last == q.transpose(0, 2, 3, 1)).all()
    image = x[0].size
    pieces = [number.quantize(x[i : i + 1], "stochastic", seed=5, first=i * image) for i in range(4)]
    assert (np.concatenate(pieces) == q).all()
    flat = x.reshape(-1)
    chunks = [number.quantize(flat[i : i + 97], "stochastic", seed=5, first=i) for i in range(0, flat.size, 97)]
    assert (np.concatenate(chunks) == q.reshape(-1)).all()
    assert 0.2 < (number.quantize(x, "stochastic", seed=6) != q).mean() < 0.5


def test_fixed_point_operands_are_those_of_the_fixed16_semantics() -> None:
    x = RNG(6).normal(size=(2, 3, 8, 8)).astype(np.float32) * 3
    number = FixedPoint(formats.FIXED_BITS - formats.FIXED_FRACTION, formats.FIXED_FRACTION)
    scaled = x * np.float32(2**formats.FIXED_FRACTION)
    below = np.floor(scaled)
    up = uniform24(formats.ROUNDING_SEEDS[0], np.arange(x.size).reshape(x.shape)) < scaled - below
    want = np.clip(below + up, -32768, 32767)
    assert (number.quantize(x, "stochastic", formats.ROUNDING_SEEDS[0]) == want).all()
    assert (number.quantize(x) == np.clip(np.rint(scaled), -32768, 32767)).all()


# ---- convolution

GEOMETRIES = {
    "padded": ((2, 6, 9, 8), (5, 6, 3, 3), {"padding": 1}),
    "asymmetric": ((1, 4, 10, 9), (3, 4, 3, 2), {"stride": (2, 1), "padding": ((0, 2), (1, 0))}),
    "dilated": ((1, 3, 13, 12), (4, 3, 3, 3), {"dilation": (2, 3), "padding": 3, "stride": 2}),
    "groups": ((2, 6, 7, 7), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((1, 5, 8, 8), (5, 1, 3, 3), {"groups": 5, "padding": 2}),
    "beyond_filter": ((1, 3, 4, 5), (2, 3, 3, 3), {"padding": 4}),
    "pointwise": ((3, 17, 5, 4), (9, 17, 1, 1), {"stride": 2}),
}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def sums_of(xq, wq, zero, stride=1, padding=0, dilation=1, groups=1):
    """sum of (xq - zero) * wq in int64, one output at a time; padding adds nothing."""
    (n, c, h, w), (k, cg, r, s) = xq.shape, wq.shape
    pad = padding if isinstance(padding, tuple) and isinstance(padding[0], tuple) else [(v, v) for v in pair(padding)]
    (sh, sw), (dh, dw), (top, bottom), (left, right) = pair(stride), pair(dilation), *pad
    x = np.zeros((n, c, h + top + bottom, w + left + right), np.int64)
    x[:, :, top : top + h, left : left + w] = xq.astype(np.int64) - zero
    p, q = (x.shape[2] - (r - 1) * dh - 1) // sh + 1, (x.shape[3] - (s - 1) * dw - 1) // sw + 1
    y = np.zeros((n, k, p, q), np.int64)
    for f in range(k):
        group = f // (k // groups)
        for i in range(p):
            for j in range(q):
                rows, columns = i * sh + dh * np.arange(r), j * sw + dw * np.arange(s)
                window = x[:, group * cg : (group + 1) * cg][:, :, rows[:, None], columns[None, :]]
                y[:, f, i, j] = (window * wq[f].astype(np.int64)).sum(axis=(1, 2, 3))
    return y


def whole(rng, shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def last(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def nearest_float32(value: Fraction, got: np.float32) -> bool:
    """Whether no float32 is nearer, and of two as near it is the even one."""
    error = abs(Fraction(float(got)) - value)
    for other in (np.nextafter(got, np.float32(-np.inf)), np.nextafter(got, np.float32(np.inf))):
        distance = abs(Fraction(float(other)) - value)
        if distance < error or (distance == error and got.view(np.int32) & 1):
            return False
    return True


def to_int8(value: Fraction, zero: int) -> int:
    return min(127, max(-128, round(value) + zero))  # Fraction rounds ties to even


@pytest.mark.parametrize("zero", [0, -128, 127, 5])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_quantised_convolution_is_exact_or_rounded_once(
    geometry: str, zero: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requantize, "_PIECE", 60)  # several pieces of several lines each
    x_shape, w_shape, keywords = GEOMETRIES[geometry]
    rng = RNG(zero + 1000)
    xq, wq = whole(rng, x_shape), whole(rng, w_shape)
    x_scale = float(rng.uniform(0.001, 0.1))
    w_scale = rng.uniform(1e-4, 0.01, w_shape[0]).astype(np.float32)
    sums = sums_of(xq, wq, zero, **keywords)
    factors = [Fraction(float(np.float32(x_scale) * w)) for w in w_scale]
    for layout, to, back in (("nchw", lambda a: a, lambda a: a), ("nhwc", last, lambda a: a.transpose(0, 3, 1, 2))):
        def convolve(layout=layout, to=to, back=back, **out):
            given = {"x_scale": x_scale, "w_scale": w_scale, "x_zero_point": zero, "layout": layout}
            return back(conv2d_quantized(to(xq), to(wq), **given, **keywords, **out))

        whole_sums = convolve(out_dtype="int32")
        assert whole_sums.dtype == np.int32 and (whole_sums == sums).all()
        real = convolve()
        assert real.dtype == np.float32
        small = convolve(out_dtype="int8", out_scale=0.37, out_zero_point=-7)
        assert small.dtype == np.int8
        unit = Fraction(float(np.float32(0.37)))
        for place in np.ndindex(sums.shape):
            exact = int(sums[place]) * factors[place[1]]
            assert nearest_float32(exact, real[place]), place
            assert small[place] == to_int8(exact / unit, -7), place


def test_ties_and_large_sums_are_rounded_as_if_exact() -> None:
    rng = RNG(8)
    sums = np.concatenate([
        rng.integers(-(2**32), 2**32, 600), rng.integers(-(2**25), 2**25, 300), rng.integers(-1000, 1000, 300),
        (rng.integers(2**23, 2**24, 300) * 2 + 1) << rng.integers(0, 8, 300),  # 25 bits: half-way between float32s
    ])  # fmt: skip
    for factor in (1.0, 2.0**-9, 0.1, 3.0, float(1 + 2.0**-23), 1e-30, 2.0**-140):
        factor = float(np.float32(factor))
        got = rounded_once(sums, np.full(sums.shape, factor))
        for value, result in zip(sums.tolist(), got, strict=True):
            assert nearest_float32(value * Fraction(factor), result), (value, factor)
        for scale in (1.0, 0.25, float(np.float32(0.3)), factor, factor * 2, factor * 3.0):
            unit = np.float64(np.float32(scale))
            small = requantised(sums, np.full(sums.shape, factor), unit, 3)
            want = [to_int8(value * Fraction(factor) / Fraction(float(unit)), 3) for value in sums.tolist()]
            assert small.tolist() == want, (factor, scale)


def test_sums_at_the_edge_of_int32_are_right_and_beyond_it_refused() -> None:
    most = 131071
    xq, wq = np.full((1, most, 1, 1), -128, np.int8), np.full((1, most, 1, 1), -128, np.int8)
    given = {"x_scale": 0.25, "w_scale": 0.5}
    assert conv2d_quantized(xq, wq, **given, out_dtype="int32").item() == most * 128 * 128
    with pytest.raises(ProblemError, match="out_dtype: with x_zero_point taken off, a sum does not fit in int32"):
        conv2d_quantized(xq, wq, **given, x_zero_point=127, out_dtype="int32")
    exact = Fraction(most * 255 * 128, 8)
    assert nearest_float32(exact, conv2d_quantized(xq, wq, **given, x_zero_point=127)[0, 0, 0, 0])
    longer = np.ones((1, most + 1, 1, 1), np.int8)
    with pytest.raises(Unsupported, match="may leave int32"):
        conv2d_quantized(longer, longer, **given, algorithm="direct_naive_numba")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_step_by_step_gives_what_the_int8_semantics_gives(layout: str) -> None:
    rng = RNG(12)
    x = np.maximum(rng.normal(size=(2, 6, 9, 8)), -0.3).astype(np.float32)
    w = rng.normal(size=(5, 6, 3, 3)).astype(np.float32)
    if layout == "nhwc":
        x, w = last(x), last(w)
    whole_range, filters = choose_affine(x), choose_affine(w, symmetric=True, axis=0)
    y = conv2d_quantized(
        quantize_int8(x, whole_range), quantize_int8(w, filters), x_scale=float(whole_range.scale),
        x_zero_point=int(whole_range.zero_point), w_scale=filters.scale, padding=1, layout=layout,
    )  # fmt: skip
    given = {"padding": 1, "layout": layout}
    within = convbench.conv2d(x, w, **given, semantics="int8", algorithm="int8_im2col_numpy")
    assert whole_range.zero_point != 0 and (y == within).all()
    real = convbench.conv2d(x, w, **given)
    assert np.linalg.norm(y - real) < 0.02 * np.linalg.norm(real)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"xq": np.ones((1, 2, 3, 3))}, "xq must be int8 with 4 axes, not float64 with 4"),
        ({"wq": np.ones((2, 2, 3), np.int8)}, "wq must be int8 with 4 axes, not int8 with 3"),
        ({"xq": [1]}, "xq must be a NumPy array, not list"),
        ({"wq": np.ones((2, 3, 3, 3), np.int8)}, "wq: shape .* has 3 channels per group, but the 2 channels of xq"),
        ({"w_scale": np.ones(3)}, r"w_scale: shape must be \(\) or \(2,\), one for each filter, not \(3,\)"),
        ({"w_scale": -1.0}, "w_scale must be finite and > 0"),
        ({"x_scale": np.ones(2)}, r"x_scale must be a number, not of shape \(2,\)"),
        ({"x_scale": 1e-30, "w_scale": 1e-30}, "x_scale [*] w_scale leaves the range of float32"),
        ({"x_zero_point": 200}, "x_zero_point must be from -128 to 127, not 200"),
        ({"x_zero_point": 0.5}, "x_zero_point must be a whole number, not 0.5"),
        ({"out_dtype": "int16"}, "out_dtype must be one of float32, int32, int8, not 'int16'"),
        ({"out_dtype": "int8"}, "out_scale must be given for out_dtype int8"),
        ({"out_scale": 1.0}, "out_scale and out_zero_point belong to out_dtype int8, not float32"),
        ({"out_zero_point": 3}, "out_scale and out_zero_point belong to out_dtype int8, not float32"),
        ({"layout": "chwn"}, "layout must be nchw or nhwc, not 'chwn'"),
        ({"stride": 0}, "stride must be >= 1"),
    ],
)
def test_wrong_arguments_of_the_convolution_are_named(change, sentence) -> None:
    given = {"xq": np.ones((1, 2, 3, 3), np.int8), "wq": np.ones((2, 2, 3, 3), np.int8), "x_scale": 1.0, "w_scale": 1.0}
    given |= change
    with pytest.raises(ProblemError, match=sentence):
        conv2d_quantized(given.pop("xq"), given.pop("wq"), **given)
