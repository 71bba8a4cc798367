"""A/A: every algorithm beside itself. What the runner finds between the two is noise, and must say so.

    python benchmarks/aa.py [--suite smoke] [--output DIR] [--analyse DIR]

Runs a suite with each algorithm registered twice (the plug-in tests/plugins/twins), then prints, over all pairs:
how many 95 % intervals of the paired ratio hold 1 (the measured coverage), how many differences stay within
max(interval, noise floor), and the geometric mean of all ratios. The noise floor of a case is the 95th percentile
of |log ratio| over the blocks of its pair; a second, far stricter reading divides it by the root of their number.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from convbench.records import Record, load_run  # noqa: E402
from convbench.stats import geomean_ci, ratio_ci  # noqa: E402
from tests.plugins.activate import add_distribution, site_path  # noqa: E402


def run(suite: str, output: Path, more: list[str]) -> None:
    """Runs the suite with twins into `output`."""
    with tempfile.TemporaryDirectory() as site:
        add_distribution(Path(site), "convbench-twins", {"twins": "convbench_twins"})
        env = os.environ | site_path(Path(site), ROOT / "tests" / "plugins" / "twins", ROOT)
        command = [sys.executable, "-m", "convbench", "run", suite, "--output", str(output), *more]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


def pairs(records: list[Record]) -> list[tuple[Record, Record]]:
    """(algorithm, its twin), where both were measured."""
    ok = {(r.case.problem, r.case.options, r.case.implementation): r for r in records if r.status == "ok"}
    return [
        (record, ok[(problem, options, f"{name}_twin")])
        for (problem, options, name), record in ok.items()
        if (problem, options, f"{name}_twin") in ok
    ]


def noise_floor(a: Record, b: Record) -> tuple[float, float]:
    """The 95th percentile of |log ratio| over shared blocks, and that over the root of their number."""
    first, second = (dict(zip(r.samples.block, r.ns_per_call, strict=True)) for r in (a, b))
    logs = [abs(math.log(first[k] / second[k])) for k in first.keys() & second.keys()]
    floor = float(np.quantile(logs, 0.95))
    return floor, floor / math.sqrt(len(logs))


def analyse(records: list[Record]) -> None:
    """Prints what the pairs say."""
    ratios, holds, within, strictly, widths = [], 0, 0, 0, []
    for a, b in pairs(records):
        interval = ratio_ci(a.ns_per_call, a.samples.block, b.ns_per_call, b.samples.block)
        if interval is None:
            continue
        ratios.append(interval.value)
        widths.append(math.log(interval.hi / interval.lo) / 2)
        holds += interval.lo <= 1 <= interval.hi
        floor, strict = noise_floor(a, b)
        within += abs(math.log(interval.value)) <= max(widths[-1], floor)
        strictly += abs(math.log(interval.value)) <= max(widths[-1], strict)
    n, mean = len(ratios), geomean_ci(ratios)
    print(f"pairs                                          {n}")
    print(f"95 % intervals of the ratio that hold 1        {holds} = {100 * holds / n:.1f} %")
    print(f"differences within max(interval, noise floor)  {within} = {100 * within / n:.1f} %")
    print(f"the same, floor over sqrt(blocks)              {strictly} = {100 * strictly / n:.1f} %")
    print(f"geometric mean of all ratios                   {mean.value:.5f} [{mean.lo:.5f}, {mean.hi:.5f}]")
    print(f"median half-width of an interval               {100 * float(np.median(widths)):.2f} %")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="smoke")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--analyse", type=Path, help="only analyse the run in this folder")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        where = options.analyse or options.output or Path(folder) / "run"
        if not options.analyse:
            run(options.suite, where, more)
        analyse(load_run(where)[1])


if __name__ == "__main__":
    main()
