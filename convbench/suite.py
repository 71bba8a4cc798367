"""Suites: which problems to run, with which algorithms, for how long. YAML file -> Suite -> [ProblemCase].

```yaml
title: VGG-16, every convolution, forward and both gradients
problems: [shapes/vgg16.yaml, 'ic64ih56oc64oh56kh3ph1n"conv"']     # files, or descriptors
axes: {batch: [1], pass: [fwd, bwd_data, bwd_weights], dtype: [float32], layout: [nchw], weights: [raw],
       threads: [all], mode: [hot], semantics: [linear], inputs: [normal]}
algorithms: ["*"]                        # names or globs over names; exclude: [...]
baseline: [onednn, torch, im2col_numpy]  # the first that is available
policy: {time_budget: 10 min, min_blocks: 8, min_time: 0.2 s, ci_target: 3 %, workspace_limit: 4 GiB, seed: 0}
```
A big shape file can be sampled: `problems: [{file: shapes/fbfft_space.yaml, sample: {count: 64, seed: 0}}]`; an item
may have axes of its own, which replace the suite's: `{file: shapes/vgg16.yaml, axes: {dtype: [float16]}}`.
`device: cuda` means the rows of a GPU, and one CPU thread; `--device` says it for any suite.
Every error names file, line and key (or the command line's option), and what was meant. No algorithm is imported.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convbench import formats, resources
from convbench.descriptor import KEYS, explicit_fields, parse_descriptor
from convbench.errors import ProblemError, SuiteError, UnknownAlgorithm
from convbench.nearest import nearest
from convbench.problem import ConvShape, Pass, Problem, Semantics
from convbench.quantities import seconds, whole
from convbench.shapes import Layer, load_shapes, sample_layers
from convbench.suitefile import AXES, DEFAULT_AXES, ProblemItem, SuiteFile, axis_values, device_name, texts
from convbench.yamlfile import YamlFile

BASELINE = (
    "onednn", "onednn_int8", "onednn_bf16", "onednn_fp16", "torch", "torch_bf16", "torch_fp16", "im2col_numpy"
)  # fmt: skip
OVERRIDES = (*AXES, "match", "algorithm", "seed", "quick", "budget", "device")
_DESCRIPTOR = re.compile(rf"\s*(--|(onednn|dnnl|mkldnn)_verbose,|({'|'.join((*KEYS, 'id', 'od', 'kd'))})\d)")


@dataclass(frozen=True)
class Policy:
    """How long and how precisely to measure. Times in seconds, `ci_target` as a fraction of the median."""

    time_budget_s: float = 600.0
    min_blocks: int = 8
    min_time_s: float = 0.2
    ci_target: float = 0.03
    workspace_limit_bytes: int = 4 * 2**30
    seed: int = 0
    max_blocks: int = 200
    case_timeout_s: float = 120.0

    def quick(self) -> Policy:
        """A fifth of the time, and far less asked of the intervals."""
        return replace(
            self,
            time_budget_s=self.time_budget_s / 5,
            min_blocks=min(self.min_blocks, 3),
            min_time_s=min(self.min_time_s, 0.05),
            ci_target=max(self.ci_target, 0.1),
            max_blocks=min(self.max_blocks, 32),
        )


@dataclass(frozen=True)
class Entry:
    """One layer of a suite. `fixed` is what its descriptor's options settle (pass, dtype, layout, semantics).

    axes: those of its own, which replace the suite's; the command line's go before both.
    """

    label: str
    count: int
    shape: ConvShape
    fixed: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, list[Any]] = field(default_factory=dict)


@dataclass
class Suite:
    """What a suite file says. `axes` has a list for each of AXES; batch [None] keeps each shape's own N.

    `path` is None for a suite made out of one descriptor; `sha` covers the suite and its shape files; `asked` are
    the axes that the command line set, and "algorithm" where it named those.
    """

    name: str
    title: str
    path: Path | None
    sha: str
    entries: list[Entry]
    axes: dict[str, list[Any]]
    algorithms: list[str]
    exclude: list[str]
    baseline: list[str]
    policy: Policy
    asked: set[str] = field(default_factory=set)
    device: str = "cpu"


@dataclass(frozen=True)
class ProblemCase:
    """A problem with the options it runs under; one case for each algorithm comes of it."""

    problem: Problem
    weights: str
    threads: int
    mode: str
    seed: int
    label: str = ""
    count: int = 1
    inputs: str = "normal"


def is_descriptor(text: str) -> bool:
    """True for what is meant as a problem (options, a verbose line, ic64...), not as the name of a suite."""
    return _DESCRIPTOR.match(text) is not None


def open_suite(text: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """A suite by name, path or descriptor, as the command line takes it."""
    return suite_from_descriptor(text, overrides) if is_descriptor(text) else load_suite(text, overrides)


def load_suite(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Suite:
    """Reads a suite. Raises SuiteError for anything that cannot be understood, in the file or the overrides.

    `overrides` are the command line's options without dashes (OVERRIDES): the axes replace the suite's,
    "match" keeps layers by label, "algorithm" replaces `algorithms` and `exclude`, "quick" shortens the policy,
    "budget" ("12 min") replaces its time budget.
    """
    path = resources.find_suite(name_or_path)
    file = YamlFile(path)
    model = file.validate(SuiteFile)
    entries, files = _entries(file, model)
    given = model.axes.model_dump(by_alias=True, exclude_none=True)
    _no_contradiction(file, entries, given)
    policy = Policy(**{key: value for key, value in model.policy if value is not None}) if model.policy else Policy()
    if policy.max_blocks < policy.min_blocks:
        raise SuiteError(
            file.located(
                ("policy", "max_blocks"), f"{policy.max_blocks} is below min_blocks, which is {policy.min_blocks}"
            )
        )
    suite = Suite(
        name=path.stem,
        title=model.title or path.stem,
        path=path,
        sha=_digest([path, *files]),
        entries=[entry for _, entry in entries],
        axes={**DEFAULT_AXES, **given},
        algorithms=model.algorithms,
        exclude=model.exclude,
        baseline=model.baseline if model.baseline is not None else list(BASELINE),
        policy=policy,
        device=model.device,
    )
    return _override(suite, overrides or {})


def suite_from_descriptor(text: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """A suite of the one problem that `text` describes. Raises ProblemError, or SuiteError for an override."""
    entry = parse_descriptor(text)
    shape = entry.problem.shape
    suite = Suite(
        name="descriptor",
        title=f"One problem: {text.strip()}",
        path=None,
        sha=hashlib.sha256(text.strip().encode()).hexdigest(),
        entries=[Entry(entry.name or _short(shape), entry.count, shape, explicit_fields(text))],
        axes=dict(DEFAULT_AXES),
        algorithms=["*"],
        exclude=[],
        baseline=list(BASELINE),
        policy=Policy(time_budget_s=120.0),
    )
    return _override(suite, overrides or {})


def expand(suite: Suite, *, cores: int) -> list[ProblemCase]:
    """The product of the axes over the problems, in a fixed order; equal cases become one (counts are added).

    threads "all" is `cores`. Backward weights has no packed case. Raises SuiteError for an empty product.
    """
    return _expand(suite, cores)[0]


def expansion_notes(suite: Suite, *, cores: int) -> list[str]:
    """Sentences on what `expand` left out: passes that pack no weights, formats without meaning, descriptors."""
    return _expand(suite, cores)[1]


def select(names: Iterable[str], algorithms: Sequence[str], exclude: Sequence[str] = ()) -> list[str]:
    """The names that a glob of `algorithms` takes and none of `exclude`, in the order of `names`.

    Raises UnknownAlgorithm for a name that is not there or a glob that takes nothing, with the nearest name.
    """
    known = list(names)
    chosen: set[str] = set()
    for pattern in algorithms:
        found = set(fnmatch.filter(known, pattern))
        if not found:
            raise UnknownAlgorithm(_unknown(pattern, known))
        chosen |= found
    for pattern in exclude:
        found = set(fnmatch.filter(known, pattern))
        if not found and not _is_glob(pattern):
            raise UnknownAlgorithm(f"exclude: {_unknown(pattern, known)}")
        chosen -= found
    if not chosen:
        raise UnknownAlgorithm(
            f"no algorithm is left: {', '.join(algorithms) or 'nothing'} without {', '.join(exclude) or 'nothing'}"
        )
    return [name for name in known if name in chosen]


# ---- reading


def _entries(file: YamlFile, model: SuiteFile) -> tuple[list[tuple[int, Entry]], list[Path]]:
    """(position in `problems`, entry) of each layer, and the shape files that were read."""
    entries: list[tuple[int, Entry]] = []
    files: list[Path] = []
    several = len({item.file for item in model.problems if item.file}) > 1
    for i, item in enumerate(model.problems):
        location = ("problems", i)
        if item.file:
            path = _shape_file(file, location, item.file)
            files.append(path)
            prefix = f"{path.stem}:" if several else ""
            layers = _sampled(file, location, item, load_shapes(path).layers)
            own = _axes_of(item)
            entries += [(i, Entry(prefix + layer.name, layer.count, layer.shape, axes=own)) for layer in layers]
            continue
        try:
            parsed = parse_descriptor(item.descriptor)
        except ProblemError as error:
            raise SuiteError(file.located(location, str(error))) from None
        shape = parsed.problem.shape
        fixed = explicit_fields(item.descriptor)
        entries.append((i, Entry(parsed.name or _short(shape), parsed.count, shape, fixed, _axes_of(item))))
    return entries, files


def _axes_of(item: ProblemItem) -> dict[str, list[Any]]:
    return item.axes.model_dump(by_alias=True, exclude_none=True) if item.axes else {}


def _sampled(file: YamlFile, at: tuple[str | int, ...], item: ProblemItem, layers: Sequence[Layer]) -> Sequence[Layer]:
    if item.sample is None:
        return layers
    if item.sample.count > len(layers):
        raise SuiteError(
            file.located((*at, "sample", "count"), f"{item.sample.count} of {len(layers)} layers cannot be taken")
        )
    return sample_layers(layers, item.sample.count, item.sample.seed)


def _shape_file(file: YamlFile, location: tuple[str | int, ...], name: str) -> Path:
    """The shape file beside the suite, or the built-in one of that name."""
    folders = [file.path.parent, resources.folder("suites")]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    known = sorted({str(p.relative_to(f)) for f in folders for p in f.glob("shapes/*.yaml")})
    raise SuiteError(file.located(location, f"there is no shape file {folders[0] / name}{nearest(name, known)}"))


def _short(s: ConvShape) -> str:
    """A label for a layer without a name: 64x56x56-64 3x3."""
    groups = f" g{s.groups}" if s.groups > 1 else ""
    stride = f" s{s.stride[0]}" if s.stride[0] == s.stride[1] else f" s{s.stride[0]}x{s.stride[1]}"
    return f"{s.c}x{s.h}x{s.w}-{s.k} {s.r}x{s.s}{'' if s.stride == (1, 1) else stride}{groups}"


def _no_contradiction(file: YamlFile, entries: list[tuple[int, Entry]], axes: Mapping[str, list[Any]]) -> None:
    for i, entry in entries:
        for axis, value in entry.fixed.items():
            if axis in axes and axes[axis] != [value]:
                said = ", ".join(str(v) for v in axes[axis])
                raise SuiteError(
                    file.located(
                        ("problems", i),
                        f"the descriptor says {axis} {value}, but axes.{axis} (line {file.line(('axes', axis))}) says "
                        f"{said}: take one of them away",
                    )
                )


def _digest(paths: Iterable[Path]) -> str:
    """One hash over the suite and its shape files."""
    return hashlib.sha256("".join(resources.sha256(path) for path in paths).encode()).hexdigest()


# ---- the command line's options


def _override(suite: Suite, overrides: Mapping[str, Any]) -> Suite:
    """The suite with the command line's options applied; None, False and () mean that one was not given."""
    for key, value in overrides.items():
        if key not in OVERRIDES:
            raise SuiteError(f"unknown option --{key}{nearest(key, list(OVERRIDES))}")
        if value is None or value is False or (isinstance(value, list | tuple) and not value):
            continue
        try:
            _apply(suite, key, value)
        except ValueError as error:
            raise SuiteError(f"--{key}: {error}") from None
    return suite


def _apply(suite: Suite, key: str, value: Any) -> None:
    """One option; ValueError for a bad value."""
    if key in AXES:
        suite.axes[key] = axis_values(key, value)
        suite.asked.add(key)
    elif key == "seed":
        suite.policy = replace(suite.policy, seed=whole(value, 0))
    elif key == "budget":
        suite.policy = replace(suite.policy, time_budget_s=seconds(value))
    elif key == "device":
        suite.device = device_name(value)
    elif key == "algorithm":
        suite.algorithms, suite.exclude = texts(value), []
        suite.asked.add(key)
    elif key == "match":
        suite.entries = _matching(suite.entries, texts(value))
    else:
        suite.policy = suite.policy.quick()


def _matching(entries: list[Entry], patterns: list[str]) -> list[Entry]:
    """Entries whose label a pattern is part of, or fits as a glob or a regular expression."""
    kept = [entry for entry in entries if any(_fits(entry.label, pattern) for pattern in patterns)]
    if not kept:
        labels = [entry.label for entry in entries]
        some = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        said = " or ".join(repr(p) for p in patterns)
        raise ValueError(f"no layer fits {said}; the layers are {some}{nearest(patterns[0], labels)}")
    return kept


def _fits(label: str, pattern: str) -> bool:
    if pattern in label or fnmatch.fnmatchcase(label, pattern):
        return True
    try:
        return re.search(pattern, label) is not None
    except re.error:
        return False


# ---- expanding


def _expand(suite: Suite, cores: int) -> tuple[list[ProblemCase], list[str]]:
    counts = _unique(cores if t == "all" else t for t in suite.axes["threads"])
    axes = {**suite.axes, "threads": counts if suite.device == "cpu" else [1]}
    cases: dict[ProblemCase, ProblemCase] = {}
    notes: dict[str, None] = {}
    for threads in axes["threads"]:  # outermost: another number of threads means other worker processes
        for entry in suite.entries:
            for problem, weights, mode, inputs in _of_entry(entry, axes, suite.asked, notes):
                key = ProblemCase(problem, weights, threads, mode, suite.policy.seed, inputs=inputs)
                old = cases.get(key)
                cases[key] = _joined(old, entry) if old else replace(key, label=entry.label, count=entry.count)
    if not cases:
        raise SuiteError(
            f"suite {suite.name}: the product of problems and axes is empty{''.join(f': {n}' for n in notes)}"
        )
    return list(cases.values()), list(notes)


def _of_entry(
    entry: Entry, axes: Mapping[str, list[Any]], asked: set[str], notes: dict[str, None]
) -> Iterable[tuple[Problem, str, str, str]]:
    """(problem, weights, mode, inputs) for each combination of the axes that one layer takes part in."""
    own = {**axes, **{axis: values for axis, values in entry.axes.items() if axis not in asked}}
    for axis in ("pass", "dtype", "layout", "semantics"):
        if axis not in entry.fixed:
            continue
        own[axis] = [entry.fixed[axis]]
        if axis in asked and entry.fixed[axis] not in axes[axis]:
            wanted = ", ".join(axes[axis])
            notes[f"{entry.label} is left out: its descriptor says {axis} {entry.fixed[axis]}, not {wanted}"] = None
            return
    order = ("batch", "pass", "dtype", "layout", "weights", "mode", "semantics", "inputs")
    combinations = itertools.product(*(own[axis] for axis in order))
    for batch, pass_, dtype, layout, weights, mode, semantics, inputs in combinations:
        if weights == "packed" and pass_ == Pass.BACKWARD_WEIGHTS:
            if own["weights"] == ["packed"]:
                notes["bwd_weights with packed weights is left out: there are no weights to pack"] = None
            continue
        shape = entry.shape if batch is None else replace(entry.shape, n=batch)
        problem = Problem(shape, Pass(pass_), dtype, layout, Semantics(semantics))
        sense = formats.undefined(problem)
        if sense:
            notes[f"left out: {sense}"] = None
            continue
        yield problem, weights, mode, inputs


def _joined(old: ProblemCase, entry: Entry) -> ProblemCase:
    """A case that a second layer of the same shape joins."""
    labels = old.label if entry.label in old.label.split(", ") else f"{old.label}, {entry.label}"
    return replace(old, label=labels, count=old.count + entry.count)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _is_glob(pattern: str) -> bool:
    return any(ch in pattern for ch in "*?[")


def _unknown(pattern: str, known: list[str]) -> str:
    """The sentence for a name or glob that takes nothing."""
    family = [name for name in known if name.startswith(f"{pattern}_")]
    if family and not _is_glob(pattern):
        return f"there is no algorithm {pattern!r}; did you mean '{pattern}_*' ({', '.join(family)})?"
    what = "no algorithm fits" if _is_glob(pattern) else "there is no algorithm"
    hint = nearest(pattern.replace("*", ""), known)
    return f"{what} {pattern!r}{hint or '; see `convbench list`'}"
