"""Prints what a kernel became: the IR and the assembly of its hot loop, or all of either.

    python -m convbench.simd.show two_rows [--unit avx2] [--all]
    python -m convbench.simd.show 6x4              the block of gemm.brgemm with 6 rows and 4 registers of columns
"""

from __future__ import annotations

import argparse
import re
import sys

from convbench.simd.compiler import Kernel
from convbench.simd.target import Target, host, named

_ARITHMETIC = re.compile(r"fma|fmul|mulps|fmla")


def innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions from each label to a jump back to it, where no other label lies between."""
    lines, found, start, label = assembly.splitlines(), [], 0, ""
    for number, line in enumerate(lines):
        match = re.match(r"(\.?L\w+):", line)
        if match:
            start, label = number, match[1]
        elif label and re.match(rf"\s+(j\w+|b\S*|cbn?z\s+\w+,|tbn?z\s.*,)\s+{re.escape(label)}\b", line):
            found.append(lines[start : number + 1])
    return found


def hot_loop(assembly: str) -> str:
    """The innermost loop with the most multiplications; empty if no loop has any."""
    loops = ["\n".join(loop) for loop in innermost_loops(assembly)]
    return max(loops, key=lambda text: len(_ARITHMETIC.findall(text)), default="")


def hot_block(ir: str) -> str:
    """The same for LLVM IR: the basic block that jumps to itself and multiplies most."""
    blocks = re.findall(r"^(\S+:\n(?:  .*\n)+)", ir, re.M)
    own = [b for b in blocks if f'label %"{b.splitlines()[0][:-1]}"' in b]
    return max(own, key=lambda text: len(_ARITHMETIC.findall(text)), default="").rstrip()


def find(name: str, unit: Target) -> Kernel:
    """two_rows, or ROWSxVECTORS of brgemm."""
    from convbench.simd.kernels.example import two_rows
    from convbench.simd.kernels.gemm import Shape, brgemm

    size = re.fullmatch(r"(\d+)x(\d+)", name)
    if size:
        rows, vectors = int(size[1]), int(size[2])
        return brgemm(unit, Shape(rows, vectors, 2 if vectors > 2 else 1))
    return two_rows(unit)


def main() -> int:
    """Command line of `python -m convbench.simd.show`."""
    parser = argparse.ArgumentParser(prog="python -m convbench.simd.show", description="Prints what a kernel became.")
    parser.add_argument("kernel", help="two_rows, or a block of brgemm such as 6x4", type=_known)
    parser.add_argument("--unit", help="avx512, avx2, neon or generic (default: this machine's)")
    parser.add_argument("--all", action="store_true", help="all of it, not the hot loop alone")
    options = parser.parse_args()
    built = find(options.kernel, named(options.unit) if options.unit else host())
    ir, assembly = built.ir, built.assembly()
    if not options.all:
        ir, assembly = hot_block(ir), hot_loop(assembly)
    sys.stdout.write(f"{ir}\n\n{assembly}\n")
    return 0


def _known(name: str) -> str:
    if name != "two_rows" and not re.fullmatch(r"[1-9]\d?x[1-4]", name):
        raise argparse.ArgumentTypeError(f"{name!r} is neither two_rows nor ROWSxVECTORS, such as 6x4")
    return name


if __name__ == "__main__":
    sys.exit(main())
