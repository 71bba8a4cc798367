"""What quantising an operand needs to know of it, found by kernels at every call: scales, zero points, exponents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convbench import formats
from convbench.algorithms._quantised import int8_activation_scale, int8_filter_scales
from convbench.algorithms._quantised_simd_tasks import REDUCE_NAMES, reduce_task
from convbench.algorithms._simd import address_of
from convbench.problem import Problem, Semantics
from convbench.registry import Context
from convbench.simd.compiler import Kernel
from convbench.simd.driver import Runner
from convbench.simd.kernels import quantize, roundings
from convbench.simd.target import Target

#: Floats of one task of a reduction.
BLOCK = 1 << 16


class Reduction:
    """A kernel over blocks of a tensor: one row of `found` for each."""

    def __init__(
        self, kernel: Kernel, total: int, block: int, item: tuple[int, Any], context: Context, constants: int = 0
    ) -> None:
        self.blocks = -(-total // block)
        self.found = context.empty((self.blocks, item[0]), item[1])
        values = (0, total, block, kernel.address, constants, address_of(self.found), self.found[0].nbytes)
        self._parameters = np.array(values, np.int64)
        self._runner = Runner(reduce_task, self._parameters, context.threads)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """(blocks, ...) of an array."""
        self._parameters[REDUCE_NAMES.index("source")] = address_of(array)
        self._runner(self.blocks)
        return self.found


class Operand:
    """One operand: how it is quantised (`mode` of quantize, `constants` for its kernels), and what `measure` found.

    stride: bytes between the constants of neighbouring filters, 0 where one set serves all. dynamic: exponent and
    squares. scale, zero: of INT8's x; scales: of its filters.
    """

    def __init__(self, problem: Problem, which: int, context: Context, target: Target) -> None:
        shape = (problem.a_shape, problem.b_shape)[which]
        self.size, self.stride = math.prod(shape), 0
        self.mode = mode_of(problem, which)
        self.dynamic = formats.DynamicOperand(0, 1, 0)
        self.scale, self.zero, self.scales = np.float32(1), 0, np.ones(1, np.float32)
        length = shape[0] if self.mode == "int8_filter" else max(2, quantize.THRESHOLDS)
        self.constants = context.empty(length, np.float32)
        self._thresholds = context.empty(quantize.THRESHOLDS, np.float32)
        if self.mode == "stochastic":
            self.constants.view(np.uint32)[:] = quantize.rounding_key(formats.ROUNDING_SEEDS[which])
        if self.mode == "int8_filter":
            self.stride = 4
            self._extremes = Reduction(
                quantize.extremes(target), self.size, self.size // shape[0], (2, np.float32), context
            )
        elif self.mode in ("int8", "dynamic"):
            self._extremes = Reduction(quantize.extremes(target), self.size, BLOCK, (2, np.float32), context)
        if self.mode == "dynamic":
            four, sums = (quantize.THRESHOLDS, np.int64), (1, np.int64)
            at = address_of(self._thresholds)
            self._beyond = Reduction(quantize.beyond(target), self.size, BLOCK, four, context, at)
            at = address_of(self.constants)
            self._squares = Reduction(
                quantize.squares(target), self.size, quantize.SQUARES_COUNT, sums, context, at
            )

    def measure(self, array: np.ndarray) -> None:
        """Finds what the operand's elements decide, and sets the constants."""
        if self.mode == "int8":
            found = self._extremes(array)
            self.scale, inverse, zero = int8_activation_scale(found[:, 0].min(), found[:, 1].max())
            self.constants[:2], self.zero = (inverse, zero), int(zero)
        elif self.mode == "int8_filter":
            found = self._extremes(array)  # a filter each
            self.scales = int8_filter_scales(np.maximum(-found[:, 0], found[:, 1]))
            self.constants[:] = np.float32(1) / self.scales
        elif self.mode == "dynamic":
            e = self._exponent(array)
            self.constants[:] = 2.0 ** (formats.DYNAMIC_BITS - 1 - e)
            self.dynamic = formats.DynamicOperand(e, self.size, int(self._squares(array).sum()))

    def _exponent(self, array: np.ndarray) -> int:
        """The least exponent that leaves few enough elements beyond it; from that of the largest element downwards."""
        found, allowed = self._extremes(array), self.size // formats.OVERFLOW_ONE_IN
        largest = max(float(-found[:, 0].min()), float(found[:, 1].max()))
        e = math.frexp(largest)[1] if largest else formats.LEAST_EXPONENT  # none is beyond it
        while e > formats.LEAST_EXPONENT:
            self._thresholds[:] = [2.0 ** (e - 1 - t) for t in range(quantize.THRESHOLDS)]
            for count in self._beyond(array).sum(axis=0).tolist():
                if count > allowed or e <= formats.LEAST_EXPONENT:
                    return max(e, formats.LEAST_EXPONENT)
                e -= 1
        return max(e, formats.LEAST_EXPONENT)


def mode_of(problem: Problem, which: int) -> str:
    """How an operand is quantised: one of quantize.MODES."""
    semantics = problem.semantics
    if semantics is Semantics.INT8:
        return ("int8", "int8_filter")[which]
    return {Semantics.FIXED16_STOCHASTIC: "stochastic", Semantics.DYNAMIC_FIXED: "dynamic"}.get(semantics, "fixed16")


def kind_of(problem: Problem) -> str:
    """Which numbers are multiplied: the kind of part_sums.scheme_for."""
    return {Semantics.INT8: "int8", Semantics.DYNAMIC_FIXED: "dynamic"}.get(problem.semantics, "fixed16")


class Result:
    """What sums become: how (one of roundings.HOW), and the table of constants that finishing kernels read."""

    def __init__(self, problem: Problem, context: Context) -> None:
        self._problem = problem
        self.how = {Semantics.INT8: "scaled", Semantics.FIXED16_STOCHASTIC: "stochastic"}.get(
            problem.semantics, "nearest"
        )
        channels = problem.shape.k if self.how == "scaled" else 1
        self.constants = context.empty(len(roundings.CONSTANTS), np.int64)
        self.filter_sums = context.empty(channels, np.int32)
        self.scales = context.empty(channels, np.float32)
        key = quantize.rounding_key(formats.ROUNDING_SEEDS[2])
        self.constants[3:6] = key, address_of(self.filter_sums), address_of(self.scales)
        fraction = formats.fixed_result_fraction(problem.accumulation_length)
        self._set(fraction - 2 * formats.FIXED_FRACTION, -fraction, formats.FIXED_BITS)

    def _set(self, lift: int, step: int, bits: int) -> None:
        self.constants[:3] = np.array([2.0**lift, 2.0**step, 2.0 ** (bits - 1)]).view(np.int64)

    def settle(self, a: Operand, b: Operand, column_sums: np.ndarray) -> None:
        """Sets the constants from what both operands were found to be. column_sums: of INT8's filters."""
        p = self._problem
        if p.semantics is Semantics.INT8:
            np.multiply(b.scales, a.scale, out=self.scales)
            self.filter_sums[:] = column_sums
            self.constants[6:].view(np.float64)[:] = a.zero + 128
        elif p.semantics is Semantics.DYNAMIC_FIXED:
            bits = formats.dynamic_bits(p.pass_)
            step = formats.dynamic_result_exponent(a.dynamic, b.dynamic, p.accumulation_length) - bits + 1
            of_product = a.dynamic.exponent + b.dynamic.exponent - 2 * (formats.DYNAMIC_BITS - 1)
            self._set(of_product - step, step, bits)
