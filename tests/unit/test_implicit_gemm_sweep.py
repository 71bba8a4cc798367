"""The tile sweep over implicit_gemm_cuda on a fake GPU: every alternative is launched, verified, timed and listed."""

from __future__ import annotations

import types
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks import gpu_child
from convbench import catalog
from convbench.algorithms._implicit_gemm_cuda import PASSES
from convbench.cuda.gpu import H200
from convbench.devices import cuda, cuda_program
from convbench.problem import ConvShape, Problem
from convbench.shapes import Layer
from convbench.verify.inputs import to_logical
from convbench.verify.oracle import convolve
from tests.fake_cuda import KERNEL_NS, Fake, install, memory
from tests.fake_rows import shape_of

ROW = catalog.load().implementations["implicit_gemm_cuda"]
LAYER = Layer("tiny", 1, ConvShape.make(1, 32, 4, 4, 20, 3, 3, padding=1))
PASS_OF = {code: pass_ for pass_, code in PASSES.items()}


def pack_filter(w: int, packed: int, conv: np.ndarray, pass_: int, nhwc: int, length: int) -> None:
    """Leaves the filter as it is: `product` reads it so."""
    size = int(np.prod(Problem(shape_of(conv[0])).b_shape))
    memory(packed, size, np.float32)[...] = memory(w, size, np.float32)


def product(a: int, b: int, out: int, conv: np.ndarray, pass_: int, nhwc: int, *_: int) -> None:
    """The whole sum, be it cut into parts or not."""
    layout = ("nchw", "nhwc")[int(nhwc)]
    problem = Problem(shape_of(conv[0]), PASS_OF[int(pass_)], "float32", layout)
    shapes = (problem.a_shape, problem.b_shape, problem.out_shape)
    x, y, result = (
        to_logical(memory(pointer, int(np.prod(shape)), np.float32).reshape(shape), layout)
        for pointer, shape in zip((a, b, out), shapes, strict=True)
    )
    with np.errstate(invalid="ignore"):  # where it runs to be timed alone, workspace holds NaN
        result[...] = convolve(problem.shape, problem.pass_, x, y).astype(np.float32)


def partial_sums(parts: int, out: int, elements: int, count: int) -> None:
    """The first part is all there is."""
    assert count > 1
    memory(out, int(elements), np.float32)[...] = memory(parts, int(elements), np.float32)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = install(monkeypatch)
    fake.kernels |= {"pack_filter": pack_filter, "implicit_gemm": product, "partial_sums": partial_sums}
    monkeypatch.setattr(cuda_program, "compile_for", lambda launch, gpu: types.SimpleNamespace(path=launch.file))
    yield fake
    cuda.forget()


def test_every_alternative_is_verified_timed_and_listed(fake: Fake) -> None:
    lines = [line for line in gpu_child.sweep(ROW, cuda.CudaDevice(), [LAYER], 1) if "trying" not in line]
    listed = {line["layer"]: line for line in lines}
    problems = [Problem(LAYER.shape, pass_, "float32", layout) for pass_ in ROW.passes for layout in ROW.layouts]
    assert len(lines) == len(problems)
    for problem in problems:
        line, offered = listed[f"tiny {problem.pass_} float32 {problem.layout}"], ROW.alternatives(problem, H200)
        assert line["wrong"] == {}
        assert list(line["ms"]) == ["chosen", *offered]
        for name, program in offered.items():
            launches = len(program.steps) + len(program.filter_steps)
            assert line["ms"][name] == pytest.approx(launches * KERNEL_NS / 1e6, rel=0.1), name
