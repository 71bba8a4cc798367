"""Rows for a fake GPU (fake_cuda.py): a direct convolution as a program, and the same with one fault each."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbench.algorithms._cuda import CudaImplementation, conv_struct
from convbench.cuda.gpu import Gpu
from convbench.cuda.program import At, Buffer, Launch, Long, Program, Zero
from convbench.devices.arrays import as_real, narrowed
from convbench.problem import ConvShape, Pass, Problem
from convbench.registry import Context, Run
from convbench.verify.inputs import to_logical
from convbench.verify.oracle import convolve
from tests.fake_cuda import CUDARuntimeError, Fake, memory

KERNELS = {Pass.FORWARD: "direct_forward", Pass.BACKWARD_DATA: "direct_data", Pass.BACKWARD_WEIGHTS: "direct_weights"}
TYPES = ("float32", "float16", "bfloat16")


class FakeDirect(CudaImplementation):
    """One launch; layout and type travel as an argument, because the fake's kernel is compiled for nothing."""

    name = "direct_test_cuda"
    dtypes = TYPES
    arithmetic = "native"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        kind = 10 * TYPES.index(problem.dtype) + (problem.layout == "nhwc")
        arguments = (At("a"), At("b"), At("out"), conv_struct(problem.shape), Long(kind))
        launch = Launch("direct.cu", KERNELS[problem.pass_], (4, 1, 1), (64, 1, 1), arguments)
        return Program((launch,))


class FakeWorkspace(FakeDirect):
    """The filter is copied by a filter step first, into workspace that is set to zero before."""

    name = "workspace_test_cuda"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        launch = super().program(problem, gpu).steps[0]
        assert isinstance(launch, Launch)
        size = int(np.prod(problem.b_shape))
        copy = Launch("direct.cu", "copy", (1, 1, 1), (32, 1, 1), (At("b"), At("packed"), size * problem.item_bytes))
        arguments = (launch.arguments[0], At("packed"), *launch.arguments[2:])
        run = Launch("direct.cu", launch.kernel, (4, 1, 1), (64, 1, 1), arguments, shared_bytes=100_000)
        return Program((run,), (Zero("packed"), copy), {"packed": Buffer((size,), problem.dtype)})


class OtherStream(FakeDirect):
    """Enqueues on a stream of its own, which nobody waits for."""

    name = "stream_test_cuda"

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        run = super().prepare(problem, context, weights)
        other = context.xp.cuda.Stream(non_blocking=True)

        def astray(*operands: Any) -> None:
            own, context.stream = context.stream, other
            try:
                run(*operands)
            finally:
                context.stream = own

        return astray


class Allocates(FakeDirect):
    """Takes memory from the pool at every run."""

    name = "allocates_test_cuda"

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        run = super().prepare(problem, context, weights)

        def hungry(*operands: Any) -> None:
            context.xp.empty(1 << 20, np.uint8)
            run(*operands)

        return hungry


class Breaks(FakeDirect):
    """Its kernel reads an illegal address."""

    name = "breaks_test_cuda"

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        launch = super().program(problem, gpu).steps[0]
        assert isinstance(launch, Launch)
        return Program((Launch("direct.cu", "breaks", (1, 1, 1), (32, 1, 1), launch.arguments),))


def shape_of(fields: Any) -> ConvShape:
    """The ConvShape that a struct Conv describes; end padding follows from P and Q."""
    n, c, h, w, k, r, s, p, q, sh, sw, ph, pw, dh, dw, groups = (int(v) for v in fields)
    ends = [max(0, (o - 1) * stride + (f - 1) * dilation + 1 - size - begin)
            for o, stride, f, dilation, size, begin in ((p, sh, r, dh, h, ph), (q, sw, s, dw, w, pw))]  # fmt: skip
    return ConvShape.make(n, c, h, w, k, r, s, (sh, sw), ((ph, ends[0]), (pw, ends[1])), (dh, dw), groups)


def add_kernels(fake: Fake) -> None:
    """What the launches of these rows do."""

    def kernel(pass_: Pass) -> Any:
        def effect(a: int, b: int, out: int, conv: np.ndarray, kind: int) -> None:
            dtype, layout = TYPES[int(kind) // 10], ("nchw", "nhwc")[int(kind) % 10]
            problem = Problem(shape_of(conv[0]), pass_, dtype, layout)
            item = np.uint16 if dtype == "bfloat16" else dtype
            arrays = [memory(p, int(np.prod(s)), item).reshape(s)
                      for p, s in ((a, problem.a_shape), (b, problem.b_shape), (out, problem.out_shape))]  # fmt: skip
            operands = (as_real(to_logical(array, layout)).astype(np.float32) for array in arrays[:2])
            with np.errstate(invalid="ignore"):  # workspace may hold NaN
                result = convolve(problem.shape, pass_, *operands)
            to_logical(arrays[2], layout)[...] = narrowed(result, dtype)

        return effect

    def copy(source: int, target: int, size: int) -> None:
        memory(target, int(size), np.uint8)[...] = memory(source, int(size), np.uint8)

    def breaks(*arguments: Any) -> None:
        raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    fake.kernels |= {name: kernel(pass_) for pass_, name in KERNELS.items()} | {"copy": copy, "breaks": breaks}
