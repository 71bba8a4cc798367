"""How a convolution problem becomes oneDNN primitives: the descriptor, the formats, the reorders, the plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np

from convbench.algorithms.onednn import _capi as dnnl
from convbench.devices.arrays import storage
from convbench.errors import ProblemError
from convbench.problem import Pass, Problem
from convbench.registry import Context, Run

ROLES = ("a", "b", "out")
ARGUMENTS = {
    Pass.FORWARD: (dnnl.ARG_SRC, dnnl.ARG_WEIGHTS, dnnl.ARG_DST),
    Pass.BACKWARD_DATA: (dnnl.ARG_DIFF_DST, dnnl.ARG_WEIGHTS, dnnl.ARG_DIFF_SRC),
    Pass.BACKWARD_WEIGHTS: (dnnl.ARG_SRC, dnnl.ARG_DIFF_DST, dnnl.ARG_DIFF_WEIGHTS),
}
NAMES = {
    Pass.FORWARD: ("x", "w", "y"),
    Pass.BACKWARD_DATA: ("dy", "w", "dx"),
    Pass.BACKWARD_WEIGHTS: ("x", "dy", "dw"),
}
FILTERS = (dnnl.ARG_WEIGHTS, dnnl.ARG_DIFF_WEIGHTS)


class Activations(StrEnum):
    """The format in which oneDNN is given activations; what arrives in another is converted within run()."""

    AS_THEY_LIE = "as they lie"
    LIKED = "in the format it likes"
    CHANNELS_LAST = "channels last"


@dataclass(frozen=True)
class Operand:
    """One of a, b, out: as the caller holds it and as oneDNN likes it; `reorder` leads from or to the latter."""

    role: str
    name: str
    argument: int
    shape: tuple[int, ...]
    dtype: str
    plain: dnnl.MemoryDesc
    liked: dnnl.MemoryDesc
    reorder: dnnl.PrimitiveDesc | None

    @property
    def is_filter(self) -> bool:
        """The filter or its gradient."""
        return self.argument in FILTERS


@dataclass(frozen=True)
class Choice:
    """What oneDNN picked for a problem."""

    desc: dnnl.PrimitiveDesc
    implementation: str
    operands: tuple[Operand, Operand, Operand]

    @property
    def scratchpad_bytes(self) -> int:
        """Scratchpads of the convolution and of its reorders."""
        reorders = sum(o.reorder.scratchpad_bytes for o in self.operands if o.reorder)
        return self.desc.scratchpad_bytes + reorders

    @property
    def reordered_bytes(self) -> int:
        """Buffers for operands in the formats that oneDNN likes."""
        return sum(o.liked.n_bytes for o in self.operands if o.reorder)


@lru_cache(maxsize=512)
def choose(problem: Problem, activations: Activations, threads: int) -> Choice:
    """Asks oneDNN how it would compute `problem` on `threads` threads; nothing is compiled or allocated yet.

    The filter is in whichever format it likes. Raises Unsupported.
    """
    dnnl.set_threads(threads)
    arguments, roles = ARGUMENTS[problem.pass_], NAMES[problem.pass_]
    types = dict(zip(arguments, (problem.dtype, problem.dtype, problem.out_dtype), strict=True))
    plain = {argument: _plain(problem, argument, dtype) for argument, dtype in types.items()}
    asked = {argument: _asked(problem, argument, dtype, activations) for argument, dtype in types.items()}
    desc = _convolution(problem, [asked[argument] for argument in arguments])
    operands = []
    shapes = (problem.a_shape, problem.b_shape, problem.out_shape)
    for role, name, argument, shape in zip(ROLES, roles, arguments, shapes, strict=True):
        liked, own = desc.desc(dnnl.QUERY_MD[argument]), plain[argument]
        ends = (liked, own) if role == "out" else (own, liked)
        reorder = None if liked.equals(own) else dnnl.reorder(*ends)
        operands.append(Operand(role, name, argument, shape, types[argument], own, liked, reorder))
    return Choice(desc, desc.implementation, (operands[0], operands[1], operands[2]))


def _sizes(problem: Problem, argument: int) -> tuple[int, ...]:
    """Logical sizes in oneDNN's order: N C H W; K C R S, or G K/G C/G R S."""
    s = problem.shape
    if argument in FILTERS:
        return (s.groups, s.kg, s.cg, s.r, s.s) if s.groups > 1 else (s.k, s.c, s.r, s.s)
    if argument in (dnnl.ARG_SRC, dnnl.ARG_DIFF_SRC):
        return (s.n, s.c, s.h, s.w)
    return (s.n, s.k, s.p, s.q)


def _asked(problem: Problem, argument: int, dtype: str, activations: Activations) -> dnnl.MemoryDesc:
    """The descriptor that oneDNN is asked for an implementation with."""
    if argument in FILTERS or activations is Activations.LIKED:
        return dnnl.MemoryDesc.any(_sizes(problem, argument), dtype)
    return _plain(problem, argument, dtype, "nhwc" if activations is Activations.CHANNELS_LAST else None)


def _plain(problem: Problem, argument: int, dtype: str, layout: str | None = None) -> dnnl.MemoryDesc:
    """The descriptor of an array in a layout, the problem's by default: channels last in memory if that is nhwc."""
    sizes = _sizes(problem, argument)
    *outer, channels, height, width = sizes
    if (layout or problem.layout) == "nchw":
        strides = [height * width, width, 1]
    else:
        strides = [1, width * channels, channels]
    step = channels * height * width
    for size in reversed(outer):  # N, or K, or K/G and then G
        strides.insert(0, step)
        step *= size
    return dnnl.MemoryDesc.plain(sizes, strides, dtype)


def _convolution(problem: Problem, descs: list[dnnl.MemoryDesc]) -> dnnl.PrimitiveDesc:
    """The primitive descriptor of the problem's pass over a, b, out."""
    s = problem.shape
    top, bottom, left, right = s.padding
    # oneDNN counts dilation from 0
    geometry = [
        dnnl.dims(v) for v in (s.stride, (s.dilation[0] - 1, s.dilation[1] - 1), (top, left), (bottom, right))
    ]
    engine, attr = dnnl.engine(), dnnl.attributes()
    a, b, out = (desc.pointer for desc in descs)
    keeps, auto = (engine, attr), dnnl.CONVOLUTION_AUTO
    kind = dnnl.PROP_FORWARD_INFERENCE if problem.is_integer else dnnl.PROP_FORWARD_TRAINING

    def forward(x: Any, w: Any, y: Any, what: str) -> dnnl.Handle:
        return dnnl.make("dnnl_convolution_forward_primitive_desc_create", what, "dnnl_primitive_desc_destroy",
                         engine.pointer, kind, auto, x, w, None, y, *geometry, attr.pointer,
                         keeps=keeps)  # fmt: skip

    if problem.pass_ is Pass.FORWARD:
        return dnnl.PrimitiveDesc(forward(a, b, out, "convolution"))
    if problem.pass_ is Pass.BACKWARD_DATA:
        hint = forward(out, b, a, "convolution, whose forward pass backward data starts from")
        made = dnnl.make("dnnl_convolution_backward_data_primitive_desc_create", "backward-data convolution",
                         "dnnl_primitive_desc_destroy", engine.pointer, auto, out, b, a, *geometry, hint.pointer,
                         attr.pointer, keeps=(*keeps, hint))  # fmt: skip
        return dnnl.PrimitiveDesc(made)
    hint = forward(a, out, b, "convolution, whose forward pass backward weights starts from")
    made = dnnl.make("dnnl_convolution_backward_weights_primitive_desc_create", "backward-weights convolution",
                     "dnnl_primitive_desc_destroy", engine.pointer, auto, a, out, None, b, *geometry, hint.pointer,
                     attr.pointer, keeps=(*keeps, hint))  # fmt: skip
    return dnnl.PrimitiveDesc(made)


class OnednnPlan:
    """Primitives, memories and buffers of one prepared problem. Not thread-safe.

    Operands that oneDNN likes as they are, are used where they lie; the others pass through a buffer of ours.
    """

    def __init__(self, choice: Choice, context: Context, weights: Any = None) -> None:
        self.threads = context.threads
        self._expected = {o.role: (o.name, o.shape, storage(o.dtype)) for o in choice.operands}
        self._kept: list[Any] = []
        scratch_bytes = [choice.desc.scratchpad_bytes]
        scratch_bytes += [o.reorder.scratchpad_bytes for o in choice.operands if o.reorder]
        # One scratchpad serves all: the primitives run one after the other.
        self._scratch = self._buffer(context, max(scratch_bytes))
        self._user = {o.role: dnnl.Memory(o.plain) for o in choice.operands}
        liked, before, after = {}, [], []
        for operand in choice.operands:
            memory = user = self._user[operand.role]
            if operand.reorder:
                memory = dnnl.Memory(operand.liked, self._buffer(context, operand.liked.n_bytes))
                pair = (memory, user) if operand.role == "out" else (user, memory)
                step = self._primitive(operand.reorder, {dnnl.ARG_SRC: pair[0], dnnl.ARG_DST: pair[1]})
                if operand.role == "out":
                    after.append(step)
                elif weights is not None and operand.is_filter:
                    self._pack(step, weights)
                else:
                    before.append(step)
            liked[operand.argument] = memory
        self._steps = [*before, self._primitive(choice.desc, liked), *after]
        if weights is not None and not choice.operands[1].reorder:
            self._pack(None, weights.copy())  # nothing to reorder: a private copy stays where it is

    def _buffer(self, context: Context, n_bytes: int) -> int:
        if not n_bytes:
            return 0
        array = context.empty(-(-n_bytes // 4), np.float32)
        self._kept.append(array)
        return int(array.ctypes.data)

    def _primitive(self, desc: dnnl.PrimitiveDesc, arguments: dict[int, dnnl.Memory]) -> dnnl.Primitive:
        pad = desc.desc(dnnl.QUERY_SCRATCHPAD_MD)
        if pad.n_bytes:
            arguments = {**arguments, dnnl.ARG_SCRATCHPAD: dnnl.Memory(pad, self._scratch)}
        return dnnl.Primitive(desc, arguments)

    def _pack(self, step: dnnl.Primitive | None, weights: np.ndarray) -> None:
        self._point("b", weights)
        if step is None:
            self._kept.append(weights)
            return
        dnnl.set_threads(self.threads)
        step.execute()

    def _point(self, role: str, array: np.ndarray) -> None:
        name, shape, dtype = self._expected[role]
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise ProblemError(
                f"onednn: {name} must be a C-contiguous {dtype} array of shape {shape}, not {array.dtype} {array.shape}"
            )
        self._user[role].point_at(array.ctypes.data)

    def run(self, a: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """One convolution; b is None where the filter was packed."""
        dnnl.set_threads(self.threads)
        self._point("a", a)
        if b is not None:
            self._point("b", b)
        self._point("out", out)
        for step in self._steps:
            step.execute()

    def callable(self, packed: bool) -> Run:
        """run(a, b, out), or run(a, out) over the packed filter."""
        if not packed:
            return self.run
        return lambda a, out: self.run(a, None, out)


def describe_reorders(choice: Choice, packed: bool) -> str:
    """What crosses formats, and when: 'on the clock: w abcd to ABcd16b16a (jit:uni); in prepare: nothing'."""
    moments: dict[str, list[str]] = {"on the clock": [], "in prepare": []}
    for operand in choice.operands:
        if operand.reorder is None:
            continue
        tags = [operand.plain.tag(), operand.liked.tag()]
        if operand.role == "out":
            tags.reverse()
        in_prepare = packed and operand.is_filter and operand.role != "out"
        moments["in prepare" if in_prepare else "on the clock"].append(
            f"{operand.name} {tags[0]} to {tags[1]} ({operand.reorder.implementation})"
        )
    return "; ".join(f"{moment}: {', '.join(what) or 'nothing'}" for moment, what in moments.items())


