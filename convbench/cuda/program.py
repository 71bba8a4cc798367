"""A convolution on a GPU as a list of steps over named buffers: what is launched, with what, in what order.

Buffers are "a", "b" and "out" (the operands and the result of `run`) and the workspace that a program declares. A
step enqueues work; it never waits. Steps are executed by `devices/cuda.py` (CuPy, one stream) and, for tests, on the
CPU by tests/cuda_on_cpu. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4, "int8": 1,
              "complex64": 8}  # fmt: skip
Dim = tuple[int, int, int]


@dataclass(frozen=True)
class Buffer:
    """Workspace on the device: C-contiguous, 256-byte aligned, its contents undefined before the first step."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class At:
    """An argument: the address of an element of a buffer, `offset` elements after its start."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class TensorMap(At):
    """An argument: a dense tensor in a buffer as Hopper's TMA copies it (include/tma.cuh), 128 bytes by value.

    sizes: elements along each axis, innermost first. Copies bring rows of 128 bytes, zeros where there is no element.
    Limits: tensor_map.py.
    """

    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TiledMap(TensorMap):
    """Copies are boxes of `box` elements along each axis."""

    box: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Im2colMap(TensorMap):
    """Copies are `channels` of `pixels` pixels of a bounding box, one after another; sizes: C, W, H, N.

    lower, upper, steps, along W and H: where the box begins and ends, from the first and from the last pixel of the
    image, and how far its pixels are apart. A copy adds the place of a tap to every pixel.
    """

    channels: int
    pixels: int
    lower: tuple[int, int]
    upper: tuple[int, int]
    steps: tuple[int, int]


@dataclass(frozen=True)
class Struct:
    """An argument: a C struct of 32-bit integers, by value."""

    fields: tuple[int, ...]


@dataclass(frozen=True)
class Long:
    """An argument: a 64-bit integer."""

    value: int


@dataclass(frozen=True)
class Float:
    """An argument: a float."""

    value: float


#: What a kernel takes; a plain int is a 32-bit integer. A tensor map is an At, too.
Argument = At | Struct | Long | Float | int


@dataclass(frozen=True)
class Launch:
    """One kernel of kernels/cuda: `file` without folder (winograd_f4.cu), an extern "C" `kernel` of it.

    defines: macros that the file is compiled with, which choose tile sizes and the like; a manifest beside the file
    lists every set that is used. shared_bytes: dynamic shared memory.
    """

    file: str
    kernel: str
    grid: Dim
    block: Dim
    arguments: tuple[Argument, ...]
    shared_bytes: int = 0
    defines: tuple[tuple[str, int | str], ...] = ()

    def __post_init__(self) -> None:
        x, y, z = self.block
        limits = (2**31 - 1, 65535, 65535)
        if not 0 < x * y * z <= 1024 or z > 64:
            raise ValueError(f"{self.kernel}: a block of {self.block} threads cannot be launched")
        if any(not 0 < g <= limit for g, limit in zip(self.grid, limits, strict=True)):
            raise ValueError(f"{self.kernel}: a grid of {self.grid} blocks cannot be launched")


@dataclass(frozen=True)
class Product:
    """Batched matrix product by the vendor's BLAS: C[i] = A[i] B[i], all row-major.

    A[i] is m x k (or, transposed, stored as k x m), B[i] k x n, C[i] m x n. row_*: elements from one stored row to the
    next; step_*: elements from one matrix of the batch to the next. arithmetic: "float32" (pedantic: no tensor
    cores, no reduced precision), "tf32", "float16-acc32" or "bfloat16-acc32". add: C += instead of C =.
    """

    a: At
    b: At
    c: At
    m: int
    n: int
    k: int
    row_a: int
    row_b: int
    row_c: int
    transpose_a: bool = False
    transpose_b: bool = False
    batch: int = 1
    step_a: int = 0
    step_b: int = 0
    step_c: int = 0
    arithmetic: str = "float32"
    add: bool = False


@dataclass(frozen=True)
class Transform:
    """Batched 2D FFT by the vendor's library, not normalised: real (batch, height, width) to and from half spectra.

    kind "forward": float32 source -> complex64 (batch, height, width // 2 + 1) target. "inverse": the other way, and
    the source's contents are undefined afterwards. Both buffers are contiguous.
    """

    kind: str
    source: At
    target: At
    batch: int
    height: int
    width: int


@dataclass(frozen=True)
class Zero:
    """Fills a whole buffer with zero bytes."""

    buffer: str


Step = Launch | Product | Transform | Zero


@dataclass(frozen=True)
class Program:
    """filter_steps read "b" and turn the filter into workspace; with packed weights they run once, in prepare().

    steps: the rest. Where they read "b" themselves, packed plans keep a copy of it. Both are enqueued in order, on one
    stream; each step sees what those before it wrote. Workspace keeps its contents from call to call.
    """

    steps: tuple[Step, ...]
    filter_steps: tuple[Step, ...] = ()
    workspace: Mapping[str, Buffer] = field(default_factory=dict)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all declared buffers."""
        return sum(buffer.nbytes for buffer in self.workspace.values())

    def all_steps(self) -> Iterator[Step]:
        """filter_steps, then steps."""
        yield from self.filter_steps
        yield from self.steps

    def launches(self) -> Iterator[Launch]:
        """The kernels among the steps."""
        return (step for step in self.all_steps() if isinstance(step, Launch))

    def reads_filter(self) -> bool:
        """Whether `steps` read "b", so that packed plans need a copy of the filter."""
        return any("b" in buffers_of(step) for step in self.steps)


def buffers_of(step: Step) -> set[str]:
    """Names of the buffers that a step touches."""
    match step:
        case Launch():
            return {a.buffer for a in step.arguments if isinstance(a, At)}
        case Product():
            return {step.a.buffer, step.b.buffer, step.c.buffer}
        case Transform():
            return {step.source.buffer, step.target.buffer}
        case Zero():
            return {step.buffer}
