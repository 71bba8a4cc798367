"""Where the time of a fused transform convolution goes, and what bounds each phase: one thread, NHWC.

`python benchmarks/phases.py ALGORITHM DESCRIPTOR ...` runs winograd_*_simd (three passes) or fft_tiled_simd (forward
and backward data, packed; Winograd backward weights raw) whole and with one phase alone, interleaved, and prints
medians. The bound of a phase is the larger of its executed operations at the measured multiply-add peak and of the
bytes that it has to move at the measured bandwidth of memory beyond the second-level cache (operands, results and
transformed filters once). A phase alone finds its operands colder or warmer than in the whole, so the parts need not
add up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from convbench.environment import thread_env

BITS = {
    "winograd": {"input_transform": 1, "multiply": 4, "output_transform": 8},
    "weights": {"input_transform": 1, "multiply": 2, "output_transform": 4},
    "fft": {"input_transform": 1, "multiply": 2, "output_transform": 4},
}
REPEATS, SAMPLE_S = 15, 0.02


def main() -> None:
    """Sets the thread variables, then prints a table for each problem."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("algorithm")
    parser.add_argument("problems", nargs="+", metavar="DESCRIPTOR")
    options = parser.parse_args()
    wanted = thread_env(1)
    if any(os.environ.get(key) != value for key, value in wanted.items()):  # they must stand before NumPy loads
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    from convbench import catalog
    from convbench.descriptor import parse_descriptor
    from convbench.devices import fma_peak

    row = catalog.load().implementations[options.algorithm]
    peak, bandwidth = fma_peak.measure(1), bytes_per_second()
    print(f"multiply-add peak {peak:.0f} GFLOP/s, reading beyond the second-level cache {bandwidth / 1e9:.1f} GB/s")
    for text in options.problems:
        problem = replace(parse_descriptor(text).problem, layout="nhwc")
        print(f"\n{options.algorithm} {text} {problem.pass_}")
        for line in measure(row, problem, peak * 1e9, bandwidth):
            print(line)


def bytes_per_second() -> float:
    """Reading 16 MiB again and again, best of forty: what streams of transformed filters can count on."""
    import numpy as np

    data = np.ones(4 << 20, np.float32)
    best = float("inf")
    for _ in range(40):
        start = time.perf_counter()
        data.dot(data)
        best = min(best, time.perf_counter() - start)
    return data.nbytes / best


def measure(row: Any, problem: Any, peak: float, bandwidth: float) -> list[str]:
    """A line for the whole and one for each phase: milliseconds, rate, bound."""
    import numpy as np

    from convbench.devices.cpu import CpuContext, aligned_empty
    from convbench.problem import Pass

    rng = np.random.default_rng(0)
    arrays = [aligned_empty(shape, np.float32) for shape in (problem.a_shape, problem.b_shape, problem.out_shape)]
    for array in arrays[:2]:
        array[...] = rng.standard_normal(array.shape, dtype=np.float32)
    is_weights = problem.pass_ is Pass.BACKWARD_WEIGHTS
    bits = BITS["fft" if row.family == "fft" else "weights" if is_weights else "winograd"]
    operands = arrays if is_weights else [arrays[0], arrays[2]]
    runs = {"whole": prepared(row, problem, CpuContext(1), arrays[1], -1)}
    for phase, bit in bits.items():
        runs[phase] = prepared(row, problem, CpuContext(1), arrays[1], bit)
    times = interleaved({name: (lambda run=run: run(*operands)) for name, run in runs.items()})
    flops = row.executed_flops(problem)
    moved = traffic(row, problem)
    lines = []
    for name, seconds in times.items():
        work = sum(v for k, v in flops.items() if k != "filter_transform") if name == "whole" else flops.get(name, 0.0)
        data = sum(moved.values()) if name == "whole" else moved[name]
        bound = max(work / peak, data / bandwidth)
        lines.append(
            f"  {name:18} {seconds * 1e3:8.3f} ms  {work / seconds / 1e9:6.0f} GFLOP/s executed  bound "
            f"{bound * 1e3:7.3f} ms ({'operations' if work / peak >= data / bandwidth else 'bytes'}), "
            f"{100 * bound / seconds:3.0f} % of it reached"
        )
    return lines


def traffic(row: Any, problem: Any) -> dict[str, float]:
    """Bytes that each phase cannot avoid moving beyond the second-level cache."""
    item = problem.item_bytes
    a, b, out = (item * float(_product(s)) for s in (problem.a_shape, problem.b_shape, problem.out_shape))
    if str(problem.pass_) == "bwd_weights":
        return {"input_transform": a + b, "multiply": 0.0, "output_transform": out}
    filters = max(0.0, float(row.packed_estimate(problem)) - 4 * 2**20)  # all but the scratch of a block
    return {"input_transform": a, "multiply": filters, "output_transform": out}


def prepared(row: Any, problem: Any, context: Any, weights: Any, phases: int) -> Callable[..., None]:
    """run with only the phases whose bits are set."""
    from convbench.problem import Pass

    if row.family == "fft":
        from convbench.algorithms._fft_simd_run import Prepared

        fft = Prepared(row.plan(problem), context, phases)
        fft.transform_filters(weights)
        return fft.run
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        from convbench.algorithms._winograd_simd_weights import prepare_backward_weights
        from convbench.algorithms._winograd_simd_weights_tasks import PHASES

        run = prepare_backward_weights(problem, context, row.tile, row.taps)
        run.parameters[PHASES] &= phases  # type: ignore[attr-defined]
        return run
    from convbench.algorithms._winograd_simd_build import build

    return build(problem, context, weights, row.tile, row.taps, phases=phases)


def interleaved(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of one call of each, in rounds."""
    loops, samples = {}, {name: [] for name in calls}
    for name, function in calls.items():
        function()
        start = time.perf_counter()
        function()
        loops[name] = max(1, int(SAMPLE_S / max(time.perf_counter() - start, 1e-7)))
    for _ in range(REPEATS):
        for name, function in calls.items():
            start = time.perf_counter()
            for _ in range(loops[name]):
                function()
            samples[name].append((time.perf_counter() - start) / loops[name])
    return {name: statistics.median(values) for name, values in samples.items()}


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


if __name__ == "__main__":
    main()
