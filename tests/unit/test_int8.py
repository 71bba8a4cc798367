"""int8 problems: exact sums in int32, from the problem through verification and the library to the vendor's row."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convbench
from convbench import catalog
from convbench.algorithms.onednn import _capi
from convbench.choices import choose
from convbench.devices.arrays import poison, poisoned
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.errors import ProblemError, Unsupported
from convbench.problem import INT8_PRODUCTS, LAYOUTS, ConvShape, Pass, Problem
from convbench.records import read_records
from convbench.registry import implementations
from convbench.runner.budget import weight
from convbench.testing.conformance import SHAPES
from convbench.testing.mutants import SMALL, UNCHANGED
from convbench.verify import Verifier
from convbench.verify.inputs import LEAST_SHARE, Recipe, integer_recipe, make_inputs, to_logical, usual_recipe
from convbench.verify.oracle import convolve, sample
from convbench.verify.reference import sample_positions

DEEPEST = ConvShape.make(1, INT8_PRODUCTS - 1, 1, 1, 2, 1, 1)
catalog.load()
needs_vnni = pytest.mark.skipif(
    _capi.load_problem() is not None or not _capi.has_vnni(), reason="oneDNN, or VNNI, is not here"
)


# ---- the problem


def test_results_are_int32_and_their_bytes_are_counted() -> None:
    problem = Problem(ConvShape.make(2, 3, 8, 8, 5, 3, 3), dtype="int8")
    assert (problem.out_dtype, problem.item_bytes, problem.out_item_bytes) == ("int32", 1, 4)
    assert problem.operand_bytes == 2 * 3 * 64 + 5 * 27 + 4 * 2 * 5 * 36
    assert problem.elements == 2 * 3 * 64 + 5 * 27 + 2 * 5 * 36
    assert weight(problem) == weight(Problem(problem.shape))  # time is shared out by elements, not by bytes
    assert problem.native_arithmetic == "int8-acc32" and Problem(problem.shape).native_arithmetic == "float32"
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        assert Problem(problem.shape, dtype=dtype).out_dtype == dtype


def test_no_row_takes_sums_that_may_leave_int32() -> None:
    row = implementations()["direct_naive_numba"]
    assert row.why_not(Problem(DEEPEST, dtype="int8")) is None
    over = Problem(ConvShape.make(1, INT8_PRODUCTS, 1, 1, 2, 1, 1), dtype="int8")
    assert row.why_not(over) == (
        "direct_naive_numba: a sum of 131072 products of int8 may leave int32: it must have fewer than 131072"
    )
    assert row.why_not(Problem(over.shape)) is None
    weights = ConvShape.make(3, 1, 224, 224, 1, 1, 1)
    assert row.why_not(Problem(weights, Pass.FORWARD, "int8")) is None
    assert "150528 products" in (row.why_not(Problem(weights, Pass.BACKWARD_WEIGHTS, "int8")) or "")


# ---- inputs and the oracle


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_hold_all_of_int8_and_its_extremes(layout: str) -> None:
    problem = Problem(ConvShape.make(2, 64, 20, 20, 64, 3, 3), dtype="int8", layout=layout)
    recipe = usual_recipe(problem, 3)
    for array in make_inputs(problem, recipe):
        assert array.dtype == np.int8 and set(np.unique(array)) == set(range(-128, 128))
    extremes = integer_recipe(UNCHANGED.implementation(), problem, 3)
    assert extremes is not None and extremes.kind == "extremes"
    for array in make_inputs(problem, extremes):
        assert set(np.unique(array)) == {-128, 127}
        assert abs(np.mean(array == -128) - LEAST_SHARE) < 0.01
    a, b = (to_logical(x, layout) for x in make_inputs(problem, extremes))
    assert convolve(problem.shape, problem.pass_, a, b).mean() > 0.7 * 128 * 128 * problem.accumulation_length
    other = make_inputs(problem, recipe.with_seeds(4, 3))
    assert not np.array_equal(make_inputs(problem, recipe)[0], other[0])
    assert np.array_equal(make_inputs(problem, recipe)[1], other[1])


def in_whole_numbers(shape: ConvShape, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The forward pass in Python's own integers."""
    y = np.zeros((shape.n, shape.k, shape.p, shape.q), object)
    for n, k, p, q in itertools.product(*map(range, y.shape)):
        for c, r, s in itertools.product(range(shape.cg), range(shape.r), range(shape.s)):
            i = p * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
            j = q * shape.stride[1] + s * shape.dilation[1] - shape.padding[2]
            if 0 <= i < shape.h and 0 <= j < shape.w:
                y[n, k, p, q] += int(x[n, k // shape.kg * shape.cg + c, i, j]) * int(w[k, c, r, s])
    return y


@pytest.mark.parametrize("name", ["asymmetric_everything", "groups", "padding_beyond_filter"])
def test_the_oracle_is_exact(name: str) -> None:
    problem = Problem(SHAPES[name], dtype="int8")
    for kind in ("whole", "extremes"):
        a, b = make_inputs(problem, Recipe(kind, 1, 2))
        want = in_whole_numbers(problem.shape, a, b)
        assert (convolve(problem.shape, Pass.FORWARD, a, b) == want).all()
        index = sample_positions(problem)
        assert (sample(problem.shape, Pass.FORWARD, a, b, index)[0] == want[tuple(index)]).all()


@pytest.mark.parametrize("least", [True, False])
def test_the_longest_sum_of_the_largest_products_is_right(least: bool) -> None:
    problem = Problem(DEEPEST, dtype="int8")
    a = np.full(problem.a_shape, -128, np.int8)
    b = np.full(problem.b_shape, -128 if least else 127, np.int8)
    want = (INT8_PRODUCTS - 1) * -128 * int(b.flat[0])
    assert (convolve(problem.shape, problem.pass_, a, b) == want).all()
    names = ["direct_naive_numba"] + ["onednn_int8"] * (implementations()["onednn_int8"].unavailable() is None)
    for name in names:
        out = aligned_empty(problem.out_shape, problem.out_dtype)
        make_plan(implementations()[name], problem, CpuContext()).run(a, b, out)
        assert (out == want).all(), name
        assert not poisoned(out).any()  # poison is no sum


# ---- verification


@pytest.mark.parametrize("full_macs", [10**9, 0], ids=["whole", "sampled"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
def test_a_right_row_passes_and_has_no_error(pass_: Pass, layout: str, full_macs: int) -> None:
    problem = Problem(SMALL, pass_, "int8", layout)
    for weights in ("raw", "packed") if pass_ is not Pass.BACKWARD_WEIGHTS else ("raw",):
        verifier = Verifier(problem, full_macs=full_macs)
        plan, verdict = verifier.verify(UNCHANGED.implementation(), CpuContext, weights)
        assert plan is not None, verdict.reason
        assert (verdict.error.rel_l2, verdict.error.max_abs, verdict.error.max_ulp) == (0.0, 0.0, None)
        assert verifier.recheck(plan).ok
        a, b, out = verifier.operands()
        assert [x.dtype.name for x in (a, b, out)] == ["int8", "int8", "int32"]
        plan.run(a, b, out)


def test_an_error_after_timing_is_seen() -> None:
    problem = Problem(SMALL, dtype="int8")
    verifier = Verifier(problem)
    plan, _ = verifier.verify(UNCHANGED.implementation(), CpuContext)
    assert plan is not None
    right = plan.call

    def off_by_one(a: Any, b: Any, out: Any) -> None:
        right(a, b, out)
        out[-1, -1, -1, -1] += 1

    plan.call = off_by_one
    verdict = verifier.recheck(plan)
    assert not verdict.ok and verdict.check == "integer" and "1 of" in verdict.reason


def test_elements_that_were_not_written_are_named() -> None:
    problem = Problem(SMALL, dtype="int8")

    class Forgetful(type(UNCHANGED.implementation())):  # type: ignore[misc]
        def prepare(self, problem: Problem, context: Any, weights: Any = None) -> Any:
            right = super().prepare(problem, context, weights)

            def run(a: Any, b: Any, out: Any) -> None:
                right(a, b, out)
                poison(out[1, 2, 3, 4:5])

            return run

    plan, verdict = Verifier(problem).verify(Forgetful(), CpuContext)
    assert plan is None and verdict.check == "unwritten"
    assert "1 of 2160 elements were not written, the first is out[n=1, k=2, p=3, q=4]" in verdict.reason


def test_poison_of_integers_and_of_floats_is_known_again() -> None:
    for dtype in ("int8", "int32", "uint8", "uint16", "float32", "float64"):
        array = np.ones(6, dtype)
        assert not poisoned(array).any()
        poison(array[2:4])
        assert poisoned(array).tolist() == [False, False, True, True, False, False], dtype


# ---- the library and the command line


def operands(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    return make_inputs(problem, Recipe("whole", 5, 6))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conv2d_gives_sums_in_int32(layout: str) -> None:
    problem = Problem(SHAPES["odd_channels"], dtype="int8", layout=layout)
    x, w = operands(problem)
    want = convolve(problem.shape, Pass.FORWARD, to_logical(x, layout), to_logical(w, layout))
    y = convbench.conv2d(x, w, padding=1, layout=layout)
    assert y.dtype == np.int32 and (to_logical(y, layout) == want).all()
    out = np.empty(problem.out_shape, np.int32)
    assert convbench.conv2d(x, w, padding=1, layout=layout, algorithm="direct_naive_numba", out=out) is out
    assert (to_logical(out, layout) == want).all()
    packed = convbench.plan(x.shape, w, padding=1, layout=layout)
    assert (to_logical(packed(x), layout) == want).all()
    with pytest.raises(ProblemError, match="out: dtype must be int32, as that of sums of int8, not int8"):
        convbench.conv2d(x, w, padding=1, layout=layout, out=np.empty(problem.out_shape, np.int8))


def test_gradients_are_sums_too_and_the_vendor_has_none() -> None:
    problem = Problem(SHAPES["odd_channels"], Pass.BACKWARD_DATA, "int8")
    dy, w = operands(problem)
    dx = convbench.conv2d_backward_data(dy, w, problem.out_shape, padding=1, algorithm="direct_naive_numba")
    assert dx.dtype == np.int32 and (dx == convolve(problem.shape, problem.pass_, dy, w)).all()
    with pytest.raises(Unsupported, match="onednn_int8: pass must be fwd, not bwd_data"):
        convbench.conv2d_backward_data(dy, w, problem.out_shape, padding=1, algorithm="onednn_int8")


@needs_vnni
def test_auto_takes_the_vendor_s_row() -> None:
    assert choose(Problem(SMALL, dtype="int8")).name == "onednn_int8"
    assert choose(Problem(SMALL, Pass.BACKWARD_DATA, "int8")).name == "direct_naive_numba"


def test_a_run_verifies_and_times_what_takes_int8(tmp_path: Path) -> None:
    command = ["run", "mb1ic8ih10oc12kh3ph1", "--dtype", "int8", "--quick", "--algorithm", "direct_n*", "--output"]
    done = subprocess.run(
        [sys.executable, "-m", "convbench", *command, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    records = {r.case.implementation: r for r in read_records(tmp_path / "run" / "records.jsonl")}
    timed = records["direct_naive_numba"]
    assert (timed.status, timed.arithmetic) == ("ok", "int8-acc32") and timed.samples.ns
    assert timed.case.problem.dtype == "int8" and timed.error.max_abs == 0.0
    assert records["direct_numpy"].status == "unsupported" and "not int8" in records["direct_numpy"].reason


# ---- oneDNN


@needs_vnni
def test_onednn_converts_nchw_on_the_clock_and_nothing_of_nhwc_but_the_filter() -> None:
    notes = {}
    for layout in LAYOUTS:
        context = CpuContext()
        make_plan(implementations()["onednn_int8"], Problem(SMALL, dtype="int8", layout=layout), context)
        notes[layout] = context.notes["reorder"]
        assert not context.notes["vendor_impl"].startswith("ref")
    assert "x abcd to acdb" in notes["nchw"] and "y acdb to abcd" in notes["nchw"]
    assert notes["nhwc"].startswith("on the clock: w ") and " x " not in notes["nhwc"] and " y " not in notes["nhwc"]


@pytest.mark.skipif(_capi.load_problem() is not None, reason="oneDNN is not here")
@pytest.mark.parametrize("isa, exact", [("AVX2", False), ("AVX512_CORE", False), ("AVX2_VNNI", True)])
def test_without_vnni_onednn_s_row_is_unavailable(isa: str, exact: bool) -> None:
    if exact and not _capi.has_vnni():
        pytest.skip("no VNNI here")
    code = (
        "from convbench import catalog; rows = catalog.load().implementations;"
        "assert rows['onednn'].unavailable() is None; print(rows['onednn_int8'].unavailable())"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root, env=environment, capture_output=True, text=True
    )
    assert (done.stdout.strip() == "None") == exact
    if not exact:
        assert done.stdout.startswith("onednn_int8 needs a processor with VNNI: without it oneDNN's sums of int8 are ")
