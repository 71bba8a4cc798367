"""im2col with NumPy or CuPy: all windows as one strided view, copied into a matrix, one BLAS product per group.

Chellapilla, Puri, Simard 2006, "High Performance Convolutional Neural Networks for Document Processing",
section 3. The copy has R * S times the input's elements; the product runs at the speed of BLAS.
"""

from __future__ import annotations

from typing import Any, ClassVar

from convbench.algorithms._cupy import OnCupy
from convbench.algorithms._im2col import Im2col
from convbench.algorithms._window import PIXELS_PER_PRODUCT, product_of
from convbench.problem import Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register


@register
class Im2colNumpy(Implementation):
    """im2col over the whole batch: as many images per product as give it 4,096 pixels.

    1x1 layers without stride or padding use the input as it is. nhwc depthwise layers have no matrix that BLAS
    could read; their columns are summed by einsum over all channels at once.

    error_growth 4: twice the largest measured, 2.1, over 13 shapes (up to C = 512, 3x3; 1x1, 5x5 stride 2, depthwise,
    N P Q up to 40,000), three passes, both layouts, two seeds, in float32; relative L2 at most 0.44.
    """

    name = "im2col_numpy"
    reference = "Chellapilla, Puri, Simard 2006, section 3"
    error_growth = 4.0
    #: Output pixels that a product should have, and whether nhwc depthwise columns run over the groups.
    pixels: ClassVar[int] = PIXELS_PER_PRODUCT
    vectorised_depthwise: ClassVar[bool] = True

    def workspace_estimate(self, problem: Problem) -> int:
        """Columns, padded images, staging of several nchw images, partial sums of backward weights."""
        return Im2col.workspace(problem, self.pixels)

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Allocates; there is nothing to pack."""
        plan = Im2col(problem, context, product_of(context), self.vectorised_depthwise, self.pixels)
        return bind_weights(plan.run(), weights, context)


@register
class Im2colCupy(OnCupy, Im2colNumpy):
    """im2col_numpy on CuPy's arrays: 65,536 pixels a product are 512 tiles of 128, about four for each multiprocessor
    of an H200. Depthwise layers are a batch of products like all others."""

    name = "im2col_cupy"
    pixels: ClassVar[int] = 1 << 16
    vectorised_depthwise: ClassVar[bool] = False
