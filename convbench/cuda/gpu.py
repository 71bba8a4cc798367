"""What a program may depend on of the GPU that it is made for, and the GPUs that are known by name.

Figures are those of NVIDIA's CUDA C++ Programming Guide (limits by compute capability) and of the cards' datasheets.
Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """compute: (major, minor) of the compute capability. *_bytes: limits of one block, or of the card.

    features: suffix of the architecture whose own instructions may be used ("a" on sm_90: wgmma), or "".
    """

    name: str
    compute: tuple[int, int]
    multiprocessors: int
    l2_bytes: int
    shared_bytes: int  # of one block, after opting in
    memory_bytes: int
    features: str = ""

    @property
    def architecture(self) -> str:
        """What the compiler calls it, such as "sm_90a"."""
        return f"sm_{self.compute[0]}{self.compute[1]}{self.features}"

    def at_least(self, major: int, minor: int = 0) -> bool:
        """Whether the compute capability is this or a later one."""
        return self.compute >= (major, minor)


H200 = Gpu("NVIDIA H200", (9, 0), 132, 60 << 20, 227 << 10, 141 * 10**9, "a")
A100 = Gpu("NVIDIA A100", (8, 0), 108, 40 << 20, 163 << 10, 80 * 10**9)
T4 = Gpu("NVIDIA T4", (7, 5), 40, 4 << 20, 64 << 10, 16 * 10**9)
