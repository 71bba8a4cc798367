"""Half precision inside must not pass for single precision, nor bfloat16 for float16, in any algorithm."""

from __future__ import annotations

import numpy as np
import pytest

from convbench import catalog
from convbench.devices.arrays import as_real, narrowed
from convbench.devices.cpu import CpuContext
from convbench.problem import ConvShape, Pass, Problem, Semantics
from convbench.verify import Verifier

ROWS = catalog.load().implementations
#: Low precision has its own oracle and its own mutants.
LINEAR = [name for name, row in ROWS.items() if row.semantics is Semantics.LINEAR]
#: Rows that sum float16 in float32: where sums are float16 too, their rounding hides that of the operands.
SINGLE_SUMS = [
    name for name, row in ROWS.items()
    if "float16" in row.dtypes and row.device == "cpu" and row.arithmetic != "float16"
]  # fmt: skip
LONG = {
    (Pass.FORWARD, 3): ConvShape.make(n=1, c=2048, h=7, w=9, k=3, r=3, s=3, padding=1),
    (Pass.FORWARD, 5): ConvShape.make(n=1, c=1024, h=7, w=9, k=3, r=5, s=5, padding=2),
    (Pass.BACKWARD_DATA, 3): ConvShape.make(n=1, c=3, h=7, w=9, k=2048, r=3, s=3, padding=1),
    (Pass.BACKWARD_DATA, 5): ConvShape.make(n=1, c=3, h=7, w=9, k=1024, r=5, s=5, padding=2),
    (Pass.BACKWARD_WEIGHTS, 3): ConvShape.make(n=1, c=3, h=224, w=224, k=2, r=3, s=3, padding=1),
    (Pass.BACKWARD_WEIGHTS, 5): ConvShape.make(n=1, c=3, h=224, w=224, k=2, r=5, s=5, padding=2),
}


def halved(row):
    """The same implementation, given operands that went through float16."""

    class Halved(type(row)):
        def prepare(self, problem, context, weights=None):
            run = row.prepare(problem, context)
            return lambda a, b, out: run(*(x.astype(np.float16).astype(x.dtype) for x in (a, b)), out)

    return Halved()


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", LINEAR)
def test_half_precision_is_rejected_at_long_sums(name, pass_, taps):
    row = ROWS[name]
    problem = Problem(LONG[pass_, taps], pass_)
    if row.unavailable() or row.why_not(problem):
        bound = name.startswith(("winograd", "depthwise", "pointwise", "strassen_simd")) or "float32" not in row.dtypes
        assert row.unavailable() or bound, "bound to its filter, its groups or another dtype"
        return
    plan, verdict = Verifier(problem).verify(row, CpuContext)
    assert plan is not None, verdict.reason
    plan, verdict = Verifier(problem).verify(halved(row), CpuContext)
    assert plan is None, "float16 operands passed for float32"


@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", SINGLE_SUMS)
def test_bfloat16_inside_float16_is_rejected(name, pass_):
    row = ROWS[name]

    class Coarse(type(row)):
        def prepare(self, problem, context, weights=None):
            run = row.prepare(problem, context)
            return lambda a, b, out: run(*(as_real(narrowed(x, "bfloat16")).astype(x.dtype) for x in (a, b)), out)

    shape = ConvShape.make(n=2, c=32, h=9, w=8, k=24, r=3, s=3, padding=1)
    problem = Problem(shape, pass_, "float16")
    if row.unavailable() or row.why_not(problem):
        assert row.unavailable() or pass_ not in row.passes or row.vendor, "bound to its passes"
        return
    plan, verdict = Verifier(problem).verify(row, CpuContext)
    assert plan is not None, verdict.reason
    plan, verdict = Verifier(problem).verify(Coarse(), CpuContext)
    assert plan is None, "operands in bfloat16 passed for float16"
