"""ldmatrix and mma.sync: registers as the PTX ISA lays them out, element by element, with numbers that all differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cuda_on_cpu.emulated import launch

TILES = Path(__file__).parent / "probes" / "tiles.cu"
ONE, WARP = (1, 1, 1), (32, 1, 1)
ORDERS = (0, 1, 7)
LANES = np.arange(32)


@pytest.mark.parametrize("order", ORDERS)
def test_load_tiles(order: int) -> None:
    cells = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    out = np.full((6, 32, 4), 0xDEADBEEF, np.uint32)
    launch(TILES, "load_tiles", ONE, WARP, [cells.view(np.uint32), out], order=order)
    for variant, (count, transposed) in enumerate(((1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (4, 1))):
        for lane in range(32):
            for tile in range(count):
                cell = cells[tile].T if transposed else cells[tile]
                row, column = lane // 4, lane % 4 * 2
                want = int(cell[row, column]) | int(cell[row, column + 1]) << 16
                assert out[variant, lane, tile] == want, (variant, lane, tile)
        assert (out[variant, :, count:] == 0xDEADBEEF).all()


# Where element i of a lane's fragments lies, as the tables of the PTX ISA say it for each shape: (row, column).


def place_a(kind: str, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    if kind in ("f16", "bf16"):  # m16n8k16, i = 0..7
        return (group if i < 2 or 4 <= i < 6 else group + 8), thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if kind == "tf32":  # m16n8k8, i = 0..3
        return (group if i in (0, 2) else group + 8), (thread if i in (0, 1) else thread + 4)
    if kind == "s8":  # m16n8k32, i = 0..15
        return (group if i < 4 or 8 <= i < 12 else group + 8), thread * 4 + (i & 3) + (16 if i >= 8 else 0)
    first = i < 32 or 64 <= i < 96  # b1: m16n8k256, i = 0..127
    return (group if first else group + 8), thread * 32 + (i & 31) + (128 if i >= 64 else 0)


def place_b(kind: str, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    if kind in ("f16", "bf16"):
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if kind == "tf32":
        return thread + 4 * i, group
    if kind == "s8":
        return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group
    return thread * 32 + (i & 31) + (128 if i >= 32 else 0), group


def place_d(lane: int, i: int) -> tuple[int, int]:
    return (lane >> 2) + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)


def words(kind: str, elements: np.ndarray) -> np.ndarray:
    """Elements of a lane, in order, as 32-bit registers; the first element in the lowest bits."""
    if kind == "f16":
        return elements.astype(np.float16).view(np.uint32)
    if kind == "bf16":
        return (elements.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)
    if kind == "tf32":
        return elements.astype(np.float32).view(np.uint32)
    if kind == "s8":
        return elements.astype(np.int8).view(np.uint32)
    return np.packbits(elements.astype(np.uint8), bitorder="little").view(np.uint32)


def fragments(kind: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(32, 4) and (32, 2) registers of a (16, K) and b (K, 8)."""
    k = a.shape[1]
    left = [words(kind, np.array([a[place_a(kind, lane, i)] for i in range(k // 2)])) for lane in range(32)]
    right = [words(kind, np.array([b[place_b(kind, lane, i)] for i in range(k // 4)])) for lane in range(32)]
    return np.array(left), np.array(right)


def run(kind: str, a: np.ndarray, b: np.ndarray, d: np.ndarray, order: int) -> np.ndarray:
    """d (16, 8) + a b through the kernel."""
    kernel = {"f16": "mma_f16_16816", "bf16": "mma_bf16_16816", "tf32": "mma_tf32_1688", "s8": "mma_s8_16832",
              "and": "mma_b1_and_168256", "xor": "mma_b1_xor_168256"}[kind]  # fmt: skip
    left, right = fragments("b1" if kind in ("and", "xor") else kind, a, b)
    inside = np.array([[d[place_d(lane, i)] for i in range(4)] for lane in range(32)])
    launch(TILES, f"run_{kernel}", ONE, WARP, [left, right, inside], order=order)
    out = np.zeros_like(d)
    for lane in range(32):
        for i in range(4):
            out[place_d(lane, i)] = inside[lane, i]
    return out


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_product_of_float_tiles(kind: str, order: int) -> None:
    k = 8 if kind == "tf32" else 16
    rng = np.random.default_rng(0)
    # integers whose products and sums are exact; no two rows or columns are alike
    a = rng.permutation(np.arange(16 * k) - 8 * k)[: 16 * k].reshape(16, k).astype(np.float32)
    b = rng.permutation(np.arange(8 * k) - 4 * k).reshape(k, 8).astype(np.float32)
    d = rng.permutation(np.arange(128)).reshape(16, 8).astype(np.float32)
    np.testing.assert_array_equal(run(kind, a, b, d, order), d + a @ b)


def test_product_of_signed_bytes_of_tiles() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(-128, 128, (16, 32)), rng.integers(-128, 128, (32, 8))
    d = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    np.testing.assert_array_equal(run("s8", a, b, d, 0), d + a @ b)


@pytest.mark.parametrize("kind", ["and", "xor"])
def test_product_of_bits_of_tiles(kind: str) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2, (16, 256)), rng.integers(0, 2, (256, 8))
    d = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    want = a @ b if kind == "and" else a @ (1 - b) + (1 - a) @ b
    np.testing.assert_array_equal(run(kind, a, b, d, 0), d + want)


def test_tiles_of_tf32_are_read_without_their_last_bits() -> None:
    a, b = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32)
    a[3, 2], b[2, 5] = 1 + 2.0**-10 + 2.0**-11, 1.0  # 2^-11 is beyond 10 bits of mantissa
    assert run("tf32", a, b, np.zeros((16, 8), np.float32), 0)[3, 5] == 1 + 2.0**-10


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_tiles_are_rounded_toward_zero(sign: int) -> None:
    a, b, d = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32), np.zeros((16, 8), np.float32)
    a[0, 0], b[0, 0], d[0, 0] = sign * 0.75 * 2.0**-12, 2.0**-11, sign
    assert run("f16", a, b, d, 0)[0, 0] == sign


@pytest.mark.parametrize("order", ORDERS)
def test_small_product_of_tiles_by_ldmatrix(order: int) -> None:
    a, b = np.arange(256, dtype=np.float16).reshape(16, 16), np.arange(128, dtype=np.float16).reshape(8, 16) / 8
    c = np.full((16, 8), np.nan, np.float32)
    launch(TILES, "small_product", ONE, WARP, [a, b, c], order=order)
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32).T)
