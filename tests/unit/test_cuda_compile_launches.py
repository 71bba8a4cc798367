"""Programs of every CUDA row, nothing executed: buffers are not exceeded, each launch fits a listed, compiled kernel.

Conformance shapes and the layers of six networks, batch 1 and 32, three passes, both layouts, for three GPUs; the
programs that rows choose, and, for every seventh problem, those that they offer to a sweep.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from convbench import catalog
from convbench.algorithms._cuda import CudaImplementation
from convbench.cuda.gpu import A100, H200, T4, Gpu
from convbench.cuda.manifest import kernel_files, manifest_of, written
from convbench.cuda.program import At, Buffer, Float, Launch, Long, Product, Program, Struct, Transform, Zero
from convbench.problem import ConvShape, Problem
from tests.cuda_checks import ProgramChecker, layers, problems

ROWS = {
    name: row for name, row in catalog.load().implementations.items() if isinstance(row, CudaImplementation)
}
GPUS = {"H200": H200, "A100": A100, "T4": T4}
SWEPT = 7  # no divisor of passes x types x layouts: each comes up
Launched = frozenset[tuple[str, str, str]]


@functools.cache
def _check(name: str, gpu_name: str) -> tuple[int, dict[str, str], Launched]:
    """Programs seen, each finding with the first problem that has it, and what was launched."""
    row, gpu = ROWS[name], GPUS[gpu_name]
    checker, count, found = ProgramChecker(gpu), 0, {}
    if row.runs_on(gpu):
        for i, problem in enumerate(problems(row)):
            others = {} if i % SWEPT else row.alternatives(problem, gpu)
            for choice, program in {"": row.program(problem, gpu), **others}.items():
                count += 1
                for sentence in checker.findings(program, problem):
                    where = f"{choice} {problem.pass_} {problem.dtype} {problem.layout} {problem.shape}"
                    found.setdefault(sentence, where)
    return count, found, frozenset(checker.launched)


@pytest.mark.parametrize("gpu_name", GPUS)
@pytest.mark.parametrize("name", ROWS)
def test_programs_keep_to_buffers_manifests_and_kernels(name, gpu_name, record_property):
    count, found, _ = _check(name, gpu_name)
    record_property("cuda_programs", count)
    assert count > 0 or not ROWS[name].runs_on(GPUS[gpu_name])
    assert not found, "\n".join(f"{sentence} ({where})" for sentence, where in list(found.items())[:20])


def test_every_kernel_and_variant_is_launched_by_some_row():
    launched = frozenset().union(*(_check(name, gpu_name)[2] for name in ROWS for gpu_name in GPUS))
    variants = {(file, written(v.defines)) for file in kernel_files() for v in manifest_of(file).variants}
    kernels = {(file, k) for file in kernel_files() for v in manifest_of(file).variants for k in v.kernels}
    assert not variants - {(file, macros) for file, macros, _ in launched}, "variants that no row launches"
    assert not kernels - {(file, kernel) for file, _, kernel in launched}, "kernels that no row launches"


def test_layers_of_networks_are_among_the_problems():
    found = set(layers())
    assert {32} < {s.n for s in found} | {32, 1}
    assert ConvShape.make(32, 512, 14, 14, 512, 3, 3, padding=1) in found  # VGG-16, conv5_1
    assert ConvShape.make(1, 3, 224, 224, 64, 7, 7, stride=2, padding=3) in found  # ResNet-50, conv1
    assert len(found) > 150


# ---- the checks are alive

KERNEL = r"""
struct Pair { int first, second; };
extern "C" __global__ void __launch_bounds__(64) fill(float* y, Pair pair, int n, long long m, float value) {
    __shared__ float stage[256];
    stage[threadIdx.x] = value + pair.second;
    __syncthreads();
    if (threadIdx.x < n + m) y[threadIdx.x] = stage[63 - threadIdx.x];
}
"""
PROBLEM = Problem(ConvShape.make(1, 2, 8, 8, 2, 1, 1))
FILL = Launch(
    "fill.cu", "fill", (1, 1, 1), (64, 1, 1), (At("out"), Struct((1, 2)), 64, Long(0), Float(1.0)), defines=(("A", 1),)
)
GOOD = Program(
    (
        Zero("u"),
        Product(
            At("a", 4), At("u"), At("v", 8), m=4, n=3, k=5, row_a=6, row_b=3, row_c=3, batch=2, step_a=29, step_c=12
        ),
        Transform("forward", At("v"), At("s"), batch=1, height=4, width=8),
        FILL,
    ),
    workspace={"u": Buffer((5, 3)), "v": Buffer((32,)), "s": Buffer((4, 5), "complex64")},
)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "fill.cu").write_text(KERNEL)
    facts = "defines: {A: 1}, architectures: [75, 80], why: A test., kernels: {fill: {registers: 32}}"
    (tmp_path / "fill.yaml").write_text(f"variants:\n  - {{{facts}}}\n")
    return tmp_path


def _findings(folder: Path, *steps, gpu: Gpu = A100, **workspace: Buffer) -> list[str]:
    """With GOOD's workspace, or other buffers; that one of them is not used counts only with all steps."""
    program = Program(steps or GOOD.steps, workspace=GOOD.workspace | workspace)
    found = ProgramChecker(gpu, folder).findings(program, PROBLEM)
    return [f for f in found if not steps or "touched by no step" not in f]


def test_a_program_that_is_right_passes(folder):
    checker = ProgramChecker(A100, folder)
    assert checker.findings(GOOD, PROBLEM) == []
    assert checker.launched == {("fill.cu", "A=1", "fill")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defines": ()}, "lists no variant with no macros; the nearest is A=1"),
        ({"defines": (("A", 2),)}, "lists no variant with A=2"),
        ({"kernel": "fills"}, "there is no such kernel, but fill"),
        ({"file": "feel.cu"}, "there is no manifest"),
        ({"block": (32, 1, 1)}, "blocks of 32 threads, __launch_bounds__ says 64"),
        ({"arguments": FILL.arguments[:-1]}, "arguments of (8, 8, 4, 8) bytes, the kernel takes (8, 8, 4, 8, 4)"),
        ({"arguments": (*FILL.arguments[:3], 0, Float(1.0))}, "arguments of (8, 8, 4, 4, 4) bytes"),
        ({"arguments": (At("out"), Struct((1, 2)), 2**31, Long(0), Float(1.0))}, "2147483648 is no 32-bit integer"),
        ({"arguments": (At("out"), Struct((1, -(2**40))), 1, Long(0), Float(1.0))}, "is no 32-bit integer"),
        ({"arguments": (At("nowhere"), *FILL.arguments[1:])}, "argument 0: there is no buffer 'nowhere'"),
        ({"arguments": (At("out", 128), *FILL.arguments[1:])}, "elements 128 to 129 of 'out', which has 128"),
        ({"shared_bytes": 163 << 10}, "1024 + 166912 bytes of shared memory, NVIDIA A100 has less"),
    ],
)
def test_a_wrong_launch_is_caught(folder, change, message):
    found = _findings(folder, dataclasses.replace(FILL, **change))
    assert any(message in sentence for sentence in found), found


def test_a_launch_for_another_gpu_is_caught(folder):
    (found,) = _findings(folder, FILL, gpu=H200)
    assert "fill.cu with A=1 is not made for sm_90a (NVIDIA H200), but for 75, 80 (A test)" in found


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (dataclasses.replace(GOOD.steps[1], row_a=40), "product's a: elements 4 to 158 of 'a', which has 128"),
        (dataclasses.replace(GOOD.steps[1], m=5), "product's c: elements 8 to 35 of 'v', which has 32"),
        (dataclasses.replace(GOOD.steps[1], k=6), "product's b: elements 0 to 18 of 'u', which has 15"),
        (dataclasses.replace(GOOD.steps[1], step_c=13), "product's c: elements 8 to 33 of 'v', which has 32"),
        (dataclasses.replace(GOOD.steps[1], transpose_b=True), "product's b: elements 0 to 11"),
        (dataclasses.replace(GOOD.steps[2], height=5), "transform's source: elements 0 to 40 of 'v', which has 32"),
        (dataclasses.replace(GOOD.steps[2], kind="inverse"), "transform's target: elements 0 to 32 of 's'"),
        (Zero("w"), "zero: there is no buffer 'w'"),
    ],
)
def test_a_wrong_step_is_caught(folder, step, message):
    found = _findings(folder, step, u=Buffer((10,)) if "0 to 11" in message else GOOD.workspace["u"])
    assert any(message in sentence for sentence in found), found


def test_workspace_that_nobody_touches_is_caught(folder):
    assert _findings(folder, spare=Buffer((4,))) == ["'spare' is touched by no step"]
    assert "workspace 'spare': dtype float8" in _findings(folder, spare=Buffer((4,), "float8"))
    assert any("has the name of an operand" in s for s in _findings(folder, out=Buffer((256,))))


def test_operands_in_the_filters_steps_are_caught(folder):
    program = Program((FILL,), (Product(At("a"), At("b"), At("out"), 1, 1, 1, 1, 1, 1),))
    found = ProgramChecker(A100, folder).findings(program, PROBLEM)
    assert [f.split(" is touched by a step that only")[0] for f in found] == ["'a'", "'out'"]
