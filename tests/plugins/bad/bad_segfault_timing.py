"""Correct for its first calls, crashes later: in the middle of timing. CONVBENCH_BAD_AFTER says after how many."""

import os

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Segmentation fault after some correct calls."""

    name = "bad_segfault_timing_numpy"

    def prepare(self, problem, context, weights=None):
        right = super().prepare(problem, context, weights)
        left = [int(os.environ.get("CONVBENCH_BAD_AFTER", "40"))]

        def run(*arrays):
            left[0] -= 1
            if left[0] < 0:
                bad_common.segfault()
            right(*arrays)

        return run
