"""Made-up run directories for the tests of the report: plausible, seeded, and with every kind of trouble in them.

No number here was measured. `make_run` writes environment.json and records.jsonl as a run does.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convbench.problem import Case, ConvShape, Options, Pass, Problem
from convbench.records import Errors, Record, Samples

VGG = [
    ("conv1_1", 3, 224, 64, 1), ("conv1_2", 64, 224, 64, 1), ("conv2_1", 64, 112, 128, 1),
    ("conv2_2", 128, 112, 128, 1), ("conv3_1", 128, 56, 256, 1), ("conv3_2", 256, 56, 256, 2),
    ("conv4_1", 256, 28, 512, 1), ("conv4_2", 512, 28, 512, 2), ("conv5_1", 512, 14, 512, 3),
]  # fmt: skip
#: name -> (GFLOP/s on a good day, relative L2 error, workspace in bytes for each byte of operands)
ALGORITHMS = {
    "onednn": (150, 2.1e-7, 0.3), "onednn_blocked": (168, 2.1e-7, 0.0), "torch": (148, 2.2e-7, 0.2),
    "im2col_numpy": (105, 2.0e-7, 7.0), "im2col_caffe_numpy": (96, 2.0e-7, 7.0),
    "im2col_tiled_numpy": (112, 2.0e-7, 0.6), "im2col_mkl": (101, 2.1e-7, 7.0), "kn2row_numpy": (82, 2.6e-7, 2.0),
    "direct_numpy": (64, 1.9e-7, 1.1), "direct_naive_numba": (1.7, 2.9e-7, 0.0),
    "fft_scipy": (22, 3.3e-7, 16.0), "fft_pyfftw": (31, 3.2e-7, 16.0), "fft_tiled_scipy": (61, 3.1e-7, 5.0),
    "fft_tiled_pyfftw": (94, 3.1e-7, 5.0), "winograd_f2_numpy": (118, 2.4e-7, 4.0),
    "winograd_f4_numpy": (171, 9.8e-7, 2.3), "winograd_f6_numpy": (177, 3.6e-6, 1.8),
    "winograd_f4_mkl": (166, 9.9e-7, 2.3), "winograd_f2_5x5_numpy": (0, 0, 0),
    "strassen_im2col_numpy": (81, 4.8e-7, 8.0),
}  # fmt: skip
HOSTILE = "<script>document.title='owned'</script>"


def environment(**more: Any) -> dict[str, Any]:
    """What a run says about its machine."""
    base = {
        "env_id": "0123456789ab",
        "machine": {
            "cpu_model": "Example CPU 9000", "cores": 2, "memory_bytes": 8 << 30, "governor": "unknown",
            "caches": {"L1d": "32 KiB", "L2": "1 MiB", "L3": "32 MiB"},
        },
        "peaks": {"1": {"gflops": 110.0}, "2": {"gflops": 216.0}},
        "versions": {"python": "3.11.9", "numpy": "2.4.6", "scipy": "1.17.1", "onednn": "3.2"},
        "warnings": ["the CPU governor cannot be read: clock frequencies may move"],
        "suite": {
            "name": "vgg", "title": "VGG-16, every convolution, forward and both gradients", "path": "suites/vgg.yaml",
            "sha": "feedbeef", "baseline": ["onednn", "torch", "im2col_numpy"], "policy": {"ci_target": 0.03},
        },
        "convbench": {"version": "0.1.0", "sha": "1b37c12", "dirty": False},
        "started_utc": "2026-11-22T01:00:00Z", "finished_utc": "2026-11-22T01:09:30Z",
        "argv": ["convbench", "run", "vgg"],
    }  # fmt: skip
    return base | more


def one_record(
    problem: Problem, name: str, label: str, count: int = 1, *, threads: int = 2, blocks: int = 16, weights: str = "raw"
) -> Record:
    """A plausible `ok` record; the same arguments give the same record."""
    speed, error, workspace = ALGORITHMS[name]
    case = Case(problem, name, Options(weights=weights, threads=threads), label, count)
    rng = np.random.default_rng(zlib.crc32(f"{case.id}".encode()))
    drift = 1 + 0.05 * np.sin(np.arange(blocks) / 5)  # the same in every series of a problem
    shape = problem.shape
    fit = 1.25 - 0.5 * abs(np.log2(shape.c / 128)) / 6 if "winograd" in name else 1.0
    fit *= {"fwd": 1.0, "bwd_data": 0.93, "bwd_weights": 0.75}[problem.pass_.value] * rng.uniform(0.85, 1.15)
    fit *= min(1.0, 0.55 + 0.15 * np.log2(shape.n + 1) * 2)
    ns = problem.direct_flops / (speed * fit) * drift * np.exp(rng.normal(0, 0.012, blocks))
    noisy = rng.random() < 0.04
    if noisy:
        ns = ns * np.exp(rng.normal(0, 0.25, blocks))
    loops = max(1, int(1e6 / ns[0]))
    scale = np.sqrt(problem.accumulation_length / 576)
    saved = {"f2": 2.25, "f4": 4.0, "f6": 5.06}.get(name.split("_")[1] if "winograd" in name else "", 1.0)
    return Record(
        case, "ok",
        flags=["noisy"] if noisy else [],
        samples=Samples(
            [int(x * loops) for x in ns], list(range(blocks)), [int(x) for x in rng.integers(0, 19, blocks)]
        ),
        loops=loops,
        setup_ns=int(rng.uniform(1e6, 4e8)),
        workspace_bytes=int(workspace * problem.operand_bytes),
        workspace_estimate_bytes=int(workspace * problem.operand_bytes * 1.05),
        peak_bytes=int((workspace + 1) * problem.operand_bytes),
        error=Errors(error * scale, error * 300, 40.0, 0.21),
        executed_flops={"multiply": problem.direct_flops / saved, "transform": problem.direct_flops / saved / 20},
        arithmetic="float32", vendor=name.startswith(("onednn", "torch")),
        vendor_impl="jit:avx512_core" if name.startswith("onednn") else None,
        env_id="0123456789ab", source_sha="ab12cd34", versions={"numpy": "2.4.6"},
        repro=f"convbench run 'mb{shape.n}ic{shape.c}ih{shape.h}oc{shape.k}kh{shape.r}ph1n\"{label}\"' "
        f"--pass {problem.pass_.value} --algorithm {name} --threads {threads} --layout {problem.layout}",
        started_utc="2026-11-22T01:02:03Z",
    )  # fmt: skip


def make_records(
    *, layers: int = 9, algorithms: int = 20, batches: tuple[int, ...] = (1,), layouts: tuple[str, ...] = ("nchw",),
    trouble: bool = True, hostile: bool = True,
) -> list[Record]:  # fmt: skip
    """Records of layers x passes x batches x layouts x algorithms."""
    records = []
    for number, (label, c, size, k, count) in enumerate(VGG[:layers]):
        if hostile and number == 1:
            label = f"conv1_2 {HOSTILE}"
        for batch in batches:
            shape = ConvShape.make(batch, c, size, size, k, 3, 3, padding=1)
            for pass_ in Pass:
                for layout in layouts:
                    problem = Problem(shape, pass_, "float32", layout)
                    for name in list(ALGORITHMS)[:algorithms]:
                        records.append(_record(problem, name, label, count, number, trouble))
    return records


def _record(problem: Problem, name: str, label: str, count: int, number: int, trouble: bool) -> Record:
    case = Case(problem, name, Options(threads=2), label, count)
    if name == "winograd_f2_5x5_numpy":
        return Record(case, "unsupported", f"{name}: the filter must be 5x5, not 3x3", repro=f"convbench run {name}")
    record = one_record(problem, name, label, count)
    if not trouble:
        return record
    if name == "direct_naive_numba" and number in (1, 3, 5):
        return Record(
            case, "not_reached", "predicted 11.2 s a call at 1.7 GFLOP/s: beyond this case's share of the time budget",
            predicted_ns=1.12e10, repro=f"convbench run {name}",
        )  # fmt: skip
    if name == "im2col_mkl":
        return Record(case, "unavailable", "im2col_mkl needs mkl: pip install 'convbench[mkl]'", repro="convbench run")
    if name == "fft_scipy" and number == 1 and problem.pass_ is Pass.BACKWARD_WEIGHTS:
        return Record(case, "failed", "the worker was killed by signal 11 (segmentation fault) in run()", repro="x")
    if name == "winograd_f6_numpy" and number == 8 and problem.pass_ is Pass.FORWARD:
        reason = "relative L2 error 3.1e-04 exceeds 2.0e-05 = 12 * eps * sqrt(4608) (normal inputs, two seeds)"
        wrong = replace(record, status="wrong", reason=reason, samples=Samples(), flags=[])
        wrong.error = Errors(3.1e-4, 0.02, 9000.0, 15.5)
        return wrong
    if name == "fft_pyfftw" and number == 0:
        return Record(case, "timed_out", "no answer from prepare() within 60 s", repro="convbench run x")
    return record


def make_run(directory: Path, records: list[Record] | None = None, env: dict[str, Any] | None = None) -> Path:
    """Writes a run directory and gives it back."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "environment.json").write_text(json.dumps(environment() if env is None else env, indent=1))
    lines = [record.to_json() for record in (make_records() if records is None else records)]
    (directory / "records.jsonl").write_text("".join(line + "\n" for line in lines))
    return directory
