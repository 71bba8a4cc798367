"""The second stage of sums that many blocks share: kernels/cuda/partial_sums.cu."""

from __future__ import annotations

from convbench.algorithms._cuda import blocks
from convbench.cuda.program import At, Launch, Long

THREADS = 256


def add_parts(sums: str, out: str, elements: int, parts: int) -> Launch:
    """out[elements] = the sum over `parts` of buffer sums[parts][elements]."""
    return Launch(
        "partial_sums.cu",
        "partial_sums",
        (blocks(elements, THREADS), 1, 1),
        (THREADS, 1, 1),
        (At(sums), At(out), Long(elements), parts),
    )
