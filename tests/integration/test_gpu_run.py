"""Commands from end to end with a fake GPU: run, resume, the report, one message where there is none, `make gpu`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from convbench.records import load_run
from tests.plugins.activate import HERE, add_distribution, site_path

ROOT = Path(__file__).parents[2]
SUITE = """
title: two small problems on a GPU
device: cuda
problems:
  - "mb2ic6ih12oc8oh12kh3ph1n\\"one\\""
  - {descriptor: "mb1ic8ih9oc4oh9kh1ph0n\\"two\\"", axes: {dtype: [float16, bfloat16], layout: [nhwc]}}
axes: {pass: [fwd, bwd_data], threads: [all], weights: [raw]}
algorithms: [direct_test_cuda, workspace_test_cuda, stream_test_cuda, breaks_test_cuda]
policy: {time_budget: 2 min, min_blocks: 4, min_time: 0.001 s, ci_target: 20 %, max_blocks: 6}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which child processes find the fake GPU and its rows."""
    site = tmp_path_factory.mktemp("gpu") / "site"
    add_distribution(site, "convbench-gpu-guests", {"gpu_guests": "convbench_gpu_guests"})
    return os.environ | site_path(site, HERE / "gpu", ROOT)


def convbench(environment: dict[str, str], *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convbench", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, **more)


@pytest.fixture(scope="module")
def run_dir(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.yaml").write_text(SUITE)
    done = convbench(environment, "run", str(folder / "small.yaml"), "--output", str(folder / "run"))
    assert done.returncode == 3, done.stdout + done.stderr  # one of the rows is wrong
    return folder / "run"


def test_a_run_on_a_gpu_ends_in_records(run_dir: Path) -> None:
    environment, records = load_run(run_dir)
    by_name: dict[str, list[Any]] = {}
    for record in records:
        by_name.setdefault(record.case.implementation, []).append(record)
    assert len(by_name) == 5 and {len(found) for found in by_name.values()} == {6}
    for name in ("vendor_test_cuda", "direct_test_cuda", "workspace_test_cuda"):
        for record in by_name[name]:
            assert record.status == "ok", record.reason
            assert record.device == "cuda" and record.launches == (3 if name.startswith("workspace") else 1)
            assert record.case.options.threads == 1
            count = len(record.samples.ns)
            assert count >= 3 and len(record.samples.host_ns) == len(record.samples.reasons) == count
            assert set(record.samples.sm_mhz) == {1980} and record.flags in ([], ["noisy"])
            assert "--device cuda" in record.repro
    assert {r.status for r in by_name["stream_test_cuda"]} == {"wrong"}
    for record in by_name["breaks_test_cuda"]:  # its error stays with the process, which another one replaces
        assert record.status == "failed" and "cudaErrorIllegalAddress" in record.reason
    assert environment["device"] == "cuda" and environment["gpu"]["name"] == "Fake H200"
    assert environment["gpu"]["driver"] == "580.65.06"
    assert next(name for name in environment["suite"]["baseline"] if name in by_name) == "vendor_test_cuda"
    assert environment["peaks"]["1"]["copy_gbps"] > 0


def test_the_report_knows_speed_ups_against_the_vendor(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["baseline"] == "vendor_test_cuda"
    scores = {s["algorithm"]: s for s in summary["algorithms"] if s["dtype"] == "float32" and s["pass"] == "fwd"}
    assert scores["direct_test_cuda"]["speedup_geomean"] == pytest.approx(1.0, rel=0.1)
    assert scores["workspace_test_cuda"]["speedup_geomean"] < 0.7  # three launches instead of one
    assert "workspace_test_cuda" in (run_dir / "report.html").read_text()


def test_a_finished_run_has_nothing_to_resume(environment: dict[str, str], run_dir: Path) -> None:
    before = (run_dir / "records.jsonl").read_text()
    done = convbench(environment, "run", "--resume", str(run_dir))
    assert done.returncode == 3, done.stderr
    assert (run_dir / "records.jsonl").read_text() == before


def test_a_gpu_that_is_held_back_flags_its_times(environment: dict[str, str], tmp_path: Path) -> None:
    run = ["run", "mb1ic4ih8oc4oh8kh3ph1", "--device", "cuda", "--algorithm", "direct_test_cuda", "--quick"]
    done = convbench({**environment, "FAKE_GPU": "hot"}, *run, "--budget", "5 s", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    _, records = load_run(tmp_path / "run")
    assert {"throttled"} <= set(records[0].flags)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["counts"]["throttled"] == len(records)


def test_rows_of_the_other_device_are_not_taken(environment: dict[str, str]) -> None:
    on_cpu = convbench(environment, "run", "vgg", "--dry-run").stdout
    on_gpu = convbench(environment, "run", "vgg", "--device", "cuda", "--dry-run").stdout
    assert "cuda" not in on_cpu and "onednn" not in on_gpu
    assert "--algorithm direct_test_cuda" in on_gpu and on_gpu.count("--device cuda") == on_gpu.count("--algorithm")
    done = convbench(environment, "run", "vgg", "--algorithm", "im2col_numpy", "--device", "cuda")
    assert done.returncode == 2
    assert "im2col_numpy runs on cpu, and this run is for cuda: say --device cpu" in done.stderr


def test_verify_takes_a_device(environment: dict[str, str]) -> None:
    command = ["verify", "mb1ic4ih8oc4oh8kh3ph1", "--device", "cuda", "--algorithm"]
    done = convbench(environment, *command, "workspace_test_cuda")
    assert done.returncode == 0 and done.stdout.strip().endswith("ok"), done.stdout + done.stderr
    done = convbench(environment, *command, "stream_test_cuda")
    assert done.returncode == 3 and "settled" in done.stdout and "--device cuda" in done.stdout


@pytest.mark.parametrize("command", [["run", "gpu_headline"], ["run", "lavin", "--device", "cuda"]])
def test_without_a_gpu_one_message_and_nothing_written(
    environment: dict[str, str], tmp_path: Path, command: list[str]
) -> None:
    done = convbench({**environment, "FAKE_GPU": "none"}, *command, cwd=tmp_path)
    assert done.returncode == 5
    assert done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    assert "no NVIDIA driver or GPU" in done.stderr and "convbench[cuda]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_each_row_says_why(environment: dict[str, str]) -> None:
    said = convbench({**environment, "FAKE_GPU": "none"}, "list", "--all").stdout
    rows = [line for line in said.splitlines() if line.split()[:1] and line.split()[0].endswith("_cuda")]
    assert rows and all("no NVIDIA driver or GPU" in line for line in rows)


# ---- make gpu


def gpu(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def test_one_command_without_a_gpu(environment: dict[str, str], tmp_path: Path) -> None:
    done = gpu({**environment, "FAKE_GPU": "none"}, "--output", str(tmp_path / "out"))
    assert done.returncode == 5 and len(done.stderr.strip().splitlines()) == 1
    assert "no NVIDIA driver or GPU" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.timeout(300)
def test_one_command_on_a_gpu(environment: dict[str, str], tmp_path: Path) -> None:
    stages = ["--only", "verify", "sanitize", "ceilings"]
    rows = ["--row", "direct_test_cuda", "--row", "stream_test_cuda", "--row", "breaks_test_cuda"]
    done = gpu(environment, "--output", str(tmp_path), "--minutes", "20", *rows, *stages)
    assert done.returncode == 3, done.stdout + done.stderr  # stream_test_cuda is wrong
    found = {stage: json.loads((tmp_path / f"{stage}.json").read_text())["rows"] for stage in stages[1:]}
    right, wrong = (found["verify"][name] for name in ("direct_test_cuda", "stream_test_cuda"))
    assert right["finished"] and {line["status"] for line in right["lines"]} == {"ok"} and len(right["lines"]) > 150
    assert {line["status"] for line in wrong["lines"]} == {"wrong"}
    broken = found["verify"]["breaks_test_cuda"]
    assert 2 <= len(broken["lines"]) <= 6  # a process for each, until there have been enough of them
    assert "exit code 71: cudaErrorIllegalAddress" in broken["failures"][0]
    assert found["ceilings"]["all"]["lines"][0]["peaks"]["gflops_sgemm"] > 0
    summary = (tmp_path / "summary.md").read_text()
    assert "Fake H200" in summary and "| direct_test_cuda | " in summary and "copy_gbps" in summary


@pytest.mark.timeout(300)
def test_one_command_that_is_killed_goes_on_with_the_step_that_was_under_way(
    environment: dict[str, str], tmp_path: Path
) -> None:
    options = ["--output", str(tmp_path), "--only", "verify", "--row", "direct_test_cuda", "--minutes", "20"]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *options]
    journal = tmp_path / "journals" / "verify-direct_test_cuda.jsonl"
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and (not journal.is_file() or journal.read_text().count('"ok"') < 10):
        time.sleep(0.05)
    assert first.poll() is None
    first.kill()
    first.wait()
    time.sleep(0.5)  # its process is ended with it: nothing is added any more
    left = journal.read_text()
    time.sleep(1.0)
    assert journal.read_text() == left
    done = gpu(environment, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "verify.json").read_text())["rows"]["direct_test_cuda"]
    cases = [line["case"] for line in found["lines"]]
    assert len(cases) == len(set(cases)) > 150 and {line["status"] for line in found["lines"]} == {"ok"}
    assert [json.loads(x)["case"] for x in left.splitlines() if '"ok"' in x] == cases[: left.count('"ok"')]
