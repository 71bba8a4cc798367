"""One problem, all its algorithms: quarantine, then interleaved sampling, then one record each.

Quarantine: every case is prepared, verified and run once by itself. Who crashes, hangs, is wrong or needs more
than its share of the time gets its record here, and costs nobody else anything (MEASURING, section 1).
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convbench.descriptor import print_descriptor
from convbench.problem import Case
from convbench.records import Errors, Record, Samples
from convbench.runner.handle import WorkerGone
from convbench.runner.plan import RunPlan, repro_line
from convbench.runner.session import Session
from convbench.stats import is_throttled, median_ci
from convbench.suite import ProblemCase

ENERGY_S, ENERGY_SHARE = 0.3, 0.05  # for a GPU's energy counter: at least so long, at most this share of the time
GPU_SETUP_S = 0.05  # of a case before its first sample on a GPU: its stream proven, its graphs captured, warming up
GPU_FLOAT64_COPIES = 10  # of the result, on a GPU: what comparing it with the oracle takes
PROCESS_BYTES = 2 * 2**30  # what libraries may take for a case beside its arrays
PILOT_FLOPS = 2e8  # smaller problems are tried outright
LEAST_S = 0.15  # of each case's warming up and sampling: what even a problem that is late gets
POOL_PAUSE_S = 0.04  # what a sample costs where another thread pool ran last
RECHECK_RUNS = 3  # what the check after timing costs, in runs
VERIFY_RUNS = 5  # runs that verification takes, for predictions
MIN_BLOCKS_TO_COUNT = 3
CASE_SHARE = 0.2  # of a problem's time: what one case may need once its first run is known
#: So many times more may be predicted: a rate seen on one shape was 7 times too low for the next (3 channels, then 64).
DOUBT = 4.0


@dataclass
class Progress:
    """What is known of one case while its problem is in flight."""

    case: Case
    status: str = ""
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    loops: int = 1
    done: bool = False
    predicted_ns: float | None = None
    started_utc: str = ""
    energy_j: float | str = "unavailable"
    packing_ns: float | None = None

    def end(self, status: str, reason: str) -> None:
        """A final status with its sentence; the first one stands."""
        if not self.status:
            self.status, self.reason = status, reason


class ProblemRun:
    """Runs one problem of a plan within `share_s` seconds and gives back its records."""

    def __init__(
        self,
        plan: RunPlan,
        problem: ProblemCase,
        session: Session,
        share_s: float,
        tell: Callable[[str, str], None],
    ) -> None:
        self.plan, self.problem, self.session, self.share_s = plan, problem, session, share_s
        self.text = print_descriptor(problem.problem)
        self._tell = tell
        self._end = time.monotonic() + share_s
        self.lost_s = 0.0  # spent on cases that crashed, hung or failed: charged to nobody else
        self._retained_bytes = 0  # workspaces of the verified plans that the worker holds
        self.progress = {case.implementation: Progress(case) for case in plan.cases(problem)}

    def run(self) -> list[Record]:
        """One record per case, in the plan's order."""
        refusal = self._too_big()
        for progress in self.progress.values():
            progress.started_utc = _utc_now()
            if refusal:
                progress.end("not_reached", refusal)
            elif self.share_s <= 0:
                progress.end("not_reached", "the suite's time budget was used up before this problem")
            else:
                self._tell(progress.case.implementation, "verifying")
                started = time.monotonic()
                self._quarantine(progress)
                if progress.status in ("failed", "timed_out", "wrong"):
                    self._forgive(time.monotonic() - started)
        groups = self._groups()
        self._end -= RECHECK_RUNS * sum(self._run_s(n) for g in groups for n in g)
        for index, group in enumerate(groups):
            if len(groups) > 1:
                self.session.drop(self.problem.threads)  # the plans of all groups together would not fit
            self._sample_group(group, (self._end - time.monotonic()) / (len(groups) - index))
        self.session.drop(self.problem.threads, oracle=True)
        return [self._record(p) for p in self.progress.values()]

    def _forgive(self, seconds: float) -> None:
        """A case that goes wrong costs its own result, not the others' time."""
        self.lost_s += seconds
        self._end += seconds

    def verify_only(self) -> list[Progress]:
        """Quarantine without predictions and without timing: who is right, who is wrong, who is not here."""
        refusal = self._too_big()
        for progress in self.progress.values():
            self._tell(progress.case.implementation, "verifying")
            if refusal:
                progress.end("not_reached", refusal)
                continue
            known = self.session.refusal(progress.case.implementation)
            if known is not None:
                progress.end(*known)
            else:
                self._verify(progress)
        self.session.drop(self.problem.threads, oracle=True)
        return list(self.progress.values())

    # ---- quarantine

    def _too_big(self) -> str | None:
        """A sentence where operands, their copies and the oracle would not fit into memory."""
        problem = self.problem.problem
        need = 8 * self._bytes()
        if self.session.device == "cuda":
            need = 4 * self._bytes() + 8 * GPU_FLOAT64_COPIES * math.prod(problem.out_shape)
        if need <= self.session.memory_bytes:
            return None
        return (
            f"needs about {need / 2**30:.1f} GiB for operands and their verification; "
            f"{self.session.memory_bytes / 2**30:.1f} GiB may be used on this {self._where()}"
        )

    def _bytes(self) -> int:
        """Bytes of operands and result, counted as float32 at least: the oracle's copies are no smaller for int8."""
        return max(self.problem.problem.operand_bytes, 4 * self.problem.problem.elements)

    def _where(self) -> str:
        return "machine" if self.session.device == "cpu" else "GPU"

    def _quarantine(self, progress: Progress) -> None:
        name = progress.case.implementation
        known = self.session.refusal(name)
        if known is not None:
            progress.end(*known)
            return
        if time.monotonic() > self._end + self.share_s:
            progress.end("not_reached", "the problem's share of the time budget was used up in verification")
            return
        try:
            too_slow = self._predicted_too_slow(progress)
        except WorkerGone as gone:
            self._blame(progress, gone)
            return
        if not too_slow:
            self._verify(progress)

    def _verify(self, progress: Progress) -> None:
        name, limit = progress.case.implementation, self.plan.policy.workspace_limit_bytes
        more_bytes = PROCESS_BYTES + 8 * self._bytes() + 2 * limit
        try:
            event = self._ask(name, "verify", workspace_limit=limit, memory_bytes=more_bytes)
        except WorkerGone as gone:
            self._blame(progress, gone)
            return
        if event["ev"] != "verified":
            progress.end(event["status"], event["reason"])
            progress.facts = {k: v for k, v in event.items() if k == "error"}
            return
        progress.facts = event
        executed_flops = sum(event["executed_flops"].values())
        self.session.learn_rate(self._rate_key(name), executed_flops / event["first_run_ns"])
        need_s = event["first_run_ns"] * MIN_BLOCKS_TO_COUNT / 1e9
        if need_s > CASE_SHARE * self.share_s and name not in self.plan.baseline:
            progress.end(
                "not_reached",
                f"{name}: verified, but a call takes {event['first_run_ns'] / 1e9:.2f} s; timing it needs {need_s:.0f} "
                f"s, its share of the time budget is {CASE_SHARE * self.share_s:.0f} s",
            )
        self._retained_bytes += event["workspace_bytes"]
        if self._retained_bytes > self.session.memory_bytes / 2:
            self.session.drop(self.problem.threads)  # they are prepared and verified again, group by group
            self._retained_bytes = 0

    def _ask(self, name: str, op: str, **more: Any) -> dict[str, Any]:
        worker = self.session.worker(self.problem.threads)
        worker.send(
            op,
            problem=self.text,
            implementation=name,
            weights=self.problem.weights,
            seed=self.problem.seed,
            inputs=self.problem.inputs,
            **more,
        )
        return worker.next_event(self._timeout_s())

    def _timeout_s(self) -> float:
        return min(self.plan.policy.case_timeout_s, max(20.0, 2 * self.share_s))

    def _blame(self, progress: Progress, gone: WorkerGone) -> None:
        self.session.forget_worker(self.problem.threads)
        self._retained_bytes = 0
        name = progress.case.implementation
        progress.end("timed_out" if gone.hung else "failed", f"{name}: {gone}")
        if gone.hung:
            self.session.note_hang(name)

    def _rate_key(self, name: str) -> tuple[Any, ...]:
        p = self.problem
        return (name, p.problem.pass_, p.problem.layout, p.problem.dtype, p.weights, p.threads)

    def _predicted_too_slow(self, progress: Progress) -> bool:
        """True, with the record's sentence written, where the case cannot fit into its share of the time."""
        name = progress.case.implementation
        if self.problem.problem.direct_flops < PILOT_FLOPS:
            return False
        key = self._rate_key(name)
        event = self._ask(name, "pilot", measure=self.session.rate(key) is None)
        if event["ev"] != "rate":
            return False  # verification will meet the same trouble and say so
        if event["flops_per_ns"]:
            self.session.learn_rate(key, event["flops_per_ns"])
        rate = self.session.rate(key)
        if rate is None:
            return False
        progress.predicted_ns = event["target_flops"] / rate
        need_s = progress.predicted_ns * (VERIFY_RUNS + MIN_BLOCKS_TO_COUNT) / 1e9
        allowed_s = DOUBT * CASE_SHARE * self.share_s
        if need_s <= allowed_s or name in self.plan.baseline:
            return False
        progress.end(
            "not_reached",
            f"{name}: predicted {progress.predicted_ns / 1e9:.2f} s a call, from {rate:.2f} executed GFLOP/s, the best "
            f"verified so far in this run for this pass, layout and type; verifying and timing it needs {need_s:.0f} "
            f"s, its share of the time budget is {allowed_s:.0f} s",
        )
        return True

    # ---- sampling

    def _baseline(self) -> str | None:
        """The first baseline that is verified for this problem."""
        return next((b for b in self.plan.baseline if b in self.progress and not self.progress[b].status), None)

    def _groups(self) -> list[list[str]]:
        """Verified cases, split so that the workspaces of a group fit into half the memory; the baseline in each."""
        names = [n for n, p in self.progress.items() if not p.status]
        baseline = self._baseline()
        limit = self.session.memory_bytes / 2

        def size(name: str) -> int:
            return int(self.progress[name].facts["workspace_bytes"])

        start_bytes = size(baseline) if baseline else 0
        groups: list[list[str]] = []
        used = limit + 1.0
        for name in sorted((n for n in names if n != baseline), key=size):
            if used + size(name) > limit:
                groups.append([baseline] if baseline else [])
                used = start_bytes
            groups[-1].append(name)
            used += size(name)
        if not groups and baseline:
            groups.append([baseline])
        return groups

    def _sample_group(self, group: list[str], seconds: float) -> None:
        """Samples until every member is done or lost; a worker that dies is replaced, the others keep theirs."""
        members = list(group)
        for name in members:
            self.progress[name].done = False
        end = time.monotonic() + seconds
        died = True
        while members and died:
            first_block = 1 + max((b for p in self.progress.values() for b in p.samples.block), default=-1)
            seconds = max(end - time.monotonic(), self._least_s(members))
            died = self._sample_once(members, first_block, seconds)
            members = [n for n in members if not self.progress[n].done and not self.progress[n].status]
        for name in members:
            self.progress[name].end("failed", f"{name}: no result came back from its samples")

    def _run_s(self, name: str) -> float:
        """Seconds of one run, as verification saw it."""
        return float(self.progress[name].facts["first_run_ns"]) / 1e9

    def _least_s(self, members: list[str]) -> float:
        """Seconds for the fewest blocks that count, whatever the share: what is verified should get a time."""
        calls_s = sum(self._run_s(n) for n in members)
        pauses_s = POOL_PAUSE_S * len(members) if self.problem.threads > 1 else 0.0
        setup_s = GPU_SETUP_S * len(members) if self.session.device == "cuda" else 0.0
        return LEAST_S * len(members) + setup_s + MIN_BLOCKS_TO_COUNT * (2 * calls_s + pauses_s)

    def _sample_once(self, members: list[str], first_block: int, seconds: float) -> bool:
        """One worker's round. True when the worker died and the rest should go on in another."""
        policy = self.plan.policy
        at = ""
        try:
            worker = self.session.worker(self.problem.threads)
            worker.send(
                "sample",
                problem=self.text,
                implementations=members,
                weights=self.problem.weights,
                seed=self.problem.seed,
                inputs=self.problem.inputs,
                mode=self.problem.mode,
                baseline=self._baseline(),
                seconds=seconds,
                rule={
                    "min_blocks": policy.min_blocks,
                    "min_time_s": policy.min_time_s,
                    "ci_target": policy.ci_target,
                    "max_blocks": policy.max_blocks,
                },
                first_block=first_block,
                loops={n: self.progress[n].loops for n in members if self.progress[n].samples.ns},
                **self._energy(seconds, len(members)),
            )
            while True:
                event = worker.next_event(self._timeout_s())
                if event["ev"] == "sampled":
                    return False
                if event["ev"] == "refused":
                    raise WorkerGone(event["reason"])
                if event["ev"] == "at":
                    at = event["implementation"]
                    self._tell(at, "timing")
                else:
                    self._take(event)
        except WorkerGone as gone:
            self.session.forget_worker(self.problem.threads)
            blamed = at or members[0]
            status = "timed_out" if gone.hung else "failed"
            self.progress[blamed].end(status, f"{blamed}: while it was timed: {gone}")
            if gone.hung:
                self.session.note_hang(blamed)
                self._forgive(self._timeout_s())
            return True

    def _energy(self, seconds: float, members: int) -> dict[str, float]:
        """How long each member's energy may be read, where there is a counter and time enough for it."""
        affordable = self.session.device == "cuda" and ENERGY_SHARE * seconds >= ENERGY_S * members
        return {"energy_s": ENERGY_S} if affordable else {}

    def _take(self, event: dict[str, Any]) -> None:
        progress = self.progress[event["implementation"]]
        if event["ev"] == "sample":
            progress.samples.ns.append(event["ns"])
            progress.samples.block.append(event["block"])
            progress.samples.position.append(event["position"])
            if "reading" in event:
                for series in ("host_ns", "sm_mhz", "reasons"):
                    getattr(progress.samples, series).append(event["reading"].get(series))
            progress.loops = event["loops"]
        elif event["ev"] == "lost":
            progress.end(event["status"], f"{progress.case.implementation}: {event['reason']}")
        elif event["ev"] == "done":
            progress.done = True
            progress.energy_j = event.get("energy_j", "unavailable")
            progress.packing_ns = event.get("packing_ns")
            progress.facts.setdefault("notes", {}).update(event.get("notes", {}))
            if not event["ok"]:
                progress.end("wrong", f"after timing: {event['reason']}")
            elif len(progress.samples.ns) < MIN_BLOCKS_TO_COUNT:
                progress.end(
                    "not_reached",
                    f"verified, but only {len(progress.samples.ns)} of at least {MIN_BLOCKS_TO_COUNT} samples fitted "
                    "into its share of the time budget",
                )

    # ---- records

    def _is_noisy(self, progress: Progress) -> bool:
        """True where the interval is wider than was wanted, or the blocks are fewer."""
        policy, samples = self.plan.policy, progress.samples
        width = median_ci([float(ns) for ns in samples.ns], samples.block).relative_half_width
        return width > policy.ci_target or len(samples.ns) < policy.min_blocks

    def _flags(self, progress: Progress) -> list[str]:
        """What to know about a time: its interval is wide, the GPU was held back, its launches are not hidden, the
        packing in it could not be timed by itself."""
        checks = (
            ("noisy", self._is_noisy(progress)),
            ("throttled", is_throttled(progress.samples)),
            ("no_graph", "graph" in progress.facts.get("notes", {})),
            ("no_packing_time", "packing" in progress.facts.get("notes", {})),
        )
        return [name for name, holds in checks if holds]

    def _record(self, progress: Progress) -> Record:
        facts, name = progress.facts, progress.case.implementation
        described = self.session.described.get(name, {})
        ok = not progress.status
        return Record(
            case=progress.case,
            status=progress.status or "ok",
            reason=progress.reason,
            flags=self._flags(progress) if ok else [],
            samples=progress.samples if ok else Samples(),
            loops=progress.loops,
            packing_ns=progress.packing_ns if ok else None,
            setup_ns=facts.get("setup_ns"),
            workspace_bytes=facts.get("workspace_bytes"),
            workspace_estimate_bytes=facts.get("workspace_estimate_bytes"),
            peak_bytes=(
                facts["workspace_bytes"] + self.problem.problem.operand_bytes if "workspace_bytes" in facts else None
            ),
            error=Errors(**facts.get("error", {})),
            executed_flops=facts.get("executed_flops", {}),
            arithmetic=facts.get("arithmetic", ""),
            vendor=bool(described.get("vendor")),
            vendor_impl=facts.get("vendor_impl"),
            predicted_ns=progress.predicted_ns,
            device=self.session.device,
            launches=facts.get("launches"),
            energy_j=progress.energy_j,
            env_id=self.session.env_id,
            source_sha=described.get("source_sha") or "",
            versions=self.session.versions_for(name),
            repro=repro_line(progress.case, self.session.device),
            started_utc=progress.started_utc,
        )


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
