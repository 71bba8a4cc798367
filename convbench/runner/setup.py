"""From a suite to a plan and a run directory."""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convbench.environment import allowed_cores, build_id
from convbench.errors import OutputError, UnknownAlgorithm, UsageError
from convbench.runner.plan import RunPlan
from convbench.suite import Suite, expand, select

GPU_FALLBACK = ("im2col_cuda",)  # a baseline on a GPU without the vendor's convolutions


def make_plan_for(suite: Suite, listing: dict[str, Any]) -> RunPlan:
    """The cases of a suite on this machine: rows of the suite's device. `listing` is what probe() gave back.

    Baselines that the suite's globs leave out are added, so that ratios have something to stand against.
    """
    described = {d["name"]: d for d in listing["implementations"] if d["device"] == suite.device}
    elsewhere = {d["name"] for d in listing["implementations"]} - set(described)
    broken = [b["name"] for b in listing["broken"] if suite.device == "cpu"]
    names = [*described, *(n for n in broken if n not in described)]
    _not_of_another_device(suite, names, elsewhere)
    chosen = select(names, suite.algorithms, suite.exclude)
    baseline = suite.baseline if suite.device == "cpu" else _gpu_baselines(suite, described)
    available = [b for b in baseline if b in described and described[b]["unavailable"] is None]
    algorithms = list(dict.fromkeys([*available[:1], *chosen]))
    problems = expand(suite, cores=allowed_cores())
    for problem in problems:
        if problem.threads > allowed_cores():
            raise UsageError(
                f"threads {problem.threads}: this process may use {allowed_cores()} core(s); take fewer, or 'all'"
            )
    plan = RunPlan(
        suite={"name": suite.name, "title": suite.title, "path": str(suite.path or ""), "sha": suite.sha},
        problems=problems,
        algorithms=algorithms,
        baseline=list(baseline),
        policy=suite.policy,
        source_sha={n: described[n]["source_sha"] for n in algorithms if n in described},
        device=suite.device,
        semantics={
            name: described[name]["semantics"]
            for name in algorithms
            if name in described and not ("algorithm" in suite.asked and name in suite.algorithms)
        },
    )
    _every_problem_has_a_row(plan, suite)
    return plan


def _every_problem_has_a_row(plan: RunPlan, suite: Suite) -> None:
    """UnknownAlgorithm where a problem's semantics is that of none of the chosen rows."""
    for problem in plan.problems:
        if not plan.cases(problem):
            raise UnknownAlgorithm(
                f"no algorithm out of {', '.join(suite.algorithms)} computes semantics {problem.problem.semantics} "
                f"({problem.label}); `convbench list --all` shows what each computes"
            )


def _not_of_another_device(suite: Suite, names: list[str], elsewhere: set[str]) -> None:
    """UnknownAlgorithm, with what to say instead, for a name or glob that only rows of another device answer to."""
    other = "cuda" if suite.device == "cpu" else "cpu"
    for pattern in suite.algorithms:
        if not fnmatch.filter(names, pattern) and (found := sorted(fnmatch.filter(elsewhere, pattern))):
            raise UnknownAlgorithm(
                f"{found[0]} runs on {other}, and this run is for {suite.device}: say --device {other}"
            )


def _gpu_baselines(suite: Suite, described: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The suite's own that are for a GPU; without any, the vendor's rows, those without reduced precision first."""
    own = [b for b in suite.baseline if b in described]
    vendor = [name for name, d in described.items() if d["vendor"]]
    vendor.sort(key=lambda name: (described[name]["arithmetic"] not in ("native", "float32"), name))
    return own or [*vendor, *(name for name in GPU_FALLBACK if name in described)]


def new_run_dir(plan: RunPlan, output: Path | None, root: Path = Path("reports")) -> Path:
    """Makes the run directory, `output` itself or reports/<suite>/<UTC stamp>_<sha7>[_dirty], with the plan in it.

    Raises OutputError where it cannot be written, UsageError where it holds a run already.
    """
    if output is None:
        build = build_id()
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        sha = build["sha"][:7] if build["sha"] != "unknown" else f"v{build['version']}"
        output = root / plan.suite["name"] / f"{stamp}_{sha}{'_dirty' if build['dirty'] is True else ''}"
        output = _unused(output)
    if (output / "plan.json").exists() or (output / "records.jsonl").exists():
        raise UsageError(f"{output} holds a run already: go on with --resume {output}, or choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "plan.json").write_text(plan.to_json())
    except OSError as error:
        raise OutputError(f"cannot write to {output}: {error.strerror}; choose another folder with --output") from error
    return output


def _unused(path: Path) -> Path:
    """The path, or the path with the first free number behind it (two runs in one second)."""
    candidates: Iterable[Path] = (path if n == 1 else path.with_name(f"{path.name}_{n}") for n in range(1, 1000))
    return next(p for p in candidates if not p.exists())
