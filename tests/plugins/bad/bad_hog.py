"""Allocates without end, touching every page."""

import bad_common
import numpy as np

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Takes 64 MB more at a time, for ever."""

    name = "bad_hog_numpy"

    def prepare(self, problem, context, weights=None):
        def run(*arrays):
            kept = []
            while True:
                kept.append(np.ones(8 << 20))  # 64 MB, written to

        return run
