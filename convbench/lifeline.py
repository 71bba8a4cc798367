"""Ties a child process to its parent: it dies with it, and it cannot take more memory than it was given.

Linux: prctl(PR_SET_PDEATHSIG). Elsewhere the closed pipe to the parent ends the child.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Asks the kernel for SIGKILL when the parent goes; exits at once if it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(0)


def leave_interrupts_to_parent() -> None:
    """Ctrl-C reaches the whole foreground group; the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def cap_memory(limit_bytes: int) -> None:
    """Private writable memory beyond `limit_bytes` becomes a MemoryError instead of a machine that swaps.

    May be called again with another limit; no core files are written.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    allowed = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it; 0 where the kernel does not say."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:")), 0)
    except OSError:
        return 0
