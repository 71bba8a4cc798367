"""How a suite's time is shared out over its problems."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from convbench.problem import Problem

#: What verifying and timing one case costs beside its multiply-adds, said in floating-point operations: comparing
#: and copying each element (some 150 ns an element against some 20 runs at 60 GFLOP/s), and processes, plans, pauses.
ELEMENT_FLOPS = 500.0
FIXED_FLOPS = 5e8
#: The same beside a GPU of some 30 TFLOP/s: a case costs some 0.1 s whatever its size (compiling, capturing, waiting).
GPU_ELEMENT_FLOPS, GPU_FIXED_FLOPS = 5e3, 3e12
#: What a case costs there at least, in seconds: compiling, choosing among a vendor's plans, capturing. A suite of many
#: small problems reaches some of them, in its order, rather than a part of each.
GPU_CASE_S = 0.25


def weight(problem: Problem, device: str = "cpu") -> float:
    """The part of a suite's time that a problem deserves, in arbitrary units."""
    each, fixed = (ELEMENT_FLOPS, FIXED_FLOPS) if device == "cpu" else (GPU_ELEMENT_FLOPS, GPU_FIXED_FLOPS)
    return problem.direct_flops + each * problem.elements + fixed


class Budget:
    """Time left, shared by weight; what one problem leaves over, the next ones get."""

    def __init__(
        self,
        seconds: float,
        problems: Sequence[Problem],
        clock: Callable[[], float] = time.monotonic,
        device: str = "cpu",
    ) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._weights = [weight(p, device) for p in problems]

    def left(self) -> float:
        """Seconds left for the whole suite; may be negative."""
        return self._end - self._clock()

    def forgive(self, seconds: float) -> None:
        """Adds time that was lost to cases that crashed or hung: the others keep theirs."""
        self._end += seconds

    def next_share(self, least_s: float = 0.0) -> float:
        """Seconds for the next problem, at least `least_s` while any are left; takes it off the list."""
        share = max(0.0, self.left()) * self._weights[0] / sum(self._weights)
        self._weights.pop(0)
        return max(share, least_s) if share > 0 else share
