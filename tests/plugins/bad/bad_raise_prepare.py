"""Raises in prepare()."""

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Raises in prepare."""

    name = "bad_raise_prepare_numpy"

    def prepare(self, problem, context, weights=None):
        raise RuntimeError("prepare went wrong")
