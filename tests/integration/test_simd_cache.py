"""Machine code between processes: kept where it can be, and everything works where it cannot.

Each test is a row's first convolution in a fresh process (benchmarks/first_call.py), with its own idea of a home.
"""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from benchmarks.first_call import NO_HOME, in_process, read_only_copy

ROW = "pointwise_simd"


def call(env: dict[str, str], rows: tuple[str, ...] = (ROW,), **more) -> dict:
    """The answer of a process that runs the first convolution of the rows."""
    return in_process(list(rows), None, {"PYTHONDONTWRITEBYTECODE": "1"} | env, **more)


def from_disk(said: dict) -> bool:
    """Whether every kernel and every task came from disk; False if none did; anything else is a mistake."""
    counted = [pair for row in said["rows"].values() for pair in (row["kernels"], row["tasks"]) if pair[1]]
    assert counted
    if all(disk == every for disk, every in counted):
        return True
    assert not any(disk for disk, _ in counted), counted
    return False


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache that one process has filled."""
    folder = tmp_path_factory.mktemp("filled")
    assert not from_disk(call({"XDG_CACHE_HOME": str(folder)}))
    return folder


def test_a_second_process_compiles_nothing(filled):
    before = files(filled)
    said = call({"XDG_CACHE_HOME": str(filled)})
    assert from_disk(said) and files(filled) == before
    assert said["folder"] == str(filled / "convbench")


def test_the_home_folder_serves_where_xdg_says_nothing(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    assert not from_disk(call({"HOME": str(home)}))
    said = call({"HOME": str(home)})
    assert from_disk(said) and said["folder"] == str(home / ".cache" / "convbench")


def test_a_read_only_package_without_a_home_is_compiled_once(tmp_path):
    package, temporary = read_only_copy(tmp_path / "package"), tmp_path / "tmp"
    temporary.mkdir()
    before = files(package)
    env = {"HOME": NO_HOME, "TMPDIR": str(temporary)}
    assert not from_disk(call(env, package=package))
    said = call(env, package=package)
    assert from_disk(said)
    own = temporary / f"convbench-{os.getuid()}"
    assert said["folder"] == str(own) and stat.S_IMODE(own.stat().st_mode) == 0o700
    assert files(package) == before, "something was written into the package"


def test_a_temporary_folder_that_others_may_write_to_is_not_used(tmp_path):
    """Nothing is left to trust then: each process compiles for itself, and cleans up."""
    taken = tmp_path / f"convbench-{os.getuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    said = call({"HOME": NO_HOME, "TMPDIR": str(tmp_path)})
    assert not from_disk(said)
    assert said["folder"] != str(taken) and Path(said["folder"]).parent == tmp_path
    assert list(tmp_path.iterdir()) == [taken] and not files(taken)


def test_a_disk_that_is_full(tmp_path):
    """No file may grow beyond a few bytes: nothing is kept, nothing half-written, and the convolution is right."""

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))

    said = call({"XDG_CACHE_HOME": str(tmp_path)}, preexec_fn=no_room)
    assert not from_disk(said)
    assert not [path for path in files(tmp_path) if path.suffix in (".o", ".nbc")]
    assert not from_disk(call({"XDG_CACHE_HOME": str(tmp_path)}))
    assert from_disk(call({"XDG_CACHE_HOME": str(tmp_path)}))


@pytest.mark.parametrize("ending", [".nbi", ".nbc", ".o"])
def test_damaged_files_are_replaced(filled, ending):
    damaged = [path for path in files(filled) if path.suffix == ending]
    assert damaged
    for number, path in enumerate(damaged):
        text = path.read_bytes()
        path.write_bytes((text[: len(text) // 2], b"", os.urandom(100))[number % 3])
    in_between = call({"XDG_CACHE_HOME": str(filled)})
    counted = in_between["rows"][ROW]["kernels" if ending == ".o" else "tasks"]
    assert counted[0] < counted[1]
    assert from_disk(call({"XDG_CACHE_HOME": str(filled)}))


def test_a_change_of_the_sources_gives_other_tasks(filled, tmp_path):
    """Numba looks at one file's time stamp; here any source file of the layer counts, by its contents."""
    package = read_only_copy(tmp_path / "package")
    source = package / "convbench" / "simd" / "patch.py"
    os.utime(source, (1, 1))
    folders = {path.name for path in (filled / "convbench").glob("loops-*")}
    call({"XDG_CACHE_HOME": str(filled)}, package=package)
    assert {path.name for path in (filled / "convbench").glob("loops-*")} == folders, "only the time stamp changed"
    source.chmod(0o644)
    source.write_text(source.read_text() + "# changed\n")
    changed = call({"XDG_CACHE_HOME": str(filled)}, package=package)["rows"][ROW]
    assert changed["tasks"][0] == 0 and changed["kernels"][0] == changed["kernels"][1]
    assert len(set((filled / "convbench").glob("loops-*"))) == len(folders) + 1
