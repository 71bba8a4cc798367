"""Threads of a worker on cores of their own while they are timed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from convbench import environment
from convbench.pinning import Pinning, places

POOLS = """
import ctypes, os, pathlib, threading
import numba, numpy
from convbench.pinning import Pinning

cores = sorted(os.sched_getaffinity(0))

@numba.njit(parallel=True)
def spread(x):
    for i in numba.prange(len(x)):
        x[i] += 1

numpy.ones((300, 300)) @ numpy.ones((300, 300))
spread(numpy.zeros(1000))
pinning = Pinning(cores)
pinning.hold()
pinning.hold()
tids = sorted(int(t.name) for t in pathlib.Path("/proc/self/task").iterdir())
me = threading.get_native_id()
held = {tid: os.sched_getaffinity(tid) for tid in tids}
assert held.pop(me) == {cores[0]}, "the caller"
assert held and all(len(c) == 1 and c <= set(cores[1:]) for c in held.values()), held
pinning.release()
assert os.sched_getaffinity(0) == set(cores)
"""


@pytest.mark.parametrize(("pools", "cores"), [(1, [0, 1]), (3, [0, 1]), (2, [3, 5, 8, 9]), (4, list(range(16)))])
def test_threads_of_one_pool_never_share_a_core(pools, cores):
    each = len(cores) - 1
    tids = [1000 + 7 * i for i in range(pools * each + 1)]  # the first is no pool's: it shifts all that follow
    given = places(tids, cores)
    for pool in range(pools):
        mine = [given[tid] for tid in tids[1 + pool * each : 1 + (pool + 1) * each]]
        assert sorted(mine) == cores[1:]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_pools_of_a_process():
    cores = len(os.sched_getaffinity(0))
    env = {**os.environ, **environment.thread_env(cores)}
    done = subprocess.run([sys.executable, "-c", POOLS], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr


def test_does_nothing_with_one_thread():
    before = os.sched_getaffinity(0)
    for cores in ([], sorted(before)[:1]):
        pinning = Pinning(cores)
        pinning.hold()
        assert not pinning.active and os.sched_getaffinity(0) == before
