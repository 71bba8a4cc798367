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
    emulated: dict[str, Counter[str]] = {}
    refusals: set[str] = set()
    bugs: dict[str, dict[str, str]] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in getattr(report, "user_properties", ()):
            if name == "conformance_statuses":
                statuses.update(value)
            elif name == "conformance_sentences":
                sentences.update(value)
            elif name == "mutant_caught":
                mutant, pass_, checks = value
                caught.setdefault(mutant, {})[pass_] = checks
            elif name == "emulated_statuses":
                emulated.setdefault(value[0], Counter()).update(value[1])
            elif name == "emulated_sentences":
                refusals.update(value)
            elif name == "emulated_bug":
                bugs[value[0]] = value[1]
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
    if emulated:
        terminalreporter.section("CUDA on the CPU: row x pass x dtype x layout x shape x weights")
        for row, counts in sorted(emulated.items()):
            terminalreporter.line(f"  {row:32}" + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
        total = sum(emulated.values(), Counter())
        terminalreporter.line(f"  {'all':32}" + ", ".join(f"{n} {status}" for status, n in sorted(total.items())))
        for sentence in sorted(refusals):
            terminalreporter.line(f"  {sentence}")
    if bugs:
        terminalreporter.section("CUDA on the CPU: what each planted bug gives, by sanitizer and order of threads")
        for bug, said in sorted(bugs.items()):
            terminalreporter.line(f"  {bug}")
            for variant, outcome in said.items():
                terminalreporter.line(f"    {variant:10} {outcome}")
