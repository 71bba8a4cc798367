"""What rows of low precision do to operands before the products, run by itself: `pack` of what prepare() gives."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms import _dot_simd_tasks as dot
from convbench.algorithms import (
    _quantised_simd,
    _quantised_simd_operands,
    _tiled_run,
)
from convbench.algorithms import _signs_simd_tasks as signs
from convbench.devices.arrays import storage
from convbench.devices.base import Plan, make_plan
from convbench.devices.cpu import CpuContext
from convbench.problem import ConvShape, Pass, Problem, Semantics
from convbench.simd.driver import Runner, Task
from convbench.verify.inputs import make_inputs, usual_recipe

SHAPES = [
    ConvShape.make(2, 36, 9, 11, 40, 3, 3, (2, 1), ((1, 0), (2, 1)), (1, 2), 2),
    ConvShape.make(1, 17, 12, 13, 21, 3, 3, padding=1),
]
ALL = catalog.load(skip={}).implementations
NARROW = [ALL[name] for name in ("direct_bf16_simd", "direct_int8_simd")]
ROWS = [row for row in ALL.values()
        if row.device == "cpu" and (row.semantics is not Semantics.LINEAR or row in NARROW)
        and row.unavailable() is None]  # fmt: skip
SIGNS = [row for row in ROWS if row.name.endswith(("popcount_simd", "amx_simd"))]
QUANTISED = [row for row in ROWS if row.name.endswith("direct_simd") and row.semantics is not Semantics.BINARY_WEIGHTS]


def planned(row: Any, problem: Problem, weights: str) -> tuple[Plan, Any, Any]:
    """A plan in one thread, and its operands."""
    a, b = make_inputs(problem, usual_recipe(problem, 0))
    return make_plan(row, problem, CpuContext(), b if weights == "packed" else None), a, b


def result_of(plan: Plan, a: Any, b: Any) -> np.ndarray:
    out = np.full(plan.problem.out_shape, 77, storage(plan.problem.out_dtype))
    plan.run(a, b, out)
    return out


def problems_of(row: Any) -> list[tuple[Problem, str]]:
    """Every pass, layout and state of the weights that a row takes."""
    found = [(Problem(shape, pass_, row.dtypes[0], layout, row.semantics), weights) for weights in ("raw", "packed")
             for shape in SHAPES for pass_ in row.passes for layout in row.layouts]  # fmt: skip
    return [(problem, weights) for problem, weights in found if row.why_not(problem, weights) is None]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_run_relies_on_nothing_that_pack_leaves(row: Any) -> None:
    for problem, weights in problems_of(row):
        plan, a, b = planned(row, problem, weights)
        want = result_of(plan, a, b)
        if plan.pack is None:
            assert row.semantics is Semantics.BINARY_WEIGHTS and weights == "packed"  # x stays as it is
            continue
        others = [other[::-1].copy() for other in (a, b)]
        if problem.dtype == "float32":
            others = [3 * other for other in others]  # other scales too
        kept = [other.copy() for other in others]
        plan.pack(*others)
        assert all(np.array_equal(*pair) for pair in zip(others, kept, strict=True))
        np.testing.assert_array_equal(result_of(plan, a, b), want)


class Counting(Runner):
    """Writes down which tasks run, and how many."""

    log: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, work: Task, parameters: np.ndarray, threads: int) -> None:
        super().__init__(work, parameters, threads)
        self._name = work.function.__name__

    def __call__(self, count: int) -> None:
        self.log.append((self._name, count))
        super().__call__(count)


def logged(action: Callable[[], Any]) -> list[tuple[str, int]]:
    Counting.log.clear()
    action()
    return list(Counting.log)


@pytest.mark.parametrize("row", QUANTISED, ids=lambda row: row.name)
def test_pack_of_quantised_rows_is_all_but_the_products(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_quantised_simd, _quantised_simd_operands):
        monkeypatch.setattr(module, "Runner", Counting)
    for problem, weights in problems_of(row):
        plan, a, b = planned(row, problem, weights)
        whole = logged(lambda: result_of(plan, a, b))  # noqa: B023 - called at once
        assert logged(lambda: plan.pack(a, b)) == whole[:-1]  # noqa: B023
        assert whole[-1][0] == ("sum_task" if problem.pass_ is Pass.BACKWARD_WEIGHTS else "product_task")


#: Kernels that tasks of tiles call: task, its table, name, how many arguments it takes.
KERNELS = [
    (signs.tile_task, signs.NAMES, "signs", 8), (signs.tile_task, signs.NAMES, "product", 11),
    (dot.tile_task, dot.NAMES, "fill", 7), (dot.tile_task, dot.NAMES, "product", 21),
]  # fmt: skip


class CountingKernels(Runner):
    """Its tasks call kernels through functions that count the calls."""

    calls: ClassVar[Counter[str]] = Counter()
    wrapped: ClassVar[dict[int, Any]] = {}

    def __init__(self, work: Task, parameters: np.ndarray, threads: int) -> None:
        super().__init__(work, parameters, threads)
        for tiles, names, name, count in KERNELS:
            if work is tiles:
                address = int(parameters[names.index(name)])
                if address not in self.wrapped:  # a copied table may hold what counts already
                    parameters[names.index(name)] = self._counting(name, count, address)

    def _counting(self, name: str, count: int, address: int) -> int:
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * count)
        kernel = kind(address)

        def counted(*values: int) -> None:
            self.calls[name] += 1
            kernel(*values)

        wrapped = kind(counted)
        place = int(ctypes.cast(wrapped, ctypes.c_void_p).value or 0)
        self.wrapped[place] = wrapped
        return place


@pytest.mark.parametrize("row", [*SIGNS, *NARROW], ids=lambda row: row.name)
def test_pack_fills_every_strip_and_multiplies_nothing(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiled_run, "Runner", CountingKernels)
    fill = "fill" if row in NARROW else "signs"
    for problem, weights in problems_of(row):
        plan, a, b = planned(row, problem, weights)
        counts = []
        for action in (lambda: result_of(plan, a, b), lambda: plan.pack(a, b)):  # noqa: B023 - called at once
            CountingKernels.calls.clear()
            action()
            counts.append(dict(CountingKernels.calls))
        whole, packing = counts
        assert whole["product"] > 0 and whole[fill] > 0
        assert packing == {fill: whole[fill]}


@pytest.mark.parametrize("row", SIGNS, ids=lambda row: row.name)
def test_pack_in_two_threads(row: Any) -> None:
    problem = Problem(SHAPES[0], Pass.FORWARD, "float32", "nhwc", row.semantics)
    a, b = make_inputs(problem, usual_recipe(problem, 0))
    want = result_of(make_plan(row, problem, CpuContext(1)), a, b)
    plan = make_plan(row, problem, CpuContext(2))
    assert plan.pack is not None
    plan.pack(3 * a, 3 * b)
    np.testing.assert_array_equal(result_of(plan, a, b), want)


def test_rows_of_plain_floats_have_none() -> None:
    problem = Problem(SHAPES[1], Pass.FORWARD, "float32", "nhwc")
    for weights in ("raw", "packed"):
        assert planned(ALL["im2col_numpy"], problem, weights)[0].pack is None


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_what_is_read_in_place_is_not_packed(layout: str) -> None:
    problem = Problem(ConvShape.make(1, 64, 8, 8, 32, 1, 1), Pass.FORWARD, "bfloat16", layout)
    assert planned(ALL["direct_bf16_simd"], problem, "raw")[0].pack is not None
    assert (planned(ALL["direct_bf16_simd"], problem, "packed")[0].pack is None) == (layout == "nhwc")
