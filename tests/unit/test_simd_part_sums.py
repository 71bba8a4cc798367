"""Exact sums of numbers in parts, and what they are rounded to, against NumPy on every vector unit."""

from __future__ import annotations

import numpy as np
import pytest

from convbench.rounding import bits24
from convbench.simd.kernels import amx, part_sums, quantize, roundings
from convbench.simd.kernels.part_sums import Scheme
from convbench.simd.target import Target, named
from tests.simd_helpers import UNITS, address, target

__all__ = ["target"]


def without_tiles(name: str) -> Target:
    """The unit as it is where the system refuses tiles."""
    unit = named(name)
    features = unit.features.replace("+amx-int8", "-amx-int8")
    return Target(unit.name, unit.bits, unit.registers, unit.cpu, features)


SCHEMES = [(kind, unit) for kind in ("int8", "fixed16", "dynamic") for unit in (*UNITS, "no tiles")]
LIMITS = {"int8": ((0, 255), (-127, 127)), "fixed16": ((-(2**15), 2**15 - 1),) * 2, "dynamic": ((-512, 511),) * 2}


def in_memory(scheme: Scheme, parts: str, numbers: np.ndarray) -> np.ndarray:
    """The parts of whole numbers one behind the other, in bytes: (parts, ...)."""
    if parts == "byte":
        return (numbers & 255).astype(np.uint8)[None]
    if parts == "bytes":
        return np.stack([numbers >> 8 & 255, numbers & 255]).astype(np.uint8)
    high = numbers + 128 >> 8
    found = numbers[None] if parts == "short" else np.stack([high, numbers - 256 * high])
    return np.ascontiguousarray(found.astype(np.int16))


def unit_of(unit: str) -> Target:
    return without_tiles(UNITS[0]) if unit == "no tiles" else named(unit)


class Product:
    """Operands in memory, and the sums of one block."""

    def __init__(self, unit, kind, chunk, steps, count, row_tiles, panels):
        self.unit, self.scheme = unit, part_sums.scheme_for(unit, kind)
        s = self.scheme
        self.row_tiles, self.panels = min(row_tiles, max(1, s.rows // 16)), min(panels, s.panels)
        self.size = (16 * self.row_tiles, 16 * self.panels) if s.how == "tiles" else (s.rows, s.width)
        self.chunk, self.steps, self.count = chunk, steps, count
        self.depth = chunk * steps * s.word  # of a segment

    def run(self, a: np.ndarray, b: np.ndarray, starts: list[int]) -> np.ndarray:
        """a (rows, length), b (segments, depth, columns): int32 sums of the segments of a that begin at `starts`."""
        s, (rows, columns) = self.scheme, self.size
        left = in_memory(s, s.a, a)  # (parts, rows, length)
        words = self.depth // s.word
        panels = b.reshape(self.count, words, s.word, columns // s.width, s.width).transpose(3, 0, 1, 4, 2)
        right = in_memory(s, s.b, np.ascontiguousarray(panels))  # (parts, panels, segments, words, columns, word)
        size = left.itemsize
        table = np.array([(start * size, i * self.depth * s.width * size) for i, start in enumerate(starts)], np.int64)
        sums = np.full((len(s.shifts), rows, columns), -1, np.int32)
        if s.how == "tiles":
            tiles = amx.configuration(part_sums.TILE_ROWS, self.chunk)
            part_sums.configure(self.unit)(address(tiles))
        part_sums.block(self.unit, s, self.row_tiles, self.panels)(
            address(left), left[0, 0].nbytes, left[0].nbytes, address(right), right[0].nbytes, right[0, 0].nbytes,
            address(table), self.count, self.steps, self.chunk, address(sums),
        )  # fmt: skip
        if s.how == "tiles":
            part_sums.release(self.unit)(0)
        return sums


@pytest.mark.parametrize(("kind", "unit"), SCHEMES)
def test_sums_of_blocks(kind, unit):
    rng = np.random.default_rng(1)
    for chunk, steps, count, tiles, panels in ((1, 1, 1, 1, 1), (16, 2, 3, 2, 2), (5, 3, 2, 2, 1), (9, 1, 0, 1, 2)):
        made = Product(unit_of(unit), kind, chunk, steps, count, tiles, panels)
        (low_a, high_a), (low_b, high_b) = LIMITS[kind]
        rows, columns = made.size
        a = rng.integers(low_a, high_a, (rows, made.depth * max(count, 1) + 8), endpoint=True)
        b = rng.integers(low_b, high_b, (count, made.depth, columns), endpoint=True)
        starts = [made.depth * i // 4 * 4 for i in range(count)][::-1]
        sums = made.run(a, b, starts)
        whole = sum(part.astype(np.int64) << shift for part, shift in zip(sums, made.scheme.shifts, strict=True))
        want = sum((a[:, t : t + made.depth] @ b[i] for i, t in enumerate(starts)), np.zeros((rows, columns), np.int64))
        np.testing.assert_array_equal(whole, want)


@pytest.mark.parametrize(("kind", "unit"), SCHEMES)
def test_no_sum_leaves_32_bits_within_the_bound(kind, unit):
    """The longest sum that is allowed, of every pair of extremes."""
    made = Product(unit_of(unit), kind, 1, 1, 1, 1, 1)
    s = made.scheme
    chunk = min(s.chunk_words, s.bound // s.word)
    made = Product(unit_of(unit), kind, chunk, s.bound // s.word // chunk, 1, 1, 1)
    rows, columns = made.size
    assert s.bound - s.word * chunk < made.depth <= s.bound
    for value_a in (*LIMITS[kind][0], -32513 if kind == "fixed16" else 0):
        for value_b in (*LIMITS[kind][1], -32513 if kind == "fixed16" else 127):
            a, b = np.full((rows, made.depth), value_a), np.full((1, made.depth, columns), value_b)
            whole = sum(p.astype(np.int64) << t for p, t in zip(made.run(a, b, [0]), s.shifts, strict=True))
            assert (whole == value_a * value_b * made.depth).all(), (value_a, value_b)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize(("kind", "unit"), SCHEMES)
def test_results_of_blocks(kind, unit, held):
    rng, unit = np.random.default_rng(2), unit_of(unit)
    scheme = part_sums.scheme_for(unit, kind)
    ways = ("scaled",) if kind == "int8" else ("nearest", "stochastic")
    tiles, panels = (scheme.rows // 16, scheme.panels) if scheme.how == "tiles" else (1, 1)
    rows, width = scheme.rows, scheme.columns
    sums = rng.integers(-(2**20), 2**20, (len(scheme.shifts), rows, width)).astype(np.int32)
    sums[:, :, ::3] //= 1000
    whole = sum(part.astype(np.int64) << shift for part, shift in zip(sums, scheme.shifts, strict=True))
    if scheme.whole:  # sums that fit 32 bits, whatever their parts do
        whole = (whole + 2**31) % 2**32 - 2**31
    source = sums
    if held:
        source = np.full((rows, width), np.nan)
        keep = roundings.keep(unit, scheme, tiles, panels)
        keep(address(sums), address(source), 0)
        keep(address(sums), address(source), 1)
        whole = 2 * whole
        np.testing.assert_array_equal(source, whole)
    filter_sums, scales = rng.integers(-999, 999, 64, np.int32), rng.random(64, np.float32) + np.float32(0.1)
    zero = 2.0**31  # times any of them but 0 leaves 32 bits
    for how in ways:
        doubles = np.array([2.0**-13, 2.0**-6, 2.0**15]).view(np.int64)
        words = [quantize.rounding_key(3), address(filter_sums), address(scales), np.float64(zero).view(np.int64)]
        table = np.array([*doubles, *words], np.int64)
        columns, q, count, wrap, first = width - 1, 2, 3, 5, 7
        lines = 1 + (q + rows) // wrap
        out = np.full((lines, wrap, width + 1), 77, np.float32)
        index = np.arange(lines)[:, None, None] * 1000 + np.arange(wrap)[:, None] * 50 + np.arange(width) * 2**28 + 12
        roundings.finish(unit, scheme, tiles, panels, how, held)(
            rows, columns, first, q, count, wrap, out[0].size, width + 1, address(out), address(source), address(table),
            12, 1000, 50, 2**28,
        )  # fmt: skip
        want = np.full_like(out, 77)
        for i in range(rows):
            p, place = divmod(q + i, wrap)
            if place < count:
                at = index[p, place, :columns] % 2**32
                want[p, place, :columns] = rounded(how, whole[i, :columns], at, zero * filter_sums, scales, first)
        np.testing.assert_array_equal(out, want)


def rounded(how, whole, index, offsets, scales, first):
    """The definition."""
    own = slice(first, first + len(whole))
    if how == "scaled":
        return ((whole - offsets[own]) * scales[own].astype(np.float64)).astype(np.float32)
    lifted = whole * 2.0**-13
    number = np.rint(lifted)
    if how == "stochastic":
        number = np.floor(lifted)
        number = number + (bits24(3, index) < np.floor((lifted - number) * 2**24))
    return (np.clip(number, -(2**15), 2**15 - 1) * 2.0**-6).astype(np.float32)
