"""The fingerprint of where something was measured: machine, cores, memory, libraries, convbench's own build.

Imports no array library: versions come from the metadata of installed distributions. A fact that cannot be had is
"unknown" or None, never a guess. Linux is read through /proc and /sys; elsewhere less is known.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convbench import __version__

PACKAGE = Path(__file__).resolve().parent
LIBRARIES = (
    "numpy", "scipy", "pyfftw", "numba", "llvmlite", "onednn-cpu-gomp", "mkl", "torch", "threadpoolctl",
)  # fmt: skip
#: CPU features that decide which kernels a library picks.
FLAGS = (
    "sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "sve",
)  # fmt: skip
#: As LIBRARIES, where a GPU is used.
GPU_LIBRARIES = (
    "cupy-cuda13x", "cupy-cuda12x", "cupy", "nvidia-cudnn-frontend", "nvidia-cudnn-cu13", "nvidia-cublas",
    "nvidia-cufft", "nvidia-cuda-nvrtc", "nvidia-ml-py",
)  # fmt: skip
#: Facts about a GPU that env_id hashes, where one is used.
GPU_IDENTITY = (
    "name", "compute_capability", "memory_bytes", "driver", "cuda_driver", "cuda_runtime", "mig", "versions",
)  # fmt: skip
#: Facts about the machine that env_id hashes, beside all library versions: what two starts on one machine have in
#: common, and what decides how fast things are.
IDENTITY = ("architecture", "cpu_model", "flags", "cores", "memory_gib", "system")
BUSY_LOAD_PER_CORE = 0.2


def collect(threads: int | None = None, gpu: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All facts as plain JSON values: machine, versions, load, thread_variables, convbench, gpu, warnings, env_id.

    threads: what BLAS will be given, for the warnings. gpu: facts that a child process found out (`describe.py`) about
    the GPU that is used; left out where none is, and then env_id does not depend on there being one.
    """
    facts: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "load": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "thread_variables": {k: os.environ[k] for k in thread_env(1) if k in os.environ},
        "convbench": build_id(),
        "collected_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if gpu is not None:
        facts["gpu"] = {**gpu, "versions": gpu_versions()}
    facts["warnings"] = warnings_about(facts, threads)
    facts["env_id"] = env_id(facts)
    return facts


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, caches, clock governor, hypervisor, kernel."""
    info, memory = _cpuinfo(), memory_bytes()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "architecture": platform.machine(),
        "cpu_model": info.get("model name") or platform.processor() or "unknown",
        "cpu_family": ", ".join(f"{k} {info[k]}" for k in ("cpu family", "model", "stepping") if k in info),
        "flags": [f for f in FLAGS if f in flags],
        "cores": allowed_cores(),
        "cores_online": os.cpu_count(),
        "affinity": _affinity(),
        "memory_bytes": memory,
        "memory_gib": None if memory is None else round(memory / 2**30),
        "caches": _caches(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "hypervisor": _hypervisor(flags),
        "transparent_huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled") or "unknown",
        "system": platform.system(),
        "kernel": platform.release(),
    }


def env_id(facts: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits: equal for two starts on one machine with the same libraries (IDENTITY)."""
    identity = {key: facts["machine"].get(key) for key in IDENTITY}
    known = [identity, facts["versions"]]
    if "gpu" in facts:
        known.append({key: facts["gpu"].get(key) for key in GPU_IDENTITY})
    text = json.dumps(known, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def allowed_cores() -> int:
    """Cores that this process may run on (its affinity), at least 1; cgroup quotas count, rounded down."""
    cores = len(_affinity()) or os.cpu_count() or 1
    quota = _cgroup_cores()
    return max(1, cores if quota is None else min(cores, int(quota)))


def memory_bytes() -> int | None:
    """Memory that this process may use: the machine's, or its control group's where that is less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit and limit.isdigit() else total


def thread_env(threads: int) -> dict[str, str]:
    """Variables that must stand before NumPy loads: as many threads everywhere, short spinning, no page faults.

    Several pools share one process (OpenBLAS, GNU and Intel OpenMP, Numba). Idle threads of one that spin steal
    cores from the next, so they do it for half a millisecond at most: long enough to be there for the next parallel
    region of the same pool, over long before another pool has its turn (`pool_pause_s` of the sampler). Without any
    spinning a region costs 50 to 100 us more, oneDNN's as well as ours (a 3x3 depthwise layer 0.17 ms in place of
    0.06 ms), and the scheduler may leave both threads of a short sample on one core: twice the time (2 cores of a
    Xeon with AVX-512, 2026-11-22). The allocator keeps what it was given: a temporary that a library allocates at each
    call costs page faults only once.
    """
    count = str(threads)
    pools = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {
        **dict.fromkeys(pools, count),
        "OMP_DYNAMIC": "FALSE",
        "MKL_DYNAMIC": "FALSE",
        "OPENBLAS_THREAD_TIMEOUT": "4",  # log2 of the cycles that an idle OpenBLAS thread spins
        "KMP_BLOCKTIME": "1",  # ms that an idle Intel OpenMP thread spins
        "GOMP_SPINCOUNT": "10000",  # pauses of some 45 ns that an idle thread of GNU OpenMP spins
        "MALLOC_MMAP_MAX_": "0",  # large blocks come from the heap too ...
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),  # ... which is never given back ...
        "MALLOC_TOP_PAD_": str(64 << 20),  # ... and grows in large steps
    }


def versions() -> dict[str, str]:
    """Version of Python and of each installed library that decides results or speed (LIBRARIES)."""
    found = {name: _installed(name) for name in LIBRARIES}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"python": python, **{name: version for name, version in found.items() if version is not None}}


def gpu_versions() -> dict[str, str]:
    """Version of each installed library that decides results or speed on a GPU (GPU_LIBRARIES)."""
    found = {name: _installed(name) for name in GPU_LIBRARIES}
    return {name: version for name, version in found.items() if version is not None}


def build_id() -> dict[str, Any]:
    """convbench's own build: {"version", "sha", "dirty"}; outside a git checkout sha is "unknown", dirty None.

    Only changes to what runs count as dirty: the package, the kernels and the suites.
    """
    build: dict[str, Any] = {"version": __version__, "sha": "unknown", "dirty": None}
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return build
    sha = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--", "convbench", "kernels", "suites", "pyproject.toml")
    if sha:
        build["sha"] = sha.strip()
    if status is not None:
        build["dirty"] = bool(status.strip())
    return build


def warnings_about(facts: Mapping[str, Any], threads: int | None = None) -> list[str]:
    """Sentences on what may spoil a measurement here. Nothing aborts because of them."""
    found = []
    machine_, load = facts["machine"], facts.get("load")
    cores, governor = machine_["cores"], machine_.get("governor", "unknown")
    if load and load[0] > BUSY_LOAD_PER_CORE * cores + 0.5:
        found.append(f"load is {load[0]} on {cores} cores: something else is running; timings will scatter")
    if governor not in ("performance", "unknown"):
        found.append(f"the CPU governor is {governor}, not performance: clock speeds will vary")
    if threads is not None and threads > cores:
        found.append(f"{threads} BLAS threads on {cores} allowed cores: they will wait for each other")
    if machine_.get("hypervisor") not in (None, "none", "unknown"):
        found.append(f"a virtual machine ({machine_['hypervisor']}): neighbours may take cycles unseen")
    memory = machine_.get("memory_bytes")
    if memory is not None and memory < 4 << 30:
        found.append(f"only {memory / 2**30:.1f} GiB of memory: large problems will be left out")
    return [*found, *_gpu_warnings(facts.get("gpu") or {})]


def _gpu_warnings(gpu: Mapping[str, Any]) -> list[str]:
    found = []
    if gpu.get("other_processes"):
        found.append(f"{gpu['other_processes']} other process(es) use the GPU: timings will scatter")
    if gpu.get("mig"):
        found.append("the GPU is divided (MIG): neighbours share its power and memory, energy is that of all parts")
    if gpu and gpu.get("nvml") != "answers":
        found.append(f"clocks and throttling of the GPU are not known: {gpu.get('nvml')}")
    return found


def measure_peaks(threads: int = 1, seconds: float = 1.0, size: int = 1536) -> dict[str, float]:
    """{"gflops": best rate of a square float32 matrix product in NumPy's BLAS}: the sgemm peak.

    Not the raw FMA peak of the cores, which lies above it (OpenBLAS reaches about 80 %). BLAS must already be
    set to `threads`; it is limited to them here, for the time of the measurement.
    """
    import numpy as np
    import threadpoolctl

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty_like(a)
    best_s = float("inf")
    with threadpoolctl.threadpool_limits(threads, user_api="blas"):
        np.matmul(a, b, out=out)
        stop = time.perf_counter() + seconds
        while True:
            start = time.perf_counter()
            np.matmul(a, b, out=out)
            end = time.perf_counter()
            best_s = min(best_s, end - start)
            if end > stop:
                return {"gflops": 2 * size**3 / best_s / 1e9}


# ---- reading the system


def _affinity() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _cgroup_cores() -> float | None:
    """The processor quota of the control group in cores, or None."""
    text = (_read("/sys/fs/cgroup/cpu.max") or "").split()
    if len(text) == 2 and text[0].isdigit() and text[1].isdigit() and int(text[1]):
        return int(text[0]) / int(text[1])
    return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    block = (_read("/proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if value}


def _caches() -> dict[str, str]:
    """Size of each cache that core 0 sees, by level and kind: {"L1d": "48 KiB", "L2": "2 MiB" ...}."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)K", size or "")
        if level and match:
            kib = int(match[1])
            suffix = {"Data": "d", "Instruction": "i"}.get(kind or "", "")
            found[f"L{level}{suffix}"] = f"{kib} KiB" if kib % 1024 else f"{kib // 1024} MiB"
    return found


def _hypervisor(flags: set[str]) -> str:
    """Who runs this machine, "none" on bare metal, "unknown" where nothing tells."""
    if sys.platform != "linux":
        return "unknown"
    vendor = _read("/sys/class/dmi/id/sys_vendor") or ""
    if "hypervisor" in flags:
        return vendor or _read("/sys/hypervisor/type") or "unnamed"
    return "none" if flags else "unknown"


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), "-c", f"safe.directory={root}", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, env=environment, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
