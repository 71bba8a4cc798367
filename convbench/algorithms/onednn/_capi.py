"""The part of oneDNN's C API that convolutions need, bound with ctypes to the wheel onednn-cpu-gomp.

Names and numbers are those of oneDNN 3.x (dnnl.h, dnnl_types.h), whose C interface is stable within a major
version. Nothing here knows what a convolution problem is; `_plan.py` does.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from convbench.errors import ConvbenchError, Unsupported

WHEEL = "onednn-cpu-gomp"
LIBRARY = "libdnnl.so.3"
MAJOR = 3

# enum values of dnnl_types.h and dnnl_common_types.h
SUCCESS, UNIMPLEMENTED = 0, 3
STATUS = ("success", "out of memory", "invalid arguments", "unimplemented", "last implementation reached",
          "runtime error", "not required")  # fmt: skip
KIND_CPU = 1
STREAM_IN_ORDER = 1
#: Types of elements.
DATA = {"float16": 1, "bfloat16": 2, "float32": 3, "int32": 4, "int8": 5}
#: Bits of dnnl_cpu_isa_t: AVX-VNNI and AVX512-VNNI, whose dot products of four 8-bit numbers do not saturate.
ISA_VNNI = 0x8 | 0x40
TAG_ANY = 1
PROP_FORWARD_TRAINING, PROP_FORWARD_INFERENCE = 64, 96
CONVOLUTION_AUTO = 3
FPMATH_STRICT = 0
SCRATCHPAD_USER = 1
ARG_SRC, ARG_DST, ARG_WEIGHTS = 1, 17, 33
ARG_DIFF_SRC, ARG_DIFF_DST, ARG_DIFF_WEIGHTS = 129, 145, 161
ARG_SCRATCHPAD = 80
QUERY_IMPL_NAME = 8
QUERY_STRIDES = 14
QUERY_MD = {ARG_SRC: 129, ARG_DIFF_SRC: 130, ARG_WEIGHTS: 131, ARG_DIFF_WEIGHTS: 132, ARG_DST: 133, ARG_DIFF_DST: 134}
QUERY_SCRATCHPAD_MD = 136
QUERY_NDIMS, QUERY_DIMS, QUERY_INNER_COUNT, QUERY_INNER_BLOCKS, QUERY_INNER_AXES = 256, 257, 263, 264, 265

_pointer = ctypes.c_void_p
_Dims = ctypes.c_int64 * 12


class OnednnError(ConvbenchError):
    """A call into oneDNN that failed for a reason other than 'unimplemented'."""


class Version(ctypes.Structure):
    """dnnl_version_t."""

    _fields_ = [
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
        ("patch", ctypes.c_int),
        ("hash", ctypes.c_char_p),
        ("cpu_runtime", ctypes.c_uint),
        ("gpu_runtime", ctypes.c_uint),
    ]


class Arg(ctypes.Structure):
    """dnnl_exec_arg_t: which argument, which memory."""

    _fields_ = [("arg", ctypes.c_int), ("memory", _pointer)]


class Handle:
    """Owns one oneDNN object and destroys it with itself; at interpreter exit the process's end does that.

    `keeps` are handles that must outlive this one.
    """

    def __init__(self, pointer: ctypes.c_void_p, destroy: str, *keeps: Handle) -> None:
        self.pointer = pointer
        self.keeps = keeps
        weakref.finalize(self, getattr(library(), destroy), pointer).atexit = False


def library_path() -> str | None:
    """Where the wheel put libdnnl, or None where the wheel is not installed."""
    try:
        distribution = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in distribution.files or ():
        if file.name == LIBRARY:
            return str(distribution.locate_file(file))
    return None


@lru_cache(maxsize=1)
def load_problem() -> str | None:
    """One sentence on why the library cannot be used here, or None."""
    path = library_path()
    if path is None:
        return f"onednn needs the wheel {WHEEL}: pip install {WHEEL}"
    try:
        library()
    except (OSError, AttributeError) as error:
        return f"onednn cannot load {path}: {error}; reinstall with pip install --force-reinstall {WHEEL}"
    if version().major != MAJOR:
        return f"onednn needs oneDNN {MAJOR}.x, {path} is {version_text()}: pip install '{WHEEL}>=2023.2,<2024'"
    return None


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The loaded library with the types of its functions. Raises OSError, or AttributeError for a missing one."""
    path = library_path()
    if path is None:
        raise OSError(f"{LIBRARY} is not installed: pip install {WHEEL}")
    lib = ctypes.CDLL(path)
    p, out, i = _pointer, ctypes.POINTER(_pointer), ctypes.c_int
    dims = ctypes.POINTER(ctypes.c_int64)
    signatures: dict[str, list[Any]] = {
        "dnnl_engine_create": [out, i, ctypes.c_size_t],
        "dnnl_stream_create": [out, p, ctypes.c_uint],
        "dnnl_stream_wait": [p],
        "dnnl_primitive_attr_create": [out],
        "dnnl_primitive_attr_set_fpmath_mode": [p, i],
        "dnnl_primitive_attr_set_scratchpad_mode": [p, i],
        "dnnl_memory_desc_create_with_tag": [out, i, dims, i, i],
        "dnnl_memory_desc_create_with_strides": [out, i, dims, i, dims],
        "dnnl_memory_desc_clone": [out, p],
        "dnnl_memory_desc_equal": [p, p],
        "dnnl_memory_desc_query": [p, i, p],
        "dnnl_memory_create": [out, p, p, p],
        "dnnl_memory_set_data_handle": [p, p],
        "dnnl_convolution_forward_primitive_desc_create": [out, p, i, i, p, p, p, p, dims, dims, dims, dims, p],
        "dnnl_convolution_backward_data_primitive_desc_create": [out, p, i, p, p, p, dims, dims, dims, dims, p, p],
        "dnnl_convolution_backward_weights_primitive_desc_create":
            [out, p, i, p, p, p, p, dims, dims, dims, dims, p, p],
        "dnnl_reorder_primitive_desc_create": [out, p, p, p, p, p],
        "dnnl_primitive_desc_query": [p, i, i, p],
        "dnnl_primitive_create": [out, p],
        "dnnl_primitive_execute": [p, p, i, ctypes.POINTER(Arg)],
        "dnnl_primitive_get_primitive_desc": [p, out],
        "dnnl_set_primitive_cache_capacity": [i],
        "omp_set_num_threads": [i],
    }  # fmt: skip
    kinds = ("engine", "stream", "primitive_attr", "memory_desc", "memory", "primitive_desc", "primitive")
    signatures.update({f"dnnl_{kind}_destroy": [p] for kind in kinds})
    for name, types in signatures.items():
        getattr(lib, name).argtypes = types
    lib.dnnl_primitive_desc_query_md.argtypes = [p, i, i]
    lib.dnnl_primitive_desc_query_md.restype = p
    lib.dnnl_memory_desc_get_size.argtypes = [p]
    lib.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    lib.dnnl_version.restype = ctypes.POINTER(Version)
    lib.dnnl_get_effective_cpu_isa.argtypes = []
    lib.dnnl_get_effective_cpu_isa.restype = ctypes.c_int
    # Reached through libdnnl's own handle: the OpenMP runtime that *it* is linked to, whichever others are loaded.
    lib.omp_set_num_threads.restype = None
    lib.omp_get_max_threads.argtypes = []
    # oneDNN 3.2 keys its primitive cache on descriptors that compare equal whenever they differ only in the strides
    # of axes of size 1. With C = K = 1, nchw then gets nhwc's primitive (or the reverse), with another scratchpad
    # and another filter format, and crashes. Plans are kept by whoever made them, so no cache is missed.
    lib.dnnl_set_primitive_cache_capacity(0)
    return lib


def version() -> Version:
    """What the loaded library says it is."""
    return library().dnnl_version().contents


def version_text() -> str:
    """For example '3.2.0'."""
    found = version()
    return f"{found.major}.{found.minor}.{found.patch}"


def has_vnni() -> bool:
    """Whether what oneDNN would use of this processor (ONEDNN_MAX_CPU_ISA included) has VNNI."""
    return bool(library().dnnl_get_effective_cpu_isa() & ISA_VNNI)


def threads() -> int:
    """How many threads oneDNN's OpenMP runtime would use now."""
    return int(library().omp_get_max_threads())


def set_threads(count: int) -> None:
    """Makes oneDNN's OpenMP runtime use `count` threads for calls from this thread."""
    if threads() != count:
        library().omp_set_num_threads(count)


def check(status: int, what: str) -> None:
    """Raises Unsupported for 'unimplemented' and OnednnError for every other failure."""
    if status == SUCCESS:
        return
    text = STATUS[status] if 0 <= status < len(STATUS) else f"status {status}"
    if status == UNIMPLEMENTED:
        raise Unsupported(f"onednn: has no implementation of this {what}")
    raise OnednnError(f"oneDNN {version_text()}: {what} failed: {text}; ONEDNN_VERBOSE=all shows more")


def make(function: str, what: str, destroy: str, *arguments: Any, keeps: tuple[Handle, ...] = ()) -> Handle:
    """Calls a dnnl_*_create function; its first parameter receives the new object."""
    pointer = _pointer()
    check(getattr(library(), function)(ctypes.byref(pointer), *arguments), what)
    return Handle(pointer, destroy, *keeps)


def dims(values: Sequence[int]) -> Any:
    """dnnl_dims_t."""
    return _Dims(*values)


@lru_cache(maxsize=1)
def engine() -> Handle:
    """The CPU engine, one a process."""
    return make("dnnl_engine_create", "engine", "dnnl_engine_destroy", KIND_CPU, 0)


def stream() -> Handle:
    """A new in-order stream."""
    e = engine()
    return make("dnnl_stream_create", "stream", "dnnl_stream_destroy", e.pointer, STREAM_IN_ORDER, keeps=(e,))


@lru_cache(maxsize=1)
def attributes() -> Handle:
    """Strict float32 (never bfloat16 or TF32 inside), and scratchpads that we allocate and therefore can count."""
    attr = make("dnnl_primitive_attr_create", "attributes", "dnnl_primitive_attr_destroy")
    lib = library()
    check(lib.dnnl_primitive_attr_set_fpmath_mode(attr.pointer, FPMATH_STRICT), "fpmath mode")
    check(lib.dnnl_primitive_attr_set_scratchpad_mode(attr.pointer, SCRATCHPAD_USER), "scratchpad mode")
    return attr


class MemoryDesc:
    """A memory descriptor: logical dimensions and how they lie in memory."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.pointer = handle.pointer

    @classmethod
    def plain(cls, sizes: Sequence[int], strides: Sequence[int], dtype: str) -> MemoryDesc:
        """Elements of a type out of DATA with one stride, in elements, for every dimension."""
        function = "dnnl_memory_desc_create_with_strides"
        return cls(make(function, "memory layout", "dnnl_memory_desc_destroy", len(sizes), dims(sizes), DATA[dtype],
                        dims(strides)))  # fmt: skip

    @classmethod
    def any(cls, sizes: Sequence[int], dtype: str) -> MemoryDesc:
        """Elements of a type out of DATA in whichever format the primitive likes."""
        function = "dnnl_memory_desc_create_with_tag"
        return cls(make(function, "memory layout", "dnnl_memory_desc_destroy", len(sizes), dims(sizes), DATA[dtype],
                        TAG_ANY))  # fmt: skip

    @classmethod
    def of(cls, primitive_desc: Handle, query: int) -> MemoryDesc:
        """A copy of what a primitive descriptor settled on."""
        borrowed = library().dnnl_primitive_desc_query_md(primitive_desc.pointer, query, 0)
        return cls(make("dnnl_memory_desc_clone", "memory layout", "dnnl_memory_desc_destroy", borrowed))

    @property
    def n_bytes(self) -> int:
        """Size in memory, padding included; 0 for an empty descriptor."""
        return int(library().dnnl_memory_desc_get_size(self.pointer))

    def equals(self, other: MemoryDesc) -> bool:
        """Same dimensions, type and place of every element."""
        return bool(library().dnnl_memory_desc_equal(self.pointer, other.pointer))

    def tag(self) -> str:
        """oneDNN's spelling of the format: axes from the outermost in, capitals where blocked, then the blocks."""
        count = self._query(QUERY_NDIMS, ctypes.c_int).value
        strides, sizes = (self._query(query, ctypes.POINTER(ctypes.c_int64)) for query in (QUERY_STRIDES, QUERY_DIMS))
        n_inner = self._query(QUERY_INNER_COUNT, ctypes.c_int).value
        blocks, axes = (
            self._query(query, ctypes.POINTER(ctypes.c_int64)) for query in (QUERY_INNER_BLOCKS, QUERY_INNER_AXES)
        )
        blocked = {axes[i] for i in range(n_inner)}
        # Of equal strides only one axis has more than one step; the larger axis then lies outside.
        outer = sorted(range(count), key=lambda axis: (-strides[axis], -sizes[axis], axis))
        names = "".join(chr(ord("A" if axis in blocked else "a") + axis) for axis in outer)
        return names + "".join(f"{blocks[i]}{chr(ord('a') + axes[i])}" for i in range(n_inner))

    def _query(self, what: int, kind: Any) -> Any:
        value = kind()
        check(library().dnnl_memory_desc_query(self.pointer, what, ctypes.byref(value)), "memory layout query")
        return value


class Memory:
    """Memory that somebody else owns, seen through a descriptor; `point_at` says where it is."""

    def __init__(self, desc: MemoryDesc, address: int = 0) -> None:
        self.handle = make("dnnl_memory_create", "memory", "dnnl_memory_destroy", desc.pointer, engine().pointer,
                           address or None, keeps=(engine(), desc.handle))  # fmt: skip
        self.pointer = self.handle.pointer
        self._set = library().dnnl_memory_set_data_handle

    def point_at(self, address: int) -> None:
        """The next execution reads or writes there."""
        check(self._set(self.pointer, address), "setting a memory address")


class PrimitiveDesc:
    """An operation as oneDNN would carry it out: the implementation's name, formats, scratchpad."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    @property
    def implementation(self) -> str:
        """For example 'jit:avx512_core'."""
        return implementation_name(self.handle.pointer)

    def desc(self, query: int) -> MemoryDesc:
        """The descriptor it settled on."""
        return MemoryDesc.of(self.handle, query)

    @property
    def scratchpad_bytes(self) -> int:
        """Bytes of scratchpad that an execution needs."""
        return self.desc(QUERY_SCRATCHPAD_MD).n_bytes


def implementation_name(primitive_desc: ctypes.c_void_p) -> str:
    """The name that oneDNN gives to what it picked."""
    name = ctypes.c_char_p()
    query = library().dnnl_primitive_desc_query
    check(query(primitive_desc, QUERY_IMPL_NAME, 0, ctypes.byref(name)), "implementation name query")
    return (name.value or b"unnamed").decode()


def reorder(source: MemoryDesc, target: MemoryDesc) -> PrimitiveDesc:
    """A copy from one format to another. Raises Unsupported."""
    e, attr = engine(), attributes()
    made = make("dnnl_reorder_primitive_desc_create", "reorder", "dnnl_primitive_desc_destroy", source.pointer,
                e.pointer, target.pointer, e.pointer, attr.pointer, keeps=(e, attr))  # fmt: skip
    return PrimitiveDesc(made)


class Primitive:
    """A primitive with its arguments bound; `execute` runs it and waits."""

    def __init__(self, desc: PrimitiveDesc, arguments: dict[int, Memory]) -> None:
        self.handle = make("dnnl_primitive_create", "primitive", "dnnl_primitive_destroy", desc.handle.pointer,
                           keeps=(desc.handle,))  # fmt: skip
        borrowed = _pointer()
        check(library().dnnl_primitive_get_primitive_desc(self.handle.pointer, ctypes.byref(borrowed)), "query")
        made, promised = implementation_name(borrowed), desc.implementation
        if made != promised:
            raise OnednnError(
                f"oneDNN {version_text()} promised {promised} and made {made}, whose scratchpad and formats are not "
                "those that were asked for: it is not run; please report the problem with `convbench doctor`'s output"
            )
        self._memories = list(arguments.values())
        self._arguments = (Arg * len(arguments))(*(Arg(arg, m.pointer) for arg, m in arguments.items()))
        self._stream = stream()
        self._lib = library()

    def execute(self) -> None:
        """One execution. Raises OnednnError."""
        stream_pointer = self._stream.pointer
        check(
            self._lib.dnnl_primitive_execute(
                self.handle.pointer, stream_pointer, len(self._memories), self._arguments
            ),
            "execution",
        )
        check(self._lib.dnnl_stream_wait(stream_pointer), "waiting")
