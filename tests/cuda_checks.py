"""What the tests hold compiled kernels and programs to: a list of sentences each, empty where all is well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convbench import resources
from convbench.algorithms._cuda import CudaImplementation
from convbench.cuda import cubin
from convbench.cuda.compile import Compiled, compile_file
from convbench.cuda.gpu import Gpu
from convbench.cuda.manifest import Variant, manifest_of, written
from convbench.cuda.program import (
    ITEM_BYTES,
    Argument,
    At,
    Float,
    Launch,
    Long,
    Product,
    Program,
    Struct,
    TensorMap,
    Transform,
    Zero,
    buffers_of,
)
from convbench.cuda.tensor_map import MAP_BYTES, refusal
from convbench.errors import ConvbenchError
from convbench.problem import ConvShape, Problem
from convbench.registry import Implementation
from convbench.shapes import load_shapes
from convbench.testing import conformance
from convbench.testing.conformance import SHAPES
from convbench.verify import Verifier

SHAPE_FILES = ("vgg16", "resnet50", "alexnet_owt", "alexnet_grouped", "googlenet", "mobilenet_v1")
BATCHES = (1, 32)


def broken_promise(
    row: Implementation, problem: Problem, weights: str, make_context: Callable[[], Any]
) -> str | None:
    """What is wrong with a row on some stand-in for a GPU: an exception, the result, the workspace; or None."""
    contexts: list[Any] = []

    def context() -> Any:
        contexts.append(make_context())
        return contexts[-1]

    try:
        plan, verdict = Verifier(problem).verify(row, context, weights)
    except Exception as broken:  # noqa: BLE001 - whatever breaks the promise is the finding
        return f"raised {type(broken).__name__}: {broken}"
    if plan is None:
        return verdict.reason
    estimate, taken = row.estimate(problem, weights), contexts[0].workspace_bytes
    if taken > conformance.WORKSPACE_FACTOR * estimate + conformance.WORKSPACE_SLACK_BYTES:
        return f"{taken} bytes of workspace were allocated, the estimate says {estimate}"
    return None


# ---- a compiled variant


def findings(built: Compiled, variant: Variant) -> list[str]:
    """Where machine code exceeds its manifest, or lacks what that asks for."""
    found = list(built.warnings)
    if set(built.kernels) != set(variant.kernels):
        found.append(f"kernels {sorted(built.kernels)}, but the manifest lists {sorted(variant.kernels)}")
    for name in sorted(set(built.kernels) & set(variant.kernels)):
        kernel, limits = built.kernels[name], variant.kernels[name]
        for what, value, limit in (
            ("registers", kernel.registers, limits.registers),
            ("bytes spilled", kernel.spill_bytes, limits.spill_bytes),
            ("bytes of stack", kernel.stack, limits.stack_bytes),
        ):
            if value > limit:
                found.append(f"{name}: {value} {what}, the manifest's limit is {limit}")
        if not kernel.max_threads:
            found.append(f"{name}: no __launch_bounds__")
    found += _missing_instructions(built, variant.sass.get(built.architecture, {}))
    return [f"sm_{built.architecture}: {sentence}" for sentence in found]


def _missing_instructions(built: Compiled, wanted: Mapping[str, tuple[str, ...]]) -> list[str]:
    if not wanted:
        return []
    code = cubin.opcodes(built.cubin)
    return [
        f"{kernel}: no {instruction}; there are {', '.join(sorted(code.get(kernel, {})))}"
        for kernel, instructions in wanted.items()
        for instruction in instructions
        if not any(is_instruction(opcode, instruction) for opcode in code.get(kernel, {}))
    ]


def is_instruction(opcode: str, wanted: str) -> bool:
    """Whether an opcode such as LDGSTS.E.BYPASS.128 is the wanted one (LDGSTS, LDGSTS.E): whole words from the left."""
    return (opcode + ".").startswith(wanted.rstrip(".") + ".")


# ---- the programs of a row


def depthwise() -> Iterator[ConvShape]:
    """Depthwise layers that the networks lack, and which have kernels of their own: filters beyond 3x3, stride 3.

    The last one's stride exceeds what fits in shared memory.
    """
    for channels, taps, stride in itertools.product((15, 16), (3, 5, 7, 13), (1, 2, 3)):
        yield ConvShape.make(
            2, channels, 33, 34, channels, taps, taps, stride=stride, padding=taps // 2, groups=channels
        )
    yield ConvShape.make(1, 1, 40000, 3, 1, 3, 3, stride=(12000, 1))


def problems(row: CudaImplementation) -> Iterator[Problem]:
    """Conformance shapes, layers of networks at two batch sizes and depthwise ones, in all that the row promises."""
    shapes = dict.fromkeys([*SHAPES.values(), *layers(), *depthwise()])
    for dtype in row.dtypes:
        for layout in row.layouts:
            for pass_ in row.passes:
                for shape in shapes:
                    problem = Problem(shape, pass_, dtype, layout, row.semantics)
                    if row.why_not(problem) is None:
                        yield problem


def layers() -> Iterator[ConvShape]:
    """Every convolution of SHAPE_FILES at each of BATCHES."""
    for name in SHAPE_FILES:
        for layer in load_shapes(resources.folder("suites") / "shapes" / f"{name}.yaml").layers:
            s = layer.shape
            for n in BATCHES:
                yield ConvShape(n, s.c, s.h, s.w, s.k, s.r, s.s, s.stride, s.padding, s.dilation, s.groups)


class ProgramChecker:
    """Holds programs to buffers, manifests and compiled kernels. launched: (file, macros, kernel) that it saw."""

    def __init__(self, gpu: Gpu, folder: Path | None = None) -> None:
        self.gpu, self.folder = gpu, folder
        self.launched: set[tuple[str, str, str]] = set()
        self._compiled: dict[tuple[str, tuple[tuple[str, int | str], ...]], Compiled | str] = {}

    def findings(self, program: Program, problem: Problem) -> list[str]:
        """What is wrong with a program, nothing being executed."""
        sizes = {  # elements
            "a": math.prod(problem.a_shape),
            "b": math.prod(problem.b_shape),
            "out": math.prod(problem.out_shape),
        } | {name: math.prod(buffer.shape) for name, buffer in program.workspace.items()}
        found = [f"workspace {n!r} has the name of an operand" for n in program.workspace if n in ("a", "b", "out")]
        unknown = {n: b.dtype for n, b in program.workspace.items() if b.dtype not in ITEM_BYTES}
        found += [f"workspace {n!r}: dtype {dtype}" for n, dtype in unknown.items()]
        touched: set[str] = set()
        for step in program.all_steps():
            for what, at, extent in _accesses(step, sizes):
                touched.add(at.buffer)
                if at.buffer not in sizes:
                    found.append(f"{what}: there is no buffer {at.buffer!r}")
                elif isinstance(at, TensorMap) and (wrong := refusal(at, problem.item_bytes)):
                    found.append(f"{what}: {wrong}")
                elif not 0 <= at.offset <= at.offset + extent <= sizes[at.buffer]:
                    reach = f"elements {at.offset} to {at.offset + extent} of {at.buffer!r}"
                    found.append(f"{what}: {reach}, which has {sizes[at.buffer]}")
            if isinstance(step, Launch):
                found += self._launch_findings(step)
        found += [f"{name!r} is touched by no step" for name in sizes.keys() - touched - {"a", "b"}]
        early = {name for step in program.filter_steps for name in buffers_of(step)} & {"a", "out"}
        found += [f"{name!r} is touched by a step that only turns the filter into workspace" for name in sorted(early)]
        return found

    def _launch_findings(self, launch: Launch) -> list[str]:
        title = f"{launch.file}, {launch.kernel}"
        built = self._build(launch)
        if isinstance(built, str):
            return [f"{title}: {built}"]
        if launch.kernel not in built.kernels:
            return [f"{title}: there is no such kernel, but {', '.join(built.kernels)}"]
        self.launched.add((launch.file, written(dict(launch.defines)), launch.kernel))
        kernel = built.kernels[launch.kernel]
        found = []
        threads, given = math.prod(launch.block), tuple(map(argument_bytes, launch.arguments))
        if threads != kernel.max_threads:
            found.append(f"blocks of {threads} threads, __launch_bounds__ says {kernel.max_threads}")
        if given != kernel.parameters:
            found.append(f"arguments of {given} bytes, the kernel takes {kernel.parameters}")
        if kernel.shared + launch.shared_bytes > self.gpu.shared_bytes:
            found.append(f"{kernel.shared} + {launch.shared_bytes} bytes of shared memory, {self.gpu.name} has less")
        for value in (v for a in launch.arguments for v in (a.fields if isinstance(a, Struct) else (a,))):
            if isinstance(value, int) and not -(2**31) <= value < 2**31:
                found.append(f"{value} is no 32-bit integer")
        return [f"{title}: {sentence}" for sentence in found]

    def _build(self, launch: Launch) -> Compiled | str:
        """The launch's variant, compiled; or a sentence on why it is none. One architecture stands for all."""
        key = (launch.file, tuple(sorted(launch.defines)))
        if key not in self._compiled:
            try:
                manifest = manifest_of(launch.file, self.folder)
                manifest.architecture_for(launch.defines, self.gpu)  # raises where this GPU has none
                architectures = manifest.variant(launch.defines).architectures
                architecture = "80" if "80" in architectures else architectures[-1]
                self._compiled[key] = compile_file(launch.file, launch.defines, architecture, self.folder)
            except ConvbenchError as error:
                self._compiled[key] = str(error)
        return self._compiled[key]


def argument_bytes(argument: Argument) -> int:
    """Bytes that an argument takes in the kernel's parameters."""
    match argument:
        case TensorMap():
            return MAP_BYTES
        case At() | Long():
            return 8
        case Struct():
            return 4 * len(argument.fields)
        case Float():
            return 4
    return 4


def _extent(at: At) -> int:
    """Elements that a launch reaches: all that a tensor map names."""
    return math.prod(at.sizes) if isinstance(at, TensorMap) else 1


def _accesses(step: Launch | Product | Transform | Zero, sizes: Mapping[str, int]) -> Iterator[tuple[str, At, int]]:
    """(what, where it begins, elements that it reaches) of every buffer of a step; a launch reaches one at least."""
    match step:
        case Launch():
            places = ((i, a) for i, a in enumerate(step.arguments) if isinstance(a, At))
            yield from ((f"{step.kernel}: argument {i}", at, _extent(at)) for i, at in places)
        case Product():
            a_rows, a_columns = (step.k, step.m) if step.transpose_a else (step.m, step.k)
            b_rows, b_columns = (step.n, step.k) if step.transpose_b else (step.k, step.n)
            for what, at, rows, columns, row, each in (
                ("a", step.a, a_rows, a_columns, step.row_a, step.step_a),
                ("b", step.b, b_rows, b_columns, step.row_b, step.step_b),
                ("c", step.c, step.m, step.n, step.row_c, step.step_c),
            ):
                yield f"product's {what}", at, (step.batch - 1) * each + (rows - 1) * row + columns
        case Transform():
            real, half = (step.batch * step.height * w for w in (step.width, step.width // 2 + 1))
            forward = step.kind == "forward"
            yield "transform's source", step.source, real if forward else half
            yield "transform's target", step.target, half if forward else real
        case Zero():
            yield "zero", At(step.buffer), sizes.get(step.buffer, 0)
