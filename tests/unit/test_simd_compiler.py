"""Kernels on disk, whatever happens to the disk; and what the machine code looks like."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from convbench.simd import cache, compiler
from convbench.simd.compiler import Kernel, kernel
from convbench.simd.emit import Emitter
from convbench.simd.kernels.transform import transform2d
from convbench.simd.kernels.transpose import transpose
from convbench.simd.show import innermost_loops
from convbench.simd.target import named, runs_here
from tests.simd_helpers import UNITS, address, panel_kernel, target

__all__ = ["target"]


def doubled(unit: str = UNITS[-1], factor: float = 2.0) -> Kernel:
    """A small kernel, compiled anew at each call: one vector times a constant."""
    e = Emitter(named(unit), "t_doubled", ("x",))
    place = e.pointer(e.args[0])
    e.store(e.fmul(e.load(place), e.splat_constant(factor)), place)
    return Kernel(e)


def works(built: Kernel, factor: float = 2.0) -> bool:
    x = np.arange(64, dtype=np.float32)
    built(address(x))
    return bool(np.array_equal(x[: built.target.lanes], factor * np.arange(built.target.lanes)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(cache, "code_dir", lambda: tmp_path)
    return tmp_path


def objects(folder: Path) -> list[Path]:
    return sorted((folder / "kernels").glob("*"))


# ---- the cache of kernels


def test_the_second_time_it_comes_from_disk(folder):
    first, second = doubled(), doubled()
    assert (first.from_disk, second.from_disk) == (False, True)
    assert works(first) and works(second)
    assert [path.suffix for path in objects(folder)] == [".o"]


def test_another_ir_unit_or_version_is_another_kernel(folder, monkeypatch):
    built = [doubled(), doubled(factor=3.0), *(doubled(unit) for unit in UNITS[:-1])]
    assert len({k.key for k in built}) == len(built) and not any(k.from_disk for k in built)
    assert works(built[1], 3.0)
    monkeypatch.setattr(compiler.llvmlite, "__version__", "0.0.0")
    assert not doubled().from_disk


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:20],
        lambda text: text[:-1],
        lambda text: text[:200] + bytes([text[200] ^ 1]) + text[201:],
        lambda text: bytes(32) + text[32:],
        lambda text: os.urandom(len(text)),
    ],
    ids=["empty", "within the digest", "truncated", "one bit", "wrong digest", "noise"],
)
def test_a_damaged_object_is_compiled_anew(folder, damage):
    doubled()
    (path,) = objects(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = doubled()
    assert not again.from_disk and works(again)
    assert path.read_bytes() == whole and doubled().from_disk


def test_a_full_disk_costs_a_compilation_only(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        assert works(doubled())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert objects(folder) == [], "half an object was left behind"


def test_a_file_where_the_folder_should_be(folder):
    (folder / "kernels").write_text("in the way")
    assert works(doubled())


def _write_and_use(folder: str, barrier, results) -> None:
    cache.code_dir = lambda: Path(folder)
    barrier.wait()
    results.put(all(works(doubled(factor=1.0 + i), 1.0 + i) for i in range(10)))


def test_processes_may_write_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_write_and_use, args=(str(tmp_path), barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [True] * 3
    for worker in workers:
        worker.join()
    assert len(objects(tmp_path)) == 10, "temporary files were left behind"


def test_kernels_are_made_once_for_each_set_of_arguments(folder):
    made = []

    @kernel
    def build(unit, factor):
        made.append(factor)
        e = Emitter(unit, "t_once", ("x",))
        place = e.pointer(e.args[0])
        e.store(e.splat_constant(factor), place)
        return e

    unit = named(UNITS[-1])
    assert build(unit, 1.0) is build(unit, 1.0) and build(unit, 2.0) is not build(unit, 1.0)
    assert made == [1.0, 2.0]


# ---- the folder


def test_a_folder_of_ones_own_is_trusted(tmp_path):
    assert cache._is_own_and_writable(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_may_write_to_is_not(tmp_path, mode):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    assert not cache._is_own_and_writable(tmp_path / "open")


def test_neither_is_one_of_somebody_else_nor_a_link_nor_a_file(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    assert not cache._is_own_and_writable(tmp_path / "link")
    assert not cache._is_own_and_writable(tmp_path / "file")
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    assert not cache._is_own_and_writable(tmp_path / "real")


def test_where_nothing_can_be_trusted_the_folder_is_this_processes_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    taken = tmp_path / f"convbench-{os.getuid()}"
    assert cache.code_dir.__wrapped__() == taken
    taken.chmod(0o777)
    other = cache.code_dir.__wrapped__()
    assert other.parent == tmp_path and other != taken and other.stat().st_mode & 0o777 == 0o700


def test_what_nobody_used_for_long_is_removed(folder):
    doubled()
    old = time.time() - (cache.UNUSED_DAYS + 1) * 86400
    (path,) = objects(folder)
    stale, recent, foreign = folder / "loops-0123", folder / "loops-4567", folder / "calibration.json"
    for place in (stale, recent):
        place.mkdir()
        (place / "task.nbc").write_text("code")
    foreign.write_text("{}")
    for place in (stale, foreign, path):
        os.utime(place, (old, old))
    assert doubled().from_disk  # used: no longer old
    cache.remove_unused()
    assert not stale.exists() and recent.exists() and foreign.exists() and objects(folder) == [path]
    os.utime(path, (old, old))
    cache.remove_unused()
    assert objects(folder) == []


def test_the_folder_of_loops_is_marked_as_used(folder):
    loops = cache.loops_dir.__wrapped__()
    old = time.time() - (cache.UNUSED_DAYS + 1) * 86400
    os.utime(loops, (old, old))
    assert cache.loops_dir.__wrapped__() == loops and loops.exists()
    assert time.time() - loops.stat().st_mtime < 3600


# ---- the machine code


def families(unit) -> dict[str, Kernel]:
    matrix = ((1.0, 0.5, -1.0), (1.0, -0.5, -1.0), (2.0, 0.0, 1.0))
    built = {f"brgemm{v}": panel_kernel(unit, v)[0] for v in (1, 2, 3, 4)}
    return built | {"strided": panel_kernel(unit, 2, False)[0], "transpose": transpose(unit),
                    "transform": transform2d(unit, matrix)}  # fmt: skip


def test_code_uses_the_unit_and_nothing_wider(target):
    wanted = {"avx512": "zmm", "avx2": "ymm", "generic": "xmm"}.get(target.name)
    if wanted is None:
        for built in families(target).values():
            assert re.search(r"\bv\d+\.", built.assembly())
        return
    wider = ("ymm", "zmm")[("xmm", "ymm", "zmm").index(wanted) :]
    for name, built in families(target).items():
        text = built.assembly()
        assert f"%{wanted}" in text, name
        assert not [w for w in wider if f"%{w}" in text], name
        if target.name == "generic":  # AVX's encoding would not run on an older machine
            assert not re.search(r"^\s+v[a-z]", text, re.M), name


@pytest.mark.parametrize("vectors", [3, 4])
def test_accumulators_of_the_hot_loop_stay_in_registers(vectors):
    """No access to the stack between the label and the back edge, and all multiply-adds of two steps of k."""
    if not runs_here("avx512"):
        loops = innermost_loops(panel_kernel(named(UNITS[0]), 2)[0].assembly())
        assert loops
        return
    built, shape = panel_kernel(named("avx512"), vectors)
    loops = innermost_loops(built.assembly())
    wanted = shape.unroll * shape.rows * vectors
    (hot,) = [body for body in loops if sum("vfmadd" in line for line in body) == wanted]
    assert not [line for line in hot if "%rsp" in line]  # rbp is an ordinary register here
    assert len(hot) <= 2 * wanted, "more than one other instruction for each multiply-add"


@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
def test_no_loop_of_any_block_spills_a_vector(vectors):
    for unit in (name for name in UNITS if name in ("avx512", "avx2")):
        for body in innermost_loops(panel_kernel(named(unit), vectors)[0].assembly()):
            if sum("vfmadd" in line for line in body) > 1:
                spilled = [line for line in body if "%rsp" in line and re.search(r"%[xyz]mm", line)]
                assert not spilled, (unit, spilled)
