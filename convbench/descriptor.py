"""The text form of a problem: oneDNN's benchdnn descriptor, and lines of ONEDNN_VERBOSE output.

`--dir=BWD_D --dt=f32 --stag=abx mb1ic64ih224oc64oh224kh3ph1n"conv1_2"*2`: options, then pairs of a key and a
number, then a name and how often the layer occurs. Keys and deductions follow oneDNN's benchdnn: the default
mb is 2, dh is 0-based (0 is dense), `_` is ignored, missing output or padding is deduced, a missing
width copies the height. Where benchdnn's reading of a half-given width would surprise (it takes sw1 and pw0),
the text is refused.
Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from convbench.errors import ProblemError
from convbench.nearest import nearest
from convbench.problem import ConvShape, Pass, Problem, Semantics, canonical_end, output_size

KEYS = ("g", "mb", "ic", "ih", "iw", "oc", "oh", "ow", "kh", "kw", "sh", "sw", "ph", "pw", "dh", "dw")
DEPTH_KEYS = ("id", "od", "kd", "sd", "pd", "dd")
DIRECTIONS = {
    "FWD_D": Pass.FORWARD,
    "FWD_I": Pass.FORWARD,
    "BWD_D": Pass.BACKWARD_DATA,
    "BWD_W": Pass.BACKWARD_WEIGHTS,
}
BIASED = {"FWD_B": "FWD_D", "BWD_WB": "BWD_W"}
PROP_KINDS = {
    "forward_training": Pass.FORWARD,
    "forward_inference": Pass.FORWARD,
    "backward_data": Pass.BACKWARD_DATA,
    "backward_weights": Pass.BACKWARD_WEIGHTS,
}
#: Types of source, weights and destination as benchdnn writes them: one stands for three that are equal.
TYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "s8:s8:s32": "int8"}
TAGS = {
    **dict.fromkeys(("abx", "abcd", "abc", "nchw", "ncw"), "nchw"),
    **dict.fromkeys(("axb", "acdb", "acb", "nhwc", "nwc"), "nhwc"),
}
ONE_TYPE = "source, weights and destination must have one type, or be s8, s8 and s32 (the exact sums of int8)"
OPTIONS = ("dir", "dt", "stag", "dtag", "semantics")

_PRINTED_DIRECTION = {
    Pass.FORWARD: "FWD_D",
    Pass.BACKWARD_DATA: "BWD_D",
    Pass.BACKWARD_WEIGHTS: "BWD_W",
}
_PRINTED_TYPE = {dtype: short for short, dtype in TYPES.items()}
_PRINTED_TAG = {"nchw": "abx", "nhwc": "axb"}
_VERBOSE = re.compile(r"\s*(onednn|dnnl|mkldnn)_verbose,")
_PAIR = re.compile(r"([A-Za-z]+)([0-9]+)")
_MOST_DIGITS = 12


@dataclass(frozen=True)
class Entry:
    """A problem as it stands in a list of layers: with its name and how often the layer occurs."""

    problem: Problem
    name: str = ""
    count: int = 1


def parse_descriptor(
    text: str,
    *,
    n: int = 2,
    pass_: Pass | str = Pass.FORWARD,
    dtype: str = "float32",
    layout: str = "nchw",
    semantics: Semantics | str = Semantics.LINEAR,
) -> Entry:
    """Reads a benchdnn descriptor or a convolution line of ONEDNN_VERBOSE output.

    The keyword arguments stand in for what the text does not say. Raises ProblemError that says what was
    found, at which character, and what was meant.
    """
    if not isinstance(text, str):
        raise ProblemError(f"a descriptor is text such as 'mb1ic64ih56oc64kh3ph1', not {text!r}")
    given, body, offset = _read_options(text)
    shape, name, count = _read_body(text, body, offset, n)
    fields: dict[str, Any] = {"pass": pass_, "dtype": dtype, "layout": layout, "semantics": semantics} | given
    problem = Problem(shape, fields["pass"], fields["dtype"], fields["layout"], fields["semantics"])
    return Entry(problem, name, count)


def explicit_fields(text: str) -> dict[str, str]:
    """What the text itself fixes beside the shape: a subset of "pass", "dtype", "layout", "semantics"."""
    return {key: str(value) for key, value in _read_options(text)[0].items()}


def print_descriptor(problem: Problem) -> str:
    """The canonical text of a problem; parse_descriptor gives the same problem back."""
    s = problem.shape
    head = [f"--dir={_PRINTED_DIRECTION[problem.pass_]}", f"--dt={_PRINTED_TYPE[problem.dtype]}"]
    head.append(f"--stag={_PRINTED_TAG[problem.layout]}")
    if problem.semantics is not Semantics.LINEAR:
        head.append(f"--semantics={problem.semantics}")
    groups = f"g{s.groups}" if s.groups > 1 else ""
    body = (
        f"{groups}mb{s.n}ic{s.c}ih{s.h}iw{s.w}oc{s.k}oh{s.p}ow{s.q}kh{s.r}kw{s.s}sh{s.stride[0]}sw{s.stride[1]}"
        f"ph{s.padding[0]}pw{s.padding[2]}dh{s.dilation[0] - 1}dw{s.dilation[1] - 1}"
    )
    return " ".join([*head, body])


# ---- options


def _read_options(text: str) -> tuple[dict[str, Any], str, int]:
    """(fields that the text fixes, the shape's part of the text, where that part begins)."""
    if _VERBOSE.match(text):
        fields, body = _read_verbose(text)
        return fields, body, text.rfind(body)
    given: dict[str, Any] = {}
    said: dict[str, str] = {}
    position = 0
    while match := re.compile(r"\s*--(\S*)").match(text, position):
        option, equals, value = match[1].partition("=")
        where = f"at character {match.start(1) - 1} of {text!r}"
        if option not in OPTIONS:
            raise ProblemError(
                f"unknown option '--{option}' {where}: convbench reads --{', --'.join(OPTIONS)}"
                f"{nearest(option, OPTIONS)}"
            )
        if not equals or not value:
            raise ProblemError(f"option '--{option}' {where} has no value: write --{option}=VALUE")
        key, meaning = _option(option, value, where)
        if given.get(key, meaning) != meaning:
            raise ProblemError(f"'--{option}={value}' {where} contradicts '{said[key]}': keep one")
        given[key], said[key] = meaning, match[0].strip()
        position = match.end()
    return given, text[position:], position


def _option(option: str, value: str, where: str) -> tuple[str, str]:
    """One option as (field, value)."""
    if option == "dir":
        if value.upper() in BIASED:
            raise ProblemError(
                f"--dir={value} {where} asks for a bias, which convbench does not compute: "
                f"use --dir={BIASED[value.upper()]}"
            )
        return "pass", _lookup(DIRECTIONS, value.upper(), f"--dir={value}", where)
    if option == "dt":
        types = _types(value.split(":"))
        if types == "s8" or (":" in types and types not in TYPES):
            raise ProblemError(f"--dt={value} {where}: {ONE_TYPE}, such as --dt=f32")
        return "dtype", _lookup(TYPES, types, f"--dt={value}", where)
    if option == "semantics":
        return "semantics", _lookup({str(s): str(s) for s in Semantics}, value, f"--semantics={value}", where)
    if value.lower() in ("any", "undef"):
        raise ProblemError(f"--{option}={value} {where} leaves the layout open: say abx (nchw) or axb (nhwc)")
    return "layout", _lookup(TAGS, value, f"--{option}={value}", where)


def _types(each: list[str]) -> str:
    """Types of source, weights and destination as TYPES has them: of three equal ones the first alone."""
    return each[0] if len(each) == 3 and len(set(each)) == 1 else ":".join(each)


def _lookup(table: dict[str, Any], value: str, what: str, where: str) -> str:
    if value not in table:
        raise ProblemError(f"{what} {where} is not known: use {', '.join(table)}{nearest(value, table)}")
    return str(table[value])


# ---- ONEDNN_VERBOSE


def _read_verbose(text: str) -> tuple[dict[str, Any], str]:
    """Pass, dtype and layout of a verbose line, and its shape as a descriptor.

    Fields stand in another order from version to version; each is recognised by what it looks like.
    """
    line = "this ONEDNN_VERBOSE line"
    parts = [part.strip() for part in text.strip().split(",")]
    if "convolution" not in parts:
        raise ProblemError(f"{line} is no convolution: {text.strip()[:100]!r}")
    body = next((p for p in parts if re.fullmatch(r"(?=\w*ic\d)(?=\w*oc\d)(mb|g)\d\w*", p)), None)
    kinds = [p for p in parts if p in PROP_KINDS]
    source = re.search(r"\b(?:diff_)?src[_:](\w+?):[^ ,]*?blocked:(\w+)", text)
    if body is None or not kinds or source is None:
        missing = "shape (mb1_ic3oc64_...)" if body is None else "src layout" if kinds else "propagation kind"
        raise ProblemError(f"{line} has no {missing}: paste it whole; this is {text.strip()[:100]!r}")
    fields: dict[str, Any] = {"pass": PROP_KINDS[kinds[0]]}
    direction = _PRINTED_DIRECTION[fields["pass"]]
    tag = _PRINTED_TAG[TAGS.get(source[2], "nhwc")]
    types = _types(re.findall(r"\b(?:diff_)?(?:src|wei|dst)[_:](?!undef)([a-z]+\d*)\b", text))
    instead = f"a problem without it: '--dir={direction} --dt={types} --stag={tag} {body}'"
    if re.search(r"\b(?:diff_)?bia[_:](?!undef)", text):
        raise ProblemError(f"{line} adds a bias, which convbench does not compute; {instead}")
    if match := re.search(r"attr-post-ops:\S+|attr-scales:\S+|attr-zero-points:\S+", text):
        raise ProblemError(f"{line} has {match[0]!r}, which convbench does not compute; {instead}")
    if types not in TYPES:
        raise ProblemError(f"{line} uses {types}: {ONE_TYPE}, out of {', '.join(TYPES)}")
    if source[2] not in TAGS:
        raise ProblemError(
            f"{line} keeps src in oneDNN's own format {source[2]!r}: convbench's layouts are abx (nchw) and "
            f"axb (nhwc); {instead}"
        )
    return {**fields, "dtype": TYPES[types], "layout": TAGS[source[2]]}, body


# ---- the shape


def _read_body(text: str, body: str, offset: int, default_n: int) -> tuple[ConvShape, str, int]:
    """Shape, name and count out of the part behind the options."""
    tokens: dict[str, int] = {}
    name, count = "", 1
    position = 0
    while position < len(body):
        rest = body[position:]
        where = f"at character {offset + position + 1} of {text!r}"
        if rest[0] == "_" or rest[0].isspace():
            position += 1
            continue
        pair = _PAIR.match(rest)
        if pair and pair[1] in KEYS:
            if len(pair[2]) > _MOST_DIGITS:
                raise ProblemError(f"{pair[1]!r} {where} has a number of {len(pair[2])} digits: no size is so large")
            if pair[1] in tokens:
                raise ProblemError(f"{pair[1]!r} {where} stands there a second time: keep one")
            tokens[pair[1]] = int(pair[2])
            position += pair.end()
        elif pair and pair[1] in DEPTH_KEYS:
            raise ProblemError(f"{pair[0]!r} {where} makes this 3-D: convbench computes 2-D convolutions")
        elif rest[0] in "n*":
            name, count = _read_name(rest, where)
            break
        else:
            word = re.match(r"\s*\S[A-Za-z]*-?\w{0,8}", rest)
            raise ProblemError(
                f"cannot read {(word[0] if word else rest).strip()!r} {where}: a problem is pairs of a key "
                f"and a whole number, such as mb1ic64ih56oc64kh3ph1; the keys are {' '.join(KEYS)}"
                f"{nearest(re.sub('[^a-z]', '', rest[:3].lower()), KEYS)}"
            )
    try:
        return _shape(tokens, default_n), name, count
    except ProblemError as error:
        raise ProblemError(f"{error} (in {text.strip()!r})") from None


def _read_name(rest: str, where: str) -> tuple[str, int]:
    """The layer's name and how often it occurs: n"conv*3", n"conv"*3, nconv*3, *3."""
    label = rest.strip()
    name = label[1:] if label.startswith("n") else label
    outer = re.fullmatch(r"(?P<name>.*?)(?:\*(?P<count>[0-9]{1,12}))?", name, re.DOTALL)
    assert outer is not None  # the pattern matches every text
    name, times = outer["name"], outer["count"]
    if name.startswith('"'):
        if len(name) < 2 or not name.endswith('"'):
            raise ProblemError(f"the name {name} {where} has no closing quote")
        inner = re.fullmatch(r"(.*?)(?:\*([0-9]{1,12}))?", name[1:-1], re.DOTALL)
        assert inner is not None  # the pattern matches every text
        name, times = inner[1], times or inner[2]
    elif name.startswith("*"):
        raise ProblemError(f"cannot read {label!r} {where}: how often the layer occurs is written *3")
    count = int(times) if times else 1
    if count < 1:
        raise ProblemError(f"the layer {where} occurs *{count} times: it must occur at least once")
    return name, count


def _shape(tokens: dict[str, int], default_n: int) -> ConvShape:
    """The geometry that the keys mean, with everything deduced that they leave out."""
    if not tokens:
        raise ProblemError("the text holds no problem: write, for instance, mb1ic64ih56oc64kh3ph1")
    for key, what in (("ic", "input"), ("oc", "output")):
        if key not in tokens:
            raise ProblemError(f"{key} (the number of {what} channels) is missing")
    for key, value in tokens.items():
        if value < 1 and key not in ("ph", "pw", "dh", "dw"):
            raise ProblemError(f"{key} must be at least 1, not {value}")
    rows, cols = (_keys_of(tokens, axis) for axis in "hw")
    if not rows and not cols:
        raise ProblemError("the input's and the filter's size (ih and kh) are missing")
    if cols and set(rows) <= {"p"} and not rows.get("p"):  # 1-D: height 1
        rows = {"i": 1, "o": 1, "k": 1, "p": 0}
    elif not cols or (set(cols) <= {"p"} and not cols["p"] and "p" not in rows):
        cols = dict(rows)
    else:
        cols = _copy_size(rows, cols)
    height, r, sh, dh, top, bottom = _axis(rows, "h")
    width, s, sw, dw, left, right = _axis(cols, "w")
    return ConvShape(
        tokens.get("mb", default_n), tokens["ic"], height, width, tokens["oc"], r, s, (sh, sw),
        (top, bottom, left, right), (dh + 1, dw + 1), tokens.get("g", 1),
    )  # fmt: skip


def _keys_of(tokens: dict[str, int], axis: str) -> dict[str, int]:
    """{"i": ih, "o": oh, "k": kh, "s": sh, "p": ph, "d": dh} of one axis, as far as given."""
    return {key[0]: value for key, value in tokens.items() if len(key) == 2 and key[1] == axis}


def _copy_size(rows: dict[str, int], cols: dict[str, int]) -> dict[str, int]:
    """A half-given width: input and filter size are copied, what benchdnn reads otherwise is refused."""
    full = {**{key: rows[key] for key in "ik" if key in rows}, **cols}
    for key, default in (("s", 1), ("d", 0)):
        if key not in full and rows.get(key, default) != default:
            raise ProblemError(
                f"{key}h{rows[key]} is given and {key}w is not, though other widths are: benchdnn would take "
                f"{key}w{default}; say {key}w{default} or {key}w{rows[key]}"
            )
    if not {"p", "o"} & full.keys() and (rows.get("p") or ("o" in rows and _axis(rows, "h")[4])):
        raise ProblemError(
            "the height is padded but neither pw nor ow is given, though other widths are: benchdnn would "
            "take pw0; say pw"
        )
    return full


def _axis(given: dict[str, int], axis: str) -> tuple[int, int, int, int, int, int]:
    """(input, filter, stride, 0-based dilation, begin padding, end padding) of one axis."""
    side = "height" if axis == "h" else "width"
    for key, what in (("i", "input"), ("k", "filter")):
        if key not in given:
            raise ProblemError(f"{key}{axis} (the {what}'s {side}) is missing")
    size, taps = given["i"], given["k"]
    stride, dilation = given.get("s", 1), given.get("d", 0)
    extent = (taps - 1) * (dilation + 1) + 1
    if "o" not in given:
        begin = given.get("p", 0)
        return size, taps, stride, dilation, begin, begin
    out = given["o"]
    begin = given["p"] if "p" in given else max(0, int(((out - 1) * stride - size + extent) / 2))
    end = canonical_end(size, begin, out, extent, stride)
    if end < 0:
        fits = output_size(size, begin, 0, extent, stride)
        raise ProblemError(
            f"o{axis}{out} cannot be: i{axis}{size} k{axis}{taps} s{axis}{stride} p{axis}{begin} "
            f"d{axis}{dilation} gives at least {fits}; leave o{axis} out to have it computed"
        )
    return size, taps, stride, dilation, begin, end
