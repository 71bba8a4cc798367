"""Products of narrow numbers in tiles and without, against NumPy, between forbidden pages; strips and epilogues."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from convbench.devices.arrays import narrowed, widened
from convbench.simd import target as units
from convbench.simd.kernels import amx, bits, dot, ends, strips
from convbench.simd.target import Target, host
from tests.simd_helpers import SENTINEL, Arena, address, target

__all__ = ["target"]

with_tiles = pytest.mark.skipif(not host().tiles("amx-int8"), reason="no AMX here")
#: Types of the bytes of A and B.
SIGNS = {"s8s8": (np.int8, np.int8), "s8u8": (np.int8, np.uint8), "u8s8": (np.uint8, np.int8), "u8u8": (np.uint8,) * 2}


def words(rng: np.random.Generator, kind: str, which: int, *shape: int) -> np.ndarray:
    """Words of random bytes, or of pairs of small whole numbers in bfloat16: (..., elements of a word)."""
    if kind == "bf16":
        return narrowed(rng.integers(-9, 9, (*shape, 2), endpoint=True).astype(np.float32), "bfloat16")
    info = np.iinfo(SIGNS[kind][which])
    return rng.integers(info.min, info.max, (*shape, 4), endpoint=True).astype(info.dtype)


def numbers(elements: np.ndarray) -> np.ndarray:
    """As NumPy computes with them exactly."""
    return widened(elements) if elements.dtype == np.uint16 else elements.astype(np.int64)


class Setting:
    """One call of a product kernel: operands that touch forbidden pages, tables, and what has to come out."""

    def __init__(self, kind: str, width: int, rows: int, chunk: int, steps: int, segments: int, tiles: int) -> None:
        rng = np.random.default_rng(rows * 100 + chunk)
        self.kind, self.width, self.rows, self.chunk, self.steps = kind, width, rows, chunk, steps
        depth, self.tiles, self.count = chunk * steps, tiles, segments
        self.row_a = depth + rows % 3
        self.a = words(rng, kind, 0, segments, tiles, rows, self.row_a)  # padding behind each row
        self.b = words(rng, kind, 1, segments, depth, width)
        size = (self.a.size // self.a.shape[-1], self.b.size // self.b.shape[-1])
        # only what belongs to the last row exists at the end of A
        used = size[0] - (self.row_a - depth)
        self.a_at = Arena(4 * used, np.uint8).holding(self.a.view(np.uint8).ravel()[: 4 * used])
        self.b_at = Arena(4 * size[1], np.uint8).holding(self.b.view(np.uint8).ravel())
        order = np.arange(segments)[::-1]
        pairs = np.stack([order * tiles * rows * self.row_a, order * depth * width], 1).astype(np.int64)
        self.segments = Arena(2 * segments, np.int64).holding(pairs)
        a, b = numbers(self.a[..., :depth, :]), numbers(self.b)
        self.wanted = np.einsum("stmki,skni->tmn", a, b).reshape(tiles * rows, width)

    def entries(self, row_c: int, left_out: int | None) -> np.ndarray:
        """Pairs for all rows but one."""
        rows = np.array([m for m in range(self.tiles * self.rows) if m != left_out])
        return np.stack([rows, rows * row_c], 1).astype(np.int64)

    def call(self, kernel, end, out, entries, columns, as_they_are, unit, constants=0, repeat=1) -> None:
        """Runs the kernel on `repeat` blocks, all the same."""
        record = np.array([[self.tiles, 0, self.rows * self.row_a, len(entries), address(entries)]] * repeat, np.int64)
        sums = np.empty(4 * self.rows * self.width, np.int32)
        kernel(
            address(record), repeat, address(self.a_at), self.row_a, address(self.b_at), address(self.segments),
            self.count, self.steps, self.chunk, self.rows, address(sums), address(out), as_they_are, end.address,
            constants, 1, columns, 0, 0, 0, unit,
        )  # fmt: skip


@with_tiles
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("kind", amx.INSTRUCTIONS)
def test_every_tile(kind, vectors):
    kernel = amx.blocks(host(), kind, vectors)
    end = ends.unchanged(host(), vectors) if kind == "bf16" else ends.integers(host(), vectors, False)
    result = np.float32 if kind == "bf16" else np.int32
    width = 16 * vectors
    sizes = [(rows, 16) for rows in range(1, 17)] + [(5, chunk) for chunk in range(1, 16)]
    for (rows, chunk), tiles in itertools.product(sizes, (1, 2)):
        steps, segments = 1 + rows % 3, 1 + chunk % 2
        each = Setting(kind, width, rows, chunk, steps, segments, tiles)
        unit = amx.configuration(rows, chunk)
        columns = width - (rows + chunk) % width
        row_c = width + 3
        out = Arena((tiles * rows - 1) * row_c + columns, result)
        for left_out, repeat in ((None, 1), (rows // 2, 3)):
            out.all.fill(SENTINEL)
            entries = each.entries(row_c, left_out if tiles * rows > 1 else None)
            each.call(kernel, end, out.all, entries, columns, 0, address(unit), repeat=repeat)
            wanted = np.full(len(out.all), SENTINEL, result)
            for m, place in entries:
                wanted[place : place + columns] = each.wanted[m, :columns]
            assert np.array_equal(out.all, wanted), (rows, chunk, tiles, repeat)


@with_tiles
@pytest.mark.parametrize("tiles", [1, 2])
def test_sums_as_they_are(tiles):
    for rows in range(1, 17):
        each = Setting("s8s8", 32, rows, 16, 2, 1, tiles)
        row_c = 32 + rows % 2
        out = Arena((tiles * rows - 1) * row_c + 32, np.int32)
        out.all.fill(SENTINEL)
        unit = amx.configuration(rows, 16)
        kernel, end = amx.blocks(host(), "s8s8", 2), ends.integers(host(), 2, False)
        each.call(kernel, end, out.all, each.entries(row_c, None), 32, row_c, address(unit))
        wanted = np.full(tiles * rows * row_c, SENTINEL, np.int32).reshape(-1, row_c)
        wanted[:, :32] = each.wanted
        assert np.array_equal(out.all, wanted.ravel()[: len(out.all)]), rows


@with_tiles
def test_no_segments_are_zeros():
    each = Setting("s8s8", 16, 7, 4, 1, 1, 2)
    each.count = 0
    out, unit = np.full(14 * 16, 5, np.int32), amx.configuration(7, 4)
    each.call(
        amx.blocks(host(), "s8s8", 1), ends.integers(host(), 1, False), out, each.entries(16, None), 16, 0,
        address(unit), repeat=2,
    )  # fmt: skip
    assert not out.any()


@pytest.mark.parametrize("kind", ["u8s8", "bf16"])
def test_blocks_without_tiles(target, kind):
    for vectors, depth in itertools.product((1, 2), (1, 3, 16)):
        width, most = vectors * target.lanes, dot.rows_for(target, kind, vectors)
        shape = bits.shape_for(target, kind, vectors)
        unit = bits.narrow_brgemm(target, shape, kind).address
        end = ends.unchanged(target, vectors) if kind == "bf16" else ends.integers(target, vectors, False)
        for rows in range(1, most + 1):
            each = Setting(kind, width, rows, depth, 1, 2, 1)
            columns = max(1, width - rows)
            out = Arena((rows - 1) * width + columns, np.float32 if kind == "bf16" else np.int32)
            out.all.fill(SENTINEL)
            each.call(dot.blocks(target, vectors), end, out.all, each.entries(width, None), columns, 0, unit)
            wanted = np.full((rows, width), SENTINEL)
            wanted[:, :columns] = each.wanted[:, :columns]
            assert np.array_equal(out.all, wanted.ravel()[: len(out.all)])


def test_tiles_need_the_unit_and_the_system(monkeypatch):
    with_them = Target("avx512", 512, 32, "sapphirerapids", "+amx-tile,+amx-int8,-amx-bf16")
    monkeypatch.setattr(units, "_tiles_granted", lambda: True)
    assert with_them.tiles("amx-int8") and not with_them.tiles("amx-bf16")
    assert not replace(with_them, features="+amx-int8,-amx-tile").tiles("amx-int8")
    monkeypatch.setattr(units, "_tiles_granted", lambda: False)
    assert not with_them.tiles("amx-int8")


# ---- strips


@pytest.mark.parametrize("from_planes", [False, True])
@pytest.mark.parametrize("n_bytes, flip", [(1, False), (1, True), (2, False)])
def test_filling_strips(target, n_bytes, flip, from_planes):
    kernel = strips.copied(target, n_bytes, from_planes, flip)
    dtype = np.uint8 if n_bytes == 1 else np.uint16
    rng = np.random.default_rng(n_bytes)
    square = 4 // n_bytes * target.lanes
    for pixels, channels in itertools.product((1, 2, target.lanes, target.lanes + 3), (1, 3, square, square + 5)):
        for more in (0, 1, 8):  # of the source's rows, and of the strip's pixels
            rows, length = (channels, pixels) if from_planes else (pixels, channels)
            row_from, pixel = length + more, channels + more
            source = Arena((rows - 1) * row_from + length, dtype)
            source.all[...] = rng.integers(0, 256**n_bytes, len(source.all))
            strip = Arena((pixels - 1) * pixel + channels, dtype)
            strip.all[...] = rng.integers(0, 256**n_bytes, len(strip.all))
            wanted = strip.all.copy()
            for j, c in itertools.product(range(pixels), range(channels)):
                value = source.all[c * row_from + j if from_planes else j * row_from + c]
                wanted[j * pixel + c] = value ^ 128 if flip else value
            kernel(pixels, channels, address(source.all), row_from, address(strip.all), pixel, 0)
            written = (np.arange(len(wanted)) % pixel) < channels
            assert np.array_equal(strip.all[written], wanted[written])
            last_word = -(-channels * n_bytes // 4) * 4 // n_bytes
            kept = (np.arange(len(wanted)) % pixel) >= last_word
            assert np.array_equal(strip.all[kept], wanted[kept])


@pytest.mark.parametrize("from_planes", [False, True])
@pytest.mark.parametrize("n_bytes, flip", [(1, False), (1, True), (2, False)])
def test_filling_strips_of_few_channels(target, n_bytes, flip, from_planes):
    dtype, rng = (np.uint8 if n_bytes == 1 else np.uint16), np.random.default_rng(7)
    for n_words in (1, 2):
        pixel = 4 * n_words // n_bytes
        for channels, pixels in itertools.product(range(1, pixel + 1), (1, 5, 16, 17, 70)):
            row_from = pixels + 2 if from_planes else channels
            size = (channels - 1) * row_from + pixels if from_planes else pixels * channels
            source = Arena(size, dtype)
            source.all[...] = rng.integers(0, 256**n_bytes, size)
            strip = Arena(pixels * pixel, dtype)
            kernel = strips.copied_few(target, n_bytes, from_planes, flip, channels, pixel)
            kernel(pixels, channels, address(source.all), row_from, address(strip.all), pixel, 0)
            j, c = np.arange(pixels)[:, None], np.arange(channels)[None, :]
            wanted = source.all[c * row_from + j if from_planes else j * channels + c]
            found = strip.all.reshape(pixels, pixel)
            assert np.array_equal(found[:, :channels], wanted ^ 128 if flip else wanted)
            assert not found[:, channels:].any()


def test_blanks(target):
    for n_bytes, value, count in itertools.product((1, 2), (0, 128), (0, 1, 31, 64, 133)):
        strip = Arena(count + 1, np.uint8 if n_bytes == 1 else np.uint16)
        strip.all.fill(7)
        strips.blank(target, n_bytes, value)(count, address(strip.all), 0)
        assert (strip.all[:count] == value).all() and strip.all[count] == 7


# ---- epilogues


def test_integers_and_scales(target):
    rng, vectors = np.random.default_rng(3), 2
    width = vectors * target.lanes
    sums = rng.integers(-(2**31), 2**31, (5, width)).astype(np.int32)
    entries = np.array([[4, 0], [1, width + 1]], np.int64)
    for columns in range(1, width + 1):
        first = 3
        offsets = Arena(first + columns, np.int32).holding(rng.integers(-999, 999, first + columns).astype(np.int32))
        scales = Arena(first + columns).holding(rng.random(first + columns, np.float32))
        constants = np.array([address(offsets), address(scales)], np.int64)
        for subtract in (False, True):
            less = offsets[first:] if subtract else 0
            out = Arena(width + 1 + columns, np.int32)
            out.all.fill(SENTINEL)
            ends.integers(target, vectors, subtract)(
                2, columns, first, address(entries), address(sums), address(out.all), address(constants)
            )
            wanted = np.full(len(out.all), SENTINEL, np.int32)
            with np.errstate(over="ignore"):
                wanted[:columns], wanted[width + 1 :] = sums[4, :columns] - less, sums[1, :columns] - less
            assert np.array_equal(out.all, wanted)
            real = Arena(width + 1 + columns)
            ends.scaled(target, vectors, subtract)(
                2, columns, first, address(entries), address(sums), address(real.all), address(constants)
            )
            exact = (wanted[:columns].astype(np.float32) * scales[first:]).astype(np.float32)
            assert np.array_equal(real.all[:columns], exact)


def test_rounding_to_bfloat16(target):
    width = target.lanes
    some = np.array([0, 1, -1, 1.00390625, 1.01171875, 1.0039064, 3.3895e38, np.inf, -np.inf, np.nan], np.float32)
    low = np.array([0x7FFFFFFF, 0xFFFF8000], np.uint32).view(np.float32)  # NaN that rounding must not carry over
    values = np.concatenate([some, low, np.random.default_rng(5).standard_normal(4 * width).astype(np.float32)])
    values = values[: len(values) // width * width].reshape(-1, width)
    entries = np.stack([np.arange(len(values)), np.arange(len(values)) * width], 1).astype(np.int64)
    out = Arena(values.size, np.uint16)
    ends.bfloat16(target, 1)(len(values), width, 0, address(entries), address(values), address(out.all), 0)
    turned = Arena(values.size, np.uint16)
    ends.turned_bfloat16(target)(*values.shape, address(values), width, address(turned.all), len(values))
    for found in (out.all.reshape(values.shape), turned.all.reshape(width, len(values)).T):
        number = ~np.isnan(values)
        assert np.array_equal(found[number], narrowed(values, "bfloat16")[number])
        assert np.isnan(widened(found)[~number]).all()
