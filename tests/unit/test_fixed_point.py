"""Quantised rows: rounding without bias, saturation at the ends, NumPy and SIMD bit for bit, and wrong ones found out.

    python -m tests.unit.test_fixed_point COUNT [SEED]

compares COUNT random convolutions a row instead of the few of the test suite.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest

from convbench import catalog, formats
from convbench.devices.cpu import CpuContext, CpuDevice
from convbench.problem import ConvShape, Pass, Problem, Semantics
from convbench.registry import Implementation
from convbench.rounding import logical_indices, uniform24
from convbench.testing import conformance
from convbench.testing.fuzz import draw_problem
from convbench.testing.tap_by_tap import TapByTap, logical
from convbench.verify import Verifier
from convbench.verify.inputs import Recipe, make_inputs

PAIRS = {
    Semantics.INT8: ("int8_im2col_numpy", "int8_direct_simd"),
    Semantics.FIXED16: ("fixed16_im2col_numpy", "fixed16_direct_simd"),
    Semantics.FIXED16_STOCHASTIC: ("fixed16_stochastic_im2col_numpy", "fixed16_stochastic_direct_simd"),
    Semantics.DYNAMIC_FIXED: ("dynamic_fixed_im2col_numpy", "dynamic_fixed_direct_simd"),
}
FIXED = [s for s in PAIRS if s is not Semantics.INT8]
TOP, STEP = 2**15 - 1, 2.0**-formats.FIXED_FRACTION
COUNT, DRAWS = 20, 1_000_000


def row(name: str) -> Implementation:
    return catalog.load().implementations[name]


def computed(name: str, problem: Problem, a: np.ndarray, b: np.ndarray, threads: int = 1) -> np.ndarray:
    """The result of a row, of arrays in the problem's layout."""
    out = np.full(problem.out_shape, np.nan, np.float32)
    row(name).prepare(problem, CpuContext(threads))(a, b, out)
    return out


# ---- stochastic rounding


@pytest.mark.parametrize("name", PAIRS[Semantics.FIXED16_STOCHASTIC])
@pytest.mark.parametrize(
    ("x", "w", "step"),
    [(5.25, 4096, STEP), (-3.7109375, 4096, STEP), (683, 1, 2.0**-13), (-1365, 1, 2.0**-13)],
    ids=["operand up", "operand down", "result up", "result down"],
)
def test_stochastic_rounding_has_no_bias_and_comes_out_the_same_again(name, x, w, step):
    """x and w in steps of an operand: the first two are rounded there, the others where the result is."""
    problem = Problem(ConvShape.make(1, 1, 1000, 1000, 1, 1, 1), semantics=Semantics.FIXED16_STOCHASTIC)
    a, b = np.full(problem.a_shape, x * STEP, np.float32), np.full(problem.b_shape, w * STEP, np.float32)
    y = computed(name, problem, a, b)
    exact = x * w * STEP**2 / step  # in steps
    below = np.floor(exact)
    assert set(np.unique(y / step)) == {below, below + 1}
    chance = exact - below
    assert abs((y / step).mean(dtype=np.float64) - exact) <= 3 * (chance * (1 - chance) / DRAWS) ** 0.5
    assert computed(name, problem, a, b, threads=2).tobytes() == y.tobytes()


@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize("name", PAIRS[Semantics.FIXED16_STOCHASTIC])
def test_layouts_round_alike(name, pass_):
    shape = ConvShape.make(2, 6, 9, 8, 10, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2)), groups=2)
    results = []
    for layout in ("nchw", "nhwc"):
        problem = Problem(shape, pass_, layout=layout, semantics=Semantics.FIXED16_STOCHASTIC)
        a, b = make_inputs(problem, Recipe("normal", 7, 8))
        results.append(logical(computed(name, problem, a, b), problem))
    np.testing.assert_array_equal(*results)


# ---- the ends of what can be represented


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, -1)], ids=str)
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize("semantics", FIXED, ids=str)
def test_everything_at_its_limit_saturates(semantics, pass_, signs):
    shape = ConvShape.make(2, 130, 6, 5, 40, 3, 3, padding=1)
    for name in PAIRS[semantics]:
        for layout in ("nchw", "nhwc"):
            problem = Problem(shape, pass_, layout=layout, semantics=semantics)
            a = np.full(problem.a_shape, signs[0] * 1000, np.float32)
            b = np.full(problem.b_shape, signs[1] * 1000, np.float32)
            got = np.abs(computed(name, problem, a, b))
            end, bits = 15 - formats.fixed_result_fraction(problem.accumulation_length), formats.FIXED_BITS
            if semantics is Semantics.DYNAMIC_FIXED:  # 1000 is 500 steps of 2^(10 - 9)
                one, two = (formats.DynamicOperand(10, v.size, 500**2 * v.size) for v in (a, b))
                end = formats.dynamic_result_exponent(one, two, problem.accumulation_length)
                bits = formats.dynamic_bits(pass_)
            steps = 2 ** (bits - 1) - (signs[0] == signs[1])
            assert (got == steps * 2.0 ** (end - bits + 1)).all(), (name, layout)


@pytest.mark.parametrize("semantics", [Semantics.FIXED16, Semantics.FIXED16_STOCHASTIC], ids=str)
def test_sums_of_extremes_that_cancel_are_exact(semantics):
    """4,608 products of +-2^30, and one small one: no sum on the way may be rounded or cut off."""
    shape = ConvShape.make(1, 512, 3, 4, 20, 3, 3)
    for layout in ("nchw", "nhwc"):
        problem = Problem(shape, layout=layout, semantics=semantics)
        a, b = np.full(problem.a_shape, -8, np.float32), np.full(problem.b_shape, -8, np.float32)
        w = logical(b, problem)
        w[:, 256:] = 8  # 32,767 against -32,768: each pair leaves 32,768
        w[:, 0, 0, 0] = 3 * STEP
        exact = Fraction(-(2**15) * (TOP * 2304 - 2**15 * 2303 + 3), 2**24)
        fraction = formats.fixed_result_fraction(problem.accumulation_length)
        want = float(round(exact * 2**fraction)) * 2.0**-fraction
        for name in PAIRS[semantics]:
            got = computed(name, problem, a, b)
            off = np.abs(got - want) * 2.0**fraction
            assert off.max() <= (semantics is Semantics.FIXED16_STOCHASTIC), (name, got.ravel()[:4], want)


@pytest.mark.parametrize(("channels", "sign_x"), [(1040, 1), (8000, -1)])
@pytest.mark.parametrize("name", PAIRS[Semantics.INT8])
def test_int8_at_its_ends_is_rounded_once(name, channels, sign_x):
    """All of x 255 steps above or below the zero point, all weights at 127: sums far beyond 24 bits, and 32."""
    problem = Problem(ConvShape.make(1, channels, 5, 4, 17, 3, 3), semantics=Semantics.INT8)
    a, b = np.full(problem.a_shape, sign_x * 3.7, np.float32), np.full(problem.b_shape, 0.3, np.float32)
    b[1] *= -2
    scale = np.float32(3.7) / np.float32(255)
    for k, sign in ((0, sign_x), (1, -sign_x)):
        product = scale * (np.abs(b[k]).max() / np.float32(127))  # rounded to float32
        exact = Fraction(float(product)) * sign * 255 * 127 * 9 * channels
        got = Fraction(float(computed(name, problem, a, b)[0, k, 0, 0]))
        assert abs(got - exact) <= abs(exact) * Fraction(1, 2**24)


@pytest.mark.parametrize("name", [name for pair in PAIRS.values() for name in pair])
def test_nothing_but_zeros_is_zero(name):
    for pass_ in row(name).passes:
        problem = Problem(ConvShape.make(1, 3, 6, 7, 4, 3, 3, padding=1), pass_, semantics=row(name).semantics)
        out = computed(name, problem, np.zeros(problem.a_shape, np.float32), np.zeros(problem.b_shape, np.float32))
        assert not out.any()


def test_a_sum_that_float64_may_not_hold_is_refused():
    long = ConvShape.make(600, 1, 130, 130, 1, 1, 1)
    for semantics in FIXED:
        for name in PAIRS[semantics]:
            refused = row(name).limits(Problem(long, Pass.BACKWARD_WEIGHTS, semantics=semantics))
            assert refused is not None and "at most 8388608 products" in refused
            assert row(name).limits(Problem(long, semantics=semantics)) is None


# ---- NumPy and SIMD


def differing(semantics: Semantics, count: int, seed: int) -> list[str]:
    """Random convolutions of which the two rows of a semantics do not give the same bytes."""
    numpy_row, simd_row = PAIRS[semantics]
    rng, found = random.Random(f"{semantics} {seed}"), []
    for index in range(count):
        problem = draw_problem(rng, row(simd_row))
        kind = rng.choice(("normal", "edges", "relu", "uniform", "integers"))
        a, b = make_inputs(problem, Recipe(kind, seed + index, seed + index + 1))
        want = computed(numpy_row, problem, a, b)
        if computed(simd_row, problem, a, b, threads=1 + index % 2).tobytes() != want.tobytes():
            found.append(f"{problem} {kind}")
    return found


@pytest.mark.parametrize("semantics", list(PAIRS), ids=str)
def test_numpy_and_simd_give_the_same_bytes(semantics):
    assert differing(semantics, COUNT, 1) == []


@pytest.mark.parametrize(
    ("shape", "pass_"),
    [
        (ConvShape.make(1, 900, 9, 10, 5, 9, 9), Pass.FORWARD),
        (ConvShape.make(1, 5, 9, 10, 900, 9, 9), Pass.BACKWARD_DATA),
        (ConvShape.make(2, 2, 200, 201, 3, 1, 1), Pass.BACKWARD_WEIGHTS),
    ],
    ids=str,
)
@pytest.mark.parametrize("semantics", list(PAIRS), ids=str)
def test_sums_too_long_for_32_bits_are_put_down_on_the_way(semantics, shape, pass_):
    """72,900 and 80,400 products, one operand at its ends: more than any sum of parts can take."""
    if pass_ not in formats.PASSES[semantics]:
        pass_, shape = Pass.FORWARD, ConvShape.make(3, 950, 8, 9, 20, 9, 9, padding=1)
    problem, rng = Problem(shape, pass_, layout="nhwc", semantics=semantics), np.random.default_rng(3)
    a = rng.choice(np.array([-100, 100], np.float32), problem.a_shape)
    b = np.float32(0.3) * rng.standard_normal(problem.b_shape, np.float32)
    want, got = (computed(name, problem, a, b) for name in PAIRS[semantics])
    assert got.tobytes() == want.tobytes() and len(np.unique(want)) > 2


@pytest.mark.parametrize("name", [name for pair in PAIRS.values() for name in pair])
def test_rows_say_how_they_scale(name):
    context = CpuContext(1)
    row(name).prepare(Problem(ConvShape.make(1, 3, 6, 7, 4, 3, 3), semantics=row(name).semantics), context)
    assert context.notes["scale"] and context.notes["zero_point"]


@pytest.mark.parametrize("name", ["odd_channels", "asymmetric_everything", "depthwise", "padding_beyond_filter"])
@pytest.mark.parametrize("simd", [pair[1] for pair in PAIRS.values()])
def test_rows_conform(simd, name):
    for case in conformance.cases(row(simd)):
        if case.shape_name == name:
            outcome = conformance.check(row(simd), case.problem, case.weights, threads=2)
            assert outcome.status == "ok", f"{case}: {outcome.reason}"


@pytest.mark.parametrize("name", [name for pair in PAIRS.values() for name in pair])
def test_estimates_of_memory_are_near_what_is_taken(name):
    for shape in (ConvShape.make(2, 24, 40, 37, 40, 3, 3, padding=1), ConvShape.make(1, 64, 56, 56, 32, 1, 1)):
        for pass_ in row(name).passes:
            problem = Problem(shape, pass_, layout="nhwc", semantics=row(name).semantics)
            a, b = make_inputs(problem, Recipe("normal", 1, 2))
            out, context, device = np.empty(problem.out_shape, np.float32), CpuContext(1), CpuDevice()
            run = row(name).prepare(problem, context)
            run(a, b, out)
            with device.watch_memory() as peak:
                run(a, b, out)
            measured, estimate = context.workspace_bytes + peak.n_bytes, row(name).estimate(problem)
            assert measured / 1.25 - (1 << 20) <= estimate <= 4 * measured + (1 << 20), (shape, pass_)


# ---- wrong ones


SMALL = ConvShape.make(2, 20, 26, 24, 18, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2)))


@dataclass(frozen=True)
class Change:
    """One thing that is wrong about an otherwise right row: a different value of one of these. shape: shows it."""

    name: str = "nothing"
    semantics: tuple[Semantics, ...] = tuple(PAIRS)
    passes: tuple[Pass, ...] = tuple(Pass)
    rounding: str = "rint"
    cut: str = "clip"  # what becomes of numbers beyond the ends
    sum_bits: int = 64
    bits_less: int = 0  # of the result
    padded_with_zero_point: bool = False
    one_filter_scale: bool = False
    seeds: tuple[int, int, int] = formats.ROUNDING_SEEDS
    drawn_as_stored: bool = False  # numbers drawn in the order of memory
    allowed: int = formats.OVERFLOW_ONE_IN
    shape: ConvShape = SMALL

    def row(self, semantics: Semantics) -> Implementation:
        """A fresh row, never registered."""
        members = {"name": "mutant_toy_numpy", "semantics": semantics, "passes": formats.PASSES[semantics]}
        return type("Mutated", (Toy,), members | {"change": self})()


class Toy(Implementation):
    """The four semantics in a few lines, with one thing changed."""

    dtypes = ("float32",)
    change: Change

    def workspace_estimate(self, problem):
        return 1 << 20

    def prepare(self, problem, context, weights=None):
        taps = TapByTap(replace(problem, dtype="float64", semantics=Semantics.LINEAR), context)

        def run(a, b, out):
            one, two = ends(self.change, problem, 0, a), ends(self.change, problem, 1, b)
            taps.padded.fill(-one.zero if self.change.padded_with_zero_point else 0.0)
            sums = np.empty(problem.out_shape)
            taps(one.whole, two.whole, sums)
            out[...] = finished(self.change, problem, one, two, sums)

        return run


@dataclass
class End:
    whole: np.ndarray
    scale: np.ndarray | float = 1.0
    zero: float = 0.0
    dynamic: formats.DynamicOperand | None = None


def whole_numbers(change, problem, values, which, bits, unit=1.0):
    """values / unit rounded, and cut to so many bits."""
    limit = 2 ** (bits - 1)
    if problem.semantics is Semantics.FIXED16_STOCHASTIC and change.rounding == "rint":
        index = np.arange(values.size).reshape(values.shape)
        if not change.drawn_as_stored:
            index = logical_indices(values.shape, problem.layout)
        below = np.floor(values)
        distance = values - below if which < 2 else np.floor((values - below) * 2**24) / 2**24
        number = below + (uniform24(change.seeds[which], index) < distance)
    else:
        rounding = {"rint": np.rint, "half_up": lambda v: np.floor(v + 0.5), "truncates": np.trunc}[change.rounding]
        number = rounding(values)
    if change.cut == "wraps":
        return np.mod(number + limit, 2 * limit) - limit
    return np.clip(number, -limit, limit - 1)


def ends(change, problem, which, array):
    """An operand as whole numbers."""
    semantics, one = problem.semantics, np.float32(1)
    if semantics is Semantics.INT8 and which == 0:
        low, high = min(np.float32(0), array.min()), max(np.float32(0), array.max())
        scale = (high - low) / np.float32(255)
        scale = scale if scale > 2.0**-100 else one
        zero = np.clip(np.rint(np.float32(-128) - low * (one / scale)), -128, 127)
        rounding = np.rint if change.rounding == "rint" else np.trunc
        whole = np.clip(rounding(array * (one / scale)) + zero, -128, 127) - zero
        return End(whole.astype(float), scale, float(zero))
    if semantics is Semantics.INT8:
        largest = np.abs(array).max(axis=(1, 2, 3), keepdims=True)
        if change.one_filter_scale:
            largest = np.full_like(largest, largest.max())
        scales = np.where(largest / np.float32(127) > 2.0**-100, largest / np.float32(127), one)
        return End(np.clip(np.rint(array * (one / scales)), -127, 127).astype(float), scales)
    if semantics is not Semantics.DYNAMIC_FIXED:
        scaled = array * np.float32(2.0**formats.FIXED_FRACTION)
        return End(whole_numbers(change, problem, scaled, which, 16).astype(float))
    e = formats.LEAST_EXPONENT
    while np.count_nonzero(np.abs(array) >= 2.0**e) > array.size // change.allowed:
        e += 1
    whole = whole_numbers(change, problem, array * 2.0 ** (formats.DYNAMIC_BITS - 1 - e), which, formats.DYNAMIC_BITS)
    return End(whole, dynamic=formats.DynamicOperand(e, array.size, int(np.square(whole).sum())))


def finished(change, problem, a, b, sums):
    """Results of exact sums."""
    n, semantics = problem.accumulation_length, problem.semantics
    if change.sum_bits < 64:
        half = 2.0 ** (change.sum_bits - 1)
        sums = np.mod(sums + half, 2 * half) - half
    if semantics is Semantics.INT8:
        scales = (np.float32(a.scale) * b.scale).reshape(-1).astype(np.float64)
        return sums * (scales[:, None, None] if problem.layout == "nchw" else scales)
    if semantics is Semantics.DYNAMIC_FIXED:
        bits = formats.dynamic_bits(problem.pass_) - change.bits_less
        step = formats.dynamic_result_exponent(a.dynamic, b.dynamic, n) - bits + 1
        lift = a.dynamic.exponent + b.dynamic.exponent - 2 * (formats.DYNAMIC_BITS - 1) - step
    else:
        bits, step = 16 - change.bits_less, -formats.fixed_result_fraction(n) + change.bits_less
        lift = -step - 2 * formats.FIXED_FRACTION
    return whole_numbers(change, problem, sums * 2.0**lift, 2, bits) * 2.0**step


INT8, FIXED16, STOCHASTIC, DYNAMIC = PAIRS
CHANGES = [
    Change("rounds half up", (FIXED16, DYNAMIC), rounding="half_up"),
    Change("truncates", (INT8, FIXED16, STOCHASTIC, DYNAMIC), rounding="truncates"),
    Change("wraps", (FIXED16, STOCHASTIC), cut="wraps"),
    Change("sums in 32 bits", (FIXED16, STOCHASTIC), sum_bits=32),
    Change("sums in 16 bits", (INT8, DYNAMIC), sum_bits=16),
    Change("pads with the zero point", (INT8,), (Pass.FORWARD,), padded_with_zero_point=True),
    Change("one scale for all filters", (INT8,), one_filter_scale=True),
    Change("one bit less", (FIXED16, STOCHASTIC, DYNAMIC), bits_less=1),
    Change("ten bits in dw", (DYNAMIC,), (Pass.BACKWARD_WEIGHTS,), bits_less=2),
    Change("one seed for all", (STOCHASTIC,), seeds=(1, 1, 1)),
    Change("draws in the order of memory", (STOCHASTIC,), drawn_as_stored=True),
    Change("never overflows", (DYNAMIC,), allowed=10**9, shape=ConvShape.make(1, 32, 80, 80, 32, 1, 1)),
]
WRONG = [(c, s, p) for c in CHANGES for s in c.semantics for p in c.passes if p in formats.PASSES[s]]


def judged(change: Change, semantics: Semantics, pass_: Pass, layout: str, full_macs: int) -> bool:
    problem = Problem(change.shape, pass_, layout=layout, semantics=semantics)
    verifier = Verifier(problem, full_macs=full_macs)
    plan, verdict = verifier.verify(change.row(semantics), CpuContext)
    assert (plan is not None) == verdict.ok
    return verdict.ok


@pytest.mark.parametrize("semantics", list(PAIRS), ids=str)
def test_the_unchanged_row_is_accepted(semantics):
    for pass_ in formats.PASSES[semantics]:
        for layout in ("nchw", "nhwc"):
            assert all(judged(Change(), semantics, pass_, layout, full_macs) for full_macs in (0, 10**9))


@pytest.mark.parametrize(("change", "semantics", "pass_"), WRONG, ids=[f"{c.name}-{s}-{p}" for c, s, p in WRONG])
def test_what_is_wrong_is_rejected(change, semantics, pass_):
    for full_macs in (0, 10**9):
        assert not judged(change, semantics, pass_, "nhwc", full_macs), change.name


if __name__ == "__main__":
    wanted, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2
    for each in PAIRS:
        wrong = differing(each, wanted, seed)
        sys.stdout.write("\n".join([*wrong, f"{each}: {wanted} problems, {len(wrong)} differ\n"]))
