"""The emulator against what the CUDA C++ Programming Guide and the PTX ISA say, with numbers worked out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convbench.cuda.program import Float
from tests.cuda_on_cpu.emulated import launch

PROBES = Path(__file__).parent / "probes"
WARP, COPIES = PROBES / "warp.cu", PROBES / "copies.cu"
ORDERS = (0, 1, 2, 12345)
ONE = (1, 1, 1)


def block(threads: int) -> tuple[int, int, int]:
    return threads, 1, 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_shuffles_of_a_warp(width: int, order: int) -> None:
    values = np.arange(64, dtype=np.int32) * 3 + 1000
    lane = np.arange(64) % 32
    first, last, base = lane & ~(width - 1), lane | (width - 1), np.arange(64) // 32 * 32
    for by in (0, 1, 3, 5, 16, 31):
        out = np.full((4, 64), -1, np.int32)
        launch(WARP, "shuffles", ONE, block(64), [values, out, by, width], order=order)
        sources = (
            first | (by & (width - 1)),
            np.where(lane - by < first, lane, lane - by),
            np.where(lane + by > last, lane, lane + by),
            np.where((lane ^ by) > last, lane, lane ^ by),
        )
        for got, source, name in zip(out, sources, ("idx", "up", "down", "xor"), strict=True):
            assert (got == values[base + source]).all(), (name, by)


def test_shuffles_of_wide_and_narrow_types_in_a_warp() -> None:
    wide, whole, narrow = np.zeros(32), np.zeros(32, np.int64), np.zeros(32, np.float16)
    launch(WARP, "shuffled_types", ONE, block(32), [wide, whole, narrow])
    above = np.minimum(np.arange(32) + 1, 31)
    assert (wide == above + 0.25).all()
    assert (whole == 1 << above.astype(np.int64)).all()
    assert (narrow == above).all()


@pytest.mark.parametrize("order", ORDERS)
def test_masks_of_a_warp(order: int) -> None:
    out = np.full(36, -5, np.int32)
    launch(WARP, "masks", ONE, block(32), [out], order=order)
    assert (out[:32:2] == 102).all()
    assert (out[1:32:2] == 203).all()
    assert list(out[32:]) == [1, 1, 1, -1]  # lane 9 has nothing to say: poison


@pytest.mark.parametrize("order", ORDERS)
def test_votes_of_a_warp_and_a_block(order: int) -> None:
    values = np.zeros(64, np.int32)
    values[[3, 17, 31]] = 5
    values[32:] = 1
    out = np.zeros((6, 64), np.uint32)
    launch(WARP, "votes", ONE, block(64), [values, out], order=order)
    ballot = 1 << 3 | 1 << 17 | 1 << 31
    for got, (low, high) in zip(out, ((ballot, 0xFFFFFFFF), (1, 1), (0, 1), (35, 35), (1, 1), (0, 0)), strict=True):
        assert (got[:32] == low).all()
        assert (got[32:] == high).all()


@pytest.mark.parametrize("order", ORDERS)
def test_syncwarp_orders_a_warp(order: int) -> None:
    out = np.zeros(64, np.int32)
    launch(WARP, "handed_on", ONE, block(64), [out], order=order)
    thread = np.arange(64)
    assert (out == thread // 32 * 32 + (thread + 5) % 32).all()


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_that_left_are_not_waited_for_in_a_warp(order: int) -> None:
    out = np.full(32, -1, np.int32)
    launch(WARP, "left_early", ONE, block(32), [out], order=order)
    assert (out[:20] == 7).all()
    assert (out[20:] == -1).all()


def test_a_warp_that_is_not_full_can_shuffle() -> None:
    out = np.full(32, -1, np.int32)
    launch(WARP, "left_early", ONE, block(12), [out])
    assert (out[:12] == 7).all()


def order_of(order: int, blocks: int = 5, threads: int = 64) -> np.ndarray:
    out = np.zeros(blocks * threads, np.int32)
    launch(WARP, "tickets", (blocks, 1, 1), block(threads), [np.zeros(1, np.int32), out], order=order)
    assert sorted(out) == list(range(out.size))
    return out


def test_orders_are_what_they_are_called_and_repeat() -> None:
    assert (order_of(0) == np.arange(320)).all()
    assert (order_of(1) == np.arange(320)[::-1]).all()
    assert (order_of(2) == order_of(2)).all()
    assert (order_of(2) != order_of(3)).any()
    mixed = order_of(2).reshape(5, 64) % 64
    assert (mixed != mixed[0]).any(), "every block is in another order"
    assert (np.diff(order_of(2).reshape(5, 64)[:, 0] // 64) < 0).any(), "blocks are in no order"


def test_atomics_of_a_warp() -> None:
    whole, real = np.zeros(5, np.int32), np.zeros(1, np.float32)
    bits, wide = np.array([0, 0xFFFFFFFF], np.uint32), np.zeros(1, np.uint64)
    launch(WARP, "atomics", ONE, block(64), [whole, real, bits, wide])
    assert list(whole) == [64 * 63 // 2, 63, -63, 1, 7]
    assert real[0] == 32
    assert list(bits) == [0xFFFFFFFF, 0]
    assert wide[0] == 64 << 32


@pytest.mark.parametrize("order", ORDERS)
def test_places_in_three_dimensions(order: int) -> None:
    out = np.full((2 * 3 * 4, 3 * 5 * 7), -1, np.int32)
    launch(WARP, "places", (2, 3, 4), (3, 5, 7), [out], order=order)
    assert (out == np.arange(24)[:, None] * 10000 + np.arange(105)).all()


def test_shared_memory_is_poisoned_before_each_block() -> None:
    out = np.zeros((3, 32, 2), np.float32)
    launch(WARP, "found_in_shared", (3, 1, 1), block(32), [out], shared_bytes=128)
    assert np.isnan(out).all()


@pytest.mark.parametrize("x", [1.2345678, -0.1, 3.0e-6, 65519.0, -1.00048828125, 1.0009765625 + 2**-13])
def test_words_of_the_language(x: float) -> None:
    n = 0x00F0_1200
    x = float(np.float32(x))
    out, bits = np.zeros(6, np.float32), np.zeros(8, np.uint32)
    launch(WARP, "words", ONE, ONE, [Float(x), n, out, bits])
    single = np.array([x], np.float32)
    word = int(single.view(np.uint32)[0])
    half = single.astype(np.float16)
    brain = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    tensor = np.array([(word + 0x1000) & 0xFFFFE000], np.uint32).view(np.float32)
    assert out[0] == half[0]
    assert out[1] == np.array([brain << 16], np.uint32).view(np.float32)[0]
    assert out[2] == tensor[0]
    assert out[3] == np.float32(float(single[0]) ** 2 - float(single[0] * single[0]))
    assert out[4] == np.float32(half[0]) + np.float32(1)
    assert out[5] == 0.5
    reversed_bits = int(f"{n:032b}"[::-1], 2)
    pairs = ((0x01, 0x02), (-2, 0x03), (0x03, 0x04), (0x7F, -1))
    assert list(bits[:7]) == [
        n.bit_count(), 32 - n.bit_length(), (n & -n).bit_length(), reversed_bits, 0x77661100,
        (5 + sum(a * b for a, b in pairs)) & 0xFFFFFFFF, n >> 1,
    ]  # fmt: skip
    assert bits[7] == int(half.view(np.uint16)[0]) << 16 | brain


def test_copies_land_as_late_as_the_waits_allow() -> None:
    data, out = np.arange(1, 9, dtype=np.float32), np.zeros(6, np.float32)
    launch(COPIES, "two_groups", ONE, ONE, [data, out], order=0)
    np.testing.assert_array_equal(out, [np.nan, np.nan, 1, np.nan, 1, 5])


def test_copies_may_land_at_once() -> None:
    data, out = np.arange(1, 9, dtype=np.float32), np.zeros(6, np.float32)
    launch(COPIES, "two_groups", ONE, ONE, [data, out], order=1)
    np.testing.assert_array_equal(out, [1, 5, 1, 5, 1, 5])
    seen = set()
    for order in range(2, 30):  # each of the two early or late
        launch(COPIES, "two_groups", ONE, ONE, [data, out], order=order)
        np.testing.assert_array_equal(out[4:], [1, 5])
        assert out[2] == 1
        seen.add(tuple(np.isnan(out[:2])))
    assert len(seen) == 4


def test_copies_that_were_not_committed_are_not_waited_for() -> None:
    data, out = np.arange(1, 9, dtype=np.float32), np.zeros(2, np.float32)
    launch(COPIES, "not_committed", ONE, ONE, [data, out])
    np.testing.assert_array_equal(out, [np.nan, 1])


@pytest.mark.parametrize("order", ORDERS)
def test_copies_that_are_not_valid_give_zeros(order: int) -> None:
    data, out = np.arange(1, 129, dtype=np.float32), np.full(160, np.nan, np.float32)
    launch(COPIES, "filled", ONE, block(32), [data, out, 11], order=order)
    np.testing.assert_array_equal(out[:32], np.where(np.arange(32) < 11, np.arange(1, 33), 0))
    np.testing.assert_array_equal(out[32:], np.where(np.arange(128) < 44, data, 0))


def test_fibers_of_other_processors_do_the_same() -> None:
    for order in ORDERS:
        out = np.zeros(64, np.int32)
        launch(WARP, "handed_on", ONE, block(64), [out], order=order, sanitizer="ucontext")
        thread = np.arange(64)
        assert (out == thread // 32 * 32 + (thread + 5) % 32).all()
