"""The checks by name, and what becomes of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field

from convbench.verify.compare import ErrorFigures

#: name -> what it sees
CHECKS = {
    "unwritten": "an element of the poisoned result that was not written, or is not finite",
    "twice": "a second run on the same inputs that gives something else or something wrong",
    "inputs_unchanged": "a run that writes to its inputs",
    "guard": "a write past the ends of an operand or the result",
    "integer": "integer inputs whose result is not exactly the integer result",
    "normal": "normal inputs whose result is beyond the float bound; numbers from all of int8: not exact",
    "projection": "large problems: any element, through its sum over channels",
    "sample": "large problems: sampled elements, one by one",
    "other_inputs": "a plan that works for its first inputs only",
    "other_weights": "packed weights of one plan that leak into another",
    "workspace": "a plan that needs its workspace to hold something it did not put there",
    "settled": "a run that returns before it has finished",
}
ALL_CHECKS: frozenset[str] = frozenset(CHECKS)


@dataclass
class Verdict:
    """What became of a verification. When not ok: the check that failed and a sentence on what was seen where."""

    ok: bool
    reason: str = ""
    check: str = ""
    error: ErrorFigures = field(default_factory=ErrorFigures)
    first_run_ns: int = 0  # duration of the fastest run seen; for budgeting, no measurement
    peak_bytes: int = 0  # peak of what one run allocated through Python's allocators
    notes: list[str] = field(default_factory=list)  # what was not judged, and why
