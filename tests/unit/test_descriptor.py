"""Descriptors: round trip of every problem, benchdnn's traps, ONEDNN_VERBOSE lines, what each error says."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convbench.descriptor import explicit_fields, parse_descriptor, print_descriptor
from convbench.errors import ProblemError
from convbench.problem import ITEM_BYTES, LAYOUTS, ConvShape, Pass, Problem, Semantics

small = st.integers(1, 6)
pad = st.integers(0, 5)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups = draw(st.integers(1, 4))
    try:
        shape = ConvShape(
            draw(small),
            groups * draw(small),
            draw(st.integers(1, 20)),
            draw(st.integers(1, 20)),
            groups * draw(small),
            draw(small),
            draw(small),
            draw(st.tuples(small, small)),
            draw(st.tuples(pad, pad, pad, pad)),
            draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
            groups,
        )
    except ProblemError:
        assume(False)
    return Problem(
        shape,
        draw(st.sampled_from(list(Pass))),
        draw(st.sampled_from(list(ITEM_BYTES))),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(list(Semantics))),
    )


@settings(max_examples=1000, deadline=None)
@given(problems())
def test_what_is_printed_parses_to_the_same_problem(problem: Problem) -> None:
    text = print_descriptor(problem)
    entry = parse_descriptor(text)
    assert entry.problem == problem
    assert print_descriptor(entry.problem) == text
    assert (entry.name, entry.count) == ("", 1)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='gmbicohwksdpn_*"-=0123456789 FWD_', max_size=40))
def test_any_text_parses_or_says_why_not(text: str) -> None:
    try:
        entry = parse_descriptor(text)
    except ProblemError as error:
        assert str(error)
    else:
        canonical = print_descriptor(entry.problem)
        assert print_descriptor(parse_descriptor(canonical).problem) == canonical


def test_canonical_form() -> None:
    shape = ConvShape.make(1, 64, 224, 224, 64, 3, 3, padding=1)
    text = "--dir=FWD_D --dt=f32 --stag=abx mb1ic64ih224iw224oc64oh224ow224kh3kw3sh1sw1ph1pw1dh0dw0"
    assert print_descriptor(Problem(shape)) == text
    grouped = ConvShape.make(1, 32, 8, 8, 32, 3, 3, padding=1, dilation=2, groups=32)
    printed = print_descriptor(
        Problem(grouped, Pass.BACKWARD_WEIGHTS, "bfloat16", "nhwc", semantics=Semantics.BINARY)
    )
    assert printed == (
        "--dir=BWD_W --dt=bf16 --stag=axb --semantics=binary "
        "g32mb1ic32ih8iw8oc32oh6ow6kh3kw3sh1sw1ph1pw1dh1dw1"
    )


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        pytest.param("ic3ih8oc4kh3", ConvShape.make(2, 3, 8, 8, 4, 3, 3), id="default mb is 2"),
        pytest.param("mb1ic3ih9oc4kh3dh1", ConvShape.make(1, 3, 9, 9, 4, 3, 3, dilation=2), id="dh from 0"),
        pytest.param("mb1_ic3_ih8oc4_kh3", ConvShape.make(1, 3, 8, 8, 4, 3, 3), id="underscores"),
        pytest.param("mb1ic3ih8oc4oh8kh3", ConvShape.make(1, 3, 8, 8, 4, 3, 3, padding=1), id="deduced"),
        pytest.param(
            "mb1ic3ih224oc64oh112kh7sh2ph3",
            ConvShape.make(1, 3, 224, 224, 64, 7, 7, stride=2, padding=3),
            id="width copies height",
        ),
        pytest.param(
            "mb1ic3ih224oc8oh112kh3sh2ph0",
            ConvShape.make(1, 3, 224, 224, 8, 3, 3, stride=2, padding=((0, 1), (0, 1))),
            id="end padding from oh (SAME)",
        ),
        pytest.param(
            "mb1ic3ih10iw12oc8kh3", ConvShape.make(1, 3, 10, 12, 8, 3, 3), id="kw copies kh beside a given iw"
        ),
        pytest.param(
            "mb4ic1ih161iw700oc32kh5kw20sh2sw2ph0pw0",
            ConvShape.make(4, 1, 161, 700, 32, 5, 20, stride=2),
            id="rectangular",
        ),
        pytest.param(
            "mb1ic128ih17iw17oc128oh17ow17kh1kw7ph0pw3",
            ConvShape.make(1, 128, 17, 17, 128, 1, 7, padding=(0, 3)),
            id="1x7",
        ),
        pytest.param(
            "mb1ic64ih56oc64oh14kh1sh4", ConvShape.make(1, 64, 56, 56, 64, 1, 1, 4), id="pad not below 0"
        ),
        pytest.param(
            "mb1ic2iw16oc3kw5pw2", ConvShape.make(1, 2, 1, 16, 3, 1, 5, padding=(0, 2)), id="1-D has height 1"
        ),
        pytest.param(
            "g32mb1ic32ih14oc32kh3ph1",
            ConvShape.make(1, 32, 14, 14, 32, 3, 3, padding=1, groups=32),
            id="ic and oc are totals over groups",
        ),
        pytest.param(
            "mb1ic2ih4oc2oh10kh3ph5",
            ConvShape.make(1, 2, 4, 4, 2, 3, 3, padding=((5, 3), (5, 3))),
            id="padding larger than filter",
        ),
    ],
)
def test_shapes(text: str, shape: ConvShape) -> None:
    assert parse_descriptor(text).problem == Problem(shape)


@pytest.mark.parametrize(
    ("tail", "name", "count"),
    [
        ("", "", 1),
        ('n"conv1_2"', "conv1_2", 1),
        ("nconv1_2", "conv1_2", 1),
        ('n"res:2a*3"', "res:2a", 3),
        ('n"res:2a"*3', "res:2a", 3),
        ("nres:2a*4", "res:2a", 4),
        ("*5", "", 5),
        ("nmobilenet:conv2_1/dw", "mobilenet:conv2_1/dw", 1),
        ('n"<script>alert(1)</script>"', "<script>alert(1)</script>", 1),
        ('n"two words" ', "two words", 1),
    ],
)
def test_names_and_counts(tail: str, name: str, count: int) -> None:
    entry = parse_descriptor("mb1ic3ih8oc4kh3" + tail)
    assert (entry.name, entry.count) == (name, count)
    assert entry.problem == parse_descriptor("mb1ic3ih8oc4kh3").problem


def test_options_and_defaults() -> None:
    p = parse_descriptor("--dir=BWD_D --dt=f64 --stag=acdb --dtag=axb ic3ih8oc4kh3").problem
    assert (p.pass_, p.dtype, p.layout) == (Pass.BACKWARD_DATA, "float64", "nhwc")
    p = parse_descriptor("--dt=s8:s8:s32 ic3ih8oc4kh3").problem
    assert (p.dtype, p.out_dtype) == ("int8", "int32") and "--dt=s8:s8:s32 " in print_descriptor(p)
    assert parse_descriptor("--dt=bf16:bf16:bf16 ic3ih8oc4kh3").problem.dtype == "bfloat16"
    assert parse_descriptor("--dir=fwd_i ic3ih8oc4kh3").problem.pass_ is Pass.FORWARD
    p = parse_descriptor("ic3ih8oc4kh3", n=5, pass_="bwd_weights", dtype="float16", layout="nhwc").problem
    assert (p.shape.n, p.pass_, p.dtype, p.layout) == (5, Pass.BACKWARD_WEIGHTS, "float16", "nhwc")
    p = parse_descriptor("--dir=FWD_D mb1ic3ih8oc4kh3", n=5, pass_="bwd_weights").problem
    assert (p.shape.n, p.pass_) == (1, Pass.FORWARD)  # what the text says goes first


def test_explicit_fields() -> None:
    assert explicit_fields("ic3ih8oc4kh3") == {}
    assert explicit_fields("--dir=BWD_W --stag=axb ic3ih8oc4kh3") == {"pass": "bwd_weights", "layout": "nhwc"}


VERBOSE = {
    "v1": "onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core,forward_training,"
    "src_f32::blocked:acdb::f0 wei_f32:ap:blocked:AcdB64a::f0 bia_undef::undef::: dst_f32::blocked:acdb::f0,"
    "attr-scratchpad:user ,alg:convolution_direct,"
    "mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3,0.58",
    "timestamp": "onednn_verbose,1700000000.5,primitive,exec,cpu,convolution,brgconv:avx512_core,"
    "forward_inference,"
    "src_f32::blocked:acdb:f0 wei_f32::blocked:Acdb16a:f0 bia_undef::undef::f0 dst_f32::blocked:acdb:f0,,"
    "alg:convolution_direct,mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3,0.3",
    "v3": "onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx2,forward_inference,"
    "src:f32:a:blocked:acdb::f0 "
    "wei:f32:a:blocked:Acdb8a::f0 bia:undef::undef::: dst:f32:a:blocked:acdb::f0,attr-scratchpad:user,"
    "alg:convolution_direct,mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3,0.3",
    "dnnl": "dnnl_verbose,exec,cpu,convolution,jit:avx2,forward_inference,src_f32::blocked:acdb:f0 "
    "wei_f32::blocked:Acdb8a:f0 bia_undef::undef::f0 dst_f32::blocked:acdb:f0,,alg:convolution_direct,"
    "mb1_ic3oc64_ih224oh112kh7sh2dh0ph3_iw224ow112kw7sw2dw0pw3,0.3\n",
}


@pytest.mark.parametrize("line", VERBOSE.values(), ids=VERBOSE.keys())
def test_verbose_line(line: str) -> None:
    shape = ConvShape.make(1, 3, 224, 224, 64, 7, 7, stride=2, padding=3)
    assert parse_descriptor(line).problem == Problem(shape, layout="nhwc")
    assert explicit_fields(line) == {"pass": "fwd", "dtype": "float32", "layout": "nhwc"}


def test_verbose_line_of_a_gradient_with_groups() -> None:
    line = (
        "onednn_verbose,v1,primitive,exec,cpu,convolution,gemm:jit,backward_data,src_f32::blocked:abcd::f0 "
        "wei_f32::blocked:abcde::f0 bia_undef::undef::: dst_f32::blocked:abcd::f0,,alg:convolution_direct,"
        "g4mb2_ic8oc8_ih8oh8kh3sh1dh0ph1_iw8ow8kw3sw1dw0pw1,0.1"
    )
    want = Problem(ConvShape.make(2, 8, 8, 8, 8, 3, 3, padding=1, groups=4), Pass.BACKWARD_DATA)
    assert parse_descriptor(line).problem == want


def test_verbose_line_of_int8() -> None:
    line = VERBOSE["v1"].replace("src_f32", "src_s8").replace("wei_f32", "wei_s8").replace("dst_f32", "dst_s32")
    assert parse_descriptor(line).problem == Problem(
        ConvShape.make(1, 3, 224, 224, 64, 7, 7, stride=2, padding=3), Pass.FORWARD, "int8", "nhwc"
    )


ERRORS = {
    "empty": ("", ["no problem", "mb1ic64ih56"]),
    "garbage": ("ic64xh3", ["'xh3'", "character 5", "keys are", "did you mean"]),
    "garbage after options": ("--dir=FWD_D ic3_zz4", ["'zz4'", "character 17"]),
    "negative": ("ic3ih8oc4kh-1", ["'kh-1'", "character 10"]),
    "key without number": ("ic3ihoc4", ["'ihoc4'", "character 4"]),
    "impossible": ("ic3ih5oc4kh7", ["filter's height 7", "input 5", "no output", "in 'ic3ih5oc4kh7'"]),
    "impossible oh": ("ic3ih8oc4oh4kh1", ["oh4 cannot be", "at least 8", "leave oh out"]),
    "3-D": ("ic3id4ih5oc4kh3", ["'id4'", "character 4", "3-D", "2-D"]),
    "huge": ("ic" + "9" * 5000 + "ih5oc4kh3", ["'ic'", "character 1", "5000 digits"]),
    "zero": ("ic0ih5oc4kh3", ["ic must be at least 1, not 0"]),
    "stride zero": ("ic1ih5oc4kh3sh0", ["sh must be at least 1"]),
    "groups": ("g2ic3ih5oc4kh3", ["c=3 is not a multiple of groups=2"]),
    "twice": ("ic3ih8oc3kh3ic4", ["'ic'", "character 13", "second time"]),
    "no sizes": ("ic3oc3", ["ih and kh"]),
    "no channels": ("ih8kh3oc3", ["ic", "input channels", "missing"]),
    "no filter": ("ic3oc3ih8", ["kh (the filter's height) is missing"]),
    "half-given stride": ("ic3ih8iw8oc4kh3sh2", ["sh2", "benchdnn would take sw1", "sw1 or sw2"]),
    "half-given padding": ("ic3ih8iw8oc4kh3ph1", ["padded", "neither pw nor ow", "say pw"]),
    "quote": ('ic3oc3ih8kh3n"a', ["closing quote", "character 13"]),
    "count 0": ("ic3oc3ih8kh3*0", ["at least once"]),
    "count": ("ic3oc3ih8kh3*x", ["'*x'", "character 13", "*3"]),
    "option": ("--dri=FWD_D ic3", ["'--dri'", "character 1", "did you mean 'dir'"]),
    "option without value": ("--dir ic3", ["'--dir'", "no value"]),
    "bias": ("--dir=FWD_B ic3", ["bias", "--dir=FWD_D"]),
    "bias gradient": ("--dir=BWD_WB ic3", ["bias", "--dir=BWD_W"]),
    "direction": ("--dir=BWDD ic3", ["--dir=BWDD", "FWD_D, FWD_I, BWD_D, BWD_W", "did you mean 'BWD_D'"]),
    "type": ("--dt=f31 ic3", ["--dt=f31", "bf16", "did you mean 'f32'"]),
    "mixed types": ("--dt=f32:f32:bf16 ic3", ["one type", "--dt=f32"]),
    "two types": ("--dt=f32:f32 ic3", ["one type", "--dt=f32"]),
    "int8 to int8": ("--dt=s8 ic3", ["--dt=s8", "s8, s8 and s32", "exact sums"]),
    "int8 thrice": ("--dt=s8:s8:s8 ic3", ["--dt=s8:s8:s8", "s8, s8 and s32"]),
    "layout any": ("--stag=any ic3", ["--stag=any", "abx (nchw)", "axb (nhwc)"]),
    "layout blocked": ("--stag=aBcd8b ic3", ["--stag=aBcd8b", "nhwc"]),
    "contradiction": ("--stag=abx --dtag=axb ic3", ["'--dtag=axb'", "contradicts", "'--stag=abx'"]),
    "verbose other": ("onednn_verbose,exec,cpu,reorder,x", ["no convolution"]),
    "verbose cut": (VERBOSE["v1"].split("alg:")[0], ["no shape", "paste it whole"]),
    "verbose bias": (
        VERBOSE["v1"].replace("bia_undef::undef:::", "bia_f32:a:blocked:a::f0"),
        ["bias", "a problem without it: '--dir=FWD_D --dt=f32 --stag=axb mb1_ic3oc64"],
    ),
    "verbose post-op": (VERBOSE["v1"].replace("attr-scratchpad:user", "attr-post-ops:relu"), ["post-ops"]),
    "verbose blocked": (
        VERBOSE["v1"].replace("src_f32::blocked:acdb", "src_f32::blocked:aBcd16b"),
        ["'aBcd16b'", "--stag=axb"],
    ),
    "verbose u8": (VERBOSE["v1"].replace("src_f32", "src_u8"), ["u8:f32:f32", "one type"]),
    "verbose s8": (VERBOSE["v1"].replace("f32", "s8"), ["uses s8:", "s8, s8 and s32"]),
}


@pytest.mark.parametrize(("text", "parts"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_say_what_where_and_what_was_meant(text: str, parts: list[str]) -> None:
    with pytest.raises(ProblemError) as error:
        parse_descriptor(text)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_not_text() -> None:
    with pytest.raises(ProblemError, match="descriptor is text"):
        parse_descriptor(3)  # type: ignore[arg-type]


def test_the_hint_of_a_refused_verbose_line_works() -> None:
    with pytest.raises(ProblemError) as error:
        parse_descriptor(VERBOSE["v1"].replace("bia_undef::undef:::", "bia_f32:a:blocked:a::f0"))
    assert parse_descriptor(str(error.value).split("'")[1]).problem == parse_descriptor(VERBOSE["v1"]).problem
