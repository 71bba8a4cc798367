"""Raises in run()."""

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Raises in run."""

    name = "bad_raise_run_numpy"

    def prepare(self, problem, context, weights=None):
        def run(*arrays):
            raise RuntimeError("run went wrong")

        return run
