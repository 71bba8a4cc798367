"""devices/cuda.py on a fake GPU: availability, programs on a stream, verification, and the traps of timing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convbench.cuda.gpu import H200
from convbench.cuda.program import At, Buffer, Float, Launch, Long, Product, Program, Struct, Transform, Zero
from convbench.devices import cuda, cuda_program, nvml
from convbench.devices.base import HostClock, make_plan
from convbench.devices.cuda_timing import CudaTimer, TimingError
from convbench.errors import Unavailable
from convbench.problem import ConvShape, Pass, Problem
from convbench.records import Samples
from convbench.stats import is_throttled
from convbench.verify import Verifier
from tests.fake_cuda import KERNEL_NS, LAUNCH_NS, Fake, install
from tests.fake_rows import Allocates, FakeDirect, FakeWorkspace, OtherStream, add_kernels

SHAPE = ConvShape.make(2, 6, 9, 8, 4, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2)), groups=2)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = install(monkeypatch)
    add_kernels(fake)
    monkeypatch.setattr(cuda_program, "compile_for", lambda launch, gpu: types.SimpleNamespace(path=launch.file))
    yield fake
    cuda.forget()


def bound(program: Program) -> tuple[cuda.CudaContext, Any]:
    context = cuda.CudaDevice().context()
    return context, context.bind(program)


# ---- availability


@pytest.mark.parametrize(
    "facts, sentence",
    [
        ({"available": False, "driver": 0}, "no NVIDIA driver or GPU: cupy.cuda.is_available() is False"),
        ({"available": False, "driver": 12020}, "the NVIDIA driver is too old: it offers CUDA 12.2, cupy needs 13.2"),
        ({"available": False, "driver": 13010}, "an NVIDIA driver, but no GPU: cupy.cuda.is_available() is False"),
        ({"compute": (7, 0)}, "Fake H200: compute capability 7.0 is below 7.5"),
    ],
)
def test_each_lack_has_its_sentence(facts: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, **facts)
    assert (cuda.why_not() or "").startswith(sentence)
    assert FakeDirect().unavailable() == f"direct_test_cuda needs an NVIDIA GPU: {cuda.why_not()}"
    with pytest.raises(Unavailable):
        cuda.CudaDevice()
    cuda.forget()


def test_a_missing_cupy_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cuda.forget()
    assert cuda.why_not() == "cupy is not installed: pip install 'convbench[cuda]'"
    assert FakeDirect().unavailable() == "direct_test_cuda needs cupy: pip install 'convbench[cuda]'"
    cuda.forget()


def test_a_row_may_ask_for_more(gpu: Fake) -> None:
    class Demanding(FakeDirect):
        name = "demanding_test_cuda"
        least = (10, 0)

    assert FakeDirect().unavailable() is None
    assert (Demanding().unavailable() or "").endswith("Fake H200: compute capability 9.0 is below 10.0")

    class Hopper(FakeDirect):
        name = "hopper_test_cuda"
        architecture = "sm_90a"

    class Blackwell(FakeDirect):
        name = "blackwell_test_cuda"
        architecture = "sm_100a"

    assert Hopper().unavailable() is None
    assert (Blackwell().unavailable() or "").endswith("Fake H200 is sm_90a: only sm_100a has the instructions")


def test_nothing_imports_cupy_at_start() -> None:
    modules = ("", ".cli", ".worker", ".describe", ".devices.cuda", ".devices.cuda_timing", ".algorithms._cuda")
    program = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
        f"import {', '.join('convbench' + m for m in modules)}; "
        "convbench.conv2d; assert not any(m.split('.')[0] in ('cupy', 'pynvml') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_gpu_is_described(gpu: Fake) -> None:
    found = cuda.this_gpu()
    assert (found.name, found.architecture, found.l2_bytes) == ("Fake H200", "sm_90a", H200.l2_bytes)
    facts = cuda.facts()
    assert facts["compute_capability"] == "9.0" and facts["cuda_runtime"] == "13.2"


# ---- programs


def test_a_launch_gets_every_argument_in_its_width(gpu: Fake) -> None:
    gpu.kernels["probe"] = lambda *arguments: None
    arguments = (At("out", 3), Struct((1, -2, 3)), Long(2**40), Float(0.5), 7)
    launch = Launch("direct.cu", "probe", (5, 2, 1), (32, 4, 1), arguments, shared_bytes=64 << 10)
    context, run = bound(Program((launch,)))
    arrays = [context.empty(8, np.float32) for _ in range(3)]
    run(*arrays)
    _, grid, block, got, shared = gpu.launched[0]
    assert (grid, block, shared) == ((5, 2, 1), (32, 4, 1), 64 << 10)
    assert [g.dtype.itemsize for g in got] == [8, 12, 8, 4, 4]
    assert int(got[0]) == arrays[2].ctypes.data + 12
    assert [tuple(got[1][0]), int(got[2]), float(got[3]), int(got[4])] == [(1, -2, 3), 2**40, 0.5, 7]


def test_run_enqueues_and_neither_waits_nor_allocates(gpu: Fake) -> None:
    device = cuda.CudaDevice()
    context = device.context()
    plan = make_plan(FakeDirect(), Problem(SHAPE), context)
    a, b, out = (context.empty(s, np.float32) for s in (plan.problem.a_shape, plan.problem.b_shape, (2, 4, 4, 9)))
    a.fill(1), b.fill(1)
    before = gpu.time.now_ns
    with device.watch_memory() as peak:
        plan.run(a, b, out)
    assert peak.n_bytes == 0 and context.launches == 1
    assert gpu.time.now_ns - before == LAUNCH_NS < KERNEL_NS and np.isnan(out).all()
    device.finish(context)
    assert not np.isnan(out).any()


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_products_are_row_major(gpu: Fake, transpose_a: bool, transpose_b: bool, add: bool) -> None:
    m, n, k, batch = 5, 7, 3, 4
    shapes = ((k, m) if transpose_a else (m, k)), ((n, k) if transpose_b else (k, n)), (m, n)
    rows = [shape[1] + 2 for shape in shapes]  # rows lie further apart than they are long
    steps = [shape[0] * row + 1 for shape, row in zip(shapes, rows, strict=True)]
    product = Product(
        At("a", 1), At("b", 2), At("w", 3), m, n, k, *rows, transpose_a, transpose_b, batch, *steps, add=add
    )
    size = 3 + batch * steps[2]
    copy = Launch("direct.cu", "copy", (1, 1, 1), (1, 1, 1), (At("w"), At("out"), size * 4))
    steps_ = (product, copy) if add else (Zero("w"), product, copy)
    context, run = bound(Program(steps_, (Zero("w"),), {"w": Buffer((size,))}))
    rng = np.random.default_rng(0)
    a, b, out = (context.empty(s, np.float32) for s in (1 + batch * steps[0], 2 + batch * steps[1], size))
    for array in (a, b):
        array[...] = rng.integers(-9, 9, array.shape)

    def matrices(array: Any, offset: int, shape: Any, row: int, step: int) -> np.ndarray:
        return np.lib.stride_tricks.as_strided(array[offset:], (batch, *shape), (4 * step, 4 * row, 4))

    left, right = (matrices(x, 1 + i, shapes[i], rows[i], steps[i]) for i, x in enumerate((a, b)))
    left, right = left.swapaxes(1, 2) if transpose_a else left, right.swapaxes(1, 2) if transpose_b else right
    run(a, b, out)
    context.stream.synchronize()
    np.testing.assert_array_equal(matrices(out, 3, shapes[2], rows[2], steps[2]), left @ right)
    assert gpu.products == [sys.modules["cupy"].cuda.cublas.CUBLAS_COMPUTE_32F_PEDANTIC]


def test_transforms_are_not_normalised_and_their_memory_is_counted(gpu: Fake) -> None:
    batch, height, width = 3, 6, 8
    there = Transform("forward", At("a"), At("f"), batch, height, width)
    back = Transform("inverse", At("f"), At("out"), batch, height, width)
    context, run = bound(Program((there, back), (), {"f": Buffer((batch, height, width // 2 + 1), "complex64")}))
    assert context.workspace_bytes == batch * height * (width // 2 + 1) * 8 + 2 * 4096
    a, out = (context.empty((batch, height, width), np.float32) for _ in range(2))
    a[...] = np.random.default_rng(0).standard_normal(a.shape)
    run(a, a, out)
    context.stream.synchronize()
    np.testing.assert_allclose(out, a * height * width, rtol=1e-4, atol=1e-4)


def test_packed_plans_run_the_filter_steps_once(gpu: Fake) -> None:
    problem = Problem(SHAPE)
    context = cuda.CudaDevice().context()
    weights = context.empty(problem.b_shape, np.float32)
    weights.fill(1)
    plan = make_plan(FakeWorkspace(), problem, context, weights)
    assert [name for name, *_ in gpu.launched] == ["copy"] and gpu.time.log[:2] == ["zero", "copy"]
    a, out = context.empty(problem.a_shape, np.float32), context.empty(problem.out_shape, np.float32)
    for _ in range(2):
        plan.run(a, None, out)
    assert [name for name, *_ in gpu.launched] == ["copy", "direct_forward", "direct_forward"]
    assert gpu.launched[1][4] == 100_000


# ---- verification


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("row", [FakeDirect, FakeWorkspace])
def test_a_right_row_is_verified_where_its_memory_is(gpu: Fake, row: Any, pass_: Pass, dtype: str) -> None:
    device = cuda.CudaDevice()
    for layout, weights in (("nchw", "raw"), ("nhwc", "packed")):
        if weights == "packed" and pass_ is Pass.BACKWARD_WEIGHTS:
            continue
        verifier = Verifier(Problem(SHAPE, pass_, dtype, layout), device=device, full_macs=0)
        plan, verdict = verifier.verify(row(), device.context, weights)
        assert plan is not None and verdict.ok, verdict.reason
        assert verifier.recheck(plan).ok
        assert type(verifier.operands()[0]).__module__ == "cupy"


def test_work_on_another_stream_is_seen_as_a_late_write(gpu: Fake) -> None:
    device = cuda.CudaDevice()
    plan, verdict = Verifier(Problem(SHAPE), device=device).verify(OtherStream(), device.context)
    assert plan is None and verdict.check == "settled"
    checks = frozenset({"unwritten", "integer", "normal"})
    plan, verdict = Verifier(Problem(SHAPE), device=device, checks=checks).verify(OtherStream(), device.context)
    assert plan is not None  # without that check it escapes: everything is waited for before results are compared


def test_a_write_outside_device_memory_is_seen(gpu: Fake) -> None:
    device = cuda.CudaDevice()
    right = gpu.kernels["direct_forward"]

    def beyond(a: Any, b: Any, out: Any, conv: Any, kind: Any) -> None:
        from tests.fake_cuda import memory

        right(a, b, out, conv, kind)
        memory(int(out) - 16, 4, np.float32)[0] = 1

    gpu.kernels["direct_forward"] = beyond
    verdict = Verifier(Problem(SHAPE), device=device).verify(FakeDirect(), device.context)[1]
    assert verdict.check == "guard" and "out" in verdict.reason


def test_memory_taken_during_a_run_is_seen(gpu: Fake) -> None:
    device = cuda.CudaDevice()
    _, verdict = Verifier(Problem(SHAPE), device=device).verify(Allocates(), device.context)
    assert verdict.ok and verdict.peak_bytes >= 1 << 20
    _, verdict = Verifier(Problem(SHAPE), device=device).verify(FakeDirect(), device.context)
    assert verdict.peak_bytes == 0


# ---- timing


class Readings:
    """A monitor: clocks in turn, one reason, an energy counter that follows simulated time at 500 W."""

    def __init__(self, fake: Fake, energy: bool = True) -> None:
        self.fake, self.energy = fake, energy

    def reading(self) -> dict[str, Any]:
        return {"sm_mhz": 1980, "reasons": []}

    def energy_mj(self) -> int | None:
        return self.fake.time.now_ns * 500 // 10**6 if self.energy else None


def timer(gpu: Fake, row: Any = FakeDirect, mode: str = "hot", energy: bool = True) -> CudaTimer:
    device = cuda.CudaDevice()
    verifier = Verifier(Problem(SHAPE), device=device)
    plan = make_plan(row(), Problem(SHAPE), device.context())
    return CudaTimer(device, plan, verifier.operands(), mode, Readings(gpu, energy))


def test_events_time_the_kernels_and_hide_the_launches(gpu: Fake) -> None:
    gpu.kernel_ns = 500  # far less than a launch
    timed = timer(gpu)
    assert timed.time(64) <= 64 * 500 + 3 * LAUNCH_NS  # two graphs of 32
    timed.call()
    assert timed.reading["host_ns"] >= LAUNCH_NS
    assert timed.reading["sm_mhz"] == 1980 and timed.notes == {}


def test_work_lies_between_the_events(gpu: Fake) -> None:
    timed = timer(gpu)
    gpu.time.log.clear()
    assert timed.time(3) == 3 * KERNEL_NS
    assert gpu.time.log == ["direct_forward", "event", *["direct_forward"] * 3, "event"]


def test_the_flush_is_outside_the_events(gpu: Fake) -> None:
    timed = timer(gpu, mode="cold")
    clock = HostClock(cuda.CudaDevice())
    gpu.time.log.clear()
    clock.flush()
    ns = timed.time(1)
    assert gpu.time.log == ["zero", "event", "direct_forward", "event"]
    assert ns <= KERNEL_NS + LAUNCH_NS < timed.reading["host_ns"] + LAUNCH_NS


def test_the_flush_writes_more_than_the_cache_holds(gpu: Fake) -> None:
    for l2_bytes, flushed in ((60 << 20, 256 << 20), (200 << 20, 400 << 20)):
        gpu.attributes["L2CacheSize"] = l2_bytes
        cuda.forget()
        device = cuda.CudaDevice()
        device.flush_cache()
        assert device._flush.nbytes == flushed


def test_a_graph_that_holds_nothing_is_refused(gpu: Fake) -> None:
    gpu.kernel_ns = 5_000  # too short for the host's time to tell
    with pytest.raises(TimingError, match=r"captured graph leaves the result unwritten.*another stream"):
        timer(gpu, OtherStream)


def test_events_on_an_idle_stream_are_refused(gpu: Fake) -> None:
    with pytest.raises(TimingError, match=r"events on its stream cover .* another stream"):
        timer(gpu, OtherStream, mode="cold")


def test_events_with_no_time_between_them_are_refused(gpu: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timer(gpu)
    monkeypatch.setattr(timed, "_enqueue", lambda loops: None)  # both events come before the work
    with pytest.raises(TimingError, match="no time passed between the events"):
        timed.time(5)


def test_what_cannot_be_captured_is_timed_call_by_call_and_noted(gpu: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("cudaErrorStreamCaptureUnsupported")

    monkeypatch.setattr("tests.fake_cuda.Stream.begin_capture", refuse)
    timed = timer(gpu)
    assert "launches are not hidden" in timed.notes["graph"]
    assert timed.time(10) >= 10 * KERNEL_NS


def test_energy_is_a_number_or_unavailable(gpu: Fake) -> None:
    joules = timer(gpu).energy_j()
    assert joules == pytest.approx(500 * KERNEL_NS / 1e9, rel=0.05)
    assert timer(gpu, energy=False).energy_j() == "unavailable"


# ---- clocks


def test_a_clock_that_drops_or_is_held_back_is_throttled() -> None:
    def series(*readings: Any) -> Samples:
        return Samples(sm_mhz=[mhz for mhz, _ in readings], reasons=[reasons for _, reasons in readings])

    steady = (1980, ["gpu_idle"]), (1965, [])
    assert not is_throttled(series(*steady))
    assert is_throttled(series(*steady, (1700, [])))
    assert is_throttled(series(*steady, (1980, ["sw_power_cap"])))
    assert not is_throttled(series((None, None))) and not is_throttled(Samples())


def test_nvml_is_read_and_never_set() -> None:
    calls: list[str] = []

    class Library(types.ModuleType):
        NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
        NVMLError = RuntimeError

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("nvml"):
                raise AttributeError(name)

            def call(*arguments: Any) -> Any:
                calls.append(name)
                if name == "nvmlDeviceGetTotalEnergyConsumption":
                    raise RuntimeError("Not Supported")
                return {"nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x40, "nvmlDeviceGetClockInfo": 1755}.get(name)

            return call

    sys.modules["pynvml"] = Library("pynvml")
    try:
        monitor = nvml.Monitor("0000:19:00.0")
        assert monitor.reading() == {"sm_mhz": 1755, "reasons": ["gpu_idle", "hw_thermal_slowdown"]}
        assert monitor.energy_mj() is None
        assert monitor.facts()["nvml"] == "answers"
    finally:
        del sys.modules["pynvml"]
    assert not [name for name in calls if "Set" in name or "Reset" in name]


def test_without_nvml_facts_are_unknown() -> None:
    monitor = nvml.Monitor("0000:19:00.0")
    assert monitor.reading() == {"sm_mhz": None, "reasons": None} and monitor.energy_mj() is None
    assert monitor.facts()["nvml"]
