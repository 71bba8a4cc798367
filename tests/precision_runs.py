"""Made-up records of several formats, for the tests of what the report says across them. No number was measured."""

from __future__ import annotations

from dataclasses import replace

from convbench.problem import Case, ConvShape, Options, Pass, Problem, Semantics
from convbench.records import Errors, Record
from tests.report_runs import VGG, one_record

#: name -> (type, semantics, arithmetic, time over that of oneDNN in float32, relative L2 error, ULP from exact).
FORMATS: dict[str, tuple[str, Semantics, str, float, float, float | None]] = {
    "onednn": ("float32", Semantics.LINEAR, "float32", 1.0, 2.1e-7, None),
    "onednn_blocked": ("float32", Semantics.LINEAR, "float32", 0.93, 2.1e-7, None),
    "winograd_f4_simd": ("float32", Semantics.LINEAR, "float32", 0.41, 9.4e-7, None),
    "im2col_numpy": ("float32", Semantics.LINEAR, "float32", 1.5, 2.0e-7, None),
    "direct_naive_numba": ("float32", Semantics.LINEAR, "float32", 80.0, 2.9e-7, None),
    "direct_fp16_simd": ("float16", Semantics.LINEAR, "float16-acc32", 0.9, 2.6e-4, None),
    "direct_bf16_simd": ("bfloat16", Semantics.LINEAR, "bfloat16-acc32", 0.4, 2.0e-3, None),
    "onednn_bf16": ("bfloat16", Semantics.LINEAR, "bfloat16-acc32", 0.36, 2.0e-3, None),
    "onednn_int8": ("int8", Semantics.LINEAR, "int8-acc32", 0.29, 0.0, None),
    "int8_simd": ("float32", Semantics.INT8, "int8-acc32", 0.37, 1.1e-2, 0.5),
    "fixed16_simd": ("float32", Semantics.FIXED16, "int16-acc64", 1.3, 1.9e-4, 0.0),
    "dynamic_fixed_simd": ("float32", Semantics.DYNAMIC_FIXED, "int10-acc64", 1.4, 5.2e-3, 0.0),
    "binary_weights_simd": ("float32", Semantics.BINARY_WEIGHTS, "float32", 1.1, 6.1e-1, 3.0),
    "xnor_simd": ("float32", Semantics.XNOR, "binary", 0.06, 7.9e-1, 1.5),
    "binary_simd": ("float32", Semantics.BINARY, "binary", 0.055, 8.1e-1, 0.0),
}
SIGN_ROWS = ("xnor_simd", "binary_simd")


def format_record(shape: ConvShape, name: str, label: str, count: int = 1, options: Options | None = None) -> Record:
    """One row of FORMATS on one layer, one thread, channels last. Raw weights cost a tenth more."""
    dtype, semantics, arithmetic, relative, error, ulp = FORMATS[name]
    options = options or Options()
    base = one_record(Problem(shape, Pass.FORWARD, "float32", "nhwc"), "onednn", label, count, threads=1)
    problem = Problem(shape, Pass.FORWARD, dtype, "nhwc", semantics)
    relative *= 1.1 if options.weights == "raw" else 1.0
    if semantics in (Semantics.XNOR, Semantics.BINARY):
        relative *= 1 + 64 / (shape.cg * shape.r * shape.s)  # what is not a product of signs
    samples = replace(base.samples, ns=[max(1, int(ns * relative)) for ns in base.samples.ns])
    return replace(
        base, case=Case(problem, name, options, label, count), samples=samples, arithmetic=arithmetic, flags=[],
        error=Errors(error, error * 9, None if error == 0 else 40.0, 0.2, ulp), vendor=name.startswith("onednn"),
    )  # fmt: skip


def precision_records(
    weights: tuple[str, ...] = ("packed", "raw"), inputs: tuple[str, ...] = ("normal",)
) -> list[Record]:
    """VGG's layers, every format."""
    return [
        format_record(ConvShape.make(1, c, size, size, k, 3, 3, padding=1), name, f"vgg16:{label}", count,
                      Options(weights=w, inputs=i))
        for label, c, size, k, count in VGG for name in FORMATS for w in weights for i in inputs
    ]  # fmt: skip


def xnor_records(weights: tuple[str, ...] = ("packed", "raw")) -> list[Record]:
    """The axes of XNOR-Net's figure 4."""
    names = ("onednn", "onednn_blocked", "im2col_numpy", "direct_naive_numba", "onednn_int8", *SIGN_ROWS)
    shapes = [(f"xnor_channels:c{c}", c, 3) for c in (3, 16, 64, 128, 256, 512, 1024)]
    shapes += [(f"xnor_filter_size:{r}x{r}", 256, r) for r in (1, 3, 5, 7, 9, 11)]
    records = {
        record.case.id: record
        for label, c, r in shapes for name in names for w in weights
        for record in [format_record(ConvShape.make(1, c, 14, 14, 256, r, r, padding=r // 2), name, label, 1,
                                     Options(weights=w))]
    }  # fmt: skip
    return list(records.values())
