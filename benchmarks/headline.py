"""Speed-ups against the fastest vendor row, by network, from the records of one or more runs.

`python benchmarks/headline.py RUN [RUN ...] [--layers] [--all]` prints, for each setting and network, the geometric
mean of the fastest vendor's time over ours with its 95 % interval, the lowest layer, and the ratio of that mean to
the mean of the same setting at one thread. --layers: also every layer (time, effective and executed GFLOP/s, share of
the measured peak, workspace, error). --all: every algorithm, not only the best of ours on each layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convbench.listing import table
from convbench.records import load_run
from convbench.report.model import Analysis, Row, VendorScore, number
from convbench.report.summary import analyse
from convbench.report.vendor import BEST, networks


def main() -> None:
    """Reads the runs and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    analyses = [analyse(*load_run(run)) for run in options.runs]
    scores = [score for analysis in analyses for score in analysis.vendor]
    print(means(scores, options.all))
    if options.layers:
        for analysis in analyses:
            print("\n" + layers(analysis))


def means(scores: list[VendorScore], everything: bool) -> str:
    """A line for each setting, network and algorithm."""
    at_one = {
        (s.setting._replace(threads=1), s.network, s.algorithm): s.geomean.value
        for s in scores
        if s.setting.threads == 1
    }
    lines = []
    for s in scores:
        if not everything and s.algorithm != BEST:
            continue
        one = at_one.get((s.setting._replace(threads=1), s.network, s.algorithm))
        lines.append(
            [
                s.setting.text(skip=["dtype"]),
                s.network,
                s.algorithm,
                f"{s.geomean.value:.2f}" + (f" [{s.geomean.lo:.2f}, {s.geomean.hi:.2f}]" if s.geomean.known else ""),
                f"{s.n_problems}/{s.n_total}",
                f"{s.lowest:.2f} {s.lowest_layer}",
                str(s.n_noisy),
                f"{s.geomean.value / one:.2f}" if one and s.setting.threads > 1 else "",
            ]
        )
    head = ["setting", "network", "algorithm", "speed-up [95 % CI]", "layers", "lowest", "noisy", "of 1 thread's"]
    return table(head, lines)


def layers(analysis: Analysis) -> str:
    """A line for each row with a time, layer by layer, fastest first."""
    groups: dict[Any, list[Row]] = {}
    for row in analysis.rows:
        if row.ok:
            groups.setdefault((row.problem, row.options), []).append(row)
    lines = [_line(row) for rows in groups.values() for row in sorted(rows, key=lambda r: r.time.value)]
    head = [
        "layer", "setting", "algorithm", "ms", "x vendor", "GFLOP/s", "executed", "% peak", "workspace MiB",
        "rel L2", "",
    ]  # fmt: skip
    return table(head, lines)


def _line(row: Row) -> list[str]:
    m = row.metrics
    s = row.setting
    return [
        ", ".join(networks(row.layer, "")) + ":" + row.layer.split(":")[-1],
        f"{s.pass_} {s.weights} {s.threads}t N{s.batch}",
        row.algorithm,
        f"{row.time.value * 1e3:.3f}",
        f"{row.vendor_speedup.value:.2f}" if row.vendor_speedup else "",
        f"{number(m['gflops_direct']):.0f}",
        f"{number(m['gflops_executed']):.0f}",
        f"{number(m['pct_peak_executed']):.0f}",
        f"{(row.record.workspace_bytes or 0) / 2**20:.1f}",
        f"{number(m['error_rel_l2']):.1e}",
        "noisy" if row.noisy else "",
    ]


if __name__ == "__main__":
    main()
