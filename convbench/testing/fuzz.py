"""Random convolutions for the implementations, in child processes, every buffer against forbidden pages.

    python -m convbench.testing.fuzz [--algorithm GLOB] [--count N] [--seed S] [--minutes M] [--jobs J]

Each implementation gets N problems that it does not refuse, of any pass, layout, packing and 1 or 2 threads. Sizes
lean to what goes wrong: remainders of 4, 8 and 16 channels, one-pixel images, padding beyond the filter, depthwise.
Each problem is judged by `convbench.verify` (integers, normal numbers, twice each, poisoned results and workspaces)
in the three places of `guard_pages`. A crash costs one problem: it is tried once more alone in a fresh process, and
reported with a line that repeats it. Exit code: 0, 3 if a result was wrong or something was written outside, 6 if a
child crashed or hung.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from convbench import lifeline
from convbench.descriptor import parse_descriptor, print_descriptor
from convbench.errors import EXIT_FAILED, EXIT_NOTHING, EXIT_OK, EXIT_WRONG, ProblemError
from convbench.problem import LAYOUTS, ConvShape, Problem
from convbench.registry import Implementation

PARENT = "CONVBENCH_FUZZ_PARENT"
HANG_S = 120.0
#: Problems drawn before an implementation is said to take none.
DRAWS = 600
#: Children are renewed after so many problems: what one of them does to the memory of the process is soon gone.
RENEW = 100
#: Multiply-adds: of nearly all problems, and of one in forty.
USUAL_MACS, LARGE_MACS = 4_000_000, 40_000_000
_CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70)
OUTCOMES = ("ok", "unsupported", "wrong", "outside", "crashed")


@dataclass(frozen=True)
class FuzzCase:
    """One problem for one implementation; `problem` is its descriptor."""

    algorithm: str
    problem: str
    weights: str = "raw"
    threads: int = 1
    seed: int = 0

    def repeat(self) -> str:
        """The command that runs this case alone."""
        return (
            f"python -m convbench.testing.fuzz --algorithm {self.algorithm} --problem '{self.problem}' "
            f"--weights {self.weights} --threads {self.threads} --seed {self.seed}"
        )


@dataclass(frozen=True)
class FuzzOutcome:
    """status: one of OUTCOMES. refused: problems drawn that the implementation does not take."""

    status: str
    finding: str = ""
    case: FuzzCase | None = None
    refused: int = 0


# ---- drawing problems


def draw_problem(rng: random.Random, implementation: Implementation) -> Problem:
    """A random convolution in a pass, dtype and layout that the implementation declares."""
    limit = LARGE_MACS if rng.random() < 0.025 else USUAL_MACS
    while True:
        try:
            shape = _draw_shape(rng)
        except ProblemError:  # no output: the filter exceeds the padded image
            continue
        if shape.macs <= limit and max(shape.h * shape.w * shape.c, shape.p * shape.q * shape.k) * shape.n <= limit:
            break
    dtype = "float32" if "float32" in implementation.dtypes else implementation.dtypes[0]
    layouts = [layout for layout in LAYOUTS if layout in implementation.layouts]
    return Problem(shape, rng.choice(implementation.passes), dtype, rng.choice(layouts), implementation.semantics)


def _draw_shape(rng: random.Random) -> ConvShape:
    r, s = _draw_filter(rng)
    stride = _pair(rng, (1, 1, 1, 1, 1, 2, 2, 3, 4))
    dilation = _pair(rng, (1, 1, 1, 1, 1, 1, 1, 2, 3))
    h, w = (rng.choice((1, 2, 3, rng.randint(1, 16), rng.randint(1, 16), rng.randint(1, 40))) for _ in range(2))
    c, k = _draw_channels(rng), _draw_channels(rng)
    groups = 1
    kind = rng.random()
    if kind < 0.15:
        groups = k = c
    elif kind < 0.2:
        groups, k = c, c * rng.randint(2, 3)
    elif kind < 0.3:
        groups = rng.randint(2, 5)
        c, k = groups * rng.randint(1, 20), groups * rng.randint(1, 20)
    n = rng.choice((1, 1, 1, 2, 3, 4, 5))
    return ConvShape.make(n, c, h, w, k, r, s, stride, _draw_padding(rng, r, s, dilation), dilation, groups)


def _draw_channels(rng: random.Random) -> int:
    if rng.random() < 0.015:
        return rng.choice((257, 511, 513, 1000))
    return rng.choice(_CHANNELS) if rng.random() < 0.6 else rng.randint(1, 70)


def _draw_filter(rng: random.Random) -> tuple[int, int]:
    kind = rng.random()
    if kind < 0.5:
        return (3, 3)
    if kind < 0.75:
        size = rng.choice((1, 1, 2, 4, 5, 5, 5, 6, 7))
        return (size, size)
    if kind < 0.97:
        return (rng.randint(1, 7), rng.randint(1, 7))
    return (rng.randint(8, 31), rng.randint(8, 31))


def _draw_padding(rng: random.Random, r: int, s: int, dilation: tuple[int, int]) -> Any:
    eh, ew = (r - 1) * dilation[0] + 1, (s - 1) * dilation[1] + 1
    kind = rng.random()
    if kind < 0.4:
        return (eh // 2, ew // 2)
    if kind < 0.55:
        return 0
    most = (eh, ew) if kind < 0.9 else (eh + 5, ew + 5)  # beyond the filter
    return tuple((rng.randint(0, size), rng.randint(0, size)) for size in most)


def _pair(rng: random.Random, values: tuple[int, ...]) -> tuple[int, int]:
    first = rng.choice(values)
    return (first, first if rng.random() < 0.8 else rng.choice(values))


def draw_case(implementation: Implementation, seed: int, index: int, threads: int) -> tuple[FuzzCase | None, int]:
    """(the index-th case of this implementation, how many problems it refused before that); None: it took none.

    The same arguments always give the same case. threads: the largest number to choose.
    """
    rng = random.Random(f"{implementation.name} {seed} {index}")
    for refused in range(DRAWS):
        problem = draw_problem(rng, implementation)
        weights = rng.choice(("raw", "packed"))
        if implementation.why_not(problem, weights) is None:
            count = rng.randint(1, threads)
            return FuzzCase(implementation.name, print_descriptor(problem), weights, count, index), refused
    return None, DRAWS


# ---- the child: judges cases


def judge(implementation: Implementation, case: FuzzCase, say: Callable[[str], None]) -> FuzzOutcome:
    """Verifies one case in each place; `say` hears the place before anything is run there."""
    from convbench.errors import Unsupported
    from convbench.testing.guard_pages import PLACES, FencedContext, FencedOperands
    from convbench.verify import Verifier

    problem = parse_descriptor(case.problem).problem
    sentence = implementation.why_not(problem, case.weights) or implementation.unavailable()
    if sentence:
        return FuzzOutcome("unsupported", sentence, case)
    for place in PLACES:
        say(place)
        contexts: list[FencedContext] = []

        def context(place: str = place, contexts: list[FencedContext] = contexts) -> FencedContext:
            contexts.append(FencedContext(case.threads, place))
            return contexts[-1]

        def operands(
            shapes: tuple[tuple[int, ...], ...], dtype: str, out_dtype: str, place: str = place
        ) -> FencedOperands:
            return FencedOperands(shapes, dtype, place, out_dtype)

        try:
            verifier = Verifier(problem, seed=case.seed, operands=operands)
            plan, verdict = verifier.verify(implementation, context, case.weights)
        except Unsupported as refused:  # a library that says so only when asked
            return FuzzOutcome("unsupported", str(refused), case)
        except Exception as broken:  # noqa: BLE001 - whatever breaks the promise of limits() is the finding
            frame = traceback.extract_tb(broken.__traceback__)[-1]
            where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
            return FuzzOutcome("wrong", f"raised {type(broken).__name__} at {where}: {broken} ({place})", case)
        outside = next((finding for c in contexts if (finding := c.disturbed())), None)
        if outside or verdict.check == "guard":
            return FuzzOutcome("outside", f"{outside or verdict.reason} ({place})", case)
        if plan is None:
            return FuzzOutcome("wrong", f"{verdict.reason} ({place})", case)
    return FuzzOutcome("ok", "", case)


def child() -> int:
    """Reads requests, one JSON object a line, and answers with events: "case", "place", "outcome"."""
    lifeline.die_with_parent(int(os.environ[PARENT]))
    lifeline.leave_interrupts_to_parent()
    lifeline.cap_memory(8 << 30)
    reply = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no event
    from convbench import catalog

    found = catalog.load()
    known = found.implementations

    def send(event: str, **more: Any) -> None:
        reply.write(json.dumps({"event": event, **more}) + "\n")

    send("ready", names=sorted(known), broken={b.name: b.reason for b in found.broken})
    for line in sys.stdin:
        request = json.loads(line)
        if "problem" in request:
            case, refused = FuzzCase(**request), 0
        else:
            row = known[request["algorithm"]]
            drawn, refused = draw_case(row, request["seed"], request["index"], request["threads"])
            if drawn is None:
                send("outcome", status="unsupported", finding=f"none of {DRAWS} problems", refused=refused)
                continue
            case = drawn
        send("case", case=asdict(case))
        outcome = judge(known[case.algorithm], case, lambda place: send("place", place=place))
        send("outcome", status=outcome.status, finding=outcome.finding, refused=refused)
    return 0


# ---- the parent: keeps children at work


class Child:
    """A process that judges one case after the other."""

    def __init__(self, threads: int) -> None:
        count = {name: str(threads) for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")}
        env = os.environ | count | {PARENT: str(os.getpid()), "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "convbench.testing.fuzz", "--child"],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._pending = b""
        self.ready = self._event(HANG_S)
        self.judged = 0

    def ask(self, request: dict[str, Any]) -> FuzzOutcome:
        """The outcome of one request; a child that died or hangs is an outcome too (the child is of no use then)."""
        self.judged += 1
        case = FuzzCase(**request) if "problem" in request else None
        place, deadline = "", time.monotonic() + HANG_S
        try:
            assert self._process.stdin is not None
            self._process.stdin.write((json.dumps(request) + "\n").encode())
            self._process.stdin.flush()
        except OSError:
            return FuzzOutcome("crashed", self._end(), case)
        while True:
            event = self._event(deadline - time.monotonic())
            if event is None:
                return FuzzOutcome("crashed", f"{self._end()} (place: {place or 'none yet'})", case)
            if event["event"] == "case":
                case = FuzzCase(**event["case"])
            elif event["event"] == "place":
                place = event["place"]
            else:
                return FuzzOutcome(event["status"], event["finding"], case, event["refused"])

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _event(self, seconds: float) -> dict[str, Any] | None:
        """The next event; None if the child ends or says nothing for so long."""
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._pending:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            text = os.read(handle, 65536)
            if not text:
                return None
            self._pending += text
        line, self._pending = self._pending.split(b"\n", 1)
        return dict(json.loads(line))

    def _end(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return f"no answer for {HANG_S:.0f} s"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Fuzzer:
    """Shares (implementation, index) pairs out to children and collects what they find."""

    def __init__(self, names: list[str], count: int, seed: int, threads: int, end: float, first: Child) -> None:
        self._idle = [first]
        self._work = iter([(name, index) for index in range(count) for name in names])
        self._seed, self._threads, self._end = seed, threads, end
        self._lock = threading.Lock()
        self.outcomes: dict[str, Counter[str]] = {name: Counter() for name in names}
        self.refused = 0

    def run(self, jobs: int, report: Callable[[FuzzOutcome], None]) -> None:
        """Until the work or the time is over; `report` is called for whatever is not right."""
        workers = [threading.Thread(target=self._serve, args=(report,), daemon=True) for _ in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _serve(self, report: Callable[[FuzzOutcome], None]) -> None:
        child: Child | None = None
        while (item := self._next()) is not None:
            name, index = item
            if child is None or child.judged >= RENEW:
                if child is not None:
                    child.close()
                child = self._idle.pop() if self._idle else Child(self._threads)
            request = {"algorithm": name, "seed": self._seed, "index": index, "threads": self._threads}
            outcome = child.ask(request)
            if outcome.status == "crashed":
                child.close()
                child = None
                outcome = self._alone(outcome)
            with self._lock:
                self.outcomes[name][outcome.status] += 1
                self.refused += outcome.refused
                if outcome.status not in ("ok", "unsupported"):
                    report(outcome)
        if child is not None:
            child.close()

    def close(self) -> None:
        """Ends a child that nothing was asked of."""
        for child in self._idle:
            child.close()

    def _alone(self, outcome: FuzzOutcome) -> FuzzOutcome:
        """A crash once more in a process of its own, which says whether this problem is to blame."""
        if outcome.case is None:
            return outcome
        again = run_one(outcome.case, self._threads)
        if again.status == "ok":
            finding = f"{outcome.finding}; not when it runs alone: another problem of the same child may be to blame"
            return replace(outcome, finding=finding)
        return again

    def _next(self) -> tuple[str, int] | None:
        with self._lock:
            return next(self._work, None) if time.monotonic() < self._end else None


def run_one(case: FuzzCase, threads: int) -> FuzzOutcome:
    """One case in a process of its own."""
    child = Child(max(threads, case.threads))
    try:
        return child.ask(asdict(case))
    finally:
        child.close()


def main(arguments: list[str] | None = None) -> int:
    """Command line of `python -m convbench.testing.fuzz`."""
    summary = "Random convolutions for the implementations, in child processes, every buffer against forbidden pages."
    parser = argparse.ArgumentParser(prog="python -m convbench.testing.fuzz", description=summary)
    parser.add_argument("--algorithm", default="*_simd", metavar="GLOB", help="which ones (default %(default)s)")
    parser.add_argument("--count", type=int, default=2000, help="problems for each of them (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other problems")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many minutes")
    parser.add_argument("--jobs", type=int, default=1, help="child processes at a time")
    parser.add_argument("--threads", type=int, default=2, help="the largest thread count (default %(default)s)")
    parser.add_argument("--problem", metavar="DESCRIPTOR", help="this problem alone")
    parser.add_argument("--weights", choices=("raw", "packed"), default="raw", help="of --problem")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return child()
    probe = Child(options.threads)
    ready = probe.ready
    if ready is None:
        probe.close()
        sys.stderr.write("the catalog could not be loaded: try python -m convbench list --all\n")
        return EXIT_FAILED
    for name, reason in ready["broken"].items():
        sys.stderr.write(f"{name} is left out: {reason}\n")
    names = fnmatch.filter(ready["names"], options.algorithm)
    if not names:
        probe.close()
        sys.stderr.write(f"no implementation is called {options.algorithm}; there are {', '.join(ready['names'])}\n")
        return EXIT_NOTHING
    end = time.monotonic() + 60 * options.minutes
    fuzzer = Fuzzer(names, options.count, options.seed, options.threads, end, probe)
    if options.problem:
        for name in names:
            case = FuzzCase(name, options.problem, options.weights, options.threads, options.seed)
            outcome = run_one(case, options.threads)
            fuzzer.outcomes[name][outcome.status] += 1
            _report(outcome)
    else:
        fuzzer.run(options.jobs, _report)
    fuzzer.close()
    return summarise(fuzzer)


def _report(outcome: FuzzOutcome) -> None:
    if outcome.status == "ok":
        return
    name = outcome.case.algorithm if outcome.case else "?"
    sys.stdout.write(f"{outcome.status}: {name}: {outcome.finding}\n")
    if outcome.case and outcome.status != "unsupported":
        sys.stdout.write(f"  {outcome.case.repeat()}\n")
    sys.stdout.flush()


def summarise(fuzzer: Fuzzer) -> int:
    """Writes a line for each implementation and one for all; the exit code."""
    total: Counter[str] = Counter()
    for name, counted in fuzzer.outcomes.items():
        total.update(counted)
        sys.stdout.write(f"{name:32}" + "  ".join(f"{counted[s]} {s}" for s in OUTCOMES) + "\n")
    run = sum(total[s] for s in OUTCOMES if s != "unsupported")
    sys.stdout.write(
        f"{run} shapes run, {total['unsupported']} without any, {fuzzer.refused} drawn and refused: "
        f"{total['wrong']} wrong, {total['outside']} outside, {total['crashed']} crashed\n"
    )
    if total["crashed"]:
        return EXIT_FAILED
    if total["wrong"] or total["outside"]:
        return EXIT_WRONG
    return EXIT_OK if run else EXIT_NOTHING


if __name__ == "__main__":
    sys.exit(main())
