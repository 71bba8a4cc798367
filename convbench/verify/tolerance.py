"""How far a float result may be from the exact one.

Statistical bound: rounding errors of n products behave like a random walk, so |got - want| <=
growth * eps * sqrt(n) * sqrt(x^2 * w^2), where x^2 * w^2 is the convolution of the squares (Higham and Mary, "A new
approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019, for the sqrt(n)). A bound with
|x| * |w| would let half precision pass at long sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from convbench.devices.arrays import namespace
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import Implementation

#: The oracle's own share, in units of float64's eps: it sums in float64 too.
ORACLE_GROWTH = 1.0

_MANTISSA_BITS = {"float64": 52, "float32": 23, "3xtf32": 21, "tf32": 10, "float16": 10, "bfloat16": 7}


def eps_of(arithmetic: str, dtype: str) -> float:
    """Distance from 1 to the next number of the arithmetic; "native" is the dtype's. int8 has none: it is exact.

    "x-acc32" multiplies in x and sums in float32: x's, but float32's where the operands are of type x already, because
    products of two half-precision numbers are exact in float32. ValueError: no eps is known.
    """
    name = dtype if arithmetic == "native" else arithmetic.split("-")[0]
    if arithmetic == f"{dtype}-acc32":
        name = "float32"
    if name not in _MANTISSA_BITS:
        raise ValueError(f"no eps is known for arithmetic {arithmetic!r}: add it to convbench/verify/tolerance.py")
    return 2.0 ** -_MANTISSA_BITS[name]


def growth_of(implementation: Implementation, problem: Problem) -> float:
    """What multiplies sqrt(x^2 * w^2) in the bound: error_growth * eps * sqrt(n), and the oracle's own share."""
    eps = implementation.error_growth * eps_of(implementation.arithmetic, problem.dtype)
    length = min(problem.accumulation_length, implementation.error_length or problem.accumulation_length)
    return (eps + ORACLE_GROWTH * eps_of("float64", "float64")) * length**0.5


def storing_eps(implementation: Implementation, problem: Problem) -> float:
    """Relative error of storing a result in a dtype that is coarser than the arithmetic, else 0."""
    stored = eps_of("native", problem.dtype)
    return stored if stored > eps_of(implementation.arithmetic, problem.dtype) else 0.0


def block_maximum(squares: Any, footprint: tuple[int, int] | None) -> Any:
    """Each element's largest neighbour within its aligned (height, width) block of the last two axes; none below 0."""
    if footprint is None:
        return squares
    xp = namespace(squares)
    for axis, block in zip((squares.ndim - 2, squares.ndim - 1), footprint, strict=True):
        size = squares.shape[axis]
        widths = [(0, -size % block if i == axis else 0) for i in range(squares.ndim)]
        padded = xp.pad(squares, widths)
        split = (*padded.shape[:axis], padded.shape[axis] // block, block, *padded.shape[axis + 1 :])
        largest = xp.repeat(padded.reshape(split).max(axis=axis + 1), block, axis=axis)
        squares = largest[(slice(None),) * axis + (slice(size),)]
    return squares


def in_whole_blocks(shape: ConvShape, pass_: Pass, footprint: tuple[int, int]) -> ConvShape:
    """The shape whose result (y, or dx for backward data) ends with a block, or with the last place that reads data."""
    grown = []
    for axis, block in enumerate(footprint):
        size, out = ((shape.h, shape.p), (shape.w, shape.q))[axis]
        begin, stride, extent = shape.padding[2 * axis], shape.stride[axis], shape.extent[axis]
        have, reached = out, (size - 1 + begin) // stride + 1
        if pass_ is Pass.BACKWARD_DATA:
            have, reached = size, (out - 1) * stride + extent - begin
        grown.append(max(have, min(-(-have // block) * block, reached)))
    if pass_ is Pass.BACKWARD_DATA:
        return replace(shape, h=grown[0], w=grown[1])
    top, bottom, left, right = shape.padding
    down, across = ((g - o) * s for g, o, s in zip(grown, (shape.p, shape.q), shape.stride, strict=True))
    return replace(shape, padding=(top, bottom + down, left, right + across))


def block_argmax(squares: np.ndarray, footprint: tuple[int, int], index: np.ndarray) -> np.ndarray:
    """(2, COUNT): where the plane squares[i, j] is largest in the block of the point index[:, t] = (i, j, u, v)."""
    high, wide = footprint
    known: dict[tuple[int, int, int, int], tuple[int, int]] = {}
    best = np.empty((2, index.shape[1]), np.int64)
    for t, (i, j, u, v) in enumerate(index.T.tolist()):
        key = (i, j, u // high * high, v // wide * wide)
        if key not in known:
            block = squares[i, j, key[2] : key[2] + high, key[3] : key[3] + wide]
            row, column = np.unravel_index(int(block.argmax()), block.shape)
            known[key] = (key[2] + int(row), key[3] + int(column))
        best[:, t] = known[key]
    return best
