"""The manifest beside each kernel file: which sets of macros rows use, for which GPUs, and what the compiler may take.

```yaml
variants:
  - defines: {TILE: 64}
    architectures: [75, 80, 86, 89, 90, 90a, 100, 120]   # or fewer, with `why`: a sentence
    kernels: {winograd_f4_input: {registers: 96, spill_bytes: 0, stack_bytes: 0}}    # upper limits, everywhere
    sass: {80: {implicit_gemm: [HMMA.16816.F32, LDSM, LDGSTS]}}    # instructions that must be in the machine code
```
Tests hold every variant to it; `devices/cuda.py` asks it which machine code a GPU takes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from convbench import resources
from convbench.cuda.gpu import Gpu
from convbench.errors import KernelError, SuiteError
from convbench.yamlfile import YamlFile

#: What the project compiles for: Turing, Ampere (A100, RTX 30), Ada, Hopper (90a: with wgmma), Blackwell.
ARCHITECTURES = ("75", "80", "86", "89", "90", "90a", "100", "120")
Defines = Iterable[tuple[str, int | str]]


def _architecture(value: Any) -> str:
    if isinstance(value, bool) or str(value) not in ARCHITECTURES:
        raise ValueError(f"must be one of {', '.join(ARCHITECTURES)}, not {value!r}")
    return str(value)


def _macro(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"a macro's value must be a whole number or a word, not {value!r}")
    return value


Architecture = Annotated[str, BeforeValidator(_architecture)]
Macro = Annotated[int | str, BeforeValidator(_macro)]


class Limits(BaseModel):
    """Upper limits for one kernel on every architecture of its variant. spill_bytes: stores and loads, each."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    registers: Annotated[int, Field(gt=0, le=255)]
    spill_bytes: Annotated[int, Field(ge=0)] = 0
    stack_bytes: Annotated[int, Field(ge=0)] = 0


class Variant(BaseModel):
    """One set of macros that a file is compiled with. kernels: all that are in it; sass: architecture -> kernel."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    defines: dict[str, Macro] = {}
    architectures: Annotated[tuple[Architecture, ...], Field(min_length=1)] = ARCHITECTURES
    why: str = ""
    kernels: Annotated[dict[str, Limits], Field(min_length=1)]
    sass: dict[Architecture, dict[str, tuple[str, ...]]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Variant:
        missing = [a for a in ARCHITECTURES if a not in self.architectures]
        if missing and not self.why:
            raise ValueError(f"`why` must say in a sentence why {', '.join(missing)} are not among the architectures")
        if strange := set(self.sass) - set(self.architectures):
            raise ValueError(f"sass names {', '.join(sorted(strange))}, which is not among the architectures")
        if strange := {k for kernels in self.sass.values() for k in kernels} - set(self.kernels):
            raise ValueError(f"sass names {', '.join(sorted(strange))}, which is not among the kernels")
        return self

    def architecture_for(self, gpu: Gpu) -> str | None:
        """Which machine code a GPU runs: its own if listed, else the latest of its generation before it; or None."""
        own = gpu.architecture.removeprefix("sm_")
        if own in self.architectures:
            return own
        number = gpu.compute[0] * 10 + gpu.compute[1]
        plain = [int(a) for a in self.architectures if a.isdecimal()]
        same = [a for a in plain if a // 10 == gpu.compute[0] and a <= number]
        return str(max(same)) if same else None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]


class Manifest:
    """All variants of one kernel file, such as winograd_f4.cu."""

    def __init__(self, file: str, path: Path, variants: tuple[Variant, ...]) -> None:
        self.file, self.path, self.variants = file, path, variants

    def variant(self, defines: Defines) -> Variant:
        """The variant with exactly these macros. Raises KernelError that names the nearest."""
        wanted = dict(defines)
        for variant in self.variants:
            if variant.defines == wanted:
                return variant
        nearest = max(self.variants, key=lambda v: len(v.defines.items() & wanted.items()))
        raise KernelError(
            f"{self.file}: {self.path.name} lists no variant with {written(wanted)}; the nearest is "
            f"{written(nearest.defines)}: add the variant to the manifest"
        )

    def architecture_for(self, defines: Defines, gpu: Gpu) -> str:
        """What a variant is compiled for to run on `gpu`, such as "90a". Raises KernelError where it cannot."""
        variant = self.variant(defines)
        found = variant.architecture_for(gpu)
        if found is None:
            why = f" ({variant.why.rstrip('.')})" if variant.why else ""
            raise KernelError(
                f"{self.file} with {written(variant.defines)} is not made for {gpu.architecture} ({gpu.name}), but "
                f"for {', '.join(variant.architectures)}{why}: choose another algorithm or GPU"
            )
        return found


def load(path: Path) -> Manifest:
    """Reads a manifest. Raises KernelError that names file, line and key; OutputError where it cannot be read."""
    try:
        file = YamlFile(path)
        variants = file.validate(_File).variants
    except SuiteError as error:
        raise KernelError(str(error)) from None
    for i, variant in enumerate(variants):
        for name in variant.defines:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise KernelError(file.located(("variants", i, "defines", name), "not the name of a macro"))
        if any(variant.defines == other.defines for other in variants[:i]):
            message = f"{written(variant.defines)} is listed twice: keep one"
            raise KernelError(file.located(("variants", i, "defines"), message))
    return Manifest(path.with_suffix(".cu").name, path, variants)


@functools.cache
def manifest_of(file: str, folder: Path | None = None) -> Manifest:
    """The manifest beside kernels/cuda/`file`, or beside `folder`/`file`. Raises KernelError where there is none."""
    path = (folder or kernel_folder()) / Path(file).with_suffix(".yaml").name
    if not path.is_file():
        raise KernelError(f"{file}: there is no manifest {path}: list its variants there")
    return load(path)


def kernel_folder() -> Path:
    """kernels/cuda, in a checkout or in an installed wheel."""
    return resources.folder("kernels") / "cuda"


def kernel_files(folder: Path | None = None) -> list[str]:
    """Names of the kernel files, sorted."""
    return sorted(path.name for path in (folder or kernel_folder()).glob("*.cu"))


def variants_of(files: Iterable[str], folder: Path | None = None) -> Iterator[tuple[str, Variant]]:
    """These kernel files, each with each of its variants."""
    for file in files:
        for variant in manifest_of(file, folder).variants:
            yield file, variant


def written(defines: Mapping[str, int | str]) -> str:
    """Macros as text: "TILE=64 STAGES=3", or "no macros"."""
    return " ".join(f"{name}={value}" for name, value in sorted(defines.items())) or "no macros"
