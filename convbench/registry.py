"""The contract every convolution implementation keeps, and the table of those that are registered.

Standard library only; knows no algorithm. `catalog.py` fills it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from convbench.errors import RegistrationError
from convbench.formats import PASSES
from convbench.problem import ITEM_BYTES, LAYOUTS, Pass, Problem, Semantics

ALL_PASSES = (Pass.FORWARD, Pass.BACKWARD_DATA, Pass.BACKWARD_WEIGHTS)

Run = Callable[..., None]


class Context(Protocol):
    """What a device hands to `Implementation.prepare`; see `devices/`."""

    xp: Any
    threads: int
    stream: Any

    def empty(self, shape: tuple[int, ...] | int, dtype: Any) -> Any:
        """A contiguous, aligned workspace array, poisoned (NaN in floats), counted in workspace_bytes."""

    def account(self, n_bytes: int, what: str) -> None:
        """Counts memory that a library allocates for itself (a scratchpad, packed weights)."""

    def note(self, key: str, value: str) -> None:
        """A fact for the record; key "vendor_impl" says what a vendor library picked."""


class Implementation:
    """One row of every table: a stateless way to compute convolutions on one device.

    Subclass, fill in the class attributes, implement `prepare`, and decorate with `@register`.
    `limits(problem) is None` is a promise to be right.
    """

    name: ClassVar[str]
    device: ClassVar[str] = "cpu"
    passes: ClassVar[tuple[Pass, ...]] = ALL_PASSES
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    layouts: ClassVar[tuple[str, ...]] = LAYOUTS
    semantics: ClassVar[Semantics] = Semantics.LINEAR
    #: What the machine multiplies in; "native" means the problem's own dtype (int8 summed in int32: "int8-acc32").
    #: Error bounds use its eps.
    arithmetic: ClassVar[str] = "native"
    #: Modules that must be importable, and the extra of convbench that brings them.
    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    #: True for a vendor's library: a candidate for baseline.
    vendor: ClassVar[bool] = False
    #: |error| <= error_growth * eps * sqrt(n) * sqrt(x^2 * w^2); justify the number in the class docstring.
    error_growth: ClassVar[float] = 2.0
    #: The n of that bound is at most this: sums that run in blocks (BLAS) round like shorter ones. None: no limit.
    error_length: ClassVar[int | None] = None
    #: True where integer inputs within range give exactly the integer result.
    exact_on_integers: ClassVar[bool] = True
    #: Which thread pool works; a pause goes before a sample where another pool ran last.
    pool: ClassVar[str] = "openblas"
    #: Paper and section.
    reference: ClassVar[str] = ""

    def limits(self, problem: Problem) -> str | None:
        """A sentence on why this problem cannot be computed, or None: a promise to be right."""
        return None

    def workspace_estimate(self, problem: Problem) -> int:
        """Bytes that prepare() and run() will need beside the operands, before anything is allocated."""
        raise NotImplementedError(f"{type(self).__name__} must implement workspace_estimate(problem)")

    def packed_estimate(self, problem: Problem) -> int:
        """As workspace_estimate, with packed weights: by default the same and a copy of the filter."""
        s = problem.shape
        return self.workspace_estimate(problem) + s.k * s.cg * s.r * s.s * problem.item_bytes

    def executed_flops(self, problem: Problem) -> dict[str, float]:
        """Floating-point operations really executed, by phase."""
        return {"multiply": float(problem.direct_flops)}

    def error_footprint(self, problem: Problem) -> tuple[int, int] | None:
        """(height, width) of the block of the result that shares one transform; None: errors are element-wise.

        Blocks are aligned to multiples of (height, width) in the result's two spatial axes.
        """
        return None

    def prepare(self, problem: Problem, context: Context, weights: Any = None) -> Run:
        """Untimed: buffers, plans, compilation. Returns run(a, b, out), all that the clock sees.

        With `weights` (forward and backward data only) the filter is transformed here, and the returned
        callable is run(a, out). run() keeps no pointer to its arguments and may be given other arrays at each
        call; arrays are C-contiguous and 64-byte aligned and never overlap.

        The callable may carry an attribute `pack` (`with_packing`): a callable with its arguments but `out` that does
        of run() only what converts operands before they are multiplied (signs packed, scales found, numbers quantised,
        strips filled), into the plan's workspace; run() relies on nothing that it leaves there. It is timed by itself
        beside run(), which contains the same. Whoever has no such phase has no `pack`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement prepare(problem, context, weights)")

    # ---- what follows is the same for every implementation

    def estimate(self, problem: Problem, weights: str = "raw") -> int:
        """Bytes of workspace expected for a case."""
        return int(self.packed_estimate(problem) if weights == "packed" else self.workspace_estimate(problem))

    @property
    def family(self) -> str:
        """First word of the name: direct, im2col, fft, winograd ..."""
        return self.name.split("_")[0]

    def why_not(self, problem: Problem, weights: str = "raw") -> str | None:
        """One sentence on why this case is unsupported, or None."""
        for what, value, have in (
            ("pass", problem.pass_, self.passes),
            ("dtype", problem.dtype, self.dtypes),
            ("layout", problem.layout, self.layouts),
            ("semantics", problem.semantics, (self.semantics,)),
        ):
            if value not in have:
                return f"{self.name}: {what} must be {' or '.join(have)}, not {value}"
        if weights == "packed" and problem.pass_ is Pass.BACKWARD_WEIGHTS:
            return f"{self.name}: backward weights has no weights to pack"
        if problem.overflow:
            return f"{self.name}: {problem.overflow}"
        return self.limits(problem)

    def unavailable(self) -> str | None:
        """One sentence on what is missing on this machine, or None."""
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                extra = f"'convbench[{self.extra}]'" if self.extra else module
                return f"{self.name} needs {module}: pip install {extra}"
        return None


def bind_weights(run: Run, weights: Any, context: Context) -> Run:
    """For implementations with nothing to pack: run(a, b, out) as it is, or run(a, out) over a private copy."""
    if weights is None:
        return run
    kept = context.empty(weights.shape, weights.dtype)
    kept[...] = weights
    return lambda a, out: run(a, kept, out)


def with_packing(run: Run, pack: Run) -> Run:
    """run, carrying `pack`: see Implementation.prepare."""
    run.pack = pack  # type: ignore[attr-defined]
    return run


_implementations: dict[str, Implementation] = {}


def register(cls: type[Implementation]) -> type[Implementation]:
    """Class decorator: adds one row. Raises RegistrationError with the rule that the class breaks."""
    _check_contract(cls)
    if cls.name in _implementations:
        other = type(_implementations[cls.name])
        raise RegistrationError(
            f"algorithm {cls.name!r} is registered twice: by {other.__module__}.{other.__qualname__} and by "
            f"{cls.__module__}.{cls.__qualname__}; give one another name"
        )
    _implementations[cls.name] = cls()
    return cls


def implementations() -> dict[str, Implementation]:
    """All registered implementations by name, sorted."""
    return dict(sorted(_implementations.items()))


def unregister(name: str) -> None:
    """Takes one row away (tests, and a plug-in that breaks half-way through its import)."""
    _implementations.pop(name, None)


def _check_contract(cls: type[Implementation]) -> None:
    where = f"{cls.__module__}.{cls.__qualname__}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise RegistrationError(f"{where}: name must be lower_case words joined by _, not {name!r}")
    if not cls.vendor and "_" not in name:
        raise RegistrationError(f"{where}: {name!r} is a family name; a registered name is family_variant_tier")
    for attribute, allowed in (("passes", tuple(Pass)), ("dtypes", tuple(ITEM_BYTES)), ("layouts", LAYOUTS)):
        values = getattr(cls, attribute)
        if not isinstance(values, tuple) or not values or not set(values) <= set(allowed):
            raise RegistrationError(f"{where}: {attribute} must be a tuple out of {allowed}, not {values!r}")
    if cls.semantics is not Semantics.LINEAR:
        for attribute, defined in (("passes", PASSES[cls.semantics]), ("dtypes", ("float32",))):
            if not set(getattr(cls, attribute)) <= set(defined):
                raise RegistrationError(
                    f"{where}: semantics {cls.semantics} is defined for {attribute} out of {defined}, not "
                    f"{getattr(cls, attribute)!r}"
                )
    if cls.error_growth <= 0:
        raise RegistrationError(f"{where}: error_growth must be > 0, not {cls.error_growth}")
    for method in ("prepare", "workspace_estimate"):
        if getattr(cls, method) is getattr(Implementation, method):
            raise RegistrationError(f"{where}: {method}() is not implemented")
