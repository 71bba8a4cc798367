"""Shape files: the convolution layers of a network or paper, with multiplicity and source.

```yaml
source: Simonyan and Zisserman 2014 (arXiv 1409.1556), model D
confirmed: true                # false: from memory, or from a second-hand text
layers:
  - {name: conv1_1, count: 1, shape: "mb1ic3ih224oc64oh224kh3ph1"}
```
Instead of `layers` a `product` of lists makes every combination of a synthetic problem space.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from convbench.descriptor import explicit_fields, parse_descriptor
from convbench.errors import ProblemError, SuiteError
from convbench.problem import ConvShape
from convbench.quantities import whole
from convbench.yamlfile import YamlFile


def text(value: Any) -> str:
    """A YAML value as text that is not empty; numbers are taken as they are written."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ValueError(f"must be text, not {value!r}")
    return str(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def _whole_list(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("the list is empty")
    return [whole(v) for v in values]


Text = Annotated[str, BeforeValidator(text)]
Count = Annotated[int, BeforeValidator(whole)]
Truth = Annotated[bool, BeforeValidator(_truth)]
Numbers = Annotated[list[int], BeforeValidator(_whole_list)]


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Text
    count: Count = 1
    shape: Text


class _Product(BaseModel):
    """Every combination of minibatch, planes, square filter and output size (stride 1, no padding)."""

    model_config = ConfigDict(extra="forbid")
    n: Numbers
    c: Numbers
    k: Numbers
    filter: Numbers
    output: Numbers


class _ShapeFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: Text
    confirmed: Truth
    note: Text = ""
    layers: Annotated[list[_Layer] | None, Field(min_length=1)] = None
    product: _Product | None = None


@dataclass(frozen=True)
class Layer:
    """A convolution layer: name, how often it occurs, and its shape."""

    name: str
    count: int
    shape: ConvShape


@dataclass(frozen=True)
class ShapeFile:
    """What a shape file holds. `confirmed` is false where the source's own text was not at hand."""

    path: Path
    source: str
    confirmed: bool
    note: str
    layers: tuple[Layer, ...]


def load_shapes(path: Path) -> ShapeFile:
    """Reads a shape file. Raises SuiteError that names file, line and key."""
    file = YamlFile(path)
    model = file.validate(_ShapeFile)
    if (model.layers is None) == (model.product is None):
        raise SuiteError(file.located((), "a shape file has either 'layers' or a 'product'"))
    if model.product is not None:
        layers = _multiply(model.product)
    else:
        layers = [_layer(file, i, layer) for i, layer in enumerate(model.layers or [])]
    return ShapeFile(path, model.source, model.confirmed, model.note, tuple(layers))


def sample_layers(layers: Sequence[Layer], count: int, seed: int) -> list[Layer]:
    """`count` of the layers in their order, chosen by a hash of seed and name: the same on every machine."""
    ranked = sorted(range(len(layers)), key=lambda i: hashlib.sha256(f"{seed}:{layers[i].name}".encode()).digest())
    return [layers[i] for i in sorted(ranked[:count])]


def _layer(file: YamlFile, index: int, layer: _Layer) -> Layer:
    location = ("layers", index, "shape")
    try:
        entry = parse_descriptor(layer.shape)
        if explicit_fields(layer.shape) or entry.name or entry.count != 1:
            raise ProblemError(
                "a shape file holds shapes only: options (--dir ...) belong in a suite, names and counts in their keys"
            )
    except ProblemError as error:
        raise SuiteError(file.located(location, str(error))) from None
    return Layer(layer.name, layer.count, entry.problem.shape)


def _multiply(p: _Product) -> list[Layer]:
    layers = []
    for n, c, k, size, out in itertools.product(p.n, p.c, p.k, p.filter, p.output):
        shape = ConvShape.make(n, c, out + size - 1, out + size - 1, k, size, size)
        layers.append(Layer(f"S{n} f{c} f'{k} k{size} y{out}", 1, shape))
    return layers
