"""The conformance suite: what every implementation must compute rightly. Shipped for plug-in authors.

    from convbench.testing import conformance

    @pytest.mark.parametrize("case", conformance.cases(MyConvolution()), ids=str)
    def test_conforms(case):
        outcome = conformance.check(MyConvolution(), case.problem, case.weights)
        assert outcome.status in ("ok", "unsupported"), outcome.reason

The shapes are small, exceed every tile that is in use and hit every remainder. `limits() is None` is a promise: what
breaks it is "wrong", whatever the cause.

    python -m convbench.testing.conformance --write-golden [PATH] [--allow-shrink]

writes the support matrix (which implementation takes which of these shapes) and refuses to drop a case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convbench.devices.cpu import CpuDevice
from convbench.errors import Unavailable, Unsupported
from convbench.problem import ITEM_BYTES, ConvShape, Pass, Problem
from convbench.registry import Implementation
from convbench.verify import Verifier

_make = ConvShape.make

SHAPES: dict[str, ConvShape] = {
    "odd_channels": _make(2, 17, 13, 11, 19, 3, 3, padding=1),
    "asymmetric_padding": _make(1, 5, 10, 15, 7, 3, 3, padding=((1, 0), (0, 2))),
    "no_padding": _make(3, 8, 9, 9, 4, 3, 3),
    "wide": _make(1, 3, 7, 70, 5, 3, 3, padding=1),
    "past_32": _make(1, 2, 37, 35, 3, 3, 3, padding=1),
    "many_channels": _make(1, 40, 7, 7, 33, 3, 3, padding=1),
    "batch_5": _make(5, 3, 8, 8, 6, 3, 3, padding=1),
    "filter_5x5": _make(1, 6, 14, 13, 9, 5, 5, padding=2),
    "filter_5x5_no_padding": _make(2, 3, 9, 10, 4, 5, 5),
    "filter_13x13": _make(1, 2, 20, 18, 3, 13, 13, padding=6),
    "filter_1xS": _make(2, 5, 6, 17, 4, 1, 7, padding=(0, 3)),
    "filter_Rx1": _make(2, 4, 17, 6, 5, 5, 1, padding=(2, 0)),
    "filter_2x3": _make(1, 4, 8, 9, 3, 2, 3, padding=((0, 1), (1, 1))),
    "pointwise": _make(3, 17, 7, 5, 19, 1, 1),
    "pointwise_stride_2": _make(1, 9, 9, 8, 6, 1, 1, stride=2),
    "filter_7x7_stride_2": _make(1, 3, 19, 21, 8, 7, 7, stride=2, padding=3),
    "filter_11x11_stride_4": _make(1, 3, 31, 27, 6, 11, 11, stride=4, padding=2),
    "stride_3": _make(1, 4, 14, 13, 5, 3, 3, stride=3, padding=1),
    "stride_2x1": _make(3, 18, 9, 8, 20, 3, 2, stride=(2, 1), padding=((1, 0), (0, 2))),
    "stride_beyond_filter": _make(1, 3, 11, 10, 4, 1, 2, stride=3),
    "dilation_2": _make(1, 4, 12, 11, 6, 3, 3, dilation=2, padding=2),
    "asymmetric_everything": _make(1, 4, 13, 15, 6, 3, 2, (2, 3), ((2, 1), (0, 3)), (3, 2), groups=2),
    "groups": _make(2, 8, 9, 8, 12, 3, 3, padding=1, groups=4),
    "depthwise": _make(1, 19, 10, 9, 19, 3, 3, padding=1, groups=19),
    "depthwise_multiplier": _make(2, 5, 9, 9, 10, 3, 3, stride=2, padding=1, groups=5),
    "padding_beyond_filter": _make(1, 3, 4, 5, 2, 3, 3, padding=4),
    "padding_only_taps": _make(2, 3, 1, 3, 4, 3, 3, padding=1),
    "one_pixel": _make(1, 5, 1, 1, 4, 1, 1),
    "one_channel": _make(1, 1, 8, 9, 1, 3, 3, padding=1),
}
#: Shapes on which packed weights are checked too.
PACKED_SHAPES = ("odd_channels", "asymmetric_padding", "filter_5x5", "filter_1xS", "pointwise", "stride_2x1",
                 "asymmetric_everything", "depthwise", "padding_beyond_filter")
DTYPES = tuple(ITEM_BYTES)
#: Measured workspace may exceed the estimate by this factor and this many bytes.
WORKSPACE_FACTOR, WORKSPACE_SLACK_BYTES = 1.25, 1 << 20


@dataclass(frozen=True)
class ConformanceCase:
    """One shape for one implementation; its text is a test id."""

    shape_name: str
    problem: Problem
    weights: str = "raw"

    def __str__(self) -> str:
        p = self.problem
        return f"{p.pass_} {p.dtype} {p.layout} {self.weights} {self.shape_name}"


@dataclass
class Outcome:
    """status: ok, unsupported (reason: the sentence of limits), unavailable or wrong (reason: the finding)."""

    status: str
    reason: str = ""
    notes: list[str] = field(default_factory=list)


def cases(implementation: Implementation, dtypes: Sequence[str] = DTYPES) -> Iterator[ConformanceCase]:
    """Every shape in each pass, dtype (of `dtypes`) and layout that the class declares; packed weights on some."""
    for pass_ in implementation.passes:
        for dtype in (d for d in dtypes if d in implementation.dtypes):
            for layout in implementation.layouts:
                for name, shape in SHAPES.items():
                    problem = Problem(shape, pass_, dtype, layout, implementation.semantics)
                    yield ConformanceCase(name, problem)
                    if name in PACKED_SHAPES and pass_ is not Pass.BACKWARD_WEIGHTS:
                        yield ConformanceCase(name, problem, "packed")


def check(
    implementation: Implementation,
    problem: Problem,
    weights: str = "raw",
    verifier: Verifier | None = None,
    threads: int | None = None,
    device: Any = None,
) -> Outcome:
    """Takes one case the way that timing does: limits, estimate, prepare, verification; then the memory it took.

    verifier: one to share between implementations of the same problem. threads: all cores unless given. device: where
    the row runs, the CPU unless given (`devices.cuda.CudaDevice` for a GPU).
    """
    sentence = implementation.why_not(problem, weights)
    if sentence:
        return Outcome("unsupported", sentence)
    missing = implementation.unavailable()
    if missing:
        return Outcome("unavailable", missing)
    count = threads or os.cpu_count() or 1
    try:
        estimate = implementation.estimate(problem, weights)
        judge = verifier or Verifier(problem, device=device)
        plan, verdict = judge.verify(implementation, lambda: (device or CpuDevice()).context(count), weights)
    except Unsupported as refused:  # a vendor's library that says so only when asked
        return Outcome("unsupported", str(refused))
    except Unavailable as missing_library:
        return Outcome("unavailable", str(missing_library))
    except Exception as broken:  # noqa: BLE001 - whatever breaks the promise is the finding
        return Outcome("wrong", f"raised {type(broken).__name__}: {broken}")
    if plan is None:
        return Outcome("wrong", verdict.reason)
    measured = plan.workspace_bytes + verdict.peak_bytes
    if measured > WORKSPACE_FACTOR * estimate + WORKSPACE_SLACK_BYTES:
        finding = (
            f"memory: {measured} bytes were allocated ({plan.workspace_bytes} through the context, "
            f"{verdict.peak_bytes} in one run), workspace_estimate() says {estimate}"
        )
        return Outcome("wrong", finding)
    return Outcome("ok", notes=verdict.notes)


# ---- the support matrix

#: implementation -> "pass dtype layout weights" -> names of the shapes that limits() accepts
Matrix = dict[str, dict[str, list[str]]]


def support_matrix(implementations: dict[str, Implementation]) -> Matrix:
    """What each implementation promises, and nothing of those whose promise this machine cannot tell."""
    matrix: Matrix = {}
    for name, implementation in sorted(implementations.items()):
        if implementation.unavailable() and not _promises_everywhere(implementation):
            continue
        row: dict[str, list[str]] = {}
        for case in cases(implementation, implementation.dtypes):
            sentence = implementation.why_not(case.problem, case.weights)
            # whether a library takes its reference code depends on the CPU: that is no loss of support
            if sentence is None or (implementation.vendor and "reference implementation" in sentence):
                p = case.problem
                row.setdefault(f"{p.pass_} {p.dtype} {p.layout} {case.weights}", []).append(case.shape_name)
        matrix[name] = row
    return matrix


def _promises_everywhere(implementation: Implementation) -> bool:
    """Whether limits() asks nothing of the machine: rows for a GPU, but those that ask the vendor's library."""
    return implementation.device == "cuda" and not implementation.vendor


def lost(golden: Matrix, current: Matrix) -> list[str]:
    """Cases of `golden` that `current` no longer has, for the implementations that are in `current`."""
    gone = []
    for name, row in golden.items():
        for combination, shapes in row.items() if name in current else ():
            have = current[name].get(combination, [])
            gone += [f"{name} {combination} {shape}" for shape in shapes if shape not in have]
    return gone


def write_golden(path: Path, current: Matrix, removed: list[str], allow_shrink: bool) -> list[str]:
    """Writes the matrix; gives the cases that keep it from being written (empty: written).

    Rows of implementations that are merely unavailable here are kept. removed: names that no longer exist.
    """
    golden: Matrix = json.loads(path.read_text()) if path.is_file() else {}
    gone = lost(golden, current) + [f"{name} (all of it)" for name in removed if name in golden]
    if gone and not allow_shrink:
        return gone
    kept = {name: row for name, row in golden.items() if name not in current and name not in removed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(kept | current))
    return []


def render(matrix: Matrix) -> str:
    """JSON with one line for each implementation and combination, so that a change reads well in a diff."""
    rows = []
    for name, row in sorted(matrix.items()):
        lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(shapes)}" for key, shapes in sorted(row.items()))
        rows.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    return "{\n" + ",\n".join(rows) + "\n}\n"


def built_in() -> tuple[dict[str, Implementation], dict[str, str]]:
    """(implementations that come with convbench, modules that could not be loaded with their reasons)."""
    from convbench import catalog

    found = catalog.load()
    own = {
        name: row for name, row in found.implementations.items() if found.origins[name].plugin is None
    }
    return own, {broken.name: broken.reason for broken in found.broken}


def main(arguments: list[str] | None = None) -> int:
    """Command line of `python -m convbench.testing.conformance`."""
    parser = argparse.ArgumentParser(prog="python -m convbench.testing.conformance", description=__doc__.split("\n")[0])
    parser.add_argument("--write-golden", nargs="?", const="tests/golden/support_matrix.json", metavar="PATH",
                        required=True, help="write the support matrix to PATH (default: %(const)s)")
    parser.add_argument("--allow-shrink", action="store_true", help="write it even if cases are lost")
    options = parser.parse_args(arguments)
    implementations, broken = built_in()
    path = Path(options.write_golden)
    known = json.loads(path.read_text()) if path.is_file() else {}
    removed = [] if broken else [name for name in known if name not in implementations]
    gone = write_golden(path, support_matrix(implementations), removed, options.allow_shrink)
    if gone:
        sys.stderr.write(f"{len(gone)} supported cases would be lost; --allow-shrink writes it anyway:\n")
        sys.stderr.write("".join(f"  {case}\n" for case in gone))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
