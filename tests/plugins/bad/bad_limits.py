"""Raises or crashes in limits(): CONVBENCH_BAD_LIMITS is raise or segfault."""

import os

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Cannot be asked."""

    name = "bad_limits_numpy"

    def limits(self, problem):
        if os.environ.get("CONVBENCH_BAD_LIMITS") == "segfault":
            bad_common.segfault()
        raise ZeroDivisionError("limits went wrong")
