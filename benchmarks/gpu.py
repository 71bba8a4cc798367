"""Everything that a machine with an NVIDIA GPU adds, in one command and under nine minutes: `make gpu`.

    python benchmarks/gpu.py [--minutes 9] [--output reports/reference/NAME] [--only STAGE ...] [--row GLOB ...]

Stages, in order: `compile` (every kernel for this GPU), `verify` (every row for a GPU on the conformance shapes,
through the Verifier, each row in a process of its own), `sanitize` (a few shapes of each row under compute-sanitizer,
where that is installed), `ceilings` (copy bandwidth, products by the vendor's BLAS), `sweep` (other tiles of the rows
that offer them), `headline` (the suite gpu_headline). A stage that is finished is not repeated: run the command again
and it goes on, and what a row's process left when it crashed or ran out of time is kept. The output holds a JSON file
a stage, headline/ (a run directory) and summary.md. Exit code 5 with one message where there is no GPU, 3 where a
result is wrong, 6 where a row failed or a stage did not end.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from convbench import errors, probe
from convbench.cuda.manifest import ARCHITECTURES
from convbench.environment import build_id
from convbench.worker import EXIT_GPU_LOST

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("compile", "verify", "sanitize", "ceilings", "sweep", "headline")
#: Of the time that is left when a stage begins: what it may take.
SHARE = {"compile": 0.3, "verify": 0.35, "sanitize": 0.25, "ceilings": 0.3, "sweep": 0.3, "headline": 0.95}
HALF_SHAPES = ("odd_channels", "asymmetric_padding", "many_channels", "filter_5x5", "pointwise", "stride_2x1",
               "groups", "depthwise", "padding_beyond_filter")  # fmt: skip
SANITIZED_SHAPES = ("odd_channels", "stride_2x1")
SANITIZER_TOOLS = ("memcheck", "racecheck")
SANITIZER_ERROR = 99
RESTARTS = 5
SWEEP_LAYERS = ("conv1_2", "conv2_2", "conv3_2", "conv4_2", "conv5_1")
SWEEP_BATCH = 32
SWEEP_LOOPS, SWEEP_SAMPLES = 8, 5


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together (default: 9)")
    parser.add_argument("--output", type=Path, help="folder (default: reports/reference/ and the GPU's name)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help="only these stages")
    parser.add_argument("--row", action="append", metavar="GLOB", help="only these rows (all stages but the headline)")
    parser.add_argument("--check", action="store_true", help="only look whether there is a driver and a GPU")
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "ROW"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return child(*options.child, options.start)
    try:
        if options.check:
            require_driver()
            return errors.EXIT_OK
        listing = probe.probe()
        return Session(listing, options.minutes, options.output, options.row).run(options.only)
    except errors.ConvbenchError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return error.exit_code


def require_driver() -> None:
    """Raises Unavailable where NVIDIA's driver is not installed or sees no GPU. Standard library only."""
    count, reason = ctypes.c_int(0), ""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
        if status or not count.value:
            reason = f"the NVIDIA driver sees no GPU (CUDA error {status})"
    except OSError:
        reason = "no NVIDIA driver: libcuda.so.1 cannot be loaded"
    if reason:
        raise errors.Unavailable(_no_gpu(reason))


def _no_gpu(reason: str) -> str:
    return (
        f"this measures on an NVIDIA GPU, and none can be used here: {reason}. What needs none is tested by "
        "`make test`; run this on a machine with a GPU, its driver and convbench[cuda]"
    )


class Session:
    """Stages of one machine, with the time that they share. Raises Unavailable where no GPU can be used."""

    def __init__(
        self,
        listing: dict[str, Any],
        minutes: float,
        output: Path | None,
        globs: list[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        gpu = listing.get("gpu") or {"why": "no algorithm for a GPU is registered"}
        if "why" in gpu:
            raise errors.Unavailable(_no_gpu(gpu["why"]))
        self.gpu, self._clock = gpu, clock
        available = [d["name"] for d in listing["implementations"] if d["device"] == "cuda" and not d["unavailable"]]
        self.rows = [name for name in available if any(fnmatch.fnmatch(name, glob) for glob in globs or ["*"])]
        self.missing = {
            d["name"]: d["unavailable"]
            for d in listing["implementations"] if d["device"] == "cuda" and d["unavailable"]
        }  # fmt: skip
        self.folder = output or ROOT / "reports" / "reference" / machine_name(gpu["name"])
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end = clock() + 60 * minutes

    def run(self, stages: list[str] | tuple[str, ...]) -> int:
        """All of these stages, then the summary; the exit code says the worst."""
        for stage in STAGES:
            if stage not in stages:
                continue
            seconds = SHARE[stage] * (self._end - self._clock())
            print(f"{stage}: up to {max(0.0, seconds):.0f} s", flush=True)
            if stage == "compile":
                self._compile(seconds)
            elif stage == "headline":
                self._headline(seconds)
            elif stage == "sanitize" and sanitizer() is None:
                self._write(stage, {"": {"finished": True, "notes": ["compute-sanitizer is not installed"]}})
            else:
                self._stage(stage, seconds)
        (self.folder / "summary.md").write_text(self.summary())
        print(f"summary: {self.folder / 'summary.md'}")
        return self._exit_code()

    def _compile(self, seconds: float) -> None:
        """Fills the cache of machine code, all cores at work; what is there already costs nothing."""
        own = self.gpu["compute_capability"].replace(".", "")
        wanted = [a for a in ARCHITECTURES if a.rstrip("a") == own]
        if wanted:
            command = [sys.executable, "-m", "convbench.cuda.compile", "--architectures", *wanted]
            ending = run_child(command, seconds)[1]
            found = {"finished": not ending, "lines": [], "failures": [ending] if ending else []}
            self._write("compile", {"all": found})

    # ---- stages of one process a row

    def _stage(self, stage: str, seconds: float) -> None:
        """Rows without a finished result, each in a process of its own, as long as there is time."""
        done = self._read(stage)
        end = self._clock() + seconds
        todo = [r for r in (self.rows if stage != "ceilings" else ["all"]) if not done.get(r, {}).get("finished")]
        for position, row in enumerate(todo):
            left = (end - self._clock()) / (len(todo) - position)  # what one leaves over, the next ones get
            if left > 0:
                done[row] = self._child(stage, row, max(left, 20.0))
                self._write(stage, done)

    def _child(self, stage: str, row: str, seconds: float) -> dict[str, Any]:
        """What one process found: JSON lines as it goes; how it ended if it did not end well."""
        command = [sys.executable, __file__, "--child", stage, row]
        tools = [(str(sanitizer()), "--tool", tool) for tool in SANITIZER_TOOLS] if stage == "sanitize" else [()]
        found: dict[str, Any] = {"finished": True, "lines": [], "failures": [], "build": build_id()["sha"]}
        for tool in tools:
            prefix = [*tool, "--error-exitcode", str(SANITIZER_ERROR)] if tool else []
            end = self._clock() + seconds / len(tools)
            lines, ending = run_child([*prefix, *command], end - self._clock())
            for _ in range(RESTARTS):  # a kernel that broke the GPU's context ended the process with it
                if ending.startswith(f"exit code {EXIT_GPU_LOST}") and end > self._clock():
                    more, ending = run_child([*prefix, *command, "--start", str(len(lines))], end - self._clock())
                    lines += more
            found["lines"] += lines
            if ending:
                found["failures"].append(f"{' '.join(tool[1:])}: {ending}" if tool else ending)
                found["finished"] = not ending.startswith("no end")
        return found

    def _headline(self, seconds: float) -> None:
        """The suite into headline/, or what is left of it."""
        folder = self.folder / "headline"
        begun = (folder / "plan.json").is_file()
        if begun and self._headline_done():
            return
        if seconds < 10:
            print("headline: no time is left: run the command again")
            return
        command = [sys.executable, "-m", "convbench", "run"]
        command += ["--resume", str(folder)] if begun else ["gpu_headline", "--output", str(folder)]
        if not begun:
            command += ["--budget", f"{seconds:.0f} s"]
        subprocess.run(command, cwd=ROOT, check=False)

    def _headline_done(self) -> bool:
        try:
            return "finished_utc" in json.loads((self.folder / "headline" / "environment.json").read_text())
        except (OSError, ValueError):
            return False

    # ---- what is kept

    def _read(self, stage: str) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / f"{stage}.json").read_text())["rows"])
        except (OSError, ValueError, KeyError):
            return {}

    def _write(self, stage: str, rows: dict[str, Any]) -> None:
        path = self.folder / f"{stage}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"gpu": self.gpu, "rows": rows}, indent=1) + "\n")
        temporary.replace(path)

    def _exit_code(self) -> int:
        statuses = Counter(line["status"] for found in self._read("verify").values() for line in found["lines"])
        if statuses["wrong"]:
            return errors.EXIT_WRONG
        broken = any(found.get("failures") for stage in STAGES[:5] for found in self._read(stage).values())
        return errors.EXIT_FAILED if broken or statuses["failed"] else errors.EXIT_OK

    def summary(self) -> str:
        """What was found, as Markdown."""
        gpu = self.gpu
        lines = [f"# {gpu['name']}", "", *(f"- {key}: {gpu[key]}" for key in gpu if key != "name"), ""]
        lines += [f"- {name}: {why}" for name, why in self.missing.items()]
        lines += ["", "## Correctness", "", "| row | ok | unsupported | wrong or failed | process |"]
        lines += ["|---|--:|--:|--:|---|"]
        for row, found in self._read("verify").items():
            statuses = Counter(line["status"] for line in found["lines"])
            bad = statuses["wrong"] + statuses["failed"]
            ending = "; ".join(found["failures"]) or "ended well"
            lines.append(f"| {row} | {statuses['ok']} | {statuses['unsupported']} | {bad} | {ending} |")
        for row, found in self._read("verify").items():
            bad_lines = [x for x in found["lines"] if x["status"] in ("wrong", "failed")]
            lines += [f"- {row}, {x['case']}: {x['reason']}" for x in bad_lines]
        lines += ["", "## compute-sanitizer", ""]
        for row, found in self._read("sanitize").items():
            lines += [f"- {row}: {'; '.join(found['failures']) or 'clean'}" if row else f"- {n}"
                      for n in found.get("notes", [""])]  # fmt: skip
        lines += ["", "## Ceilings", ""]
        for found in self._read("ceilings").values():
            lines += [f"- {key}: {value:,.0f}" for line in found["lines"] for key, value in line["peaks"].items()]
        lines += ["", "## Tiles: the best against the one that is chosen", "", "| row | layer | chosen | best | gain |",
                  "|---|---|--:|---|--:|"]  # fmt: skip
        for row, found in self._read("sweep").items():
            lines += [_sweep_line(row, line) for line in found["lines"] if "ms" in line]
        lines += ["", "## Headline", ""]
        done = self._headline_done()
        report = self.folder / "headline" / "tables"
        lines.append("[Report](headline/report.html)" if report.is_dir() else "Not run yet.")
        if report.is_dir() and not done:
            lines.append("Not finished: run the command again.")
        return "\n".join(lines) + "\n"


def _sweep_line(row: str, line: dict[str, Any]) -> str:
    times = line["ms"]
    best = min(times, key=times.__getitem__)
    gain = times["chosen"] / times[best]
    return f"| {row} | {line['layer']} | {times['chosen']:.4f} ms | {best}, {times[best]:.4f} ms | {gain:.3f} |"


def run_child(command: list[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """(JSON lines of a process, how it ended if not well); it is ended when its time is."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
        output, ending = done.stdout, ""
        if done.returncode == SANITIZER_ERROR:
            ending = "errors: " + " | ".join(re.findall(r"^=+ (?:Error|Warning|Invalid|Race).*$", output, re.M)[:3])
        elif done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            ending = f"exit code {done.returncode}: {last[:300]}"
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        ending = f"no end within {seconds:.0f} s"
    lines = []
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                lines.append(json.loads(line))
            except ValueError:  # cut by the end of its time
                continue
    return lines, ending


def sanitizer() -> Path | None:
    """compute-sanitizer, where it is installed."""
    found = shutil.which("compute-sanitizer")
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    return Path(found) if found else usual if usual.is_file() else None


def machine_name(gpu: str) -> str:
    """A folder's name for a GPU: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "gpu"


# ---- in the child


def child(stage: str, row: str, start: int) -> int:
    """One stage for one row, from its `start`-th case on; a line of JSON for each result, as soon as it is there."""
    from convbench import catalog
    from convbench.devices.cuda import CudaDevice

    rows, device = catalog.load().implementations, CudaDevice()
    if stage == "ceilings":
        from convbench.devices import cuda_peaks

        _say({"peaks": cuda_peaks.measure(device)})
        return 0
    implementation = rows[row]
    if stage == "sweep":
        results = sweep(implementation, device, sweep_layers(), SWEEP_BATCH)
    else:
        results = verify(implementation, device, stage, start)
    for result in results:
        _say(result)
        if result.get("status") == "wrong":
            try:
                device.synchronize()
            except Exception as error:  # noqa: BLE001 - the libraries' errors have no common type
                print(error, file=sys.stderr)
                return EXIT_GPU_LOST
    return 0


def _say(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def verify(implementation: Any, device: Any, stage: str, start: int) -> Iterator[dict[str, Any]]:
    """The conformance cases of a row; other types, and everything under a sanitizer, on some of the shapes."""
    from convbench.testing import conformance

    cases = [
        case for case in conformance.cases(implementation, dtypes=("float32", "float16", "bfloat16", "int8"))
        if (stage != "sanitize" or case.shape_name in SANITIZED_SHAPES)
        and (case.problem.dtype == "float32" or case.shape_name in HALF_SHAPES)
    ]  # fmt: skip
    for case in cases[start:]:
        outcome = conformance.check(implementation, case.problem, case.weights, device=device)
        yield {"case": str(case), "status": outcome.status, "reason": outcome.reason}


def sweep_layers() -> list[Any]:
    """Layers of VGG-16 of every size."""
    from convbench.resources import folder
    from convbench.shapes import load_shapes

    layers = load_shapes(folder("suites") / "shapes" / "vgg16.yaml").layers
    return [layer for layer in layers if layer.name in SWEEP_LAYERS]


def sweep(implementation: Any, device: Any, layers: list[Any], batch: int) -> Iterator[dict[str, Any]]:
    """Milliseconds of each alternative program of a row, verified before it is timed, beside the chosen one."""
    from dataclasses import replace

    from convbench.devices.cuda_timing import CudaTimer
    from convbench.devices.nvml import Monitor
    from convbench.problem import LAYOUTS, Problem
    from convbench.verify import Verifier

    monitor = Monitor(device.xp.cuda.Device().pci_bus_id)
    for layer in layers:
        for pass_ in implementation.passes:
            layout = implementation.layouts[-1] if implementation.dtypes[0] != "float32" else LAYOUTS[0]
            problem = Problem(replace(layer.shape, n=batch), pass_, implementation.dtypes[0], layout)
            if implementation.why_not(problem):
                continue
            others = implementation.alternatives(problem, device.gpu)
            if not others:
                return
            verifier, times, wrong = Verifier(problem, device=device), {}, {}
            for name, program in {"chosen": implementation.program(problem, device.gpu), **others}.items():
                plan, verdict = verifier.verify(implementation.taking(program), device.context)
                if plan is None:
                    wrong[name] = verdict.reason
                    continue
                timer = CudaTimer(device, plan, verifier.operands(), "hot", monitor)
                best = min(timer.time(SWEEP_LOOPS) for _ in range(SWEEP_SAMPLES))
                times[name] = best / SWEEP_LOOPS / 1e6
            label = f"{layer.name} {pass_} {problem.dtype} {layout}"
            yield {"layer": label, "wrong": wrong, **({"ms": times} if "chosen" in times else {})}


if __name__ == "__main__":
    sys.exit(main())
