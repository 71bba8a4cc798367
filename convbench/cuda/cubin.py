"""What a cubin (an ELF file with GPU machine code) says of its kernels: parameters, launch bounds, instructions.

The attributes of .nv.info sections are not documented by NVIDIA; those read here are the ones that `cuobjdump
--dump-elf` prints by name: EIATTR_KPARAM_INFO and EIATTR_MAX_THREADS. Tests compile kernels of known parameters.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convbench.cuda import nvrtc

_INFO = ".nv.info."
_MAX_THREADS, _KPARAM_INFO = 0x05, 0x17
_SIZED = 4  # format of an attribute that is followed by as many bytes as its value says


@dataclass(frozen=True)
class Signature:
    """parameters: size of each in bytes, in order. max_threads: of a block (__launch_bounds__), 0 if not declared."""

    parameters: tuple[int, ...]
    max_threads: int


def signatures(cubin: bytes) -> dict[str, Signature]:
    """Every kernel in a cubin, sorted by name. Raises ValueError for what is no 64-bit ELF file."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a cubin: no 64-bit ELF file")
    found = {}
    for name, content in _sections(cubin):
        if not name.startswith(_INFO):
            continue
        sizes, threads = {}, 0
        for attribute, data in _attributes(content):
            if attribute == _KPARAM_INFO:
                _, ordinal, _, packed = struct.unpack("<IHHI", data)
                sizes[ordinal] = packed >> 18
            elif attribute == _MAX_THREADS:
                x, y, z = struct.unpack("<III", data)
                threads = x * y * z
        found[name.removeprefix(_INFO)] = Signature(tuple(sizes[i] for i in sorted(sizes)), threads)
    return dict(sorted(found.items()))


def disassemble(cubin: bytes) -> str:
    """Machine code as text, by nvdisasm. Raises Unavailable where that is missing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        command = [str(nvrtc.disassembler()), "--print-code", "--no-dataflow", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"nvdisasm cannot read the cubin: {done.stderr.strip()}")
    return done.stdout


def opcodes(cubin: bytes) -> dict[str, dict[str, int]]:
    """For every kernel how often each instruction stands in its code, such as {"HMMA.16816.F32": 64}."""
    counted: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in disassemble(cubin).splitlines():
        if section := _TEXT_SECTION.match(line):
            current = counted.setdefault(section[1], {})
        elif instruction := _INSTRUCTION.match(line):
            current[instruction[1]] = current.get(instruction[1], 0) + 1
    return counted


_TEXT_SECTION = re.compile(r"\s*\.section\s+\.text\.([^,\s]+)")
#: An address as a comment, perhaps a brace or a predicate such as @!P0 or @!UP1, then the instruction.
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+\{?\s*(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)")


def _sections(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each section that has content in the file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(count)]
    strings = headers[names][4]
    for name, kind, _, _, offset, size in headers:
        if kind == 8:  # SHT_NOBITS
            continue
        start = strings + name
        yield elf[start : elf.index(b"\0", start)].decode(), elf[offset : offset + size]


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a .nv.info section that carry data."""
    at = 0
    while at + 4 <= len(content):
        form, attribute, value = struct.unpack_from("<BBH", content, at)
        at += 4
        if form == _SIZED:
            yield attribute, content[at : at + value]
            at += value
