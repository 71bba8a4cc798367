"""Every row `*_cupy` against the oracle, on a stand-in for CuPy (tests/fake_cupy.py): shapes x passes x layouts.

float32 on every shape, float64 on those of packed weights.

The verifier is the one that timing uses; it sees NumPy arrays, the row sees the same memory as the device's. A run must
stay on the context's stream, and neither allocate nor wait.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from convbench.algorithms import _winograd
from convbench.algorithms._cupy import OnCupy
from convbench.algorithms._fft_backends import CuFft
from convbench.cuda.gpu import H200
from convbench.devices import cuda_matmul
from convbench.devices.cuda import CudaContext
from convbench.devices.cuda_matmul import CudaMatmul
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.registry import Context, Implementation, Run
from convbench.testing import conformance
from tests import fake_cupy
from tests.cuda_checks import broken_promise
from tests.fake_cupy import Fake

ROWS = {name: row for name, row in conformance.built_in()[0].items() if isinstance(row, OnCupy)}
make = ConvShape.make
#: More images than a product, block or transform takes at a time, once those are made small; and several groups.
MANY = {
    "dense": make(5, 6, 9, 8, 7, 3, 3, padding=1),
    "groups": make(3, 12, 8, 9, 18, 3, 3, padding=1, groups=2),
    "depthwise": make(3, 5, 11, 10, 5, 3, 3, padding=1, groups=5),
    "5x5": make(3, 3, 9, 10, 4, 5, 5, padding=2),
    "pointwise": make(5, 6, 5, 4, 7, 1, 1),
}


def on_fake(row: Implementation, fake: Fake) -> Implementation:
    """The same row, given NumPy's arrays and seeing the device's."""

    def prepare(self: Implementation, problem: Problem, context: Context, weights: Any = None) -> Run:
        own = None if weights is None else fake.new(np.ascontiguousarray(weights))
        fake.sealed, fake.stream = False, context.stream
        run = type(row).prepare(self, problem, context, own)

        def seeing(*operands: np.ndarray) -> None:
            arrays = [fake.new(operand) for operand in operands]
            fake.stream, fake.sealed = context.stream, True
            try:
                run(*arrays)
            finally:
                fake.sealed = False
                fake.forget(len(arrays))

        return seeing

    return type(f"Fake{type(row).__name__}", (type(row),), {"prepare": prepare})()


def finding(row: Implementation, problem: Problem, weights: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What is wrong, or None."""
    fake = Fake()
    xp = fake_cupy.module(fake)
    monkeypatch.setitem(sys.modules, "cupy", xp)

    def context() -> CudaContext:
        fake.stream = None
        return CudaContext(xp, H200)

    return broken_promise(on_fake(row, fake), problem, weights, context)


def test_the_readable_tier_is_there() -> None:
    assert {"im2col_cupy", "direct_cupy", "fft_cupy", "winograd_f2_cupy", "winograd_f4_cupy"} <= set(ROWS)
    assert all(name.endswith("_cupy") and row.device == "cuda" for name, row in ROWS.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass), ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_is_right(
    name: str, pass_: Pass, layout: str, monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    row, statuses = ROWS[name], Counter[str]()
    sentences, wrong = set(), []
    for case in conformance.cases(row):
        p = case.problem
        if (p.pass_, p.layout) != (pass_, layout):
            continue
        if p.dtype == "float64" and (case.shape_name not in conformance.PACKED_SHAPES or case.weights == "packed"):
            continue
        sentence = row.why_not(p, case.weights)
        if sentence:
            sentences.add(sentence)
            statuses["unsupported"] += 1
            continue
        found = finding(row, p, case.weights, monkeypatch)
        statuses["wrong" if found else "ok"] += 1
        if found:
            wrong.append(f"{case}: {found}")
    record_property("emulated_statuses", (name, dict(statuses)))
    record_property("emulated_sentences", sorted(sentences))
    assert not wrong, f"{len(wrong)} of {sum(statuses.values())} cases:\n" + "\n".join(wrong)
    assert statuses["ok"], "the row takes none of the shapes"


@pytest.mark.parametrize("name", ROWS)
def test_many_images_groups_and_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops over blocks, sums of backward weights over them, batches that one call of cuBLAS does not hold."""
    row = ROWS[name]
    for attribute, small in (("pixels", 150), ("block_bytes", 1 << 10)):
        if hasattr(type(row), attribute):
            monkeypatch.setattr(type(row), attribute, small)
    monkeypatch.setattr(_winograd, "FEWEST_TILES", 16)
    monkeypatch.setattr(CuFft, "strip_bytes", 1 << 14)
    monkeypatch.setattr(CuFft, "frequency_bytes", 1 << 14)
    monkeypatch.setattr(cuda_matmul, "MOST_MATRICES", 30)
    taken = 0
    for shape in MANY.values():
        for pass_ in Pass:
            for layout in LAYOUTS:
                problem = Problem(shape, pass_, "float32", layout)
                if row.why_not(problem) is None:
                    assert finding(row, problem, "raw", monkeypatch) is None, f"{problem}"
                    taken += 1
    assert taken >= 6


def test_kernels_go_before_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" or a family stands for on a GPU is no `*_cupy` row as long as there is a kernel."""
    from convbench.cuda.choose import resolve

    rows = {name: row for name, row in conformance.built_in()[0].items() if row.device == "cuda" and not row.vendor}
    for row in rows.values():
        monkeypatch.setattr(type(row), "unavailable", lambda self: None)
    for what in ("auto", "winograd", "fft", "direct", "im2col"):
        ranked = [choice.name in ROWS for choice in resolve(Problem(MANY["dense"]), "raw", what, rows)]
        assert {False, True} == set(ranked) and ranked == sorted(ranked), what


# ---- the stand-in refuses what it says it refuses


def _with_numpy(context: Any, a: Any, b: Any, out: Any) -> None:
    np.add(out, out, out=out)


def _with_a_numpy_operand(context: Any, a: Any, b: Any, out: Any) -> None:
    context.xp.add(out, np.zeros(1, np.float32), out=out)


def _on_another_stream(context: Any, a: Any, b: Any, out: Any) -> None:
    with context.xp.cuda.Stream(non_blocking=True):
        out.fill(0)


def _with_a_temporary(context: Any, a: Any, b: Any, out: Any) -> None:
    context.xp.add(a, a)


def _with_a_copy(context: Any, a: Any, b: Any, out: Any) -> None:
    a.swapaxes(0, 1).reshape(-1)


def _that_waits(context: Any, a: Any, b: Any, out: Any) -> None:
    context.stream.synchronize()


def _with_advanced_indexing(context: Any, a: Any, b: Any, out: Any) -> None:
    out[[0, 0]] = 0


@pytest.mark.parametrize(("fault", "said"), [
    (_with_numpy, "TypeError"),
    (_with_a_numpy_operand, "Unsupported type <class 'numpy.ndarray'>"),
    (_on_another_stream, "fill is enqueued on another stream than the context's"),
    (_with_a_temporary, "run() allocates: add without out"),
    (_with_a_copy, "would copy"),
    (_that_waits, "run() waits for its stream"),
    (_with_advanced_indexing, "advanced indexing copies"),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_the_stand_in_refuses(fault: Callable[..., None], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS["im2col_cupy"]

    def prepare(self: Implementation, problem: Problem, context: Context, weights: Any = None) -> Run:
        run = type(row).prepare(self, problem, context, weights)

        def faulty(a: Any, b: Any, out: Any) -> None:
            run(a, b, out)
            with context.stream:
                fault(context, a, b, out)

        return faulty

    broken = type("Broken", (type(row),), {"prepare": prepare})()
    problem = Problem(MANY["dense"], Pass.FORWARD, "float32", "nchw")
    assert said in (finding(broken, problem, "raw", monkeypatch) or "")


# ---- products


def matmul_on_fake() -> tuple[Fake, CudaMatmul]:
    fake = Fake()
    return fake, CudaMatmul(fake_cupy.module(fake))


def check_product(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> int:
    """Compares with np.matmul, plain and added; gives the calls of cuBLAS that one product took."""
    fake, matmul = matmul_on_fake()
    views = []
    for array in (left, right, out):
        base = array if array.base is None else array.base
        fake.new(base)
        views.append(fake_cupy.ndarray(fake, array))
    want = left @ right
    out[...] = 0.25
    matmul(*views)
    calls = fake.operations
    np.testing.assert_allclose(out, want, rtol=1e-6)
    out[...] = 0.25
    matmul(*views, add=True)
    np.testing.assert_allclose(out, want + 0.25, rtol=1e-6)
    return calls


def numbers(*shape: int) -> np.ndarray:
    """Small integers, exact in every sum, in memory that nothing else is a view of."""
    return np.random.default_rng(sum(shape)).integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("turned", range(8))
@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 5), (1, 4, 1), (1, 1, 1)])
def test_rows_or_columns_in_every_place(m: int, k: int, n: int, turned: int) -> None:
    """Each matrix by rows or by columns, with a gap after each of them."""
    arrays = []
    for bit, (rows, columns) in enumerate(((m, k), (k, n), (m, n))):
        if turned >> bit & 1:
            arrays.append(numbers(2, columns, rows + 3)[..., :rows].swapaxes(1, 2))
        else:
            arrays.append(numbers(2, rows, columns + 2)[..., :columns])
    assert check_product(*arrays) == 1


def test_batches_that_broadcast_and_overlap() -> None:
    assert check_product(numbers(3, 4), numbers(5, 2, 4, 6), numbers(5, 2, 3, 6)) == 1  # a matrix for all
    assert check_product(numbers(5, 1, 3, 4), numbers(2, 4, 6), numbers(5, 2, 3, 6)) == 2  # crossed: 5 at a time
    strip = numbers(4, 9, 6)  # windows of 3 rows, 2 apart
    windows = np.lib.stride_tricks.as_strided(strip, (4, 4, 3, 6), (216, 48, 24, 4))
    fake, matmul = matmul_on_fake()
    fake.new(strip)
    left, out = fake.new(numbers(2, 3)), fake.new(numbers(4, 4, 2, 6))
    matmul(left, fake_cupy.ndarray(fake, windows), out)
    np.testing.assert_array_equal(out.inner, left.inner @ windows)


def test_long_batches_take_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_matmul, "MOST_MATRICES", 4)
    assert check_product(numbers(11, 3, 4), numbers(11, 4, 6), numbers(11, 3, 6)) == 3


def test_axes_are_merged_where_steps_allow() -> None:
    assert cuda_matmul.merged([(5, 40, 0, 8), (2, 20, 0, 4)]) == [(10, 20, 0, 4)]
    assert cuda_matmul.merged([(5, 44, 0, 8), (2, 20, 0, 4)]) == [(5, 44, 0, 8), (2, 20, 0, 4)]
    assert cuda_matmul.merged([]) == []


@pytest.mark.parametrize(("left", "right", "out", "said"), [
    (numbers(4, 6)[:, ::2], numbers(3, 5), numbers(4, 5), "BLAS cannot read matrices of 4x3"),
    (numbers(4, 3), numbers(4, 5), numbers(4, 5), r"\(4, 3\) @ \(4, 5\) does not give \(4, 5\)"),
    (numbers(2, 4, 3), numbers(3, 5), numbers(4, 5), r"a batch of \(2,\) does not broadcast to \(\)"),
])  # fmt: skip
def test_what_cublas_cannot_read_is_refused(left: Any, right: Any, out: Any, said: str) -> None:
    fake, matmul = matmul_on_fake()
    with pytest.raises(ValueError, match=said):
        matmul(*(fake.new(array) for array in (left, right, out)))


def test_a_library_that_leaves_its_memory_is_seen() -> None:
    fake, matmul = matmul_on_fake()
    left, right, out = (fake.new(array) for array in (numbers(3, 4), numbers(4, 5), numbers(3, 5)))
    longer = np.lib.stride_tricks.as_strided(out.inner, (4, 5))
    taller = np.lib.stride_tricks.as_strided(left.inner, (4, 4))
    with pytest.raises(ValueError, match="20 bytes past its memory"):
        matmul(fake.new(numbers(4, 4)), right, fake_cupy.ndarray(fake, longer))
    with pytest.raises(ValueError, match="16 bytes past its memory"):
        matmul(fake_cupy.ndarray(fake, taller), right, fake.new(numbers(4, 5)))


# ---- CuPy itself, where it is installed; it needs no GPU for this


def test_names_and_parameters_are_those_of_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    ours = fake_cupy.module(Fake())
    for real, own in (
        *((getattr(cupy, name), getattr(ours, name)) for name in ("empty", "asarray", "ascontiguousarray", "copyto")),
        (cupy.lib.stride_tricks.as_strided, ours.lib.stride_tricks.as_strided),
    ):
        parameters = list(inspect.signature(own).parameters)
        assert list(inspect.signature(real).parameters)[: len(parameters)] == parameters, real
    assert all(isinstance(getattr(cupy, name), cupy.ufunc) for name in fake_cupy.UFUNCS)
    members = {name for name in vars(fake_cupy.ndarray) if not name.startswith("_")}
    assert members and [name for name in members if not hasattr(cupy.ndarray, name)] == []
    assert cupy.ndarray.sum.__doc__.startswith("_ndarray_base.sum(self, axis=None, dtype=None, out=None, keepdims=")
