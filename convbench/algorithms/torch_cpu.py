"""PyTorch's convolutions on the CPU: a cross-check of results and of the vendor baseline.

PyTorch, https://pytorch.org: aten::convolution and aten::convolution_backward. Which backend serves a call is
PyTorch's own rule, which the note "vendor_impl" repeats: for float32 mostly the oneDNN it bundles ("Mkldnn", another
version than row `onednn` uses), for the 16-bit types always that where the processor has AVX-512; for float64 and for
some float32 shapes (a 1x1 filter at batch 1 on one thread, for example) its own im2col + MKL. Which kernel of oneDNN,
and the scratch memory of either, it does not tell.
"""

from __future__ import annotations

import ctypes
import math
import re
from typing import Any

import numpy as np

from convbench.devices.arrays import storage
from convbench.problem import Pass, Problem
from convbench.registry import Context, Implementation, Run, bind_weights, register


@register
class TorchCpu(Implementation):
    """aten's convolution and its two gradients over the caller's arrays, without copying them in.

    nhwc arrays are handed over as channels_last views. PyTorch allocates its own result, which run() copies into
    `out`; that copy is on the clock, because nothing in PyTorch writes the result in place (convolution.out copies
    too). Asymmetric padding is done by F.pad, on the clock, because a convolution takes one padding an axis here.
    Packed weights: a forward pass with symmetric padding, but in float64, takes oneDNN's reordered filter, as frozen
    models do; elsewhere there is nothing to pack and the filter is kept as it is (note "packed").

    error_growth: measured as for `onednn` (which see), with the same largest value, 1.92; 1.70 in float64.
    """

    name = "torch"
    requires = ("torch",)
    extra = "torch"
    vendor = True
    pool = "torch"
    error_growth = 4.0
    reference = "PyTorch, aten::convolution and aten::convolution_backward"

    def workspace_estimate(self, problem: Problem) -> int:
        """The result that PyTorch allocates, stand-ins for unused operands, padded and packed copies.

        The scratch memory of its backends cannot be asked for and is not in this number.
        """
        return sum(_own_bytes(problem).values())

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Sets PyTorch's threads and strict float32 for the process, and picks the call."""
        import torch

        torch.set_num_threads(context.threads)
        torch.set_float32_matmul_precision("highest")
        torch.backends.nnpack.set_flags(False)  # its Winograd would not be what the other shapes are computed with
        call = _Call(torch, problem, context)
        context.note("vendor_impl", f"{_versions(torch)}, backend {call.backend()}")
        if weights is not None and _can_pack(problem, call):
            context.note("packed", "the filter, by mkldnn::_reorder_convolution_weight")
            return call.forward_packed(weights)
        if weights is not None:
            context.note("packed", "nothing: PyTorch packs forward filters for oneDNN with symmetric padding only")
        return bind_weights(call.run, weights, context)


@register
class TorchBf16(TorchCpu):
    """`torch` in bfloat16, which PyTorch hands to its oneDNN (AMX or AVX512_BF16; summed in float32, rounded once).

    error_growth is that of float32, in which the sums are: of it, no more than 0.10 was seen beyond half an ulp of the
    stored result (seven shapes, C up to 512, depthwise, 7x7 stride 2, all passes and layouts), relative L2 error 0.44
    half ulps.
    """

    name = "torch_bf16"
    dtypes = ("bfloat16",)
    arithmetic = "bfloat16-acc32"


@register
class TorchFp16(TorchCpu):
    """`torch` in float16, which PyTorch hands to its oneDNN (AVX512_FP16; summed in float32, rounded once).

    Backward weights is no pass of this row: for float16 that oneDNN has reference code alone (ref:any of 3.12, one
    product at a time), which is never a baseline. error_growth as in `torch_bf16`: at most 0.51 was seen beyond half an
    ulp of the stored result, relative L2 error 0.45 half ulps.
    """

    name = "torch_fp16"
    passes = (Pass.FORWARD, Pass.BACKWARD_DATA)
    dtypes = ("float16",)
    arithmetic = "float16-acc32"


def _symmetric(problem: Problem) -> bool:
    top, bottom, left, right = problem.shape.padding
    return top == bottom and left == right


def _can_pack(problem: Problem, call: _Call) -> bool:
    if problem.pass_ is not Pass.FORWARD or not _symmetric(problem):
        return False
    return problem.dtype == "float32" or (problem.dtype != "float64" and call.backend() == "Mkldnn")


def _padded_x_shape(problem: Problem) -> tuple[int, ...]:
    """Shape, in the problem's layout, of the input that PyTorch's own convolution sees."""
    s = problem.shape
    if _symmetric(problem):
        return s.x_shape(problem.layout)
    top, bottom, left, right = s.padding
    h, w = s.h + top + bottom, s.w + left + right
    return (s.n, s.c, h, w) if problem.layout == "nchw" else (s.n, h, w, s.c)


def _own_bytes(problem: Problem) -> dict[str, int]:
    """Bytes that a run takes beside the operands, by what they are."""
    padded = math.prod(_padded_x_shape(problem)) * problem.item_bytes
    result = math.prod(problem.out_shape) * problem.item_bytes
    if problem.pass_ is Pass.BACKWARD_DATA:
        return {"result": padded, "stand-in": padded}
    own = {"result": result, "padded input": 0 if _symmetric(problem) else padded}
    if problem.pass_ is Pass.BACKWARD_WEIGHTS:
        own["stand-in"] = result
    return own


def _versions(torch: Any) -> str:
    """'torch 2.13.0+cpu (oneDNN 3.12.0)'."""
    bundled = re.search(r"(?:MKL-DNN|oneDNN) v([0-9.]+)", torch.__config__.show())
    return f"torch {torch.__version__} (oneDNN {bundled.group(1) if bundled else 'not built in'})"


class _Call:
    """One problem in PyTorch's terms. Not thread-safe."""

    def __init__(self, torch: Any, problem: Problem, context: Context) -> None:
        shape = problem.shape
        self.torch, self.problem, self.threads = torch, problem, context.threads
        self.nhwc = problem.layout == "nhwc"
        self.symmetric = _symmetric(problem)
        padding = [shape.padding[0], shape.padding[2]] if self.symmetric else [0, 0]
        self.geometry = ([*shape.stride], padding, [*shape.dilation])
        self.run: Run = {
            Pass.FORWARD: self._forward,
            Pass.BACKWARD_DATA: self._backward_data,
            Pass.BACKWARD_WEIGHTS: self._backward_weights,
        }[problem.pass_]
        for what, n_bytes in _own_bytes(problem).items():
            if what != "stand-in":
                context.account(n_bytes, what)
        # convolution_backward asks for both operands of the forward pass; of the one whose gradient is wanted only
        # the shape and the memory format matter.
        if problem.pass_ is Pass.BACKWARD_DATA:
            self.stand_in = self._view(context.empty(_padded_x_shape(problem), storage(problem.dtype)))
        elif problem.pass_ is Pass.BACKWARD_WEIGHTS:
            self.stand_in = self._view(context.empty(problem.out_shape, storage(problem.dtype)))

    def backend(self) -> str:
        """What aten::convolution and its gradients go to, by PyTorch's own rule: "Mkldnn", "Slow2d" ..."""
        torch, shape = self.torch, self.problem.shape
        sizes = (_padded_x_shape(self.problem), shape.w_shape(self.problem.layout))
        x, w = (torch.empty(size, dtype=getattr(torch, self.problem.dtype)) for size in sizes)
        if self.nhwc:
            x, w = x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2)
        stride, padding, dilation = self.geometry
        chosen = torch._C._select_conv_backend(x, w, None, stride, padding, dilation, False, [0, 0], shape.groups)
        return str(chosen.name)

    def _view(self, array: np.ndarray) -> Any:
        """The same memory as a tensor of logical shape (N, C, H, W) or (K, C/G, R, S); channels_last for nhwc."""
        if not array.flags.writeable:  # from_numpy warns of these, and nothing here writes to an operand
            memory = memoryview((ctypes.c_char * array.nbytes).from_address(array.ctypes.data))
            array = np.ndarray(array.shape, array.dtype, memory)
        tensor = self.torch.from_numpy(array)
        if self.problem.dtype == "bfloat16":  # its bits, in uint16
            tensor = tensor.view(self.torch.bfloat16)
        return tensor.permute(0, 3, 1, 2) if self.nhwc else tensor

    def _padded(self, x: Any) -> Any:
        """x with its padding put on where PyTorch cannot do so itself: (N, C, H + top + bottom, W + left + right)."""
        if self.symmetric:
            return x
        top, bottom, left, right = self.problem.shape.padding
        return self.torch.nn.functional.pad(x, (left, right, top, bottom))

    def _set_threads(self) -> None:
        if self.torch.get_num_threads() != self.threads:
            self.torch.set_num_threads(self.threads)

    def _forward(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        self._set_threads()
        with self.torch.inference_mode():
            stride, padding, dilation = self.geometry
            y = self.torch.ops.aten.convolution(
                self._padded(self._view(a)), self._view(b), None, stride, padding, dilation, False, [0, 0],
                self.problem.shape.groups,
            )  # fmt: skip
            self._view(out).copy_(y)

    def _gradients(self, dy: Any, x: Any, w: Any, mask: list[bool]) -> Any:
        stride, padding, dilation = self.geometry
        return self.torch.ops.aten.convolution_backward(
            dy, x, w, None, stride, padding, dilation, False, [0, 0], self.problem.shape.groups, mask
        )

    def _backward_data(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        self._set_threads()
        with self.torch.inference_mode():
            dx = self._gradients(self._view(a), self.stand_in, self._view(b), [True, False, False])[0]
            if not self.symmetric:
                shape = self.problem.shape
                top, _, left, _ = shape.padding
                dx = dx[:, :, top : top + shape.h, left : left + shape.w]  # (N, C, H, W)
            self._view(out).copy_(dx)

    def _backward_weights(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        self._set_threads()
        with self.torch.inference_mode():
            x = self._padded(self._view(a))
            dw = self._gradients(self._view(b), x, self.stand_in, [False, True, False])[1]
            self._view(out).copy_(dw)

    def forward_packed(self, weights: np.ndarray) -> Run:
        """run(a, out) over a filter in the format that PyTorch's oneDNN likes."""
        ops, groups = self.torch.ops.mkldnn, self.problem.shape.groups
        stride, padding, dilation = self.geometry
        s = self.problem.shape
        with self.torch.inference_mode():
            w = self._view(weights.copy())
            packed = ops._reorder_convolution_weight(w, padding, stride, dilation, groups, [s.n, s.c, s.h, s.w])

        def run(a: np.ndarray, out: np.ndarray) -> None:
            self._set_threads()
            with self.torch.inference_mode():
                x = self._view(a)
                y = ops._convolution_pointwise(x, packed, None, padding, stride, dilation, groups, "none", [], "")
                self._view(out).copy_(y)

        return run
