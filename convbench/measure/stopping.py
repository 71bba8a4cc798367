"""When a series of samples is long enough (MEASURING: stopping and statistics)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convbench.stats import median_ci

LOOK_EVERY = 16  # samples between two looks at the interval, so that looking often does not bias it


@dataclass(frozen=True)
class StoppingRule:
    """Enough blocks, enough time, and a 95 % interval of the median narrow enough.

    `ci_target` is the half-width wanted, as a fraction of the median; `max_blocks` ends a series that never
    gets there (it is then noisy).
    """

    min_blocks: int = 8
    min_time_s: float = 0.2
    ci_target: float = 0.03
    max_blocks: int = 64

    def half_width(self, ns_per_call: Sequence[float], blocks: Sequence[int]) -> float:
        """Half the relative width of the interval; infinite where there is too little to say."""
        return median_ci(ns_per_call, blocks).relative_half_width if ns_per_call else float("inf")

    def looks_at(self, n_samples: int) -> bool:
        """True at the sample counts where the interval is looked at."""
        return n_samples == self.min_blocks or (n_samples > self.min_blocks and n_samples % LOOK_EVERY == 0)

    def enough(self, ns_per_call: Sequence[float], blocks: Sequence[int], total_ns: float) -> bool:
        """True when the series may end as it is."""
        n = len(ns_per_call)
        if n >= self.max_blocks:
            return True
        if n < self.min_blocks or total_ns < self.min_time_s * 1e9 or not self.looks_at(n):
            return False
        return self.half_width(ns_per_call, blocks) <= self.ci_target
