"""What cuDNN offers for a layer, an engine at a time, for a GPU that need not be there.

    python benchmarks/cudnn_enumerate.py [--output tests/data] [--batch 1 32] [--shapes vgg16 resnet50]

needs nvidia-cudnn-frontend and nvidia-cudnn-cu13, and no GPU: the device is described by hand. Writes cudnn_h200.csv, a
line for each problem with its engines, and cudnn_h200.json: versions, the device, the numeric notes of every engine,
which engines make up a numeric class, and where Winograd and FFT engines appear on other architectures.
A line's engines: `67*19=50320-50576 28` is engine 67 with 19 plans whose workspaces are 50,320 to 50,576 KiB (rounded
up), and engine 28 with one plan and none. Plans: those of the heuristics and each engine with its default knobs.
An output that is there is continued: delete it to begin anew.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from convbench.algorithms import _cudnn
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.resources import folder
from convbench.shapes import load_shapes

COLUMNS = ("network", "layer", "batch", "pass", "dtype", "layout", "engines")
CLASSES = (
    _cudnn.FP32, _cudnn.TF32, _cudnn.FP16, _cudnn.BF16, _cudnn.INT8, _cudnn.FP32_WINOGRAD, _cudnn.FP32_FFT,
)  # fmt: skip
DTYPES = ("float32", "float16", "bfloat16", "int8")
#: An H200 as cudaGetDeviceProperties describes it.
H200 = {
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
    "multiProcessorCount": 132, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "l2CacheSize": 62914560,
    "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "pciDeviceId": 0, "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "isTccDriver": 0, "supportCoopLaunch": 1, "deviceVer": 900,
    "driverVer": 13000, "cudaDeviceId": 0, "totalGlobalMem": 150754820096, "deviceName": "NVIDIA H200",
}  # fmt: skip
#: Compute capability (times 100), multiprocessors, shared memory of a block after opting in.
ARCHITECTURES = (
    (700, 80, 98304), (750, 40, 65536), (800, 108, 166912), (860, 84, 101376), (890, 142, 101376), (900, 132, 232448),
    (1000, 148, 232448), (1200, 170, 101376),
)  # fmt: skip
#: Where the architectures are compared: N, C, H, W, K, R, S, stride, padding.
PROBES = {
    "3x3, C=K=64, 56x56": (32, 64, 56, 56, 64, 3, 3, 1, 1),
    "3x3, C=K=512, 14x14": (32, 512, 14, 14, 512, 3, 3, 1, 1),
    "5x5, C=K=64, 28x28": (32, 64, 28, 28, 64, 5, 5, 1, 2),
    "11x11, C=K=64, 28x28": (32, 64, 28, 28, 64, 11, 11, 1, 5),
}
#: Engines' notes are asked on these too: one engine takes the first layer of ResNet-50 and no other.
FIRST_LAYER = {"7x7, stride 2, C=3, K=64, 224x224": (32, 3, 224, 224, 64, 7, 7, 2, 3)}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("tests/data"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--shapes", nargs="+", default=["vgg16", "resnet50"])
    options = parser.parse_args()
    import cudnn

    options.output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    device = describe(cudnn, H200)
    table, facts = options.output / "cudnn_h200.csv", options.output / "cudnn_h200.json"
    problems = list(all_problems(options.shapes, options.batch))
    write_lines(cudnn, table, problems, device)
    print(f"{table}: {len(problems)} problems, {time.monotonic() - start:.0f} s", flush=True)
    content = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python benchmarks/cudnn_enumerate.py", *sys.argv[1:]]),
        "versions": {"cudnn": cudnn.backend_version_string(), "nvidia-cudnn-frontend": cudnn.__version__},
        "device": H200,
        "classes": classes(cudnn, device),
        "transforms": transforms(cudnn),
    }
    facts.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{facts}: {time.monotonic() - start:.0f} s")
    return 0


def describe(cudnn: Any, facts: dict[str, Any]) -> Any:
    """A device description that stands in for a GPU."""
    return cudnn.create_device_properties(json.dumps(facts))


def all_problems(networks: Iterable[str], batches: Iterable[int]) -> Iterator[tuple[tuple[Any, ...], Problem]]:
    """The first six columns of each line, and the problem."""
    for network in networks:
        for layer in load_shapes(folder("suites") / "shapes" / f"{network}.yaml").layers:
            for batch in batches:
                for pass_ in Pass:
                    for dtype in DTYPES:
                        for layout in LAYOUTS:
                            problem = Problem(replace(layer.shape, n=batch), pass_, dtype, layout)
                            yield (network, layer.name, str(batch), str(pass_), dtype, layout), problem


def write_lines(cudnn: Any, path: Path, problems: list[tuple[tuple[Any, ...], Problem]], device: Any) -> None:
    """Appends the lines that the table does not have yet."""
    done = set()
    if path.is_file():
        with path.open(newline="") as file:
            done = {tuple(line[:6]) for line in csv.reader(file)}
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(COLUMNS)
        for key, problem in problems:
            if key not in done:
                writer.writerow([*key, engines_of(cudnn, problem, device)])
                file.flush()


def engines_of(cudnn: Any, problem: Problem, device: Any) -> str:
    """The engines of a problem in the form of the table."""
    every = _cudnn.NumericClass("all", problem.dtype)
    try:
        plans = _cudnn.offers(cudnn, problem, every, device_property=device).plans
    except _cudnn.refusals(cudnn) as refusal:
        return f"no graph: {' '.join(str(refusal).split())[:80]}"
    found: dict[int, list[int]] = {}
    for plan in plans:
        found.setdefault(plan.engine, []).append(-(-plan.workspace_bytes // 1024))
    return " ".join(in_short(engine, sizes) for engine, sizes in found.items())


def in_short(engine: int, kibibytes: list[int]) -> str:
    """67*19=50320-50576."""
    many = f"*{len(kibibytes)}" if len(kibibytes) > 1 else ""
    low, high = min(kibibytes), max(kibibytes)
    return f"{engine}{many}" + ("" if high == 0 else f"={low}" if low == high else f"={low}-{high}")


def classes(cudnn: Any, device: Any) -> dict[str, Any]:
    """Type -> pass -> the notes of each engine that takes one of the probes, and the engines of every class."""
    result: dict[str, Any] = {}
    for dtype in DTYPES:
        for pass_ in Pass:
            notes: dict[int, list[str]] = {}
            members: dict[str, set[int]] = {}
            for geometry in {**PROBES, **FIRST_LAYER}.values():
                for layout in LAYOUTS:
                    problem = Problem(ConvShape.make(*geometry), pass_, dtype, layout)
                    count = int(_cudnn.graph_of(cudnn, problem, device_property=device).get_engine_count())
                    unknown = [engine for engine in range(count) if engine not in notes]
                    for engine in _cudnn.takers(cudnn, problem, unknown, device_property=device):
                        notes[engine] = _cudnn.numeric_notes(cudnn, problem, engine, device_property=device)
                    for numeric in CLASSES:
                        if numeric.dtype == dtype:
                            plans = _cudnn.offers(cudnn, problem, numeric, device_property=device).plans
                            members.setdefault(numeric.name, set()).update(plan.engine for plan in plans)
            result.setdefault(dtype, {})[str(pass_)] = {
                "notes": {str(engine): " ".join(found) for engine, found in sorted(notes.items())},
                "engines": {name: sorted(engines) for name, engines in members.items()},
            }
    return result


def transforms(cudnn: Any) -> list[dict[str, Any]]:
    """Where an engine with the note WINOGRAD or FFT takes a probe, for every architecture; and how many it asked."""
    lines = []
    for version, multiprocessors, shared in ARCHITECTURES:
        facts = {**H200, "deviceVer": version, "multiProcessorCount": multiprocessors,
                 "maxSharedMemoryPerBlockOptin": shared, "deviceName": "described by hand"}  # fmt: skip
        device = describe(cudnn, facts)
        found, asked = [], 0
        for name, geometry in PROBES.items():
            for dtype in ("float32", "float16"):
                for pass_ in Pass:
                    for layout in LAYOUTS:
                        problem = Problem(ConvShape.make(*geometry), pass_, dtype, layout)
                        for note in _cudnn.TRANSFORMS:
                            wanted = _cudnn.NumericClass(note, dtype, required=(note,))
                            offered = _cudnn.offers(cudnn, problem, wanted, device_property=device)
                            asked += offered.engines
                            for engine in sorted({plan.engine for plan in offered.plans}):
                                notes = _cudnn.numeric_notes(cudnn, problem, engine, device_property=device)
                                found.append([name, dtype, str(pass_), layout, engine, " ".join(notes)])
        lines.append({"compute_capability": version / 100, "engines_asked": asked, "found": found})
        print(f"{version / 100}: {len(found)} of {asked} with a transform", flush=True)
    return lines


if __name__ == "__main__":
    sys.exit(main())
