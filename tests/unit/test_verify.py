"""The oracle against seven plain loops; inputs within their ranges; bounds, guards, caches; the verifier's order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbench import catalog
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.errors import ProblemError
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import Context, Implementation, Run
from convbench.testing.conformance import SHAPES
from convbench.testing.mutants import SMALL, UNCHANGED, WIDE, Mutant, MutantBase
from convbench.testing.tap_by_tap import TapByTap
from convbench.verify import ALL_CHECKS, Verifier
from convbench.verify import reference as reference_module
from convbench.verify.buffers import Guarded, same_bytes
from convbench.verify.compare import CheckFailed, figures, require_close, require_written
from convbench.verify.inputs import Recipe, integer_recipe, make_inputs, normal_recipe, to_logical
from convbench.verify.oracle import convolve, sample
from convbench.verify.reference import CACHE, Reference, coefficients, project, reference_of, sample_positions
from convbench.verify.tolerance import block_argmax, block_maximum, eps_of, in_whole_blocks

ALL_PASSES = list(Pass)


def seven_loops(shape: ConvShape, pass_: Pass, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pure Python: every product of the definition, added where it belongs."""
    s = shape
    out_shape = {Pass.FORWARD: s.y_shape, Pass.BACKWARD_DATA: s.x_shape}.get(pass_, s.w_shape)("nchw")
    out = np.zeros(out_shape)
    for n, k, p, q in itertools.product(range(s.n), range(s.k), range(s.p), range(s.q)):
        for c, r, t in itertools.product(range(s.cg), range(s.r), range(s.s)):
            h = p * s.stride[0] + r * s.dilation[0] - s.padding[0]
            w = q * s.stride[1] + t * s.dilation[1] - s.padding[2]
            if not (0 <= h < s.h and 0 <= w < s.w):
                continue
            x, f, y = (n, k // s.kg * s.cg + c, h, w), (k, c, r, t), (n, k, p, q)
            ia, ib, io = {Pass.FORWARD: (x, f, y), Pass.BACKWARD_DATA: (y, f, x)}.get(pass_, (x, y, f))
            out[io] += float(a[ia]) * float(b[ib])
    return out


@st.composite
def shapes(draw: Any) -> ConvShape:
    """Small shapes with everything asymmetric."""
    small = st.integers(1, 3)
    groups = draw(st.integers(1, 2))
    pairs = [draw(st.tuples(small, small)) for _ in range(2)]
    pads = tuple(draw(st.integers(0, 4)) for _ in range(4))
    try:
        return ConvShape(
            draw(small), groups * draw(small), draw(st.integers(1, 6)), draw(st.integers(1, 6)), groups * draw(small),
            draw(small), draw(small), pairs[0], pads, pairs[1], groups,
        )  # fmt: skip
    except ProblemError:
        return ConvShape.make(1, groups, 4, 4, groups, 2, 3, stride=pairs[0], groups=groups)


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from(ALL_PASSES))
def test_oracle_is_the_definition(shape: ConvShape, pass_: Pass) -> None:
    problem = Problem(shape, pass_, "float64")
    a, b = make_inputs(problem, Recipe("integer", 1, 2, 9, 7))
    want = seven_loops(shape, pass_, a, b)
    np.testing.assert_array_equal(convolve(shape, pass_, a, b), want)
    index = np.array(np.unravel_index(np.arange(want.size), want.shape))
    values, squares = sample(shape, pass_, a, b, index)
    np.testing.assert_array_equal(values.reshape(want.shape), want)
    want_squares = seven_loops(shape, pass_, a * a, b * b)
    np.testing.assert_array_equal(squares.reshape(want.shape), want_squares)
    np.testing.assert_array_equal(convolve(shape, pass_, a, b * b, square_a=True), want_squares)


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from(ALL_PASSES), st.sampled_from(["nchw", "nhwc"]))
def test_projection_of_the_result_is_the_result_of_the_projection(shape: ConvShape, pass_: Pass, layout: str) -> None:
    problem = Problem(shape, pass_, "float32", layout)
    CACHE.clear()
    recipe = Recipe("integer", 3, 4, 5, 5)
    reference = reference_of(problem, recipe, None, full_macs=0)
    a, b = (to_logical(array, layout) for array in make_inputs(problem, recipe))
    result = np.empty(problem.out_shape, np.float32)
    to_logical(result, layout)[...] = convolve(shape, pass_, a, b)
    got = project(to_logical(result, layout), problem, coefficients(problem, "integer"))
    assert reference.projected is not None
    np.testing.assert_array_equal(got, reference.projected)


def test_large_batches_go_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SHAPES["batch_5"]
    for pass_ in Pass:
        problem = Problem(shape, pass_, "float64")
        a, b = make_inputs(problem, Recipe("integer", 1, 2, 9, 7))
        index = sample_positions(problem)
        want, sampled = convolve(shape, pass_, a, b), sample(shape, pass_, a, b, index)
        monkeypatch.setattr("convbench.verify.oracle._COPY_BYTES", 1)
        np.testing.assert_array_equal(convolve(shape, pass_, a, b), want)
        np.testing.assert_array_equal(sample(shape, pass_, a, b, index), sampled)
        monkeypatch.undo()


# ---- inputs


class Growing(MutantBase):
    """An implementation that is not exact on integers."""

    name = "growing_test_numpy"
    exact_on_integers = False
    error_growth = 40.0


@pytest.mark.parametrize("pass_", ALL_PASSES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_range_keeps_every_sum_exact(pass_: Pass, dtype: str) -> None:
    exact = UNCHANGED.implementation()
    limit = 2**24 if dtype == "float32" else 2**53
    for shape in (*SHAPES.values(), SMALL, ConvShape.make(8, 3, 224, 224, 4, 3, 3, padding=1)):
        problem = Problem(shape, pass_, dtype)
        recipe = integer_recipe(exact, problem, 0)
        assert recipe is not None
        n = problem.accumulation_length
        assert n * recipe.a_max * recipe.b_max < limit
        assert recipe.b_max >= 1
        if dtype == "float32":
            assert recipe.a_max == 4097 if n < 4096 else recipe.a_max >= 6


def test_integers_reach_what_half_precision_cannot_hold() -> None:
    problem = Problem(ConvShape.make(1, 64, 20, 20, 4, 3, 3))
    recipe = integer_recipe(UNCHANGED.implementation(), problem, 0)
    assert recipe is not None
    a, _ = make_inputs(problem, recipe)
    assert np.abs(a).max() > 2048
    assert (a.astype(np.float16).astype(np.float32) != a).any()


@pytest.mark.parametrize("arithmetic", ["tf32", "3xtf32"])
def test_integers_are_those_that_tf32_holds(arithmetic: str) -> None:
    class Rounding(MutantBase):
        name = "rounding_test_numpy"

    Rounding.arithmetic = arithmetic

    def to_tf32(x: np.ndarray) -> np.ndarray:
        kept = (x.astype(np.float32).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        return kept.view(np.float32).astype(np.float64)

    largest = set()
    for n in (1, 9, 288, 4608, 401408):
        problem = Problem(ConvShape.make(1, n, 9, 9, 2, 1, 1))
        recipe = integer_recipe(Rounding(), problem, 0)
        assert recipe is not None
        a, b = (x.astype(np.float64) for x in make_inputs(problem, recipe))
        if arithmetic == "tf32":
            assert (to_tf32(a) == a).all()
        assert (to_tf32(a) + to_tf32(a - to_tf32(a)) == a).all()
        assert (to_tf32(b) == b).all()
        largest.add(recipe.a_max)
    assert max(largest) == (2047 if arithmetic == "tf32" else 4097)


def test_range_of_inexact_implementations_keeps_their_bound_below_a_quarter() -> None:
    growing = Growing()
    for n in (1, 9, 4608, 50176, 401408, 2_000_000):
        problem = Problem(ConvShape.make(1, n, 1, 1, 1, 1, 1))
        recipe = integer_recipe(growing, problem, 0)
        if recipe is None:
            assert n == 2_000_000
            continue
        squares = n * recipe.density * (recipe.a_max * recipe.b_max) ** 2
        assert growing.error_growth * eps_of("native", "float32") * (n * squares) ** 0.5 < 0.25
        a, _ = make_inputs(problem, recipe)
        assert a.any()


def test_where_integers_say_nothing_the_verdict_says_so() -> None:
    class Hopeless(Growing):
        name = "hopeless_test_numpy"
        error_growth = 1e5
        make = staticmethod(lambda problem, correct, context: correct)

    verdict = Verifier(Problem(SMALL)).verify(Hopeless(), CpuContext)[1]
    assert verdict.ok
    assert "no integer inputs" in verdict.notes[0]


def test_both_layouts_hold_the_same_numbers() -> None:
    for pass_ in Pass:
        pairs = [make_inputs(Problem(SMALL, pass_, layout=layout), normal_recipe(3)) for layout in ("nchw", "nhwc")]
        for plain, last in zip(*pairs, strict=True):
            np.testing.assert_array_equal(plain, to_logical(last, "nhwc"))
            assert last.flags.c_contiguous


def test_sample_reaches_borders_and_residues() -> None:
    index = sample_positions(Problem(WIDE))
    sizes = Problem(WIDE).out_shape
    assert index.shape[1] > 3000
    for axis in (2, 3):
        assert {0, 1, sizes[axis] - 1} <= set(index[axis].tolist())
        for modulus in (2, 3, 4, 6, 8, 16):
            assert set((index[axis] % modulus).tolist()) == set(range(modulus))
    assert (index < np.array(sizes)[:, None]).all()
    assert np.unique(index, axis=1).shape == index.shape


# ---- tolerances and comparisons


def test_eps_follows_the_arithmetic() -> None:
    assert eps_of("native", "float32") == np.finfo(np.float32).eps
    assert eps_of("native", "float64") == np.finfo(np.float64).eps
    assert eps_of("float16-acc32", "float32") == np.finfo(np.float16).eps
    with pytest.raises(ValueError, match="posit"):
        eps_of("posit16", "float32")


def test_block_maximum_against_loops() -> None:
    squares = np.random.default_rng(0).random((2, 3, 7, 10))
    got = block_maximum(squares, (3, 4))
    index = np.array(np.unravel_index(np.arange(squares.size), squares.shape))
    at = block_argmax(squares, (3, 4), index)
    for (i, j, u, v), best in zip(index.T, at.T, strict=True):
        block = squares[i, j, u // 3 * 3 : u // 3 * 3 + 3, v // 4 * 4 : v // 4 * 4 + 4]
        assert got[i, j, u, v] == block.max() == squares[i, j, best[0], best[1]]
    assert block_maximum(squares, None) is squares
    whole = np.broadcast_to(squares.max((2, 3), keepdims=True), squares.shape)
    np.testing.assert_array_equal(block_maximum(squares, (99, 99)), whole)


def test_comparisons_fail_on_nan_and_name_the_worst() -> None:
    problem = Problem(ConvShape.make(1, 1, 2, 2, 1, 1, 1))
    want = np.zeros((1, 1, 2, 2))
    got = want.copy()
    got[0, 0, 1, 0] = 3
    with pytest.raises(CheckFailed, match=r"n=0, k=0, p=1, q=0\]: expected 0, got 3"):
        require_close("normal", got, want, np.full_like(want, 0.5), problem)
    got[0, 0, 1, 0] = np.nan
    with pytest.raises(CheckFailed, match="got nan"):
        require_close("normal", got, want, np.full_like(want, 0.5), problem)
    with pytest.raises(CheckFailed, match=r"p=1, q=0\] = nan"):
        require_written(got, problem)
    got[0, 0, :, 0] = np.inf, -np.inf
    with pytest.raises(CheckFailed, match="2 of 4"):
        require_written(got, problem)


def test_figures_by_hand() -> None:
    want = np.array([1.0, 2.0, 0.0])
    found = figures(np.array([1.0, 2.0 + 2.0**-22, 0.0]), want, np.array([1e-6, 2.0**-21, 0.0]), "float32")
    assert found.max_abs == 2.0**-22
    assert found.max_ulp == 1.0
    assert found.bound_ratio == 0.5
    assert found.rel_l2 == pytest.approx(2.0**-22 / 5**0.5)


@pytest.mark.parametrize("shift", [0, 1])
def test_guards_see_writes_on_both_sides(shift: int) -> None:
    guarded = Guarded((3, 5), np.float32)
    array = guarded.place(shift)
    assert array.ctypes.data % 64 == 0
    array[...] = 1
    assert guarded.disturbed() is None
    outside = np.lib.stride_tricks.as_strided(array.reshape(-1), (17,), (4,))
    outside[16] = 0
    assert "after its end, the nearest 4 bytes away" in str(guarded.disturbed())
    array = guarded.place(shift)
    np.lib.stride_tricks.as_strided(array.reshape(-1), (2,), (-4,))[1] = 0
    assert "before its start" in str(guarded.disturbed())


def test_same_bytes_tells_nan_and_signed_zero_apart() -> None:
    left = np.array([0.0, np.nan], np.float32)
    assert same_bytes(left, left.copy())
    assert not same_bytes(left, np.array([-0.0, np.nan], np.float32))


# ---- cache


def test_oracle_results_are_shared_on_disk_and_damage_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = reference_module._whole
    monkeypatch.setattr(reference_module, "_whole", lambda *a: calls.append(1) or original(*a))
    problem, recipe = Problem(SMALL), normal_recipe(11)
    first = reference_of(problem, recipe, tmp_path, 10**9)
    again = reference_of(Problem(SMALL, layout="nhwc"), recipe, tmp_path, 10**9)
    assert again is first and calls == [1]
    (file,) = tmp_path.glob("*.npz")
    CACHE.clear()
    from_disk = reference_of(problem, recipe, tmp_path, 10**9)
    assert calls == [1]
    np.testing.assert_array_equal(from_disk.want, first.want)
    for damage in (b"", file.read_bytes()[:100], b"not a zip file at all"):
        file.write_bytes(damage)
        CACHE.clear()
        calls.clear()
        repaired = reference_of(problem, recipe, tmp_path, 10**9)
        assert calls == [1]
        np.testing.assert_array_equal(repaired.squares, first.squares)
    assert list(tmp_path.glob("*.part")) == []


def test_an_unwritable_cache_costs_nothing_but_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    CACHE.clear()
    assert isinstance(reference_of(Problem(SMALL), normal_recipe(12), blocked / "cache", 10**9), Reference)


def test_memory_cache_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module, "_MEMORY_BYTES", 10)
    cache = reference_module.Cache()
    for name in "abc":
        cache.put(name, name, 5)
    assert [cache.get(name) for name in "abc"] == [None, "b", "c"]
    cache.put("large", "large", 100)
    assert cache.get("large") == "large" and cache.get("c") is None


# ---- the verifier


def implementation(make: Any) -> Implementation:
    """An unregistered implementation whose run is make(problem, correct, context)."""
    return Mutant("test", "made for a test", make).implementation()


def test_accepts_and_reports() -> None:
    verifier = Verifier(Problem(SMALL))
    plan, verdict = verifier.verify(UNCHANGED.implementation(), lambda: CpuContext(1))
    assert plan is not None and verdict.ok and verdict.reason == "" and verdict.check == ""
    assert 0 < verdict.error.bound_ratio < 1  # type: ignore[operator]
    assert 0 < verdict.error.rel_l2 < 1e-5  # type: ignore[operator]
    assert verdict.error.max_ulp is not None and verdict.error.max_abs is not None
    assert verdict.first_run_ns > 0
    assert verdict.peak_bytes > np.prod(Problem(SMALL).out_shape) * 4
    again = verifier.recheck(plan)
    assert again.ok and again.error.bound_ratio != verdict.error.bound_ratio


def test_operands_survive_later_checks() -> None:
    verifier = Verifier(Problem(SMALL, Pass.BACKWARD_DATA), seed=3)
    plan, _ = verifier.verify(UNCHANGED.implementation(), CpuContext, "packed")
    assert plan is not None
    a, b, out = verifier.operands()
    assert np.isnan(out).all() and all(array.ctypes.data % 64 == 0 for array in (a, b, out))
    assert all(array.flags.writeable and array.flags.c_contiguous for array in (a, b, out))
    kept = a.copy(), b.copy()
    plan.run(a, b, out)
    result = out.copy()
    assert verifier.recheck(plan).ok
    assert verifier.operands()[0] is a
    for now, before in zip((a, b, out), (*kept, result), strict=True):
        np.testing.assert_array_equal(now, before)
    want = convolve(SMALL, Pass.BACKWARD_DATA, a, b)  # b is what the plan was packed with
    np.testing.assert_allclose(out, want, atol=1e-3)


def test_what_breaks_later_is_seen_by_recheck() -> None:
    switch = {"broken": False}

    def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            correct(a, b, out)
            if switch["broken"]:
                out += 1

        return run

    for full_macs in (10**9, 0):
        switch["broken"] = False
        verifier = Verifier(Problem(SMALL), full_macs=full_macs)
        plan, verdict = verifier.verify(implementation(make), CpuContext)
        assert verdict.ok and plan is not None
        switch["broken"] = True
        again = verifier.recheck(plan)
        assert not again.ok and "expected" in again.reason


def test_one_failure_of_the_bound_is_repeated_with_another_seed() -> None:
    def unlucky(times: int) -> Implementation:
        left = [times]

        def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
            def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
                correct(a, b, out)
                if left[0] and not np.array_equal(a, np.rint(a)):  # normal inputs
                    left[0] -= 1
                    out.reshape(-1)[0] += 1e-2

            return run

        return implementation(make)

    once = Verifier(Problem(SMALL)).verify(unlucky(1), CpuContext)[1]
    assert once.ok and "within it with the second" in once.notes[0]
    always = Verifier(Problem(SMALL)).verify(unlucky(9), CpuContext)[1]
    assert not always.ok and always.check == "normal" and "with another seed" in always.reason


def test_exceptions_go_through() -> None:
    def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            raise ZeroDivisionError("as it happens")

        return run

    with pytest.raises(ZeroDivisionError, match="as it happens"):
        Verifier(Problem(SMALL)).verify(implementation(make), CpuContext)


def test_packed_plans_may_not_look_at_the_given_weights_again() -> None:
    class Looks(MutantBase):
        name = "looks_test_numpy"

        def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
            correct = TapByTap(problem, context)
            return correct if weights is None else lambda a, out: correct(a, weights, out)

    assert Verifier(Problem(SMALL)).verify(Looks(), CpuContext)[1].ok
    assert not Verifier(Problem(SMALL)).verify(Looks(), CpuContext, "packed")[1].ok


def test_plans_that_keep_pointers_to_their_arguments_are_rejected() -> None:
    def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
        bound: list[np.ndarray] = []

        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            bound[:] = bound or [a, b, out]
            correct(*bound)

        return run

    assert not Verifier(Problem(SMALL)).verify(implementation(make), CpuContext)[1].ok


def test_reads_past_the_operands_reach_the_result() -> None:
    def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            correct(a, b, out)
            past = np.lib.stride_tricks.as_strided(a.reshape(-1), (a.size + 1,), (a.itemsize,))[a.size]
            out.reshape(-1)[-1] += past * 0

        return run

    assert Verifier(Problem(SMALL)).verify(implementation(make), CpuContext)[1].check == "unwritten"


def test_a_single_wrong_element_of_many_is_found_by_projection() -> None:
    wrong_at = np.random.default_rng(5).integers(0, np.prod(Problem(WIDE).out_shape), 5)
    for position in wrong_at:

        def make(problem: Problem, correct: TapByTap, context: Context, at: int = int(position)) -> Run:
            def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
                correct(a, b, out)
                out.reshape(-1)[at] += 1

            return run

        verdict = Verifier(Problem(WIDE), full_macs=0, checks=ALL_CHECKS - {"sample"}).verify(
            implementation(make), CpuContext
        )[1]
        assert verdict.check == "projection"


def test_footprint_relaxes_padding_only_results_and_nothing_else() -> None:
    """A transform leaks rounding error into results that see only padding; element-wise ones must be exactly 0."""

    def leaky(footprint: tuple[int, int] | None) -> Implementation:
        def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
            def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
                correct(a, b, out)
                if not np.array_equal(a, np.rint(a)):
                    out[0, 0, 0, 0] += np.float32(1e-7)

            return run

        made = implementation(make)
        type(made).error_footprint = lambda self, problem: footprint  # type: ignore[method-assign]
        return made

    problem = Problem(SHAPES["padding_beyond_filter"])
    assert problem.shape.padding[0] > problem.shape.r - 1
    for full_macs in (10**9, 0):
        verify = Verifier(problem, full_macs=full_macs).verify
        assert not verify(leaky(None), CpuContext)[1].ok
        assert verify(leaky((99, 99)), CpuContext)[1].ok


def test_unknown_checks_are_refused() -> None:
    with pytest.raises(ValueError, match="spelling"):
        Verifier(Problem(SMALL), checks=frozenset({"spelling"}))


def test_buffers_are_poisoned_before_every_run() -> None:
    seen: list[bool] = []

    def make(problem: Problem, correct: TapByTap, context: Context) -> Run:
        def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
            seen.append(bool(np.isnan(out).all()))
            correct(a, b, out)

        return run

    Verifier(Problem(SMALL)).verify(implementation(make), CpuContext)
    assert seen == [True] * 4
    assert aligned_empty((3,), np.float32).ctypes.data % 64 == 0


@pytest.mark.parametrize("pass_", [Pass.FORWARD, Pass.BACKWARD_DATA])
def test_whole_blocks_keep_what_was_asked_for(pass_):
    """The larger shape of a transform's error bound: same sizes inside, ends with a block or where data ends."""
    for shape in (
        ConvShape.make(5, 6, 1, 11, 3, 5, 5, stride=2, padding=((5, 4), (4, 3))),
        ConvShape.make(1, 4, 1, 1, 4, 3, 3, padding=1),
        ConvShape.make(2, 3, 10, 9, 4, 3, 3, padding=((1, 0), (0, 2))),
        ConvShape.make(1, 3, 30, 30, 2, 1, 1),
    ):
        for block in ((4, 4), (6, 2), (32, 64)):
            grown = in_whole_blocks(shape, pass_, block)
            assert (grown.n, grown.c, grown.k, grown.r, grown.s) == (shape.n, shape.c, shape.k, shape.r, shape.s)
            assert grown.p >= shape.p and grown.q >= shape.q and grown.h >= shape.h and grown.w >= shape.w
            if pass_ is Pass.FORWARD:
                assert (grown.h, grown.w) == (shape.h, shape.w) and grown.p < shape.p + block[0]
            else:
                assert grown.h < shape.h + block[0] and grown.w < shape.w + block[1]


def test_results_that_see_padding_alone_have_a_bound_above_zero():
    """One output row, wholly in the padding; the transform's tile goes on to rows that read the image."""
    shape = ConvShape.make(1, 4, 1, 11, 3, 5, 5, stride=2, padding=((5, 0), (4, 3)))
    assert shape.p == 1
    ones = np.ones((1, 4, 1, 11)), np.ones((3, 4, 5, 5))
    assert not convolve(shape, Pass.FORWARD, *ones).any()
    assert convolve(in_whole_blocks(shape, Pass.FORWARD, (4, 4)), Pass.FORWARD, *ones).any()


def test_a_transform_is_not_judged_by_the_one_tap_that_was_used():
    """A pixel times the middle of a filter, by Winograd: the other taps round too."""
    shape = ConvShape.make(1, 48, 1, 1, 48, 3, 3, padding=1, groups=48)
    implementation = catalog.load().implementations["winograd_f2_numpy"]
    verifier = Verifier(Problem(shape, Pass.BACKWARD_DATA, layout="nhwc"), seed=12)
    plan, verdict = verifier.verify(implementation, CpuContext)
    assert plan is not None, verdict.reason
