"""What the first call of a simd row costs: with nothing kept, from the cache in a fresh process, and without a home.

    python benchmarks/first_call.py [ROW ...] [--problem DESCRIPTOR]

Four processes for each row. llvmlite, numba, convbench: seconds of their imports, all algorithms included. `ready`:
from there to the end of the first convolution, so kernels and tasks are compiled or read from disk. The goal is `ready`
below 1 s in a fresh process whose cache is filled, and the same where no home folder can be written and the package is
read-only (the cache then lies in the temporary folder). The last columns: how many kernels and tasks came from disk.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_HOME = "/proc/no_home"  # cannot be created, not even by root
#: One small problem for each row: the first of these that it takes.
PROBLEMS = (
    "mb1ic17ih14oc19kh3ph1", "g24mb1ic24ih14oc24kh3ph1", "mb1ic17ih14oc19kh5ph2", "mb1ic17ih14oc19kh1",
    "mb1ic17ih14oc19kh3sh2ph1", "mb1ic17ih14oc19kh5sh2ph2", "mb1ic17ih14oc19kh7sh2ph3",
)  # fmt: skip


def child(names: list[str], problem: str | None) -> None:
    """Runs the first convolution of each row and prints what it took, as JSON."""
    spent: dict[str, float] = {}
    for module in ("llvmlite.binding", "numba", "convbench.catalog"):
        start = time.perf_counter()
        __import__(module)
        if module == "convbench.catalog":
            sys.modules[module].load()
            __import__("convbench.simd.driver")
        spent[module.split(".")[0]] = time.perf_counter() - start
    rows: dict[str, Any] = {}
    found = sys.modules["convbench.catalog"].load().implementations
    for name in names or [name for name in found if name.endswith("_simd")]:
        rows[name] = first_call(found[name], problem)
    from convbench.simd import cache

    print(json.dumps({"imports": spent, "rows": rows, "folder": str(cache.code_dir())}))


def first_call(implementation: Any, descriptor: str | None) -> dict[str, Any]:
    """Seconds of prepare() and one run, and where machine code came from."""
    import numpy as np

    from convbench.descriptor import parse_descriptor
    from convbench.devices.cpu import CpuContext
    from convbench.simd import driver
    from convbench.simd.compiler import Kernel

    problems = [parse_descriptor(text).problem for text in ([descriptor] if descriptor else PROBLEMS)]
    problem = next((p for p in problems if implementation.why_not(p) is None), None)
    if problem is None:
        raise SystemExit(f"{implementation.name} takes none of {', '.join(PROBLEMS)}: give one with --problem")
    a, b = (np.ones(shape, np.float32) for shape in (problem.a_shape, problem.b_shape))
    out = np.full(problem.out_shape, np.nan, np.float32)
    known = {id(thing) for thing in gc.get_objects()}
    tasks_before = {id(t) for t in gc.get_objects() if type(t) is driver.Task and t._compiled is not None}
    start = time.perf_counter()
    implementation.prepare(problem, CpuContext(1))(a, b, out)
    seconds = time.perf_counter() - start
    assert np.isfinite(out).all()
    things = gc.get_objects()  # among them weak references whose objects are gone: isinstance() would follow them
    kernels = [k for k in things if type(k) is Kernel and id(k) not in known]
    tasks = [t._compiled for t in things if type(t) is driver.Task and t._compiled and id(t) not in tasks_before]
    return {
        "ready": seconds,
        "kernels": [sum(k.from_disk for k in kernels), len(kernels)],
        "tasks": [sum(bool(t.cache_hits) for t in tasks), len(tasks)],
    }


def in_process(names: list[str], problem: str | None, env: dict[str, str], package: Path = ROOT, **more: Any) -> Any:
    """The child's answer, from a process with this environment and package."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *names]
    command += ["--problem", problem] if problem else []
    kept = {key: value for key, value in os.environ.items() if key not in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    env = kept | {"PYTHONPATH": str(package), "NUMBA_NUM_THREADS": "1"} | env
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **more)
    if done.returncode:
        raise RuntimeError(f"the child ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def read_only_copy(folder: Path) -> Path:
    """A copy of the package that nobody may write to; its parent, for PYTHONPATH."""
    shutil.copytree(ROOT / "convbench", folder / "convbench", ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def main() -> None:
    """Prints a line for each row and state of the cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--problem")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.rows, options.problem)
        return
    names = options.rows or list(in_process([], options.problem, {})["rows"])
    print(f"{'row':24}{'cache':14}{'llvmlite':>9}{'numba':>7}{'convbench':>10}{'ready':>8}  kernels  tasks")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        package = read_only_copy(folder / "package")
        for name in names:
            kept = {"XDG_CACHE_HOME": str(folder / name)}
            no_home = {"HOME": NO_HOME, "TMPDIR": str(folder / f"{name}-tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
            Path(no_home["TMPDIR"]).mkdir()
            states = [("empty", kept, ROOT), ("filled", kept, ROOT)]
            states += [("no home", no_home, package), ("no home, 2nd", no_home, package)]
            for state, env, where in states:
                said = in_process([name], options.problem, env, where)
                imports, row = said["imports"], said["rows"][name]
                seconds = f"{imports['llvmlite']:9.2f}{imports['numba']:7.2f}{imports['convbench']:10.2f}"
                kernels, tasks = (f"{disk}/{all_}" for disk, all_ in (row["kernels"], row["tasks"]))
                print(f"{name:24}{state:14}{seconds}{row['ready']:8.2f}  {kernels:8} {tasks}", flush=True)
        for path in package.rglob("*"):
            path.chmod(0o755)


if __name__ == "__main__":
    main()
