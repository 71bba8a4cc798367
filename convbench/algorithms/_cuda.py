"""What the rows of the CUDA tier share: a subclass says which kernels it launches, everything else is here."""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import Program, Struct
from convbench.problem import ConvShape, Problem
from convbench.registry import Context, Implementation, Run


class CudaImplementation(Implementation):
    """Base of the `*_cuda` rows. A subclass implements `program`, `limits` and what the contract asks beside.

    The program may depend on the GPU; whether the problem is supported may not, but for `least`, the smallest compute
    capability that has the instructions, and `architecture`, where only one has them ("sm_90a"). unavailable() says
    what this machine lacks.
    """

    device = "cuda"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    requires = ("cupy",)
    extra = "cuda"
    pool = "cuda"
    least: ClassVar[tuple[int, int]] = (7, 5)
    architecture: ClassVar[str | None] = None

    def program(self, problem: Problem, gpu: Gpu) -> Program:
        """The steps for one problem; workspace, grids and tile sizes follow from it. Allocates nothing."""
        raise NotImplementedError(f"{type(self).__name__} must implement program(problem, gpu)")

    def alternatives(self, problem: Problem, gpu: Gpu) -> dict[str, Program]:
        """Other programs for the same problem, by a name such as "128x64": what a sweep on a GPU compares. May be none.

        Each computes what `program` does; they differ in tiles and the like.
        """
        return {}

    def runs_on(self, gpu: Gpu) -> bool:
        """Whether a GPU has the instructions."""
        return gpu.at_least(*self.least) and self.architecture in (None, gpu.architecture)

    def unavailable(self) -> str | None:
        """What is missing: cupy or another module, a driver, a GPU, or one that has the instructions."""
        missing = super().unavailable()
        if missing is not None:
            return missing
        from convbench.devices import cuda  # brings NumPy

        why = cuda.why_not(self.least, self.architecture)
        return f"{self.name} needs an NVIDIA GPU: {why}" if why else None

    def workspace_estimate(self, problem: Problem) -> int:
        """All buffers of the program for a GPU like an H200."""
        return self.program(problem, H200).workspace_bytes

    def packed_estimate(self, problem: Problem) -> int:
        """The same, and the copy of the filter where the steps read it as it is."""
        program = self.program(problem, H200)
        s = problem.shape
        copy = s.k * s.cg * s.r * s.s * problem.item_bytes if program.reads_filter() else 0
        return program.workspace_bytes + copy

    def taking(self, program: Program) -> CudaImplementation:
        """This row with another program for its problems, such as one of `alternatives`."""
        kind = type(self)
        return type(f"{kind.__name__}Alternative", (kind,), {"program": lambda self, problem, gpu: program})()

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Compiles the kernels and allocates the workspace; with `weights` the filter's steps run now."""
        return context.bind(self.program(problem, context.gpu), weights)  # type: ignore[attr-defined]


def conv_struct(shape: ConvShape) -> Struct:
    """The struct Conv of kernels/cuda/include/conv.cuh. Padding: top and left; the rest follows from P and Q."""
    s = shape
    return Struct((
        s.n, s.c, s.h, s.w, s.k, s.r, s.s, s.p, s.q, *s.stride, s.padding[0], s.padding[2], *s.dilation, s.groups,
    ))  # fmt: skip


def different(chosen: Program, others: dict[str, Program]) -> dict[str, Program]:
    """Of `others` those that differ from the chosen program and from those before them."""
    kept: dict[str, Program] = {}
    for name, program in others.items():
        if program != chosen and program not in kept.values():
            kept[name] = program
    return kept


def blocks(total: int, each: int) -> int:
    """How many blocks of `each` cover `total`."""
    return -(-total // each)
