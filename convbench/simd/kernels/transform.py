"""Y = M X M^T for a constant matrix M, on many channels at once: every transform of Winograd convolution.

The matrix is known when the kernel is written, so zeros cost nothing, ones no multiplication, and what several rows
have in common (the even and odd parts of Cook-Toom's points +p and -p) is computed once: Lavin and Gray, arXiv
1509.09308.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from convbench.simd.compiler import kernel
from convbench.simd.emit import I64, Emitter, Value
from convbench.simd.kernels.stored import element, load, store
from convbench.simd.target import Target

Matrix = tuple[tuple[float, ...], ...]

#: channels: how many, any number. from_, to: a base address, or (where the kernel is built so) the address of a table
#: of addresses, one for each element of X or Y in row-major order. step: elements between neighbouring elements of X
#: or Y (not used with a table). Channels lie next to each other.
ARGUMENTS = ("channels", "from_", "step_from", "to", "step_to")


@kernel
def transform2d(
    target: Target, matrix: Matrix, gather: bool = False, scatter: bool = False, name: str = "t",
    source_type: str = "float32", result_type: str = "float32",
) -> Emitter:  # fmt: skip
    """The kernel for one matrix (rows x columns): X is columns x columns, Y rows x rows.

    gather: X through a table of addresses. scatter: Y through one. Channels beyond `channels` are not touched. X and Y
    may lie in memory as float16 each.
    """
    types = "" if source_type == result_type == "float32" else f"_{source_type}_{result_type}"
    e = Emitter(target, f"transform_{name}_{target.name}_{len(matrix)}x{len(matrix[0])}{types}", ARGUMENTS)
    channels, source, step_from, to, step_to = e.args
    rows, columns = len(matrix), len(matrix[0])
    inputs = _places(e, source, step_from, gather, source_type)
    outputs = _places(e, to, step_to, scatter, result_type)

    def body(at: Value, mask: Value | None) -> None:
        half = []  # one column of M X after the other
        for j in range(columns):
            x = [load(e, source_type, e.at(inputs(i * columns + j), at), mask) for i in range(columns)]
            half.append(linear(e, matrix, x))
        results = [linear(e, matrix, [half[j][i] for j in range(columns)]) for i in range(rows)]
        flat = [value for row in results for value in row]

        def write(chosen: Value | None) -> list[Value]:
            for index, value in enumerate(flat):
                store(e, result_type, value, e.at(outputs(index), at), chosen)
            return []

        if target.free_masks or mask is None:
            write(mask)
        else:
            whole = e.less(e.lanes - 1, e.sub(channels, at))
            e.choose(whole, lambda: write(None), lambda: write(mask))

    whole = e.i(0)
    if types and not target.free_masks:  # masks of 16-bit elements are branches there
        whole = e.mul(e.b.sdiv(channels, e.i(e.lanes)), e.lanes)
        with e.loop(whole, step=e.lanes, name="whole") as c:
            body(c.index, None)
    with e.loop(e.sub(channels, whole), step=e.lanes, name="channel") as c:
        at = e.add(whole, c.index)
        body(at, e.mask(e.sub(channels, at)))
    return e


def _places(e: Emitter, base: Value, step: Value, table: bool, dtype: str) -> Callable[[int], Value]:
    """A function index -> pointer to that element's first channel. Addresses of a table are read at each use."""
    if table:
        addresses = e.pointer(base, I64)
        return lambda index: e.pointer(e.load_int(e.at(addresses, index)), element(dtype))
    first = e.pointer(base, element(dtype))
    return lambda index: e.at(first, e.mul(step, index))


def linear(e: Emitter, matrix: Sequence[Sequence[float]], x: Sequence[Value]) -> list[Value]:
    """The vectors M x for a constant matrix."""
    rows, shared = _share(matrix)
    values = list(x)
    for i, j, ratio in shared:
        values.append(_combine(e, {i: 1.0, j: ratio}, values))
    return [_combine(e, row, values) for row in rows]


def operations(matrix: Sequence[Sequence[float]]) -> int:
    """Floating-point operations of `linear` for one lane: a fused multiply-add counts as two."""
    return _operations(tuple(tuple(float(f) for f in row) for row in matrix))


@functools.cache
def _operations(matrix: tuple[tuple[float, ...], ...]) -> int:
    rows, shared = _share(matrix)
    return sum(_cost(row) for row in rows) + sum(_cost({0: 1.0, 1: ratio}) for _, _, ratio in shared)


def _share(matrix: Sequence[Sequence[float]]) -> tuple[list[dict[int, float]], list[tuple[int, int, float]]]:
    """Rows as {column: factor}, and the pairs that several of them share: column c + n is x[i] + ratio x[j].

    Greedy: the pair of columns that stands in the same ratio in most rows is computed once, then the next one. That
    finds the even and odd parts of points +p and -p, in rows and in columns, and common factors of other points.
    """
    rows = [{j: float(f) for j, f in enumerate(row) if f} for row in matrix]
    columns = len(matrix[0])
    shared: list[tuple[int, int, float]] = []
    while True:
        count = Counter(
            (i, j, row[j] / row[i]) for row in rows for i, j in itertools.permutations(sorted(row), 2)
        )
        pairs = sorted(count, key=lambda pair: (-count[pair], abs(pair[2]) != 1, abs(pair[2]) < 1, pair))
        if not pairs or count[pairs[0]] < 2:
            return rows, shared
        i, j, ratio = pairs[0]
        for row in rows:
            if i in row and j in row and row[j] / row[i] == ratio:
                row[columns + len(shared)] = row.pop(i)
                del row[j]
        shared.append((i, j, ratio))


def _combine(e: Emitter, row: Mapping[int, float], x: Sequence[Value]) -> Value:
    """The sum of row[i] x[i]; a factor of one comes first, because it needs no multiplication."""
    total = None
    for i, factor in _ordered(row):
        value = x[i]
        if total is None:
            total = value if factor == 1 else e.fneg(value) if factor == -1 else e.fmul(e.splat_constant(factor), value)
        elif factor == 1:
            total = e.fadd(total, value)
        elif factor == -1:
            total = e.fsub(total, value)
        else:
            total = e.fma(e.splat_constant(factor), value, total)
    return e.splat_constant(0.0) if total is None else total


def _cost(row: Mapping[int, float]) -> int:
    factors = [factor for _, factor in _ordered(row)]
    first = 0 if not factors or factors[0] == 1 else 1
    return first + sum(1 if factor in (1, -1) else 2 for factor in factors[1:])


def _ordered(row: Mapping[int, float]) -> list[tuple[int, float]]:
    """Terms, those with factor one first."""
    return sorted(row.items(), key=lambda term: (term[1] != 1, term[0]))
