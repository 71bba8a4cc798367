"""One test body for every implementation, pass, dtype and layout: all shapes, raw and packed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest

from convbench.problem import LAYOUTS, Pass
from convbench.registry import Implementation
from convbench.testing import conformance

IMPLEMENTATIONS, BROKEN = conformance.built_in()
CPU = {name: row for name, row in IMPLEMENTATIONS.items() if row.device == "cpu"}

#: Families that take every shape there is (whole-image FFT: "fft" without "tiled").
TAKE_EVERYTHING = ("direct", "im2col", "kn2row", "strassen")


def takes_everything(name: str) -> bool:
    if name == "strassen_simd":
        return False
    return name.split("_")[0] in TAKE_EVERYTHING or (name.startswith("fft_") and "tiled" not in name)


def may_refuse(implementation: Implementation, reason: str) -> bool:
    """Sentences are accepted for what the mathematics or a vendor refuses only."""
    if implementation.vendor:
        return True
    name, text = implementation.name, reason.lower()
    if name.startswith("winograd"):
        return any(word in text for word in ("stride", "dilation", "filter"))
    if name.startswith(("pointwise", "strassen")):
        return reason.startswith(f"{name.split('_')[0]}: filter must be 1x1")
    if name.startswith("depthwise"):
        return "groups" in text
    return name.startswith("fft_tiled") and any(word in text for word in ("stride", "dilation", "tile"))


def test_every_built_in_module_loads() -> None:
    assert BROKEN == {}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_declared_type_has_cases(name: str) -> None:
    """A row in half precision must not conform because nothing was asked of it."""
    row = IMPLEMENTATIONS[name]
    assert {case.problem.dtype for case in conformance.cases(row)} == set(row.dtypes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, row in CPU.items() for dtype in row.dtypes])
def test_keeps_its_promise(
    name: str, pass_: Pass, dtype: str, layout: str, record_property: Callable[[str, object], None]
) -> None:
    implementation = CPU[name]
    statuses: Counter[str] = Counter()
    sentences, wrong = set(), []
    for case in conformance.cases(implementation):
        p = case.problem
        if (p.pass_, p.dtype, p.layout) != (pass_, dtype, layout):
            continue
        outcome = conformance.check(implementation, p, case.weights)
        statuses[outcome.status] += 1
        if outcome.status == "unsupported":
            sentences.add(outcome.reason)
            if takes_everything(name) or not may_refuse(implementation, outcome.reason):
                wrong.append(f"{case}: refused with {outcome.reason!r}")
        elif outcome.status == "wrong":
            wrong.append(f"{case}: {outcome.reason}")
    record_property("conformance_statuses", dict(statuses))
    record_property("conformance_sentences", sorted(sentences))
    assert not wrong, f"{len(wrong)} of {sum(statuses.values())} cases:\n" + "\n".join(wrong)
    assert bool(statuses) == (pass_ in implementation.passes and layout in implementation.layouts)


def test_integer_inputs_are_judged_on_every_shape() -> None:
    """No implementation has so large an error bound that integer inputs say nothing about it."""
    from convbench.verify.inputs import integer_recipe

    without = [
        f"{name} {case}"
        for name, implementation in CPU.items()
        for case in conformance.cases(implementation)
        if implementation.why_not(case.problem, case.weights) is None
        and integer_recipe(implementation, case.problem, 0) is None
    ]
    assert without == []


def test_case_names_are_unique_and_properties_serialise() -> None:
    for name, implementation in CPU.items():
        texts = [str(case) for case in conformance.cases(implementation)]
        assert len(texts) == len(set(texts)), name
    assert json.loads(json.dumps(list(conformance.SHAPES))) == list(conformance.SHAPES)
