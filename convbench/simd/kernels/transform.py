"""Y = M X M^T for a constant matrix M, on many channels at once: every transform of Winograd convolution.

The matrix is known when the kernel is written, so zeros cost nothing, ones no multiplication, and rows that differ
in signs only (points +p and -p of Cook-Toom) share their even and odd parts: Lavin and Gray, arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convbench.simd.compiler import kernel
from convbench.simd.emit import I64, Emitter, Value
from convbench.simd.target import Target

Matrix = tuple[tuple[float, ...], ...]

#: channels: how many, any number. from_, to: a base address, or (where the kernel is built so) the address of a table
#: of addresses, one for each element of X or Y in row-major order. step: elements between neighbouring elements of X
#: or Y (not used with a table). Channels lie next to each other.
ARGUMENTS = ("channels", "from_", "step_from", "to", "step_to")


@kernel
def transform2d(
    target: Target, matrix: Matrix, gather: bool = False, scatter: bool = False, name: str = "t"
) -> Emitter:
    """The kernel for one matrix (rows x columns): X is columns x columns, Y rows x rows.

    gather: X through a table of addresses. scatter: Y through one. Channels beyond `channels` are not touched.
    """
    e = Emitter(target, f"transform_{name}_{target.name}_{len(matrix)}x{len(matrix[0])}", ARGUMENTS)
    channels, source, step_from, to, step_to = e.args
    rows, columns = len(matrix), len(matrix[0])
    inputs = _places(e, source, step_from, gather)
    outputs = _places(e, to, step_to, scatter)
    with e.loop(channels, step=e.lanes, name="channel") as c:
        mask = e.mask(e.sub(channels, c.index))
        half = []  # one column of M X after the other
        for j in range(columns):
            x = [e.load(e.at(inputs(i * columns + j), c.index), mask) for i in range(columns)]
            half.append(linear(e, matrix, x))
        results = [linear(e, matrix, [half[j][i] for j in range(columns)]) for i in range(rows)]
        flat = [value for row in results for value in row]

        def write(chosen: Value | None, flat: list[Value] = flat, at: Value = c.index) -> list[Value]:
            for index, value in enumerate(flat):
                e.store(value, e.at(outputs(index), at), chosen)
            return []

        if target.free_masks:
            write(mask)
        else:
            whole = e.less(e.lanes - 1, e.sub(channels, c.index))
            e.choose(whole, lambda write=write: write(None), lambda write=write, mask=mask: write(mask))
    return e


def _places(e: Emitter, base: Value, step: Value, table: bool) -> Callable[[int], Value]:
    """A function index -> pointer to that element's first channel. Addresses of a table are read at each use."""
    if table:
        addresses = e.pointer(base, I64)
        return lambda index: e.pointer(e.load_int(e.at(addresses, index)))
    first = e.pointer(base)
    return lambda index: e.at(first, e.mul(step, index))


def linear(e: Emitter, matrix: Sequence[Sequence[float]], x: Sequence[Value]) -> list[Value]:
    """The vectors M x for a constant matrix."""
    out: dict[int, Value] = {}
    for i, row in enumerate(matrix):
        if i in out:
            continue
        j = next((j for j in range(i + 1, len(matrix)) if j not in out and _mirrored(row, matrix[j])), None)
        if j is None:
            out[i] = _combine(e, row, x)
            continue
        same = [p if p == q else 0.0 for p, q in zip(row, matrix[j], strict=True)]
        opposite = [p if p == -q else 0.0 for p, q in zip(row, matrix[j], strict=True)]
        even, odd = _combine(e, same, x), _combine(e, opposite, x)
        out[i], out[j] = e.fadd(even, odd), e.fsub(even, odd)
    return [out[i] for i in range(len(matrix))]


def operations(matrix: Sequence[Sequence[float]]) -> int:
    """Floating-point operations of `linear` for one lane: a fused multiply-add counts as two."""
    total, done = 0, set()
    for i, row in enumerate(matrix):
        if i in done:
            continue
        j = next((j for j in range(i + 1, len(matrix)) if j not in done and _mirrored(row, matrix[j])), None)
        if j is None:
            total += _cost(row)
            continue
        done.add(j)
        total += 2 + _cost([p if p == q else 0.0 for p, q in zip(row, matrix[j], strict=True)])
        total += _cost([p if p == -q else 0.0 for p, q in zip(row, matrix[j], strict=True)])
    return total


def _mirrored(row: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two rows agree but for signs, with at least two terms in each half (less is no gain)."""
    pairs = list(zip(row, other, strict=True))
    same, opposite = (sum(1 for p, q in pairs if p and p == sign * q) for sign in (1, -1))
    return all(p in (q, -q) for p, q in pairs) and same > 1 and opposite > 1


def _combine(e: Emitter, row: Sequence[float], x: Sequence[Value]) -> Value:
    """The sum of row[i] x[i]; coefficients of one come first, because they need no multiplication."""
    total = None
    for factor, value in sorted(((f, v) for f, v in zip(row, x, strict=True) if f), key=lambda term: term[0] != 1):
        if total is None:
            total = value if factor == 1 else e.fmul(e.splat_constant(factor), value)
        elif factor == 1:
            total = e.fadd(total, value)
        elif factor == -1:
            total = e.fsub(total, value)
        else:
            total = e.fma(e.splat_constant(factor), value, total)
    return e.splat_constant(0.0) if total is None else total


def _cost(row: Sequence[float]) -> int:
    terms = sorted((f for f in row if f), key=lambda f: f != 1)
    return sum((0 if f == 1 else 1) if i == 0 else (1 if f in (1, -1) else 2) for i, f in enumerate(terms))
