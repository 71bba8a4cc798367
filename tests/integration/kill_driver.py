"""Runs a plan and kills itself, or its whole process group, at a chosen moment (a program for test_kill_resume.py).

Usage: kill_driver.py RUN_DIR PHASE NTH DELAY_MS SCOPE, with RUN_DIR holding plan.json. PHASE: prepare, verify and
timing count what the runner says it is doing; write counts calls of os.write on records.jsonl (NTH even: half of the
data is written first), of os.fsync and os.replace. SCOPE: parent or group.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from convbench import probe, runner


def kill(scope: str) -> None:
    if scope == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """An observer with a deadline of its own."""

    def __init__(self, phase: str, nth: int, delay_s: float, scope: str) -> None:
        self.doing = "timing" if phase == "timing" else "verifying"
        self.left, self.delay_s, self.scope, self.armed = nth, delay_s, scope, phase != "write"

    def started(self, problems, cases) -> None: ...

    def problem_done(self, problem, records, seconds_left) -> None: ...

    def now(self, problem, algorithm, doing) -> None:
        if self.armed and doing == self.doing:
            self.left -= 1
            if self.left == 0:
                threading.Timer(self.delay_s, kill, [self.scope]).start()


def kill_while_writing(nth: int, scope: str) -> None:
    """The nth step that touches the disk is the last: before it, or in the middle of it."""
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return steps == nth

    real_write, real_fsync, real_replace = os.write, os.fsync, os.replace

    def write(descriptor, data):
        if len(data) > 500 and step():  # records; what goes to pipes is shorter
            real_write(descriptor, bytes(data)[: len(data) * 2 // 3])
            kill(scope)
        return real_write(descriptor, data)

    def fsync(descriptor):
        if step():
            kill(scope)
        return real_fsync(descriptor)

    def replace(source, target):
        if step():
            kill(scope)
        return real_replace(source, target)

    os.write, os.fsync, os.replace = write, fsync, replace


def main() -> None:
    run_dir, phase, nth, delay_ms, scope = sys.argv[1:]
    plan = runner.RunPlan.from_file(Path(run_dir) / "plan.json")
    listing = probe.probe()
    if phase == "write":
        kill_while_writing(int(nth), scope)
    runner.execute(plan, Path(run_dir), listing, Killer(phase, int(nth), int(delay_ms) / 1e3, scope))
    time.sleep(1)  # a timer that is still running may fire


if __name__ == "__main__":
    main()
