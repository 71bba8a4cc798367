"""YAML files checked against pydantic models; every complaint names file, line and key, and what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from convbench.errors import OutputError, SuiteError
from convbench.nearest import nearest

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]

#: Nodes of the largest file that is read; YAML's aliases can make a small file expand without end.
MOST_NODES = 200_000


class YamlFile:
    """The content of a YAML file as plain values, with the line of every key and item."""

    def __init__(self, path: Path) -> None:
        """Reads `path`. Raises SuiteError for what is not a YAML mapping, OutputError for what cannot be read."""
        self.path = path
        self._lines: dict[Location, int] = {}
        self._nodes = 0
        text = self._read()
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = ", ".join(part for part in (error.context, error.problem) if part)
            raise SuiteError(f"{self._at(mark.line + 1 if mark else 1)}: not valid YAML: {what}") from None
        except yaml.YAMLError as error:
            raise SuiteError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if root is None:
            raise SuiteError(f"{path}: the file is empty")
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            raise SuiteError(f"{self._at(root.start_mark.line + 1)}: keys with values are expected here, not {kind}")
        self.data: dict[str, Any] = self._value(root, (), ())

    def validate(self, model: type[Model]) -> Model:
        """The content as a `model`; SuiteError for the first thing that is wrong."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            problems = error.errors()
            first = min(problems, key=lambda p: (p["type"] == "missing", self.line(p["loc"])))
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise SuiteError(self.located(first["loc"], _sentence(model, dict(first))) + more) from None

    def located(self, location: Location, message: str) -> str:
        """`message` with file, line and key in front."""
        key = ".".join(str(part) if isinstance(part, str) else f"[{part}]" for part in location)
        return f"{self._at(self.line(location))}: {key.replace('.[', '[') or 'file'}: {message}"

    def line(self, location: Location) -> int:
        """The line of the innermost thing in `location` that stands in the file."""
        while location and location not in self._lines:
            location = location[:-1]
        return self._lines.get(location, 1)

    def _at(self, line: int) -> str:
        return f"{self.path}, line {line}"

    def _read(self) -> str:
        try:
            return self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SuiteError(f"{self.path}: not UTF-8 text (byte {error.start})") from None
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror}") from error

    def _value(self, node: yaml.Node, location: Location, within: tuple[yaml.Node, ...]) -> Any:
        """A node as a plain value; notes its line."""
        line = node.start_mark.line + 1
        self._lines.setdefault(location, line)
        self._nodes += 1
        if node in within or self._nodes > MOST_NODES:
            raise SuiteError(f"{self._at(line)}: the aliases (&, *) here expand without end")
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*location, i), (*within, node)) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self._scalar(node, line)
        values: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise SuiteError(f"{self._at(key_line)}: a key must be a word, not a list or a mapping")
            key = str(key_node.value)
            if key in values:
                raise SuiteError(
                    f"{self._at(key_line)}: duplicate key {key!r} (first on line {first_line[key]}): keep one"
                )
            first_line[key] = key_line
            self._lines[(*location, key)] = key_line
            values[key] = self._value(value_node, (*location, key), (*within, node))
        return values

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            what = getattr(error, "problem", None) or error
            raise SuiteError(f"{self._at(line)}: cannot read the value {node.value!r}: {what}") from None


def _sentence(model: type[BaseModel], error: dict[str, Any]) -> str:
    """What pydantic found, in words that say what was meant."""
    kind, location = error["type"], error["loc"]
    if kind == "extra_forbidden":
        known = _keys(model, location[:-1])
        return f"unknown key {location[-1]!r}; the keys here are {', '.join(known)}{nearest(location[-1], known)}"
    if kind == "missing":
        return f"the key {location[-1]!r} is missing"
    if kind in ("model_type", "model_attributes_type"):
        return f"keys with values are expected here, not {error['input']!r}"
    if kind == "too_short":
        return "the list is empty"
    if kind.endswith("_type"):
        return f"{error['msg']}, not {error['input']!r}"
    return str(error["msg"]).removeprefix("Value error, ")


def _keys(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that `model` knows at `location` (list positions and union tags are passed over)."""
    for part in location:
        for name, field in model.model_fields.items():
            inner = _model_in(field.annotation)
            if part == (field.alias or name) and inner is not None:
                model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first pydantic model inside an annotation such as list[Layer] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_in(part)
        if found is not None:
            return found
    return None
