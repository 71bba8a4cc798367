"""The built wheel carries suites, GPU kernels and templates, and works from a folder that is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the contents of the wheel, built out of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=240)
    (wheel,) = (folder / "dist").glob("convbench-*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, timeout=120)
    return folder


def convbench(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(installed / "site")}
    return subprocess.run(
        [sys.executable, "-m", "convbench", *arguments],
        cwd=installed,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_the_wheel_is_what_runs(installed):
    code = "import convbench; print(convbench.__file__)"
    env = os.environ | {"PYTHONPATH": str(installed / "site")}
    where = subprocess.run([sys.executable, "-c", code], cwd=installed, env=env, capture_output=True, text=True).stdout
    assert where.startswith(str(installed / "site"))


def test_gpu_kernels_are_found(installed):
    code = "from convbench.cuda.manifest import kernel_folder as k; print(*sorted(p.name for p in k().rglob('*.*')))"
    env = os.environ | {"PYTHONPATH": str(installed / "site")}
    there = subprocess.run([sys.executable, "-c", code], cwd=installed, env=env, capture_output=True, text=True).stdout
    here = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout
    assert "conv.cuh" in there.split()
    assert there == here


def test_list_is_the_same_as_in_the_checkout(installed):
    command = [sys.executable, "-m", "convbench", "list", "--json"]
    here = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    there = convbench(installed, "list", "--json")
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)["implementations"] == json.loads(here.stdout)["implementations"]


def test_a_built_in_suite_runs_and_reports(installed):
    options = ["--match", "1x1", "--algorithm", "im2col_numpy", "--quick", "--output", str(installed / "run")]
    done = convbench(installed, "run", "smoke", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (installed / "run" / "report.html").stat().st_size > 100_000
