"""x^2 * w^2, the scale of rounding errors, also where results share one transform; kept like the oracle's results."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.devices.arrays import widened
from convbench.problem import Pass, Problem
from convbench.verify.inputs import Recipe, reduction_channels
from convbench.verify.oracle import convolve, sample
from convbench.verify.reference import CACHE, Reference, operands_of
from convbench.verify.tolerance import block_argmax, in_whole_blocks


def mixed_squares(
    problem: Problem, squares: Any, recipe: Recipe, footprint: tuple[int, int] | None, xp: Any = np
) -> Any:
    """x^2 * w^2, and with a footprint at least what the mean of w^2 over its taps would give, in whole blocks.

    A transform computes whole blocks and mixes all taps of a filter before any is left out. So a result that few
    taps reach (an image of one pixel, a far corner of the padding) has the rounding errors of a filter of average
    taps, and of the results of its block that lie beyond the last one asked for.
    """
    if footprint is None or problem.pass_ is Pass.BACKWARD_WEIGHTS:
        return squares
    p = problem
    key = f"mixed {xp.__name__} {p.shape} {p.pass_} {p.dtype} {recipe.key} {footprint}"
    found: Any = CACHE.get(key)
    if found is None:
        a, b = operands_of(p, recipe, xp)
        even = xp.broadcast_to(np.square(widened(b)).mean(axis=(2, 3), keepdims=True), b.shape)
        shape = in_whole_blocks(p.shape, p.pass_, footprint)
        if p.pass_ is Pass.BACKWARD_DATA:  # more of dx has more windows, which got no error
            a = xp.pad(a, ((0, 0), (0, 0), (0, shape.p - a.shape[2]), (0, shape.q - a.shape[3])))
        found = convolve(shape, p.pass_, a, even, square_a=True)
        inside = found[..., : squares.shape[2], : squares.shape[3]]
        np.maximum(inside, squares, out=inside)
        CACHE.put(key, found, found.nbytes)
    return found


def sampled_squares(
    problem: Problem, reference: Reference, recipe: Recipe, footprint: tuple[int, int] | None
) -> np.ndarray:
    """x^2 * w^2 at the samples; with a footprint, at least that of the block's place where its sum over
    channels is largest (a member of the block: the bound never exceeds the block's true maximum)."""
    assert reference.index is not None and reference.sampled_squares is not None
    if footprint is None or reference.projected_squares is None:
        return reference.sampled_squares
    shape, pass_ = problem.shape, problem.pass_
    key = f"companions {shape} {pass_} {problem.dtype} {recipe.key} {footprint}"
    found = CACHE.get(key)
    if found is None:
        first, channel, rows, columns = reference.index
        if pass_ is Pass.BACKWARD_WEIGHTS:  # planes by (group of k, c)
            plane = (first // shape.kg, channel)
        else:  # planes by (image, group of the channel)
            plane = (first, channel // reduction_channels(problem))
        at = block_argmax(reference.projected_squares, footprint, np.stack([*plane, rows, columns]))
        a, b = operands_of(problem, recipe)
        companions = np.stack([first, channel, *at])
        found = sample(shape, pass_, a, b, companions)[1]
        CACHE.put(key, found, found.nbytes)
    assert isinstance(found, np.ndarray)
    return np.maximum(found, reference.sampled_squares)
