"""Stochastic rounding's numbers: written out again from their definition, uniform, the same in any layout."""

from fractions import Fraction

import numpy as np
import pytest

from convbench.errors import ProblemError
from convbench.rounding import bits24, logical_indices, mix32, round_stochastic, uniform24

MASK = 2**32 - 1


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


def drawn(seed: int, index: int) -> int:
    return mix(index & MASK ^ mix(index >> 32 ^ mix(seed))) >> 8


def test_the_numbers_are_those_of_the_definition():
    indices = [0, 1, 2, 1000, MASK - 1, MASK, 2**32, 2**32 + 1, 2**40 + 12345, 2**63]
    for seed in (0, 1, 20250101, MASK):
        want = [drawn(seed, index) for index in indices]
        assert bits24(seed, np.array(indices, dtype=np.uint64)).tolist() == want
        assert uniform24(seed, np.array(indices, dtype=np.uint64)).tolist() == [n / 2**24 for n in want]
    # Literal values, so that a kernel can be held against them without this package.
    assert [int(mix32(x)) for x in (0, 1, 2, MASK)] == [0, 1753845952, 3507691905, 1734902346]
    assert bits24(7, np.arange(4)).tolist() == [12522989, 6109442, 3196603, 4973110]


def test_the_shape_and_the_type_of_indices_do_not_matter():
    indices = np.arange(24)
    flat = bits24(3, indices)
    for dtype in (np.int8, np.uint16, np.int32, np.uint64):
        assert (bits24(3, indices.astype(dtype)) == flat).all()
    assert (bits24(3, indices.reshape(2, 3, 4)) == flat.reshape(2, 3, 4)).all()
    assert (bits24(3, np.asfortranarray(indices.reshape(4, 6))) == flat.reshape(4, 6)).all()
    assert int(bits24(3, 5)) == flat[5]


def test_the_numbers_are_uniform_and_uncorrelated():
    n = 1_000_000
    for seed in (0, 1, 12345):
        u = uniform24(seed, np.arange(n))
        assert u.min() >= 0 and u.max() < 1
        assert abs(u.mean() - 0.5) < 3 * np.sqrt(1 / 12 / n)
        counts = np.bincount((u * 256).astype(int), minlength=256)
        chi2 = float(((counts - n / 256) ** 2 / (n / 256)).sum())
        assert abs(chi2 - 255) < 4 * np.sqrt(2 * 255)
        for lag in (1, 2, 16, 224):
            assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / np.sqrt(n)


def test_nhwc_elements_take_the_indices_of_nchw():
    n, c, h, w = 2, 3, 4, 5
    nchw = logical_indices((n, c, h, w))
    nhwc = logical_indices((n, h, w, c), "nhwc")
    assert (nhwc.transpose(0, 3, 1, 2) == nchw).all()
    assert nchw.reshape(-1).tolist() == list(range(n * c * h * w))
    assert logical_indices((6,), "nhwc", first=10).tolist() == list(range(10, 16))
    second = logical_indices((1, h, w, c), "nhwc", first=c * h * w)
    assert (second == nhwc[1:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_up_is_taken_where_the_number_drawn_is_below_the_distance(dtype):
    rng = np.random.default_rng(5)
    values = np.concatenate([
        rng.normal(size=500) * 10.0 ** rng.integers(-12, 6, size=500),
        [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-30, -1e-30, 2.0**23, -(2.0**23), 2.0**24, 1 - 2.0**-24, 2.0**-24 - 1],
    ]).astype(dtype)  # fmt: skip
    indices = np.arange(values.size) + 1
    got = round_stochastic(values, 11, indices)
    assert got.dtype == dtype
    for value, index, result in zip(values, indices.tolist(), got.tolist(), strict=True):
        exact = Fraction(float(value))
        low = exact.numerator // exact.denominator
        distance = Fraction(float(dtype(value - dtype(low))))  # the one rounding is the subtraction's own
        assert result == low + (Fraction(drawn(11, index), 2**24) < distance), (value, index)
        assert abs(distance - (exact - low)) <= Fraction(1, 2**25)


def test_the_mean_of_stochastic_rounding_is_the_value():
    n = 1_000_000
    for value in (0.25, 0.5, 3.9, -0.1, -7.3, 1e-3):
        got = round_stochastic(np.full(n, value), 42, np.arange(n))
        assert set(np.unique(got)) == {np.floor(value), np.floor(value) + 1}
        chance = value - np.floor(value)
        assert abs(got.mean() - value) <= 3 * np.sqrt(chance * (1 - chance) / n)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "1"])
def test_a_wrong_seed_is_named(seed):
    with pytest.raises(ProblemError, match="seed must be a whole number from 0 to 4294967295"):
        bits24(seed, np.arange(3))


@pytest.mark.parametrize("indices", [np.array([-1, 0]), np.array([0.5])])
def test_wrong_indices_are_named(indices):
    with pytest.raises(ProblemError, match="indices must be whole numbers >= 0"):
        bits24(0, indices)


def test_wrong_layouts_and_firsts_are_named():
    with pytest.raises(ProblemError, match="layout must be nchw or nhwc"):
        logical_indices((2, 2), "chwn")
    with pytest.raises(ProblemError, match="first must be"):
        logical_indices((2, 2), first=-1)
