"""The registry as a library: conv2d and its two gradients, and packed plans for inference, on NumPy or CuPy arrays.

Cross-correlation, no bias. Layout nchw: x[N,C,H,W] w[K,C/G,R,S] y[N,K,P,Q]; nhwc: x[N,H,W,C] w[K,R,S,C/G]
y[N,P,Q,K]. A gradient has the shape and layout of what it is the gradient of.

`algorithm` is a registered name, a family ("winograd": the best member) or "auto"; both rules are in
`choices.py`, for CuPy's arrays in `cuda/choose.py`. Nothing falls back silently: a name that cannot do the problem is
Unsupported with its sentence.

Threads: the cores that this process may use (its affinity), or fewer where BLAS is set to fewer (environment
variables, threadpoolctl).

Plans (buffers, library plans, compiled kernels) are kept per thread, the least recently used given up beyond
CACHE_BYTES, because a plan must not be used by two threads at once. `clear_cache()` gives up those of the calling
thread. Arrays that are not C-contiguous, not in native byte order or not 64-byte aligned are copied first into
buffers that belong to the plan; `convbench.aligned_empty` gives arrays that need no copy.

CuPy in, CuPy out: rows for a GPU compute, on a stream of their own that waits for what was enqueued on the current
stream before, and that the current stream waits for; the host waits for nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from convbench import catalog, registry
from convbench.choices import Choice, choose, resolve
from convbench.devices.arrays import address, namespace, storage
from convbench.devices.base import Plan, make_plan
from convbench.devices.cpu import ALIGN_BYTES, CpuDevice, aligned_empty
from convbench.environment import allowed_cores
from convbench.errors import ProblemError, Unsupported
from convbench.problem import ITEM_BYTES, LAYOUTS, ConvShape, Pass, Problem, Semantics
from convbench.registry import Implementation

__all__ = [
    "CACHE_BYTES",
    "Choice",
    "InferencePlan",
    "algorithms",
    "choose",
    "clear_cache",
    "conv2d",
    "conv2d_backward_data",
    "conv2d_backward_weights",
    "plan",
]

#: Workspace that the cached plans of one thread may hold together, in the machine's memory and in a GPU's.
CACHE_BYTES = 512 << 20
GPU_CACHE_BYTES = 4 << 30


def algorithms() -> list[Implementation]:
    """All registered implementations, built-in and from plug-ins, sorted by name; each has `.name`."""
    return list(catalog.load().implementations.values())


def conv2d(
    x: Any,
    w: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "nchw",
    algorithm: str = "auto",
    semantics: str = "linear",
    out: Any = None,
) -> Any:
    """y = x * w (cross-correlation): x[N,C,H,W], w[K,C/G,R,S] -> y[N,K,P,Q], or their nhwc forms.

    stride, dilation: int or (height, width). padding: int, (height, width) or ((top, bottom), (left, right)).
    out: an array for the result, C-contiguous, of y's shape and dtype, sharing no memory with x or w.
    y has the dtype of x and w; of int8 the exact sums, in int32.
    semantics: which function is computed, "linear" or one that rounds its operands (`formats.py` defines them): those
    take float32, finite numbers alone. NumPy's arrays are searched for others; CuPy's are not, the host would wait.
    Raises ProblemError (naming the argument), Unsupported, Unavailable, UnknownAlgorithm.
    """
    x, w = _operand("x", x), _operand("w", w, like=("x", x))
    shape = _shape_of(_dims("x", x.shape, layout), w.shape, stride, padding, dilation, groups, layout)
    problem = Problem(shape, Pass.FORWARD, x.dtype.name, layout, semantics)  # type: ignore[arg-type]
    return _compute(problem, algorithm, ("x", x), ("w", w), out)


def conv2d_backward_data(
    dy: Any,
    w: Any,
    input_shape: tuple[int, int, int, int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "nchw",
    algorithm: str = "auto",
    semantics: str = "linear",
    out: Any = None,
) -> Any:
    """dx, the gradient with respect to the input: dy[N,K,P,Q], w[K,C/G,R,S] -> dx of `input_shape`.

    input_shape: the shape of x in `layout`, four numbers. The other arguments and errors are conv2d's.
    """
    dy, w = _operand("dy", dy), _operand("w", w, like=("dy", dy))
    dims = _dims("input_shape", input_shape, layout)
    shape = _shape_of(dims, w.shape, stride, padding, dilation, groups, layout)
    problem = Problem(shape, Pass.BACKWARD_DATA, dy.dtype.name, layout, semantics)  # type: ignore[arg-type]
    _same_shape("dy", dy, problem.a_shape, "that input_shape, w, stride, padding and dilation give")
    return _compute(problem, algorithm, ("dy", dy), ("w", w), out)


def conv2d_backward_weights(
    x: Any,
    dy: Any,
    kernel_size: int | tuple[int, int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "nchw",
    algorithm: str = "auto",
    semantics: str = "linear",
    out: Any = None,
) -> Any:
    """dw, the gradient with respect to the filter: x[N,C,H,W], dy[N,K,P,Q] -> dw[K,C/G,R,S].

    kernel_size: (R, S), or one number for both. The other arguments and errors are conv2d's.
    """
    x, dy = _operand("x", x), _operand("dy", dy, like=("x", x))
    n, c, h, w = _dims("x", x.shape, layout)
    k = _dims("dy", dy.shape, layout)[1]
    r, s = _pair("kernel_size", kernel_size)
    shape = ConvShape.make(n, c, h, w, k, r, s, stride, padding, dilation, groups)
    problem = Problem(shape, Pass.BACKWARD_WEIGHTS, x.dtype.name, layout, semantics)  # type: ignore[arg-type]
    _same_shape("dy", dy, problem.b_shape, "that x, kernel_size, stride, padding and dilation give")
    return _compute(problem, algorithm, ("x", x), ("dy", dy), out)


def plan(
    x_shape: tuple[int, int, int, int],
    w: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    layout: str = "nchw",
    algorithm: str = "auto",
    semantics: str = "linear",
) -> InferencePlan:
    """Packs the weights once, for inference: returns plan(x, out=None) for inputs of `x_shape`.

    Later changes to `w` are not seen. The dtype is w's. The other arguments and errors are conv2d's.
    """
    w = _operand("w", w)
    shape = _shape_of(_dims("x_shape", x_shape, layout), w.shape, stride, padding, dilation, groups, layout)
    problem = Problem(shape, Pass.FORWARD, w.dtype.name, layout, semantics)  # type: ignore[arg-type]
    device = _device_of(w)
    _require_finite(problem, ("w", w))
    prepared, choice = _prepare(problem, algorithm, _threads(), _fit(_bits(w)), device)
    return InferencePlan(prepared, choice, device)


class InferencePlan:
    """A forward convolution with its weights packed; call it with x, and an array for the result if you like.

    algorithm: the registered name that runs. reason: why that one. problem: what it computes. setup_ns: what
    packing and preparing took. workspace_bytes: memory it holds beside x and y. Calls from several threads wait
    for each other; make a plan per thread to run them side by side.
    """

    def __init__(self, prepared: Plan, choice: Choice, device: Any) -> None:
        self._slot = _Slot(prepared, device)
        self._lock = threading.Lock()
        self.algorithm, self.reason = choice.name, choice.reason
        self.problem, self.setup_ns = prepared.problem, prepared.setup_ns

    @property
    def workspace_bytes(self) -> int:
        """Bytes of buffers, packed weights and copies of arrays that did not fit as they were."""
        return self._slot.n_bytes

    def __call__(self, x: Any, out: Any = None) -> Any:
        """y for one x of the plan's shape and dtype. Raises ProblemError naming the argument."""
        x = _operand("x", x)
        if _device_of(x) is not self._slot.device:
            raise ProblemError(f"x is {_whose(x)}, but the plan's weights were {_whose(None, self._slot.device)}")
        if x.dtype.name != self.problem.dtype:
            raise ProblemError(f"x: dtype must be {self.problem.dtype}, as the plan was made for, not {x.dtype}")
        _same_shape("x", x, self.problem.a_shape, "the plan was made for")
        _require_finite(self.problem, ("x", x))
        result = _result(self.problem, out, [("x", x)])
        with self._lock:
            self._slot.run(x, None, result)
        return result

    def __repr__(self) -> str:
        return f"<InferencePlan {self.algorithm}: {self.problem.shape}, {self.workspace_bytes} bytes>"


def clear_cache() -> None:
    """Gives up the plans that the calling thread has kept."""
    _cache.plans.clear()


# ---- running


class _Slot:
    """A prepared plan with the buffers into which arrays that do not fit are copied."""

    def __init__(self, prepared: Plan, device: Any) -> None:
        self.plan, self.device = prepared, device
        self._copies: dict[str, Any] = {}

    @property
    def n_bytes(self) -> int:
        """All memory that keeping this slot costs."""
        return self.plan.workspace_bytes + sum(c.nbytes for c in self._copies.values())

    def run(self, a: Any, b: Any, out: Any) -> None:
        """One convolution into `out`, whatever the memory layout of the three."""
        a, b, out = _bits(a), None if b is None else _bits(b), _bits(out)
        fit_a = self._fitted("a", a)
        fit_b = None if b is None else self._fitted("b", b, apart_from=fit_a)
        target = out if _fits(out) else self._buffer("out", out)
        with self.device.joined(self.plan.context):
            self.plan.run(fit_a, fit_b, target)
        if target is not out:
            self.device.xp.copyto(out, target)

    def _fitted(self, role: str, array: Any, apart_from: Any = None) -> Any:
        xp = self.device.xp
        if _fits(array) and (apart_from is None or not xp.may_share_memory(array, apart_from)):
            return array
        buffer = self._buffer(role, array)
        xp.copyto(buffer, array)
        return buffer

    def _buffer(self, role: str, array: Any) -> Any:
        if role not in self._copies:
            self._copies[role] = _empty(self.device, array.shape, array.dtype)
        return self._copies[role]


class _Cache(threading.local):
    """The plans of one thread, least recently used first."""

    def __init__(self) -> None:
        self.plans: OrderedDict[tuple[Any, ...], _Slot] = OrderedDict()

    def keep(self, key: tuple[Any, ...], slot: _Slot) -> None:
        """Puts one in, and gives up the oldest of its device until those of it fit into their memory."""
        self.plans[key] = slot
        self.plans.move_to_end(key)
        same = [k for k, s in self.plans.items() if s.device is slot.device]
        total = sum(self.plans[k].n_bytes for k in same)
        limit = CACHE_BYTES if slot.device is _cpu else GPU_CACHE_BYTES
        while same and total > limit:
            total -= self.plans.pop(same.pop(0)).n_bytes


_cache = _Cache()
_cpu = CpuDevice()
_gpus: dict[Any, Any] = {}


def _device_of(array: Any) -> Any:
    """The device that an array lies on. Raises Unavailable for CuPy's where its rows cannot run."""
    library = namespace(array)
    if library is np:
        return _cpu
    key = (library, library.cuda.Device().id)
    if key not in _gpus:
        from convbench.devices.cuda import CudaDevice

        _gpus[key] = CudaDevice()
    return _gpus[key]


def _whose(array: Any, device: Any = None) -> str:
    return "NumPy's" if (device or _device_of(array)) is _cpu else "CuPy's"


def _empty(device: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array that every implementation may be given."""
    return aligned_empty(shape, dtype.newbyteorder("=")) if device is _cpu else device.xp.empty(shape, dtype)


def _compute(problem: Problem, algorithm: str, a: tuple[str, Any], b: tuple[str, Any], out: Any) -> Any:
    _require_finite(problem, a, b)
    result = _result(problem, out, [a, b])
    threads, device = _threads(), _device_of(a[1])
    key = (problem, algorithm, threads, id(device))
    slot = _cache.plans.pop(key, None)  # out of the cache while it runs: one that raises is not used again
    if slot is None or not _registered(slot.plan.implementation):
        slot = _Slot(_prepare(problem, algorithm, threads, None, device)[0], device)
    slot.run(a[1], b[1], result)
    _cache.keep(key, slot)
    return result


def _registered(row: Implementation) -> bool:
    return registry.implementations().get(row.name) is row


def _prepare(
    problem: Problem, algorithm: str, threads: int, weights: Any, device: Any
) -> tuple[Plan, Choice]:
    """The first of the choices that prepares; only "auto" and a family ever have more than one."""
    loaded = catalog.load().implementations
    refusals = []
    for choice in _choices(problem, "raw" if weights is None else "packed", algorithm, loaded, threads, device):
        try:
            with device.joined(None):  # weights that the current stream still writes are waited for
                prepared = make_plan(loaded[choice.name], problem, device.context(threads), weights)
        except Unsupported as refusal:  # a library that says no only when it is asked for a plan
            refusals.append(str(refusal))
            continue
        because = f"{choice.reason} ({'; '.join(refusals)})" if refusals else choice.reason
        return prepared, Choice(choice.name, because)
    raise Unsupported("; ".join(refusals))


def _choices(
    problem: Problem, weights: str, algorithm: str, rows: dict[str, Implementation], threads: int, device: Any
) -> list[Choice]:
    if device is _cpu:
        return resolve(problem, weights, algorithm, rows, threads)
    from convbench.cuda.choose import resolve as resolve_for_gpu

    return resolve_for_gpu(problem, weights, algorithm, rows)


_blas: Any = None


def _threads() -> int:
    """Cores allowed to this process, or fewer where BLAS is set to fewer."""
    global _blas
    if _blas is None:
        import threadpoolctl

        _blas = threadpoolctl.ThreadpoolController().select(user_api="blas")
    limits = [library.num_threads for library in _blas.lib_controllers if library.num_threads]
    return max(1, min([allowed_cores(), *limits]))


# ---- checking arguments


def _operand(name: str, array: Any, like: tuple[str, Any] | None = None) -> Any:
    """The array if it is NumPy's or CuPy's, of four axes, of a known dtype, and as `like`; else ProblemError."""
    kind = type(array)
    if kind.__module__.split(".")[0] == "cupy":
        _device_of(array)
    elif not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise ProblemError(f"{name} must be a NumPy array, not {kind.__name__}: convert it with numpy.asarray")
    if like is not None and namespace(array) is not namespace(like[1]):
        raise ProblemError(
            f"{name} is {_whose(array)}, but {like[0]} is {_whose(like[1])}: bring both to one device "
            "(cupy.asarray, or .get())"
        )
    if array.ndim != 4:
        raise ProblemError(f"{name} must have 4 axes, not {array.ndim} (shape {array.shape})")
    if array.dtype.name not in ITEM_BYTES:
        raise ProblemError(f"{name}: dtype must be one of {', '.join(ITEM_BYTES)}, not {array.dtype}")
    if like is not None and array.dtype.name != like[1].dtype.name:
        raise ProblemError(f"{name}: dtype must be {like[1].dtype.name}, as that of {like[0]}, not {array.dtype}")
    return array


def _require_finite(problem: Problem, *operands: tuple[str, Any]) -> None:
    """ProblemError where operands that are to be rounded have elements that no rounding is defined for."""
    if problem.semantics is Semantics.LINEAR or problem.dtype != "float32":
        return
    for name, array in operands:
        if namespace(array) is np and not np.isfinite(array).all():
            bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            raise ProblemError(
                f"{name}: {bad} of {array.size} elements are NaN or infinite, for which semantics {problem.semantics} "
                "is not defined"
            )


def _dims(name: str, shape: Any, layout: str) -> tuple[int, int, int, int]:
    """(batch, channels, height, width) of an activation's shape in `layout`."""
    if layout not in LAYOUTS:
        raise ProblemError(f"layout must be nchw or nhwc, not {layout!r}")
    if not isinstance(shape, tuple | list) or len(shape) != 4:
        raise ProblemError(f"{name} must be four numbers ({', '.join(layout.upper())}), not {shape!r}")
    try:
        sizes = [int(v.__index__()) for v in shape]
    except AttributeError:
        raise ProblemError(f"{name} must be four whole numbers, not {shape!r}") from None
    if min(sizes) < 1:
        raise ProblemError(f"{name}: every size must be >= 1, not {tuple(shape)}")
    n, *rest = sizes
    c, h, w = rest if layout == "nchw" else (rest[2], rest[0], rest[1])
    return n, c, h, w


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise ProblemError(f"{name} must be (R, S) or one number for both, not {value!r}")
    return pair[0], pair[1]


def _shape_of(
    dims: tuple[int, int, int, int],
    w_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    layout: str,
) -> ConvShape:
    """The geometry that an input of `dims` (batch, channels, height, width) and a filter make; ProblemError."""
    n, c, h, w = dims
    k, cg, r, s = _dims("w", w_shape, layout)
    shape = ConvShape.make(n, c, h, w, k, r, s, stride, padding, dilation, groups)
    if cg != shape.cg:
        raise ProblemError(
            f"w: shape {tuple(w_shape)} has {cg} channels per group, but {c} input channels in groups={groups} "
            f"need {shape.cg}: expected {shape.w_shape(layout)}"
        )
    return shape


def _same_shape(name: str, array: np.ndarray, want: tuple[int, ...], why: str) -> None:
    if array.shape != want:
        raise ProblemError(f"{name}: shape must be {want}, {why}, not {array.shape}")


def _result(problem: Problem, out: Any, operands: list[tuple[str, Any]]) -> Any:
    """`out` once it is known to be fit for the result, or a new array."""
    device = _device_of(operands[0][1])
    dtype = np.dtype(problem.out_dtype) if problem.is_integer else operands[0][1].dtype
    dtype = dtype.newbyteorder("=") if device is _cpu else dtype
    if out is None:
        return _empty(device, problem.out_shape, dtype)
    if not isinstance(out, device.xp.ndarray) or namespace(out) is not device.xp:
        library = "NumPy" if device is _cpu else "CuPy"
        raise ProblemError(f"out must be a {library} array, not {type(out).__name__}")
    _same_shape("out", out, problem.out_shape, "the result's")
    if out.dtype != dtype:
        why = f"as that of sums of {problem.dtype}" if problem.is_integer else "as that of the operands"
        raise ProblemError(f"out: dtype must be {dtype}, {why}, not {out.dtype}")
    if not out.flags.c_contiguous:
        raise ProblemError("out must be C-contiguous: allocate it with numpy.empty(shape, dtype)")
    if device is _cpu and not out.flags.writeable:
        raise ProblemError("out must be writeable")
    for name, array in operands:
        if _overlap(out, array):
            raise ProblemError(f"out must not share memory with {name}: give it an array of its own")
    return out


def _overlap(first: Any, second: Any) -> bool:
    if namespace(first) is not np:
        return bool(namespace(first).may_share_memory(first, second))
    try:
        return np.shares_memory(first, second, max_work=100_000)  # type: ignore[arg-type] # any int will do
    except np.exceptions.TooHardError:
        return True  # undecided: the bounds of the two do overlap


def _bits(array: Any) -> Any:
    """The same memory as rows take it: bfloat16 (of ml_dtypes, say) as the uint16 that holds its bits."""
    return array.view(storage(array.dtype)) if array.dtype.name == "bfloat16" else array


def _fits(array: Any) -> bool:
    """True for what every implementation may rely on: C-contiguous, native byte order, 64-byte aligned."""
    native = array.dtype.isnative if namespace(array) is np else True
    return bool(array.flags.c_contiguous and native and address(array) % ALIGN_BYTES == 0)


def _fit(array: Any) -> Any:
    if _fits(array):
        return array
    device = _device_of(array)
    copy = _empty(device, array.shape, array.dtype)
    device.xp.copyto(copy, array)
    return copy
