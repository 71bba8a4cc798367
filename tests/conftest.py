"""For all tests: one thread per library, and what the conformance suite covered at the end of the run.

One thread: results then depend on nothing but the code, and tests can share the cores.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Cases by status, every sentence once, which check caught which mutant; from the reports, so workers add up."""
    statuses: Counter[str] = Counter()
    sentences: set[str] = set()
    caught: dict[str, dict[str, str]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in getattr(report, "user_properties", ()):
            if name == "conformance_statuses":
                statuses.update(value)
            elif name == "conformance_sentences":
                sentences.update(value)
            elif name == "mutant_caught":
                mutant, pass_, checks = value
                caught.setdefault(mutant, {})[pass_] = checks
    if statuses:
        counted = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        terminalreporter.section("conformance: implementation x pass x dtype x layout x shape")
        terminalreporter.line(f"{sum(statuses.values())} cases: {counted}")
        for sentence in sorted(sentences):
            terminalreporter.line(f"  {sentence}")
    if caught:
        terminalreporter.section("mutants: the check that caught each, at a small shape / sampled / at the longest sum")
        for mutant, row in sorted(caught.items()):
            terminalreporter.line(f"  {mutant:24}" + "  ".join(f"{p}: {c}" for p, c in row.items()))
