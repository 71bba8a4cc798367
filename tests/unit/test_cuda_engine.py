"""The public functions on CuPy's arrays, with a fake GPU: CuPy in, CuPy out, in the order of the current stream."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

import convbench
from convbench import catalog, engine, registry
from convbench.algorithms.im2col_numpy import Im2colNumpy
from convbench.devices import cuda, cuda_program
from convbench.errors import ProblemError, Unavailable, UnknownAlgorithm, Unsupported
from convbench.problem import ConvShape, Pass, Problem, Semantics
from tests.fake_cuda import Fake, install
from tests.fake_rows import FakeDirect, FakeWorkspace, add_kernels


class Reduced(FakeDirect):
    """Multiplies in less than the problem's type."""

    name = "reduced_test_cuda"
    arithmetic = "tf32"


class Vendor(FakeDirect):
    """A vendor's row that takes half precision only."""

    name = "vendor_test_cuda"
    dtypes: ClassVar[tuple[str, ...]] = ("float16",)
    vendor = True


class Signs(FakeDirect):
    """Counts bits."""

    name = "signs_test_cuda"
    passes = (Pass.FORWARD,)
    semantics = Semantics.XNOR
    arithmetic = "binary"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = install(monkeypatch)
    add_kernels(fake)
    rows = {row.name: row() for row in (FakeDirect, FakeWorkspace, Reduced, Vendor, Im2colNumpy)}
    monkeypatch.setattr(catalog, "load", lambda **_: types.SimpleNamespace(implementations=rows))
    monkeypatch.setattr(registry, "implementations", lambda: rows)
    monkeypatch.setattr(cuda_program, "compile_for", lambda launch, gpu: types.SimpleNamespace(path=launch.file))
    yield fake
    convbench.clear_cache()
    engine._gpus.clear()
    cuda.forget()


def arrays(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[tuple[np.ndarray, Any]]:
    rng = np.random.default_rng(0)
    found = [rng.integers(-4, 4, shape).astype(dtype) for shape in shapes]
    return [(array, array.copy().view(sys.modules["cupy"].ndarray)) for array in found]


def settled(fake: Fake) -> None:
    sys.modules["cupy"].cuda.runtime.deviceSynchronize()


@pytest.mark.parametrize("algorithm", ["direct_test_cuda", "workspace_test_cuda", "direct", "auto"])
def test_all_three_passes(gpu: Fake, algorithm: str) -> None:
    (x, gx), (w, gw), (dy, gdy) = arrays((2, 4, 7, 6), (6, 2, 3, 3), (2, 6, 7, 6))
    options = {"padding": 1, "groups": 2}
    calls = [
        (convbench.conv2d, (x, w), (gx, gw)),
        (convbench.conv2d_backward_data, (dy, w, x.shape), (gdy, gw, x.shape)),
        (convbench.conv2d_backward_weights, (x, dy, 3), (gx, gdy, 3)),
    ]
    for function, on_cpu, on_gpu in calls:
        want = function(*on_cpu, algorithm="im2col_numpy", **options)
        got = function(*on_gpu, algorithm=algorithm, **options)
        assert type(got).__module__ == "cupy"
        settled(gpu)
        np.testing.assert_array_equal(np.asarray(got), want)


def test_work_keeps_the_order_of_the_current_stream(gpu: Fake) -> None:
    (x, gx), (w, gw) = arrays((1, 4, 7, 6), (6, 4, 3, 3))
    cupy = sys.modules["cupy"]
    current = cupy.cuda.Stream(non_blocking=True)
    gx.fill(np.nan)
    with current:
        gpu.enqueue("fill", 10**6, lambda: np.copyto(gx, x))  # not there yet when conv2d is called
        host = gpu.time.now_ns
        got = convbench.conv2d(gx, gw, algorithm="direct_test_cuda")
        assert gpu.time.now_ns - host < 10**6 or "direct_forward" in gpu.time.log  # making the plan may wait
        again = convbench.conv2d(gx, gw, algorithm="direct_test_cuda")
        assert np.isnan(np.asarray(again)).any() or current.free_at > gpu.time.now_ns
    current.synchronize()
    want = convbench.conv2d(x, w, algorithm="im2col_numpy")
    np.testing.assert_array_equal(np.asarray(got), want)
    np.testing.assert_array_equal(np.asarray(again), want)


def test_a_plan_packs_once_and_takes_arrays_that_lie_anyhow(gpu: Fake) -> None:
    (x, gx), (w, gw) = arrays((1, 4, 7, 6), (6, 4, 3, 3))
    plan = convbench.plan(x.shape, gw, algorithm="workspace_test_cuda")
    gw.fill(np.nan)
    turned = gx.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)
    got = plan(turned)
    settled(gpu)
    np.testing.assert_array_equal(np.asarray(got), convbench.conv2d(x, w, algorithm="im2col_numpy"))
    assert plan.workspace_bytes >= w.nbytes + x.nbytes
    with pytest.raises(ProblemError, match=r"x is NumPy's, but the plan's weights were CuPy's"):
        plan(x)


def test_devices_are_not_mixed(gpu: Fake) -> None:
    (x, gx), (w, gw) = arrays((1, 4, 7, 6), (6, 4, 3, 3))
    with pytest.raises(ProblemError, match=r"w is NumPy's, but x is CuPy's: bring both to one device"):
        convbench.conv2d(gx, w)
    with pytest.raises(ProblemError, match="out must be a CuPy array"):
        convbench.conv2d(gx, gw, out=np.empty((1, 6, 5, 4), np.float32))
    with pytest.raises(Unsupported, match="direct_test_cuda runs on cuda, but the arrays are NumPy's"):
        convbench.conv2d(x, w, algorithm="direct_test_cuda")
    with pytest.raises(Unsupported, match="im2col_numpy runs on cpu, but the arrays are CuPy's"):
        convbench.conv2d(gx, gw, algorithm="im2col_numpy")
    with pytest.raises(UnknownAlgorithm, match="'direkt'; did you mean 'direct'"):
        convbench.conv2d(gx, gw, algorithm="direkt")


def test_auto_never_takes_less_precision_and_prefers_the_vendor(gpu: Fake) -> None:
    from convbench.cuda.choose import resolve

    rows = catalog.load().implementations
    shape = ConvShape.make(1, 4, 7, 6, 6, 3, 3)
    names = [choice.name for choice in resolve(Problem(shape), "raw", "auto", rows)]
    assert "reduced_test_cuda" not in names and names[0] == "direct_test_cuda"
    assert resolve(Problem(shape), "raw", "reduced", rows)[0].name == "reduced_test_cuda"
    half = resolve(Problem(shape, Pass.FORWARD, "float16"), "raw", "auto", rows)
    assert half[0].name == "vendor_test_cuda" and half[0].reason == "the vendor's library"


def test_auto_takes_rows_of_other_semantics(gpu: Fake) -> None:
    from convbench.cuda.choose import resolve

    shape = ConvShape.make(1, 4, 7, 6, 6, 3, 3)
    signs = Problem(shape, semantics=Semantics.XNOR)
    rows = {row.name: row for row in (FakeDirect(), Signs())}
    assert [choice.name for choice in resolve(signs, "raw", "auto", rows)] == ["signs_test_cuda"]
    assert [choice.name for choice in resolve(Problem(shape), "raw", "auto", rows)] == ["direct_test_cuda"]
    with pytest.raises(Unsupported, match=r"^no row for a GPU computes the int8 convolution"):
        resolve(Problem(shape, semantics=Semantics.INT8), "raw", "auto", rows)
    with pytest.raises(Unsupported, match=r"^semantics xnor is defined for fwd, not for bwd_data$"):
        resolve(Problem(shape, Pass.BACKWARD_DATA, semantics=Semantics.XNOR), "raw", "auto", rows)


def test_without_a_gpu_cupy_s_arrays_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, available=False, driver=0)
    try:
        (_, gx), (_, gw) = arrays((1, 4, 7, 6), (6, 4, 3, 3))
        with pytest.raises(Unavailable, match="no NVIDIA driver or GPU"):
            convbench.conv2d(gx, gw)
    finally:
        cuda.forget()
