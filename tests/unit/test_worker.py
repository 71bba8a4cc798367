"""What the worker does beside verifying and sampling: smaller problems of the same kind, sentences."""

from __future__ import annotations

import subprocess
import sys

import pytest

from convbench.devices import fma_peak
from convbench.problem import ConvShape, Pass, Problem
from convbench.worker import Worker, sentence_of, shrink, too_big

SHAPES = {
    "vgg": ConvShape.make(n=1, c=64, h=224, w=224, k=64, r=3, s=3, padding=1),
    "batch": ConvShape.make(n=64, c=64, h=14, w=14, k=64, r=3, s=3, padding=1),
    "strided": ConvShape.make(n=1, c=3, h=224, w=224, k=64, r=7, s=7, stride=2, padding=3),
    "wide": ConvShape.make(n=1, c=2048, h=7, w=7, k=2048, r=1, s=1),
    "depthwise": ConvShape.make(n=1, c=512, h=112, w=112, k=512, r=3, s=3, padding=1, groups=512),
    "large filter": ConvShape.make(n=1, c=16, h=56, w=56, k=16, r=31, s=31, padding=15),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_smaller_problem_is_of_the_same_kind(name):
    problem = Problem(SHAPES[name], Pass.BACKWARD_DATA, "float32", "nhwc")
    small = shrink(problem, 500_000)
    if name != "large filter":  # an image is not cut below twice its filter
        assert small.shape.macs <= 500_000
    assert small.shape.macs < problem.shape.macs
    for same in ("r", "s", "stride", "dilation"):
        assert getattr(small.shape, same) == getattr(problem.shape, same)
    assert (small.pass_, small.layout, small.dtype) == (problem.pass_, problem.layout, problem.dtype)


def test_a_peak_below_a_product_is_measured_again(monkeypatch):
    events, readings = [], {"float32": iter([100.0, 90.0, 320.0]), "float64": iter([170.0])}
    monkeypatch.setattr(fma_peak, "measure", lambda threads, dtype="float32": next(readings[dtype]))
    monkeypatch.setattr("convbench.environment.measure_peaks", lambda threads: {"gflops": 300.0})
    worker = Worker.__new__(Worker)
    worker.emit, worker.threads = events.append, 2
    worker.do_peaks()
    assert events == [{"ev": "peaks", "peaks": {"gflops_sgemm": 300.0, "gflops": 320.0, "gflops_float64": 170.0}}]


def test_a_small_problem_stays_as_it_is():
    problem = Problem(ConvShape.make(n=1, c=4, h=8, w=8, k=4, r=3, s=3))
    assert shrink(problem, 500_000) == problem


def test_sentences_are_one_line():
    assert sentence_of(ValueError("two\nlines")) == "ValueError: two lines"
    assert sentence_of(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert too_big("x_y", 3 << 30, 1 << 30) == (
        "x_y: would need 3,072 MiB of workspace; the suite's workspace_limit is 1,024 MiB"
    )


SAMPLING = """
import types
from convbench import catalog, worker
from convbench.stats import median_ci

catalog.load = lambda skip: types.SimpleNamespace(implementations={})
events = []
served = worker.Worker(events.append)
served.serve({"op": "hello", "skip": {}, "memory_bytes": 1 << 36, "threads": 2, "cache_dir": None})
median_ci([1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3])
before, after = ({pool["version"] for pool in pools} for pools in (events[0]["pools"], worker.thread_pools()))
assert before == after, (before, after)
"""


def test_statistics_load_no_thread_pool_while_threads_are_kept_on_cores():
    """A BLAS that is loaded then sees one core, and every later case fails for a pool of one thread."""
    done = subprocess.run([sys.executable, "-c", SAMPLING], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
