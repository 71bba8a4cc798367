"""One row, one problem, on the emulated GPU, judged by the verifier that timing goes through: for the rows' tests."""

from __future__ import annotations

from convbench import registry
from convbench.cuda.gpu import H200, Gpu
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.registry import Implementation
from convbench.verify import Verifier
from tests.cuda_on_cpu.emulated import EmulatedContext

#: Orders of threads and blocks: ascending, descending, two random ones.
ORDERS = (0, 1, 2, 3)


def row_of(name: str) -> Implementation:
    """A registered row whose module the test has imported."""
    return registry.implementations()[name]


def accept(
    row: Implementation, problem: Problem, weights: str = "raw", order: int = 0, gpu: Gpu = H200,
    sanitizer: str = "plain",
) -> None:  # fmt: skip
    """Asserts that the row takes the problem and that its result is right."""
    assert row.why_not(problem, weights) is None

    def context() -> EmulatedContext:
        return EmulatedContext(gpu=gpu, order=order, sanitizer=sanitizer)

    plan, verdict = Verifier(problem).verify(row, context, weights)
    assert plan is not None, f"{row.name}, {problem}, {weights}, order {order}: {verdict.reason}"


def accept_everywhere(row: Implementation, shape: ConvShape, **how: Gpu) -> int:
    """Three passes, both layouts; raw and packed weights; the orders take turns. Gives the number of cases."""
    cases = 0
    for pass_ in Pass:
        for layout in LAYOUTS:
            problem = Problem(shape, pass_, "float32", layout)
            for weights in ("raw",) if pass_ is Pass.BACKWARD_WEIGHTS else ("raw", "packed"):
                if pass_ in row.passes and layout in row.layouts:
                    accept(row, problem, weights, ORDERS[cases % len(ORDERS)], **how)
                    cases += 1
    return cases
