"""Kernel files into cubins, without a GPU: NVRTC, what the compiler says of each kernel, and a cache on disk.

    python -m convbench.cuda.compile                       # every variant of every manifest, as a table
    python -m convbench.cuda.compile --architectures 80 90a --file winograd_f4 --output cubins

A cubin is found again under the hash of all that shapes it: the file and what it includes, macros, architecture,
options, NVRTC's version. With --output a folder is written that a machine without NVRTC runs from: name it in
CONVBENCH_CUBINS there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from convbench.cuda import cubin as elf
from convbench.cuda import nvrtc
from convbench.cuda.gpu import Gpu
from convbench.cuda.manifest import (
    ARCHITECTURES,
    Defines,
    Variant,
    kernel_files,
    kernel_folder,
    manifest_of,
    variants_of,
    written,
)
from convbench.cuda.program import Launch
from convbench.errors import ConvbenchError, KernelError, OutputError
from convbench.simd import cache

#: Line information changes no instruction; profilers and compute-sanitizer name source lines by it.
OPTIONS = ("--std=c++17", "--generate-line-info", "--ptxas-options=-v")
#: A folder of cubins that were compiled elsewhere.
CARRIED = "CONVBENCH_CUBINS"


@dataclass(frozen=True)
class Kernel:
    """What one kernel takes, as ptxas says. spills and stack: bytes a thread; shared: static bytes a block.

    max_threads: of a block (__launch_bounds__), 0 if not declared. parameters: bytes of each.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int
    barriers: int
    max_threads: int
    parameters: tuple[int, ...]

    @property
    def spill_bytes(self) -> int:
        """The larger of spill stores and spill loads."""
        return max(self.spill_stores, self.spill_loads)


@dataclass(frozen=True)
class Compiled:
    """A kernel file as machine code; `path` is where that lies. seconds: processor time that compiling it took."""

    file: str
    defines: tuple[tuple[str, int | str], ...]
    architecture: str
    kernels: Mapping[str, Kernel]
    log: str
    seconds: float
    path: Path

    @property
    def cubin(self) -> bytes:
        """The machine code."""
        return self.path.read_bytes()

    @property
    def warnings(self) -> list[str]:
        """Lines of the log that are more than ptxas' account of resources."""
        return [line for line in self.log.splitlines() if line.strip() and not _ACCOUNT.match(line)]

    def kernel(self, name: str) -> Kernel:
        """One kernel. Raises KernelError with the names that there are."""
        if name not in self.kernels:
            raise KernelError(
                f'{self.file} has no kernel {name}, but {", ".join(self.kernels)}: is it extern "C" and within '
                f"the #if of {written(dict(self.defines))}?"
            )
        return self.kernels[name]


def compile_for(launch: Launch, gpu: Gpu) -> Compiled:
    """Machine code for a launch on a GPU, as the manifest says.

    Raises KernelError where the manifest does not list it, the GPU cannot run it or the file does not compile;
    Unavailable where there is neither a carried cubin nor a compiler.
    """
    compiled = compile_file(launch.file, launch.defines, manifest_of(launch.file).architecture_for(launch.defines, gpu))
    compiled.kernel(launch.kernel)
    return compiled


def compile_file(file: str, defines: Defines = (), architecture: str = "90", folder: Path | None = None) -> Compiled:
    """kernels/cuda/`file` with these macros as machine code, out of the cache where it is there.

    folder: where the file lies instead; it may include what lies in kernels/cuda/include. Raises KernelError that
    names file, kernel and line, Unavailable where the compiler is missing.
    """
    folder = folder or kernel_folder()
    chosen = tuple(sorted(dict(defines).items()))
    source = _Source.read(folder / file, chosen, architecture)
    carried = os.environ.get(CARRIED)
    if carried and (found := _load(Path(carried), source.name)):
        return found
    name = f"{source.name}.nvrtc{'.'.join(map(str, nvrtc.version()))}"
    if found := _load(_cache_folder(), name):
        return found
    return _compile(source, _cache_folder(), name)


def store(compiled: Compiled, folder: Path) -> None:
    """Copies machine code into a folder for CONVBENCH_CUBINS. Raises OutputError."""
    name = compiled.path.name.split(".nvrtc")[0]
    _write(folder, name, compiled.cubin, compiled)


@dataclass(frozen=True)
class _Source:
    """A kernel file, ready to be compiled; `name` holds the hash of everything but NVRTC's version."""

    path: Path
    text: str
    defines: tuple[tuple[str, int | str], ...]
    architecture: str
    name: str

    @classmethod
    def read(cls, path: Path, defines: tuple[tuple[str, int | str], ...], architecture: str) -> _Source:
        if not path.is_file():
            raise KernelError(f"there is no kernel file {path}: its name goes without a folder, such as direct.cu")
        texts = _closure(path)
        key = json.dumps([list(texts.values()), defines, architecture, OPTIONS])
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        return cls(path, texts[path.name], defines, architecture, f"{path.stem}-sm_{architecture}-{digest}")

    @property
    def title(self) -> str:
        """What diagnostics call the file."""
        return f"kernels/cuda/{self.path.name}"


def _include_folders(path: Path) -> tuple[Path, ...]:
    """The file's own folder, the project's headers, the CUDA runtime's."""
    return (path.parent, kernel_folder() / "include", *nvrtc.include_folders())


def _closure(path: Path) -> dict[str, str]:
    """The text of a file and of the project's files that it includes, by name, in the order of inclusion."""
    texts: dict[str, str] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop(0)
        if current.name in texts or not current.is_file():  # not there: for other compilers, behind an #if
            continue
        texts[current.name] = current.read_text()
        for included in re.findall(r'^\s*#\s*include\s*"([^"]+)"', texts[current.name], re.MULTILINE):
            waiting += [current.parent / included, kernel_folder() / "include" / included]
    return texts


def _compile(source: _Source, folder: Path, name: str) -> Compiled:
    options = [*OPTIONS, f"--gpu-architecture=sm_{source.architecture}"]
    options += [f"--include-path={path}" for path in _include_folders(source.path)]
    options += [f"--define-macro={macro}={value}" for macro, value in source.defines]
    start = time.thread_time()
    try:
        result = nvrtc.compile_program(source.text, source.title, options)
    except ValueError as error:
        raise KernelError(f"{source.title} for sm_{source.architecture}: {error}") from None
    seconds = time.thread_time() - start
    if not result.cubin:
        raise KernelError(_explain(source, result.log))
    usage = _usage(result.log)
    kernels = {}
    for kernel, signature in elf.signatures(result.cubin).items():
        taken = usage.get(kernel)
        if taken is None:
            raise KernelError(f"{source.title}: ptxas does not say what {kernel} takes:\n{result.log}")
        kernels[kernel] = Kernel(**taken, max_threads=signature.max_threads, parameters=signature.parameters)
    path = folder / f"{name}.cubin"
    compiled = Compiled(source.path.name, source.defines, source.architecture, kernels, result.log, seconds, path)
    _write(folder, name, result.cubin, compiled)
    return compiled


# ---- the compiler's log

_ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '([^']+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_ACCOUNT = re.compile(
    r"ptxas (info)?\s*[:.]\s*(\d+ bytes (gmem|stack frame)|Compiling entry|Function properties|Used|Compile time)"
)
_ERROR = re.compile(r"^(\S+)\((\d+)\): (?:catastrophic )?error[^:]*: (.*)$", re.MULTILINE)
_PTXAS_ERROR = re.compile(r"^ptxas (?:error|fatal)\s*: (.*)$", re.MULTILINE)


def _usage(log: str) -> dict[str, dict[str, int]]:
    """What ptxas says of every kernel; spills and stack of functions that it calls are counted with it."""
    found: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            names = ("registers", "spill_stores", "spill_loads", "stack", "shared", "barriers")
            current = found.setdefault(entry[1], dict.fromkeys(names, 0))
        elif stack := _STACK.search(line):
            for name, bytes_ in zip(("stack", "spill_stores", "spill_loads"), stack.groups(), strict=True):
                current[name] += int(bytes_)
        elif used := _USED.search(line):
            current["registers"] = int(used[1])
            current["barriers"] = _number(r"used (\d+) barriers", line)
            current["shared"] = _number(r"(\d+) bytes smem", line)
    return found


def _number(pattern: str, line: str) -> int:
    match = re.search(pattern, line)
    return int(match[1]) if match else 0


def _explain(source: _Source, log: str) -> str:
    """File, kernel and line of the first error, and where to look."""
    where, what = source.title, f"the compiler stopped without an error:\n{log}"
    if error := _ERROR.search(log):
        where, what = f"{error[1]}, line {error[2]}", error[3]
        kernel = _kernel_at(source.text, int(error[2])) if error[1] == source.title else None
        where += f", kernel {kernel}" if kernel else ""
    elif error := _PTXAS_ERROR.search(log):
        what = error[1]
    macros = written(dict(source.defines))
    return f"{where}: {what} ({macros}, sm_{source.architecture}): mend the kernel, or the manifest's variant"


def _kernel_at(text: str, line: int) -> str | None:
    """The kernel whose definition begins last before a line."""
    before = "\n".join(text.splitlines()[:line])
    bounds = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
    names = re.findall(rf"__global__\s+void\s+{bounds}(\w+)\s*\(", before)
    return names[-1] if names else None


# ---- the cache


@functools.cache
def _cache_folder() -> Path:
    folder = cache.code_dir() / "cubins"
    with contextlib.suppress(OSError):  # a disk that is full or read-only by now: writing will say so
        folder.mkdir(mode=0o700, exist_ok=True)
    cache.remove_unused()
    return folder


def _load(folder: Path, name: str) -> Compiled | None:
    """What `_write` wrote, or None where it is not there or was damaged."""
    path, facts = folder / f"{name}.cubin", folder / f"{name}.json"
    try:
        stored = json.loads(facts.read_text())
        if hashlib.sha256(path.read_bytes()).hexdigest() != stored.pop("sha256"):
            return None
        kernels = {k: Kernel(**v | {"parameters": tuple(v["parameters"])}) for k, v in stored.pop("kernels").items()}
        defines = tuple((macro, value) for macro, value in stored.pop("defines"))
        found = Compiled(**stored, defines=defines, kernels=kernels, path=path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    cache.mark_used(path)
    cache.mark_used(facts)
    return found


def _write(folder: Path, name: str, cubin: bytes, compiled: Compiled) -> None:
    facts = asdict(compiled) | {"sha256": hashlib.sha256(cubin).hexdigest()}
    del facts["path"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".cubin", cubin), (".json", json.dumps(facts, indent=1).encode())):
            temporary = folder / f".{name}.{os.getpid()}{suffix}"
            temporary.write_bytes(content)
            temporary.replace(folder / f"{name}{suffix}")
    except OSError as error:
        raise OutputError(f"cannot write machine code to {folder}: {error.strerror}") from error


# ---- the command


@dataclass(frozen=True)
class Failure:
    """A variant that does not compile, and why."""

    message: str


def compile_matrix(
    variants: Iterable[tuple[str, Variant]], architectures: Sequence[str], jobs: int = 1
) -> list[tuple[str, Variant, dict[str, Compiled | Failure]]]:
    """Every variant for every one of these architectures that it lists."""

    def one(file: str, variant: Variant, architecture: str) -> Compiled | Failure:
        try:
            return compile_file(file, variant.defines.items(), architecture)
        except KernelError as error:
            return Failure(str(error))

    chosen = [(file, variant) for file, variant in variants]
    tasks = [(f, v, a) for f, v in chosen for a in architectures if a in v.architectures]
    with ThreadPoolExecutor(max(1, jobs)) as pool:  # NVRTC runs outside Python's lock
        results = iter(list(pool.map(lambda task: one(*task), tasks)))
    table = []
    for (file, variant), group in itertools.groupby(tasks, key=lambda task: task[:2]):
        table.append((file, variant, {task[2]: next(results) for task in group}))
    return table


def table(matrix: list[tuple[str, Variant, dict[str, Compiled | Failure]]], architectures: Sequence[str]) -> list[str]:
    """Lines of text: a kernel of a variant a line, a column an architecture."""
    lines = [f"{'kernel':44}{'shared':>8}{'seconds':>9}  " + "".join(f"{'sm_' + a:>9}" for a in architectures)]
    for file, variant, results in matrix:
        done = {a: r for a, r in results.items() if isinstance(r, Compiled)}
        lines.append(f"{file}, {written(variant.defines)}")
        names = dict.fromkeys(k for r in done.values() for k in r.kernels)
        for name in names:
            cells = [_cell(done[a].kernels.get(name)) if a in done else "-" for a in architectures]
            shared = max(r.kernels[name].shared for r in done.values() if name in r.kernels)
            seconds = sum(r.seconds for r in done.values()) / len(names)
            lines.append(f"  {name:42}{shared:8}{seconds:9.2f}  " + "".join(f"{c:>9}" for c in cells))
        lines += [f"  sm_{a}: {r.message}" for a, r in results.items() if isinstance(r, Failure)]
    return lines


def _cell(kernel: Kernel | None) -> str:
    if kernel is None:
        return "-"
    return f"{kernel.registers}+{kernel.spill_bytes}B" if kernel.spill_bytes else str(kernel.registers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m convbench.cuda.compile`: 0 if everything compiled."""
    about = "Compiles the CUDA kernels and prints registers a thread, '+' bytes spilled, for each architecture."
    parser = argparse.ArgumentParser(prog="python -m convbench.cuda.compile", description=about)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES, metavar="CC")
    parser.add_argument("--file", nargs="+", help="kernel files, such as winograd_f4 (default: all)")
    parser.add_argument("--output", type=Path, help="folder for the cubins")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time (default: cores)")
    options = parser.parse_args(arguments)
    try:
        wanted = {Path(name).stem for name in options.file or []}
        files = [file for file in kernel_files() if not wanted or Path(file).stem in wanted]
        if missing := wanted - {Path(file).stem for file in files}:
            raise KernelError(f"there is no kernel file {', '.join(sorted(missing))} in {kernel_folder()}")
        matrix = compile_matrix(variants_of(files), options.architectures, options.jobs)
        built = [r for _, _, results in matrix for r in results.values()]
        if options.output:
            for result in built:
                if isinstance(result, Compiled):
                    store(result, options.output)
    except ConvbenchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(table(matrix, options.architectures)) + "\n")
    failed = sum(isinstance(r, Failure) for r in built)
    sys.stdout.write(f"{len(built) - failed} compiled, {failed} failed\n")
    return KernelError.exit_code if failed else 0


if __name__ == "__main__":
    sys.exit(main())
