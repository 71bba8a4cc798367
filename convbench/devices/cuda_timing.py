"""Timing on a GPU: events on the plan's own stream, launches hidden by a graph (hot), one call after a flush (cold).

Three ways to measure nothing are refused, each with its sentence: a graph whose replay leaves the result unwritten,
events that cover far less than the device was busy, and events with no time between them. All three mean work on
another stream than the context's, or events that are not around it.
"""

from __future__ import annotations

import time
from typing import Any

from convbench.devices.arrays import as_real, namespace, poison
from convbench.errors import ConvbenchError

#: Runs in one captured graph; the gap between two graphs is lost in so many.
GRAPH_RUNS = 32
#: Of the host's time between two synchronisations the events must cover at least this share, once enough is at stake.
LEAST_COVERED, AT_STAKE_NS = 0.5, 1_000_000
PROBE_NS, PROBE_RUNS = 5_000_000, 100
ENERGY_S = 0.3  # the counter moves in steps of some 20 to 100 ms


class TimingError(ConvbenchError):
    """A run whose time cannot be had in an honest way."""


class CudaTimer:
    """Times a verified plan on its operands (a, b, out). monitor: NVML's, for what goes with a sample.

    `reading` holds what belongs to the last sample: host_ns, one call from the host's call to the end of its work
    (launches and all), sm_mhz and reasons, read while the GPU works.
    """

    def __init__(self, device: Any, plan: Any, operands: tuple[Any, Any, Any], mode: str, monitor: Any) -> None:
        self._device, self._plan, self._operands, self._monitor = device, plan, operands, monitor
        self._cuda, self._stream = device.xp.cuda, plan.context.stream
        self._begin, self._end = self._cuda.Event(), self._cuda.Event()
        self._graphs: dict[int, Any] = {}
        self._mode = mode
        self.reading: dict[str, Any] = {}
        self.notes: dict[str, str] = {}
        self._require_own_stream()
        if mode == "hot":
            self._try_graph()

    def call(self) -> None:
        """One run, waited for; its time on the host is `reading["host_ns"]`."""
        start = time.perf_counter_ns()
        self._run()
        self._stream.synchronize()
        self.reading["host_ns"] = time.perf_counter_ns() - start

    def time(self, loops: int) -> int:
        """Nanoseconds between the events around `loops` runs. Raises TimingError.

        Hot: a run before the first event keeps the GPU busy while that event and what it times are enqueued.
        """
        self._make_ready(loops)
        if self._mode == "hot":
            self._enqueue(1)
        start = time.perf_counter_ns()
        self._begin.record(self._stream)
        self._enqueue(loops)
        self._end.record(self._stream)
        self.reading.update(self._monitor.reading())
        self._end.synchronize()
        if loops == 1 and self._mode == "cold":
            self.reading["host_ns"] = time.perf_counter_ns() - start
        ns = round(1e6 * self._cuda.get_elapsed_time(self._begin, self._end))
        if ns <= 0:
            raise TimingError(f"no time passed between the events around {loops} runs: its stream had nothing to do")
        return ns

    def energy_j(self, seconds: float = ENERGY_S) -> float | str:
        """Joules of one run, out of the GPU's counter over at least `seconds`; "unavailable" where there is none."""
        if self._monitor.energy_mj() is None:
            return "unavailable"
        self._make_ready(GRAPH_RUNS)
        self._device.synchronize()
        before, end, runs = self._monitor.energy_mj(), time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            self._enqueue(GRAPH_RUNS)
            self._stream.synchronize()
            runs += GRAPH_RUNS
        taken = self._monitor.energy_mj() - before
        return taken / 1e3 / runs if taken > 0 else "unavailable"

    # ---- running

    def _run(self) -> None:
        with self._stream:
            self._plan.run(*self._operands)

    def _enqueue(self, loops: int) -> None:
        """`loops` runs on the plan's stream, as few launches as there are graphs for."""
        if not self._graphs:
            for _ in range(loops):
                self._run()
            return
        many, rest = divmod(loops, GRAPH_RUNS)
        for _ in range(many):
            self._graphs[GRAPH_RUNS].launch(self._stream)
        for _ in range(rest):
            self._graphs[1].launch(self._stream)

    def _make_ready(self, loops: int) -> None:
        """Captures what `_enqueue` will launch, before any event: capturing takes the host's time."""
        if self._graphs and loops >= GRAPH_RUNS and GRAPH_RUNS not in self._graphs:
            self._graphs[GRAPH_RUNS] = self._capture(GRAPH_RUNS)

    def _capture(self, runs: int) -> Any:
        with self._stream:
            self._stream.begin_capture()
            try:
                for _ in range(runs):
                    self._plan.run(*self._operands)
            finally:
                graph = self._stream.end_capture()
        return graph

    def _try_graph(self) -> None:
        """A graph of one run, proven to do the work; what cannot be captured is launched call by call, and noted."""
        out = self._operands[2]
        try:
            graph = self._capture(1)
        except Exception as error:  # noqa: BLE001 - CuPy's and the libraries' errors have no common type; it is noted
            self.notes["graph"] = f"not captured, launches are not hidden: {' '.join(str(error).split())}"
            self._device.synchronize()
            return
        self._device.synchronize()  # what ran astray while it was captured is done before the result is poisoned
        poison(out)
        self._device.synchronize()
        graph.launch(self._stream)
        self._stream.synchronize()
        if namespace(out).isnan(as_real(out)).any():
            raise TimingError(
                "the replay of its captured graph leaves the result unwritten: run() enqueues work on another stream "
                "than the context's, so events on that stream would time nothing"
            )
        self._graphs[1] = graph

    def _require_own_stream(self) -> None:
        """The events around some runs cover most of the time in which the whole device was busy with them."""
        self.call()
        runs = min(PROBE_RUNS, max(1, PROBE_NS // max(1, self.reading["host_ns"])))
        self._device.synchronize()
        start = time.perf_counter_ns()
        self._begin.record(self._stream)
        for _ in range(runs):
            self._run()
        self._end.record(self._stream)
        self._device.synchronize()
        host_ns = time.perf_counter_ns() - start
        events_ns = 1e6 * self._cuda.get_elapsed_time(self._begin, self._end)
        if events_ns < LEAST_COVERED * host_ns and host_ns - events_ns > AT_STAKE_NS:
            raise TimingError(
                f"events on its stream cover {events_ns / 1e6:.3f} ms of {runs} runs that keep the device busy for "
                f"{host_ns / 1e6:.3f} ms: run() enqueues work on another stream than the context's"
            )
