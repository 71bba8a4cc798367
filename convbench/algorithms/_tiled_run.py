"""run() of rows whose tasks are tiles of the result and whose filter lies in panels, from a table of parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convbench.algorithms._simd import address_of
from convbench.registry import Run, with_packing
from convbench.simd.driver import Runner, Task


@dataclass(frozen=True)
class Tasks:
    """The task of a tile and that of a panel of the filter, and where both find a, the filter, out and the panels."""

    tile: Task
    filter: Task
    a: int
    weights: int
    out: int
    panels: int


def tiled_run(
    tasks: Tasks, parameters: np.ndarray, panels: int, jobs: int, threads: int, weights: Any, fills: bool, kept: Any
) -> Run:
    """run(a, b, out), or run(a, out) where the filter is given now, from a table of parameters.

    Its `pack` runs the tasks of the tiles on a table of its own, in which the filter has no panels: strips are filled,
    nothing is multiplied. By itself it finds a strip in the caches where the last task left it; in run() panels and
    results come between. fills: whether there are strips; where x is read in place and the filter is given, there is
    nothing to time. kept: what the table points to.
    """
    products, packing = (Runner(t, parameters, threads) for t in (tasks.tile, tasks.filter))
    without = parameters.copy()
    without[tasks.panels] = 0
    strips = Runner(tasks.tile, without, threads)

    def pack_filter(b: np.ndarray) -> None:
        parameters[tasks.weights] = address_of(b)
        packing(panels)

    def fill_strips(a: np.ndarray, kept: Any = kept) -> None:
        without[tasks.a] = address_of(a)
        strips(jobs)

    def run_packed(a: np.ndarray, out: np.ndarray, kept: Any = kept) -> None:
        parameters[tasks.a], parameters[tasks.out] = address_of(a), address_of(out)
        products(jobs)

    def run(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        pack_filter(b)
        run_packed(a, out)

    def pack(a: np.ndarray, b: np.ndarray) -> None:
        pack_filter(b)
        fill_strips(a)

    if weights is None:
        return with_packing(run, pack)
    pack_filter(weights)
    return with_packing(run_packed, fill_strips) if fills else run_packed
