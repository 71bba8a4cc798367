"""What low precision means: the oracle's definitions against numbers worked out by hand and by plain loops."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from convbench import formats
from convbench.devices.cpu import CpuContext
from convbench.errors import RegistrationError
from convbench.problem import INPUTS, ConvShape, Pass, Problem, Semantics
from convbench.registry import Implementation, register
from convbench.testing.tap_by_tap import TapByTap, logical
from convbench.verify import Verifier
from convbench.verify.inputs import EDGES, Recipe, make_inputs
from convbench.verify.oracle import convolve
from convbench.verify.semantics import meaning_of, results, sums_of

SHAPE = ConvShape.make(2, 6, 5, 4, 4, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2)), groups=2)
WIDE = ConvShape.make(1, 4, 100, 90, 18, 3, 3, padding=1)
ONE = ConvShape.make(1, 1, 1, 8, 1, 1, 1)


def problem(semantics, shape=SHAPE, pass_=Pass.FORWARD, layout="nchw"):
    return Problem(shape, pass_, "float32", layout, semantics)


def exact(asked, a, b):
    """All results of the oracle."""
    meaning = meaning_of(asked, a, b)
    return results(meaning, asked, convolve(asked.shape, asked.pass_, meaning.a, meaning.b))


def row(*values):
    """One image of one row of pixels."""
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


def sign(value):
    return 1 if value >= 0 else -1


def test_signs_of_zeros_are_plus_one_and_padding_adds_nothing():
    shape = ConvShape.make(1, 1, 1, 3, 1, 1, 3, padding=(0, 1))
    x, w = row(-0.0, 0.0, -2.0), row(1.0, -0.0, -5.0)
    assert exact(problem(Semantics.BINARY, shape), x, w).ravel().tolist() == [1 - 1, 1 + 1 + 1, 1 - 1]


def test_xnor_by_loops():
    asked = problem(Semantics.XNOR)
    x, w = make_inputs(asked, Recipe("normal", 3, 4))
    s, got = SHAPE, exact(asked, x, w)
    for n, k, p, q in np.ndindex(got.shape):
        g, total, size = k // s.kg, 0, 0.0
        for c, r, t in np.ndindex(s.cg, s.r, s.s):
            h, v = p * 2 + r - 1, q + t
            if 0 <= h < s.h and v < s.w:
                total += sign(x[n, g * s.cg + c, h, v]) * sign(w[k, c, r, t])
                size += abs(float(x[n, g * s.cg + c, h, v]))
        want = total * size / (s.cg * s.r * s.s) * float(np.abs(w[k].astype(float)).mean())
        assert got[n, k, p, q] == pytest.approx(want, rel=1e-12, abs=1e-12)


def test_binary_weights_keep_the_mean_of_each_filter():
    asked = problem(Semantics.BINARY_WEIGHTS, ONE)
    x = row(1, 2, 3, 4, 5, 6, 7, -8)
    assert exact(asked, x, row(-0.25)).ravel().tolist() == [-0.25, -0.5, -0.75, -1.0, -1.25, -1.5, -1.75, 2.0]


def test_int8_takes_zero_exactly_and_rounds_the_product_of_scales_once():
    x, w = row(-1.0, 0.0, 2.0, 1.55), row(3.0)
    asked = problem(Semantics.INT8, ConvShape.make(1, 1, 1, 4, 1, 1, 1))
    meaning = meaning_of(asked, x, w)
    scale = np.float32(3) / np.float32(255)
    # zero point -128 + 85 = -43; the steps below it and above it are those between -1, 0 and 2
    assert meaning.a.ravel().tolist() == [-85, 0, 170, round(1.55 / float(scale))]
    assert meaning.b.ravel().tolist() == [127]
    assert meaning.channel.tolist() == [float(scale * (np.float32(3) / np.float32(127)))]
    assert exact(asked, x, w).ravel()[1] == 0


def test_int8_of_nothing_but_zeros_is_zero():
    asked = problem(Semantics.INT8, ONE)
    assert not exact(asked, np.zeros((1, 1, 1, 8), np.float32), np.zeros((1, 1, 1, 1), np.float32)).any()


def test_fixed_point_ties_go_to_even_and_the_ends_saturate():
    step = 2.0**-formats.FIXED_FRACTION
    asked = problem(Semantics.FIXED16, ONE)
    x = row(0.5 * step, 1.5 * step, -0.5 * step, -1.5 * step, 7.9999, 8.0, -8.0, -100.0)
    meaning = meaning_of(asked, x, row(1.0))
    assert meaning.a.ravel().tolist() == [0, 2, 0, -2, 32767, 32767, -32768, -32768]
    # one product: 16 - 1 - 2 = 13 fraction bits, so results end at 4
    assert formats.fixed_result_fraction(1) == 13
    assert exact(asked, x, row(1.0)).ravel()[4:].tolist() == [4 - 2.0**-13, 4 - 2.0**-13, -4, -4]
    assert exact(asked, row(*[3 * step] * 8), row(step)).ravel().tolist() == [0.0] * 8


@pytest.mark.parametrize("n", [1, 2, 4, 5, 16, 17, 4608, 400_000])
def test_a_fixed_point_result_holds_four_deviations_of_its_sum_and_not_eight(n):
    top = 2.0 ** (formats.FIXED_BITS - 1 - formats.fixed_result_fraction(n))
    assert 4 * n**0.5 <= top < 8 * n**0.5


def test_stochastic_rounding_is_unbiased_and_is_what_the_generator_says():
    from convbench.rounding import uniform24

    count, step = 1_000_000, 2.0**-formats.FIXED_FRACTION
    shape = ConvShape.make(1, 1, 1, count, 1, 1, 1)
    for part in (0.25, 0.7109375):
        x = np.full((1, 1, 1, count), np.float32((5 + part) * step))
        rounded = meaning_of(problem(Semantics.FIXED16_STOCHASTIC, shape), x, row(1.0)).a.ravel()
        assert set(rounded.tolist()) == {5.0, 6.0}
        error = abs(rounded.mean() - 5 - part)
        assert error <= 3 * (part * (1 - part) / count) ** 0.5
        up = uniform24(formats.ROUNDING_SEEDS[0], np.arange(count)) < part
        np.testing.assert_array_equal(rounded, 5 + up)


def test_a_stochastic_result_is_drawn_at_its_logical_place_in_both_layouts():
    first, last = (problem(Semantics.FIXED16_STOCHASTIC, layout=layout) for layout in ("nchw", "nhwc"))
    x, w = make_inputs(first, Recipe("normal", 5, 6))
    np.testing.assert_array_equal(exact(first, x, w), exact(last, x, w))  # logical operands in both


def test_the_exponent_leaves_one_in_ten_thousand_beyond_it():
    x = np.full(20_000, 0.75, np.float32)
    x[:2] = 100.0
    few = meaning_of(problem(Semantics.DYNAMIC_FIXED, ConvShape.make(1, 1, 1, 20_000, 1, 1, 1)), *_with(x))
    assert few.a.max() == 511 and few.a.ravel()[-1] == 384  # e = 0: 0.75 * 512, 100 saturates
    x[:3] = 100.0
    many = meaning_of(problem(Semantics.DYNAMIC_FIXED, ConvShape.make(1, 1, 1, 20_000, 1, 1, 1)), *_with(x))
    assert many.a.max() == 400 and many.a.ravel()[-1] == 3  # e = 7: steps of a quarter


def _with(x):
    return x.reshape(1, 1, 1, -1), row(0.5)


def test_updates_have_twelve_bits():
    shape = ConvShape.make(1, 1, 1, 3, 1, 1, 1)
    x, dy = row(1.0, 0.5, 0.25), row(0.125, 0.5, 1.0)
    got = exact(problem(Semantics.DYNAMIC_FIXED, shape, Pass.BACKWARD_WEIGHTS), x, dy)
    assert got.ravel().tolist() == [0.625]
    forward = exact(problem(Semantics.DYNAMIC_FIXED, ONE), row(*[1.0] * 8), row(0.7))
    # 0.7 becomes 358 / 512; 4 * 358 / 512 needs the exponent 2, whose steps are 2^(2 - 9)
    assert forward.ravel().tolist() == [round(Fraction(358, 512) * 128) / 128] * 8


@pytest.mark.parametrize("n", [1, 3, 27, 4608, 400_000])
@pytest.mark.parametrize(
    ("a", "b"), [((1, 10, 2_000_000), (2, 7, 90_000)), ((-3, 7, 1), (0, 900, 3)), ((0, 1, 1), (0, 1, 1))]
)
def test_a_dynamic_result_holds_four_deviations_of_its_sum_and_not_eight(a, b, n):
    a, b = formats.DynamicOperand(*a), formats.DynamicOperand(*b)
    e = formats.dynamic_result_exponent(a, b, n)
    unit = Fraction(2) ** (a.exponent + b.exponent - 18)
    power = Fraction(16 * n * a.squares * b.squares, a.size * b.size) * unit**2
    assert Fraction(4) ** (e - 1) < power <= Fraction(4) ** e
    assert formats.dynamic_result_exponent(a, formats.DynamicOperand(5, 9, 0), n) == a.exponent + 5


@pytest.mark.parametrize("semantics", [Semantics.BINARY, Semantics.XNOR, Semantics.INT8])
def test_sums_can_be_told_from_float32_results(semantics):
    asked = problem(semantics)
    x, w = make_inputs(asked, Recipe("normal", 7, 8))
    meaning = meaning_of(asked, x, w)
    sums = convolve(asked.shape, asked.pass_, meaning.a, meaning.b)
    rounded = results(meaning, asked, sums).astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(sums_of(meaning.channel, meaning.plane, asked, rounded), sums)


class Signs(Implementation):
    """A correct binary convolution, for tests to bend."""

    name = "signs_toy_numpy"
    passes = (Pass.FORWARD,)
    dtypes = ("float32",)
    semantics = Semantics.BINARY
    padded_with = 0.0
    beyond = 0

    def workspace_estimate(self, problem):
        return 1 << 20

    def prepare(self, problem, context, weights=None):
        taps = TapByTap(problem, context)
        taps.padded.fill(self.padded_with)

        def run(a, b, out):
            taps(np.where(a >= 0, 1, -1).astype("f4"), np.where(b >= 0, 1, -1).astype("f4"), out)
            if self.beyond:
                logical(out, problem)[-1, -1, -1, self.beyond] += 2

        if weights is None:
            return run
        kept = weights.copy()
        return lambda a, out: run(a, kept, out)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("full_macs", [0, 10**9])
@pytest.mark.parametrize("weights", ["raw", "packed"])
def test_what_is_right_passes_and_reports_both_distances(full_macs, weights, layout):
    asked = problem(Semantics.BINARY, WIDE, layout=layout)
    plan, verdict = Verifier(asked, full_macs=full_macs).verify(Signs(), CpuContext, weights)
    assert plan is not None and verdict.ok, verdict.reason
    assert verdict.error.exact_ulp == 0 and verdict.error.bound_ratio == 0
    assert 0.5 < verdict.error.rel_l2 < 20  # of the linear convolution: nothing like it


@pytest.mark.parametrize(("change", "check"), [({"padded_with": -1.0}, {"integer", "sample"}),
                                               ({"beyond": 57}, {"integer", "projection"})])  # fmt: skip
def test_what_is_wrong_is_rejected_at_every_size(change, check):
    bent = type("Bent", (Signs,), change)()
    for full_macs in (0, 10**9):
        plan, verdict = Verifier(problem(Semantics.BINARY, WIDE), full_macs=full_macs).verify(bent, CpuContext)
        assert plan is None and verdict.check in check, verdict


def test_a_row_of_another_semantics_promises_what_is_defined_and_no_more():
    with pytest.raises(RegistrationError, match="semantics binary is defined for passes out of"):
        register(type("Gradient", (Signs,), {"name": "signs_back_numpy", "passes": (Pass.BACKWARD_DATA,)}))
    with pytest.raises(RegistrationError, match="semantics binary is defined for dtypes out of"):
        register(type("Half", (Signs,), {"name": "signs_half_numpy", "dtypes": ("float16",)}))


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int8"])
def test_every_kind_of_inputs_is_what_it_says(kind, dtype):
    from convbench.devices.arrays import as_real

    for pass_ in Pass:
        a, b = (as_real(v).astype(np.float64) for v in make_inputs(Problem(SHAPE, pass_, dtype), Recipe(kind, 1, 2)))
        if kind == "zeros":
            assert not a.any() and not b.any()
        elif kind == "integers":
            assert set(np.unique(a)) <= set(range(-4, 5)) and len(np.unique(a)) > 5
        elif kind == "uniform" and dtype != "int8":
            assert np.abs(a).max() <= 1 and a.min() < -0.5 and a.max() > 0.5
        elif kind == "relu":
            assert 0.3 < (a == 0).mean() < 0.7 and (b != 0).mean() > 0.9
            assert (a.min() < 0) == (pass_ is Pass.BACKWARD_DATA)


def test_edges_hold_both_zeros_and_reach_past_the_ends_of_fixed_point():
    x, _ = make_inputs(problem(Semantics.FIXED16, WIDE), Recipe("edges", 1, 1))
    assert set(np.unique(x)) == set(np.float32(EDGES)) and np.signbit(x[x == 0]).any()


def test_memory_of_weights():
    shape = ConvShape.make(1, 64, 8, 8, 32, 3, 3)
    count = 32 * 64 * 9
    assert formats.weight_bytes(Problem(shape)) == 4 * count
    assert formats.weight_bytes(Problem(shape, dtype="bfloat16")) == 2 * count
    assert formats.weight_bytes(problem(Semantics.BINARY, shape)) == count // 8
    assert formats.weight_bytes(problem(Semantics.XNOR, shape)) == count // 8 + 4 * 32
    assert formats.weight_bytes(problem(Semantics.DYNAMIC_FIXED, shape)) == count * 10 // 8
