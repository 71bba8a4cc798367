"""The peak's kernel really computes its chains, so that the compiler cannot have dropped them."""

import pytest

from convbench.devices import fma_peak


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("iterations", [0, 1, 2, 7])
def test_every_lane_of_every_chain_is_stepped(dtype, iterations):
    value = 3.0
    for _ in range(iterations):
        value = value * fma_peak.FACTOR + fma_peak.ADDEND
    assert fma_peak.run_chain(iterations, 3.0, dtype) == value * fma_peak.CHAINS * fma_peak.lanes_of(dtype)


def test_a_peak_is_a_positive_rate():
    assert fma_peak.measure(1, seconds=0.05) > 0
