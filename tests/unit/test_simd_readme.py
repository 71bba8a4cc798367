"""What convbench/simd/README.md shows is what the code gives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from convbench.simd import show
from convbench.simd.kernels.example import two_rows
from convbench.simd.target import Target, host, named, runs_here
from tests.simd_helpers import SENTINEL, Arena, address, integers, target

__all__ = ["target"]

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "convbench" / "simd" / "README.md").read_text()
SNIPPETS = {
    language: [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S) if kind == language]
    for language in ("python", "llvm", "asm", "")
}


def test_the_kernel_is_the_one_that_is_shown():
    source = (ROOT / "convbench" / "simd" / "kernels" / "example.py").read_text()
    assert SNIPPETS["python"][0] in source


def test_the_ir_is_what_the_kernel_writes():
    """IR depends on the width alone, so this holds on every machine."""
    somewhere = Target("avx2", 256, 16, "haswell", "")
    written = show.hot_block(two_rows.__wrapped__(somewhere).finish())
    assert written.split() == SNIPPETS["llvm"][0].split()


def test_the_assembly_is_what_llvm_makes_of_it():
    """Registers and order are LLVM's choice; the instructions that count are not."""
    shown = SNIPPETS["asm"][0]
    wanted = {"vmovups": 1, "vbroadcastss": 2, "vfmadd": 2, "rsp": 0}
    assert {word: shown.count(word) for word in wanted} == wanted
    if runs_here("avx2"):
        real = show.hot_loop(two_rows(named("avx2")).assembly())
        assert {word: real.count(word) for word in wanted} == wanted


def test_the_python_of_the_readme_runs(tmp_path):
    """As a file: Numba keeps tasks on disk, and wants to know where they come from."""
    program = tmp_path / "readme_example.py"
    program.write_text("".join(SNIPPETS["python"][1:]) + "\nprint('ran to its end')\n")
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "ran to its end\n", done.stderr


def test_the_commands_of_the_readme_work():
    commands = [line for block in SNIPPETS[""] for line in block.splitlines() if "simd.show" in line]
    inline = re.findall(r"`(python -m convbench\.simd\.show [^`]+)`", TEXT)
    assert commands and inline
    for command in {*commands, *inline}:
        words = command.split()[1:]
        if "--unit" in words and not runs_here(words[words.index("--unit") + 1]):
            words = words[: words.index("--unit")]
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "phi" in done.stdout


def test_every_file_it_names_exists():
    folder = ROOT / "convbench" / "simd"
    for name in re.findall(r"^\| `([\w/.]+)` \|", TEXT, re.M):
        assert (folder / name).exists(), name
    for name in re.findall(r"`((?:tests|benchmarks|kernels)/[\w/]+\.py)`", TEXT):
        assert (ROOT / name).exists() or (folder / name).exists(), name


def test_the_example_computes(target):
    kernel = two_rows(target)
    rng, c_all = np.random.default_rng(0), Arena(200)
    a_all, b_all = Arena(200), Arena(400)
    for depth in (0, 1, 2, 7):
        a = a_all.holding(integers(rng, 2, depth))
        b = b_all.holding(integers(rng, depth, target.lanes))
        for columns in range(1, target.lanes + 1):
            c_all.all.fill(SENTINEL)
            c = c_all.cut(2, columns)
            kernel(address(a), depth, address(b), target.lanes, depth, address(c), columns, columns)
            assert np.array_equal(c, a @ b[:, :columns])
            assert np.count_nonzero(c_all.all != SENTINEL) == 2 * columns


def test_an_unknown_kernel_is_named():
    command = [sys.executable, "-m", "convbench.simd.show", "7by3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "'7by3' is neither two_rows nor ROWSxVECTORS, such as 6x4" in done.stderr


def test_all_of_a_kernel_can_be_shown():
    command = [sys.executable, "-m", "convbench.simd.show", "2x1", "--all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "define void" in done.stdout and host().name in done.stdout
