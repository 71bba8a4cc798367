"""`python -m convbench.describe`: one JSON document on what is registered, for a parent that imports none of it.

Runs in a child process (see `probe.py`), because importing a plug-in or asking it for its limits runs its code.
Descriptor 1 carries the document alone; whatever libraries print goes to descriptor 2, where one line
announces each step that may crash or hang: `@built-in NAME`, `@plug-in NAME` (an import), `@row NAME`
(questions to a row).

Document
  implementations  name, device, family, passes, dtypes, layouts, semantics, arithmetic, requires, extra,
                   vendor, pool, error_growth, reference, summary, unavailable, source_sha, plugin,
                   distribution, version
  broken           name, origin, reason
  gpu              what the GPU is (`devices/cuda.py`), or {"why": sentence} where none can be used; null where no
                   row is for one
  problems         only with --problems: per descriptor its flops and bytes, what "auto" takes and why, what the
                   prediction rests on (calibration), the threads it is for, and per row why_not {raw, packed},
                   workspace_estimate {raw, packed} (bytes), executed_flops (by phase), predicted {raw, packed}:
                   {ns, note} (ns null: not predicted, the note says why)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convbench import catalog, environment, foresight, lifeline
from convbench.choices import choose, predictions
from convbench.descriptor import parse_descriptor
from convbench.errors import ProblemError, Unsupported
from convbench.problem import Problem
from convbench.registry import Implementation

WEIGHTS = ("raw", "packed")


def main(arguments: list[str] | None = None) -> int:
    """Prints the document. Exit code 0, or 2 for arguments that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m convbench.describe", description=__doc__)
    parser.add_argument("--skip", type=json.loads, default={}, help="JSON: plug-in or built-in -> reason")
    parser.add_argument("--mute", type=json.loads, default={}, help="JSON: row name -> why it is not asked")
    parser.add_argument("--problems", type=Path, help="file with a JSON list of problem descriptors")
    parser.add_argument("--threads", type=int, help="threads to predict times for; all allowed cores by default")
    parser.add_argument("--parent", type=int, help="process id to die with")
    parser.add_argument("--memory", type=int, help="bytes of private memory beyond which allocation fails")
    options = parser.parse_args(arguments)
    if options.parent:
        lifeline.die_with_parent(options.parent)
    if options.memory:
        lifeline.cap_memory(options.memory)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    texts = json.loads(options.problems.read_text()) if options.problems else None
    document = describe(options.skip, options.mute, texts, announce, options.threads)
    json.dump(document, output, allow_nan=False)
    output.write("\n")
    output.close()
    return 0


def announce(text: str) -> None:
    """Says on descriptor 2 what comes next, so that the parent knows whom to blame."""
    os.write(2, f"\n@{text}\n".encode())


def describe(
    skip: Mapping[str, str],
    mute: Mapping[str, str],
    problems: list[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    threads: int | None = None,
) -> dict[str, Any]:
    """The document as a dict. `mute` keeps rows from being asked anything; each gets the reason given."""
    loaded = catalog.load(skip, say)
    rows, broken = [], [asdict(b) for b in loaded.broken]
    for name, row in loaded.implementations.items():
        origin = loaded.origins[name]
        where = origin.plugin or origin.distribution
        if name in mute:
            broken.append({"name": name, "origin": where, "reason": mute[name]})
            continue
        say(f"row {name}")
        try:
            rows.append(describe_row(row, origin))
        except Exception as error:  # noqa: BLE001 - whatever a stranger's row raises becomes its reason
            reason = f"{name} raised when it was asked about itself: {type(error).__name__}: {error}"
            broken.append({"name": name, "origin": where, "reason": reason})
    document: dict[str, Any] = {"implementations": rows, "broken": broken, "gpu": None}
    if any(r["device"] == "cuda" for r in rows):
        from convbench.devices import cuda

        document["gpu"] = cuda.facts()
    if problems is not None:
        asked = {r["name"]: loaded.implementations[r["name"]] for r in rows}
        document["problems"] = [describe_problem(text, asked, say, threads) for text in problems]
    return document


def describe_row(row: Implementation, origin: catalog.Origin) -> dict[str, Any]:
    """One implementation as a dict of plain values."""
    doc = (type(row).__doc__ or "").strip().splitlines()
    return {
        "name": row.name,
        "device": str(row.device),
        "family": row.family,
        "passes": [str(p) for p in row.passes],
        "dtypes": list(row.dtypes),
        "layouts": list(row.layouts),
        "semantics": str(row.semantics),
        "arithmetic": str(row.arithmetic),
        "requires": [str(r) for r in row.requires],
        "extra": row.extra,
        "vendor": bool(row.vendor),
        "pool": str(row.pool),
        "error_growth": float(row.error_growth),
        "reference": str(row.reference),
        "summary": doc[0] if doc else "",
        "unavailable": row.unavailable(),
        "source_sha": catalog.source_sha(row),
        "plugin": origin.plugin,
        "distribution": origin.distribution,
        "version": origin.version,
    }


def describe_problem(
    text: str, rows: Mapping[str, Implementation], say: Callable[[str], None], threads: int | None = None
) -> dict[str, Any]:
    """One problem: what it costs, what "auto" takes, and every row's answer to it."""
    try:
        problem = parse_descriptor(text).problem
    except ProblemError as error:
        return {"problem": text, "error": str(error)}
    answers = {}
    for name, row in rows.items():
        say(f"row {name}")
        answers[name] = ask(row, problem)
    say("auto")
    sound = {name: rows[name] for name, answer in answers.items() if not answer["raised"]}
    expected = {weights: predictions(problem, weights, sound, threads) for weights in WEIGHTS}
    for name, answer in answers.items():
        answer["predicted"] = {w: asdict(found[name]) for w, found in expected.items() if name in found}
    return {
        "problem": text,
        "direct_flops": problem.direct_flops,
        "valid_flops": problem.valid_flops,
        "min_bytes": problem.min_bytes,
        "threads": threads or environment.allowed_cores(),
        "calibration": foresight.current().status,
        "auto": {weights: automatic_choice(problem, weights, sound, threads) for weights in WEIGHTS},
        "rows": answers,
    }


def automatic_choice(
    problem: Problem, weights: str, rows: Mapping[str, Implementation], threads: int | None = None
) -> dict[str, Any]:
    """What "auto" takes and why; name None where nothing takes the problem."""
    try:
        return asdict(choose(problem, weights, rows, threads))
    except Unsupported as refusal:
        return {"name": None, "reason": str(refusal)}


def ask(row: Implementation, problem: Problem) -> dict[str, Any]:
    """One row's answer; an exception inside it becomes its why_not."""
    why_not: dict[str, str | None]
    try:
        raised = False
        why_not = {weights: row.why_not(problem, weights) for weights in WEIGHTS}
        able = None in why_not.values()
        estimate = {w: row.estimate(problem, w) for w in WEIGHTS if why_not[w] is None} if able else None
        flops = {str(k): float(v) for k, v in row.executed_flops(problem).items()} if able else None
    except Exception as error:  # noqa: BLE001 - whatever a stranger's row raises becomes its reason
        sentence = f"{row.name} raised when it was asked about this problem: {type(error).__name__}: {error}"
        why_not, estimate, flops, raised = dict.fromkeys(WEIGHTS, sentence), None, None, True
    return {"why_not": why_not, "workspace_estimate": estimate, "executed_flops": flops, "raised": raised}


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a plug-in's exit handler must not spoil a document that is complete
