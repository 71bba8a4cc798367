"""Compiles kernels of kernels/cuda with the machine's C++ compiler, once for each set of defines and sanitizer.

Results lie in a folder of the user's cache, under the hash of all that they are made of.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent.parent / "kernels" / "cuda"
KEPT_DAYS = 14
#: Sanitizer -> flags for the kernels, flags for the runtime.
VARIANTS = {
    "plain": (("-fsanitize=alignment", "-fno-sanitize-recover=all"), ()),
    "address": (
        ("-O1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all",
         "-fsanitize-sections=cuda_shared"),
        ("-DEMULATOR_ADDRESS",),
    ),
    "thread": (("-fsanitize=thread",), ("-DEMULATOR_THREAD",)),
    # as plain, with the fibers that other processors than x86-64 get
    "ucontext": (("-fsanitize=alignment", "-fno-sanitize-recover=all"), ("-DEMULATOR_UCONTEXT",)),
}  # fmt: skip
IN_PROCESS = ("plain", "ucontext")
# No contraction: a product and a sum round twice unless the kernel says fmaf. Variables without a value hold a pattern
# that is a huge float, so that forgetting to set one shows.
COMMON = ("-std=c++20", "-g1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-fvisibility=hidden")
HEADERS = ("emulator.h", "kernels.h", "launch.h")
KERNEL_FLAGS = ("-O2", "-ftrivial-auto-var-init=pattern")


class CompilationError(RuntimeError):
    """The compiler refused a kernel file."""


@functools.cache
def compiler() -> str:
    """The C++ compiler: $CXX or g++."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if not found:
        raise CompilationError("a C++ compiler is needed: install g++, or name one in CXX")
    return found


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Instructions that the emulator's arithmetic profits from, where this machine has them."""
    path = Path("/proc/cpuinfo")
    words = set(path.read_text().split()) if path.is_file() and platform.machine() == "x86_64" else set()
    return tuple(f"-m{name}" for name in ("avx2", "fma", "f16c") if name in words)


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels lie; what nobody used for KEPT_DAYS is deleted."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (home / "convbench" / "cuda_on_cpu", Path(tempfile.gettempdir()) / f"convbench-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            break
    oldest = time.time() - KEPT_DAYS * 86400
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except OSError:
            continue  # another process was faster
    return folder


@functools.cache
def _compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def _key(*parts: object) -> str:
    digest = hashlib.sha256(repr((_compiler_version(), COMMON, machine_flags())).encode())
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return digest.hexdigest()[:24]


def _compile(target: Path, arguments: Sequence[str]) -> None:
    """Runs the compiler into a file beside `target`, which then takes its name: never half a file."""
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    done = subprocess.run([compiler(), *arguments, "-o", str(beside)], capture_output=True, text=True, check=False)
    if done.returncode:
        beside.unlink(missing_ok=True)
        raise CompilationError(done.stderr[:8000])
    beside.replace(target)


def _touched(path: Path) -> bool:
    try:
        os.utime(path)
    except OSError:
        return False
    return True


@functools.cache
def runtime(sanitizer: str = "plain") -> Path:
    """The runtime as a shared library."""
    source = HERE / "runtime.cpp"
    flags = (*COMMON, *machine_flags(), "-O3", *VARIANTS[sanitizer][1])
    path = cache_folder() / f"runtime-{sanitizer}-{_key(*included_by(source), flags)}.so"
    if not _touched(path):
        _compile(path, [*flags, "-fvisibility=default", "-shared", str(source)])
    return path


@functools.cache
def driver(sanitizer: str) -> Path:
    """The program that runs launches in a process of its own."""
    source = HERE / "driver.cpp"
    flags = (*COMMON, "-O1", *[f for f in VARIANTS[sanitizer][0] if f.startswith("-fsanitize=")])
    path = cache_folder() / f"driver-{sanitizer}-{_key(source, HERE / 'launch.h', runtime(sanitizer).name, flags)}"
    if not _touched(path):
        link = [*flags, str(source), str(runtime(sanitizer)), "-ldl", "-rdynamic"]
        _compile(path, link)
    return path


def find_source(file: str | Path) -> Path:
    """A kernel file by its name in kernels/cuda, or by its path."""
    path = Path(file)
    return path if path.is_absolute() else KERNELS / path


_KERNEL = re.compile(
    r"__emulated_kernel__\s+(?:void\s+)?"
    r"(?:__emulated_bounds__\s*\((?P<bounds>(?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)\s*)?(?:void\s+)?"
    r"(?P<name>[A-Za-z_]\w*)\s*\("
)


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


def included_by(source: Path) -> list[Path]:
    """The file itself and every file of this repository that it includes, directly or not."""
    found = [source]
    for path in found:  # grows while it is walked
        for name in _INCLUDE.findall(path.read_text()):
            for folder in (path.parent, KERNELS / "include", HERE):
                if (folder / name).is_file() and folder / name not in found:
                    found.append(folder / name)
                    break
    return found


def _include_flags(source: Path) -> list[str]:
    return [f"-I{KERNELS / 'include'}", f"-I{HERE}", f"-I{source.parent}"]


def kernels_of(source: Path, defines: Mapping[str, int | str]) -> dict[str, str]:
    """Kernel -> the arguments of its __launch_bounds__, as the preprocessor leaves them."""
    macros = [f"-D{name}={value}" for name, value in defines.items()]
    command = [compiler(), "-E", "-P", "-x", "c++", "-std=c++20", "-w", "-DEMULATOR_LIST_KERNELS", *macros,
               *_include_flags(source), str(source)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilationError(done.stderr[:8000])
    return {match["name"]: (match["bounds"] or "").strip() for match in _KERNEL.finditer(done.stdout)}


def _wrapper(source: Path, kernels: Mapping[str, str]) -> str:
    """The translation unit: the file in an unnamed namespace (its shared arrays then share one section), its table."""
    rows = "\n".join(f"    EMULATOR_KERNEL({name}, {bounds})," for name, bounds in kernels.items())
    rows = rows.replace(", )", ")")
    return f"""#include "device.cuh"
#include "conv.cuh"
#include "kernels.h"
namespace {{
#include "{source}"
}}
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
static const EmulatorKernel kernels[] = {{
{rows}
}};
extern "C" __attribute__((visibility("default"))) const EmulatorLibrary* emulator_library() {{
    static const EmulatorLibrary library = {{kernels, {len(kernels)}, __start_cuda_shared, __stop_cuda_shared}};
    return &library;
}}
"""


def build(file: str | Path, defines: Mapping[str, int | str] | Sequence[tuple[str, int | str]] = (),
          sanitizer: str = "plain") -> Path:  # fmt: skip
    """A shared library with every kernel of the file. Raises CompilationError with what the compiler says."""
    return _build(find_source(file), tuple(sorted(dict(defines).items())), sanitizer)


@functools.cache
def _build(source: Path, defines: tuple[tuple[str, int | str], ...], sanitizer: str) -> Path:
    files = included_by(source)
    library = runtime(sanitizer)
    macros = [f"-D{name}={value}" for name, value in defines]
    flags = (*COMMON, *machine_flags(), *KERNEL_FLAGS, *VARIANTS[sanitizer][0], *macros)
    key = _key(*files, *(HERE / n for n in HEADERS), str(source), library.name, flags, _wrapper(source, {}))
    path = cache_folder() / f"{source.stem}-{sanitizer}-{key}.so"
    if _touched(path):
        return path
    kernels = kernels_of(source, dict(defines))
    if not kernels:
        raise CompilationError(f'{source} has no extern "C" __global__ kernel')
    with tempfile.TemporaryDirectory() as folder:
        unit, item = Path(folder) / "unit.cpp", Path(folder) / "unit.o"
        unit.write_text(_wrapper(source, kernels))
        _compile(item, [*flags, *_include_flags(source), "-c", str(unit)])
        # linked without the sanitizer's flag: the process brings its library, and plain has its own handler
        _compile(path, ["-shared", str(item), str(library)])
    return path


class Kernel(ctypes.Structure):
    """EmulatorKernel of launch.h."""

    _fields_ = [("name", ctypes.c_char_p), ("signature", ctypes.c_char_p), ("most_threads", ctypes.c_int),
                ("call", ctypes.c_void_p)]  # fmt: skip


class Library(ctypes.Structure):
    """EmulatorLibrary of launch.h."""

    _fields_ = [("kernels", ctypes.POINTER(Kernel)), ("count", ctypes.c_int), ("shared_begin", ctypes.c_void_p),
                ("shared_end", ctypes.c_void_p)]  # fmt: skip


class LaunchStruct(ctypes.Structure):
    """EmulatorLaunch of launch.h."""

    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_uint),
                ("shared_limit", ctypes.c_uint), ("seconds", ctypes.c_uint), ("order", ctypes.c_uint)]  # fmt: skip


@functools.cache
def load(path: Path) -> tuple[ctypes.POINTER(Library), dict[str, ctypes.POINTER(Kernel)]]:
    """The library of a plain build and its kernels by name."""
    handle = ctypes.CDLL(str(path))
    handle.emulator_library.restype = ctypes.POINTER(Library)
    library = handle.emulator_library()
    found = {}
    for i in range(library.contents.count):
        kernel = library.contents.kernels[i]
        found[kernel.name.decode()] = ctypes.pointer(kernel)
    return library, found


@functools.cache
def launcher(variant: str = "plain") -> ctypes._NamedFuncPointer:
    """emulator_launch of a runtime that works in this process."""
    handle = ctypes.CDLL(str(runtime(variant)))
    function = handle.emulator_launch
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(LaunchStruct), ctypes.c_void_p,
                         ctypes.c_char_p, ctypes.c_size_t]  # fmt: skip
    return function
