"""`convbench doctor --calibrate`: times the rows that may win on a set of shapes, and fits the model of "auto".

The cases run as in every other run: a worker with its threads set, each case verified before it is timed and again
afterwards, all rows of a problem interleaved; samples are few and short. A row whose runs in verification were SLOW
times slower than the fastest row's is not sampled: the time of its run there counts, which is exact enough for what
will not be chosen. A row that is ROW_GIVES_UP times slower than the best on the first two problems of a kind (3x3,
1x1, depthwise ...) is left alone in the rest of that kind.

What is measured goes to a journal beside the calibration at once. Interrupted, the next calibration starts from it;
the calibration that was there before stays until a new one is complete.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convbench import costmodel, environment, probe
from convbench.costfit import Measured, fit_model, left_out_regrets
from convbench.descriptor import parse_descriptor, print_descriptor
from convbench.errors import OutputError, WorkerFailed
from convbench.problem import Pass, Problem
from convbench.runner.plan import RunPlan
from convbench.runner.problem_run import ProblemRun
from convbench.runner.session import Session
from convbench.suite import Policy, ProblemCase

MINUTES = 7.7  # of measuring, so that all takes less than eight; what does not fit is left out, and said
ONE_THREAD_SHARE = 0.77  # of the time
MANY_THREADS_EVERY = 5  # shapes of a kind: the first of so many is measured on all cores too
SAMPLE_S = 0.085  # of sampling for each row of a problem; some 0.05 of it go into warming up
CALLS = 11  # of a long row that sampling has time for, those included that warm up
SLOW = 2.5  # times the fastest row's time in verification: not worth samples
SHARE_S, FIRST_SHARE_S = 6.0, 60.0  # what verification may take; the first problem compiles
ROW_GIVES_UP = 2.2
AT_ONCE = 2.5  # times worse still: one problem is enough
LOOKS = 2  # problems of a kind before a row may be left out of it
POLICY = Policy(min_blocks=4, min_time_s=0.0, ci_target=1.0, max_blocks=4, workspace_limit_bytes=2**31)
#: On several threads a sample comes after a pause in which other thread pools fall asleep: one sample fewer.
POLICY_THREADS = replace(POLICY, min_blocks=3, max_blocks=3)
#: Rows that "auto" never takes, and why. A GPU's rows never come here either.
NOT_CANDIDATES = {
    "torch": "a cross-check: auto does not load PyTorch",
    "direct_naive_numba": "for reading: far slower than the others everywhere",
    "direct_numpy": "for reading: im2col_numpy does the same in one product",
    "fft_scipy": "fft_tiled_simd does the same faster",
    "fft_tiled_scipy": "fft_tiled_simd does the same faster",
    "im2col_caffe_numpy": "for reading: Caffe's way, one image at a time",
    "strassen_im2col_numpy": "for reading: fewer operations, never less time",
    "fft_pyfftw": "fft_tiled_simd does the same faster",
    "fft_tiled_pyfftw": "fft_tiled_simd does the same faster",
    "im2col_numpy": "direct_simd does the same faster",
    "kn2row_numpy": "direct_simd does the same faster",
    "im2col_tiled_numpy": "direct_simd does the same faster",
    **dict.fromkeys(
        ("winograd_f2_numpy", "winograd_f4_numpy", "winograd_f6_numpy", "winograd_f4_mkl", "winograd_f2_5x5_numpy",
         "winograd_f4_5x5_numpy"),
        "the simd row of that transform does the same faster",
    ),
}

#: Chosen to span the shapes of VGG, ResNet, GoogLeNet, MobileNet and DeepBench without being them. Of the shapes in
#: suites/shapes only the large filters of filter_size are much like these; none is equal.
SHAPES = (
    # 3x3, from images to deep layers, one and several at a time, long and narrow ones
    "mb1ic224ih28oc224kh3ph1", "mb1ic24ih28oc40kh3ph1", "mb1ic480ih14oc512kh3ph1", "mb1ic64ih120oc64kh3ph1",
    "mb1ic512ih7oc480kh3ph1", "mb4ic3ih120oc64kh3ph1", "mb1ic64ih56oc80kh3ph1", "mb8ic128ih14oc192kh3ph1",
    "mb4ic16ih24iw120oc32kh3ph1pw1", "mb8ic256ih7oc384kh3ph1", "mb1ic120ih104oc120kh3ph1", "mb4ic160ih28oc128kh3ph1",
    "mb4ic1ih48iw240oc16kh3ph1pw1", "mb4ic64ih6iw60oc112kh3ph1pw1", "mb1ic120ih14oc216kh3ph1",
    "mb2ic192ih40iw84oc192kh3ph1pw1", "mb1ic128ih7oc240kh3ph1", "mb1ic3ih200oc64kh3ph1", "mb2ic208ih9oc288kh3ph1",
    # 1x1
    "mb1ic64ih56oc96kh1ph0", "mb1ic500ih14oc24kh1ph0", "mb1ic960ih14oc256kh1ph0", "mb4ic64ih56oc240kh1ph0",
    "mb1ic2000ih7oc512kh1ph0", "mb1ic256ih52oc64kh1ph0", "mb8ic480ih7oc1920kh1ph0", "mb1ic200ih28oc16kh1ph0",
    "mb1ic120ih28oc480kh1ph0", "mb8ic480ih14oc128kh1ph0", "mb4ic64ih112oc64kh1ph0", "mb1ic480ih7oc2000kh1ph0",
    "mb1ic800ih7oc40kh1ph0",
    # 1x1 with stride
    "mb1ic256ih56oc480kh1sh2ph0", "mb4ic960ih14oc512kh1sh2ph0", "mb1ic480ih14oc960kh1sh2ph0",
    "mb8ic64ih56oc240kh1sh2ph0",
    # other strided ones
    "mb1ic128ih56oc120kh3sh2ph1", "mb1ic3ih200oc64kh7sh2ph3", "mb4ic3ih108oc60kh3sh2ph0", "mb1ic480ih14oc512kh3sh2ph1",
    "mb2ic192ih28oc224kh3sh2ph1",
    "mb2ic1ih161iw600oc32kh5kw20sh2sw2ph0pw0", "mb2ic32ih79iw200oc32kh5kw10sh2sw2ph0pw0",
    "mb4ic64ih40iw174oc120kh5sh2sw2ph1pw1", "mb8ic3ih200oc16kh7sh2ph3", "mb1ic240ih20iw84oc480kh5sh2sw2ph1pw1",
    "mb4ic1ih120iw400oc64kh5sh2sw2ph1pw1", "mb2ic3ih128oc64kh5sh2ph2",
    # 5x5
    "mb1ic120ih30oc128kh5ph2", "mb1ic16ih28oc40kh5ph2", "mb2ic800ih7oc112kh5ph2", "mb1ic40ih14oc112kh5ph2",
    "mb8ic32ih28oc80kh5ph2", "mb8ic24ih14oc64kh5ph2", "mb1ic40ih7oc96kh5ph2",
    # large filters
    "mb1ic60ih32oc112kh9ph4", "mb1ic48ih32oc64kh13ph6", "mb1ic16ih32oc40kh27ph13", "mb1ic96ih40oc120kh7ph3",
    # depthwise, grouped, dilated
    "mb1g48ic48ih64oc48kh3ph1", "mb1g384ic384ih14oc384kh3ph1", "mb1g144ic144ih56oc144kh3sh2ph1",
    "mb1g96ic96ih32oc96kh31ph15", "mb4g192ic192ih28oc192kh5ph2",
    "mb1g64ic64ih48oc64kh13ph6", "mb1g32ic256ih28oc256kh3ph1", "mb1g2ic96ih27oc240kh5ph2", "mb1g2ic256ih12oc320kh3ph1",
    "mb1ic64ih32oc64kh3dh1ph2",
)  # fmt: skip
Tell = Callable[[str], None]


@dataclass
class Learnt:
    """What a calibration came to. skipped: row -> why it is not a candidate; left_out: problems for want of time.

    regrets: what the model's picks would lose on problems whose shape it had not seen (`costfit.left_out_regrets`).
    """

    model: costmodel.Model
    path: Path
    cases: int
    seconds: float
    left_out: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)


def calibrate(tell: Tell, minutes: float = MINUTES, shapes: Iterable[str] = SHAPES) -> Learnt:
    """Measures, fits and writes this machine's file. tell: a line on progress now and then.

    Raises KeyboardInterrupt (what was measured is in the journal), OutputError, WorkerFailed where nothing could be
    measured.
    """
    started = time.monotonic()
    facts = environment.collect()
    listing = probe.probe()
    rows, skipped = candidates(listing)
    journal = Journal(costmodel.path_of(facts["env_id"]).with_suffix(".journal.jsonl"), rows)
    cores = environment.allowed_cores()
    ordered = in_rounds([parse_descriptor(s).problem for s in shapes])
    peaks, state = {}, State(list(rows), journal, tell)
    plans = [(1, cases_of(ordered, 1))]
    if cores > 1:
        plans.append((cores, cases_of(in_rounds(ordered, MANY_THREADS_EVERY), cores)))
    left_out = 0
    session = OracleKeeper(listing, facts["env_id"], facts["versions"])
    with session:
        for threads, cases in plans:
            share = (ONE_THREAD_SHARE if threads == 1 and len(plans) > 1 else 1.0) * minutes * 60
            left_out += state.run_all(session, cases, started + share)
            peaks[threads] = session.peaks(threads).get("gflops", 0.0)
            session.forget_worker(threads)
    model = fit_model(
        journal.measured(),
        machine=f"{facts['machine']['cpu_model']}, {cores} core(s)",
        measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        env_id=facts["env_id"],
        sources=rows,
        peaks={t: p for t, p in peaks.items() if p},
    )
    if not model.fits:
        raise WorkerFailed(f"nothing could be measured: {'; '.join(state.failed[:3]) or 'no row is available'}")
    path = costmodel.save(model)
    regrets = list(left_out_regrets(journal.measured()).values())
    journal.remove()
    seconds = time.monotonic() - started
    return Learnt(model, path, len(journal.entries), seconds, left_out, skipped, state.failed, regrets)


def candidates(listing: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """(row -> hash of its source, row -> why it is passed over) of what was registered."""
    rows, skipped = {}, {}
    for d in listing["implementations"]:
        name = d["name"]
        if name in NOT_CANDIDATES:
            skipped[name] = NOT_CANDIDATES[name]
        elif d["unavailable"] is not None:
            skipped[name] = d["unavailable"]
        elif d["device"] != "cpu" or costmodel.DTYPE not in d["dtypes"] or d["semantics"] != "linear":
            skipped[name] = f"not a linear {costmodel.DTYPE} convolution on the CPU"
        else:
            rows[name] = d["source_sha"]
    return rows, skipped


def kind(problem: Problem) -> str:
    """What decides, roughly, which rows are any good."""
    s = problem.shape
    if s.groups > 1:
        return "depthwise" if s.cg == 1 else "grouped"
    stride = " with stride" if max(s.stride) > 1 else ""
    if max(s.dilation) > 1:
        return "dilated"
    size = max(s.r, s.s)
    return ("1x1" if size == 1 else "3x3" if size == 3 else "5x5" if size == 5 else "large") + stride


def in_rounds(problems: list[Problem], every: int = 1) -> list[Problem]:
    """The first of each kind, then the second of each, and so on: time that runs out is missed everywhere alike.

    every: 3 for the first, fourth, seventh ... of each kind alone.
    """
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[kind(problem)].append(problem)
    longest = max(map(len, kinds.values()), default=0)
    return [of[i] for i in range(0, longest, every) for of in kinds.values() if i < len(of)]


def cases_of(problems: list[Problem], threads: int) -> list[ProblemCase]:
    """Every pass of each; layouts and weights take turns, so that each is seen with every kind.

    Packed weights and both backward passes come three times out of four in nhwc, which every row computes without
    converting, raw weights forward every other time.
    """
    cases = []
    for index, problem in enumerate(problems):
        turn = index % 4
        for pass_, nchw, weights in (
            (Pass.FORWARD, turn in (0, 2), "raw"),
            (Pass.FORWARD, turn == 3, "packed"),
            (Pass.BACKWARD_DATA, turn == 1, ("raw", "packed")[index // 4 % 2]),
            (Pass.BACKWARD_WEIGHTS, turn == 2, "raw"),
        ):
            case = replace(problem, pass_=pass_, layout="nchw" if nchw else "nhwc")
            cases.append(ProblemCase(case, weights, threads, "hot", 0))
    return cases


def same_numbers(one: ProblemCase, other: ProblemCase) -> bool:
    """Whether two cases have the same operands and results, whatever their layouts."""
    return (one.problem.shape, one.problem.pass_) == (other.problem.shape, other.problem.pass_)


class QuickRun(ProblemRun):
    """Verifies as always, then takes few and short samples."""

    def _sample_group(self, group: list[str], seconds: float) -> None:
        super()._sample_group(group, SAMPLE_S + sum(max(SAMPLE_S, CALLS * self._run_s(name)) for name in group))

    def _rate_key(self, name: str) -> tuple[Any, ...]:
        """One pilot for all layouts and weights: it is to find rows that are hopeless, not to predict."""
        return (name, self.problem.problem.pass_, self.problem.threads)


class CalibrationRun(QuickRun):
    """Samples no row that verification saw to be SLOW times slower than the fastest."""

    def _groups(self) -> list[list[str]]:
        runs = {name: self._run_s(name) for name, p in self.progress.items() if not p.status}
        limit = SLOW * min(runs.values(), default=0.0)
        for name in (n for n, seconds in runs.items() if seconds > limit):
            self.progress[name].end("not_reached", f"{name}: verified, {SLOW:g} times slower than the fastest row")
        return super()._groups()

    def not_sampled(self) -> dict[str, float]:
        """Nanoseconds of the fastest run in verification, of rows that were found right and left at that."""
        late = {name: p.facts for name, p in self.progress.items() if p.status == "not_reached"}
        return {name: float(facts["first_run_ns"]) for name, facts in late.items() if "first_run_ns" in facts}


class OracleKeeper(Session):
    """Keeps the oracle's results while the next problem is the same in another layout or with other weights."""

    keep = False

    def drop(self, threads: int, oracle: bool = False) -> None:
        """What a problem calls at its end, with `oracle`, and between groups of rows that do not fit together."""
        if not (oracle and self.keep):
            super().drop(threads, oracle)


class State:
    """The journal, and which rows are still worth a look in which kind of problem."""

    def __init__(self, rows: list[str], journal: Journal, tell: Tell) -> None:
        self.rows, self.journal, self.tell = rows, journal, tell
        self.failed: list[str] = []
        self._ratios: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def run_all(self, session: OracleKeeper, cases: list[ProblemCase], deadline: float) -> int:
        """Measures the cases until the deadline; how many were left out."""
        share = FIRST_SHARE_S
        for index, case in enumerate(cases):
            known = self.journal.find(case)
            if known is None and time.monotonic() > deadline:
                return len(cases) - index
            if known is None:
                session.keep = cases[index + 1 : index + 2] != [] and same_numbers(case, cases[index + 1])
                known = self.measure(session, case, share)
                share = SHARE_S
            self._judge(case, known)
            if index % 10 == 9 or index == len(cases) - 1:
                self.tell(f"{case.threads} thread(s): {index + 1} of {len(cases)} problems")
        return 0

    def measure(self, session: Session, case: ProblemCase, share_s: float) -> dict[str, float]:
        """Median nanoseconds by row of one problem; it goes to the journal."""
        names = [r for r in self.rows if not self._hopeless(r, case)]
        policy = POLICY if case.threads == 1 else POLICY_THREADS
        plan = RunPlan({"name": "calibration"}, [case], names, [], policy)
        found, flops = {}, {}
        run = CalibrationRun(plan, case, session, share_s, lambda *_: None)
        records = run.run()
        not_sampled = run.not_sampled()
        for record in records:
            name = record.case.implementation
            if record.status == "ok" or name in not_sampled:
                found[name] = not_sampled.get(name) or statistics.median(record.ns_per_call)
                flops[name] = record.executed_flops
            elif record.status in ("failed", "wrong", "timed_out"):
                self.failed.append(f"{name}: {print_descriptor(case.problem)}: {record.reason}")
            elif record.status == "not_reached" and record.setup_ns is None:  # predicted to be far too slow
                self._ratios[name, kind(case.problem), str(case.problem.pass_)].append(math.inf)
        self.journal.add(case, found, flops)
        return found

    def _judge(self, case: ProblemCase, found: dict[str, float]) -> None:
        best = min(found.values(), default=1.0)
        for name, ns in found.items():
            self._ratios[name, kind(case.problem), str(case.problem.pass_)].append(ns / best)

    def _hopeless(self, row: str, case: ProblemCase) -> bool:
        seen = self._ratios[row, kind(case.problem), str(case.problem.pass_)]
        return bool(seen) and (min(seen) > ROW_GIVES_UP if len(seen) >= LOOKS else seen[0] > AT_ONCE * ROW_GIVES_UP)


class Journal:
    """What was measured, one line a problem, so that an interrupted calibration goes on where it was.

    Lines of rows whose source is another by now, and lines that were cut short, do not count.
    """

    def __init__(self, path: Path, rows: dict[str, str]) -> None:
        self.path, self.rows = path, rows
        self.entries: list[tuple[ProblemCase, dict[str, float], dict[str, dict[str, float]]]] = []
        self._key = [rows[name] for name in sorted(rows)]
        for line in self._lines():
            with suppress(ValueError, KeyError, TypeError):
                data = json.loads(line)
                if data["sources"] == self._key:
                    problem = parse_descriptor(data["problem"]).problem
                    case = ProblemCase(problem, data["weights"], data["threads"], "hot", 0)
                    self.entries.append((case, data["ns"], data["executed_flops"]))

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []

    def find(self, case: ProblemCase) -> dict[str, float] | None:
        """Nanoseconds by row of a problem that was measured before."""
        return next((ns for known, ns, _ in self.entries if known == case), None)

    def add(self, case: ProblemCase, ns: dict[str, float], flops: dict[str, dict[str, float]]) -> None:
        """Keeps one problem. Raises OutputError."""
        self.entries.append((case, ns, flops))
        line = {
            "problem": print_descriptor(case.problem),
            "weights": case.weights,
            "threads": case.threads,
            "ns": ns,
            "executed_flops": flops,
            "sources": self._key,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
            ) from error

    def measured(self) -> Iterator[Measured]:
        """Every case that was timed."""
        for case, times, flops in self.entries:
            for row, ns in times.items():
                yield Measured(row, case.problem, case.weights, case.threads, ns, flops[row])

    def remove(self) -> None:
        """After its content is in the calibration."""
        self.path.unlink(missing_ok=True)
