"""The conversion of operands timed by itself, beside the samples of the call that contains it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from convbench.measure.sampler import BlockSampler, Clock, Settings, Subject
from convbench.measure.stopping import StoppingRule

BUDGET_NS = 50_000_000  # of a case; a single call may take longer
WARM_S, WARM_WINDOW_NS = 0.002, 2_000_000
FEWEST, MOST = 5, 9  # samples


def packing_ns(
    name: str, pack: Callable[[], None], clock: Clock, mode: str, announce: Callable[[str], None]
) -> float:
    """Median nanoseconds of pack(), warmed up, looped and flushed as the whole call is; where the budget lets no
    sample follow, those of the last call of its warming up. Raises what pack raises.

    By itself it may take another time than within the call: there products and results share the caches with it.
    """
    failures: list[Exception] = []
    subject = Subject(name, pack)
    rule = StoppingRule(min_blocks=FEWEST, min_time_s=0.0, ci_target=0.0, max_blocks=MOST)
    settings = Settings(
        rule, None, clock.now_ns() + BUDGET_NS, mode, warm_min_s=WARM_S,
        warm_window_ns=WARM_WINDOW_NS,
    )  # fmt: skip
    BlockSampler(
        [subject], settings, clock, announce, emit=lambda *_: None, failed=lambda _, error: failures.append(error)
    ).run()
    if failures:
        raise failures[0]
    return float(median(subject.per_call)) if subject.ns else subject.estimate_ns
