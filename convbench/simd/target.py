"""The vector unit that kernels are generated for: its width, its registers, whether masks cost nothing.

`host()` describes this machine; `named(...)` a narrower unit that the same machine can run, which is how the
tests cover AVX2 on an AVX-512 host. The environment variable CONVBENCH_SIMD=avx2 makes `host()` the narrower unit,
for a whole process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from dataclasses import dataclass

import llvmlite.binding as llvm

from convbench.errors import Unavailable

#: What each unit needs, and what has to be switched off so that LLVM uses nothing wider.
_NEEDS = {"avx512": ("avx512f", "avx512dq", "avx512vl", "avx512bw"), "avx2": ("avx2", "fma"), "neon": ("neon",)}
_BITS = {"avx512": 512, "avx2": 256, "neon": 128, "generic": 128}
#: Features that make LLVM take AVX (256 bits) although AVX itself is switched off, because they imply it.
_IMPLY_AVX = ("avx", "fma", "f16c", "xop", "vaes", "vpclmulqdq", "sha512", "sm3", "sm4")
_REGISTERS = {"avx512": 32, "avx2": 16, "neon": 32, "generic": 16}
#: Linux, x86-64: the number of arch_prctl, its request for the right to a state, and the state of AMX's tiles.
_ARCH_PRCTL, _REQUEST, _TILE_STATE = 158, 0x1023, 18


@dataclass(frozen=True)
class Target:
    """One vector unit. bits: width of a register; registers: how many; cpu, features: as LLVM names them."""

    name: str
    bits: int
    registers: int
    cpu: str
    features: str

    @property
    def lanes(self) -> int:
        """float32 values in a register."""
        return self.bits // 32

    @property
    def free_masks(self) -> bool:
        """Whether masked loads and stores cost as little as plain ones."""
        return self.name == "avx512"

    def has(self, feature: str) -> bool:
        """Whether an instruction-set extension (LLVM's name, such as avx512vnni) may be used."""
        return f"+{feature}" in self.features.split(",")

    def tiles(self, feature: str) -> bool:
        """Whether an extension of AMX (amx-int8, amx-bf16) may be used: the unit has it and the system lets us."""
        return self.has("amx-tile") and self.has(feature) and _tiles_granted()


@functools.cache
def host() -> Target:
    """The widest unit of this machine, or the one that CONVBENCH_SIMD names. Raises Unavailable as `named` does."""
    forced = os.environ.get("CONVBENCH_SIMD")
    if forced:
        return named(forced)
    return next(named(name) for name in _BITS if runs_here(name))


def runs_here(name: str) -> bool:
    """Whether this machine can run kernels made for avx512, avx2, neon or generic."""
    have = _host_features()
    return all(have.get(feature) for feature in _NEEDS.get(name, ()))


@functools.cache
def named(name: str) -> Target:
    """The unit avx512, avx2, neon or generic of this machine. Raises Unavailable where it has none."""
    if name not in _BITS:
        raise Unavailable(f"no vector unit is called {name!r}: choose one of {', '.join(_BITS)}")
    if not runs_here(name):
        raise Unavailable(f"this machine has no {name}: it lacks one of {', '.join(_NEEDS[name])}")
    features = dict(_host_features())
    if name in ("avx2", "generic"):
        features = {f: on and not f.startswith(("avx512", "amx", "avx10")) for f, on in features.items()}
        features["evex512"] = False
    if name == "generic":
        features = {f: on and not f.startswith(_IMPLY_AVX) for f, on in features.items()}
    text = ",".join(f"{'+' if on else '-'}{feature}" for feature, on in sorted(features.items()))
    return Target(name, _BITS[name], _REGISTERS[name], llvm.get_host_cpu_name(), text)


@functools.cache
def _tiles_granted() -> bool:
    """Asks Linux, once, for the right to use AMX's tiles: 8 KiB that each thread saves, so a process has to ask."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_STATE) == 0


@functools.cache
def _host_features() -> dict[str, bool]:
    features = {str(f): bool(on) for f, on in llvm.get_host_cpu_features().items()}
    if platform.machine() in ("aarch64", "arm64"):
        features["neon"] = True  # part of every 64-bit ARM; not every system lists it
    return features
