"""NVRTC, NVIDIA's compiler as a library, through ctypes: CUDA source in, machine code and the compiler's log out.

Needs neither a GPU nor its driver. The library, the runtime's headers and the disassembler are found by
cuda-pathfinder, wherever they were installed: as wheels, by conda or in /usr/local/cuda.
Interface: NVRTC 13.0 documentation, "Compilation" and "Error handling".
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbench.errors import Unavailable

INSTALL = "pip install 'convbench[cuda]'"
#: Headers that kernels include, and the part of the toolkit that brings each.
HEADERS = {"cuda_fp16.h": "cudart", "nv/target": "cccl"}


@dataclass(frozen=True)
class Compilation:
    """cubin: machine code, empty where the compiler found errors. log: what it said, with ptxas' resource usage."""

    cubin: bytes
    log: str


@functools.cache
def version() -> tuple[int, int]:
    """(major, minor) of NVRTC. Raises Unavailable where it is missing."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def architectures() -> tuple[int, ...]:
    """Compute capabilities that this NVRTC compiles for, such as 90."""
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    values = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", values)
    return tuple(values)


def compile_program(source: str, name: str, options: list[str]) -> Compilation:
    """Compiles `source`, which diagnostics call `name`; errors are in the log, and then there is no cubin.

    Raises Unavailable where NVRTC is missing, ValueError for options that it does not know.
    """
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    try:
        texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = _library().nvrtcCompileProgram(program, len(options), texts)
        log = _text("ProgramLog", program).replace(b"\0", b"").decode(errors="replace")
        if status == _INVALID_OPTION:
            raise ValueError(f"NVRTC refuses its options: {log.strip() or ' '.join(options)}")
        return Compilation(b"" if status else _text("CUBIN", program), log)
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


@functools.cache
def include_folders() -> tuple[Path, ...]:
    """Folders of the runtime's headers (cuda_fp16.h, cuda_bf16.h and what they include). Raises Unavailable."""
    finder = _pathfinder()
    found: list[Path] = []
    for header, component in HEADERS.items():
        folder = finder.find_nvidia_header_directory(component)
        if folder is None or not (Path(folder) / header).exists():
            raise Unavailable(f"compiling CUDA kernels needs the CUDA runtime's headers ({header}): {INSTALL}")
        found.append(Path(folder))
    return tuple(dict.fromkeys(found))


@functools.cache
def disassembler() -> Path:
    """nvdisasm. Raises Unavailable with the package that brings it."""
    found = _pathfinder().find_nvidia_binary_utility("nvdisasm")
    if found is None:
        raise Unavailable("disassembling CUDA kernels needs nvdisasm: pip install 'convbench[dev]'")
    return Path(found)


_INVALID_OPTION = 5  # NVRTC_ERROR_INVALID_OPTION


def _text(what: str, program: ctypes.c_void_p) -> bytes:
    """The program's log or machine code, every byte of it."""
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_library(), function)(*arguments)
    if status:
        raise RuntimeError(f"{function} failed: {_library().nvrtcGetErrorString(status).decode()}")


@functools.cache
def _library() -> ctypes.CDLL:
    finder = _pathfinder()
    try:
        path = finder.load_nvidia_dynamic_lib("nvrtc").abs_path
        library = ctypes.CDLL(str(path))
    except (finder.DynamicLibNotFoundError, OSError) as error:
        raise Unavailable(f"compiling CUDA kernels needs NVRTC (libnvrtc): {INSTALL}") from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _pathfinder() -> Any:
    try:
        from cuda import pathfinder
    except ImportError as error:
        raise Unavailable(f"compiling CUDA kernels needs cuda-pathfinder: {INSTALL}") from error
    return pathfinder
