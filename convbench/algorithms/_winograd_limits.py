"""What Winograd convolution refuses, and which results share a transform: the same for every tier."""

from __future__ import annotations

from convbench.problem import Pass, Problem


def refusal(problem: Problem, who: str, taps: int, stride: int = 1) -> str | None:
    """A sentence, unless the filter is taps x taps, the stride `stride` and the dilation 1. who: how it begins."""
    s = problem.shape
    for what, (h, w), need in (("stride", s.stride, stride), ("dilation", s.dilation, 1)):
        if (h, w) != (need, need):
            return f"winograd: {what} must be {need}, not {h if h == w else f'{h}x{w}'}"
    if (s.r, s.s) != (taps, taps):
        return f"{who}: filter must be {taps}x{taps}, not {s.r}x{s.s}"
    return None


def footprint(problem: Problem, tile: int) -> tuple[int, int]:
    """An m x m tile; for backward weights the whole filter."""
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        return (problem.shape.r, problem.shape.s)
    return (tile, tile)
