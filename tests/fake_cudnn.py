"""A cuDNN that is not there: the frontend's interface over fake_cuda.py, with its traps.

A filter of numeric notes before plans are created does nothing. Creating plans a second time on one graph appends the
notes of all plans again, so that a filter then judges plans by the notes of others. Plans must be built before they
run, and what a plan is given runs on its handle's stream. `install(monkeypatch, fake)` puts it in place of `cudnn`.
"""

from __future__ import annotations

import enum
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convbench.devices.arrays import as_real, narrowed, storage
from convbench.problem import ConvShape, Pass, Problem
from convbench.verify.inputs import to_logical
from convbench.verify.oracle import convolve
from tests import fake_cuda

NOTES = (
    "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "NONDETERMINISTIC", "WINOGRAD",
    "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13", "STRICT_NAN_PROP",
)  # fmt: skip
numerical_note = enum.Enum("numerical_note", NOTES)
data_type = enum.Enum("data_type", ("FLOAT", "HALF", "BFLOAT16", "INT8", "INT32"))
heur_mode = enum.Enum("heur_mode", ("A", "B", "FALLBACK"))
DTYPES = {"FLOAT": "float32", "HALF": "float16", "BFLOAT16": "bfloat16", "INT8": "int8", "INT32": "int32"}
ENGINE_COUNT = 80


class cudnnGraphNotSupportedError(Exception):
    """The frontend's name."""


@dataclass(frozen=True)
class Engine:
    """knobs: what the heuristics propose, with the nanoseconds of each; default_ns without knobs."""

    number: int
    default_ns: int
    notes: tuple[str, ...] = ()
    knobs: tuple[tuple[str, int], ...] = ()
    fallback: bool = False
    workspace: int = 0
    dtypes: tuple[str, ...] = ("float32",)
    breaks: bool = False


#: Half precision is fastest and TF32 next, so that a filter that lets them through is seen by what is chosen.
ENGINES = (
    Engine(0, 900_000, ("STRICT_NAN_PROP",), fallback=True, dtypes=("float32", "float16", "bfloat16", "int8")),
    Engine(2, 350_000, workspace=4096, dtypes=("float32", "float16", "bfloat16")),
    Engine(28, 400_000, knobs=(("k2=4_k3=0", 380_000),), fallback=True),
    Engine(62, 40_000, ("TENSOR_CORE", "DOWN_CONVERT_INPUTS")),
    Engine(63, 30_000, ("TENSOR_CORE", "REDUCED_PRECISION_REDUCTION"), (("k2=1", 20_000),), dtypes=("float16",)),
    Engine(64, 60_000, ("TENSOR_CORE",), (("k2=1", 50_000), ("k2=2", 55_000)), dtypes=("float16", "bfloat16")),
    Engine(67, 110_000, ("TENSOR_CORE",), (("k2=5", 100_000), ("k2=4", 90_000)), workspace=256),
    Engine(70, 250_000, (), (("k2=2_k18=0", 230_000), ("k2=4_k18=0", 220_000)), workspace=512),
    Engine(71, 10_000, breaks=True),
)
WINOGRAD = Engine(6, 150_000, ("WINOGRAD", "WINOGRAD_TILE_4x4"), workspace=1024)


@dataclass
class Tensor:
    role: str
    dim: list[int] = field(default_factory=list)
    stride: list[int] = field(default_factory=list)
    uid: int = 0
    kind: Any = None

    def set_output(self, value: bool) -> Tensor:
        return self

    def set_data_type(self, kind: Any) -> Tensor:
        self.kind = kind
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self


@dataclass(frozen=True)
class Config:
    engine: Engine
    name: str
    ns: int


class Graph:
    """pygraph."""

    def __init__(
        self, *, io_data_type: Any, intermediate_data_type: Any, compute_data_type: Any, handle: Any = None,
        device_property: Any = None,
    ) -> None:  # fmt: skip
        assert (handle is None) != (device_property is None)
        self.cudnn: Module = sys.modules["cudnn"]  # type: ignore[assignment]
        self.handle, self.kind, self.sums = handle, io_data_type, compute_data_type
        self.tensors: list[Tensor] = []
        self.operation: tuple[str, dict[str, Any]] | None = None
        self.result: Tensor | None = None
        self.ready = False
        self.configs: list[Config] = []
        self.notes: list[tuple[str, ...]] = []
        self.barred: set[int] = set()
        self.built: set[int] = set()
        self.cudnn.graphs.append(self)

    def tensor(self, *, name: str, uid: int, data_type: Any, dim: list[int], stride: list[int]) -> Tensor:
        self.tensors.append(Tensor(name, dim, stride, uid, data_type))
        return self.tensors[-1]

    def conv_fprop(self, **what: Any) -> Tensor:
        return self._operation("fwd", what)

    def conv_dgrad(self, **what: Any) -> Tensor:
        return self._operation("bwd_data", what)

    def conv_wgrad(self, **what: Any) -> Tensor:
        return self._operation("bwd_weights", what)

    def _operation(self, pass_: str, what: dict[str, Any]) -> Tensor:
        self.operation, self.result = (pass_, what), Tensor("out")
        return self.result

    def validate(self) -> None:
        assert self.operation and self.result and self.result.dim and self.result.uid

    def build_operation_graph(self) -> None:
        if self.cudnn.no_graph:
            raise cudnnGraphNotSupportedError(self.cudnn.no_graph)
        self.ready = True

    # ---- plans

    def _engines(self) -> list[Engine]:
        assert self.ready
        if self.operation and self.operation[0] != "fwd" and DTYPES[self.kind.name] == "int8":
            return []
        return [e for e in self.cudnn.engines if DTYPES[self.kind.name] in e.dtypes]

    def get_engine_count(self) -> int:
        assert self.ready
        return ENGINE_COUNT

    def create_execution_plans(self, modes: Sequence[Any]) -> None:
        found = []
        if heur_mode.A in modes:
            found += [Config(e, f"eng{e.number}_{name}", ns) for e in self._engines() for name, ns in e.knobs]
            if not found:
                raise cudnnGraphNotSupportedError("No valid engine configs for mode A")
        if heur_mode.FALLBACK in modes:
            found += [Config(e, f"eng{e.number}", e.default_ns) for e in self._engines() if e.fallback]
        if not found:
            raise cudnnGraphNotSupportedError("No valid engine configs")
        self._add(found)

    def create_execution_plan(self, number: int, knobs: dict[Any, int]) -> None:
        engine = next((e for e in self._engines() if e.number == number), None)
        if engine is None:
            raise cudnnGraphNotSupportedError(f"engine {number} does not take this")
        self._add([Config(engine, f"eng{number}", engine.default_ns)])

    def _add(self, found: list[Config]) -> None:
        self.configs += found
        self.notes += [config.engine.notes for config in self.configs]  # of all again: the frontend's trap

    def get_execution_plan_count(self) -> int:
        return len(self.configs)

    def get_plan_name_at_index(self, index: int) -> str:
        return self.configs[index].name

    def _filter(self, notes: Sequence[Any], wanted: bool) -> None:
        for index in range(len(self.configs)):
            for note in notes:
                if (note.name in self.notes[index]) != wanted:
                    self.barred.add(index)

    def deselect_numeric_notes(self, notes: Sequence[Any]) -> None:
        self._filter(notes, False)

    def select_numeric_notes(self, notes: Sequence[Any]) -> None:
        self._filter(notes, True)

    def build_plan_at_index(self, index: int) -> None:
        if index in self.barred:
            raise cudnnGraphNotSupportedError("Deselecting execution plan")
        self.built.add(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return self.configs[index].engine.workspace if index in self.built else 0

    # ---- running

    def problem(self) -> Problem:
        """What the tensors and the geometry describe."""
        assert self.operation and self.result
        pass_, what = self.operation
        dims = {t.uid: t.dim for t in [*self.tensors, self.result]}
        x, w, _ = {"fwd": (1, 2, 3), "bwd_data": (3, 2, 1), "bwd_weights": (1, 3, 2)}[pass_]
        (n, c, h, wide), (k, cg, r, s) = dims[x], dims[w]
        (top, left), (bottom, right) = what["pre_padding"], what["post_padding"]
        padding, stride, dilation = ((top, bottom), (left, right)), tuple(what["stride"]), tuple(what["dilation"])
        shape = ConvShape.make(n, c, h, wide, k, r, s, stride, padding, dilation, c // cg)
        strides = self.tensors[0].stride
        layout = "nhwc" if strides[1] == 1 and strides[3] == dims[self.tensors[0].uid][1] != 1 else "nchw"
        return Problem(shape, Pass(pass_), DTYPES[self.kind.name], layout)

    def execute_plan_at_index(self, pack: dict[int, int], workspace: int, index: int, handle: int) -> None:
        config = self.configs[index]
        assert index in self.built and handle == self.handle and all(type(p) is int and p for p in pack.values())
        if config.engine.breaks:
            raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")
        assert bool(workspace) or not config.engine.workspace
        fake = sys.modules["cupy"].fake  # type: ignore[attr-defined]
        assert self.result is not None
        stream = next(s for s in fake.time.streams if s.ptr == self.cudnn.streams[handle])
        problem, size = self.problem(), config.engine.workspace
        types = [storage(tensor) for tensor in (problem.dtype, problem.dtype, DTYPES[self.result.kind.name])]

        def effect() -> None:
            shapes = (problem.a_shape, problem.b_shape, problem.out_shape)
            arrays = [fake_cuda.memory(pack[uid], int(np.prod(shape)), kind).reshape(shape)
                      for uid, shape, kind in zip((1, 2, 3), shapes, types, strict=True)]  # fmt: skip
            if size:
                fake_cuda.memory(workspace, size, np.uint8).fill(7)
            operands = (as_real(to_logical(array, problem.layout)).astype(np.float32) for array in arrays[:2])
            result = convolve(problem.shape, problem.pass_, *operands)
            to_logical(arrays[2], problem.layout)[...] = narrowed(result, problem.out_dtype)

        self.cudnn.ran.append(config.name)
        fake.time.enqueue(stream, config.name, config.ns, effect)


class Module(types.ModuleType):
    """`cudnn`."""

    __version__ = "1.22.1"

    def __init__(self, version: int | None, engines: Sequence[Engine]) -> None:
        super().__init__("cudnn")
        self.__spec__ = importlib.machinery.ModuleSpec("cudnn", None)
        self.version, self.engines = version, list(engines)
        self.no_graph = ""
        self.graphs: list[Graph] = []
        self.ran: list[str] = []
        self.streams: dict[int, int] = {}
        self.destroyed: list[int] = []
        self.pygraph, self.numerical_note, self.data_type, self.heur_mode = Graph, numerical_note, data_type, heur_mode
        self.cudnnGraphNotSupportedError = cudnnGraphNotSupportedError

    def backend_version(self) -> int:
        if self.version is None:
            raise RuntimeError("Unable to find symbol cudnnGetVersion")
        return self.version

    def backend_version_string(self) -> str:
        version = self.backend_version()
        return f"{version // 10000}.{version // 100 % 100}.{version % 100}"

    def create_handle(self) -> int:
        self.streams[1000 + len(self.streams)] = 0
        return max(self.streams)

    def destroy_handle(self, handle: int) -> None:
        self.destroyed.append(handle)

    def set_stream(self, handle: int, stream: int) -> None:
        self.streams[handle] = stream


def install(monkeypatch: Any, version: int | None = 91901, engines: Sequence[Engine] = ENGINES) -> Module:
    """Puts a fake in place of the frontend; fake_cuda's streams get addresses. Gives its state."""
    from convbench.algorithms import _cudnn_plan

    module = Module(version, engines)
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(fake_cuda.Stream, "ptr", property(id), raising=False)
    _cudnn_plan.forget()
    return module
