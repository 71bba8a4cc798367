"""Across formats: accuracy beside speed, memory of weights, XNOR-Net's figure 4.

Everywhere else in the report two rows meet only where they compute the same function of the same operands. Here they
do not, and the join is made by hand: a row meets those of the same shape, pass, layout, weights, threads, mode, inputs
and seed whose type or semantics is another. Every number that comes of it is a speed-up *against another function*,
and says so where it is shown; the relative L2 error beside it says how far the functions lie apart. Rows of different
problems share no block, so these ratios are those of separate medians.

An error is always that against the linear convolution of the operands as they were given. A semantics is given float32
operands and rounds them itself, so its rounding is part of its error; operands of type float16, bfloat16 or int8 are
given rounded, so that step is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from convbench.formats import weight_bytes
from convbench.problem import ConvShape, Problem, Semantics
from convbench.report.model import Analysis, FormatPoint, NetworkPoint, Precision, Row, Setting, WeightMemory, XnorLine
from convbench.report.vendor import networks
from convbench.stats import Interval, speedup_ci

#: Name of the point that takes each layer's fastest row of a format.
FASTEST = "fastest of each layer"
#: Format of operands that are int8 before the clock starts.
GIVEN_ROUNDED = "int8 operands"
#: Semantics whose products are those of signs.
SIGNS = (Semantics.XNOR, Semantics.BINARY)
#: What rows on signs are held against: name in tables and figures -> (rows, element type); the fastest of the rows.
XNOR_BASELINES: dict[str, tuple[tuple[str, ...], str]] = {
    "naive float32": (("direct_naive_numba",), "float32"),
    "im2col + BLAS float32": (("im2col_numpy",), "float32"),
    "oneDNN float32": (("onednn", "onednn_blocked"), "float32"),
    "oneDNN int8": (("onednn_int8",), "int8"),
}
#: Products of signs that one operation does in XNOR-Net's count.
WORD = 64

Place = tuple[Setting, ConvShape, int]


def across_formats(analysis: Analysis) -> Precision | None:
    """The comparison, or None for a run of one format."""
    timed = [row for row in analysis.rows if row.ok]
    if len({format_of(row) for row in timed}) < 2:
        return None
    default = str(analysis.suite.get("name") or "all problems")
    references = _references(timed)
    packing = _packing(timed)
    points = [
        FormatPoint(
            row, format_of(row), networks(row.layer, default), of := references.get(_place(row)), _speedup(of, row),
            packing.get(row.record.case.id),
        )
        for row in timed
    ]  # fmt: skip
    return Precision(points, _networks(analysis.rows, points, default), _memory(timed, default), _xnor(timed, packing))


def format_of(row: Row) -> str:
    """The name of a row's format: its semantics; of the linear one its type, and the arithmetic where that is narrower.

    "int8" is float32 operands rounded to 8 bits with scales; "int8 operands" those that are int8 already.
    """
    problem = row.problem
    if problem.semantics is not Semantics.LINEAR:
        return problem.semantics.value
    if problem.dtype == "int8":
        return GIVEN_ROUNDED
    if problem.dtype in ("float32", "float64") and row.arithmetic != problem.dtype:
        return f"{problem.dtype} in {row.arithmetic}"
    return problem.dtype


def xnor_theory(problem: Problem) -> float:
    """XNOR-Net's speed-up of binary operations over real ones: 64 c N_W / (c N_W + 64), c the channels of a group."""
    products = problem.shape.cg * problem.shape.r * problem.shape.s
    return WORD * products / (products + WORD)


def _place(row: Row) -> Place:
    """What rows of several formats share on one layer."""
    return row.setting.over_formats, row.problem.shape, row.options.seed


def _speedup(of: Row | None, row: Row) -> Interval | None:
    return speedup_ci(of.record, row.record) if of else None


def _references(timed: Iterable[Row]) -> dict[Place, Row]:
    """The fastest vendor row that multiplies in float32, for each place that has one."""
    found: dict[Place, Row] = {}
    for row in timed:
        if row.record.vendor and format_of(row) == "float32":
            held = found.get(_place(row))
            if held is None or row.time.value < held.time.value:
                found[_place(row)] = row
    return found


def _packing(timed: Iterable[Row]) -> dict[str, float]:
    """Case id of a row with raw weights -> seconds that it takes beyond the same row with packed ones."""
    packed = {_but_weights(row): row for row in timed if row.options.weights == "packed"}
    found = {}
    for row in timed:
        other = packed.get(_but_weights(row))
        if row.options.weights == "raw" and other:
            found[row.record.case.id] = row.time.value - other.time.value
    return found


def _but_weights(row: Row) -> tuple[str, Problem, object]:
    return row.algorithm, row.problem, replace(row.options, weights="raw")


def _networks(rows: Iterable[Row], points: Sequence[FormatPoint], default: str) -> list[NetworkPoint]:
    """Whoever has a time on every layer of a network, and each format's fastest rows.

    A layer counts as often as its record says, also where two networks share it.
    """
    layers: dict[tuple[Setting, str], set[ConvShape]] = {}
    formats = list(dict.fromkeys(point.format for point in points))
    for row in rows:
        for network in networks(row.layer, default):
            layers.setdefault((row.setting.over_formats, network), set()).add(row.problem.shape)
    held: dict[tuple[Setting, str, str], dict[str, dict[ConvShape, FormatPoint]]] = {}
    for point in points:
        for network in point.networks:
            group = held.setdefault((point.frame, network, point.format), {})
            group.setdefault(point.row.algorithm, {})[point.row.problem.shape] = point
    found = []
    for (frame, network, name), by_algorithm in held.items():
        shapes = layers[frame, network]
        complete = {algorithm: mine for algorithm, mine in by_algorithm.items() if mine.keys() == shapes}
        fastest: dict[ConvShape, FormatPoint] = {}
        for mine in by_algorithm.values():
            for shape, point in mine.items():
                if shape not in fastest or point.row.time.value < fastest[shape].row.time.value:
                    fastest[shape] = point
        if fastest.keys() == shapes and len({point.row.algorithm for point in fastest.values()}) > 1:
            complete[FASTEST] = fastest
        found += [_network_point(frame, network, a, name, list(mine.values())) for a, mine in complete.items()]
    place = {key: i for i, key in enumerate(layers)}
    return sorted(found, key=lambda p: (place[p.frame, p.network], formats.index(p.format), p.seconds))


def _network_point(
    frame: Setting, network: str, algorithm: str, name: str, points: Sequence[FormatPoint]
) -> NetworkPoint:
    counts = [point.row.record.case.count for point in points]
    seconds = sum(n * point.row.time.value for n, point in zip(counts, points, strict=True))
    references = [point.reference for point in points if point.reference]
    speedup = None
    if len(references) == len(points):
        speedup = sum(n * of.time.value for n, of in zip(counts, references, strict=True)) / seconds
    errors = [point.row.record.error.rel_l2 for point in points]
    known = [error for error in errors if error is not None]
    error = None
    if len(known) == len(errors):
        error = math.sqrt(sum(n * e * e for n, e in zip(counts, known, strict=True)) / sum(counts))
    return NetworkPoint(frame, network, algorithm, name, len(points), seconds, speedup, error)


def _memory(timed: Iterable[Row], default: str) -> list[WeightMemory]:
    """By network and format, the formats in single and double precision beside them; images at once do not matter."""
    layers: dict[tuple[str, str], dict[ConvShape, Row]] = {}
    shapes: dict[str, set[ConvShape]] = {}
    for row in timed:
        one = replace(row.problem.shape, n=1)
        for network in networks(row.layer, default):
            shapes.setdefault(network, set()).add(one)
            layers.setdefault((network, format_of(row)), {})[one] = row
    found = []
    for (network, name), rows in layers.items():
        if rows.keys() != shapes[network]:
            continue  # a format without a time on some layer has no sum
        problems = [(row.record.case.count, row.problem) for row in rows.values()]
        own = sum(count * weight_bytes(problem) for count, problem in problems)
        single, double = (
            sum(count * weight_bytes(Problem(p.shape, p.pass_, dtype, p.layout)) for count, p in problems)
            for dtype in ("float32", "float64")
        )
        found.append(WeightMemory(network, name, len(problems), own, single, double))
    return found


def _xnor(timed: Sequence[Row], packing: dict[str, float]) -> list[XnorLine]:
    """Each row on signs with those of XNOR_BASELINES that have a time in the same place."""
    at: dict[Place, list[Row]] = {}
    for row in timed:
        at.setdefault(_place(row), []).append(row)
    lines = []
    for row in timed:
        if row.problem.semantics not in SIGNS:
            continue
        against = {}
        for title, (names, dtype) in XNOR_BASELINES.items():
            rivals = [r for r in at[_place(row)] if r.algorithm in names and r.problem.dtype == dtype and _linear(r)]
            if rivals:
                first = min(rivals, key=lambda r: r.time.value)
                gain = _speedup(first, row)
                if gain is not None:
                    against[title] = (first, gain)
        lines.append(XnorLine(row, xnor_theory(row.problem), packing.get(row.record.case.id), against))
    return lines


def _linear(row: Row) -> bool:
    return row.problem.semantics is Semantics.LINEAR
