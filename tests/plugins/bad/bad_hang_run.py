"""Hangs in run()."""

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Never returns."""

    name = "bad_hang_run_numpy"

    def prepare(self, problem, context, weights=None):
        return lambda *arrays: bad_common.hang()
