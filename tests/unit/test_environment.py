"""The fingerprint of a machine: complete, stable between two starts, and silent about nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from convbench import environment


@pytest.fixture(scope="module")
def facts():
    return environment.collect(threads=1)


def test_is_json_and_complete(facts):
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    machine = facts["machine"]
    assert machine["cpu_model"] and machine["cores"] >= 1 and machine["memory_bytes"] > 1 << 28
    assert facts["versions"]["numpy"] == __import__("numpy").__version__
    assert {"numpy", "scipy", "python"} <= set(facts["versions"]) <= {*environment.LIBRARIES, "python"}
    assert facts["versions"]["python"].endswith(sys.version.split()[0])
    assert machine["governor"] and machine["hypervisor"] and machine["kernel"]
    assert isinstance(facts["warnings"], list)
    assert all(name[0] == "L" and size.endswith("iB") for name, size in machine["caches"].items())


def test_id_is_the_same_in_another_process(facts):
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
        "from convbench import environment as e; print(e.collect()['env_id'])"
    )
    env = {**os.environ, **environment.thread_env(2)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout.strip() == facts["env_id"], done.stderr


def on(facts, **changes):
    """The same facts about a machine that differs in `changes`."""
    return {**facts, "machine": {**facts["machine"], **changes}}


@pytest.mark.parametrize("key", ["load", "collected_utc", "convbench", "thread_variables", "warnings"])
def test_id_ignores_what_changes_between_two_starts(facts, key):
    assert environment.env_id({**facts, key: "something else"}) == facts["env_id"]


@pytest.mark.parametrize("key", ["governor", "kernel", "affinity", "memory_bytes"])
def test_id_ignores_what_changes_on_one_machine(facts, key):
    assert environment.env_id(on(facts, **{key: "something else"})) == facts["env_id"]


@pytest.mark.parametrize("key", environment.IDENTITY)
def test_id_sees_another_machine(facts, key):
    assert environment.env_id(on(facts, **{key: "something else"})) != facts["env_id"]


@pytest.mark.parametrize("library", ["numpy", "python", "one-that-was-not-there"])
def test_id_sees_another_library(facts, library):
    other = {**facts, "versions": {**facts["versions"], library: "0.0"}}
    assert environment.env_id(other) != facts["env_id"]


def test_memory_is_rounded_to_gib(monkeypatch):
    for given, rounded in ((24 * 2**30 - 5_000_000, 24), (24 * 2**30 + 5_000_000, 24), (2**34, 16)):
        monkeypatch.setattr(environment, "memory_bytes", lambda given=given: given)
        assert environment.machine()["memory_gib"] == rounded


def test_allowed_cores_follows_the_affinity():
    code = (
        f"import os, sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from convbench import environment as e; print(e.allowed_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr
    assert 1 <= environment.allowed_cores() <= os.cpu_count()


def test_cgroup_quota_limits_the_cores(monkeypatch):
    quota = {"/sys/fs/cgroup/cpu.max": "150000 100000", "/sys/fs/cgroup/memory.max": str(1 << 30)}
    monkeypatch.setattr(environment, "_read", lambda path: quota.get(str(path)))
    monkeypatch.setattr(environment, "_affinity", lambda: [0, 1, 2, 3])
    assert environment.allowed_cores() == 1
    assert environment.memory_bytes() == 1 << 30
    quota["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert environment.allowed_cores() == 4


def test_thread_variables_reach_blas():
    code = "import numpy, threadpoolctl; print(max(p['num_threads'] for p in threadpoolctl.threadpool_info()))"
    for threads in (1, 2):
        env = {**os.environ, **environment.thread_env(threads)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
        assert done.stdout.strip() == str(min(threads, os.cpu_count())), done.stderr


def test_thread_variables():
    variables = environment.thread_env(3)
    assert all(isinstance(v, str) for v in variables.values())
    for pool in ("OPENBLAS", "OMP", "MKL", "NUMBA"):
        assert variables[f"{pool}_NUM_THREADS"] == "3"
    assert variables["OPENBLAS_THREAD_TIMEOUT"] == "4" and variables["MALLOC_MMAP_MAX_"] == "0"


@pytest.mark.parametrize(
    ("change", "threads", "words"),
    [
        ({"load": [9.0, 1, 1]}, 1, "something else is running"),
        ({"governor": "powersave"}, 1, "powersave"),
        ({"cores": 2}, 8, "8 BLAS threads on 2 allowed cores"),
        ({"hypervisor": "Somebody's cloud"}, 1, "Somebody's cloud"),
        ({"memory_bytes": 1 << 30}, 1, "1.0 GiB"),
    ],
)
def test_warnings(change, threads, words):
    machine = {"governor": "performance", "cores": 16, "hypervisor": "none", "memory_bytes": 64 << 30}
    quiet = {"load": [0.1, 0, 0], "machine": machine}
    assert environment.warnings_about(quiet, 16) == []
    changed = {**quiet, **change} if "load" in change else on(quiet, **change)
    assert [words in w for w in environment.warnings_about(changed, threads)] == [True]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with one commit that looks like convbench's."""
    if shutil.which("git") is None:
        pytest.fail("these tests need git")
    package = tmp_path / "convbench"
    package.mkdir()
    (package / "a.py").write_text("A = 1\n")
    (tmp_path / "notes.txt").write_text("1\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    monkeypatch.setattr(environment, "PACKAGE", package)
    return tmp_path


def test_build_id(checkout):
    build = environment.build_id()
    assert len(build["sha"]) == 40 and build["dirty"] is False
    (checkout / "notes.txt").write_text("2\n")
    assert environment.build_id() == build  # not what runs
    (checkout / "convbench" / "new.py").write_text("N = 1\n")
    assert environment.build_id() == {**build, "dirty": True}


def test_build_id_without_git(tmp_path, monkeypatch, checkout):
    monkeypatch.setenv("PATH", "")
    assert environment.build_id()["sha"] == "unknown"
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "elsewhere" / "convbench")
    assert environment.build_id() == {
        "version": environment.__version__, "sha": "unknown", "dirty": None,
    }  # fmt: skip


def test_measured_peak():
    peak = environment.measure_peaks(threads=1, seconds=0.05, size=256)
    assert set(peak) == {"gflops"} and peak["gflops"] > 0.1
