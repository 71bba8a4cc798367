"""Threads of a worker kept on cores of their own while they are timed.

A scheduler may leave a pool's woken thread on the core of the thread that woke it: a short sample is over before the
two are told apart, and shows twice the time (seen with GNU OpenMP on 2 cores of a Xeon). Linux only; elsewhere threads
go where the scheduler puts them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_TASKS = Path("/proc/self/task")


def keep_to(threads: int) -> list[int]:
    """Keeps this process on its first `threads` allowed cores, so that it does not wander between samples.

    Returns them; none where the system has no such call.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)
    return cores


def places(others: Sequence[int], cores: Sequence[int]) -> dict[int, int]:
    """Thread -> core for all threads but the calling one, which has the first core.

    A pool starts its threads one after the other, one less than there are cores: neighbours in order of creation are
    on different cores, whichever pool they belong to.
    """
    return {tid: cores[1 + i % (len(cores) - 1)] for i, tid in enumerate(sorted(others))}


class Pinning:
    """hold() before a sample, release() when sampling is over; both do nothing with fewer than two cores.

    cores: one for each thread of a pool. Threads that start between the two calls share the caller's core until the
    next hold().
    """

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = list(cores)
        self.active = len(self._cores) > 1 and _TASKS.is_dir()
        self._pinned: set[int] = set()

    def hold(self) -> None:
        """Puts every thread of this process on its core: the calling thread, which leads each pool, on the first."""
        if not self.active:
            return
        os.sched_setaffinity(0, {self._cores[0]})
        me = threading.get_native_id()
        others = {int(entry.name) for entry in _TASKS.iterdir()} - {me}
        if others == self._pinned:
            return
        for tid, core in places(sorted(others), self._cores).items():
            with suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(tid, {core})
        self._pinned = others

    def release(self) -> None:
        """Gives the calling thread all cores back, and with it all threads that it starts."""
        if self.active:
            os.sched_setaffinity(0, set(self._cores))
