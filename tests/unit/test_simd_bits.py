"""Products of bits, bytes and bf16 against NumPy: every row count and remainder, between forbidden pages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convbench.simd.kernels import bits
from convbench.simd.target import named
from tests.simd_helpers import SENTINEL, UNITS, Arena, address, target

__all__ = ["target"]


def words(rng: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    """Random 32-bit words; for bf16, pairs of small whole numbers."""
    if kind == "bf16":
        halves = rng.integers(-9, 9, (*shape, 2), endpoint=True).astype(np.float32).view(np.uint32) >> 16
        return (halves[..., 0] | halves[..., 1] << 16).astype(np.uint32)
    return rng.integers(0, 2**32, shape, np.uint64).astype(np.uint32)


def floats(packed: np.ndarray) -> np.ndarray:
    """Pairs of bf16 as float32, one axis more."""
    return np.stack([packed << 16, packed & 0xFFFF0000], -1).astype(np.uint32).view(np.float32)


def product(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A (rows, depth) with B (depth, columns), word by word."""
    if kind == "bits":
        octets = np.ascontiguousarray(a[:, :, None] ^ b)[..., None].view(np.uint8)  # (rows, depth, columns, 4)
        return np.unpackbits(octets, axis=-1).sum(axis=(1, 3), dtype=np.int32)
    if kind == "u8s8":
        x = np.ascontiguousarray(a)[..., None].view(np.uint8).astype(np.int32)  # (rows, depth, 4)
        y = np.ascontiguousarray(b)[..., None].view(np.int8).astype(np.int32)  # (depth, columns, 4)
        return np.einsum("mki,kni->mn", x, y, dtype=np.int32)
    x, y = floats(a), floats(b)
    return np.einsum("mki,kni->mn", x, y).astype(np.float32)


@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", bits.KINDS)
def test_every_block(target, kind, vectors):
    kernel, shape = bits.narrow_kernel(target, kind, vectors)
    width, result = shape.columns(target), np.float32 if kind == "bf16" else np.int32
    rng = np.random.default_rng(vectors)
    a_all, b_all, c_all = Arena(4096, np.uint32), Arena(4096, np.uint32), Arena(4096, result)
    table = Arena(6, np.int64)
    settings = itertools.product(range(1, shape.rows + 1), (0, 1, 2, 5), (0, 1, 3), range(1, width + 1), (0, 1))
    for rows, depth, count, columns, accumulate in settings:
        if count == 3 and (columns + rows) % 4 and columns not in (1, width):
            continue  # a quarter of these, and the ends
        row_a, row_c = depth + rows % 2, columns + columns % 3
        a = a_all.holding(words(rng, kind, max(count, 1), rows, row_a))
        b = b_all.holding(words(rng, kind, count, depth, width))
        pairs = table.cut(count, 2)
        order = np.arange(count)[::-1]
        pairs[:, 0], pairs[:, 1] = order * rows * row_a, order * depth * width
        c_all.all.fill(SENTINEL)
        flat = c_all.cut((rows - 1) * row_c + columns)
        c = np.lib.stride_tricks.as_strided(flat, (rows, columns), (4 * row_c, 4))
        c[...] = rng.integers(-99, 99, c.shape) if accumulate else SENTINEL
        wanted = np.zeros_like(c) if not accumulate else c.copy()
        for s in range(count):
            wanted += product(kind, a[s, :, :depth], b[s, :, :columns])
        kernel(
            rows, columns, address(a), row_a, address(b), width, address(pairs), count, depth, address(flat), row_c,
            accumulate,
        )  # fmt: skip
        assert np.array_equal(c, wanted), (rows, depth, count, columns, accumulate)
        c[...] = SENTINEL
        assert (c_all.all == SENTINEL).all(), "something else was written"


def test_bytes_do_not_saturate(target):
    """255 * -128, four times over, and a sum beyond 2^31: modulo 2^32, as NumPy's int32."""
    kernel, shape = bits.narrow_kernel(target, "u8s8", 1)
    width, depth = shape.columns(target), 20000
    a, b = np.full((1, depth), 0xFFFFFFFF, np.uint32), np.full((depth, width), 0x80808080, np.uint32)
    pairs, c = np.zeros((1, 2), np.int64), np.empty((1, width), np.int32)
    kernel(1, width, address(a), depth, address(b), width, address(pairs), 1, depth, address(c), width, 0)
    total = depth * 4 * 255 * -128
    assert (c == (total + 2**31) % 2**32 - 2**31).all()


def test_bf16_rounds_like_float32_sums(target):
    """Normal numbers: within the error of a float32 sum of exact products, whatever the instruction's order."""
    kernel, shape = bits.narrow_kernel(target, "bf16", 2)
    rng, width, depth = np.random.default_rng(0), shape.columns(target), 64
    sizes = (shape.rows, depth, 2), (depth, width, 2)
    halves = [rng.standard_normal(size).astype(np.float32).view(np.uint32) >> 16 for size in sizes]
    a, b = ((w[..., 0] | w[..., 1] << 16).astype(np.uint32) for w in halves)
    pairs, c = np.zeros((1, 2), np.int64), np.empty((shape.rows, width), np.float32)
    kernel(*c.shape, address(a), depth, address(b), width, address(pairs), 1, depth, address(c), width, 0)
    x, y = (floats(w).astype(np.float64) for w in (a, b))
    want, scale = np.einsum("mki,kni->mn", x, y), np.sqrt(np.einsum("mki,kni->mn", x * x, y * y))
    assert (np.abs(c - want) <= 4 * 2**-23 * np.sqrt(2 * depth) * scale).all()


@pytest.mark.parametrize("kind, instruction", [("bits", "vpopcntd"), ("u8s8", "vpdpbusd"), ("bf16", "vdpbf16ps")])
def test_the_instruction_is_used_where_there_is_one(target, kind, instruction):
    kernel, shape = bits.narrow_kernel(target, kind, 2)
    found = kernel.assembly().count(instruction)
    if target.name != "neon":  # these are the names of x86
        products = 2 * sum(range(1, shape.rows + 1))
        assert found == (products if bits.has_instruction(target, kind) else 0)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind must be one of bits, u8s8, bf16, not 'fp8'"):
        bits.shape_for(named(UNITS[0]), "fp8", 2)
