"""The rows cudnn_* and torch_cuda without cuDNN: graphs, filters by notes, choice of a plan, sentences, the fixture."""

from __future__ import annotations

import contextlib
import csv
import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convbench import catalog
from convbench.algorithms import _cudnn, _cudnn_plan, cudnn_rows, torch_cuda
from convbench.devices import cuda
from convbench.devices.base import make_plan
from convbench.devices.cuda_timing import CudaTimer
from convbench.devices.nvml import Monitor
from convbench.errors import RegistrationError, Unavailable, Unsupported
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.registry import implementations
from convbench.runner import make_plan_for
from convbench.shapes import load_shapes
from convbench.suite import load_suite
from convbench.verify import Verifier
from tests import fake_cudnn
from tests.fake_cuda import Fake
from tests.fake_cuda import install as install_gpu

DATA = Path(__file__).resolve().parents[1] / "data"
SHAPES = Path(__file__).resolve().parents[2] / "suites" / "shapes"
SHAPE = ConvShape.make(2, 6, 9, 8, 4, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2)), groups=2)
ROWS = {
    "cudnn_fp32": ("float32", "eng70_k2=4_k18=0"), "cudnn_tf32": ("float32", "eng67_k2=4"),
    "cudnn_fp16": ("float16", "eng64_k2=1"), "cudnn_bf16": ("bfloat16", "eng64_k2=1"),
    "cudnn_int8": ("int8", "eng0"),
}  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    yield install_gpu(monkeypatch)
    cuda.forget()
    _cudnn_plan.forget()


@pytest.fixture
def cudnn(gpu: Fake, monkeypatch: pytest.MonkeyPatch) -> fake_cudnn.Module:
    return fake_cudnn.install(monkeypatch)


def row(name: str) -> Any:
    return implementations()[name]


# ---- the graph


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
def test_the_graph_describes_the_problem(cudnn: fake_cudnn.Module, pass_: Pass, layout: str) -> None:
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        problem = Problem(SHAPE, pass_, dtype, layout)
        graph = _cudnn.graph_of(cudnn, problem, device_property=object())
        assert graph.problem() == problem
        assert graph.sums.name == ("INT32" if dtype == "int8" else "FLOAT")
        assert [fake_cudnn.DTYPES[tensor.kind.name] for tensor in (*graph.tensors, graph.result)] == [
            problem.dtype, problem.dtype, problem.out_dtype
        ]  # fmt: skip
        shapes = {"a": problem.a_shape, "b": problem.b_shape, "out": problem.out_shape}
        for tensor in (*graph.tensors, graph.result):
            where = np.zeros(shapes[tensor.role])
            logical = where if layout == "nchw" else where.transpose(0, 3, 1, 2)
            assert tuple(tensor.dim) == logical.shape
            assert [8 * n for n in tensor.stride] == list(logical.strides)


# ---- plans by class


@pytest.mark.parametrize(
    "numeric, engines",
    [
        (_cudnn.FP32, {0, 2, 28, 70, 71}),
        (_cudnn.TF32, {0, 2, 28, 67, 70, 71}),
        (_cudnn.FP16, {0, 2, 64}),
        (_cudnn.BF16, {0, 2, 64}),
        (_cudnn.INT8, {0}),
        (_cudnn.FP32_WINOGRAD, set()),
        (_cudnn.FP32_FFT, set()),
    ],
)
def test_a_class_has_the_plans_whose_notes_fit(cudnn: fake_cudnn.Module, numeric: Any, engines: set[int]) -> None:
    problem = Problem(SHAPE, Pass.FORWARD, numeric.dtype)
    offered = _cudnn.offers(cudnn, problem, numeric, device_property=object())
    assert {plan.engine for plan in offered.plans} == engines and offered.engines == fake_cudnn.ENGINE_COUNT
    names = [plan.name for plan in offered.plans]
    assert len(set(names)) == len(names)
    for plan in offered.plans:
        assert plan.graph.configs[plan.index].name == plan.name
        assert plan.workspace_bytes == plan.graph.configs[plan.index].engine.workspace


def test_a_second_creation_on_one_graph_would_mix_notes_up(cudnn: fake_cudnn.Module) -> None:
    """The trap itself, so that the fake is known to have it; and every graph of ours creates plans once."""
    graph = _cudnn.graph_of(cudnn, Problem(SHAPE), device_property=object())
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.create_execution_plans([cudnn.heur_mode.FALLBACK])
    _cudnn.keep(cudnn, graph, _cudnn.FP32)
    assert "eng28" not in [plan.name for plan in _cudnn.built(cudnn, graph)]  # strict, and judged by another's notes
    cudnn.graphs.clear()
    _cudnn.offers(cudnn, Problem(SHAPE), _cudnn.FP32, device_property=object())
    assert all(len(graph.notes) == len(graph.configs) for graph in cudnn.graphs)


def test_one_engine_has_the_heuristics_knobs_and_its_default(cudnn: fake_cudnn.Module) -> None:
    plans = _cudnn.offers(cudnn, Problem(SHAPE), _cudnn.FP32, 70, device_property=object()).plans
    assert [plan.name for plan in plans] == ["eng70_k2=2_k18=0", "eng70_k2=4_k18=0", "eng70"]
    assert _cudnn.offers(cudnn, Problem(SHAPE), _cudnn.FP32, 67, device_property=object()).plans == ()
    assert _cudnn.offers(cudnn, Problem(SHAPE), _cudnn.FP32, 5, device_property=object()).plans == ()


def test_numeric_notes_are_those_that_select(cudnn: fake_cudnn.Module) -> None:
    asked = [_cudnn.numeric_notes(cudnn, Problem(SHAPE), engine, device_property=object()) for engine in (62, 70, 5)]
    assert asked == [["TENSOR_CORE", "DOWN_CONVERT_INPUTS"], [], []]


# ---- running


@pytest.mark.parametrize("name, pass_", [(name, pass_) for name in ROWS for pass_ in row(name).passes])
def test_the_fastest_plan_of_the_class_runs_and_is_right(
    gpu: Fake, cudnn: fake_cudnn.Module, name: str, pass_: Pass
) -> None:
    dtype, chosen = ROWS[name]
    device = cuda.CudaDevice()
    for layout, weights in (("nchw", "raw"), ("nhwc", "packed")):
        if weights == "packed" and pass_ is Pass.BACKWARD_WEIGHTS:
            weights = "raw"
        problem = Problem(SHAPE, pass_, dtype, layout)
        assert row(name).why_not(problem) is None
        verifier = Verifier(problem, device=device, full_macs=0)
        plan, verdict = verifier.verify(row(name), device.context, weights)
        assert plan is not None and verdict.ok, verdict.reason
        assert plan.notes["vendor_impl"].split(" [")[0] == chosen
        assert plan.notes["cudnn_version"] == "9.19.1, frontend 1.22.1"
        assert plan.context.launches == 1


def test_notes_say_what_was_timed_and_left_out(
    gpu: Fake, cudnn: fake_cudnn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cudnn_plan, "allowed_workspace", lambda problem: 1000)
    context = cuda.CudaDevice().context()
    plan = make_plan(row("cudnn_fp32"), Problem(SHAPE), context)
    assert plan.notes["vendor_impl"] == "eng70_k2=4_k18=0 [no numeric note]"
    assert plan.notes["cudnn_plans"] == (
        "6 timed of 8 offered (80 engines); 1 above 1000 bytes of workspace, 1 did not run"
    )
    assert plan.notes["cudnn_workspace"] == "512 bytes" and plan.workspace_bytes == 512
    tf32 = make_plan(row("cudnn_tf32"), Problem(SHAPE), cuda.CudaDevice().context())
    assert tf32.notes["vendor_impl"] == "eng67_k2=4 [TENSOR_CORE]"


def test_the_few_best_are_timed_again_and_noise_does_not_win(gpu: Fake, cudnn: fake_cudnn.Module) -> None:
    make_plan(row("cudnn_fp32"), Problem(SHAPE), cuda.CudaDevice().context())
    runs = {name: cudnn.ran.count(name) for name in set(cudnn.ran)}
    assert sum(n == 2 for n in runs.values()) == len(runs) - _cudnn_plan.FINALISTS
    assert sum(n == 2 + _cudnn_plan.SAMPLES for n in runs.values()) == _cudnn_plan.FINALISTS


def test_run_is_on_the_context_s_stream_and_can_be_captured(gpu: Fake, cudnn: fake_cudnn.Module) -> None:
    device = cuda.CudaDevice()
    problem = Problem(SHAPE)
    verifier = Verifier(problem, device=device, full_macs=0)
    plan, verdict = verifier.verify(row("cudnn_fp32"), device.context, "raw")
    assert plan is not None and verdict.ok
    timer = CudaTimer(device, plan, verifier.operands(), "hot", Monitor(None))
    assert not timer.notes and timer.time(8) == 8 * 220_000
    before = len(gpu.time.pending)
    now = gpu.time.now_ns
    plan.run(*verifier.operands())
    assert len(gpu.time.pending) == before + 1 and gpu.time.now_ns - now < 100_000  # enqueued, not waited for


def test_handles_go_with_their_plans(gpu: Fake, cudnn: fake_cudnn.Module) -> None:
    plan = make_plan(row("cudnn_fp32"), Problem(SHAPE), cuda.CudaDevice().context())
    handle = max(cudnn.streams)
    assert cudnn.streams[handle] == plan.context.stream.ptr and not cudnn.destroyed
    del plan
    gc.collect()
    assert cudnn.destroyed == [handle]


def test_plans_of_which_none_runs_are_an_unsupported_problem(
    gpu: Fake, cudnn: fake_cudnn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = fake_cudnn.Engine(3, 1, knobs=(("k2=1", 1),), breaks=True)
    cudnn.engines = [broken]
    with pytest.raises(Unsupported, match="none of the 2 plans that cuDNN offers for this problem runs"):
        row("cudnn_fp32").prepare(Problem(SHAPE), cuda.CudaDevice().context())


# ---- what is not offered


def test_a_class_without_plans_is_a_sentence_with_what_was_asked(gpu: Fake, cudnn: fake_cudnn.Module) -> None:
    assert row("cudnn_fp32_winograd").limits(Problem(SHAPE)) == (
        "cudnn_fp32_winograd: cuDNN 9.19.1 offers no Winograd engine in strict float32 for this problem on Fake H200 "
        "(sm_90): its heuristics and each of its 80 engines were asked"
    )
    assert "offers no FFT engine in strict float32" in row("cudnn_fp32_fft").limits(Problem(SHAPE))
    with pytest.raises(Unsupported, match="offers no FFT engine"):
        row("cudnn_fp32_fft").prepare(Problem(SHAPE), cuda.CudaDevice().context())


def test_a_winograd_engine_has_its_row_and_is_in_no_other(gpu: Fake, cudnn: fake_cudnn.Module) -> None:
    cudnn.engines.append(fake_cudnn.WINOGRAD)
    device = cuda.CudaDevice()
    plan, verdict = Verifier(Problem(SHAPE), device=device, full_macs=0).verify(
        row("cudnn_fp32_winograd"), device.context, "raw"
    )
    assert plan is not None and verdict.ok, verdict.reason
    assert plan.notes["vendor_impl"] == "eng6 [WINOGRAD WINOGRAD_TILE_4x4]"
    strict = make_plan(row("cudnn_fp32"), Problem(SHAPE), device.context())
    assert strict.notes["vendor_impl"].startswith("eng70")  # though Winograd's is faster


def test_other_refusals_have_sentences(
    gpu: Fake, cudnn: fake_cudnn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn.no_graph = "CUDNN_STATUS_BAD_PARAM; Reason: dilation"
    assert row("cudnn_fp32").limits(Problem(SHAPE)) == (
        "cudnn_fp32: cuDNN makes no graph of this problem: CUDNN_STATUS_BAD_PARAM; Reason: dilation"
    )
    cudnn.no_graph = ""
    _cudnn_plan.forget()
    cudnn.engines = [fake_cudnn.ENGINES[1]]
    monkeypatch.setattr(_cudnn_plan, "allowed_workspace", lambda problem: 100)
    assert row("cudnn_fp32").limits(Problem(SHAPE)) == (
        "cudnn_fp32: cuDNN's plans take 4096 bytes of workspace at least, allowed are 100"
    )
    assert row("cudnn_fp16").why_not(Problem(SHAPE)) == "cudnn_fp16: dtype must be float16, not float32"
    assert "dtype must be" in (row("cudnn_fp32").why_not(Problem(SHAPE, dtype="int8")) or "")
    gradient = Problem(SHAPE, Pass.BACKWARD_DATA, "int8")
    assert row("cudnn_int8").why_not(gradient) == "cudnn_int8: pass must be fwd, not bwd_data"
    cudnn.engines = [fake_cudnn.ENGINES[1]]  # of which none takes int8
    _cudnn_plan.forget()
    assert (row("cudnn_int8").limits(Problem(SHAPE, dtype="int8")) or "").startswith(
        "cudnn_int8: cuDNN 9.19.1 offers no int8 engine for this problem on Fake H200 (sm_90): "
    )


# ---- one engine by itself


def test_engines_are_rows_on_demand(gpu: Fake, cudnn: fake_cudnn.Module) -> None:
    two, seventy, tensor = (cls() for cls in cudnn_rows.engine_rows("cudnn_fp32:2,70 cudnn_tf32:67"))
    assert (two.name, seventy.name, tensor.name) == (
        "cudnn_fp32_engine2", "cudnn_fp32_engine70", "cudnn_tf32_engine67"
    )  # fmt: skip
    assert tensor.arithmetic == "tf32" and tensor.vendor and "engine 67" in (tensor.__doc__ or "")
    plan = make_plan(two, Problem(SHAPE), cuda.CudaDevice().context())
    assert plan.notes["vendor_impl"] == "eng2 [no numeric note]"
    assert not cudnn.ran  # one plan: nothing to time
    (absent,) = (cls() for cls in cudnn_rows.engine_rows("cudnn_fp32:67"))
    assert absent.limits(Problem(SHAPE)) == (
        "cudnn_fp32_engine67: cuDNN 9.19.1 offers no plan of engine 67 as a strict float32 engine without a transform "
        "for this problem on Fake H200 (sm_90): its heuristics and that engine were asked"
    )


@pytest.mark.parametrize("text", ["cudnn_fp32", "cudnn_fp32:", "cudnn_fp32:2,x", "onednn:2"])
def test_a_wrong_list_of_engines_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(RegistrationError, match=r'CONVBENCH_CUDNN_ENGINES: .* as in "cudnn_fp32:2,70"'):
        cudnn_rows.engine_rows(text)


def test_the_environment_registers_engines() -> None:
    code = (
        "from convbench import catalog; found = catalog.load();"
        "assert 'cudnn_fp32_engine2' in found.implementations, found.broken;"
        "import sys; assert not {'cupy', 'cudnn', 'torch'} & set(sys.modules)"
    )
    environment = {"CONVBENCH_CUDNN_ENGINES": "cudnn_fp32:2", "PATH": "/usr/bin:/bin"}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=environment)


# ---- baselines


def test_each_class_has_its_baseline_and_strict_float32_goes_first() -> None:
    rows = {name: r for name, r in catalog.load().implementations.items() if r.vendor and r.device == "cuda"}
    described = [
        {"name": n, "device": "cuda", "vendor": True, "unavailable": None, "arithmetic": r.arithmetic, "source_sha": "",
         "semantics": str(r.semantics)}
        for n, r in rows.items()
    ]
    plan = make_plan_for(load_suite("gpu_headline"), {"implementations": described, "broken": [], "skip": {}})
    able: dict[str, list[str]] = {}
    for name in plan.baseline:
        for dtype in rows[name].dtypes:
            able.setdefault(dtype, []).append(name)
    first = {dtype: names[0] for dtype, names in able.items()}
    assert first == {
        "float32": "cudnn_fp32", "float16": "cudnn_fp16", "bfloat16": "cudnn_bf16", "int8": "cudnn_int8"
    }  # fmt: skip
    assert able["float32"][-1] == "cudnn_tf32"  # after everything in strict float32
    assert {r.arithmetic for r in rows.values()} == {
        "float32", "tf32", "float16-acc32", "bfloat16-acc32", "int8-acc32"
    }  # fmt: skip


@pytest.mark.parametrize("name", [*ROWS, "torch_cuda"])
def test_a_sweep_has_nothing_to_compare(name: str) -> None:
    assert row(name).alternatives(Problem(SHAPE), None) == {}


# ---- what is missing


def test_each_lack_has_its_sentence(gpu: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cuda.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "cudnn" else real(name, *rest))
    assert row("cudnn_fp32").unavailable() == (
        "cudnn_fp32 needs cudnn: pip install 'convbench[cuda]' nvidia-cudnn-cu13"
    )
    monkeypatch.setattr("importlib.util.find_spec", real)
    fake_cudnn.install(monkeypatch, version=None)
    assert row("cudnn_fp32").unavailable() == (
        "cudnn_fp32 needs cuDNN 9 (Unable to find symbol cudnnGetVersion): "
        "pip install 'convbench[cuda]' nvidia-cudnn-cu13"
    )
    assert row("cudnn_fp32").limits(Problem(SHAPE)) is None  # nothing is known; unavailable() speaks
    with pytest.raises(Unavailable, match="cudnnGetVersion"):
        row("cudnn_fp32").prepare(Problem(SHAPE), cuda.CudaDevice().context())
    fake_cudnn.install(monkeypatch, version=8907)
    assert (row("cudnn_fp32").unavailable() or "").startswith("cudnn_fp32 needs cuDNN 9, this is 8.9: pip install")


@pytest.mark.parametrize(
    "facts, sentence",
    [
        ({"available": False, "driver": 0}, "cudnn_tf32 needs an NVIDIA GPU: no NVIDIA driver or GPU"),
        ({"compute": (7, 5)}, "cudnn_tf32 needs an NVIDIA GPU: Fake H200: compute capability 7.5 is below 8.0"),
    ],
)
def test_a_gpu_that_will_not_do_has_its_sentence(
    facts: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpu(monkeypatch, **facts)
    fake_cudnn.install(monkeypatch)
    assert (row("cudnn_tf32").unavailable() or "").startswith(sentence)
    cuda.forget()


# ---- what was enumerated for an H200


def lines() -> list[dict[str, str]]:
    with (DATA / "cudnn_h200.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def facts() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / "cudnn_h200.json").read_text())
    return content


def test_the_enumeration_covers_the_networks_and_says_what_made_it() -> None:
    layers = {n: load_shapes(SHAPES / f"{n}.yaml").layers for n in ("vgg16", "resnet50")}
    assert len(lines()) == 2 * 3 * 4 * 2 * sum(map(len, layers.values()))
    content = facts()
    assert content["device"]["deviceName"] == "NVIDIA H200" and content["versions"]["cudnn"].startswith("9.19")
    assert content["command"].startswith("python benchmarks/cudnn_enumerate.py") and content["date"]
    assert sum((DATA / f"cudnn_h200.{end}").stat().st_size for end in ("csv", "json")) < 300_000


def test_every_float_problem_is_offered_strict_plans_within_the_workspace_that_is_allowed() -> None:
    files = {n: load_shapes(SHAPES / f"{n}.yaml") for n in ("vgg16", "resnet50")}
    shapes = {(n, layer.name): layer.shape for n, file in files.items() for layer in file.layers}
    content = facts()
    for line in lines():
        engines = {item.partition("=")[0].partition("*")[0] for item in line["engines"].split()}
        assert engines <= set(content["classes"][line["dtype"]][line["pass"]]["notes"]), line
        if line["dtype"] == "int8":
            assert bool(line["engines"]) == (line["pass"] == "fwd")
            continue
        strict = set(content["classes"]["float32"][line["pass"]]["engines"]["fp32"])
        assert line["dtype"] != "float32" or set(map(int, engines)) & strict
        shape = shapes[line["network"], line["layer"]]
        geometry = replace(shape, n=int(line["batch"]))
        allowed = _cudnn_plan.allowed_workspace(Problem(geometry, Pass(line["pass"]), line["dtype"], line["layout"]))
        most = max(int(item.partition("=")[2].rpartition("-")[2] or 0) for item in line["engines"].split())
        assert 1024 * (most - 1) <= allowed, line


def test_no_engine_transforms_on_compute_capability_9() -> None:
    by_capability = {entry["compute_capability"]: entry for entry in facts()["transforms"]}
    assert not by_capability[9.0]["found"] and by_capability[9.0]["engines_asked"] > 7000
    assert by_capability[7.0]["found"]
    notes = {
        note for passes in facts()["classes"].values() for entry in passes.values() for text in entry["notes"].values()
        for note in text.split()
    }  # fmt: skip
    assert not {note for note in notes if note.startswith(("WINOGRAD", "FFT"))} and "TENSOR_CORE" in notes


def test_no_strict_engine_of_an_h200_has_a_note_that_the_class_refuses() -> None:
    for pass_, entry in facts()["classes"]["float32"].items():
        for engine in entry["engines"]["fp32"]:
            assert not set(entry["notes"][str(engine)].split()) & set(_cudnn.FP32.refused), (pass_, engine)
        assert set(entry["engines"]["fp32"]) < set(entry["engines"]["tf32"])


# ---- torch


class Tensors:
    """torch for the CPU, told to take the fake's arrays for a GPU's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        self.streams: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "as_tensor", lambda array, device: torch.from_numpy(array.view(np.ndarray)))
        monkeypatch.setattr(torch.cuda, "ExternalStream", lambda pointer: pointer)
        monkeypatch.setattr(torch.cuda, "stream", self.enter)
        for name in ("allow_tf32", "benchmark"):  # set back afterwards
            monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        self.torch = torch

    @contextlib.contextmanager
    def enter(self, stream: int) -> Iterator[None]:
        self.streams.append(stream)
        yield


@pytest.mark.parametrize("pass_", list(Pass))
def test_torch_computes_on_the_context_s_stream_in_strict_float32(
    cudnn: fake_cudnn.Module, pass_: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Tensors(monkeypatch)
    torch_cuda._torch_problem.cache_clear()
    device = cuda.CudaDevice()
    for layout in LAYOUTS:
        problem = Problem(SHAPE, pass_, "float32", layout)
        plan, verdict = Verifier(problem, device=device, full_macs=0).verify(row("torch_cuda"), device.context, "raw")
        assert plan is not None and verdict.ok, verdict.reason
        assert set(fake.streams) >= {plan.context.stream.ptr}
    assert not fake.torch.backends.cudnn.allow_tf32 and fake.torch.backends.cudnn.benchmark
    torch_cuda._torch_problem.cache_clear()


def test_a_torch_without_a_gpu_has_its_sentence(gpu: Fake) -> None:
    torch = pytest.importorskip("torch")
    torch_cuda._torch_problem.cache_clear()
    if not torch.cuda.is_available():
        assert row("torch_cuda").unavailable() == (
            f"torch_cuda needs an NVIDIA GPU and a PyTorch for it: torch {torch.__version__} sees none: install the "
            "build for CUDA, https://pytorch.org/get-started"
        )
