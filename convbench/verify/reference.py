"""What the oracle says about one problem and one recipe of inputs, kept so that every algorithm shares it.

Small problems: the whole result. Large ones: (a) a projection of *every* element at 1/K of the cost (Freivalds'
idea: convolution is linear in the filter, so sum_k v_k y[n,k,p,q] is the convolution with sum_k v_k w_k), with two
seeded vectors per group; (b) a sample of results spread over borders and residues.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from convbench.devices.arrays import as_real, widened
from convbench.problem import INPUTS, ConvShape, Pass, Problem, Semantics
from convbench.verify.inputs import COEFFICIENT, Recipe, make_inputs, reduction_channels, to_logical
from convbench.verify.oracle import convolve, sample
from convbench.verify.semantics import LEAST_RESULT, meaning_of, results

#: Multiply-adds up to which the oracle computes everything (about 0.1 s).
FULL_MACS = 30_000_000
SAMPLE_COUNT = 4096
SAMPLE_MACS = 200_000_000
#: Part of every file name: raise it when oracle or inputs change.
VERSION = 2
_RESIDUES = 48  # lcm of 2, 3, 4, 6, 8, 16
_MEMORY_BYTES = 768 << 20


@dataclass
class Reference:
    """Oracle results in logical NCHW order; either `want` or the projection and the sample."""

    want: np.ndarray | None = None  # the whole result
    squares: np.ndarray | None = None  # convolution of the squares (normal inputs only)
    projected: np.ndarray | None = None  # (2, ...) results contracted with the vectors
    projected_squares: np.ndarray | None = None  # sum over the contracted channels of the squares
    index: np.ndarray | None = None  # (4, COUNT) sampled positions
    sampled: np.ndarray | None = None  # (COUNT,)
    sampled_squares: np.ndarray | None = None  # (COUNT,)
    # of semantics other than the linear one:
    tolerance: np.ndarray | None = None  # how far each result, or each sample, may be from the exact one
    plain: np.ndarray | None = None  # the linear convolution of the operands: all results, or the samples
    channel: np.ndarray | None = None  # (K,) and (N, G, P, Q): factors of the exact sums that are projected
    plane: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(value.nbytes for f in fields(self) if (value := getattr(self, f.name)) is not None)


class Cache:
    """Inputs and references in memory; beyond `limit_bytes` the least recently used goes first."""

    def __init__(self) -> None:
        self.limit_bytes: int | None = None  # None: what a CPU's memory is asked for
        self._entries: OrderedDict[str, tuple[int, object]] = OrderedDict()

    def get(self, key: str) -> object | None:
        """The entry, now the most recently used, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][1]

    def put(self, key: str, value: object, n_bytes: int) -> None:
        """Keeps an entry and drops the oldest beyond the limit; the newest always stays."""
        self._entries[key] = (n_bytes, value)
        limit = self.limit_bytes or _MEMORY_BYTES
        while len(self._entries) > 1 and sum(size for size, _ in self._entries.values()) > limit:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything in memory."""
        self._entries.clear()


CACHE = Cache()


def inputs_of(problem: Problem, recipe: Recipe, xp: Any = np) -> tuple[Any, Any]:
    """make_inputs(), kept in memory and, where the library knows that, read-only."""
    key = f"inputs {xp.__name__} {_problem_key(problem)} {problem.layout} {recipe.key}"
    found = CACHE.get(key)
    if found is None:
        found = make_inputs(problem, recipe, xp)
        for array in found if xp is np else ():
            array.flags.writeable = False
        CACHE.put(key, found, sum(array.nbytes for array in found))
    return found  # type: ignore[return-value]


def operands_of(problem: Problem, recipe: Recipe, xp: Any = np) -> tuple[Any, Any]:
    """inputs_of() for the oracle: in logical order, of a type that both libraries calculate in."""
    a, b = inputs_of(problem, recipe, xp)
    return as_real(to_logical(a, problem.layout)), as_real(to_logical(b, problem.layout))


def reference_of(
    problem: Problem, recipe: Recipe, cache_dir: Path | None, full_macs: int, xp: Any = np
) -> Reference:
    """The oracle's answer; the same for both layouts, so it is computed once for them.

    xp: the library in whose arrays it is wanted and calculated. What is not NumPy's is always computed whole, and
    never kept on disk.
    """
    full = problem.shape.macs <= full_macs or xp is not np
    key = f"v{VERSION} {_problem_key(problem)} {recipe.key} {'full' if full else 'sampled'}"
    key, cache_dir = (key, cache_dir) if xp is np else (f"{xp.__name__} {key}", None)
    found = CACHE.get(key)
    if isinstance(found, Reference):
        return found
    path = None if cache_dir is None else cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    reference = _load(path)
    if reference is None:
        a, b = operands_of(problem, recipe, xp)
        if problem.semantics is not Semantics.LINEAR:
            reference = _whole_meant(problem, a, b) if full else _partial_meant(problem, recipe, a, b)
        else:
            reference = _whole(problem, recipe, a, b) if full else _partial(problem, recipe, a, b)
        _store(path, reference)
    CACHE.put(key, reference, reference.nbytes)
    return reference


def _problem_key(problem: Problem) -> str:
    return f"{problem.shape} {problem.pass_} {problem.dtype} {problem.semantics}"


def _whole(problem: Problem, recipe: Recipe, a: np.ndarray, b: np.ndarray) -> Reference:
    want = convolve(problem.shape, problem.pass_, a, b)
    squares = None
    if recipe.is_bounded and not problem.is_integer:
        squares = convolve(problem.shape, problem.pass_, a, _square(b), square_a=True)
    return Reference(want=want, squares=squares)


def _partial(problem: Problem, recipe: Recipe, a: np.ndarray, b: np.ndarray) -> Reference:
    shape, pass_ = problem.shape, problem.pass_
    reference = Reference()
    vectors = coefficients(problem, recipe.kind)
    small = _projected_shape(shape, pass_, 2)
    reference.projected = _split(convolve(small, pass_, a, _contract(problem, b, vectors)), problem, 2)
    reference.index = sample_positions(problem)
    reference.sampled, squares = sample(shape, pass_, a, b, reference.index)
    if recipe.is_bounded and not problem.is_integer:
        reference.sampled_squares = squares
        ones = np.ones((shape.groups, 1, reduction_channels(problem)))
        contracted = _contract(problem, b, ones, square=True)
        summed = convolve(_projected_shape(shape, pass_, 1), pass_, a, contracted, square_a=True)
        reference.projected_squares = _split(summed, problem, 1)[0]
    return reference


def _whole_meant(problem: Problem, a: np.ndarray, b: np.ndarray) -> Reference:
    shape, pass_ = problem.shape, problem.pass_
    meaning = meaning_of(problem, a, b)
    want = results(meaning, problem, convolve(shape, pass_, meaning.a, meaning.b))
    squares = convolve(shape, pass_, meaning.a, _square(meaning.b), square_a=True) if meaning.statistical else None
    return Reference(want=want, squares=squares, tolerance=meaning.allowed(want),
                     plain=convolve(shape, pass_, a, b))  # fmt: skip


def _partial_meant(problem: Problem, recipe: Recipe, a: np.ndarray, b: np.ndarray) -> Reference:
    """The sample; and where sums can be told from results, a projection of all of them."""
    shape, pass_ = problem.shape, problem.pass_
    meaning = meaning_of(problem, a, b)
    index = sample_positions(problem)
    reference = Reference(index=index, channel=meaning.channel, plane=meaning.plane)
    sums, squares = sample(shape, pass_, meaning.a, meaning.b, index)
    reference.sampled = results(meaning, problem, sums, index)
    reference.tolerance = meaning.allowed(reference.sampled)
    reference.sampled_squares = squares if meaning.statistical else None
    reference.plain = sample(shape, pass_, a, b, index)[0]
    if meaning.linear and meaning.least_factor >= LEAST_RESULT:
        contracted = _contract(problem, meaning.b, coefficients(problem, recipe.kind))
        small = _projected_shape(shape, pass_, 2)
        reference.projected = _split(convolve(small, pass_, meaning.a, contracted), problem, 2)
    return reference


def coefficients(problem: Problem, kind: str) -> np.ndarray:
    """(G, 2, channels of a group): non-zero whole numbers up to COEFFICIENT, or signs for normal inputs."""
    generator = np.random.Generator(np.random.SFC64([20, 25]))
    size = (problem.shape.groups, 2, reduction_channels(problem))
    sizes = generator.integers(1, COEFFICIENT, size, endpoint=True)
    signs = generator.choice([-1.0, 1.0], size)
    return signs if kind in INPUTS else signs * sizes


def project(result: Any, problem: Problem, vectors: np.ndarray) -> np.ndarray:
    """(2, N, G, U, V), weights (2, G, C/G, R, S): a logical result contracted with `vectors` in float64."""
    g, count = problem.shape.groups, reduction_channels(problem)
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        flat = widened(result).reshape(g, count, -1)  # (G, K/G, C/G*R*S)
        return np.moveaxis(vectors @ flat, 1, 0).reshape(2, g, *result.shape[1:])  # (2, G, C/G, R, S)
    n, _, u, v = result.shape
    projected = np.empty((2, n, g, u, v))
    for image in range(n):  # one image at a time: a float64 copy of a whole batch would be large
        channels_last = result.strides[1] < result.strides[3]
        if channels_last:
            flat = widened(result[image].transpose(1, 2, 0)).reshape(u * v, g, count)  # (UV, G, C/G)
            flat = flat.transpose(1, 2, 0)  # (G, C/G, UV)
        else:
            flat = widened(result[image]).reshape(g, count, u * v)  # (G, C/G, UV)
        projected[:, image] = np.moveaxis(vectors @ flat, 1, 0).reshape(2, g, u, v)  # (2, G, U, V)
    return projected


def _projected_shape(shape: ConvShape, pass_: Pass, vectors: int) -> ConvShape:
    """The shape whose contracted channels are `vectors` per group."""
    if pass_ is Pass.BACKWARD_DATA:
        return replace(shape, c=vectors * shape.groups)
    return replace(shape, k=vectors * shape.groups)


def _contract(problem: Problem, b: np.ndarray, vectors: np.ndarray, square: bool = False) -> np.ndarray:
    """The second operand, or its squares, with the result's channels contracted: w over K or C, dy over K."""
    shape, count = problem.shape, vectors.shape[1]
    g, cg, kg = shape.groups, shape.cg, shape.kg
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        contracted = np.empty((shape.n, g * count, shape.p, shape.q))
        for image in range(shape.n):  # one image at a time: a float64 copy of a whole batch would be large
            dy = b[image].astype(np.float64).reshape(g, kg, shape.p, shape.q)  # (G, K/G, P, Q)
            each = np.einsum("gvk,gkpq->gvpq", vectors, dy * dy if square else dy)
            contracted[image] = each.reshape(g * count, shape.p, shape.q)  # (GV, P, Q)
        return contracted
    w = (_square(b) if square else b).reshape(g, kg, cg, shape.r, shape.s)
    if problem.pass_ is Pass.FORWARD:
        return np.einsum("gvk,gkcrs->gvcrs", vectors, w).reshape(g * count, cg, shape.r, shape.s)
    return np.einsum("gvc,gkcrs->gkvrs", vectors, w).reshape(shape.k, count, shape.r, shape.s)


def _split(result: np.ndarray, problem: Problem, count: int) -> np.ndarray:
    """The oracle's contracted result in the order of `project`."""
    g = problem.shape.groups
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        return np.moveaxis(result.reshape(g, count, *result.shape[1:]), 1, 0)  # (V, G, C/G, R, S)
    n, _, u, v = result.shape
    return np.moveaxis(result.reshape(n, g, count, u, v), 2, 0)  # (V, N, G, U, V)


def sample_positions(problem: Problem) -> np.ndarray:
    """(4, COUNT) positions: corners, then positions spread over borders and residues along every axis."""
    sizes = problem.out_shape if problem.layout == "nchw" else tuple(problem.out_shape[i] for i in (0, 3, 1, 2))
    total = int(np.prod(sizes, dtype=np.int64))
    count = max(1, min(SAMPLE_COUNT, total, SAMPLE_MACS // problem.accumulation_length))
    generator = np.random.Generator(np.random.SFC64([4, 1809]))
    index = np.stack([_spread(size, count, generator) for size in sizes])
    corners = np.array([(u, v) for u in (0, sizes[2] - 1) for v in (0, sizes[3] - 1)]).T
    index[2:, : min(4, count)] = corners[:, : min(4, count)]
    return np.unique(index, axis=1)


def _spread(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` positions on one axis: a quarter on its borders, the rest over all residues mod 48, shuffled."""
    borders = np.array(sorted({i for i in (0, 1, 2, size - 3, size - 2, size - 1) if 0 <= i < size}))
    at_border = borders[np.arange(count // 4) % len(borders)]
    residues = np.arange(count - len(at_border)) % min(_RESIDUES, size)
    rounds = (size - 1 - residues) // _RESIDUES + 1
    inside = residues + _RESIDUES * (generator.random(len(residues)) * rounds).astype(np.int64)
    return generator.permutation(np.concatenate([at_border, inside]))


def _square(array: Any) -> Any:
    return array.astype(np.float64) ** 2


def _load(path: Path | None) -> Reference | None:
    """What a file holds, or None where there is none or it is damaged (it is computed again then)."""
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Reference(**{name: stored[name] for name in stored.files})
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile):
        return None


def _store(path: Path | None, reference: Reference) -> None:
    """Writes beside the file, then renames, so that no reader sees half of it; a full disk costs the cache only."""
    if path is None:
        return
    arrays = {f.name: value for f in fields(reference) if (value := getattr(reference, f.name)) is not None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
    except OSError:
        return
