"""Is the vendor baseline an honest one? Row `onednn` against row `torch`, layer by layer, in the same blocks.

Forward, float32, nhwc (channels_last), filters packed on both sides, batch 1; VGG-16 and ResNet-50 from suites/shapes.
A fresh process for each thread count. Each block runs the contenders of a layer once, in a random order; with more
than one thread a pause and a warm call go before a sample where the other library ran last.

    python benchmarks/onednn_vs_torch.py                    both networks, 1 thread and all cores
    python benchmarks/onednn_vs_torch.py --networks vgg16 --threads 1 --blocks 40 --json result.json

Contenders: `onednn` and `torch` as registered, and `torch, own result`: PyTorch's call alone, without the copy into
the caller's array that the row must make. The last is what the libraries' convolutions are judged by. PyTorch also
pays more for a call as such, which weighs on layers of under a millisecond; a convolution of 0.4 MFLOP measures it,
and the means are given with each contender's price of a call taken off too. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convbench.environment import thread_env
from convbench.problem import ConvShape, Problem
from convbench.resources import folder
from convbench.shapes import Layer, load_shapes
from convbench.stats import geomean_ci, median_ci, ratio_ci

NETWORKS = ("vgg16", "resnet50")
CONTENDERS = ("onednn", "torch", "torch, own result")
PAUSE_S = 0.06
SAMPLE_NS = 2_000_000
MARK = "layer:"
TINY = Layer("tiny", 0, ConvShape.make(1, 64, 7, 7, 64, 1, 1))  # 0.4 MFLOP: a call and little else


def layers_of(network: str) -> tuple[Layer, ...]:
    """The convolutions of a network, with how often each occurs."""
    return load_shapes(folder("suites") / "shapes" / f"{network}.yaml").layers


def problem_of(layer: Layer) -> Problem:
    """Forward, float32, nhwc."""
    return Problem(layer.shape, layout="nhwc")


class Contenders:
    """The prepared calls of one layer over shared operands; each call computes one convolution."""

    def __init__(self, layer: Layer, threads: int) -> None:
        import numpy as np

        # torch first: both are linked to libgomp.so.1, and whichever is loaded first is then used by both
        import torch

        from convbench.algorithms import onednn, torch_cpu  # noqa: F401 - registers the rows
        from convbench.devices.base import make_plan
        from convbench.devices.cpu import CpuContext, aligned_empty
        from convbench.registry import implementations

        self.problem = problem = problem_of(layer)
        rng = np.random.default_rng(0)
        x, w = aligned_empty(problem.a_shape, "float32"), aligned_empty(problem.b_shape, "float32")
        x[...], w[...] = rng.standard_normal(x.shape), rng.standard_normal(w.shape)
        self.calls: dict[str, Callable[[], Any]] = {}
        self.notes: dict[str, dict[str, str]] = {}
        self.results = {}
        for name in ("onednn", "torch"):
            out = aligned_empty(problem.out_shape, "float32")
            plan = make_plan(implementations()[name], problem, CpuContext(threads), w)
            self.calls[name] = lambda plan=plan, out=out: plan.run(x, None, out)
            self.results[name], self.notes[name] = out, plan.notes
        self.calls["torch, own result"] = _torch_alone(torch, problem, x, w)

    def disagreement(self) -> float:
        """Relative L2 distance between the two libraries' results."""
        import numpy as np

        a, b = self.results["onednn"], self.results["torch"]
        return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def _torch_alone(torch: Any, problem: Problem, x: Any, w: Any) -> Callable[[], Any]:
    """PyTorch's packed convolution of channels_last tensors, its result left where PyTorch put it."""
    s = problem.shape
    geometry = ([s.padding[0], s.padding[2]], list(s.stride), list(s.dilation), s.groups)
    with torch.inference_mode():
        tensor = torch.from_numpy(x).permute(0, 3, 1, 2)
        weights = torch.from_numpy(w).permute(0, 3, 1, 2)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weights, *geometry, [s.n, s.c, s.h, s.w])

    def call() -> Any:
        with torch.inference_mode():
            return torch.ops.mkldnn._convolution_pointwise(tensor, packed, None, *geometry, "none", [], "")

    return call


def measure(network: str, threads: int, blocks: int) -> list[dict[str, Any]]:
    """Child process: samples of every layer, each block a random permutation of the contenders."""
    import random

    order = random.Random(0)
    rows = []
    for layer in (TINY, *layers_of(network)):
        contenders = Contenders(layer, threads)
        loops = {}
        for name, call in contenders.calls.items():
            loops[name] = max(1, math.ceil(SAMPLE_NS / min(_timed(call, 1) for _ in range(5))))
        ns: dict[str, list[float]] = {name: [] for name in contenders.calls}
        last = None
        for _ in range(blocks):
            for name in order.sample(CONTENDERS, len(CONTENDERS)):
                call, library = contenders.calls[name], name.split(",")[0]
                if threads > 1 and library != last:
                    time.sleep(PAUSE_S)
                call()
                ns[name].append(_timed(call, loops[name]) / loops[name])
                last = library
        rows.append({
            "layer": layer.name, "count": layer.count, "flops": contenders.problem.direct_flops, "ns": ns,
            "onednn_impl": contenders.notes["onednn"]["vendor_impl"],
            "onednn_version": contenders.notes["onednn"]["onednn_version"],
            "torch_version": contenders.notes["torch"]["vendor_impl"],
            "disagreement": contenders.disagreement(),
        })  # fmt: skip
    return rows


def _timed(call: Callable[[], Any], loops: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(loops):
        call()
    return time.perf_counter_ns() - start


def name_torch_implementations(network: str, threads: int) -> None:
    """Child process under ONEDNN_VERBOSE=1: one torch convolution a layer, each behind a marker line."""
    for layer in layers_of(network):
        contenders = Contenders(layer, threads)
        os.write(1, f"{MARK}{layer.name}\n".encode())
        contenders.calls["torch, own result"]()
        os.write(1, f"{MARK}\n".encode())


def read_implementations(text: str) -> dict[str, str]:
    """layer -> implementation, from marker lines and oneDNN's verbose lines (either spelling of their prefix)."""
    found: dict[str, str] = {}
    layer = ""
    for line in text.splitlines():
        if line.startswith(MARK):
            layer = line.removeprefix(MARK)
        match = re.search(r"exec,cpu,convolution,([^,]+),", line)
        if layer and match:
            found[layer] = match.group(1)
    return found


def child(mode: str, network: str, threads: int, blocks: int, verbose: bool = False) -> str:
    """Runs this file in a new process whose libraries start with the right thread count; gives back its stdout."""
    environment = {**os.environ, **thread_env(threads), "ONEDNN_VERBOSE": "1" if verbose else "0"}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    command = [sys.executable, __file__, "--child", mode, "--networks", network, "--threads", str(threads)]
    command += ["--blocks", str(blocks)]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def show(network: str, threads: int, rows: list[dict[str, Any]], picked: dict[str, str]) -> None:
    """A table, then the geometric means; ratios above 1 mean that onednn is the faster."""
    tiny, rows = rows[0], rows[1:]
    print(f"\n{network}, {threads} thread{'s' if threads > 1 else ''}: onednn {tiny['onednn_version']} against "
          f"{tiny['torch_version']}; ms a call (median), ratio = torch / onednn")  # fmt: skip
    print(f"{'layer':<12}{'x':>3}{'onednn':>9}{'GF/s':>7}{'torch':>9}{'own res.':>9}{'ratio':>8}"
          f"{'  95 % interval':<17}{'ratio own':>10}{'  95 % interval':<17}  onednn / torch picked")  # fmt: skip
    for row in rows:
        ms = {name: _median_ns(row, name) / 1e6 for name in CONTENDERS}
        whole, own = (_ratio(row, name) for name in CONTENDERS[1:])
        print(f"{row['layer']:<12}{row['count']:>3}{ms['onednn']:>9.3f}{row['flops'] / ms['onednn'] / 1e6:>7.0f}"
              f"{ms['torch']:>9.3f}{ms['torch, own result']:>9.3f}{whole.value:>8.3f}  [{whole.lo:.3f}, {whole.hi:.3f}]"
              f"{own.value:>10.3f}  [{own.lo:.3f}, {own.hi:.3f}]  "
              f"{row['onednn_impl']} / {picked.get(row['layer'], 'not oneDNN')}")  # fmt: skip
    fixed = {name: _median_ns(tiny, name) for name in CONTENDERS}
    print("a call of 0.4 MFLOP: " + ", ".join(f"{name} {ns / 1e3:.0f} us" for name, ns in fixed.items()))
    for name in CONTENDERS[1:]:
        total = [sum(r["count"] * _median_ns(r, n) for r in rows) for n in (name, "onednn")]
        print(f"geomean over {len(rows)} layers, {name} / onednn: {_mean(rows, name, {})}; "
              f"with the price of a call taken off {_mean(rows, name, fixed)}; "
              f"whole network {total[0] / total[1]:.3f}")  # fmt: skip
    print(f"largest relative L2 distance between the results: {max(r['disagreement'] for r in rows):.1e}")


def _median_ns(row: dict[str, Any], name: str) -> float:
    return median_ci(row["ns"][name]).value


def _mean(rows: list[dict[str, Any]], name: str, fixed: dict[str, float]) -> str:
    """Geometric mean of name / onednn with its interval, each time less `fixed`."""
    mean = geomean_ci([_ratio(row, name, fixed).value for row in rows])
    return f"{mean.value:.3f} [{mean.lo:.3f}, {mean.hi:.3f}]"


def _ratio(row: dict[str, Any], name: str, fixed: dict[str, float] | None = None) -> Any:
    """Paired ratio of name over onednn, with its interval."""
    ns = {n: [value - (fixed or {}).get(n, 0.0) for value in row["ns"][n]] for n in (name, "onednn")}
    blocks = list(range(len(ns[name])))
    return ratio_ci(ns[name], blocks, ns["onednn"], blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write the raw samples there")
    parser.add_argument("--child", choices=("measure", "name"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        network, threads = given.networks[0], given.threads[0]
        if given.child == "measure":
            print(json.dumps(measure(network, threads, given.blocks)))
        else:
            name_torch_implementations(network, threads)
        return
    kept = []
    for threads in given.threads:
        for network in given.networks:
            picked = read_implementations(child("name", network, threads, 1, verbose=True))
            rows = json.loads(child("measure", network, threads, given.blocks))
            show(network, threads, rows, picked)
            kept.append({"network": network, "threads": threads, "rows": rows, "torch_impl": picked})
    if given.json:
        given.json.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
