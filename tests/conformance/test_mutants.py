"""Verification is alive: correct convolutions with one change each are rejected on the path that timing uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from convbench.devices.cpu import CpuContext
from convbench.problem import ConvShape, Pass, Problem
from convbench.testing import conformance
from convbench.testing.mutants import (
    HIDDEN_TEMPORARY,
    INTEGER_MUTANTS,
    LONG,
    MUTANTS,
    SHARED_PACKING,
    SMALL,
    TINY,
    UNCHANGED,
    WIDE,
    Mutant,
)
from convbench.verify import ALL_CHECKS, Verdict, Verifier
from convbench.verify.reference import FULL_MACS

EVERY = [(mutant, pass_) for mutant in (*MUTANTS, SHARED_PACKING) for pass_ in mutant.passes]
IDS = [f"{mutant.name}-{pass_}" for mutant, pass_ in EVERY]
OF_INT8 = [
    (mutant, pass_)
    for mutant in (*MUTANTS, SHARED_PACKING, *INTEGER_MUTANTS)
    for pass_ in mutant.passes
    if "int8" in mutant.dtypes
]
BY_NAME = {mutant.name: mutant for mutant in (*MUTANTS, SHARED_PACKING)}


def judge(
    mutant: Mutant,
    pass_: Pass,
    shape: ConvShape,
    full_macs: int = FULL_MACS,
    checks: frozenset[str] = ALL_CHECKS,
    layout: str = "nchw",
    dtype: str = "float32",
) -> Verdict:
    """limits, then the verifier: what stands between an implementation and a time."""
    implementation, problem = mutant.implementation(), Problem(shape, pass_, dtype, layout)
    weights = "packed" if mutant is SHARED_PACKING else "raw"
    assert implementation.why_not(problem, weights) is None
    verifier = Verifier(problem, checks=checks, full_macs=full_macs)
    plan, verdict = verifier.verify(implementation, lambda: CpuContext(1), weights)
    assert (plan is not None) == verdict.ok
    return verdict


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
def test_the_unchanged_convolution_is_accepted(pass_: Pass, dtype: str, layout: str) -> None:
    for shape in (TINY, SMALL, *(m.hides_on for m in MUTANTS), *conformance.SHAPES.values()):
        for full_macs in (FULL_MACS, 0) if dtype == "float32" or layout == "nhwc" else (FULL_MACS,):
            verdict = judge(UNCHANGED, pass_, shape, full_macs, layout=layout, dtype=dtype)
            assert verdict.ok, f"{shape}: {verdict.reason}"


@pytest.mark.parametrize("pass_", list(Pass), ids=str)
def test_the_unchanged_convolution_is_accepted_at_the_longest_sum(pass_: Pass) -> None:
    verdict = judge(UNCHANGED, pass_, LONG[pass_], 0)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize(("mutant", "pass_"), EVERY, ids=IDS)
def test_every_mutant_is_right_somewhere_and_rejected_elsewhere(
    mutant: Mutant, pass_: Pass, record_property: Callable[[str, object], None]
) -> None:
    hidden = judge(mutant, pass_, mutant.hides_on)
    assert hidden.ok, f"{mutant.name} should pass {mutant.hides_on}: {hidden.reason}"
    found = []
    for shape, full_macs in ((mutant.small(pass_), FULL_MACS), (mutant.small(pass_), 0), (mutant.long(pass_), 0)):
        verdict = judge(mutant, pass_, shape, full_macs)
        assert not verdict.ok, f"{mutant.name} ({mutant.change}) passed on {shape}"
        assert verdict.check in ALL_CHECKS
        assert verdict.reason.startswith(verdict.check)
        found.append(verdict.check)
    record_property("mutant_caught", (mutant.name, str(pass_), " / ".join(found)))


@pytest.mark.parametrize("layout", ["nhwc"])
@pytest.mark.parametrize(("mutant", "pass_"), EVERY, ids=IDS)
def test_every_mutant_is_rejected_in_the_other_layout_and_dtype(mutant: Mutant, pass_: Pass, layout: str) -> None:
    for dtype in ("float32", "float64"):
        assert not judge(mutant, pass_, mutant.small(pass_), layout=layout, dtype=dtype).ok, dtype


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
def test_the_unchanged_convolution_is_accepted_in_int8(pass_: Pass, layout: str) -> None:
    for shape in (TINY, SMALL, *conformance.SHAPES.values()):
        for full_macs in (FULL_MACS, 0):
            verdict = judge(UNCHANGED, pass_, shape, full_macs, layout=layout, dtype="int8")
            assert verdict.ok, f"{shape}: {verdict.reason}"


@pytest.mark.parametrize(("mutant", "pass_"), OF_INT8, ids=[f"{mutant.name}-{pass_}" for mutant, pass_ in OF_INT8])
def test_every_mutant_of_int8_is_right_somewhere_and_rejected_elsewhere(mutant: Mutant, pass_: Pass) -> None:
    hidden = judge(mutant, pass_, mutant.hides_on, dtype="int8")
    assert hidden.ok, f"{mutant.name} should pass {mutant.hides_on}: {hidden.reason}"
    for layout, full_macs in (("nchw", FULL_MACS), ("nhwc", 0)):
        verdict = judge(mutant, pass_, mutant.small(pass_), full_macs, layout=layout, dtype="int8")
        assert not verdict.ok, f"{mutant.name} ({mutant.change}) passed"


#: check -> (mutant, shape or None for its small one, full_macs): rejected with every check, accepted without this.
ESCAPES: dict[str, tuple[str, str, int]] = {
    "unwritten": ("skips_padding_only", "small", FULL_MACS),
    "twice": ("damages_cached_filter", "small", FULL_MACS),
    "inputs_unchanged": ("eats_its_input", "small", FULL_MACS),
    "guard": ("writes_past_out", "small", FULL_MACS),
    "integer": ("saturates", "small", FULL_MACS),
    "normal": ("half_precision", "long", 0),
    "projection": ("one_wrong_element", "wide", 0),
    "sample": ("short_mantissa", "small", 0),
    "other_inputs": ("remembers_first_inputs", "small", FULL_MACS),
    "other_weights": ("shared_packing", "small", FULL_MACS),
    "workspace": ("trusts_workspace", "small", FULL_MACS),
    "settled": ("returns_early", "small", FULL_MACS),
}


def test_every_check_has_a_mutant_of_its_own() -> None:
    assert set(ESCAPES) == ALL_CHECKS


@pytest.mark.parametrize("check", sorted(ESCAPES))
def test_without_each_check_a_mutant_escapes(check: str) -> None:
    name, where, full_macs = ESCAPES[check]
    mutant = BY_NAME[name]
    pass_ = Pass.BACKWARD_WEIGHTS if where == "long" else Pass.FORWARD
    shape = {"small": mutant.small(pass_), "long": mutant.long(pass_), "wide": WIDE}[where]
    assert not judge(mutant, pass_, shape, full_macs).ok
    escaped = judge(mutant, pass_, shape, full_macs, ALL_CHECKS - {check})
    assert escaped.ok, f"still caught without {check}: {escaped.reason}"


def test_a_hidden_temporary_is_found_by_the_memory_it_takes() -> None:
    for pass_ in Pass:
        problem = Problem(SMALL, pass_)
        outcome = conformance.check(HIDDEN_TEMPORARY.implementation(), problem)
        assert outcome.status == "wrong"
        assert outcome.reason.startswith("memory")
        assert conformance.check(UNCHANGED.implementation(), problem).status == "ok"
        assert conformance.check(HIDDEN_TEMPORARY.implementation(), Problem(TINY, pass_)).status == "ok"


def test_conformance_reports_what_mutants_do() -> None:
    mutant = BY_NAME["leaks_a_bias"].implementation()
    outcome = conformance.check(mutant, Problem(SMALL))
    assert outcome.status == "wrong"
    assert "expected" in outcome.reason
    assert conformance.check(mutant, Problem(SMALL, dtype="float16")).status == "unsupported"
