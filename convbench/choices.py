"""Which implementation a name, a family or "auto" stands for: rules, written down, that `explain` shows.

A name is itself, or an error. A family ("winograd") is its best member: of those that are available and support
the problem, the first tier in TIER_ORDER, then the fewest executed operations, then the shortest name.
"auto", until measured decision tables exist:
  1. the convolution is binary: the best binary member;
  2. the filter is at least 9 x 9, stride and dilation 1, and a group has at least 8 input and 8 output channels:
     fft_tiled_pyfftw, because operations of a direct method grow with the filter's area and those of a tiled FFT
     hardly do;
  3. onednn, the vendor's library, where it takes the problem;
  4. im2col_numpy, which takes every shape;
  5. otherwise the best member of all.
What is not registered, not available or does not support the problem is passed over, and the reason says so.
Standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from convbench import catalog
from convbench.errors import Unavailable, UnknownAlgorithm, Unsupported, UsageError
from convbench.problem import Problem, Semantics
from convbench.registry import Implementation

AUTO = "auto"
#: Best first. MKL leads NumPy's OpenBLAS on Intel only, so it is asked for by name.
TIER_ORDER = ("simd", "numpy", "mkl", "pyfftw", "scipy", "numba")
LARGE_FILTER = 9
ENOUGH_CHANNELS = 8

Rows = Mapping[str, Implementation]


@dataclass(frozen=True)
class Choice:
    """The registered name that was chosen, and the sentence that says why."""

    name: str
    reason: str


def choose(problem: Problem, weights: str = "raw", rows: Rows | None = None) -> Choice:
    """What "auto" takes for a problem. weights: raw or packed. rows: all that are registered, by default.

    Raises Unsupported if nothing registered takes the problem.
    """
    return automatic(problem, weights, catalog.load().implementations if rows is None else rows)[0]


def resolve(problem: Problem, weights: str, algorithm: str, rows: Rows) -> list[Choice]:
    """What `algorithm` (a name, a family or "auto") stands for, best first; one entry for a name.

    Raises UnknownAlgorithm (with the nearest name), Unsupported, Unavailable, or UsageError where a binary
    algorithm is asked for without semantics="binary".
    """
    if algorithm == AUTO:
        return automatic(problem, weights, rows)
    if algorithm in rows:
        _same_semantics(algorithm, [rows[algorithm]], problem)
        refusal = refusal_of(rows[algorithm], problem, weights)
        if refusal is not None:
            raise refusal
        return [Choice(algorithm, "asked for by name")]
    family = [row for row in rows.values() if row.family == algorithm]
    if not family:
        raise UnknownAlgorithm(_unknown(algorithm, rows))
    _same_semantics(algorithm, family, problem)
    ranked = best(problem, weights, family)
    if not ranked:
        raise Unsupported("; ".join(str(refusal_of(row, problem, weights)) for row in family))
    return [Choice(row.name, f"the best member of {algorithm} for this problem") for row in ranked]


def automatic(problem: Problem, weights: str, rows: Rows) -> list[Choice]:
    """The rule of "auto" (at the top of this file): every candidate, best first. Raises Unsupported."""
    chosen: list[Choice] = []
    passed_over: list[str] = []

    def consider(name: str, reason: str) -> None:
        refusal = refusal_of(rows[name], problem, weights) if name in rows else f"{name} is not registered"
        if refusal is not None:
            passed_over.append(str(refusal))
        elif name not in [c.name for c in chosen]:
            chosen.append(Choice(name, "; ".join([*passed_over, reason])))

    if problem.semantics is Semantics.LINEAR:
        if _large_filter(problem):
            consider("fft_tiled_pyfftw", _why_large(problem))
        consider("onednn", "the vendor's library takes this problem")
        consider("im2col_numpy", "im2col takes every shape")
    if not chosen:
        ranked = best(problem, weights, rows.values())
        chosen = [Choice(row.name, "; ".join([*passed_over, "the best member of all"])) for row in ranked]
    if not chosen:
        s = problem.semantics
        raise Unsupported(
            f"no registered implementation takes this {s} {problem.pass_} problem in {problem.dtype}, "
            f"{problem.layout}: see `convbench explain`"
        )
    return chosen


def best(problem: Problem, weights: str, rows: Iterable[Implementation]) -> list[Implementation]:
    """Those that are available and take the problem, best first by the rule for families."""

    def rank(row: Implementation) -> tuple[int, float, int, str]:
        tier = row.name.rsplit("_", 1)[-1]
        place = TIER_ORDER.index(tier) if tier in TIER_ORDER else len(TIER_ORDER)
        return place, sum(row.executed_flops(problem).values()), len(row.name), row.name

    return sorted((row for row in rows if refusal_of(row, problem, weights) is None), key=rank)


def refusal_of(row: Implementation, problem: Problem, weights: str) -> Exception | None:
    """Why a row cannot compute a problem on the CPU, as the exception to raise, or None."""
    if row.device != "cpu":
        return Unsupported(f"{row.name} runs on {row.device}, but the arrays are NumPy's")
    why_not = row.why_not(problem, weights)
    if why_not is not None:
        return Unsupported(why_not)
    missing = row.unavailable()
    return Unavailable(missing) if missing is not None else None


def _large_filter(problem: Problem) -> bool:
    s = problem.shape
    dense = s.stride == (1, 1) and s.dilation == (1, 1)
    return dense and min(s.r, s.s) >= LARGE_FILTER and min(s.cg, s.kg) >= ENOUGH_CHANNELS


def _why_large(problem: Problem) -> str:
    s = problem.shape
    return f"the filter is {s.r} x {s.s} with stride 1: a tiled FFT needs fewer operations"


def _same_semantics(algorithm: str, rows: list[Implementation], problem: Problem) -> None:
    have = {row.semantics for row in rows}
    if problem.semantics not in have:
        only = " or ".join(sorted(have))
        raise UsageError(
            f"{algorithm} computes the {only} convolution, not the {problem.semantics} one: "
            f'say semantics="{only}" if that is what you want'
        )


def _unknown(algorithm: str, rows: Rows) -> str:
    names = sorted({AUTO, *rows, *(row.family for row in rows.values())})
    near = difflib.get_close_matches(str(algorithm), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    return f"no algorithm or family is called {algorithm!r}: {hint} (`convbench list` shows all)"
