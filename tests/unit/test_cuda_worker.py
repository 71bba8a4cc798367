"""The worker beside a GPU, in this process on a fake one: cases in, verdicts, samples and readings out."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest

from convbench import catalog
from convbench.descriptor import print_descriptor
from convbench.devices import cuda, cuda_program
from convbench.problem import ConvShape, Problem
from convbench.verify.reference import CACHE
from convbench.worker import Worker
from tests.fake_cuda import Fake, install
from tests.fake_rows import Allocates, FakeDirect, FakeWorkspace, OtherStream, add_kernels

MS = 1_000_000
TEXT = print_descriptor(Problem(ConvShape.make(2, 6, 9, 8, 4, 3, 3, padding=1)))
RULE = {"min_blocks": 4, "min_time_s": 0.001, "ci_target": 0.5, "max_blocks": 6}
LIMITS = {"workspace_limit": 1 << 30, "memory_bytes": 1 << 30}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Worker, list[dict[str, Any]], Fake]]:
    fake = install(monkeypatch)
    fake.kernel_ns = MS
    add_kernels(fake)
    monkeypatch.setattr("convbench.worker.GPU_WARM_S", 0.02)
    monkeypatch.setattr(cuda, "FLUSH_BYTES", 1 << 10)
    fake.attributes["L2CacheSize"] = 1 << 10
    rows = {row.name: row() for row in (FakeDirect, FakeWorkspace, OtherStream, Allocates)}
    monkeypatch.setattr(catalog, "load", lambda **_: types.SimpleNamespace(implementations=rows))
    monkeypatch.setattr(cuda_program, "compile_for", lambda launch, gpu: types.SimpleNamespace(path=launch.file))
    monkeypatch.setattr("convbench.worker.thread_pools", list)
    events: list[dict[str, Any]] = []
    worker = Worker(events.append)
    worker.serve(
        {"op": "hello", "skip": {}, "memory_bytes": 1 << 30, "threads": 1, "cache_dir": None, "device": "cuda"}
    )
    assert events == [{"ev": "ready", "pools": []}]
    events.clear()
    yield worker, events, fake
    CACHE.clear()
    CACHE.limit_bytes = None
    cuda.forget()


def sample(worker: Worker, names: list[str], mode: str = "hot", **more: Any) -> None:
    worker.serve(
        {"op": "sample", "problem": TEXT, "implementations": names, "weights": "raw", "seed": 0, "mode": mode,
         "baseline": None, "seconds": 1.0, "rule": RULE, "first_block": 0, "loops": {}, **more}
    )  # fmt: skip


def verify(worker: Worker, name: str, weights: str = "raw") -> None:
    worker.serve({"op": "verify", "problem": TEXT, "implementation": name, "weights": weights, "seed": 0, **LIMITS})


def test_a_verified_case_says_what_it_took(worker: Any) -> None:
    served, events, _ = worker
    verify(served, "workspace_test_cuda")
    assert events[-1]["ev"] == "verified"
    assert events[-1]["launches"] == 3 and events[-1]["workspace_bytes"] == 6 * 4 * 9 * 4
    assert events[-1]["error"]["bound_ratio"] > 0
    verify(served, "workspace_test_cuda", "packed")
    assert events[-1]["launches"] == 1


def test_memory_taken_while_running_counts_as_workspace(worker: Any) -> None:
    served, events, _ = worker
    verify(served, "allocates_test_cuda")
    assert events[-1]["workspace_bytes"] >= 1 << 20


def test_work_on_another_stream_is_wrong(worker: Any) -> None:
    served, events, _ = worker
    verify(served, "stream_test_cuda")
    assert (events[-1]["ev"], events[-1]["status"]) == ("refused", "wrong")
    assert "settled" in events[-1]["reason"]


@pytest.mark.parametrize("mode", ["hot", "cold"])
def test_samples_carry_the_host_s_time_and_the_clocks(worker: Any, mode: str) -> None:
    served, events, fake = worker
    for name in ("direct_test_cuda", "workspace_test_cuda"):
        verify(served, name)
    events.clear()
    sample(served, ["direct_test_cuda", "workspace_test_cuda"], mode)
    samples = [e for e in events if e["ev"] == "sample"]
    assert {e["implementation"] for e in samples} == {"direct_test_cuda", "workspace_test_cuda"}
    for event in samples:
        steps = 1 if event["implementation"] == "direct_test_cuda" else 2
        assert event["ns"] / event["loops"] == pytest.approx(steps * MS, rel=0.1)
        assert set(event["reading"]) == {"host_ns", "sm_mhz", "reasons"}
        assert event["reading"]["host_ns"] > steps * MS
        assert event["loops"] == 1 if mode == "cold" else event["loops"] > 1
    done = [e for e in events if e["ev"] == "done"]
    assert [e["ok"] for e in done] == [True, True] and done[0]["energy_j"] == "unavailable"
    assert events[-1] == {"ev": "sampled"}
    flushes = fake.time.log.count("zero")
    assert (flushes >= len(samples)) if mode == "cold" else True


def test_who_cannot_be_timed_is_lost_alone(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served, events, _ = worker
    for name in ("direct_test_cuda", "workspace_test_cuda"):
        verify(served, name)
    ready = served.prepared["direct_test_cuda"]
    astray = OtherStream().prepare(ready.plan.problem, ready.plan.context)
    monkeypatch.setattr(ready.plan, "call", astray)
    events.clear()
    sample(served, ["direct_test_cuda", "workspace_test_cuda"])
    lost = [e for e in events if e["ev"] == "lost"]
    assert [e["implementation"] for e in lost] == ["direct_test_cuda"] and "another stream" in lost[0]["reason"]
    assert [e["implementation"] for e in events if e["ev"] == "done"] == ["workspace_test_cuda"]


def test_operands_that_somebody_changed_spoil_the_times(worker: Any) -> None:
    served, events, fake = worker
    verify(served, "direct_test_cuda")
    right = fake.kernels["direct_forward"]
    operands = served.verifier.operands()

    def spoils(*arguments: Any) -> None:
        right(*arguments)
        operands[0][0, 0, 0, 0] += 1

    fake.kernels["direct_forward"] = spoils
    events.clear()
    sample(served, ["direct_test_cuda"])
    done = next(e for e in events if e["ev"] == "done")
    assert not done["ok"] and "changed the operands" in done["reason"]


def test_peaks_are_measured_on_the_gpu(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served, events, _ = worker
    monkeypatch.setattr("convbench.devices.cuda_peaks.SIZE", 16)
    monkeypatch.setattr("convbench.devices.cuda_peaks.COPY_BYTES", 1 << 10)
    served.serve({"op": "peaks"})
    assert events[-1]["ev"] == "peaks"
    peaks = events[-1]["peaks"]
    assert peaks["gflops_sgemm"] == pytest.approx(2 * 16**3 / (MS + 4000), rel=0.05)
    assert {"gflops", "gflops_tf32", "gflops_float16", "gflops_bfloat16", "copy_gbps"} <= set(peaks)


def test_drop_gives_memory_back(worker: Any) -> None:
    served = worker[0]
    verify(served, "direct_test_cuda")
    served.serve({"op": "drop"})
    assert not served.prepared and not served.timers and served.verifier is None
