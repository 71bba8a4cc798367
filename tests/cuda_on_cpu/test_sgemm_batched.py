"""kernels/cuda/sgemm_batched.cu: each variant against NumPy: every remainder, splits, adding, what lies beyond rows."""

from __future__ import annotations

import numpy as np
import pytest

from convbench.algorithms._cuda_sgemm import TILES, Operands, sgemm, tile_of
from convbench.cuda.gpu import H200, Gpu
from convbench.cuda.program import Launch
from tests.cuda_on_cpu.emulated import EmulatedContext, Program

VARIANTS = [(*rows, *tile) for rows, tiles in TILES.items() for tile in tiles]
#: (m, n, k): multiples of tiles, one beyond, odd everything, fewer steps than stages.
SIZES = ((128, 128, 48), (129, 65, 17), (3, 5, 7), (70, 133, 33))


def padded(count: int) -> int:
    return count + 3 & ~3


def stored(matrix: np.ndarray, beyond: float) -> np.ndarray:
    """(batch, rows, columns up to a multiple of 4), `beyond` in what is added."""
    batch, rows, columns = matrix.shape
    out = np.full((batch, rows, padded(columns)), beyond, np.float32)
    out[..., :columns] = matrix
    return out


def execute(launch: Launch, **buffers: np.ndarray) -> None:
    EmulatedContext()._execute((launch,), Program((launch,)), buffers)


def operands(a_rows: bool, b_rows: bool, m: int, n: int, k: int, batch: int, **more: object) -> Operands:
    (rows_a, row_a), (rows_b, row_b) = ((m, k) if a_rows else (k, m)), ((n, k) if b_rows else (k, n))
    row_a, row_b, row_c = padded(row_a), padded(row_b), padded(n)
    steps = (rows_a * row_a, rows_b * row_b, m * row_c)
    return Operands("a", "b", "c", m, n, k, row_a, row_b, row_c, batch, *steps, a_rows, b_rows, **more)


def run(monkeypatch: pytest.MonkeyPatch, variant: tuple[bool, bool, int, int], size: tuple[int, int, int],
        splits: int, add: bool) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(got, want) of one variant, two matrices."""
    (a_rows, b_rows, tile_m, tile_n), (m, n, k), batch = variant, size, 2
    monkeypatch.setitem(TILES, (a_rows, b_rows), ((tile_m, tile_n),))
    rng = np.random.default_rng(sum(size))
    a, b = rng.standard_normal((batch, m, k)), rng.standard_normal((batch, k, n))
    # Beyond m and n nothing matters; beyond k a row must hold zero, on both sides or against finite numbers.
    left = stored(a, 0.0) if a_rows else stored(a.swapaxes(1, 2), np.nan)
    right = stored(b.swapaxes(1, 2), 0.0) if b_rows else stored(b, np.nan)
    c = np.full((splits, batch, m, padded(n)), 2.0 if add else np.nan, np.float32)
    o = operands(a_rows, b_rows, m, n, k, batch, splits=splits, step_split=batch * m * padded(n), add=add)
    execute(sgemm(o, H200), a=left, b=right, c=c)
    want = np.matmul(left[..., :k] if a_rows else left[..., :m].swapaxes(1, 2).astype(np.float64),
                     right[..., :k].swapaxes(1, 2) if b_rows else right[..., :n])  # fmt: skip
    return c[..., :n], want


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_sgemm_batched_is_right(monkeypatch: pytest.MonkeyPatch, variant: tuple[bool, bool, int, int]) -> None:
    for size in SIZES:
        got, want = run(monkeypatch, variant, size, 1, False)
        np.testing.assert_allclose(got[0], want, rtol=0, atol=2e-6 * size[2])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_sgemm_batched_splits_and_adds(monkeypatch: pytest.MonkeyPatch, variant: tuple[bool, bool, int, int]) -> None:
    """Five splits of 33 steps: two have none and must write zeros (or leave what is there when they add)."""
    got, want = run(monkeypatch, variant, (33, 34, 33), 5, False)
    np.testing.assert_allclose(got.sum(axis=0), want, rtol=0, atol=1e-4)
    assert (got[3:] == 0).all()
    got, want = run(monkeypatch, variant, (33, 34, 33), 5, True)
    np.testing.assert_allclose(got.sum(axis=0) - 10, want, rtol=0, atol=1e-4)


def test_sgemm_batched_is_exact_on_small_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    o = operands(False, False, 9, 7, 40, 1)
    a, b = (np.arange(40 * width, dtype=np.float32).reshape(1, 40, width) % 17 - 8 for width in (9, 7))
    c = np.full((1, 9, 8), np.nan, np.float32)
    execute(sgemm(o, H200), a=stored(a, np.nan), b=stored(b, np.nan), c=c)
    assert (c[..., :7] == np.matmul(a.swapaxes(1, 2), b)).all()


def test_rows_that_are_no_multiple_of_4_are_refused() -> None:
    o = Operands("a", "b", "c", 8, 8, 8, 10, 8, 8, 1, 0, 0, 0)
    with pytest.raises(ValueError, match="row_a must be a multiple of 4, not 10"):
        sgemm(o, H200)


def test_tiles_follow_the_result_and_the_gpu() -> None:
    large = operands(False, False, 512, 1568, 512, 36)
    assert tile_of(large, H200) == (128, 128)
    assert tile_of(operands(False, False, 512, 16, 512, 36, splits=8), H200) == (128, 32)
    assert tile_of(operands(False, False, 64, 4096, 64, 36), H200) == (64, 128)
    assert tile_of(operands(True, False, 16, 512, 512, 36, splits=8), H200) == (32, 128)
    assert tile_of(operands(True, True, 64, 64, 1568, 36, splits=16), H200) == (64, 64)
    one = Gpu("one", (8, 0), 1, 1 << 20, 100 << 10, 10**9)
    assert tile_of(large, one) == (128, 128)
