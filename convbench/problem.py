"""What is computed: passes, shapes, problems, and the cases that a run consists of.

One alphabet everywhere: N C H W (input), K R S (filter), P Q (output), G (groups). Cross-correlation, no bias.
Standard library only. The text form of a problem (oneDNN's benchdnn descriptor) lives in `descriptor.py`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from convbench.errors import ProblemError

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]  # top, bottom, left, right

LAYOUTS = ("nchw", "nhwc")
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
#: Type of the results where it is not the operands': int8 is summed exactly, in int32.
OUT_DTYPES = {"int8": "int32"}
OUT_BYTES = ITEM_BYTES | {"int8": 4}
#: From so many products on, a sum of (-128) * (-128) leaves int32.
INT8_PRODUCTS = 2**31 // (128 * 128)


class Pass(StrEnum):
    """Which of the three convolutions of a training step is computed."""

    FORWARD = "fwd"
    BACKWARD_DATA = "bwd_data"
    BACKWARD_WEIGHTS = "bwd_weights"


class Semantics(StrEnum):
    """Which function is computed. All but LINEAR are defined on float32 operands; `formats.py` has the parameters.

    LINEAR              the convolution of the operands
    BINARY              of their signs, +1 or -1: exact integers (Courbariaux et al. 2016)
    XNOR                the same, times mean |w| of each filter and mean |x| under each window (Rastegari et al. 2016)
    BINARY_WEIGHTS      of x and sign(w) mean |w| (Rastegari et al. 2016)
    INT8                of the operands rounded to 8 bits: x with one scale and zero point, w with a scale per filter
    FIXED16             of operands rounded to 16-bit fixed point, summed exactly, rounded once (Gupta et al. 2015)
    FIXED16_STOCHASTIC  the same with stochastic instead of nearest rounding
    DYNAMIC_FIXED       10-bit numbers with an exponent for each tensor, 12 bits in dw (Courbariaux et al. 2015)

    sign(0) = +1; padding stands for the number 0, so it adds nothing to any sum.
    """

    LINEAR = "linear"
    BINARY = "binary"
    XNOR = "xnor"
    BINARY_WEIGHTS = "binary_weights"
    INT8 = "int8"
    FIXED16 = "fixed16"
    FIXED16_STOCHASTIC = "fixed16_stochastic"
    DYNAMIC_FIXED = "dynamic_fixed"


#: What the operands that are timed hold: `verify/inputs.py` makes them.
INPUTS = ("normal", "uniform", "relu", "integers", "zeros")


def as_pair(value: int | tuple[int, int] | list[int], name: str) -> Pair:
    """An int or (height, width) as a pair; ProblemError names `name`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return (value[0], value[1])
    raise ProblemError(f"{name} must be an int or (height, width), not {value!r}")


def as_padding(value: Any) -> Padding:
    """An int, (h, w) or ((top, bottom), (left, right)) as (top, bottom, left, right)."""
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, tuple | list) for v in value):
        (top, bottom), (left, right) = (as_pair(v, "padding") for v in value)
        return (top, bottom, left, right)
    h, w = as_pair(value, "padding")
    return (h, h, w, w)


def output_size(size: int, begin: int, end: int, extent: int, stride: int) -> int:
    """Number of output positions along one axis; `extent` is the dilated filter."""
    return (size + begin + end - extent) // stride + 1


def canonical_end(size: int, begin: int, out: int, extent: int, stride: int) -> int:
    """The one end padding that stands for all that give `out` positions.

    Padding that no output position reads changes nothing, so problems that differ only in it are the same
    problem: symmetric padding where that gives `out`, otherwise the least that does. Negative: impossible.
    """
    if output_size(size, begin, begin, extent, stride) == out:
        return begin
    least = (out - 1) * stride + extent - size - begin
    if least < 0 and output_size(size, begin, 0, extent, stride) == out:
        return 0
    return least


@dataclass(frozen=True)
class ConvShape:
    """The geometry of a 2-D convolution.

    Padding is (top, bottom, left, right); dilation 1 is dense. `ConvShape.make` takes the API's short forms.
    End padding that no output reads is normalised away (`canonical_end`), so equal problems compare equal.
    Raises ProblemError, with a sentence, for what is no convolution.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @classmethod
    def make(
        cls,
        n: int,
        c: int,
        h: int,
        w: int,
        k: int,
        r: int,
        s: int,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> ConvShape:
        """As the constructor, with int, (h, w) and ((t, b), (l, r)) accepted as in the public API."""
        return cls(
            n,
            c,
            h,
            w,
            k,
            r,
            s,
            as_pair(stride, "stride"),
            as_padding(padding),
            as_pair(dilation, "dilation"),
            groups,
        )

    def __post_init__(self) -> None:
        for name in "nchwkrs":
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ProblemError(f"{name} must be a whole number >= 1, not {value!r}")
        for name, least in (("stride", 1), ("dilation", 1), ("padding", 0)):
            if min(getattr(self, name)) < least:
                raise ProblemError(f"{name} must be >= {least}, not {getattr(self, name)}")
        if not isinstance(self.groups, int) or self.groups < 1:
            raise ProblemError(f"groups must be a whole number >= 1, not {self.groups!r}")
        for name in "ck":
            if getattr(self, name) % self.groups:
                raise ProblemError(f"{name}={getattr(self, name)} is not a multiple of groups={self.groups}")
        top, bottom, left, right = self.padding
        eh, ew = self.extent
        for axis, size, padded, extent in (
            ("height", self.h, self.h + top + bottom, eh),
            ("width", self.w, self.w + left + right, ew),
        ):
            if padded < extent:
                raise ProblemError(
                    f"the filter's {axis} {extent} (dilation included) exceeds the padded input's {padded} "
                    f"(input {size}): there is no output; add padding or take a smaller filter"
                )
        ends = (
            canonical_end(self.h, top, output_size(self.h, top, bottom, eh, self.stride[0]), eh, self.stride[0]),
            canonical_end(self.w, left, output_size(self.w, left, right, ew, self.stride[1]), ew, self.stride[1]),
        )
        object.__setattr__(self, "padding", (top, ends[0], left, ends[1]))

    @property
    def extent(self) -> Pair:
        """Height and width of the dilated filter."""
        return ((self.r - 1) * self.dilation[0] + 1, (self.s - 1) * self.dilation[1] + 1)

    @property
    def p(self) -> int:
        """Output height."""
        return output_size(self.h, self.padding[0], self.padding[1], self.extent[0], self.stride[0])

    @property
    def q(self) -> int:
        """Output width."""
        return output_size(self.w, self.padding[2], self.padding[3], self.extent[1], self.stride[1])

    @property
    def cg(self) -> int:
        """Input channels of one group."""
        return self.c // self.groups

    @property
    def kg(self) -> int:
        """Output channels of one group."""
        return self.k // self.groups

    @property
    def macs(self) -> int:
        """Multiply-adds of direct convolution, padding taps included (N K P Q C/G R S)."""
        return self.n * self.k * self.p * self.q * self.cg * self.r * self.s

    @cached_property
    def valid_macs(self) -> int:
        """Multiply-adds whose input lies inside the image (benchdnn's count)."""
        rows = _taps_inside(self.h, self.p, self.r, self.stride[0], self.padding[0], self.dilation[0])
        cols = _taps_inside(self.w, self.q, self.s, self.stride[1], self.padding[2], self.dilation[1])
        return self.n * self.k * self.cg * rows * cols

    def x_shape(self, layout: str) -> tuple[int, ...]:
        """Shape of the input: (N, C, H, W) or (N, H, W, C)."""
        return (self.n, self.c, self.h, self.w) if layout == "nchw" else (self.n, self.h, self.w, self.c)

    def w_shape(self, layout: str) -> tuple[int, ...]:
        """Shape of the filter: (K, C/G, R, S) or (K, R, S, C/G)."""
        return (self.k, self.cg, self.r, self.s) if layout == "nchw" else (self.k, self.r, self.s, self.cg)

    def y_shape(self, layout: str) -> tuple[int, ...]:
        """Shape of the output: (N, K, P, Q) or (N, P, Q, K)."""
        return (self.n, self.k, self.p, self.q) if layout == "nchw" else (self.n, self.p, self.q, self.k)


def _taps_inside(size: int, outputs: int, taps: int, stride: int, begin: int, dilation: int) -> int:
    """Pairs (output, tap) along one axis that read a real input element."""
    total = 0
    for tap in range(taps):
        first = tap * dilation - begin  # input index read by output 0
        low = max(0, -(first // stride))  # ceil(-first / stride)
        high = min(outputs - 1, (size - 1 - first) // stride)
        total += max(0, high - low + 1)
    return total


@dataclass(frozen=True)
class Problem:
    """A convolution to compute: geometry, pass, element type, memory layout and semantics.

    Operands a, b and result out: fwd x, w -> y; bwd_data dy, w -> dx; bwd_weights x, dy -> dw. A gradient has
    the shape and layout of what it is the gradient of. dtype is that of the operands, and of the result but for int8,
    whose results are the exact sums in int32.
    """

    shape: ConvShape
    pass_: Pass = Pass.FORWARD
    dtype: str = "float32"
    layout: str = "nchw"
    semantics: Semantics = Semantics.LINEAR

    def __post_init__(self) -> None:
        object.__setattr__(self, "pass_", _enum(Pass, self.pass_, "pass"))
        object.__setattr__(self, "semantics", _enum(Semantics, self.semantics, "semantics"))
        if self.dtype not in ITEM_BYTES:
            raise ProblemError(f"dtype must be one of {', '.join(ITEM_BYTES)}, not {self.dtype!r}")
        if self.layout not in LAYOUTS:
            raise ProblemError(f"layout must be nchw or nhwc, not {self.layout!r}")

    @property
    def a_shape(self) -> tuple[int, ...]:
        """Shape of the first operand: x, dy, x."""
        if self.pass_ is Pass.BACKWARD_DATA:
            return self.shape.y_shape(self.layout)
        return self.shape.x_shape(self.layout)

    @property
    def b_shape(self) -> tuple[int, ...]:
        """Shape of the second operand: w, w, dy."""
        if self.pass_ is Pass.BACKWARD_WEIGHTS:
            return self.shape.y_shape(self.layout)
        return self.shape.w_shape(self.layout)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result: y, dx, dw."""
        if self.pass_ is Pass.FORWARD:
            return self.shape.y_shape(self.layout)
        if self.pass_ is Pass.BACKWARD_DATA:
            return self.shape.x_shape(self.layout)
        return self.shape.w_shape(self.layout)

    @property
    def item_bytes(self) -> int:
        """Bytes of one element of an operand."""
        return ITEM_BYTES[self.dtype]

    @property
    def out_dtype(self) -> str:
        """Type of the result: int32 for int8, otherwise dtype."""
        return OUT_DTYPES.get(self.dtype, self.dtype)

    @property
    def out_item_bytes(self) -> int:
        """Bytes of one element of the result."""
        return OUT_BYTES[self.dtype]

    @property
    def is_integer(self) -> bool:
        """Whether every result is a whole number, and right only to the last bit."""
        return self.dtype == "int8"

    @property
    def native_arithmetic(self) -> str:
        """What a row multiplies in that multiplies in the operands' type: "int8-acc32" for int8, otherwise dtype."""
        return "int8-acc32" if self.is_integer else self.dtype

    @property
    def overflow(self) -> str | None:
        """A sentence where a sum may leave the type of the results, or None; no row computes such a problem."""
        n = self.accumulation_length
        if not self.is_integer or n < INT8_PRODUCTS:
            return None
        return f"a sum of {n} products of int8 may leave int32: it must have fewer than {INT8_PRODUCTS}"

    @property
    def direct_flops(self) -> int:
        """2 N K P Q (C/G) R S: padding taps included, the same for all three passes. Of int8, integer operations."""
        return 2 * self.shape.macs

    @property
    def valid_flops(self) -> int:
        """Floating-point operations without the taps that fall on padding."""
        return 2 * self.shape.valid_macs

    @property
    def operand_bytes(self) -> int:
        """Bytes of both operands and the result."""
        operands = (_product(self.a_shape) + _product(self.b_shape)) * self.item_bytes
        return operands + _product(self.out_shape) * self.out_item_bytes

    @property
    def elements(self) -> int:
        """Elements of both operands and the result."""
        return sum(_product(s) for s in (self.a_shape, self.b_shape, self.out_shape))

    @property
    def min_bytes(self) -> int:
        """Bytes that must cross memory once: both operands read, the result written."""
        return self.operand_bytes

    @property
    def accumulation_length(self) -> int:
        """Products summed into one result element."""
        s = self.shape
        if self.pass_ is Pass.FORWARD:
            return s.cg * s.r * s.s
        if self.pass_ is Pass.BACKWARD_DATA:
            return s.kg * s.r * s.s
        return s.n * s.p * s.q


@dataclass(frozen=True)
class Options:
    """How a problem is run. threads is a number of cores; seed makes the inputs."""

    weights: str = "raw"
    threads: int = 1
    mode: str = "hot"
    inputs: str = "normal"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("weights", ("raw", "packed")),
            ("mode", ("hot", "cold")),
            ("inputs", INPUTS),
        ):
            if getattr(self, name) not in allowed:
                raise ProblemError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.threads < 1:
            raise ProblemError(f"threads must be >= 1, not {self.threads}")


@dataclass(frozen=True)
class Case:
    """One line of `--dry-run` and the identity of one record: a problem, an implementation, its options.

    `label` (layer names) and `count` (how often the layer occurs in its network) travel along but are no part
    of the identity.
    """

    problem: Problem
    implementation: str
    options: Options = field(default_factory=Options)
    label: str = field(default="", compare=False)
    count: int = field(default=1, compare=False)

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits that are the same for equal cases, on every machine."""
        text = json.dumps([asdict(self.problem), self.implementation, asdict(self.options)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _enum(kind: type[StrEnum], value: Any, name: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ProblemError(f"{name} must be one of {', '.join(kind)}, not {value!r}") from None
