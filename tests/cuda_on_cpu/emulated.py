"""Executes programs (convbench/cuda/program.py) on the CPU: kernels emulated, products and transforms by NumPy."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import (
    ITEM_BYTES,
    At,
    Buffer,
    Float,
    Launch,
    Long,
    Product,
    Program,
    Step,
    Struct,
    TensorMap,
    Transform,
    Zero,
)
from convbench.cuda.tensor_map import MAP_BYTES
from tests.cuda_on_cpu import build, maps

ALIGN_BYTES = 256
GUARD_BYTES = 4096
POISON = 0xFF  # NaN in every float type
ADDR_NO_RANDOMIZE = 0x0040000
SANITIZER_SECONDS = 240
KERNEL_SECONDS = 100


class EmulationError(RuntimeError):
    """What a kernel or a step did that it must not."""


class SanitizerError(EmulationError):
    """AddressSanitizer, UndefinedBehaviorSanitizer or ThreadSanitizer found something; `report` is all it said."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


def storage(dtype: str) -> np.dtype:
    """The NumPy type that holds a program's element type; bfloat16 as its 16 bits."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def _item_bytes(array: np.ndarray) -> int:
    return array.dtype.itemsize


class EmulatedContext:
    """Context of one plan on the emulated GPU.

    order: of threads and blocks (0 ascending, 1 descending, others random with this seed). sanitizer: "plain",
    "address" or "thread"; the latter two run launches in a process of their own. seconds: after which a kernel is
    ended.
    """

    xp = np
    stream = None

    def __init__(self, threads: int = 1, gpu: Gpu = H200, order: int = 0, sanitizer: str = "plain",
                 seconds: int = KERNEL_SECONDS) -> None:  # fmt: skip
        self.threads = threads
        self.gpu = gpu
        self.order = order
        self.sanitizer = sanitizer
        self.seconds = seconds
        self.workspace_bytes = 0
        self.launches = 0
        self.notes: dict[str, str] = {}
        self._guarded: list[tuple[np.ndarray, int, int]] = []

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
        """Aligned to 256 bytes, filled with NaN, between guards that are checked after each run."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = storage(dtype) if isinstance(dtype, str) else np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raw = np.full(count + 2 * GUARD_BYTES + ALIGN_BYTES, POISON, np.uint8)
        start = GUARD_BYTES + -(raw.ctypes.data + GUARD_BYTES) % ALIGN_BYTES
        self.workspace_bytes += count
        self._guarded.append((raw, start, start + count))
        return raw[start : start + count].view(dtype).reshape(shape)

    def account(self, n_bytes: int, what: str) -> None:
        """Counts memory that a library owns."""
        self.workspace_bytes += int(n_bytes)

    def note(self, key: str, value: str) -> None:
        """Keeps a fact for the record."""
        self.notes[key] = value

    def bind(self, program: Program, weights: Any = None) -> Callable[..., None]:
        """run(a, b, out), or with `weights` (the filter's steps are executed now) run(a, out)."""
        buffers = {name: self.empty(b.shape, b.dtype) for name, b in program.workspace.items()}
        for step in program.launches():
            build.build(step.file, step.defines, self.sanitizer)
        if weights is None:

            def run(a: Any, b: Any, out: Any) -> None:
                self._execute((*program.filter_steps, *program.steps), program, buffers | {"a": a, "b": b, "out": out})

            return run
        self._execute(program.filter_steps, program, buffers | {"b": weights})
        if program.reads_filter():
            kept = self.empty(weights.shape, weights.dtype)
            kept[...] = weights
            buffers["b"] = kept

        def run_packed(a: Any, out: Any) -> None:
            self._execute(program.steps, program, buffers | {"a": a, "out": out})

        return run_packed

    # ---- steps

    def _execute(self, steps: Sequence[Step], program: Program, buffers: Mapping[str, np.ndarray]) -> None:
        buffers = {name: array for name, array in buffers.items() if array is not None}
        for name, array in buffers.items():
            if not array.flags.c_contiguous:
                raise EmulationError(f"buffer {name} is not contiguous")
        pending: list[Launch] = []
        for step in steps:
            if isinstance(step, Launch):
                self.launches += 1
                if self.sanitizer in build.IN_PROCESS:
                    self._launch(step, buffers)
                else:
                    pending.append(step)
                continue
            self._launch_apart(pending, buffers)
            pending = []
            if isinstance(step, Product):
                multiply(step, buffers)
            elif isinstance(step, Transform):
                transform(step, buffers)
            elif isinstance(step, Zero):
                buffers[step.buffer].reshape(-1).view(np.uint8).fill(0)
        self._launch_apart(pending, buffers)
        self._check_guards()

    def _check_guards(self) -> None:
        for raw, start, end in self._guarded:
            if (raw[:start] != POISON).any() or (raw[end:] != POISON).any():
                raise EmulationError(f"a write outside a workspace buffer of {end - start} bytes")

    def _launch(self, step: Launch, buffers: Mapping[str, np.ndarray]) -> None:
        library, kernels = build.load(build.build(step.file, step.defines, self.sanitizer))
        kernel = _kernel_of(step, kernels)
        held = [_packed(argument, buffers) for argument in step.arguments]
        _check_signature(step, kernel.contents.signature.decode())
        arrays = [ctypes.create_string_buffer(value, len(value)) for value in held]
        values = (ctypes.c_void_p * max(len(arrays), 1))(*[ctypes.addressof(a) for a in arrays])
        how = build.LaunchStruct(
            step.grid, step.block, step.shared_bytes, self.gpu.shared_bytes, self.seconds, self.order
        )
        message = ctypes.create_string_buffer(4000)
        if build.launcher(self.sanitizer)(library, kernel, ctypes.byref(how), values, message, len(message)):
            raise EmulationError(message.value.decode(errors="replace"))

    # ---- launches in a process of their own

    def _launch_apart(self, steps: Sequence[Launch], buffers: Mapping[str, np.ndarray]) -> None:
        if not steps:
            return
        names = list(buffers)
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            lines = [f"order {self.order} limit {self.gpu.shared_bytes}"]
            for number, name in enumerate(names):
                path = Path(folder) / str(number)
                buffers[name].reshape(-1).view(np.uint8).tofile(path)
                lines.append(f"buffer {path} {buffers[name].nbytes}")
            for step in steps:
                plain = build.load(build.build(step.file, step.defines))[1]
                _check_signature(step, _kernel_of(step, plain).contents.signature.decode())
                sizes = " ".join(str(v) for v in (*step.grid, *step.block, step.shared_bytes, len(step.arguments)))
                path = build.build(step.file, step.defines, self.sanitizer)
                lines.append(f"launch {path} {step.kernel} {sizes}")
                for argument in step.arguments:
                    if isinstance(argument, At):
                        offset = argument.offset * _item_bytes(_array(argument, buffers))
                        place = f"{names.index(argument.buffer)} {offset}"
                        is_map = isinstance(argument, TensorMap)
                        lines.append(f"map {place} {_packed(argument, buffers).hex()}" if is_map else f"at {place}")
                    else:
                        lines.append(f"bytes {_packed(argument, buffers).hex()}")
            self._drive("\n".join(lines) + "\n", ", ".join(dict.fromkeys(step.kernel for step in steps)))
            for number, name in enumerate(names):
                written = np.fromfile(Path(folder) / str(number), np.uint8)
                before = buffers[name].reshape(-1).view(np.uint8)
                if before.flags.writeable:
                    np.copyto(before, written)
                elif (before != written).any():
                    raise EmulationError(f"buffer {name} was changed, which is only to be read")

    def _drive(self, description: str, kernels: str) -> None:
        environment = {
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:exitcode=66:abort_on_error=0",
            "UBSAN_OPTIONS": "print_stacktrace=0",
            "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_signal_unsafe=0:atexit_sleep_ms=0",
        }
        done = subprocess.run(
            [str(build.driver(self.sanitizer))], input=description, capture_output=True, text=True, check=False,
            timeout=SANITIZER_SECONDS, env=environment, preexec_fn=_fixed_addresses,
        )  # fmt: skip
        if done.returncode == 0:
            return
        said = re.search(r"^emulator: (.*)$", done.stderr, re.MULTILINE)
        if said:
            raise EmulationError(said[1])
        found = re.search(r"((?:Address|Thread)Sanitizer: (?:data race|[a-z-]+)|runtime error: .*)", done.stderr)
        place = re.search(r"([^/\s]+\.cuh?:\d+)", done.stderr)
        what = found[1].strip() if found else f"exit status {done.returncode}: {done.stderr[-300:]}"
        raise SanitizerError(f"{kernels}: {what}" + (f" at {place[1]}" if place else ""), done.stderr)


def _fixed_addresses() -> None:
    """ThreadSanitizer needs its memory at fixed places, which wide randomisation takes; refused: it may still work."""
    ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE)


# ---- arguments


def _kernel_of(step: Launch, kernels: Mapping[str, Any]) -> Any:
    if step.kernel not in kernels:
        raise EmulationError(f"{step.file} has no kernel {step.kernel}; it has {', '.join(kernels)}")
    return kernels[step.kernel]


def _array(place: At, buffers: Mapping[str, np.ndarray]) -> np.ndarray:
    if place.buffer not in buffers:
        raise EmulationError(f"there is no buffer {place.buffer!r} in this step; there are {', '.join(buffers)}")
    array = buffers[place.buffer]
    if not 0 <= place.offset <= array.size:
        raise EmulationError(f"element {place.offset} is outside buffer {place.buffer} of {array.size} elements")
    return array


def _packed(argument: At | Struct | Long | Float | int, buffers: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an argument."""
    match argument:
        case TensorMap():
            wrong = maps.wrong(argument, _array(argument, buffers))
            if wrong:
                raise EmulationError(f"a tensor map of {argument.buffer}: {wrong}")
            return maps.packed(argument, _array(argument, buffers))
        case At():
            array = _array(argument, buffers)
            return struct.pack("<Q", array.ctypes.data + argument.offset * _item_bytes(array))
        case Struct():
            return struct.pack(f"<{len(argument.fields)}i", *argument.fields)
        case Long():
            return struct.pack("<q", argument.value)
        case Float():
            return struct.pack("<f", argument.value)
    return struct.pack("<i", argument)


def _check_signature(step: Launch, signature: str) -> None:
    """The arguments are of the kinds that the kernel takes; a GPU would read whatever lies there."""
    letters = ""
    for argument in step.arguments:
        match argument:
            case TensorMap():
                letters += f"s{MAP_BYTES}"
            case At():
                letters += "p"
            case Struct():
                letters += f"s{4 * len(argument.fields)}"
            case Long():
                letters += "l"
            case Float():
                letters += "f"
            case _:
                letters += "i"
    if letters != signature:
        raise EmulationError(
            f"{step.kernel} takes {signature}, the launch gives {letters} (p pointer, i int, l long long, f float, "
            "sN struct of N bytes)"
        )


# ---- what the vendor's libraries do on a GPU


def _numbers(array: np.ndarray, arithmetic: str) -> np.ndarray:
    """Operands as the multiplier sees them, in float32 (complex64 stays)."""
    if array.dtype == np.complex64:
        return array
    if array.dtype == np.uint16 or array.dtype.name == "bfloat16":
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    array = array.astype(np.float32)
    if arithmetic == "tf32":  # to nearest, ties to even
        bits = array.view(np.uint32)
        kept = (bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))) & np.uint32(0xFFFFE000)
        array = np.where(np.isfinite(array), kept.view(np.float32), array)
    return array


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    bits = array.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(array), 0x7FFF, rounded).astype(np.uint16)


def _matrices(place: At, buffers: Mapping[str, np.ndarray], shape: tuple[int, int, int],
              step: int, row: int) -> np.ndarray:  # fmt: skip
    """(batch, rows, columns) of a buffer, without a copy; raises where an element lies outside."""
    array = _array(place, buffers).reshape(-1)
    batch, rows, columns = shape
    if min(step, row) < 0:
        raise EmulationError("steps of a product must not be negative")
    last = place.offset + (batch - 1) * step + (rows - 1) * row + columns - 1
    if last >= array.size:
        raise EmulationError(f"a product reaches element {last} of buffer {place.buffer} of {array.size} elements")
    size = array.dtype.itemsize
    return np.lib.stride_tricks.as_strided(array[place.offset :], shape, (step * size, row * size, size))


def multiply(p: Product, buffers: Mapping[str, np.ndarray]) -> None:
    """The vendor's strided batched product, by NumPy in float32."""
    rows_a, columns_a = (p.k, p.m) if p.transpose_a else (p.m, p.k)
    rows_b, columns_b = (p.n, p.k) if p.transpose_b else (p.k, p.n)
    for what, row, columns in (("a", p.row_a, columns_a), ("b", p.row_b, columns_b), ("c", p.row_c, p.n)):
        if row < columns:
            raise EmulationError(f"row_{what} of a product is {row}, less than its {columns} columns")
    if p.batch > 1 and p.step_c < (p.m - 1) * p.row_c + p.n and not (p.step_c >= p.n and p.row_c >= p.batch * p.step_c):
        raise EmulationError(f"the results of a product overlap: step_c is {p.step_c}, row_c {p.row_c}")
    a = _matrices(p.a, buffers, (p.batch, rows_a, columns_a), p.step_a, p.row_a)  # (batch, M, K) or transposed
    b = _matrices(p.b, buffers, (p.batch, rows_b, columns_b), p.step_b, p.row_b)  # (batch, K, N) or transposed
    c = _matrices(p.c, buffers, (p.batch, p.m, p.n), p.step_c, p.row_c)  # (batch, M, N)
    left, right = _numbers(a, p.arithmetic), _numbers(b, p.arithmetic)
    left = left.swapaxes(1, 2) if p.transpose_a else left
    right = right.swapaxes(1, 2) if p.transpose_b else right
    product = np.matmul(left, right)
    if p.add:
        product = product + _numbers(c, "float32")
    is_bfloat16 = c.dtype == np.uint16 or c.dtype.name == "bfloat16"
    if is_bfloat16:
        c.view(np.uint16)[...] = _to_bfloat16(product)
    else:
        with np.errstate(over="ignore"):
            c[...] = product


def transform(step: Transform, buffers: Mapping[str, np.ndarray]) -> None:
    """The vendor's batched 2D FFT, by NumPy; the source of "inverse" is poisoned, as the library may use it."""
    if step.kind not in ("forward", "inverse"):
        raise EmulationError(f"a transform is forward or inverse, not {step.kind!r}")
    real, half = (step.batch, step.height, step.width), (step.batch, step.height, step.width // 2 + 1)
    source = _contiguous(step.source, buffers, real if step.kind == "forward" else half)
    target = _contiguous(step.target, buffers, half if step.kind == "forward" else real)
    want = (np.float32, np.complex64) if step.kind == "forward" else (np.complex64, np.float32)
    if (source.dtype, target.dtype) != want:
        raise EmulationError(f"transform {step.kind} of {source.dtype} to {target.dtype}")
    if step.kind == "forward":
        target[...] = np.fft.rfft2(source)
    else:
        target[...] = np.fft.irfft2(source, s=real[1:], norm="forward")
        source.fill(np.nan)


def _contiguous(place: At, buffers: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    array = _array(place, buffers).reshape(-1)
    count = int(np.prod(shape, dtype=np.int64))
    if place.offset + count > array.size:
        end = place.offset + count - 1
        raise EmulationError(f"a transform reaches element {end} of buffer {place.buffer} of {array.size} elements")
    return array[place.offset : place.offset + count].reshape(shape)


def launch(
    file: str | Path, kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int],
    arguments: Sequence[np.ndarray | Struct | Long | Float | int], shared_bytes: int = 0,
    defines: Mapping[str, int | str] | None = None, order: int = 0, sanitizer: str = "plain", gpu: Gpu = H200,
    seconds: int = KERNEL_SECONDS,
) -> None:  # fmt: skip
    """One kernel on arrays, which it changes: for tests of single kernels."""
    buffers = {f"array{i}": value for i, value in enumerate(arguments) if isinstance(value, np.ndarray)}
    given = tuple(At(f"array{i}") if isinstance(v, np.ndarray) else v for i, v in enumerate(arguments))
    step = Launch(str(file), kernel, grid, block, given, shared_bytes, tuple((defines or {}).items()))
    context = EmulatedContext(gpu=gpu, order=order, sanitizer=sanitizer, seconds=seconds)
    context._execute((step,), Program((step,)), buffers)


__all__ = ["ITEM_BYTES", "Buffer", "EmulatedContext", "EmulationError", "SanitizerError", "launch"]
