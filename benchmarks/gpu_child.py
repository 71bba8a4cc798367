"""One stage of `make gpu` for one row, in a process of its own: a line of JSON before each step, one with its result.

    python -m benchmarks.gpu_child STAGE ROW [--start N]

Lines: {"trying": {"case": ...}} when a step begins, {"case": ..., ...} or {"layer": ..., ...} when it has ended. With
--start the first N steps are left out: their results are there already.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

from convbench.worker import EXIT_GPU_LOST

HALF_SHAPES = ("odd_channels", "asymmetric_padding", "many_channels", "filter_5x5", "pointwise", "stride_2x1",
               "groups", "depthwise", "padding_beyond_filter")  # fmt: skip
SANITIZED_SHAPES = ("odd_channels", "stride_2x1")
#: Network -> layers of every kind that rows have tiles for: sizes of VGG-16, 5x5 filters, depthwise ones.
SWEEP_LAYERS = {
    "vgg16": ("conv1_2", "conv2_2", "conv3_2", "conv4_2", "conv5_1"),
    "googlenet": ("3b/5x5", "4e/5x5"),
    "mobilenet_v1": ("dw1", "dw3", "dw4", "dw7"),
}
SWEEP_BATCH = 32
PR_SET_PDEATHSIG = 1
SWEEP_LOOPS, SWEEP_SAMPLES = 8, 5


def main() -> int:
    """The command; Linux ends it when the process that started it is killed: nobody else writes to its journal."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_child")
    parser.add_argument("stage")
    parser.add_argument("row")
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    from convbench import catalog
    from convbench.devices.cuda import CudaDevice

    rows, device = catalog.load().implementations, CudaDevice()
    if options.stage == "ceilings":
        from convbench.devices import cuda_peaks

        _say({"peaks": cuda_peaks.measure(device)})
        return 0
    implementation = rows[options.row]
    if options.stage == "sweep":
        steps = sweep(implementation, device, sweep_layers(), SWEEP_BATCH, options.start)
    else:
        steps = verify(implementation, device, options.stage, options.start)
    for line in steps:
        _say(line)
        if line.get("status") == "wrong":
            try:
                device.synchronize()
            except Exception as error:  # noqa: BLE001 - the libraries' errors have no common type
                print(error, file=sys.stderr)
                return EXIT_GPU_LOST
    return 0


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def cases_of(implementation: Any, stage: str) -> list[Any]:
    """The conformance cases of a row; other types than float32, and everything under a sanitizer, on some shapes.

    Under a sanitizer those that it takes: of two shapes, or where it takes neither, of the first that it does.
    """
    from convbench.testing import conformance

    cases = [
        case for case in conformance.cases(implementation, dtypes=implementation.dtypes)
        if case.problem.dtype == "float32" or case.shape_name in HALF_SHAPES
    ]  # fmt: skip
    if stage != "sanitize":
        return cases
    taken = [case for case in cases if implementation.why_not(case.problem, case.weights) is None]
    usual = [case for case in taken if case.shape_name in SANITIZED_SHAPES]
    return usual or [case for case in taken if case.shape_name == taken[0].shape_name]


def verify(implementation: Any, device: Any, stage: str, start: int = 0) -> Iterator[dict[str, Any]]:
    """What becomes of each case of a row."""
    from convbench.testing import conformance

    for case in cases_of(implementation, stage)[start:]:
        yield {"trying": {"case": str(case)}}
        outcome = conformance.check(implementation, case.problem, case.weights, device=device)
        yield {"case": str(case), "status": outcome.status, "reason": outcome.reason}


def sweep_layers() -> list[Any]:
    """The layers of SWEEP_LAYERS."""
    from convbench.resources import folder
    from convbench.shapes import load_shapes

    found = []
    for network, names in SWEEP_LAYERS.items():
        layers = {layer.name: layer for layer in load_shapes(folder("suites") / "shapes" / f"{network}.yaml").layers}
        found += [layers[name] for name in names]
    return found


def _sweep_problems(implementation: Any, device: Any, layers: list[Any], batch: int) -> Iterator[tuple[str, Any, Any]]:
    """(label, problem, alternatives) of everything that a row offers programs for: what matters most comes first."""
    from dataclasses import replace

    from convbench.problem import Problem

    if not hasattr(implementation, "alternatives"):  # a plug-in's row that offers nothing
        return
    dtype = implementation.dtypes[0]
    layouts = implementation.layouts if dtype == "float32" else implementation.layouts[::-1]
    for layout, pass_, layer in itertools.product(layouts, implementation.passes, layers):
        problem = Problem(replace(layer.shape, n=batch), pass_, dtype, layout)
        if not implementation.why_not(problem):
            others = implementation.alternatives(problem, device.gpu)
            if others:
                yield f"{layer.name} {pass_} {dtype} {layout}", problem, others


def sweep(
    implementation: Any, device: Any, layers: list[Any], batch: int, start: int = 0
) -> Iterator[dict[str, Any]]:
    """Milliseconds of each alternative program of a row, verified before it is timed, beside the chosen one."""
    from convbench.devices.cuda_timing import CudaTimer
    from convbench.devices.nvml import Monitor
    from convbench.verify import Verifier

    monitor = Monitor(device.xp.cuda.Device().pci_bus_id)
    todo = _sweep_problems(implementation, device, layers, batch)
    for label, problem, others in itertools.islice(todo, start, None):
        yield {"trying": {"layer": label}}
        verifier, times, wrong = Verifier(problem, device=device), {}, {}
        for name, program in {"chosen": implementation.program(problem, device.gpu), **others}.items():
            plan, verdict = verifier.verify(implementation.taking(program), device.context)
            if plan is None:
                wrong[name] = verdict.reason
                continue
            timer = CudaTimer(device, plan, verifier.operands(), "hot", monitor)
            best = min(timer.time(SWEEP_LOOPS) for _ in range(SWEEP_SAMPLES))
            times[name] = best / SWEEP_LOOPS / 1e6
        yield {"layer": label, "wrong": wrong, **({"ms": times} if "chosen" in times else {})}


if __name__ == "__main__":
    sys.exit(main())
