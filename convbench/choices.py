"""Which implementation a name, a family or "auto" stands for: rules, written down, that `explain` shows.

A name is itself, or an error.

"auto" is the least predicted time (`foresight.py`) of all rows that are available, take the problem and have a
prediction; `convbench doctor --calibrate` measures them on this machine, coefficients that come with the package
serve until then. It minds time alone: bounds of the error are in `convbench list`. Where nothing is predicted (float64,
for instance) rules decide:
  1. the semantics is not linear: the best member that computes it;
  2. the filter is at least 9 x 9, stride and dilation 1, and a group has at least 8 input and 8 output channels:
     fft_tiled_pyfftw, because operations of a direct method grow with the filter's area and those of a tiled FFT
     hardly do;
  3. float16: winograd_f4_fp16_simd where results and channels are enough to fill its tiles, else direct_fp16_simd;
     both were faster than the vendors' float16 on every layer of VGG-16 and ResNet-50 that was measured;
  4. onednn (of int8, bfloat16 and float16 onednn_int8, _bf16, _fp16), the vendor's library, where it takes the problem;
  5. im2col_numpy, which takes every shape;
  6. otherwise the best member of all.
What is not registered, not available or does not support the problem is passed over, and the reason says so.

A family ("winograd") is its best member: of those that are available and support the problem, the least predicted
time; what has no prediction comes after, by the first tier in TIER_ORDER, then the fewest executed operations, each
weighed by what it costs where rows of one function multiply in different things (RATES), then the shortest name.
Standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from convbench import catalog, environment, foresight, formats
from convbench.errors import Unavailable, UnknownAlgorithm, Unsupported, UsageError
from convbench.problem import Problem, Semantics
from convbench.registry import Implementation

AUTO = "auto"
#: Best first. MKL leads NumPy's OpenBLAS on Intel only, so it is asked for by name.
TIER_ORDER = ("simd", "numpy", "mkl", "pyfftw", "scipy", "numba")
#: The vendor's row for an element type, where it is not onednn.
VENDOR = {"int8": "onednn_int8", "bfloat16": "onednn_bf16", "float16": "onednn_fp16"}
#: Operations in the time of one in float32, at most, on a processor that has both: full adders and VPOPCNTDQ over 512
#: bits, which take 1.25 steps a word, and tiles of bytes (AMX), without which no row multiplies signs in int8.
RATES = {"binary": 12.8, "int8-acc32": 32.0}
LARGE_FILTER = 9
ENOUGH_CHANNELS = 8
TILE_CHANNELS, TILE_RESULTS = 16, 100

Rows = Mapping[str, Implementation]


@dataclass(frozen=True)
class Choice:
    """The registered name that was chosen, and the sentence that says why."""

    name: str
    reason: str


def choose(
    problem: Problem, weights: str = "raw", rows: Rows | None = None, threads: int | None = None
) -> Choice:
    """What "auto" takes for a problem. weights: raw or packed. rows: all that are registered, by default.

    threads: the cores that will work, by default all that this process may use. Raises Unsupported if nothing
    registered takes the problem.
    """
    return automatic(problem, weights, catalog.load().implementations if rows is None else rows, threads)[0]


def resolve(
    problem: Problem, weights: str, algorithm: str, rows: Rows, threads: int | None = None
) -> list[Choice]:
    """What `algorithm` (a name, a family or "auto") stands for, best first; one entry for a name.

    Raises UnknownAlgorithm (with the nearest name), Unsupported, Unavailable, or UsageError where a binary
    algorithm is asked for without semantics="binary".
    """
    if algorithm == AUTO:
        return automatic(problem, weights, rows, threads)
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
    by_time = _by_time(problem, weights, {row.name: row for row in family}, threads)
    by_rule = [Choice(row.name, f"the best member of {algorithm} for this problem") for row in ranked]
    return _joined(by_time, by_rule)


def automatic(problem: Problem, weights: str, rows: Rows, threads: int | None = None) -> list[Choice]:
    """The rule of "auto" (at the top of this file): every candidate, best first. Raises Unsupported."""
    by_time = _by_time(problem, weights, rows, threads)
    try:
        return _joined(by_time, by_rules(problem, weights, rows))
    except Unsupported:
        if by_time:
            return by_time
        raise


def predictions(
    problem: Problem, weights: str, rows: Rows, threads: int | None = None
) -> dict[str, foresight.Prediction]:
    """What each row that takes the problem is expected to need, or why that is not known."""
    known, cores = foresight.current(), threads or environment.allowed_cores()
    return {
        name: known.predict(row, problem, weights, cores)
        for name, row in rows.items()
        if refusal_of(row, problem, weights) is None
    }


def _by_time(problem: Problem, weights: str, rows: Rows, threads: int | None) -> list[Choice]:
    """The rows with a prediction, fastest first; each reason is one sentence."""
    if problem.semantics is not Semantics.LINEAR or problem.dtype != foresight.DTYPE:
        return []
    known = foresight.current()
    found = predictions(problem, weights, {name: row for name, row in rows.items() if known.knows(name)}, threads)
    ranked = sorted((p.ns, name) for name, p in found.items() if p.ns is not None)
    chosen = []
    for place, (ns, name) in enumerate(ranked):
        rank = "the least" if place == 0 else f"number {place + 1}"
        reason = f"predicted {duration(ns)}, {rank} of {len(ranked)}"
        if place == 0 and len(ranked) > 1:
            reason += f"; then {ranked[1][1]}, {duration(ranked[1][0])}"
        note = f"; {found[name].note}" if found[name].note else ""
        chosen.append(Choice(name, f"{reason} ({known.status}{note})"))
    return chosen


def duration(ns: float) -> str:
    """Nanoseconds as text with three figures."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e3:.3g} us"


def _joined(first: list[Choice], then: list[Choice]) -> list[Choice]:
    names = {choice.name for choice in first}
    return [*first, *(choice for choice in then if choice.name not in names)]


def by_rules(problem: Problem, weights: str, rows: Rows) -> list[Choice]:
    """What the rules of "auto" take where nothing is predicted, best first. Raises Unsupported."""
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
        if problem.dtype == "float16":
            if _fills_tiles(problem):
                consider("winograd_f4_fp16_simd", "a quarter of the multiplications of float16 storage")
            consider("direct_fp16_simd", "float16 storage with products and sums in float32")
        consider(VENDOR.get(problem.dtype, "onednn"), "the vendor's library takes this problem")
        consider("im2col_numpy", "im2col takes every shape")
    if not chosen:
        ranked = best(problem, weights, rows.values())
        chosen = [Choice(row.name, "; ".join([*passed_over, "the best member of all"])) for row in ranked]
    if not chosen:
        s = problem.semantics
        raise Unsupported(
            formats.undefined(problem)
            or f"no registered implementation takes this {s} {problem.pass_} problem in {problem.dtype}, "
            f"{problem.layout}: see `convbench explain`"
        )
    return chosen


def best(problem: Problem, weights: str, rows: Iterable[Implementation]) -> list[Implementation]:
    """Those that are available and take the problem, best first by the rule for families."""

    def rank(row: Implementation) -> tuple[int, float, int, str]:
        tier = row.name.rsplit("_", 1)[-1]
        place = TIER_ORDER.index(tier) if tier in TIER_ORDER else len(TIER_ORDER)
        cost = sum(row.executed_flops(problem).values()) / RATES.get(row.arithmetic, 1.0)
        return place, cost, len(row.name), row.name

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


def _fills_tiles(problem: Problem) -> bool:
    """Whether F(4x4, 3x3) has tiles and channels enough to gain: measured, it loses below about 100 results."""
    s = problem.shape
    return min(s.cg, s.kg) >= TILE_CHANNELS and s.p * s.q >= TILE_RESULTS


def _why_large(problem: Problem) -> str:
    s = problem.shape
    return f"the filter is {s.r} x {s.s} with stride 1: a tiled FFT needs fewer operations"


def _same_semantics(algorithm: str, rows: list[Implementation], problem: Problem) -> None:
    have = {row.semantics for row in rows}
    if problem.semantics not in have:
        only, say = " or ".join(sorted(have)), " or ".join(f'semantics="{s}"' for s in sorted(have))
        raise UsageError(
            f"{algorithm} computes the {only} convolution, not the {problem.semantics} one: "
            f"say {say} if that is what you want"
        )


def _unknown(algorithm: str, rows: Rows) -> str:
    names = sorted({AUTO, *rows, *(row.family for row in rows.values())})
    near = difflib.get_close_matches(str(algorithm), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    return f"no algorithm or family is called {algorithm!r}: {hint} (`convbench list` shows all)"
