"""Runs a plan in a run directory, or goes on with one that was cut short.

Files: plan.json (before anything runs), environment.json, records.jsonl (a problem's records at once, on disk
before the next problem starts). A kill loses the problem in flight and nothing else; a problem of which only some
records reached the disk is run again as a whole, because its ratios need blocks shared with its baseline.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from convbench import environment
from convbench.errors import NotComparable, OutputError, RecordsError, UsageError
from convbench.records import Record, RecordWriter, read_records
from convbench.runner.budget import GPU_CASE_S, Budget
from convbench.runner.plan import RunPlan
from convbench.runner.problem_run import ProblemRun
from convbench.runner.session import Session
from convbench.suite import ProblemCase


class Observer(Protocol):
    """Who wants to know how a run goes; the command line draws a progress bar from it."""

    def started(self, problems: int, cases: int) -> None:
        """Before the first problem."""

    def now(self, problem: ProblemCase, algorithm: str, doing: str) -> None:
        """What runs at this moment."""

    def problem_done(self, problem: ProblemCase, records: list[Record], seconds_left: float) -> None:
        """After a problem's records are on disk."""


@dataclass
class Outcome:
    """What became of a run: how many records of each status, and where they are."""

    run_dir: Path
    counts: Counter[str] = field(default_factory=Counter)


def execute(
    plan: RunPlan,
    run_dir: Path,
    listing: dict[str, Any],
    observer: Observer,
    *,
    resume: bool = False,
    force: bool = False,
) -> Outcome:
    """Runs what of the plan has no record yet.

    Raises NotComparable when a run is resumed on another machine or other sources (unless `force`), OutputError
    when a record cannot be written, UsageError when another process works in the same folder. KeyboardInterrupt
    passes through; all finished problems stay on disk.
    """
    with _locked(run_dir):
        facts = environment.collect(gpu=(listing.get("gpu") or {}) if plan.device == "cuda" else None)
        env_id, versions = facts["env_id"], {**facts["versions"], **facts.get("gpu", {}).get("versions", {})}
        if resume:
            _check_same(plan, run_dir, listing, env_id, force)
        kept = _keep_whole_problems(plan, run_dir / "records.jsonl") if resume else []
        _write(run_dir / "plan.json", plan.to_json())
        have = {record.case.id for record in kept}
        todo = [p for p in plan.problems if not all(c.id in have for c in plan.cases(p))]
        outcome = Outcome(run_dir, Counter(r.status for r in kept))
        observer.started(len(todo), sum(len(plan.cases(p)) for p in todo))
        with Session(listing, env_id, versions, scratch=run_dir, device=plan.device) as session:
            written = _environment(plan, facts, run_dir, session, resume)
            writer = RecordWriter(run_dir / "records.jsonl")
            try:
                _run_all(plan, todo, session, writer, observer, outcome)
            finally:
                writer.close()
            written["finished_utc"] = _utc_now()
            _write(run_dir / "environment.json", json.dumps(written, indent=1))
        return outcome


def _run_all(
    plan: RunPlan,
    todo: list[ProblemCase],
    session: Session,
    writer: RecordWriter,
    observer: Observer,
    outcome: Outcome,
) -> None:
    budget = Budget(plan.policy.time_budget_s, [p.problem for p in todo], device=plan.device)
    previous_threads: int | None = None
    for problem in todo:
        if previous_threads not in (None, problem.threads):
            session.forget_worker(previous_threads or 0)  # an idle worker still holds memory and threads
        previous_threads = problem.threads
        run = ProblemRun(
            plan,
            problem,
            session,
            budget.next_share(GPU_CASE_S * len(plan.cases(problem)) if plan.device == "cuda" else 0.0),
            lambda algorithm, doing, p=problem: observer.now(p, algorithm, doing),  # type: ignore[misc]
        )
        records = run.run()
        budget.forgive(run.lost_s)
        writer.append_all(records)
        outcome.counts.update(r.status for r in records)
        observer.problem_done(problem, records, budget.left())


def _environment(plan: RunPlan, facts: dict[str, Any], run_dir: Path, session: Session, resume: bool) -> dict[str, Any]:
    """Writes environment.json before the first problem and gives back what was written."""
    peaks = {str(threads): session.peaks(threads) for threads in sorted({p.threads for p in plan.problems})}
    for threads in {p.threads for p in plan.problems[1:]} - {p.threads for p in plan.problems[:1]}:
        session.forget_worker(threads)
    path = run_dir / "environment.json"
    earlier = json.loads(path.read_text()) if resume and path.is_file() else {}
    data = {
        **facts,
        "peaks": peaks,
        "device": plan.device,
        "suite": {**plan.suite, "baseline": plan.baseline, "policy": vars(plan.policy)},
        "argv": ["convbench", *sys.argv[1:]],
        "mixed": plan.mixed,
        "started_utc": earlier.get("started_utc", _utc_now()),
        "resumed_utc": [*earlier.get("resumed_utc", []), *([_utc_now()] if resume else [])],
    }
    _write(path, json.dumps(data, indent=1))
    return data


def _check_same(plan: RunPlan, run_dir: Path, listing: dict[str, Any], env_id: str, force: bool) -> None:
    """Refuses to go on under other conditions than those the run began with."""
    differences = []
    path = run_dir / "environment.json"
    if path.is_file():
        try:
            earlier = json.loads(path.read_text()).get("env_id")
        except ValueError as error:
            raise RecordsError(f"{path} cannot be read: {error}") from error
        if earlier != env_id:
            differences.append(f"the machine or its libraries (env_id {earlier}, now {env_id})")
    now = {d["name"]: d["source_sha"] for d in listing["implementations"]}
    changed = sorted(n for n, sha in plan.source_sha.items() if now.get(n) != sha)
    if changed:
        differences.append(f"the source of {', '.join(changed)}")
    if not differences:
        return
    if not force:
        raise NotComparable(
            f"{run_dir} was begun under other conditions: {'; '.join(differences)} changed. "
            "Start a new run, or add --force to go on and mark the run as mixed"
        )
    plan.mixed = True
    plan.source_sha = {n: now[n] for n in plan.source_sha if n in now}


def _keep_whole_problems(plan: RunPlan, path: Path) -> list[Record]:
    """Records of complete problems; those of a problem cut short are taken out of the file."""
    if not path.exists():
        return []
    records = read_records(path)
    have = {r.case.id for r in records}
    whole = {c.id for p in plan.problems for c in plan.cases(p) if all(x.id in have for x in plan.cases(p))}
    kept = [r for r in records if r.case.id in whole]
    torn = not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    if len(kept) != len(records) or torn:
        _write(path, "".join(r.to_json() + "\n" for r in kept))
    return kept


def _write(path: Path, text: str) -> None:
    """Replaces a file as a whole, or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """One run per folder; the lock goes with the process, however it ends."""
    path = run_dir / ".lock"
    try:
        file = open(path, "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise OutputError(f"cannot write to {run_dir}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UsageError(f"another run is writing to {run_dir}: wait for it, or choose another --output") from None
    try:
        yield
    finally:
        file.close()


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
