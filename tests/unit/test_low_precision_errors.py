"""What a new user of low precision gets wrong: every message says what, where, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convbench
from convbench import catalog, formats
from convbench.cli import main
from convbench.errors import EXIT_USAGE, ConvbenchError, ProblemError, Unsupported
from convbench.listing import algorithms_text
from convbench.problem import ConvShape, Pass, Problem, Semantics

X = np.ones((1, 8, 6, 6), np.float32)
W = np.ones((4, 8, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["smoke", "--semantics", "xnro"], ["--semantics", "'xnro'", "did you mean 'xnor'?", "binary_weights"]),
        (["smoke", "--inputs", "normla"], ["--inputs", "'normla'", "did you mean 'normal'?"]),
        (
            ["vgg", "--semantics", "xnor", "--dtype", "float16"],
            ["suite vgg", "semantics xnor is defined on float32 operands, not float16: give it float32"],
        ),
        (
            ["vgg", "--semantics", "binary", "--pass", "bwd_weights"],
            ["suite vgg", "semantics binary is defined for fwd, not for bwd_weights"],
        ),
        (
            ["vgg", "--semantics", "fixed16", "--pass", "bwd_weights", "--weights", "packed"],
            ["suite vgg", "bwd_weights with packed weights is left out: there are no weights to pack"],
        ),
        (["vgg", "--semantics", "xnor", "--algorithm", "im2col_nump*"], ["im2col_nump*", "semantics xnor", "list"]),
        (["--semantics=xnro ic3ih8oc4kh3"], ["--semantics=xnro", "xnor"]),
    ],
)
def test_the_command_line(arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments, "--dry-run"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert message.startswith("convbench: ") and "Traceback" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("axes", "parts"),
    [
        ("inputs: [normla]", ["line 2: axes.inputs", "did you mean 'normal'?"]),
        ("semantics: xnro", ["line 2: axes.semantics", "did you mean 'xnor'?"]),
        ("semantic: xnor", ["line 2: axes.semantic", "did you mean 'semantics'?"]),
    ],
)
def test_suite_files(axes: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"problems: [ic3ih8oc4kh3]\naxes: {{{axes}}}\n")
    assert main(["run", str(path), "--dry-run"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert str(path) in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("kind", "x", "options", "parts"),
    [
        (ProblemError, X, {"semantics": "xnro"}, ["semantics", "xnor", "'xnro'"]),
        (Unsupported, X.astype(np.float16), {"semantics": "xnor"}, ["xnor", "float32 operands, not float16"]),
        (ConvbenchError, X, {"semantics": "xnor", "algorithm": "im2col_numpy"}, ["im2col_numpy", "linear", "xnor"]),
        (ConvbenchError, X, {"algorithm": "xnor_packed_numpy"}, ["xnor_packed_numpy", 'semantics="xnor"']),
        (ConvbenchError, X, {"algorithm": "fixed16"}, ['say semantics="fixed16" or semantics="fixed16_stochastic" if']),
    ],
)
def test_the_library(kind: type[Exception], x: np.ndarray, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(kind) as error:
        convbench.conv2d(x, W.astype(x.dtype), **options)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("semantics", [s for s in Semantics if s is not Semantics.LINEAR])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_no_rounding_is_defined_for(semantics: Semantics, bad: float) -> None:
    x, w = X.copy(), W.copy()
    x[0, 0, 0, 0] = w[0, 0, 0, 0] = bad
    says = f"NaN or infinite, for which semantics {semantics} is not defined"
    with pytest.raises(ProblemError, match=f"^x: 1 of {X.size} elements are {says}$"):
        convbench.conv2d(x, W, semantics=str(semantics))
    with pytest.raises(ProblemError, match=f"^w: 1 of {W.size} elements are {says}$"):
        convbench.conv2d(X, w, semantics=str(semantics))
    with pytest.raises(ProblemError, match=f"^w: .*{says}$"):
        convbench.plan(X.shape, w, semantics=str(semantics))
    packed = convbench.plan(X.shape, W, semantics=str(semantics))
    with pytest.raises(ProblemError, match=f"^x: .*{says}$"):
        packed(x)
    assert np.isfinite(packed(X)).all()


@pytest.mark.parametrize("semantics", ["fixed16", "fixed16_stochastic"])
@pytest.mark.filterwarnings("error")
def test_the_largest_numbers_saturate_without_a_warning(semantics: str) -> None:
    x = X * np.float32(3e38)
    for algorithm in (f"{semantics}_im2col_numpy", f"{semantics}_direct_simd"):
        y = convbench.conv2d(x, W, semantics=semantics, algorithm=algorithm)
        np.testing.assert_array_equal(y, np.float32(2.0**6 - 2.0**-9))  # 72 products: 9 fraction bits


def test_the_linear_convolution_passes_on_what_is_not_finite() -> None:
    x = X.copy()
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(convbench.conv2d(x, W, algorithm="direct_numpy")).any()


def test_gradients_that_a_semantics_does_not_define() -> None:
    with pytest.raises(Unsupported, match="semantics xnor is defined for fwd, not for bwd_weights"):
        convbench.conv2d_backward_weights(X, np.ones((1, 4, 4, 4), np.float32), (3, 3), semantics="xnor")


@pytest.mark.parametrize("row", ["packed_numpy", "popcount_simd", "amx_simd", "popc_cuda"])
def test_sums_of_signs_that_float32_does_not_hold_are_refused(row: str) -> None:
    rows = catalog.load().implementations
    for channels, refused in ((2**24, False), (2**24 + 1, True)):
        shape = ConvShape.make(1, channels, 1, 1, 1, 1, 1)
        said = rows[f"binary_{row}"].limits(Problem(shape, semantics=Semantics.BINARY))
        assert (said is not None and "more than 2^24 signs" in said) == refused
        assert rows[f"xnor_{row}"].limits(Problem(shape, semantics=Semantics.XNOR)) is None


def test_what_is_undefined_is_exactly_that() -> None:
    shape = ConvShape.make(1, 8, 6, 6, 4, 3, 3)
    for semantics in Semantics:
        for pass_ in Pass:
            sense = formats.undefined(Problem(shape, pass_, "float32", "nchw", semantics))
            assert (sense is None) == (pass_ in formats.PASSES[semantics])
            half = formats.undefined(Problem(shape, pass_, "float16", "nchw", semantics))
            assert (half is None) == (semantics is Semantics.LINEAR)


def test_list_shows_which_function_a_row_computes() -> None:
    row = {
        "device": "cpu", "passes": ["fwd"], "dtypes": ["float32"], "layouts": ["nhwc"], "unavailable": None,
        "plugin": None, "summary": "signs",
    }  # fmt: skip
    rows = [row | {"name": "xnor_x", "semantics": "xnor"}, row | {"name": "direct_x", "semantics": "linear"}]
    text = algorithms_text({"implementations": rows, "broken": []}, False)
    head, first, second = text.splitlines()
    assert head.split()[:5] == ["algorithm", "device", "passes", "types", "semantics"]
    assert "xnor" in first.split()[1:] and "linear" not in second
