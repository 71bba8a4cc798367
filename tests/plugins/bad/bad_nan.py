"""Gives back NaN."""

import bad_common

from convbench.registry import register


@register
class Bad(bad_common.Right):
    """NaN in the last pixel of each channel."""

    name = "bad_nan_numpy"

    def prepare(self, problem, context, weights=None):
        right = super().prepare(problem, context, weights)

        def run(*arrays):
            right(*arrays)
            arrays[-1][..., -1, -1] = float("nan")

        return run
