"""Crashes in prepare()."""

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """Segmentation fault in prepare."""

    name = "bad_segfault_prepare_numpy"

    def prepare(self, problem, context, weights=None):
        bad_common.segfault()
