"""kill -9 at 20 moments of a smoke run, then --resume: the same cases as an unbroken run, none twice, no orphan.

Five moments each in prepare, verify, timing and writing; of the parent alone and of its whole process group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from convbench import probe, runner
from convbench.records import load_run, read_records
from convbench.suite import load_suite

DRIVER = Path(__file__).with_name("kill_driver.py")
MARK = "CONVBENCH_TEST_RUN"
ALGORITHMS = ["im2col_numpy", "direct_numpy", "fft_scipy", "winograd_f2_numpy"]
#: Every moment and all problems; otherwise every second moment, of each phase two or three.
FULL = bool(os.environ.get("CONVBENCH_FULL"))
# A slow preparation is FFTW's planning or a compilation; a few milliseconds into it the worker is in prepare().
MOMENTS = [
    *(("prepare", nth, delay, scope) for nth, delay, scope in
      ((1, 0, "parent"), (3, 1, "group"), (5, 2, "parent"), (7, 3, "group"), (10, 5, "parent"))),
    *(("verify", nth, delay, scope) for nth, delay, scope in
      ((2, 15, "group"), (4, 30, "parent"), (6, 20, "group"), (9, 40, "parent"), (12, 25, "group"))),
    *(("timing", nth, delay, scope) for nth, delay, scope in
      ((1, 0, "parent"), (5, 10, "group"), (12, 30, "parent"), (20, 0, "group"), (40, 5, "parent"))),
    *(("write", nth, 0, scope) for nth, scope in
      ((1, "parent"), (4, "group"), (7, "parent"), (8, "group"), (10, "parent"))),
]  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    """The smoke suite (its first problems, all of them with CONVBENCH_FULL=1) with four algorithms and little time."""
    suite = load_suite("smoke", {"algorithm": ALGORITHMS, "quick": True})
    suite.policy = replace(suite.policy, time_budget_s=12.0 if FULL else 4.0)
    made = runner.make_plan_for(suite, probe.probe())
    if not FULL:
        made.problems = made.problems[:4]
    return made


def marked_processes(mark: str) -> list[int]:
    """Living processes that were started for this run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.mark.parametrize("moment", MOMENTS if FULL else MOMENTS[::2], ids=lambda m: "-".join(map(str, m)))
def test_a_killed_run_goes_on(moment, plan, tmp_path):
    phase, nth, delay, scope = moment
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "plan.json").write_text(plan.to_json())
    env = {**os.environ, MARK: str(run_dir)}
    first = subprocess.run(
        [sys.executable, str(DRIVER), str(run_dir), phase, str(nth), str(delay), scope],
        env=env,
        start_new_session=True,
        timeout=120,
        capture_output=True,
    )
    assert first.returncode == -signal.SIGKILL, first.stderr.decode()
    deadline = time.monotonic() + 10
    while marked_processes(str(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked_processes(str(run_dir)) == [], "a process outlived the run"

    records_path = run_dir / "records.jsonl"
    before = [r.case.id for r in read_records(records_path)] if records_path.exists() else []
    resumed = subprocess.run(
        [sys.executable, "-m", "convbench", "run", "--resume", str(run_dir)], env=env, timeout=240, capture_output=True
    )
    assert resumed.returncode == 0, resumed.stderr.decode()
    _, records = load_run(run_dir)
    got = Counter(r.case.id for r in records)
    want = {c.id for p in plan.problems for c in plan.cases(p)}
    assert set(got) == want
    assert max(got.values()) == 1
    assert len(before) <= len(got)
    assert (run_dir / "report.html").is_file()
    assert marked_processes(str(run_dir)) == []


def test_ctrl_c_keeps_what_was_measured(plan, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "plan.json").write_text(plan.to_json())
    command = [sys.executable, "-m", "convbench", "run", "--resume", str(run_dir)]
    first = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    records_path = run_dir / "records.jsonl"
    deadline = time.monotonic() + 100
    while not (records_path.exists() and records_path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)
    said = first.communicate(timeout=100)[1]
    assert first.returncode == 130, said
    assert f"convbench run --resume {run_dir}" in said
    assert (run_dir / "report.html").is_file()
    kept = [r.case.id for r in read_records(records_path)]
    assert 0 < len(kept) < len(plan.problems) * len(plan.algorithms)
    assert subprocess.run(command, capture_output=True, timeout=200).returncode == 0
    got = [r.case.id for r in read_records(records_path)]
    assert got[: len(kept)] == kept and len(set(got)) == len(got) == len(plan.problems) * len(plan.algorithms)
