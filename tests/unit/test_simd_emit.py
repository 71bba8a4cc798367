"""The emitter: loops, branches and masks, on every vector unit that this machine can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convbench.errors import Unavailable
from convbench.simd import target as units
from convbench.simd.compiler import Kernel
from convbench.simd.emit import I64, Emitter
from tests.simd_helpers import SENTINEL, UNITS, Arena, address, target

__all__ = ["target"]


def run(e: Emitter, *arguments: int) -> None:
    Kernel(e)(*arguments)


def put_int(e: Emitter, value, place) -> None:
    """Stores one int64 at the address in an argument."""
    e.b.store(value, e.pointer(place, I64), align=8)


@pytest.mark.parametrize("count", [-3, 0, 1, 2, 7])
@pytest.mark.parametrize("step", [1, 3])
def test_a_loop_runs_as_often_as_range(target, count, step):
    e = Emitter(target, "t_loop", ("count", "out"))
    with e.loop(e.args[0], [e.i(0), e.i(100)], step=step) as turn:
        turns, indices = turn.carried
        turn.result = [e.add(turns, 1), e.add(indices, turn.index)]
    total = e.add(e.mul(turn.result[0], 1000), turn.result[1])
    put_int(e, total, e.args[1])
    out = np.zeros(1, np.int64)
    run(e, count, address(out))
    wanted = list(range(0, count, step))
    assert out[0] == 1000 * len(wanted) + 100 + sum(wanted)


def test_carried_values_change_places(target):
    """Fibonacci: both values of a turn are used by the next one, so phis must not see each other's new values."""
    e = Emitter(target, "t_fibonacci", ("count", "out"))
    with e.loop(e.args[0], [e.i(0), e.i(1)]) as turn:
        a, b = turn.carried
        turn.result = [b, e.add(a, b)]
    put_int(e, turn.result[0], e.args[1])
    out = np.zeros(1, np.int64)
    built = Kernel(e)
    for count, wanted in ((0, 0), (1, 1), (2, 1), (10, 55), (50, 12586269025)):
        built(count, address(out))
        assert out[0] == wanted


def test_loops_nest_and_hold_branches(target):
    """sum over i < n, j < m of (i if i < j else 2 j): a branch within a loop within a loop."""
    e = Emitter(target, "t_nested", ("n", "m", "out"))
    with e.loop(e.args[0], [e.i(0)], name="outer") as i:
        with e.loop(e.args[1], list(i.carried), name="inner") as j:
            (value,) = e.choose(e.less(i.index, j.index), lambda: [e.add(i.index)], lambda: [e.mul(j.index, 2)])
            j.result = [e.add(j.carried[0], value)]
        i.result = j.result
    put_int(e, i.result[0], e.args[2])
    out = np.zeros(1, np.int64)
    built = Kernel(e)
    for n in range(5):
        for m in range(5):
            built(n, m, address(out))
            assert out[0] == sum(i if i < j else 2 * j for i in range(n) for j in range(m))


def test_cases_take_one_block_or_none(target):
    e = Emitter(target, "t_cases", ("key", "out"))
    with e.cases(e.args[0], [2, 3, 5]) as each:
        for key in each:
            put_int(e, e.i(10 * key), e.args[1])
    built, out = Kernel(e), np.zeros(1, np.int64)
    for key, wanted in ((2, 20), (3, 30), (5, 50), (0, 7), (4, 7), (-2, 7), (2**40, 7)):
        out[0] = 7
        built(key, address(out))
        assert out[0] == wanted


def test_choose_without_values(target):
    e = Emitter(target, "t_choose", ("key", "out"))
    e.choose(
        e.less(e.args[0], 0),
        lambda: put_int(e, e.i(-1), e.args[1]) or [],
        lambda: put_int(e, e.minimum(e.args[0], 4), e.args[1]) or [],
    )
    built, out = Kernel(e), np.zeros(1, np.int64)
    for key, wanted in ((-5, -1), (0, 0), (3, 3), (9, 4)):
        built(key, address(out))
        assert out[0] == wanted


def copy_kernel(target, masked: bool = True) -> Kernel:
    """copy(count, from, to): one vector, under a mask; one masked-off lane of the result is seen to be 0."""
    e = Emitter(target, f"t_copy{masked:d}", ("count", "from_", "to", "whole"))
    count, source, to, whole = e.args
    mask = e.mask(count) if masked else None
    value = e.load(e.pointer(source), mask)
    e.store(value, e.pointer(to), mask)
    e.store(value, e.pointer(whole))
    return Kernel(e)


@pytest.mark.parametrize("place", ["flush", "start"])
def test_masks_of_every_count_touch_their_lanes_alone(target, place):
    built, lanes = copy_kernel(target), target.lanes
    source, to, whole = (Arena(4096, place=place) for _ in range(3))
    for count in (*range(-2, lanes + 3), 2**31, 2**31 + 1, 2**40, -(2**31)):
        exist = min(max(count, 0), lanes)
        values = np.arange(1, exist + 1, dtype=np.float32)
        to.all.fill(SENTINEL)
        read = source.holding(values)
        written = to.cut(exist)
        seen = whole.cut(lanes)
        built(count, address(read), address(written), address(seen))
        assert np.array_equal(written, values)
        assert np.count_nonzero(to.all != SENTINEL) == exist
        assert np.array_equal(seen, np.append(values, np.zeros(lanes - exist)))


def test_an_empty_mask_reads_and_writes_nothing_anywhere(target):
    """Even at an address that no page belongs to: transposes use it for rows that do not exist."""
    seen = np.zeros(target.lanes, np.float32)
    copy_kernel(target)(0, 64, 64, address(seen))
    assert not seen.any()


@pytest.mark.parametrize("unit", UNITS)
def test_a_plain_load_past_the_end_is_fatal(unit):
    """Proof that the pages of the other tests are alive."""
    program = (
        "import numpy as np\n"
        "from convbench.simd import target as units\n"
        "from tests.simd_helpers import Arena, address\n"
        "from tests.unit.test_simd_emit import copy_kernel\n"
        f"unit = units.named({unit!r})\n"
        "out = np.zeros(64, np.float32)\n"
        "end = Arena(4096).cut(unit.lanes - 1)\n"
        "copy_kernel(unit, masked=False)(0, address(end), address(out), address(out))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, timeout=60)
    assert done.returncode == -11, done.stderr.decode()


def test_arithmetic(target):
    """(x y + z, x + y, x - y, x y, -x, 2.5, x[1] everywhere), against NumPy, from addresses of no alignment."""
    e = Emitter(target, "t_arithmetic", ("x", "y", "z", "out"))
    x, y, z = (e.load(e.pointer(a)) for a in e.args[:3])
    one = e.broadcast(e.at(e.pointer(e.args[0]), 1))
    results = [e.fma(x, y, z), e.fadd(x, y), e.fsub(x, y), e.fmul(x, y), e.fneg(x), e.splat_constant(2.5), one]
    for i, value in enumerate(results):
        e.store(value, e.at(e.pointer(e.args[3]), i * e.lanes))
    rng, lanes = np.random.default_rng(0), target.lanes
    x, y, z = (rng.integers(-99, 99, lanes + 1).astype(np.float32)[1:] for _ in range(3))
    out = np.zeros((len(results), lanes), np.float32)
    run(e, *(address(array) for array in (x, y, z, out)))
    wanted = [x * y + z, x + y, x - y, x * y, -x, np.full(lanes, 2.5), np.full(lanes, x[1])]
    assert np.array_equal(out, np.array(wanted, np.float32))


def test_units_are_described_as_they_are():
    assert units.host().name == UNITS[0]
    lanes = {"avx512": 16, "avx2": 8, "neon": 4, "generic": 4}
    assert {name: units.named(name).lanes for name in UNITS} == {name: lanes[name] for name in UNITS}
    with pytest.raises(Unavailable, match="no vector unit is called 'avx1024': choose one of avx512"):
        units.named("avx1024")
    missing = next((name for name in ("neon", "avx512") if name not in UNITS), None)
    if missing:
        with pytest.raises(Unavailable, match=f"this machine has no {missing}: it lacks one of"):
            units.named(missing)


@pytest.mark.parametrize("unit", UNITS)
def test_the_environment_forces_a_unit(unit, monkeypatch):
    monkeypatch.setenv("CONVBENCH_SIMD", unit)
    assert units.host.__wrapped__().name == unit


def test_the_environment_cannot_force_what_there_is_not(monkeypatch):
    monkeypatch.setenv("CONVBENCH_SIMD", "sse9")
    with pytest.raises(Unavailable, match="no vector unit is called 'sse9'"):
        units.host.__wrapped__()
