"""The summary's geometric means once more, from records.jsonl alone: `python benchmarks/geomeans.py RUN [BASELINE]`.

Shares no code with convbench: a speed-up is the median over shared blocks of log(baseline time / algorithm time).
"""

import collections
import json
import math
import pathlib
import statistics
import sys

run, baseline = pathlib.Path(sys.argv[1]), (sys.argv[2:] or ["onednn"])[0]
times, logs = collections.defaultdict(dict), collections.defaultdict(list)
for record in map(json.loads, (run / "records.jsonl").open()):
    case, samples = record["case"], record["samples"]
    if record["status"] == "ok":
        key = (case["problem"], json.dumps(case["options"], sort_keys=True))
        times[key][case["implementation"]] = {b: ns / record["loops"] for b, ns in zip(samples["block"], samples["ns"])}  # noqa: B905
for (problem, _), rows in times.items():
    for name, blocks in rows.items() if baseline in rows else ():
        pairs = [math.log(rows[baseline][b] / t) for b, t in blocks.items() if b in rows[baseline]]
        logs[name, problem[6:11]].append(statistics.median(pairs))
mine = {key: (math.exp(statistics.fmean(values)), len(values)) for key, values in logs.items()}
short = {"fwd": "FWD_D", "bwd_data": "BWD_D", "bwd_weights": "BWD_W"}
worst = 0.0
for score in json.loads((run / "summary.json").read_text())["algorithms"]:
    value, n = mine.get((score["algorithm"], short[score["pass"]]), (None, 0))
    theirs = score["speedup_geomean"]
    worst = max(worst, abs(value / theirs - 1)) if value and theirs else worst
    both = f"{value or math.nan:9.4f} {theirs or math.nan:9.4f}  {n}/{score['n_problems']}"
    print(f"{score['algorithm']:24} {score['pass']:12} {both}")
print(f"largest relative difference: {worst:.2e}")
