"""What a process of `make gpu` has said so far, in a file that outlives it and the command; how processes are run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convbench import errors

ROOT = Path(__file__).resolve().parents[1]
SANITIZER_ERROR = 99
HUNG_S = 60.0  # a step that has that much for itself, and does not end, does not end
_running: set[subprocess.Popen[bytes]] = set()
_stopping = threading.Event()


class Journal:
    """The lines of one row's stage: results as they come, the step that is under way, steps that did not end.

    It belongs to one state of the sources, `code`: what another one left is deleted.
    """

    def __init__(self, path: Path, code: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and next(iter(self._lines()), {}).get("code") != code:
            path.unlink()
        if not path.is_file():
            self.add({"code": code})
        elif not path.read_bytes().endswith(b"\n"):  # killed in the middle of a line
            with path.open("ab") as file:
                file.write(b"\n")

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):  # cut by the end of a process
                    found.append(json.loads(line))
        return found

    def results(self) -> list[dict[str, Any]]:
        """Of all steps that have one."""
        return [x for x in self._lines() if not x.keys() & {"code", "trying", "late"}]

    def trying(self) -> dict[str, Any] | None:
        """The step that began and has no result."""
        last = next((x for x in reversed(self._lines()) if "late" not in x), {})
        return last.get("trying")

    def fail(self, reason: str) -> bool:
        """Gives the step that is under way a result, so that the next process begins after it. False: there is none."""
        step = self.trying()
        if step is not None:
            self.add({**step, "status": "failed", "reason": reason})
        return step is not None

    def late(self, seconds: float) -> None:
        """The time was up, `seconds`. A step that was under way before as well, and had all of it, has failed."""
        step, before = self.trying(), [x["late"] for x in self._lines() if "late" in x]
        if step is not None and step in before and seconds >= HUNG_S:
            self.fail(f"it did not end, twice; the second time within {seconds:.0f} s")
        elif step is not None:
            self.add({"late": step})


def run_process(command: Sequence[str], seconds: float, output: Path, log: Path) -> str:
    """Runs it, stdout added to `output`, stderr to `log`; how it ended if not well. It is ended when its time is.

    Raises Interrupted after end_all.
    """
    begin = output.stat().st_size if output.is_file() else 0
    with output.open("ab") as out, log.open("ab") as err:
        before = err.tell()
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, start_new_session=True)
        _running.add(process)
        try:
            process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return f"no end within {seconds:.0f} s"
        finally:
            _end(process)
    if _stopping.is_set():
        raise errors.Interrupted("ended with the command")
    if process.returncode == SANITIZER_ERROR:
        said = output.read_bytes()[begin:].decode(errors="replace")
        return "errors: " + " | ".join(re.findall(r"^=+ (?:Error|Warning|Invalid|Race).*$", said, re.M)[:3])
    if process.returncode:
        said = log.read_bytes()[before:].decode(errors="replace")
        return f"exit code {process.returncode}: {(said.strip().splitlines() or ['it said nothing'])[-1][:300]}"
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _running.discard(process)


def end_all() -> None:
    """Ends every process that is still at work, for good: who waits for one gets Interrupted."""
    _stopping.set()
    for process in list(_running):
        _end(process)
