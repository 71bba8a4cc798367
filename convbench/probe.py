"""Asks a child process what is registered, so that a plug-in that crashes or hangs costs itself alone.

The parent of a run imports this and never an algorithm. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbench.errors import WorkerFailed

HANG_S = 20.0
TIMEOUT_S = 60.0
STDERR_KEPT_BYTES = 64 << 10

#: Gives the child the parent's module path, whichever way that came about, and runs a module as a program.
BOOT = (
    "import json, runpy, sys; given = json.loads(sys.argv.pop(1)); "
    "sys.path[:] = given + [p for p in sys.path if p not in given]; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def child_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` as a program in a new interpreter with this one's module path."""
    return [sys.executable, "-c", BOOT, json.dumps(sys.path), module, *arguments]


@dataclass
class _Outcome:
    """How one child ended: its document, or who was at work (`@kind name`) when it died or hung."""

    stdout: bytes = b""
    stderr: bytes = b""
    returncode: int | None = None
    silent_s: float | None = None
    doing: tuple[str, str] = ("", "")
    partial: bytes = field(default=b"", repr=False)

    def hear(self, chunk: bytes) -> bool:
        """Keeps the end of what the child said; True if a new step was announced."""
        self.stderr = (self.stderr + chunk)[-STDERR_KEPT_BYTES:]
        *lines, self.partial = (self.partial + chunk).split(b"\n")
        self.partial = self.partial[-STDERR_KEPT_BYTES:]
        steps = [line.decode(errors="replace") for line in lines if line.startswith(b"@")]
        if steps:
            kind, _, name = steps[-1][1:].partition(" ")
            self.doing = (kind, name)
        return bool(steps)


def probe(
    timeout_s: float = TIMEOUT_S,
    problems: list[str] | None = None,
    skip: Mapping[str, str] | None = None,
    hang_s: float = HANG_S,
    memory_bytes: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """The document of `describe.py`: {"implementations": [...], "broken": [...], "problems": [...] if asked}.

    problems: benchdnn descriptors to ask every implementation about; threads: what times are predicted for. skip:
    plug-in name -> reason, not imported. A child that dies, announces no next step for `hang_s` seconds or takes
    longer than `timeout_s` is replaced by one that leaves out the plug-in (or row) at work just then, which appears
    under "broken" with that reason; `document["skip"]` is what workers must pass to `catalog.load(skip=...)`,
    `document["mute"]` the rows to leave alone. memory_bytes (half of the machine's by default) caps what the child
    may allocate.
    Raises WorkerFailed if the child ends without any plug-in or row to blame.
    """
    skipped: dict[str, str] = dict(skip or {})
    muted: dict[str, str] = {}
    memory = memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    with tempfile.TemporaryDirectory(prefix="convbench_") as folder:
        base = ["--parent", str(os.getpid()), "--memory", str(memory)]
        if problems is not None:
            path = Path(folder) / "problems.json"
            path.write_text(json.dumps(problems))
            base += ["--problems", str(path)]
        if threads is not None:
            base += ["--threads", str(threads)]
        while True:
            arguments = [*base, "--skip", json.dumps(skipped), "--mute", json.dumps(muted)]
            outcome = _run(child_command("convbench.describe", *arguments), timeout_s, hang_s)
            document = _document(outcome)
            if document is not None:
                return {**document, "skip": skipped, "mute": muted}
            kind, name = outcome.doing
            blamed = muted if kind == "row" else skipped
            if kind not in ("plug-in", "built-in", "row") or name in blamed:
                raise WorkerFailed(_unexplained(outcome))
            blamed[name] = _reason(outcome)


def _document(outcome: _Outcome) -> dict[str, Any] | None:
    if outcome.returncode != 0:
        return None
    try:
        document = json.loads(outcome.stdout)
    except ValueError:
        return None
    return document if isinstance(document, dict) and "implementations" in document else None


def _reason(outcome: _Outcome) -> str:
    kind, name = outcome.doing
    who, when = (name, "when it was asked about itself") if kind == "row" else (f"{kind} {name}", "on import")
    return f"{who} {_ending(outcome, when)}"


def _ending(outcome: _Outcome, when: str) -> str:
    if outcome.silent_s is not None:
        return f"hung {when} for {outcome.silent_s:.0f} s"
    code = outcome.returncode
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"crashed {when}: {signal.Signals(-code).name}"
        return f"crashed {when}: signal {-code}"
    return f"ended the process {when} with exit code {code}"


def _unexplained(outcome: _Outcome) -> str:
    tail = outcome.stderr.decode(errors="replace").strip()[-2000:]
    ending = _ending(outcome, "while it listed the algorithms")
    command = "python -m convbench.describe"
    return f"the child process {ending}; run `{command}` to see it alone. It said last:\n{tail}"


def _run(command: list[str], timeout_s: float, hang_s: float) -> _Outcome:
    """Runs one child to its end, or kills it and whatever it started when it is silent for too long."""
    outcome = _Outcome()
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    child = subprocess.Popen(command, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        _listen(child, outcome, timeout_s, hang_s)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        outcome.returncode = child.wait()
        for stream in (child.stdout, child.stderr):
            if stream:
                stream.close()
    return outcome


def _listen(child: subprocess.Popen[bytes], outcome: _Outcome, timeout_s: float, hang_s: float) -> None:
    """Collects what the child says until it has ended; sets `silent_s` when it took too long."""
    assert child.stdout is not None and child.stderr is not None
    started = heard = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ended = child.poll() is not None
            ready = selector.select(0 if ended else 0.1)
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    outcome.stdout += chunk
                elif outcome.hear(chunk):
                    heard = time.monotonic()
            if ended and not ready:
                return  # something that the child started holds its pipes open
            now = time.monotonic()
            if not ended and (now - heard > hang_s or now - started > timeout_s):
                outcome.silent_s = now - heard
                return
