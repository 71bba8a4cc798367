"""Which row computes on CuPy's arrays: what a name, a family or "auto" stands for on a GPU.

A name is itself, or an error. "auto" takes, of the rows that are available and take the problem, those that multiply
in no less than its type (never TF32 for float32; of a semantics with one exact result, all): the vendor's library
first, then whichever executes the fewest operations, those that go through CuPy array by array (`*_cupy`) after all
kernels. A family is its best member by the same order, reduced precision last. Nothing is predicted on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping

from convbench import formats
from convbench.choices import AUTO, Choice
from convbench.errors import Unavailable, UnknownAlgorithm, Unsupported, UsageError
from convbench.nearest import nearest
from convbench.problem import Problem, Semantics
from convbench.registry import Implementation


def resolve(problem: Problem, weights: str, algorithm: str, rows: Mapping[str, Implementation]) -> list[Choice]:
    """Candidates, best first. Raises UnknownAlgorithm, Unsupported, Unavailable, or UsageError for semantics."""
    if algorithm in rows:
        refusal = _refusal(rows[algorithm], problem, weights)
        if refusal is not None:
            raise refusal
        return [Choice(algorithm, "asked for by name")]
    of_gpu = [row for row in rows.values() if row.device == "cuda"]
    if algorithm == AUTO and not any(row.semantics is problem.semantics for row in of_gpu):
        raise Unsupported(f"no row for a GPU computes the {problem.semantics} convolution: `convbench list --all`")
    members = of_gpu if algorithm == AUTO else [row for row in of_gpu if row.family == algorithm]
    if not members:
        names = sorted({AUTO, *(row.name for row in of_gpu), *(row.family for row in of_gpu)})
        raise UnknownAlgorithm(f"no algorithm or family for a GPU is called {algorithm!r}{nearest(algorithm, names)}")
    refusals = {row.name: _refusal(row, problem, weights) for row in members}
    able = [row for row in members if refusals[row.name] is None and (algorithm != AUTO or _exact(row, problem))]
    if not able:
        asked = [row for row in members if algorithm != AUTO or row.semantics is problem.semantics]
        known = [str(refusals[row.name]) for row in asked if refusals[row.name] is not None]
        why = formats.undefined(problem) or "; ".join(known)
        raise Unsupported(why or f"no row for a GPU multiplies in {problem.dtype}")
    able.sort(key=lambda row: _rank(row, problem))
    what = "the vendor's library" if able[0].vendor else "the fewest operations of those available"
    return [Choice(row.name, what if row is able[0] else f"after {able[0].name}") for row in able]


def _exact(row: Implementation, problem: Problem) -> bool:
    """Whether a row multiplies in no less than the problem's type, or in what its semantics asks for."""
    if problem.semantics not in (Semantics.LINEAR, Semantics.BINARY_WEIGHTS):
        return True
    return row.arithmetic in ("native", problem.dtype, f"{problem.dtype}-acc32")


def _rank(row: Implementation, problem: Problem) -> tuple[bool, bool, bool, float, str]:
    array_by_array = row.name.endswith("_cupy")  # one launch and one way through memory for each step
    flops = sum(row.executed_flops(problem).values())
    return not _exact(row, problem), not row.vendor, array_by_array, flops, row.name


def _refusal(row: Implementation, problem: Problem, weights: str) -> Exception | None:
    """Why a row cannot compute a problem on a GPU, as the exception to raise, or None."""
    if row.device != "cuda":
        return Unsupported(f"{row.name} runs on {row.device}, but the arrays are CuPy's: name a row for cuda")
    if row.semantics is not problem.semantics:
        return UsageError(f"{row.name} computes the {row.semantics} convolution, not the {problem.semantics} one")
    why_not = row.why_not(problem, weights)
    if why_not is not None:
        return Unsupported(why_not)
    missing = row.unavailable()
    return Unavailable(missing) if missing is not None else None
