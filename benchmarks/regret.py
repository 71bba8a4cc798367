"""How much time "auto" loses: its pick against the best row, on the layers of networks that it was not calibrated on.

    python benchmarks/regret.py [--shapes vgg16 ...] [--pass fwd] [--weights packed] [--layout nhwc] [--threads 1]
                                [--max-minutes 25] [--quick] [--results FILE] [--analyse]

Regret is the time of the row that auto picks over that of the fastest, medians of interleaved samples of verified
cases, in a worker as in every run. Rows predicted to be more than 3 times slower than the pick are not timed, but for
every eighth problem, where all are, also those that auto never takes (all but PyTorch and the naive loops); how often
one of those was the best is printed. Problems that do not fit into memory are left out with a sentence. FILE holds one
line a problem; a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from convbench import catalog, choices, environment, foresight, probe  # noqa: E402
from convbench.descriptor import parse_descriptor, print_descriptor  # noqa: E402
from convbench.problem import Pass, Problem  # noqa: E402
from convbench.runner import calibrate  # noqa: E402
from convbench.runner.plan import RunPlan  # noqa: E402
from convbench.runner.session import Session  # noqa: E402
from convbench.shapes import load_shapes  # noqa: E402
from convbench.stats import geomean_ci  # noqa: E402
from convbench.suite import ProblemCase  # noqa: E402

NETWORKS = ("vgg16", "resnet50", "googlenet", "deepbench_training")
HOPELESS = 3.0  # times the pick's predicted time
ALL_EVERY = 8  # problems: one in so many times every row
QUICK_EVERY = 5
NEVER_TIMED = ("torch", "direct_naive_numba")
SHARE_S = 30.0
POLICY = replace(calibrate.POLICY, workspace_limit_bytes=2**32)


def problems_of(options: argparse.Namespace) -> list[tuple[str, ProblemCase]]:
    """(network, case) in the order of the files; shapes that a file repeats once."""
    found: dict[tuple[str, Problem, str], ProblemCase] = {}
    for network in options.shapes:
        for index, layer in enumerate(load_shapes(ROOT / "suites" / "shapes" / f"{network}.yaml").layers):
            if options.quick and index % QUICK_EVERY:
                continue
            for pass_ in options.passes:
                for weights in ["raw"] if pass_ == Pass.BACKWARD_WEIGHTS else options.weights:
                    problem = Problem(layer.shape, Pass(pass_), "float32", options.layout)
                    case = ProblemCase(problem, weights, options.threads, "hot", 0, layer.name, layer.count)
                    found.setdefault((network, problem, weights), case)
    return [(key[0], case) for key, case in found.items()]


def key_of(network: str, case: ProblemCase) -> str:
    """What tells a line of the results from the others."""
    return f"{network} {print_descriptor(case.problem)} {case.weights} {case.threads}"


def rows_to_time(case: ProblemCase, rows: list[str], everything: bool) -> tuple[str, list[str], dict[str, float], str]:
    """(auto's pick, rows worth timing, predicted times, the reason)."""
    loaded = catalog.load().implementations
    considered = {name: loaded[name] for name in rows}
    choice = choices.choose(case.problem, case.weights, considered, case.threads)
    found = choices.predictions(case.problem, case.weights, considered, case.threads)
    known = {name: p.ns for name, p in found.items() if p.ns is not None}
    limit = HOPELESS * known.get(choice.name, float("inf"))
    names = [n for n in found if everything or n == choice.name or known.get(n, 0.0) <= limit]
    if everything:
        names += [n for n in calibrate.NOT_CANDIDATES if n not in (*names, *NEVER_TIMED)]
    return choice.name, names, known, choice.reason


def time_problem(
    session: Session, case: ProblemCase, names: list[str], pick: str
) -> tuple[dict[str, float], list[str]]:
    """(median nanoseconds of each row, sentences about those that have none)."""
    plan = RunPlan({"name": "regret"}, [case], names, [pick], POLICY)
    records = calibrate.QuickRun(plan, case, session, SHARE_S, lambda *_: None).run()
    ok = {r.case.implementation: statistics.median(r.ns_per_call) for r in records if r.status == "ok"}
    return ok, [f"{r.status}: {r.reason}" for r in records if r.status not in ("ok", "unsupported")]


def measure(options: argparse.Namespace, results: Path) -> None:
    """Times what has no line yet, until the time is up."""
    have = {line["key"] for line in lines_of(results)}
    todo = problems_of(options)
    listing, facts = probe.probe(), environment.collect()
    rows = list(calibrate.candidates(listing)[0])
    end = time.monotonic() + 60 * options.max_minutes
    print(f"{len(todo)} problems; {foresight.current().status}", flush=True)
    with Session(listing, facts["env_id"], facts["versions"]) as session:
        for index, (network, case) in enumerate(todo):
            key = key_of(network, case)
            if key in have:
                continue
            if time.monotonic() > end:
                print(f"the time is up: {len(todo) - index} problems were not reached; the same command goes on")
                return
            if 8 * case.problem.operand_bytes > session.memory_bytes:
                print(f"{network} {case.label}: left out, it does not fit into memory with its verification")
                continue
            everything = index % ALL_EVERY == 0
            pick, names, known, reason = rows_to_time(case, rows, everything)
            times, troubles = time_problem(session, case, names, pick)
            line = {
                "key": key, "network": network, "label": case.label, "problem": print_descriptor(case.problem),
                "weights": case.weights, "threads": case.threads, "everything": everything, "pick": pick,
                "reason": reason, "predicted": known, "ns": times, "troubles": troubles,
            }  # fmt: skip
            with open(results, "a") as file:
                file.write(json.dumps(line) + "\n")


def lines_of(results: Path) -> list[dict[str, Any]]:
    """What was measured before."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def renewed(line: dict[str, Any]) -> dict[str, Any]:
    """The line with what auto would pick now, out of the rows that were timed."""
    loaded = catalog.load().implementations
    problem = parse_descriptor(line["problem"]).problem
    rows = {name: loaded[name] for name in line["ns"] if name in loaded}
    found = choices.predictions(problem, line["weights"], rows, line["threads"])
    known = {name: p.ns for name, p in found.items() if p.ns is not None}
    return line | {"pick": choices.choose(problem, line["weights"], rows, line["threads"]).name, "predicted": known}


def analyse(lines: list[dict[str, Any]]) -> None:
    """Prints regret by network, the worst ten, and what the left-out rows would have changed."""
    by_network: dict[str, list[float]] = defaultdict(list)
    vendor: dict[str, list[float]] = defaultdict(list)
    table, surprises, tested = [], 0, 0
    for line in lines:
        times, pick = line["ns"], line["pick"]
        if pick not in times:
            print(f"no time for auto's pick: {line['key']}: {'; '.join(line['troubles'])}")
            continue
        best = min(times, key=lambda name: times[name])
        regret = times[pick] / times[best]
        by_network[line["network"]].append(regret)
        if "onednn" in times:
            vendor[line["network"]].append(times["onednn"] / times[best])
        table.append((regret, line, best))
        if line["everything"]:
            known = line["predicted"]
            tested += 1
            surprises += best not in known or known[best] > HOPELESS * known.get(pick, float("inf"))
    everything = [r for values in by_network.values() for r in values]
    if not everything:
        print("nothing was measured")
        return
    for name, values in [*by_network.items(), ("all", everything)]:
        mean = geomean_ci(values)
        text = f"{name:20} {len(values):4} problems: regret geomean {mean.value:.3f} [{mean.lo:.3f}, {mean.hi:.3f}], "
        text += f"worst {max(values):.2f}, auto picked the fastest in {sum(v == 1 for v in values)}"
        others = vendor[name] if name in vendor else [v for values in vendor.values() for v in values]
        print(text + (f"; always onednn {geomean_ci(others).value:.2f}, worst {max(others):.2f}" if others else ""))
    print(f"rows without prediction or one over {HOPELESS:g} times the pick: the best in {surprises} of {tested} tests")
    print("the worst ten")
    for regret, line, best in sorted(table, key=lambda t: -t[0])[:10]:
        times, known, pick = line["ns"], line["predicted"], line["pick"]
        says = ", ".join(
            f"{n} {times[n] / 1e6:.3f} ms (predicted {known.get(n, float('nan')) / 1e6:.3f})" for n in (pick, best)
        )
        print(f"  {regret:.2f}  {line['network']} {line['label']} {line['problem']} {line['weights']}: {says}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=NETWORKS)
    parser.add_argument("--pass", dest="passes", nargs="+", default=["fwd"], choices=[str(p) for p in Pass])
    parser.add_argument("--weights", nargs="+", default=["packed"], choices=("raw", "packed"))
    parser.add_argument("--layout", default="nhwc", choices=("nhwc", "nchw"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-minutes", type=float, default=25.0)
    parser.add_argument("--quick", action="store_true", help=f"every {QUICK_EVERY}th layer")
    parser.add_argument("--results", type=Path, default=Path("regret.jsonl"))
    parser.add_argument("--analyse", action="store_true", help="only print what the results file says")
    parser.add_argument("--anew", action="store_true", help="--analyse with the picks of today's calibration")
    options = parser.parse_args()
    if not options.analyse:
        measure(options, options.results)
    lines = lines_of(options.results)
    analyse([renewed(line) if line["ns"] else line for line in lines] if options.anew else lines)


if __name__ == "__main__":
    main()
