"""Interleaved sampling in randomised blocks.

A block runs every subject once, in a fresh permutation, so that drift hits all alike and ratios are paired
(Kalibera & Jones 2013 on repetition; benchmarks of this kind are otherwise biased by their order). The sampler
takes a clock and callables; it knows nothing of convolutions, so its tests run on a fake clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from convbench.measure.stopping import StoppingRule

# A sample is a loop of calls at least this long: far above the clock's resolution, and, where there is time for the
# wanted number of blocks, worth the pause before it (at 1 ms most of a block's time goes into pauses and warm calls).
SHORTEST_SAMPLE_NS, SAMPLE_NS = 1_000_000, 20_000_000
SAMPLING_SHARE = 0.6  # of the time left after warming up: what the wanted blocks may be planned to take
WARM_WINDOW_NS = 50_000_000
WARM_AGREEMENT = 0.01
WARM_SHARE = 0.2  # of the time: what warming up may take
SHORT_CALL_NS = 100_000_000  # above this cold caches and the wake-up of a thread pool are lost in the call
HARD_MIN_SAMPLES = 3  # below this there is no interval, so no result


class Timer(Protocol):
    """How a subject is timed where the host's clock around its calls would not do (a GPU)."""

    def call(self) -> None:
        """One run, waited for."""

    def time(self, loops: int) -> int:
        """Nanoseconds of `loops` runs."""


class Clock(Protocol):
    """What the sampler needs of a machine."""

    def now_ns(self) -> int:
        """Monotonic time."""

    def pause(self, seconds: float) -> None:
        """Sleeps, so that another library's spinning threads go to rest."""

    def flush(self) -> None:
        """Empties the caches (cold mode)."""


@dataclass
class Subject:
    """One thing to time. `call()` runs it once; `pool` names the thread pool that it uses.

    timer: times it instead of the sampler's clock, which still keeps the deadline.
    """

    name: str
    call: Callable[[], None]
    pool: str = ""
    estimate_ns: float = 0.0
    loops: int = 0  # calls in one sample; 0: the warm-up decides
    ns: list[int] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    finished: bool = False
    noisy: bool = False
    half_width: float = float("inf")
    timer: Timer | None = None

    @property
    def per_call(self) -> list[float]:
        """Nanoseconds of one call, per sample."""
        return [ns / self.loops for ns in self.ns]


@dataclass
class Settings:
    """How a group of subjects is sampled. `deadline_ns` is on the sampler's clock.

    sample_ns: how long a sample of short calls should be, where there is time for the wanted blocks. warm_window_ns:
    how long a window of warming up.
    """

    rule: StoppingRule
    baseline: str | None
    deadline_ns: int
    mode: str = "hot"
    pool_pause_s: float = 0.0
    warm_min_s: float = 0.2
    seed: int = 0
    first_block: int = 0
    sample_ns: int = SAMPLE_NS
    warm_window_ns: int = WARM_WINDOW_NS


class BlockSampler:
    """Warms up, then samples blocks until every subject is done or the time is.

    `announce(name)` comes before anything of a subject runs; `emit(name, block, position, ns, loops)` after
    each sample. A subject that raises ends there: `failed(name, error)` is told and the others go on.
    """

    def __init__(
        self,
        subjects: list[Subject],
        settings: Settings,
        clock: Clock,
        announce: Callable[[str], None],
        emit: Callable[[str, int, int, int, int], None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.subjects = subjects
        self.settings = settings
        self.clock = clock
        self._announce, self._emit, self._failed = announce, emit, failed
        self._random = random.Random(settings.seed)
        self._last_pool: str | None = None
        self._start_ns = clock.now_ns()

    def run(self) -> list[Subject]:
        """The subjects that did not fail, with their samples."""
        for subject in list(self.subjects):
            self._guarded(subject, self._warm_up)
        block = self.settings.first_block
        while self._active() and self._time_left() > 0:
            order = self._members()
            self._random.shuffle(order)
            for position, subject in enumerate(order):
                if self._time_left() <= 0 and len(subject.ns) >= HARD_MIN_SAMPLES:
                    continue
                self._guarded(subject, partial(self._sample, block=block, position=position))
            block += 1
            self._judge()
        for subject in self.subjects:
            self._settle(subject)
        return self.subjects

    def _time_left(self) -> int:
        return self.settings.deadline_ns - self.clock.now_ns()

    def _active(self) -> list[Subject]:
        return [s for s in self.subjects if not s.finished]

    def _members(self) -> list[Subject]:
        """Who runs in the next block: all that are not done, and the baseline as long as anyone is not."""
        return [s for s in self.subjects if not s.finished or s.name == self.settings.baseline]

    def _guarded(self, subject: Subject, action: Callable[[Subject], None]) -> None:
        self._announce(subject.name)
        try:
            action(subject)
        except Exception as error:  # noqa: BLE001 - a subject's failure costs the subject alone, and is told
            self.subjects.remove(subject)
            self._failed(subject.name, error)

    def _time(self, subject: Subject, loops: int) -> int:
        if subject.timer is not None:
            return subject.timer.time(loops)
        call, now = subject.call, self.clock.now_ns
        start = now()
        for _ in range(loops):
            call()
        return now() - start

    def _warm_up(self, subject: Subject) -> None:
        """Windows until two successive ones agree within 1 % after warm_min_s, or a fair share of the time is gone."""
        fair_ns = WARM_SHARE * max(0, self._time_left()) / max(1, len(self.subjects))
        least_ns = min(self.settings.warm_min_s * 1e9, fair_ns)
        spent, previous = 0, 0.0
        while True:
            window_ns = self.settings.warm_window_ns
            calls = max(1, min(1000, int(window_ns / subject.estimate_ns))) if subject.estimate_ns else 1
            window = self._time(subject, calls)
            subject.estimate_ns = max(window / calls, 1.0)
            spent += window
            agree = previous > 0 and abs(subject.estimate_ns - previous) <= WARM_AGREEMENT * previous
            previous = subject.estimate_ns
            if (agree and spent >= least_ns) or spent >= fair_ns:
                break
        if self.settings.mode == "cold":
            subject.loops = 1
        elif not subject.loops:
            subject.loops = max(1, -(-self._sample_ns() // int(subject.estimate_ns)))
        self._last_pool = subject.pool

    def _sample_ns(self) -> int:
        """How long a sample of short calls should be, its warm call and its pause counted, to get all blocks in."""
        planned = SAMPLING_SHARE * self._time_left() / (self.settings.rule.min_blocks * max(1, len(self.subjects)))
        worth = int((planned - self.settings.pool_pause_s * 1e9) / 2)
        return min(max(worth, SHORTEST_SAMPLE_NS), self.settings.sample_ns)

    def _sample(self, subject: Subject, block: int, position: int) -> None:
        if self.settings.mode == "cold":
            self.clock.flush()
        else:
            if self.settings.pool_pause_s and self._last_pool != subject.pool:
                self.clock.pause(self.settings.pool_pause_s)
            if subject.estimate_ns < SHORT_CALL_NS:
                subject.call()  # untimed, for all alike: what ran before left its own data in the caches
        self._last_pool = subject.pool
        ns = self._time(subject, subject.loops)
        subject.ns.append(ns)
        subject.block.append(block)
        subject.position.append(position)
        self._emit(subject.name, block, position, ns, subject.loops)

    def _judge(self) -> None:
        """Ends the series that are done, and the slow ones that used up their share of the time."""
        fair_ns = (self.settings.deadline_ns - self._start_ns) / max(1, len(self.subjects))
        for subject in self._active():
            total = float(sum(subject.ns))
            if self.settings.rule.enough(subject.per_call, subject.block, total) or (
                len(subject.ns) >= self.settings.rule.min_blocks
                and total > 2 * fair_ns
                and subject.name != self.settings.baseline
            ):
                subject.finished = True

    def _settle(self, subject: Subject) -> None:
        """The width that was reached, and whether it is wider than was wanted."""
        subject.half_width = self.settings.rule.half_width(subject.per_call, subject.block)
        subject.noisy = (
            subject.half_width > self.settings.rule.ci_target or len(subject.ns) < self.settings.rule.min_blocks
        )
