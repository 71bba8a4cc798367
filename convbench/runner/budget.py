"""How a suite's time is shared out over its problems."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from convbench.problem import Problem

#: What a problem costs whatever its size (processes, plans, pauses), said in floating-point operations.
FIXED_FLOPS = 4e8


def weight(problem: Problem) -> float:
    """The part of a suite's time that a problem deserves, in arbitrary units."""
    return problem.direct_flops + FIXED_FLOPS


class Budget:
    """Time left, shared by weight; what one problem leaves over, the next ones get."""

    def __init__(
        self, seconds: float, problems: Sequence[Problem], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._weights = [weight(p) for p in problems]

    def left(self) -> float:
        """Seconds left for the whole suite; may be negative."""
        return self._end - self._clock()

    def next_share(self) -> float:
        """Seconds for the next problem; takes it off the list."""
        share = max(0.0, self.left()) * self._weights[0] / sum(self._weights)
        self._weights.pop(0)
        return share
