"""A convolution in the terms of cuDNN's graph API, and the plans that it offers for one numeric class.

Library: cuDNN 9 through its Python frontend (module `cudnn`, nvidia-cudnn-frontend 1.22). Asking needs no GPU: a graph
is made for a handle (the current GPU) or for a device description. Three things are easy to get wrong, and are right
in one place only, here. Numeric notes are filtered after plans are created: before, the filter does nothing and says
nothing. Plans are created once in a graph's life: the second time the frontend (1.22) appends the notes of all plans
again, so that a filter judges plans by the notes of others. Of float32 problems, DOWN_CONVERT_INPUTS means half
precision and TENSOR_CORE without it TF32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from convbench.problem import Pass, Problem

#: The frontend comes with the extra; cuDNN's own library is large and does not.
INSTALL = "pip install 'convbench[cuda]' nvidia-cudnn-cu13"
#: Operand -> how the graph, and whoever executes it, calls its tensor.
UIDS = {"a": 1, "b": 2, "out": 3}
#: Problem.dtype -> cuDNN's types: of the operands, of the sums.
TYPES = {
    "float32": ("FLOAT", "FLOAT"), "float16": ("HALF", "FLOAT"), "bfloat16": ("BFLOAT16", "FLOAT"),
    "int8": ("INT8", "INT32"),
}  # fmt: skip
NUMERIC_NOTES = (
    "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "NONDETERMINISTIC", "WINOGRAD",
    "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13", "STRICT_NAN_PROP",
)  # fmt: skip
TRANSFORMS = ("WINOGRAD", "FFT")


@dataclass(frozen=True)
class NumericClass:
    """Which plans belong together: a plan with a refused note, or without a required one, is none of them."""

    name: str
    dtype: str
    refused: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    what: str = "engine"  # in "cuDNN offers no ... for this"


_REDUCED = ("DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION")
_STRICT = ("TENSOR_CORE", *_REDUCED)
FP32 = NumericClass("fp32", "float32", (*_STRICT, *TRANSFORMS), what="strict float32 engine without a transform")
TF32 = NumericClass("tf32", "float32", (*_REDUCED, *TRANSFORMS), what="engine in TF32 or float32 without a transform")
FP16 = NumericClass("fp16", "float16", (_REDUCED[1], *TRANSFORMS), what="float16 engine that sums in float32")
BF16 = NumericClass("bf16", "bfloat16", (_REDUCED[1], *TRANSFORMS), what="bfloat16 engine that sums in float32")
INT8 = NumericClass("int8", "int8", what="int8 engine")
FP32_WINOGRAD = NumericClass("fp32_winograd", "float32", _STRICT, ("WINOGRAD",), "Winograd engine in strict float32")
FP32_FFT = NumericClass("fp32_fft", "float32", _STRICT, ("FFT",), "FFT engine in strict float32")


@dataclass(frozen=True)
class Offer:
    """A plan that can be built: its graph and place there, cuDNN's name of engine and knobs, its workspace."""

    graph: Any
    index: int
    name: str
    engine: int
    workspace_bytes: int


@dataclass(frozen=True)
class Offers:
    """What cuDNN offers for a problem in a numeric class. engines: how many it has; each was asked."""

    plans: tuple[Offer, ...]
    engines: int


def refusals(cudnn: Any) -> tuple[type[Exception], ...]:
    """What the frontend raises where cuDNN cannot do what was asked."""
    return (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError)


def graph_of(cudnn: Any, problem: Problem, **target: Any) -> Any:
    """The operation graph of one convolution. target: handle=..., or device_property=... where there is no GPU.

    Raises what `refusals` lists. Of an int8 problem x and w are declared INT8, sums and result INT32.
    """
    kind, sums = (getattr(cudnn.data_type, name) for name in TYPES[problem.dtype])
    graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=sums, compute_data_type=sums, **target)
    s = problem.shape
    dims = {"x": (s.n, s.c, s.h, s.w), "w": (s.k, s.cg, s.r, s.s), "y": (s.n, s.k, s.p, s.q)}
    a, b, out = {
        Pass.FORWARD: ("x", "w", "y"), Pass.BACKWARD_DATA: ("y", "w", "x"), Pass.BACKWARD_WEIGHTS: ("x", "y", "w"),
    }[problem.pass_]  # fmt: skip
    first, second = (
        graph.tensor(
            name=role, uid=UIDS[role], data_type=kind, dim=[*dims[of]], stride=strides(dims[of], problem.layout)
        )
        for role, of in (("a", a), ("b", b))
    )
    top, bottom, left, right = s.padding
    geometry = {
        "pre_padding": [top, left], "post_padding": [bottom, right], "stride": [*s.stride], "dilation": [*s.dilation],
    }  # fmt: skip
    if problem.pass_ is Pass.FORWARD:
        result = graph.conv_fprop(image=first, weight=second, **geometry)
    elif problem.pass_ is Pass.BACKWARD_DATA:
        result = graph.conv_dgrad(loss=first, filter=second, **geometry)
    else:
        result = graph.conv_wgrad(image=first, loss=second, **geometry)
    result.set_output(True).set_data_type(sums if problem.is_integer else kind).set_uid(UIDS["out"])
    result.set_dim([*dims[out]]).set_stride(strides(dims[out], problem.layout))
    graph.validate()
    graph.build_operation_graph()
    return graph


def strides(dims: Sequence[int], layout: str) -> list[int]:
    """Elements from one index to the next, of logical (N, C, H, W) or (K, C/G, R, S)."""
    _, channels, height, width = dims
    if layout == "nchw":
        return [channels * height * width, height * width, width, 1]
    return [channels * height * width, 1, width * channels, channels]


def offers(cudnn: Any, problem: Problem, numeric: NumericClass, engine: int | None = None, **target: Any) -> Offers:
    """Every plan of a class (of one engine) that can be built, each setting of knobs once, in cuDNN's own order.

    Raises what `refusals` lists where there is no graph of this problem.
    """
    engines = int(graph_of(cudnn, problem, **target).get_engine_count())
    asked = takers(cudnn, problem, range(engines) if engine is None else [engine], **target)
    return Offers(tuple(plans_of(cudnn, problem, numeric, asked, engine, **target)), engines)


def takers(cudnn: Any, problem: Problem, engines: Iterable[int], **target: Any) -> tuple[int, ...]:
    """Those of the engines that take a problem at all."""
    return tuple(e for e in engines if default_plan(cudnn, problem, e, **target) is not None)


def plans_of(
    cudnn: Any, problem: Problem, numeric: NumericClass, asked: Iterable[int], engine: int | None = None, **target: Any
) -> Iterator[Offer]:
    """Plans one by one: first those of cuDNN's heuristics, then each engine `asked` with its default knobs.

    Heuristics leave engines out that are worth asking. engine: only the plans of this one.
    """
    seen = set()
    for graph in _graphs(cudnn, problem, asked, **target):
        keep(cudnn, graph, numeric)
        for offer in built(cudnn, graph):
            if engine in (None, offer.engine) and offer.name not in seen:
                seen.add(offer.name)
                yield offer


def _graphs(cudnn: Any, problem: Problem, asked: Iterable[int], **target: Any) -> Iterator[Any]:
    """A graph of the heuristics' plans, then one an engine: plans are created once in a graph's life."""
    first = heuristic_plans(cudnn, problem, **target)
    if first is not None:
        yield first
    for number in asked:
        graph = default_plan(cudnn, problem, number, **target)
        if graph is not None:
            yield graph


def heuristic_plans(cudnn: Any, problem: Problem, **target: Any) -> Any:
    """A graph with the plans of cuDNN's heuristics, fallback included, or None."""
    modes = cudnn.heur_mode
    for wanted in ([modes.A, modes.FALLBACK], [modes.FALLBACK]):  # together they fail where A alone knows none
        graph = graph_of(cudnn, problem, **target)
        try:
            graph.create_execution_plans(wanted)
        except refusals(cudnn):
            continue
        return graph
    return None


def default_plan(cudnn: Any, problem: Problem, engine: int, **target: Any) -> Any:
    """A graph with the plan of one engine and its default knobs, or None where it does not take the problem."""
    graph = graph_of(cudnn, problem, **target)
    try:
        graph.create_execution_plan(engine, {})
    except refusals(cudnn):
        return None
    return graph


def keep(cudnn: Any, graph: Any, numeric: NumericClass) -> None:
    """Bars the plans of a graph that are not of this class."""
    notes = cudnn.numerical_note
    if numeric.refused:
        graph.deselect_numeric_notes([getattr(notes, name) for name in numeric.refused])
    for name in numeric.required:
        graph.select_numeric_notes([getattr(notes, name)])


def built(cudnn: Any, graph: Any) -> Iterator[Offer]:
    """Builds the plans of a graph that nothing bars."""
    for index in range(graph.get_execution_plan_count()):
        name = str(graph.get_plan_name_at_index(index))
        try:
            graph.build_plan_at_index(index)
        except refusals(cudnn):  # barred by a note, or not to be built for this device
            continue
        yield Offer(graph, index, name, engine_of(name), int(graph.get_workspace_size_plan_at_index(index)))


def engine_of(name: str) -> int:
    """70 of "eng70_k2=2_k18=0"."""
    return int(name.partition("_")[0].removeprefix("eng"))


def numeric_notes(cudnn: Any, problem: Problem, engine: int, **target: Any) -> list[str]:
    """The numeric notes of an engine for a problem: those that select it."""
    found = []
    for name in NUMERIC_NOTES:
        graph = default_plan(cudnn, problem, engine, **target)
        if graph is None:
            break
        graph.select_numeric_notes([getattr(cudnn.numerical_note, name)])
        found += [name for _ in built(cudnn, graph)]  # barred where it has no such note
    return found


def not_offered(version: str, numeric: NumericClass, engines: int, engine: int | None, where: str) -> str:
    """The sentence for a class without a plan: what was asked, of which version, for which device."""
    what = numeric.what if engine is None else f"plan of engine {engine} as a {numeric.what}"
    asked = f"each of its {engines} engines" if engine is None else "that engine"
    return f"cuDNN {version} offers no {what} for this problem on {where}: its heuristics and {asked} were asked"
