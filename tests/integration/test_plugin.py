"""A plug-in package from outside: one file, one algorithm, in list, explain, verify, run and report."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from convbench.records import load_run
from tests.plugins.activate import site_with

NAME = "example_taps_numpy"
PROBLEM = "mb1ic8ih14oc12kh3ph1"


@pytest.fixture(scope="module")
def convbench(tmp_path_factory):
    """Runs a command with the example plug-in visible."""
    env = os.environ | site_with(tmp_path_factory.mktemp("plugin"), "example")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "convbench", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_is_listed_with_its_origin(convbench):
    line = next(line for line in convbench("list").splitlines() if line.startswith(NAME))
    assert "plug-in example" in line
    rows = {d["name"]: d for d in json.loads(convbench("list", "--json"))["implementations"]}
    assert rows[NAME]["plugin"] == "example"


def test_explain_speaks_of_it(convbench):
    assert NAME in convbench("explain", PROBLEM)


def test_it_is_verified(convbench):
    said = convbench("verify", PROBLEM, "--algorithm", NAME, "--pass", "fwd,bwd_data,bwd_weights")
    assert said.strip().endswith(" ok")


def test_it_is_run_and_reported(convbench, tmp_path):
    run_dir = tmp_path / "run"
    convbench("run", PROBLEM, "--algorithm", NAME, "--algorithm", "im2col_numpy", "--quick", "--output", str(run_dir))
    record = next(r for r in load_run(run_dir)[1] if r.case.implementation == NAME)
    assert record.status == "ok" and record.samples.ns
    assert "convbench-example-plugin" in " ".join(record.versions).replace("_", "-")
    assert NAME in (run_dir / "report.html").read_text()
    assert NAME in (run_dir / "tables" / "summary.csv").read_text()
