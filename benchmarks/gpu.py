"""Everything that a machine with an NVIDIA GPU adds, in one command and under nine minutes: `make gpu`.

    python benchmarks/gpu.py [--minutes 9] [--output reports/reference/NAME] [--only STAGE ...] [--row GLOB ...]

Stages, in order: `compile` (every kernel for this GPU), `verify` (every row for a GPU on the conformance shapes,
through the Verifier, each row in a process of its own), `sanitize` (a few shapes of each row under compute-sanitizer,
where that is installed), `ceilings` (copy bandwidth, products by the vendor's BLAS), `sweep` (other tiles of the rows
that offer them), `headline` (the suite gpu_headline).

Nothing that is finished is repeated while the sources stay as they are: run the command again and it goes on where it
stopped, or was killed, with the step that was under way. A step that ends its process, or twice takes all the time
there is, is kept as failed and the next one begins. The output holds a JSON file a stage, journals/ and logs/ (what
each process said), headline/ (a run directory) and summary.md, which begins with what failed or is not done. Exit code
5 with one message where nothing can run, 3 where a result is wrong, 6 where something failed or is not done.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu_summary  # noqa: E402
from benchmarks.gpu_journal import SANITIZER_ERROR, Journal, end_all, run_process  # noqa: E402
from convbench import errors, probe  # noqa: E402
from convbench.cuda.manifest import ARCHITECTURES  # noqa: E402
from convbench.worker import EXIT_GPU_LOST  # noqa: E402

STAGES = ("compile", "verify", "sanitize", "ceilings", "sweep", "headline")
#: Of the time that is left when a stage begins: what it may take.
SHARE = {"compile": 0.3, "verify": 0.35, "sanitize": 0.25, "ceilings": 0.3, "sweep": 0.3, "headline": 0.95}
#: Stages that time nothing: several processes share the GPU.
SIDE_BY_SIDE = {"verify": 4, "sanitize": 4}
SANITIZER_TOOLS = ("memcheck", "racecheck")
RESTARTS = 5
LEAST_S = 20.0  # for one process: it has to import and to compile before it does anything


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together (default: 9)")
    parser.add_argument("--output", type=Path, help="folder (default: reports/reference/ and the GPU's name)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help="only these stages")
    parser.add_argument("--row", action="append", metavar="GLOB", help="only these rows (all stages but the headline)")
    parser.add_argument("--check", action="store_true", help="only look whether there is a driver and a GPU")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            require_driver()
            return errors.EXIT_OK
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        session = Session(probe.probe(), options.minutes, options.output, options.row)
        try:
            return session.run(options.only)
        except KeyboardInterrupt:
            raise errors.Interrupted(f"interrupted: run it again and it goes on; so far: {session.folder}") from None
        finally:
            end_all()
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
    """Stages of one machine, with the time that they share.

    Raises Unavailable where no GPU or no row can be used, UsageError where no row is meant, OutputError where the
    folder cannot be written.
    """

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
        if not minutes > 0:
            raise errors.UsageError(f"--minutes must be more than 0, not {minutes:g}")
        self.gpu, self._clock = gpu, clock
        why = {d["name"]: d["unavailable"] for d in listing["implementations"] if d["device"] == "cuda"}
        meant = [name for name in why if any(fnmatch.fnmatch(name, glob) for glob in globs or ["*"])]
        if not meant:
            raise errors.UsageError(f"--row {' '.join(globs or [])} fits none of the rows for a GPU: {', '.join(why)}")
        self.rows = [name for name in meant if not why[name]]
        if not self.rows:
            raise errors.Unavailable(f"none of {len(meant)} rows can run here; {meant[0]}: {why[meant[0]]}")
        self.missing = {name: reason for name, reason in why.items() if reason}
        self.folder = (output or ROOT / "reports" / "reference" / machine_name(gpu["name"])).resolve()
        self._code, self._lock, self._end = code_id(), threading.Lock(), clock() + 60 * minutes
        self._headline_problem = ""
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> errors.OutputError:
        return errors.OutputError(
            f"cannot write to {self.folder}: {error.strerror or error}; make room there, or choose another folder with "
            "--output, and run the command again"
        )

    def run(self, stages: list[str] | tuple[str, ...]) -> int:
        """All of these stages, then the summary; the exit code says the worst. Raises OutputError."""
        try:
            try:
                for stage in (s for s in STAGES if s in stages):
                    self._run_stage(stage, max(0.0, SHARE[stage] * (self._end - self._clock())))
            finally:
                points = [point for stage in STAGES if stage in stages for point in self._open_points(stage)]
                found = {stage: self._read(stage) for stage in STAGES[:-1]}
                text = gpu_summary.render(self.gpu, self.missing, found, points, self.folder / "headline")
                (self.folder / "summary.md").write_text(text)
        except OSError as error:
            raise self._unwritable(error) from error
        for point in points:
            print(point, file=sys.stderr)
        print(f"summary: {self.folder / 'summary.md'}")
        return self._exit_code(stages, points)

    def _run_stage(self, stage: str, seconds: float) -> None:
        print(f"{stage}: up to {seconds:.0f} s", flush=True)
        if stage == "compile":
            self._compile(seconds)
        elif stage == "headline":
            self._headline(seconds)
        elif stage == "sanitize" and sanitizer() is None:
            note = "compute-sanitizer is not installed (it is part of the CUDA toolkit): nothing was run under it"
            self._write(stage, {"": {"finished": True, "lines": [], "failures": [], "notes": [note]}})
        else:
            self._rows(stage, seconds)

    def _compile(self, seconds: float) -> None:
        """Fills the cache of machine code, all cores at work; what is there already costs nothing."""
        own = self.gpu["compute_capability"].replace(".", "")
        wanted = [a for a in ARCHITECTURES if a.rstrip("a") == own]
        if wanted:
            command = [sys.executable, "-m", "convbench.cuda.compile", "--architectures", *wanted]
            table = self.folder / "logs" / "compile.txt"
            ending = run_process(command, seconds, table, table)
            failures = [f"{ending}; all that was said: logs/{table.name}"] if ending else []
            self._write("compile", {"all": {"finished": not ending, "lines": [], "failures": failures}})

    # ---- stages of one process a row

    def _todo(self, stage: str) -> list[str]:
        """Rows that have no result of these sources."""
        done = self._read(stage)
        rows = self.rows if stage != "ceilings" else ["all"]
        return [r for r in rows if not (done.get(r, {}).get("finished") and done[r].get("code") == self._code)]

    def _rows(self, stage: str, seconds: float) -> None:
        """What is to do, each row in a process of its own, as long as there is time."""
        end, todo = self._clock() + seconds, self._todo(stage)
        width = min(SIDE_BY_SIDE.get(stage, 1), os.cpu_count() or 1)
        waiting = len(todo)

        def one(row: str) -> None:
            nonlocal waiting
            with self._lock:
                left = (end - self._clock()) * min(width, waiting) / waiting  # what one leaves over, the next ones get
                waiting -= 1
            if left > 0:
                found = self._process(stage, row, max(left, LEAST_S))
                with self._lock:
                    self._write(stage, {**{k: v for k, v in self._read(stage).items() if k}, row: found})
                    for journal in (self.folder / "journals").glob(f"{stage}-{row}[-.]*") if found["finished"] else ():
                        journal.unlink()
                counts = Counter(line.get("status", "results") for line in found["lines"])
                said = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no result"
                print(f"{stage}: {row}: {'; '.join([said, *found['failures']])}", flush=True)

        with ThreadPoolExecutor(width) as pool:
            try:
                list(pool.map(one, todo))
            except BaseException:
                end = float("-inf")
                end_all()
                raise

    def _process(self, stage: str, row: str, seconds: float) -> dict[str, Any]:
        """What a row's process found, under one tool after another."""
        tools = SANITIZER_TOOLS if stage == "sanitize" else ("",)
        found: dict[str, Any] = {"finished": True, "lines": [], "failures": [], "code": self._code}
        for tool in tools:
            name = "-".join(filter(None, (stage, row, tool)))
            journal = Journal(self.folder / "journals" / f"{name}.jsonl", self._code)
            ending, finished = self._steps(stage, row, tool, journal, seconds / len(tools))
            found["lines"] += journal.results()
            found["finished"] &= finished
            if ending:
                said = f"{tool}: {ending}" if tool else ending
                found["failures"].append(f"{said}; all that was said: logs/{name}.txt")
        return found

    def _steps(self, stage: str, row: str, tool: str, journal: Journal, seconds: float) -> tuple[str, bool]:
        """(how the first process that did not end well ended, whether there is no more to do)."""
        end, first = self._clock() + seconds, ""
        log = self.folder / "logs" / f"{journal.path.stem}.txt"
        prefix = [str(sanitizer()), "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)] if tool else []
        for _ in range(RESTARTS):
            command = [*prefix, sys.executable, "-m", "benchmarks.gpu_child", stage, row]
            command += ["--start", str(len(journal.results()))]
            left = end - self._clock()
            ending = run_process(command, left, journal.path, log)
            if log.stat().st_size == 0:
                log.unlink()
            first = first or ending
            if ending.startswith("no end"):
                journal.late(left)
                return first, False
            if not ending or ending.startswith("errors"):
                return first, True
            # A step ended the process, and maybe the GPU's context with it: the others get a new one.
            if not journal.fail(ending) and not ending.startswith(f"exit code {EXIT_GPU_LOST}"):
                return first, False  # it came to no step
        return f"{first}; {RESTARTS} processes ended like this: the rest was not tried", True

    def _headline(self, seconds: float) -> None:
        """The suite into headline/, or what is left of it."""
        folder = self.folder / "headline"
        begun = (folder / "plan.json").is_file()
        if begun and gpu_summary.headline_done(folder):
            return
        if seconds < 10:
            return
        command = [sys.executable, "-m", "convbench", "run"]
        command += ["--resume", str(folder)] if begun else ["gpu_headline", "--output", str(folder)]
        command += [] if begun else ["--budget", f"{seconds:.0f} s"]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            code = process.wait(1.1 * seconds + 20)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
            process.send_signal(signal.SIGINT)  # it keeps what is finished
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if isinstance(stop, KeyboardInterrupt):
                raise
            return
        if code:
            self._headline_problem = (
                f"headline: `{' '.join(command[1:])}` ended with exit code {code}: it says why above, and "
                "headline/records.jsonl what failed or is wrong"
            )

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

    def _open_points(self, stage: str) -> list[str]:
        """What of a stage failed or is not done, and what to do about it, a sentence each."""
        if stage == "headline":
            done = gpu_summary.headline_done(self.folder / "headline")
            again = [] if done else ["headline: not finished: run the command again"]
            return ([self._headline_problem] if self._headline_problem else []) + again
        found = self._read(stage)
        points = [f"{stage}: {row}: {failure}" for row, of in found.items() for failure in of["failures"]]
        for row, of in found.items():
            bad = [line for line in of["lines"] if line.get("status") in ("wrong", "failed")]
            if bad:
                what = bad[0].get("case") or bad[0].get("layer")
                points.append(f"{stage}: {row}: {len(bad)} wrong or failed, the first {what}: {bad[0]['reason']}")
        todo = self._todo(stage) if stage != "compile" and "" not in found else []
        if todo:
            names = ", ".join([*todo[:3], *(["..."] if len(todo) > 3 else [])])
            points.append(f"{stage}: {len(todo)} not finished ({names}): run the command again, or with more --minutes")
        return points

    def _exit_code(self, stages: list[str] | tuple[str, ...], points: list[str]) -> int:
        checks = [stage for stage in ("verify", "sanitize") if stage in stages]
        lines = [line for stage in checks for found in self._read(stage).values() for line in found["lines"]]
        if any(line.get("status") == "wrong" for line in lines):
            return errors.EXIT_WRONG
        return errors.EXIT_FAILED if points else errors.EXIT_OK


def code_id() -> str:
    """A hash of what results depend on: the package and the kernels."""
    digest = hashlib.sha256()
    for folder, pattern in (("convbench", "*.py"), ("kernels", "*"), ("benchmarks", "gpu_child.py")):
        for path in sorted(p for p in (ROOT / folder).rglob(pattern) if p.is_file()):
            digest.update(f"{path.relative_to(ROOT)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def sanitizer() -> Path | None:
    """compute-sanitizer, where it is installed."""
    found = shutil.which("compute-sanitizer")
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "compute-sanitizer"
    return Path(found) if found else usual if usual.is_file() else None


def machine_name(gpu: str) -> str:
    """A folder's name for a GPU: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "gpu"


if __name__ == "__main__":
    sys.exit(main())
