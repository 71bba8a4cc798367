"""What a run will do, written down before it starts, so that --resume needs neither the suite nor luck."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convbench.descriptor import parse_descriptor, print_descriptor
from convbench.errors import RecordsError
from convbench.problem import Case, Options
from convbench.suite import Policy, ProblemCase


@dataclass
class RunPlan:
    """Problems in order, algorithm names, baselines in order of preference, the policy, and whose rows they are.

    semantics: of each row that takes part only in problems of its own semantics; a row that the command line names is
    not in it, and its records say what it does not compute.
    """

    suite: dict[str, Any]
    problems: list[ProblemCase]
    algorithms: list[str]
    baseline: list[str]
    policy: Policy
    source_sha: dict[str, str] = field(default_factory=dict)
    mixed: bool = False
    device: str = "cpu"
    semantics: dict[str, str] = field(default_factory=dict)

    def cases(self, problem: ProblemCase) -> list[Case]:
        """One case per algorithm, but for those of other semantics that the command line does not name."""
        options = Options(problem.weights, problem.threads, problem.mode, problem.inputs, problem.seed)
        own = problem.problem.semantics
        names = [name for name in self.algorithms if self.semantics.get(name, own) == own]
        return [Case(problem.problem, name, options, problem.label, problem.count) for name in names]

    def to_json(self) -> str:
        """The plan as a JSON document."""
        data = {
            "schema": 1,
            "suite": self.suite,
            "problems": [{**_plain(p), "problem": print_descriptor(p.problem)} for p in self.problems],
            "algorithms": self.algorithms,
            "baseline": self.baseline,
            "policy": asdict(self.policy),
            "source_sha": self.source_sha,
            "mixed": self.mixed,
            "device": self.device,
            "semantics": self.semantics,
        }
        return json.dumps(data, indent=1)

    @classmethod
    def from_file(cls, path: Path) -> RunPlan:
        """Reads a plan back. Raises RecordsError."""
        try:
            data = json.loads(path.read_text())
            problems = [
                ProblemCase(**{**p, "problem": parse_descriptor(p["problem"]).problem}) for p in data["problems"]
            ]
            return cls(
                data["suite"],
                problems,
                data["algorithms"],
                data["baseline"],
                Policy(**data["policy"]),
                data["source_sha"],
                data["mixed"],
                data.get("device", "cpu"),  # plans written before there was another
                data.get("semantics", {}),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordsError(
                f"{path} is not the plan of a run ({type(error).__name__}: {error}): "
                "--resume takes a folder that `convbench run` made"
            ) from error


def _plain(problem: ProblemCase) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("weights", "threads", "mode", "seed", "label", "count", "inputs")}


def repro_line(case: Case, device: str = "cpu") -> str:
    """The command that repeats one case."""
    o = case.options
    extra = "" if o.mode == "hot" else f" --mode {o.mode}"
    extra += "" if o.inputs == "normal" else f" --inputs {o.inputs}"
    extra += "" if device == "cpu" else f" --device {device}"
    return (
        f"python -m convbench run '{print_descriptor(case.problem)}' --algorithm {case.implementation} "
        f"--weights {o.weights} --threads {o.threads} --seed {o.seed}{extra}"
    )
