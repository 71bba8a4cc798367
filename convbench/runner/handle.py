"""The parent's end of a worker: start it, talk to it, wait for it with a limit, end it.

A worker that dies or hangs raises WorkerGone with a sentence; the runner blames the case in hand and starts
another worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from convbench import protocol
from convbench.environment import thread_env
from convbench.errors import WorkerFailed
from convbench.probe import child_command

START_TIMEOUT_S = 120.0


class WorkerGone(WorkerFailed):
    """The worker died (`hung` False) or was killed because it said nothing for too long (`hung` True)."""

    def __init__(self, reason: str, hung: bool = False) -> None:
        super().__init__(reason)
        self.hung = hung


class WorkerHandle:
    """One worker process with a fixed thread count, for the rows of one device."""

    def __init__(
        self, threads: int, skip: dict[str, str], memory_bytes: int, cache_dir: Path, device: str = "cpu"
    ) -> None:
        self.threads = threads
        read_fd, write_fd = os.pipe()
        env = dict(os.environ) | thread_env(threads)
        env[protocol.REPLY_FD], env[protocol.PARENT_PID] = str(write_fd), str(os.getpid())
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            child_command("convbench.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env=env,
            pass_fds=(write_fd,),
            start_new_session=True,  # Ctrl-C is the parent's; what a plug-in forks ends with the group
        )
        os.close(write_fd)
        self._read_fd = read_fd
        os.set_blocking(read_fd, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(read_fd, selectors.EVENT_READ)
        self._buffer = b""
        self._lines: list[bytes] = []
        try:
            more = {} if device == "cpu" else {"device": device}
            self.send("hello", skip=skip, memory_bytes=memory_bytes, threads=threads, cache_dir=str(cache_dir), **more)
            first = self.next_event(START_TIMEOUT_S)
            if first["ev"] != "ready":
                raise WorkerFailed(f"a worker could not start: {first.get('reason')}")
        except BaseException:
            self.close()
            raise

    def send(self, op: str, **arguments: Any) -> None:
        """One command. Raises WorkerGone when nobody listens."""
        line = json.dumps({"op": op} | arguments).encode() + b"\n"
        assert self._process.stdin is not None
        self._stderr_mark = os.fstat(self._stderr.fileno()).st_size
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise WorkerGone(self._obituary()) from None

    def next_event(self, timeout_s: float) -> dict[str, Any]:
        """The next event; WorkerGone when the worker ends first, or (killed) when the time does."""
        deadline = time.monotonic() + timeout_s
        while not self._lines:
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()
                raise WorkerGone(f"no answer for {timeout_s:.0f} s", hung=True)
            if not self._selector.select(left):
                continue
            chunk = os.read(self._read_fd, 1 << 20)
            if not chunk:
                raise WorkerGone(self._obituary())
            *complete, self._buffer = (self._buffer + chunk).split(b"\n")
            self._lines.extend(complete)
        return dict(json.loads(self._lines.pop(0)))

    def close(self) -> None:
        """Kills the worker if it lives, and lets go of everything."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._read_fd >= 0:
            self._selector.close()
            os.close(self._read_fd)
            self._read_fd = -1
            self._stderr.close()
            if self._process.stdin is not None:
                try:
                    self._process.stdin.close()
                except BrokenPipeError:
                    self._process.stdin = None

    def _obituary(self) -> str:
        """How the worker ended, with the last line that it wrote to standard error."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        size = os.fstat(self._stderr.fileno()).st_size
        self._stderr.seek(max(self._stderr_mark, size - 4096))  # what was said before the last command is not about it
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        tail = f" (last words: {lines[-1][:200]})" if lines else ""
        self.close()
        if code < 0:
            name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
            hint = ", which is what running out of memory looks like" if name == "SIGKILL" else ""
            return f"crashed: {name}{hint}{tail}"
        return f"the worker exited with code {code}{tail}"
