"""One emulated run on integers against the oracle, to the last bit: quicker than all of verification."""

from __future__ import annotations

from convbench.devices.arrays import poison, storage, widened
from convbench.devices.cpu import aligned_empty
from convbench.problem import Problem
from convbench.registry import Implementation
from convbench.verify import compare
from convbench.verify.inputs import integer_recipe, make_inputs, to_logical
from convbench.verify.oracle import convolve
from tests.cuda_on_cpu.emulated import EmulatedContext


def require_exact(row: Implementation, problem: Problem, order: int = 0, sanitizer: str = "plain") -> None:
    """Raises CheckFailed with the worst element. For rows that are exact on integers."""
    recipe = integer_recipe(row, problem, seed=7)
    assert row.exact_on_integers and recipe is not None
    a, b = make_inputs(problem, recipe)
    out = aligned_empty(problem.out_shape, storage(problem.out_dtype))
    poison(out)
    row.prepare(problem, EmulatedContext(order=order, sanitizer=sanitizer))(a, b, out)
    want = convolve(problem.shape, problem.pass_, *(widened(to_logical(x, problem.layout)) for x in (a, b)))
    compare.require_close("integer", widened(to_logical(out, problem.layout)), want, 0.0, problem)
