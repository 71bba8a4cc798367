"""Plug-ins that misbehave in every way cost themselves alone: one record a case, all other cases measured."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from convbench.records import Record, load_run
from tests.plugins.activate import site_with

SUITE = """
title: two small problems with guests
problems: ["mb1ic16ih12oc16oh12kh3ph1n\\"one\\"", "mb1ic8ih16oc12oh16kh1ph0n\\"two\\""]
axes: {pass: [fwd], threads: [1]}
algorithms: [im2col_numpy, direct_numpy, "bad_*"]
baseline: [im2col_numpy]
policy: {time_budget: 30 s, min_blocks: 6, min_time: 0.02 s, ci_target: 10 %, case_timeout: 15 s,
         workspace_limit: 128 MiB}
"""

#: plug-in -> (algorithm in the records, status, what the reason says)
EXPECTED = {
    "segfault_import": ("bad_segfault_import", "failed", "SIGSEGV"),
    "segfault_prepare": ("bad_segfault_prepare_numpy", "failed", "SIGSEGV"),
    "segfault_run": ("bad_segfault_run_numpy", "failed", "SIGSEGV"),
    "segfault_timing": ("bad_segfault_timing_numpy", "failed", "while it was timed"),
    "hang_run": ("bad_hang_run_numpy", "timed_out", "no answer for"),
    "hang_import": ("bad_hang_import", "failed", "hung on import"),
    "nan": ("bad_nan_numpy", "wrong", ""),
    "hog": ("bad_hog_numpy", "failed", "memory"),
    "raise_import": ("bad_raise_import", "failed", "raised on import"),
    "raise_prepare": ("bad_raise_prepare_numpy", "failed", ""),
    "raise_run": ("bad_raise_run_numpy", "failed", ""),
}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    """One run with all of them at once."""
    folder = tmp_path_factory.mktemp("isolation")
    (folder / "guests.yaml").write_text(SUITE)
    env = {**os.environ, **site_with(folder, *EXPECTED)}
    done = subprocess.run(
        [sys.executable, "-m", "convbench", "run", str(folder / "guests.yaml"), "--output", str(folder / "run")],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 3, done.stdout + done.stderr  # a wrong result outranks failures
    return load_run(folder / "run")[1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plugin", EXPECTED)
def test_a_guest_costs_itself_alone(plugin, records):
    name, status, reason = EXPECTED[plugin]
    found = [r for r in records if r.case.implementation == name]
    assert len(found) == 2, "one record for each of the two problems"
    assert {r.status for r in found} <= {status, "not_reached"}
    assert found[0].status == status
    assert all(r.reason for r in found)
    assert reason in found[0].reason
    assert not any(r.samples.ns for r in found)


@pytest.mark.parametrize("name", ["im2col_numpy", "direct_numpy"])
def test_everybody_else_is_measured(name, records):
    found = [r for r in records if r.case.implementation == name]
    assert [r.status for r in found] == ["ok", "ok"]
    assert all(len(r.samples.ns) >= 3 for r in found)


def test_one_record_a_case(records):
    ids = [r.case.id for r in records]
    assert len(ids) == len(set(ids))
