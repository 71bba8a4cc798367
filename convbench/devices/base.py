"""What every device offers: a context for `prepare`, and `make_plan`, the one way to a runnable plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convbench.problem import Problem
from convbench.registry import Context, Implementation


class HostClock:
    """The sampler's clock: deadlines and pauses are the host's, `flush` is the device's."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        return time.perf_counter_ns()

    def pause(self, seconds: float) -> None:
        """Sleeps."""
        time.sleep(seconds)

    def flush(self) -> None:
        """Writes more than the device's last cache holds, and waits for it: outside of what is timed."""
        self._device.flush_cache()


@dataclass
class Peak:
    """Most bytes that were allocated at a time while somebody watched."""

    n_bytes: int = 0


@dataclass
class Plan:
    """A prepared implementation; `run(a, b, out)` looks the same for raw and packed weights.

    Not thread-safe: one plan, one thread at a time.
    """

    implementation: Implementation
    problem: Problem
    weights: str
    call: Callable[..., None]
    setup_ns: int
    context: Any
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def workspace_bytes(self) -> int:
        """Bytes taken through the context so far."""
        return int(self.context.workspace_bytes)

    @property
    def pack(self) -> Callable[[Any, Any], None] | None:
        """pack(a, b): what run(a, b, out) does to convert its operands, without the products; None: no such phase."""
        pack = getattr(self.call, "pack", None)
        if pack is None or self.weights == "raw":
            return pack
        return lambda a, b: pack(a)

    def run(self, a: Any, b: Any, out: Any) -> None:
        """One convolution; with packed weights `b` is ignored, because prepare() has it."""
        if self.weights == "packed":
            self.call(a, out)
        else:
            self.call(a, b, out)


def make_plan(implementation: Implementation, problem: Problem, context: Context, weights: Any = None) -> Plan:
    """Prepares, with the time it took. `weights` (an array) means packed."""
    start = time.perf_counter_ns()
    if weights is None:
        call = implementation.prepare(problem, context)
    else:
        call = implementation.prepare(problem, context, weights=weights)
    setup_ns = time.perf_counter_ns() - start
    mode = "raw" if weights is None else "packed"
    return Plan(implementation, problem, mode, call, setup_ns, context, getattr(context, "notes", {}))
