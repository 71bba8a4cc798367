"""The sampler on a fake clock: order, pairing, warm-up, stopping, loops, failures. No test here takes real time."""

from __future__ import annotations

import pytest

from convbench.measure.sampler import BlockSampler, Settings, Subject
from convbench.measure.stopping import StoppingRule


class FakeClock:
    """Time that passes only when somebody works or pauses."""

    def __init__(self) -> None:
        self.ns = 0
        self.log: list[str] = []

    def now_ns(self) -> int:
        return self.ns

    def pause(self, seconds: float) -> None:
        self.log.append("pause")
        self.ns += int(seconds * 1e9)

    def flush(self) -> None:
        self.log.append("flush")


def work(clock: FakeClock, name: str, ns: int, jitter: int = 0):
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.log.append(name)
        clock.ns += ns + jitter * ((calls * calls) % 7 - 3) // 3

    return call


def sample(clock: FakeClock, subjects: list[Subject], **settings):
    emitted, lost = [], []
    defaults = {
        "rule": StoppingRule(min_blocks=8, min_time_s=0.0, ci_target=0.03, max_blocks=64),
        "baseline": subjects[0].name,
        "deadline_ns": 10**12,
        "warm_min_s": 0.0,
    }
    sampler = BlockSampler(
        subjects,
        Settings(**(defaults | settings)),
        clock,
        announce=lambda name: None,
        emit=lambda *event: emitted.append(event),
        failed=lambda name, error: lost.append((name, str(error))),
    )
    return {s.name: s for s in sampler.run()}, emitted, lost


def three(clock: FakeClock) -> list[Subject]:
    times = (("a", 22_000_000), ("b", 25_000_000), ("c", 29_000_000))
    return [Subject(n, work(clock, n, ns), pool=n) for n, ns in times]


def test_every_block_runs_every_subject_once_in_changing_order():
    clock = FakeClock()
    _, emitted, _ = sample(clock, three(clock))
    blocks: dict[int, list[str]] = {}
    for name, block, position, _, _ in emitted:
        blocks.setdefault(block, []).append(name)
        assert position == len(blocks[block]) - 1
    assert all(sorted(order) == ["a", "b", "c"] for order in blocks.values())
    assert len({tuple(order) for order in blocks.values()}) > 1


def test_a_steady_subject_stops_at_min_blocks():
    clock = FakeClock()
    subjects, _, _ = sample(clock, three(clock))
    assert {len(s.ns) for s in subjects.values()} == {8}
    assert not any(s.noisy for s in subjects.values())


def test_an_unsteady_subject_goes_on_alone_with_the_baseline_and_ends_noisy():
    clock = FakeClock()
    subjects = [*three(clock)[:2], Subject("wild", work(clock, "wild", 50_000_000, 40_000_000))]
    done, _, _ = sample(clock, subjects)
    assert len(done["b"].ns) == 8
    assert len(done["wild"].ns) == 64 and done["wild"].noisy
    assert done["a"].block == done["wild"].block  # the baseline stays in every block


def test_min_time_keeps_a_steady_subject_going():
    clock = FakeClock()
    rule = StoppingRule(min_blocks=8, min_time_s=0.5, ci_target=0.03, max_blocks=64)
    done, _, _ = sample(clock, [Subject("a", work(clock, "a", 22_000_000))], rule=rule)
    assert len(done["a"].ns) == 32  # 23 samples are 0.5 s; the next look is at 32


def test_short_calls_are_looped_to_twenty_milliseconds():
    clock = FakeClock()
    done, emitted, _ = sample(clock, [Subject("tiny", work(clock, "tiny", 10_000))])
    assert done["tiny"].loops == 2000
    assert all(ns == 20_000_000 and loops == 2000 for _, _, _, ns, loops in emitted)
    assert done["tiny"].per_call == [10_000.0] * len(emitted)


def test_samples_are_shorter_where_time_is_short():
    clock = FakeClock()
    done, _, _ = sample(clock, [Subject("tiny", work(clock, "tiny", 10_000))], deadline_ns=100_000_000)
    assert 100 <= done["tiny"].loops < 2000
    assert len(done["tiny"].ns) >= 8


def test_cold_mode_flushes_before_every_sample_and_never_loops():
    clock = FakeClock()
    done, emitted, _ = sample(clock, [Subject("tiny", work(clock, "tiny", 10_000))], mode="cold")
    assert done["tiny"].loops == 1
    assert clock.log.count("flush") == len(emitted)


def test_a_pause_and_a_warm_call_come_where_another_pool_ran_last():
    clock = FakeClock()
    sample(clock, three(clock), pool_pause_s=0.04)
    at = clock.log.index("pause")
    assert clock.log[at + 1] == clock.log[at + 2] != "pause"  # the warm call, then the sample of one call


def test_short_calls_are_warmed_before_every_sample_and_long_ones_never():
    clock = FakeClock()
    subjects = [Subject("short", work(clock, "short", 30_000_000)), Subject("long", work(clock, "long", 300_000_000))]
    done, _, _ = sample(clock, subjects)
    warmed = 2 + 1  # the warm-up's windows: one call, then as many as fit into 50 ms
    assert clock.log.count("short") - 2 * len(done["short"].ns) <= warmed
    assert clock.log.count("short") >= 2 * len(done["short"].ns)
    assert clock.log.count("long") <= len(done["long"].ns) + warmed


def test_the_same_pool_needs_no_pause():
    clock = FakeClock()
    same = [Subject(n, work(clock, n, 2_000_000), pool="one") for n in "ab"]
    sample(clock, same, pool_pause_s=0.04)
    assert "pause" not in clock.log


def test_the_deadline_ends_everything_and_what_is_wide_is_noisy():
    clock = FakeClock()
    done, _, _ = sample(clock, three(clock), deadline_ns=400_000_000)
    assert all(len(s.ns) < 8 and s.noisy for s in done.values())
    assert clock.ns < 500_000_000


def test_a_subject_that_raises_is_lost_alone():
    clock = FakeClock()
    calls = 0

    def breaks() -> None:
        nonlocal calls
        calls += 1
        clock.ns += 30_000_000
        if calls > 6:
            raise ValueError("no more")

    done, _, lost = sample(clock, [*three(clock), Subject("d", breaks)])
    assert lost == [("d", "no more")]
    assert {len(s.ns) for s in done.values()} == {8}


def test_a_slow_subject_gives_way_after_min_blocks():
    clock = FakeClock()
    slow = Subject("slow", work(clock, "slow", 600_000_000, 300_000_000))
    done, _, _ = sample(clock, [*three(clock), slow], deadline_ns=8_000_000_000)
    assert len(done["slow"].ns) == 8 and done["slow"].noisy


@pytest.mark.parametrize("n,expected", [(7, False), (8, True), (12, False), (16, True), (32, True), (40, False)])
def test_the_interval_is_looked_at_rarely(n, expected):
    assert StoppingRule(min_blocks=8).looks_at(n) is expected
