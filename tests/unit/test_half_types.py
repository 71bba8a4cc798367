"""float16 and bfloat16 through verification: a right row passes, one that multiplies in less is wrong."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convbench.devices.arrays import as_real, narrowed, poison, storage
from convbench.devices.cpu import CpuContext
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import Context, Implementation, Run
from convbench.verify import Verifier
from convbench.verify.inputs import to_logical
from convbench.verify.oracle import convolve

SHAPE = ConvShape.make(2, 16, 9, 8, 12, 3, 3, padding=1)


def row(arithmetic: str, spoil: Any = lambda array: array) -> Implementation:
    """Sums in float64, rounds the result once: what an "x-acc32" row does, a little better."""

    class Half(Implementation):
        name = "half_test_numpy"
        dtypes = (arithmetic.split("-")[0],)
        error_growth = 2.0

        def workspace_estimate(self, problem: Problem) -> int:
            return 0

        def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
            def run(a: Any, b: Any, out: Any) -> None:
                operands = (spoil(as_real(to_logical(x, problem.layout)).astype(np.float32)) for x in (a, b))
                to_logical(out, problem.layout)[...] = narrowed(
                    convolve(problem.shape, problem.pass_, *operands), problem.dtype
                )

            return run

    Half.arithmetic = arithmetic
    return Half()


@pytest.mark.parametrize("full_macs", [10**9, 0], ids=["whole", "sampled"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_right_row_passes(dtype: str, pass_: Pass, layout: str, full_macs: int) -> None:
    problem = Problem(SHAPE, pass_, dtype, layout)
    plan, verdict = Verifier(problem, full_macs=full_macs).verify(row(f"{dtype}-acc32"), CpuContext)
    assert plan is not None and verdict.ok, verdict.reason
    assert 0 < (verdict.error.bound_ratio or 0) < 1


def test_bfloat16_inside_a_float16_row_is_wrong() -> None:
    coarse = row("float16-acc32", lambda array: as_real(narrowed(array, "bfloat16")))
    plan, verdict = Verifier(Problem(SHAPE, dtype="float16")).verify(coarse, CpuContext)
    assert plan is None and verdict.check in ("integer", "normal")


def test_an_unwritten_bfloat16_element_is_seen() -> None:
    problem = Problem(SHAPE, dtype="bfloat16")
    partial = row("bfloat16-acc32")
    prepare = partial.prepare

    def forgetful(problem: Problem, context: Context, weights: Any = None) -> Run:
        run = prepare(problem, context, weights)

        def forget(a: Any, b: Any, out: Any) -> None:
            run(a, b, out)
            poison(out[-1, -1, -1, -1:])

        return forget

    partial.prepare = forgetful  # type: ignore[method-assign]
    plan, verdict = Verifier(problem).verify(partial, CpuContext)
    assert plan is None and verdict.check == "unwritten"


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * np.float32(1e3)
    values[:3] = [1.00390625, 1.01171875, -0.0]  # halfway, to even: down, up
    bits = narrowed(values, "bfloat16")
    np.testing.assert_array_equal(bits, values.astype(ml_dtypes.bfloat16).view(np.uint16))
    np.testing.assert_array_equal(as_real(bits), values.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert storage("bfloat16") == np.uint16 and storage("float16") == np.float16
