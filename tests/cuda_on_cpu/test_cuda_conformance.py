"""Every row of the CUDA tier, emulated, against the oracle: shapes x passes x dtypes x layouts, raw and packed weights.

Ascending order on every shape; descending and two random orders, and both sanitizers, on a few that the row takes. A
case that a row refuses counts as unsupported, and its sentence is shown at the end of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from convbench.algorithms._cuda import CudaImplementation
from convbench.cuda.gpu import H200
from convbench.devices.arrays import poison, storage
from convbench.devices.base import make_plan
from convbench.problem import ConvShape, Pass, Problem
from convbench.testing import conformance
from convbench.verify.inputs import usual_recipe
from convbench.verify.reference import inputs_of
from tests.cuda_checks import broken_promise
from tests.cuda_on_cpu.emulated import EmulatedContext

ROWS = {
    name: row
    for name, row in conformance.built_in()[0].items()
    if isinstance(row, CudaImplementation) and not row.vendor
}
GPU = H200
make = ConvShape.make
#: Channels by eights and sixteens, which vector loads and tensor cores ask for; more of everything than one tile.
ALIGNED = {
    "channels_32_48": make(2, 32, 9, 10, 48, 3, 3, padding=1),
    "channels_64_72_pointwise": make(1, 64, 9, 8, 72, 1, 1),
    "channels_16_40_stride_2": make(1, 16, 12, 11, 40, 3, 3, stride=2, padding=1),
    "channels_16_136": make(1, 16, 12, 13, 136, 3, 3, padding=1),
    "channels_32_32_groups_2": make(1, 32, 7, 9, 32, 3, 3, padding=1, groups=2),
    "channels_32_16_asymmetric": make(1, 32, 8, 9, 16, 5, 3, (1, 2), ((2, 1), (0, 2)), (1, 2)),
}
SHAPES = conformance.SHAPES | ALIGNED
PACKED = (*conformance.PACKED_SHAPES, "channels_32_48", "channels_16_136")
#: In this order: the first ones that a row takes are run in other orders, and under sanitizers.
TELLING = ("asymmetric_everything", "channels_16_136", "odd_channels", "depthwise", "stride_2x1", "channels_32_48",
           "groups", "depthwise_multiplier", "pointwise", *SHAPES)  # fmt: skip
OTHER_ORDERS, MOST_TELLING, MOST_SANITIZED = (1, 2, 3), 3, 2

COMBINATIONS = [
    pytest.param(name, pass_, dtype, layout, id=f"{name}-{pass_}-{dtype}-{layout}")
    for name, row in ROWS.items()
    for pass_ in row.passes
    for dtype in row.dtypes
    for layout in row.layouts
]


def problems(row: CudaImplementation, pass_: Pass, dtype: str, layout: str) -> dict[str, Problem]:
    """By shape, refused ones too."""
    return {name: Problem(shape, pass_, dtype, layout, row.semantics) for name, shape in SHAPES.items()}


def weights_of(problem: Problem, name: str) -> tuple[str, ...]:
    return ("raw", "packed") if name in PACKED and problem.pass_ is not Pass.BACKWARD_WEIGHTS else ("raw",)


def telling(row: CudaImplementation, of: dict[str, Problem], most: int) -> Iterator[tuple[str, Problem]]:
    names = [name for name in dict.fromkeys(TELLING) if row.why_not(of[name]) is None]
    return ((name, of[name]) for name in names[:most])


def finding(row: CudaImplementation, problem: Problem, weights: str, order: int) -> str | None:
    """What is wrong, or None."""
    return broken_promise(row, problem, weights, lambda: EmulatedContext(gpu=GPU, order=order))


def test_there_are_rows() -> None:
    assert ROWS


@pytest.mark.parametrize(("name", "pass_", "dtype", "layout"), COMBINATIONS)
def test_is_right_in_ascending_order(
    name: str, pass_: Pass, dtype: str, layout: str, record_property: Callable[[str, object], None]
) -> None:
    row = ROWS[name]
    statuses: Counter[str] = Counter()
    sentences, wrong = set(), []
    for shape, problem in problems(row, pass_, dtype, layout).items():
        for weights in weights_of(problem, shape):
            sentence = row.why_not(problem, weights)
            if sentence:
                sentences.add(sentence)
                statuses["unsupported"] += 1
                continue
            found = finding(row, problem, weights, 0)
            statuses["wrong" if found else "ok"] += 1
            if found:
                wrong.append(f"{shape} {weights}: {found}")
    record_property("emulated_statuses", (name, dict(statuses)))
    record_property("emulated_sentences", sorted(sentences))
    assert not wrong, f"{len(wrong)} of {sum(statuses.values())} cases:\n" + "\n".join(wrong)
    assert statuses["ok"], "the row takes none of the shapes"


@pytest.mark.parametrize(("name", "pass_", "dtype", "layout"), COMBINATIONS)
def test_is_right_in_other_orders(
    name: str, pass_: Pass, dtype: str, layout: str, record_property: Callable[[str, object], None]
) -> None:
    row = ROWS[name]
    wrong, count = [], 0
    for shape, problem in telling(row, problems(row, pass_, dtype, layout), MOST_TELLING):
        for order in OTHER_ORDERS:
            count += 1
            found = finding(row, problem, "raw", order)
            if found:
                wrong.append(f"{shape}, order {order}: {found}")
    record_property("emulated_statuses", (name, {"ok in another order": count - len(wrong)}))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize(("name", "pass_", "dtype", "layout"), COMBINATIONS)
def test_sanitizers_find_nothing(
    name: str, pass_: Pass, dtype: str, layout: str, sanitizer: str, record_property: Callable[[str, object], None]
) -> None:
    row = ROWS[name]
    chosen = list(telling(row, problems(row, pass_, dtype, layout), MOST_SANITIZED))
    for _, problem in chosen:
        a, b = inputs_of(problem, usual_recipe(problem, 0))
        results = []
        for variant in ("plain", sanitizer):
            out = np.empty(problem.out_shape, storage(problem.out_dtype))
            poison(out)
            make_plan(row, problem, EmulatedContext(gpu=GPU, sanitizer=variant)).run(a, b, out)
            results.append(out)
        assert results[0].tobytes() == results[1].tobytes()
    record_property("emulated_statuses", (name, {f"ok under the {sanitizer} sanitizer": len(chosen)}))
