"""Fuzzing catches what it must: accesses one element outside, crashes, wrong results; the simd rows pass."""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convbench import catalog
from convbench.descriptor import parse_descriptor
from convbench.registry import implementations
from convbench.testing import fuzz
from convbench.testing.guard_pages import PLACES, Fenced, FencedContext, FencedOperands
from tests.plugins.activate import add_distribution, site_path

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = re.findall(r'^    "(\w+)": lambda', (ROOT / "tests/plugins/fuzz/convbench_fuzz_mutants.py").read_text(), re.M)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    """Runs the command with the mutants visible; (exit code, output)."""
    site = tmp_path_factory.mktemp("site")
    add_distribution(site, "convbench-fuzz-mutants", {"fuzz_mutants": "convbench_fuzz_mutants"})
    env = os.environ | site_path(site, ROOT / "tests" / "plugins" / "fuzz", ROOT)

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "convbench.testing.fuzz", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name != "is_right"])
def test_a_mutant_is_caught(fuzzer, mutant):
    code, said = fuzzer("--algorithm", f"fuzzmutant_{mutant}", "--count", "3")
    memory = mutant.startswith(("reads", "writes_before", "crash"))  # writes after the end: seen in the first place
    assert code == (fuzz.EXIT_FAILED if memory else fuzz.EXIT_WRONG), said
    assert ("killed by SIGSEGV" in said) == memory
    if mutant.startswith("writes_past"):
        assert "outside: fuzzmutant" in said and "the nearest 0 bytes away (start)" in said
    if mutant == "is_wrong":
        assert "wrong: fuzzmutant_is_wrong: integer: 1 of" in said
    if mutant == "changes_a":
        assert "inputs_unchanged" in said


@pytest.mark.parametrize("mutant", ["reads_past_a", "is_inexact"])
def test_the_line_of_a_finding_repeats_it(fuzzer, mutant):
    code, said = fuzzer("--algorithm", f"fuzzmutant_{mutant}", "--count", "3", "--threads", "1")
    line = next(line for line in said.splitlines() if "python -m convbench.testing.fuzz" in line)
    again, repeated = fuzzer(*shlex.split(line)[3:])
    assert again == code
    assert "1 shapes run" in repeated and f"fuzzmutant_{mutant}: " in repeated


def test_what_is_right_passes_and_is_counted(fuzzer):
    code, said = fuzzer("--algorithm", "fuzzmutant_is_right", "--count", "25")
    assert code == 0
    assert "25 shapes run, 0 without any" in said and "0 wrong, 0 outside, 0 crashed" in said


def test_a_crash_costs_one_shape(fuzzer):
    code, said = fuzzer("--algorithm", "fuzzmutant_*s_*t", "--count", "4")  # reads and writes, out
    assert code == fuzz.EXIT_FAILED
    assert re.search(r"(\d+) shapes run", said)[1] == str(4 * len({*re.findall(r"^fuzzmutant_\w+", said, re.M)}))


def test_writes_into_what_is_left_of_a_page_are_seen():
    context = FencedContext(place="end")
    array = context.empty((5,), "float32")
    assert array.ctypes.data % 64 == 0 and context.disturbed() is None
    np.lib.stride_tricks.as_strided(array, (6,))[5] = 0
    assert "4 bytes were written after its end, the nearest 0 bytes away" in context.disturbed()
    operands = FencedOperands(((3,), (4,), (5,)), "float32", "start")
    operands.place(np.zeros(3, np.float32), np.zeros(4, np.float32), 1)
    assert operands.disturbed() is None
    np.lib.stride_tricks.as_strided(operands.arrays[2], (7,))[6] = 0
    assert "out: 4 bytes were written after its end, the nearest 4 bytes away" in operands.disturbed()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("count", [1, 1023, 1024, 1025])
def test_where_arrays_lie(place, count):
    fenced = Fenced((count,), np.float32, place)
    begin, end = fenced.array.ctypes.data, fenced.array.ctypes.data + 4 * count
    if place == "start":
        assert begin % 4096 == 0
    elif place == "end":
        assert begin % 64 == 0 and -end % 4096 < 64
    else:
        assert end % 4096 == 0
    fenced.array.fill(7)
    assert fenced.disturbed() is None and fenced.array.sum() == 7 * count


def test_problems_cover_what_goes_wrong():
    row = catalog.load().implementations["direct_numpy"]
    rng = random.Random(1)
    shapes = [fuzz.draw_problem(rng, row).shape for _ in range(1500)]
    seen = {
        "depthwise": any(s.groups == s.c == s.k > 1 for s in shapes),
        "groups": any(1 < s.groups < s.c for s in shapes),
        "padding beyond the filter": any(s.padding[0] >= s.extent[0] for s in shapes),
        "asymmetric": any(s.padding[0] != s.padding[1] or s.padding[2] != s.padding[3] for s in shapes),
        "one pixel": any(s.h == s.w == 1 for s in shapes),
        "1000 channels": any(1000 in (s.c, s.k) for s in shapes),
        "31 x 31": any(max(s.r, s.s) > 25 for s in shapes),
        "stride and dilation": any(max(s.stride) > 1 and max(s.dilation) > 1 for s in shapes),
        "3, 17, 33 channels": {3, 17, 33} <= {s.c for s in shapes} & {s.k for s in shapes},
    }
    assert all(seen.values()), seen


def test_a_case_is_the_same_every_time():
    row = catalog.load().implementations["winograd_f4_numpy"]
    first, refused = fuzz.draw_case(row, seed=3, index=5, threads=2)
    assert (first, refused) == fuzz.draw_case(row, seed=3, index=5, threads=2)
    assert first != fuzz.draw_case(row, seed=3, index=6, threads=2)[0]
    assert row.why_not(parse_descriptor(first.problem).problem, first.weights) is None


def test_the_simd_rows_pass():
    catalog.load()
    rows = [name for name in implementations() if name.endswith("_simd")]
    assert rows
    command = [sys.executable, "-m", "convbench.testing.fuzz", "--count", str(-(-100 // len(rows))), "--seed", "11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
