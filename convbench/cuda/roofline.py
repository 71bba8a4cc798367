"""Predicted times of every CUDA row, written down before anything is measured; `model.py` says how.

    python -m convbench.cuda.roofline suites/shapes/vgg16.yaml --batch 32 --pass fwd bwd_data
    python -m convbench.cuda.roofline suites/shapes/vgg16.yaml --batch 1 8 32 128 --layout nchw nhwc --csv out.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

from convbench.algorithms._cuda import CudaImplementation
from convbench.cuda.compile import Kernel, compile_for
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.model import Usage, predict
from convbench.cuda.program import Launch
from convbench.errors import ConvbenchError, KernelError, Unavailable
from convbench.problem import Pass, Problem

GPUS = {"h200": H200, "a100": A100, "t4": T4}



@dataclass(frozen=True)
class Line:
    """A line of the table. ms_packed: without the filter's steps; tflops: operations of direct convolution a second."""

    row: str
    arithmetic: str
    layer: str
    n: int
    pass_: str
    dtype: str
    layout: str
    ms: float
    ms_packed: float | None
    bound: str
    tflops: float
    steps: int
    workspace_bytes: int


def predict_row(row: CudaImplementation, problem: Problem, gpu: Gpu, usage: Usage, layer: str = "") -> Line:
    """One row for one problem that it supports."""
    program, flops = row.program(problem, gpu), row.executed_flops(problem)
    raw = predict(program, problem, flops, row.arithmetic, gpu, usage)
    packed = None
    if problem.pass_ is not Pass.BACKWARD_WEIGHTS:
        packed = predict(program, problem, flops, row.arithmetic, gpu, usage, packed=True).seconds * 1e3
    return Line(
        row.name, row.arithmetic, layer, problem.shape.n, problem.pass_, problem.dtype, problem.layout,
        raw.seconds * 1e3, packed, raw.bound, problem.direct_flops / raw.seconds / 1e12, len(raw.steps),
        program.workspace_bytes,
    )  # fmt: skip


class CompiledUsage:
    """What kernels take on a GPU, compiled when they are first asked for; None without a compiler."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._known: dict[tuple[str, str, tuple[tuple[str, int | str], ...]], Kernel | None] = {}

    def __call__(self, launch: Launch) -> Kernel | None:
        key = (launch.file, launch.kernel, launch.defines)
        if key not in self._known:
            try:
                self._known[key] = compile_for(launch, self.gpu).kernel(launch.kernel)
            except Unavailable:
                self._known[key] = None
        return self._known[key]


def lines(
    rows: Iterable[CudaImplementation], problems: Iterable[tuple[str, Problem]], gpu: Gpu, usage: Usage | None = None
) -> Iterator[Line]:
    """Every row for every (layer, problem); the dtype is the row's own, what it does not support is left out."""
    usage = usage or CompiledUsage(gpu)
    chosen = list(problems)
    for row in rows:
        if not row.runs_on(gpu):
            continue
        for layer, problem in chosen:
            for dtype in row.dtypes:
                own = replace(problem, dtype=dtype, semantics=row.semantics)
                if row.why_not(own) is None:
                    yield predict_row(row, own, gpu, usage, layer)


def write_csv(path: Path, predicted: Iterable[Line]) -> None:
    """A line each, the fields of `Line` as columns."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f.name.rstrip("_") for f in fields(Line)])
        for line in predicted:
            values = (getattr(line, f.name) for f in fields(Line))
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for v in values])


def table(predicted: Sequence[Line]) -> list[str]:
    """Lines of text."""
    wide = max((len(line.row) for line in predicted), default=3)
    layers = max((len(line.layer) for line in predicted), default=5)
    text = [f"{'row':{wide}}  {'layer':{layers}}    N  {'pass':11} layout        ms   packed  bound    TFLOP/s"]
    for e in predicted:
        packed = "" if e.ms_packed is None else f"{e.ms_packed:.4f}"
        text.append(
            f"{e.row:{wide}}  {e.layer:{layers}} {e.n:4}  {e.pass_:11} {e.layout:6} {e.ms:9.4f} {packed:>8}  "
            f"{e.bound:7} {e.tflops:8.1f}"
        )
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m convbench.cuda.roofline`."""
    from convbench import catalog
    from convbench.shapes import load_shapes

    parser = argparse.ArgumentParser(prog="python -m convbench.cuda.roofline", description="Predicted times on a GPU.")
    parser.add_argument("shapes", type=Path, help="a shape file, such as suites/shapes/vgg16.yaml")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--pass", dest="passes", nargs="+", choices=[str(p) for p in Pass], default=["fwd"])
    parser.add_argument("--layout", nargs="+", choices=["nchw", "nhwc"], default=["nchw"])
    parser.add_argument("--rows", nargs="+", default=["*"], help="globs over the names of rows")
    parser.add_argument("--gpu", choices=GPUS, default="h200")
    parser.add_argument("--csv", type=Path, help="write the table to a file instead")
    options = parser.parse_args(arguments)
    gpu = GPUS[options.gpu]
    try:
        found = catalog.load().implementations.values()
        rows = [row for row in found if isinstance(row, CudaImplementation)]
        rows = [row for row in rows if any(fnmatchcase(row.name, glob) for glob in options.rows)]
        if not rows:
            raise KernelError(f"no CUDA row is called {' or '.join(options.rows)}: see convbench list --all")
        problems = [
            (layer.name, Problem(replace(layer.shape, n=n), Pass(pass_), "float32", layout))
            for n in options.batch
            for pass_ in options.passes
            for layout in options.layout
            for layer in load_shapes(options.shapes).layers
        ]
        predicted = list(lines(rows, problems, gpu))
    except ConvbenchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if options.csv:
        write_csv(options.csv, predicted)
    else:
        sys.stdout.write("\n".join(table(predicted)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
