"""Tasks and their loops: every index once, in one thread and in two; what a task may use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import config

from convbench.simd import driver
from convbench.simd.driver import Runner, call, copy, item, put, task, zero
from convbench.simd.kernels.transpose import transpose
from convbench.simd.target import host
from tests.simd_helpers import address

ROOT = Path(__file__).resolve().parents[2]


@task
def count_up(index, thread, parameters):
    """counts[index] += 1, threads[index] = thread."""
    counts, threads = item(parameters, 0), item(parameters, 1)
    put(counts, index, item(counts, index) + 1)
    put(threads, index, thread)


@task
def uses_all_words(index, thread, parameters):
    """Transposes a 3 x 5 matrix by a kernel, copies two rows of it elsewhere, and clears its first element."""
    kernel, source, to, elsewhere = (
        item(parameters, 0), item(parameters, 1), item(parameters, 2), item(parameters, 3),
    )  # fmt: skip
    call(kernel, (3, 5, source, 5, to, 3))
    copy(elsewhere, to + 4 * 3, 6)
    zero(to, 1)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_every_index_runs_once(count):
    counts, threads = np.zeros(max(count, 1), np.int64), np.full(max(count, 1), -1)
    run = Runner(count_up, np.array([address(counts), address(threads)]), 1)
    run(count)
    run(count)
    assert (counts[:count] == 2).all() and (threads[:count] == 0).all()


IN_THREADS = """
import sys
import numpy as np
from convbench.simd.driver import Runner, most_threads
from tests.unit.test_simd_driver import address, count_up
assert most_threads() == 2
for threads in (2, 1, 2, 5):
    for count in (0, 1, 2, 3, 7, 1000, 1001):
        counts, who = np.zeros(max(count, 1), np.int64), np.full(max(count, 1), -1)
        run = Runner(count_up, np.array([address(counts), address(who)]), threads)
        for _ in range(3):
            run(count)
        assert (counts[:count] == 3).all(), (threads, count)
        used = set(who[:count].tolist())
        assert used <= set(range(min(threads, 2))), (threads, used)
        if count >= 2 and threads >= 2:
            assert used == {0, 1}, (threads, count, used)
            changes = np.count_nonzero(np.diff(who[:count]))
            assert changes == 1, "each thread should have a contiguous range"
            sizes = np.bincount(who[:count])
            assert abs(int(sizes[0]) - int(sizes[1])) <= 1, sizes
print("as it should")
"""


def test_two_threads_take_even_contiguous_shares():
    import os

    env = os.environ | {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", IN_THREADS]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "as it should", done.stderr


def test_what_a_task_may_use():
    source = np.arange(15, dtype=np.float32).reshape(3, 5)
    to, elsewhere = np.zeros((5, 3), np.float32), np.zeros((2, 3), np.float32)
    places = [transpose(host()).address, *(address(array) for array in (source, to, elsewhere))]
    Runner(uses_all_words, np.array(places), 1)(1)
    wanted = source.T.copy()
    wanted[0, 0] = 0
    assert np.array_equal(to, wanted)
    assert np.array_equal(elsewhere, source.T[1:3])


def test_parameters_may_change_between_calls():
    first, second, threads = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    parameters = np.array([address(first), address(threads)])
    run = Runner(count_up, parameters, 1)
    run(4)
    parameters[0] = address(second)
    run(3)
    assert first.tolist() == [1, 1, 1, 1] and second.tolist() == [1, 1, 1, 0]


def test_the_users_numba_settings_come_back(monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", "/somewhere/else")
    with driver._kept_on_disk():
        assert "loops-" in config.CACHE_DIR
    assert config.CACHE_DIR == "/somewhere/else"
