"""The keys of a suite file and what each may hold, as pydantic models; `suite.py` says what they mean."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from convbench.nearest import nearest
from convbench.problem import INPUTS, ITEM_BYTES, LAYOUTS, Pass, Semantics
from convbench.quantities import fraction, seconds, size_bytes, whole
from convbench.shapes import Count, Text, text

DEVICES = ("cpu", "cuda")
CHOICES: dict[str, tuple[str, ...]] = {
    "pass": tuple(str(p) for p in Pass),
    "dtype": tuple(ITEM_BYTES),
    "layout": LAYOUTS,
    "weights": ("raw", "packed"),
    "mode": ("hot", "cold"),
    "semantics": tuple(str(s) for s in Semantics),
    "inputs": INPUTS,
}
AXES = ("batch", "pass", "dtype", "layout", "weights", "threads", "mode", "semantics", "inputs")
DEFAULT_AXES: dict[str, list[Any]] = {
    "batch": [None],
    "pass": ["fwd"],
    "dtype": ["float32"],
    "layout": ["nchw"],
    "weights": ["raw"],
    "threads": ["all"],
    "mode": ["hot"],
    "semantics": ["linear"],
    "inputs": ["normal"],
}


def axis_values(axis: str, value: Any) -> list[Any]:
    """A value, a list or comma-separated text as the list of an axis' values; ValueError says what was meant."""
    parse: Callable[[Any], Any]
    if axis == "batch":
        parse = whole
    elif axis == "threads":
        parse = _threads
    else:
        parse = partial(_choice, CHOICES[axis])
    return list(dict.fromkeys(parse(v) for v in _listed(value)))


def device_name(value: Any) -> str:
    """The device that a suite runs on; ValueError for anything but its name."""
    return _choice(DEVICES, value)


def texts(value: Any) -> list[str]:
    """Text or a list of texts as a list; ValueError for anything else."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [text(v) for v in values]


def _listed(value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    split = [part.strip() if isinstance(part, str) else part for v in values for part in _commas(v)]
    if not split:
        raise ValueError("the list is empty: name at least one value, or leave the key out")
    return split


def _commas(value: Any) -> list[Any]:
    return value.split(",") if isinstance(value, str) else [value]


def _choice(allowed: tuple[str, ...], value: Any) -> str:
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}, not {value!r}{nearest(value, list(allowed))}")
    return str(value)


def _threads(value: Any) -> int | str:
    if value == "all":
        return "all"
    try:
        return whole(value)
    except ValueError:
        raise ValueError(f"must be a number of cores or 'all', not {value!r}") from None


def _axis(axis: str) -> BeforeValidator:
    return BeforeValidator(partial(axis_values, axis))


def _problem(value: Any) -> Any:
    """Text as a mapping: {file} where it is the name of a YAML file, else {descriptor}."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a shape file, a descriptor or {{file: ..., sample: ...}}, not {value!r}")
    name = value.strip()
    return {"file": name} if name.endswith((".yaml", ".yml")) else {"descriptor": value}


def _some(value: Any) -> list[Any]:
    """A list with something in it; a single value becomes one."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError("the list is empty")
    return values


def _some_texts(value: Any) -> list[str]:
    return texts(_some(value))


def _seed(value: Any) -> int:
    return whole(value, 0)


Texts = Annotated[list[str], BeforeValidator(texts)]
Seconds = Annotated[float, BeforeValidator(seconds)]
Seed = Annotated[int, BeforeValidator(_seed)]


class Axes(BaseModel):
    """What is varied; each key a value or a list."""

    model_config = ConfigDict(extra="forbid")
    batch: Annotated[list[int] | None, _axis("batch")] = None
    pass_: Annotated[list[str] | None, _axis("pass"), Field(alias="pass")] = None
    dtype: Annotated[list[str] | None, _axis("dtype")] = None
    layout: Annotated[list[str] | None, _axis("layout")] = None
    weights: Annotated[list[str] | None, _axis("weights")] = None
    threads: Annotated[list[int | str] | None, _axis("threads")] = None
    mode: Annotated[list[str] | None, _axis("mode")] = None
    semantics: Annotated[list[str] | None, _axis("semantics")] = None
    inputs: Annotated[list[str] | None, _axis("inputs")] = None


class Sample(BaseModel):
    """So many of a file's layers, chosen by the seed."""

    model_config = ConfigDict(extra="forbid")
    count: Count
    seed: Seed = 0


class ProblemItem(BaseModel):
    """A shape file, whole or sampled, or a descriptor; `axes` of its own replace the suite's for it."""

    model_config = ConfigDict(extra="forbid")
    file: Text = ""
    sample: Sample | None = None
    descriptor: Text = ""
    axes: Axes | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> ProblemItem:
        if bool(self.file) == bool(self.descriptor):
            raise ValueError("either 'file' or 'descriptor' is expected here")
        if self.sample and not self.file:
            raise ValueError("'sample' belongs to a 'file'")
        return self


class PolicyFile(BaseModel):
    """A suite's `policy`; what is left out keeps the default of suite.Policy. Field names are that class's."""

    model_config = ConfigDict(extra="forbid")
    time_budget_s: Annotated[Seconds | None, Field(alias="time_budget")] = None
    min_blocks: Count | None = None
    min_time_s: Annotated[Seconds | None, Field(alias="min_time")] = None
    ci_target: Annotated[float | None, BeforeValidator(fraction)] = None
    workspace_limit_bytes: Annotated[int | None, BeforeValidator(size_bytes), Field(alias="workspace_limit")] = None
    seed: Seed | None = None
    max_blocks: Count | None = None
    case_timeout_s: Annotated[Seconds | None, Field(alias="case_timeout")] = None


class SuiteFile(BaseModel):
    """A whole suite file."""

    model_config = ConfigDict(extra="forbid")
    title: Text = ""
    device: Annotated[str, BeforeValidator(device_name)] = "cpu"
    problems: Annotated[list[Annotated[ProblemItem, BeforeValidator(_problem)]], BeforeValidator(_some)]
    axes: Axes = Axes()
    algorithms: Annotated[list[str], BeforeValidator(_some_texts)] = ["*"]
    exclude: Texts = []
    baseline: Texts | None = None
    policy: PolicyFile | None = None
