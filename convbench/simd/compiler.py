"""IR in, an address out: machine code for a Target, kept on disk as an object file under the hash of its IR.

The hash covers the text of the IR, the unit it is for and LLVM's version, so a kept file can never be stale. An
object that cannot be written costs the next process a compilation, nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from convbench.simd import cache
from convbench.simd.emit import Emitter
from convbench.simd.target import Target

_lock = threading.RLock()


class Kernel:
    """Machine code of one IR function of 64-bit integers. `address` is what Numba loops call; calling it is for tests.

    name: of the function. ir: its text. from_disk: whether the machine code came from the cache.
    """

    def __init__(self, emitter: Emitter) -> None:
        self.name = emitter.function.name
        self.target = emitter.target
        self.arity = len(emitter.args)
        self.ir = emitter.finish()
        versions = (llvmlite.__version__, str(llvm.llvm_version_info), self.target.cpu, self.target.features)
        self.key = hashlib.sha256("\n".join((*versions, self.ir)).encode()).hexdigest()
        with _lock:
            self._engine, self.from_disk = _load(self)
        self.address = int(self._engine.get_function_address(self.name))
        self._call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * self.arity)(self.address)

    def __call__(self, *arguments: int) -> None:
        """Runs it. Nothing is checked: a wrong address is a segmentation fault."""
        self._call(*arguments)

    def assembly(self) -> str:
        """The target's assembly, for reading."""
        module = llvm.parse_assembly(self.ir)
        return str(_machine(self.target).emit_assembly(module))


def kernel(build: Callable[..., Emitter]) -> Callable[..., Kernel]:
    """Decorator: a function that writes IR becomes one that gives the Kernel, made once for each set of arguments."""

    @functools.cache
    def made(*arguments: object) -> Kernel:
        return Kernel(build(*arguments))

    @functools.wraps(build)
    def call(*arguments: object) -> Kernel:
        with _lock:
            return made(*arguments)

    return call


def _load(kernel: Kernel) -> tuple[llvm.ExecutionEngine, bool]:
    """An engine that holds the code: from disk, or compiled here and written there."""
    machine = _machine(kernel.target)
    path = _object_path(kernel)
    stored = _read(path)
    if stored is None:
        module = llvm.parse_assembly(kernel.ir)
        module.verify()
        stored = machine.emit_object(module)
        _write(path, stored)
        fresh = True
    else:
        cache.mark_used(path)
        fresh = False
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _new_machine(kernel.target))
    engine.add_object_file(llvm.ObjectFileRef.from_data(stored))
    engine.finalize_object()
    return engine, not fresh


def _object_path(kernel: Kernel) -> Path:
    return cache.code_dir() / "kernels" / f"{kernel.name}-{kernel.key[:24]}.o"


def _read(path: Path) -> bytes | None:
    """The object, or None if there is none or it is not whole (its own hash stands before it)."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    digest, data = text[:32], text[32:]
    return data if hashlib.sha256(data).digest() == digest else None


def _write(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):  # a full or read-only disk: the code is in memory, that is enough
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)


@functools.cache
def _machine(target: Target) -> llvm.TargetMachine:
    return _new_machine(target)


def _new_machine(target: Target) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    found = llvm.Target.from_default_triple()
    return found.create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )
