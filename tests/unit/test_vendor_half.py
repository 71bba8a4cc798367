"""The vendor rows in 16-bit types: exact where sums are, right formats, and sentences where the library says no."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import convbench
from convbench import catalog
from convbench.algorithms import onednn
from convbench.algorithms.onednn import _capi, _plan
from convbench.choices import choose
from convbench.devices.arrays import as_real, narrowed, poison, storage
from convbench.devices.base import make_plan
from convbench.devices.cpu import CpuContext, aligned_empty
from convbench.errors import Unsupported
from convbench.problem import LAYOUTS, ConvShape, Pass, Problem
from convbench.registry import Implementation, implementations
from convbench.verify.inputs import to_logical
from convbench.verify.oracle import convolve

catalog.load()
needs_onednn = pytest.mark.skipif(_capi.load_problem() is not None, reason="oneDNN is not here")

#: No sum has more than 256 products, so of -1, 0 and 1 it is a number that bfloat16 holds.
SHAPES = {
    "plain": ConvShape.make(2, 16, 9, 9, 28, 3, 3, padding=1),
    "c17_k19": ConvShape.make(1, 17, 7, 8, 19, 3, 3, padding=1),
    "asymmetric": ConvShape.make(2, 8, 8, 7, 16, 3, 3, stride=2, padding=((0, 1), (2, 1))),
    "dilated": ConvShape.make(1, 6, 17, 14, 9, 3, 2, stride=(3, 2), padding=2, dilation=(2, 3)),
    "pointwise": ConvShape.make(1, 24, 6, 5, 40, 1, 1),
    "one_pixel": ConvShape.make(3, 5, 1, 1, 7, 1, 1),
    "groups": ConvShape.make(2, 12, 7, 7, 18, 3, 3, padding=1, groups=3),
    "depthwise": ConvShape.make(1, 18, 10, 9, 18, 3, 3, stride=2, padding=1, groups=18),
}


def row(name: str) -> Implementation:
    """The row, or a skip where this machine has not what it needs."""
    found = implementations()[name]
    missing = found.unavailable()
    if missing:
        pytest.skip(missing)
    return found


def signs(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> np.ndarray:
    array = aligned_empty(shape, storage(dtype))
    array[...] = narrowed(rng.integers(-1, 2, shape).astype(np.float32), dtype)
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", list(Pass))
@pytest.mark.parametrize("name", ["onednn_bf16", "onednn_fp16", "torch_bf16", "torch_fp16"])
def test_whole_numbers_exactly_raw_and_packed(name: str, pass_: Pass, layout: str) -> None:
    implementation, rng, computed = row(name), np.random.default_rng(4), 0
    dtype = implementation.dtypes[0]
    for label, shape in SHAPES.items():
        problem = Problem(shape, pass_, dtype, layout)
        refusal = implementation.why_not(problem)
        if refusal:  # only for what the library leaves to its reference code
            known = "picks the reference implementation ref" if name == "onednn_fp16" else "pass must be"
            assert known in refusal and name.endswith("fp16"), label
            continue
        computed += 1
        a, b = (signs(s, dtype, rng) for s in (problem.a_shape, problem.b_shape))
        want = convolve(shape, pass_, *(to_logical(as_real(x).astype(np.float64), layout) for x in (a, b)))
        for weights in (None, b) if pass_ is not Pass.BACKWARD_WEIGHTS else (None,):
            out = aligned_empty(problem.out_shape, storage(dtype))
            poison(out)
            make_plan(implementation, problem, CpuContext(2), weights).run(a, None if weights is not None else b, out)
            np.testing.assert_array_equal(to_logical(as_real(out), layout), want, err_msg=f"{label} {weights is None}")
    assert computed == len(SHAPES) or (name.endswith("fp16") and pass_ is not Pass.FORWARD)


@needs_onednn
def test_bfloat16_crosses_formats_only_where_that_pays() -> None:
    implementation = row("onednn_bf16")
    crossed = {}
    for label, layout in (("plain", "nhwc"), ("plain", "nchw"), ("pointwise", "nchw"), ("depthwise", "nhwc")):
        context = CpuContext()
        implementation.prepare(Problem(SHAPES[label], dtype="bfloat16", layout=layout), context)
        assert not context.notes["vendor_impl"].startswith("ref")
        crossed[label, layout] = [name for name in "xy" if f"{name} a" in context.notes["reorder"]]
    assert crossed == {
        ("plain", "nhwc"): [], ("plain", "nchw"): ["x", "y"], ("pointwise", "nchw"): [], ("depthwise", "nhwc"): []
    }  # fmt: skip


@needs_onednn
def test_what_the_library_answers_is_the_sentence() -> None:
    code = (
        "from convbench import catalog; rows = catalog.load().implementations;"
        "print(rows['onednn_bf16'].unavailable()); print(rows['onednn_fp16'].unavailable())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True,
    )  # fmt: skip
    for line, name, dtype in zip(
        done.stdout.splitlines(), ("onednn_bf16", "onednn_fp16"), ("bfloat16", "float16"), strict=True
    ):
        assert line.startswith(f"{name}: oneDNN {_capi.version_text()} has no optimised convolution in {dtype} for")
        assert line.endswith("it answers: fwd unimplemented, bwd_data unimplemented, bwd_weights unimplemented")


@needs_onednn
def test_one_pass_that_the_library_has_makes_the_row_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def library_with(offered: Pass | None) -> Callable[..., Any]:
        def answers(asked: Problem, *_: object) -> Any:
            if asked.pass_ is Pass.BACKWARD_DATA:
                raise Unsupported("onednn: has no implementation of this convolution")
            return SimpleNamespace(implementation="brgconv:x" if asked.pass_ is offered else "ref:any")

        return answers

    for offered, sentence in ((Pass.FORWARD, None), (None, "fwd ref:any, bwd_data unimplemented, bwd_weights ref:any")):
        monkeypatch.setattr(_plan, "choose", library_with(offered))
        onednn._answers.cache_clear()
        said = implementations()["onednn_fp16"].unavailable()
        assert said is None if sentence is None else said is not None and said.endswith(sentence)
    onednn._answers.cache_clear()


def test_torch_says_what_it_computes_with_and_packs_for_it() -> None:
    implementation = row("torch_bf16")
    for label, packs in (("plain", True), ("asymmetric", False)):
        problem, context = Problem(SHAPES[label], dtype="bfloat16", layout="nhwc"), CpuContext()
        implementation.prepare(problem, context, np.ones(problem.b_shape, storage("bfloat16")))
        backend = context.notes["vendor_impl"].rpartition("backend ")[2]
        assert context.notes["packed"].startswith("the filter") == (packs and backend == "Mkldnn")
        assert context.notes["vendor_impl"].startswith("torch ") and backend.isalnum()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["onednn_bf16", "torch_bf16", "direct_bf16_simd", "im2col_half_numpy", "auto"])
def test_the_library_takes_bfloat16_arrays(name: str, layout: str) -> None:
    """NumPy knows the type once ml_dtypes is imported; rows see its bits as uint16."""
    if name != "auto":
        row(name)
    rng, shape = np.random.default_rng(2), SHAPES["plain"]
    x, w = (rng.integers(-1, 2, s).astype(ml_dtypes.bfloat16) for s in (shape.x_shape(layout), shape.w_shape(layout)))
    want = convolve(shape, Pass.FORWARD, *(to_logical(a.astype(np.float64), layout) for a in (x, w)))
    given = {"padding": 1, "layout": layout, "algorithm": name}
    out = np.empty(shape.y_shape(layout), ml_dtypes.bfloat16)
    packed = convbench.plan(x.shape, w, **given)
    for y in (convbench.conv2d(x, w, **given), convbench.conv2d(x[::-1][::-1], w, **given, out=out), packed(x)):
        assert y.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(to_logical(y.astype(np.float64), layout), want)


def test_auto_takes_the_vendor_s_row_in_bfloat16_and_ours_in_float16() -> None:
    row("onednn_bf16")
    chosen = choose(Problem(SHAPES["plain"], dtype="bfloat16"))
    assert (chosen.name, chosen.reason) == ("onednn_bf16", "the vendor's library takes this problem")
    weights = choose(Problem(SHAPES["plain"], Pass.BACKWARD_WEIGHTS, "bfloat16"))
    assert weights.name == "onednn_bf16" or "reference implementation" in weights.reason
    for pass_ in Pass:
        assert choose(Problem(SHAPES["plain"], pass_, "float16")).name in ("direct_fp16_simd", "winograd_f4_fp16_simd")
