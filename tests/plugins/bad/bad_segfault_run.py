"""Crashes in run()."""

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Segmentation fault in run."""

    name = "bad_segfault_run_numpy"

    def prepare(self, problem, context, weights=None):
        return lambda *arrays: bad_common.segfault()
