"""The child process in which implementations run: cases in, verdicts and samples out.

Started by the runner as `python -m convbench.worker`, with its thread counts set before NumPy loads. Commands
arrive as JSON lines on standard input, events leave as JSON lines on the descriptor CONVBENCH_REPLY_FD; what
libraries print goes to standard error. Nothing here is timed before the verifier has accepted it.

Commands  hello, verify, pilot, sample, drop, peaks, noise
Events    ready, verified, refused, rate, at, sample, lost, done, sampled, peaks, noise
"""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convbench import lifeline
from convbench.pinning import Pinning, keep_to
from convbench.protocol import PARENT_PID, REPLY_FD

PILOT_MACS = 500_000
GPU_PILOT_MACS = 50_000_000  # enough that launching is not what takes the time
PILOT_NS = 20_000_000
GPU_SAMPLE_NS = 5_000_000  # events resolve half a microsecond
GPU_WARM_S = 1.0  # for all subjects together: clocks rise with the first of them
EXIT_GPU_LOST = 71  # a kernel broke the process' hold on the GPU: nothing more can run in it
GPU_CACHE_SHARE = 0.25  # of the GPU's memory: inputs and oracle results that are kept
PEAK_REPEATS = 4
POOL_PAUSE_S = 0.04  # in which another library's threads go to rest
LEAST_PART = 0.5  # of the time for sampling that stays when plans had to be prepared again


def main() -> int:
    """Serves commands until standard input closes."""
    parent = os.environ.get(PARENT_PID)
    lifeline.die_with_parent(int(parent) if parent else None)
    lifeline.leave_interrupts_to_parent()
    reply = os.fdopen(int(os.environ[REPLY_FD]), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an event
    worker = Worker(lambda event: reply.write(json.dumps(event, allow_nan=False) + "\n"))
    for line in sys.stdin:
        worker.serve(json.loads(line))
    return 0


@dataclass
class Prepared:
    """A verified plan with the operands that it is timed on."""

    plan: Any
    verifier: Any
    first_run_ns: int


class Worker:
    """Holds the catalog and the verified plans of the problem in hand."""

    device: Any = None
    monitor: Any = None

    def __init__(self, emit: Any) -> None:
        self.emit = emit
        self.prepared: dict[str, Prepared] = {}
        self.timers: dict[str, Any] = {}
        self.verifier: Any = None
        self.problem_key: tuple[Any, ...] | None = None
        self.cache_dir: Path | None = None
        self.threads = 1
        self.pinning = Pinning([])

    def serve(self, command: dict[str, Any]) -> None:
        """One command; an unexpected exception becomes a `refused` event with its traceback on stderr."""
        operation = command.pop("op")
        try:
            getattr(self, f"do_{operation}")(**command)
        except Exception as error:  # noqa: BLE001 - told to the parent, which records it
            traceback.print_exc()
            self.emit({"ev": "refused", "status": "failed", "reason": sentence_of(error)})

    def do_hello(
        self, skip: dict[str, str], memory_bytes: int, threads: int, cache_dir: str | None, device: str = "cpu"
    ) -> None:
        """Loads the catalog and checks that the thread pools are what the environment asked for.

        Beside a GPU this process keeps all cores and its memory uncapped: the driver has threads of its own, maps far
        more than it uses, and what may run out is the GPU's memory, which says so by itself.
        """
        from convbench import catalog

        self.threads = threads
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.catalog = catalog.load(skip=skip)
        self.memory_bytes = memory_bytes
        if device == "cuda":
            self._take_gpu()
        else:
            from convbench.devices.cpu import CpuDevice

            self.device = CpuDevice()
            if threads > 1:  # statistics want it while a thread is kept on one core: its BLAS would start one thread
                import scipy.special  # noqa: F401
            self.pinning = Pinning(keep_to(threads))
            lifeline.cap_memory(memory_bytes)
        self.emit({"ev": "ready", "pools": thread_pools()})

    def _take_gpu(self) -> None:
        from convbench.devices import nvml
        from convbench.devices.cuda import CudaDevice
        from convbench.verify.reference import CACHE

        self.device = CudaDevice()
        self.monitor = nvml.Monitor(self.device.xp.cuda.Device().pci_bus_id)
        CACHE.limit_bytes = int(GPU_CACHE_SHARE * self.device.gpu.memory_bytes)

    @property
    def on_gpu(self) -> bool:
        """Whether this worker's rows run on a GPU."""
        return self.device is not None and self.device.name == "cuda"

    def do_peaks(self) -> None:
        """Measured compute peaks at this thread count, in GFLOP/s: raw multiply-adds, and NumPy's sgemm.

        Multiply-adds in registers below a product's rate mean that somebody else had the cores: measured again. On a
        GPU: products by the vendor's BLAS in each arithmetic, and the rate of copying memory.
        """
        if self.on_gpu:
            from convbench.devices import cuda_peaks

            self.emit({"ev": "peaks", "peaks": cuda_peaks.measure(self.device)})
            return
        from convbench.devices import fma_peak
        from convbench.environment import measure_peaks

        sgemm = measure_peaks(self.threads)["gflops"]
        peaks = {"gflops_sgemm": sgemm}
        for name, dtype, floor in (("gflops", "float32", sgemm), ("gflops_float64", "float64", sgemm / 2)):
            peaks[name] = fma_peak.measure(self.threads, dtype)
            for _ in range(PEAK_REPEATS):
                if peaks[name] < floor:
                    peaks[name] = max(peaks[name], fma_peak.measure(self.threads, dtype))
        self.emit({"ev": "peaks", "peaks": peaks})

    def do_noise(self, problem: str, implementation: str, blocks: int, seed: int) -> None:
        """The same verified plan as two subjects: samples whose ratio is noise and nothing else."""
        from convbench.measure.sampler import BlockSampler, Settings, Subject
        from convbench.measure.stopping import StoppingRule

        event = self._verify(problem, implementation, "raw", seed)
        if event["ev"] != "verified":
            self.emit(event)
            return
        call = self._call(self.prepared[implementation])
        estimate = float(event["first_run_ns"])
        twins = [Subject(name, call, estimate_ns=estimate) for name in ("a", "b")]
        clock = self._clock("hot")
        rule = StoppingRule(min_blocks=blocks, min_time_s=0.0, ci_target=0.0, max_blocks=blocks)
        settings = Settings(rule, None, clock.now_ns() + int(60e9), seed=seed)
        sampler = BlockSampler(twins, settings, clock, lambda _: self.pinning.hold(), _ignore, _raise)
        sampled = sampler.run()
        self.pinning.release()
        self.emit({"ev": "noise", "ns": {s.name: s.per_call for s in sampled}})

    def do_drop(self) -> None:
        """Forgets plans, operands and oracle results."""
        from convbench.verify.reference import CACHE

        self.prepared.clear()
        self.verifier, self.problem_key = None, None
        self.timers.clear()
        CACHE.clear()
        if self.on_gpu:
            self.device.free_cached()

    def do_verify(
        self, problem: str, implementation: str, weights: str, seed: int, workspace_limit: int, memory_bytes: int,
        inputs: str = "normal",
    ) -> None:
        """Prepares, verifies and keeps one case; a refusal is a status with its sentence."""
        if not self.on_gpu:
            lifeline.cap_memory(min(self.memory_bytes, lifeline.data_bytes() + memory_bytes))
        self.emit(self._verify(problem, implementation, weights, seed, inputs, workspace_limit))

    def do_pilot(
        self, problem: str, implementation: str, weights: str, seed: int, measure: bool, inputs: str = "normal"
    ) -> None:
        """Operations of a case and, if asked, the rate on the largest verified shape of its kind under 20 ms."""
        from convbench.descriptor import parse_descriptor
        from convbench.verify import Verifier

        target = parse_descriptor(problem).problem
        chosen = self.catalog.implementations[implementation]
        if chosen.unavailable() or chosen.why_not(target, weights):
            self.emit({"ev": "rate", "flops_per_ns": 0.0, "target_flops": 0.0})
            return
        rate = 0.0
        budget = GPU_PILOT_MACS if self.on_gpu else PILOT_MACS
        for _ in range(2 if measure else 0):
            small = shrink(target, budget)
            if chosen.why_not(small, weights) is not None:
                break
            verifier = Verifier(small, seed=seed, device=self.device, inputs=inputs)
            plan, verdict = verifier.verify(chosen, self._context, weights)
            if plan is None:
                break
            rate = executed(chosen, small) / max(verdict.first_run_ns, 1)
            if verdict.first_run_ns > PILOT_NS:
                break
            budget = int(small.shape.macs * 0.6 * PILOT_NS / max(verdict.first_run_ns, 1))
        self.emit({"ev": "rate", "flops_per_ns": rate, "target_flops": executed(chosen, target)})

    def do_sample(
        self,
        problem: str,
        implementations: list[str],
        weights: str,
        seed: int,
        mode: str,
        baseline: str | None,
        seconds: float,
        rule: dict[str, Any],
        first_block: int,
        loops: dict[str, int],
        energy_s: float = 0.0,
        inputs: str = "normal",
    ) -> None:
        """Samples verified cases in blocks, then verifies each once more on fresh inputs."""
        from convbench.measure.sampler import SAMPLE_NS, WARM_WINDOW_NS, BlockSampler, Settings
        from convbench.measure.stopping import StoppingRule

        clock = self._clock(mode)
        deadline_ns = clock.now_ns() + int(seconds * 1e9)
        subjects = []
        for name in implementations:
            self.emit({"ev": "at", "implementation": name})
            if name not in self.prepared:
                event = self._verify(problem, name, weights, seed, inputs)
                if event["ev"] != "verified":
                    reason = f"when it was verified a second time: {event['reason']}"
                    self.emit({"ev": "lost", "implementation": name, "status": event["status"], "reason": reason})
                    continue
            try:
                subjects.append(self._subject(name, mode, loops.get(name, 0)))
            except Exception as error:  # noqa: BLE001 - costs this subject alone, and is told
                traceback.print_exc()
                self._lose(name, error)
        warm_s, sample_ns = (GPU_WARM_S / max(1, len(subjects)), GPU_SAMPLE_NS) if self.on_gpu else (0.2, SAMPLE_NS)
        settings = Settings(
            StoppingRule(**rule),
            baseline,
            max(deadline_ns, clock.now_ns() + int(LEAST_PART * seconds * 1e9)),  # preparing again took its part
            mode,
            POOL_PAUSE_S if self.threads > 1 else 0.0,
            warm_s,
            seed=seed + first_block,
            first_block=first_block,
            sample_ns=sample_ns,
            warm_window_ns=GPU_SAMPLE_NS if self.on_gpu else WARM_WINDOW_NS,
        )
        sampler = BlockSampler(
            subjects,
            settings,
            clock,
            announce=self._about_to_run,
            emit=self._emit_sample,
            failed=self._lose,
        )
        before = self._operand_sums()
        sampled = sampler.run()
        packing = {} if self.on_gpu else {subject.name: self._packing(subject.name, mode, clock) for subject in sampled}
        self.pinning.release()
        spoiled = self._operand_sums() != before
        for subject in sampled:
            self._finish(subject, spoiled, energy_s, packing.get(subject.name, {}))
        self.emit({"ev": "sampled"})

    def _about_to_run(self, name: str) -> None:
        """The parent is told whose turn it is, and each thread has its core."""
        self.emit({"ev": "at", "implementation": name})
        self.pinning.hold()

    def _packing(self, name: str, mode: str, clock: Any) -> dict[str, Any]:
        """Time of a row's `pack` on the operands of its samples, for its `done` event; a note where that raised.

        The check after timing follows, so a pack that leaves something behind for run() is a wrong result.
        """
        from convbench.measure.packing import packing_ns

        ready = self.prepared[name]
        pack = ready.plan.pack
        if pack is None:
            return {}
        call = functools.partial(pack, *ready.verifier.operands()[:2])
        if self.threads > 1:
            clock.pause(POOL_PAUSE_S)
        try:
            return {"packing_ns": packing_ns(name, call, clock, mode, self._about_to_run)}
        except Exception as error:  # noqa: BLE001 - costs this one number, and is told
            traceback.print_exc()
            return {"notes": {"packing": f"not timed by itself: {sentence_of(error)}"}}

    def _operand_sums(self) -> list[int]:
        """Checksums of the operands that all subjects of a problem share while they are timed."""
        from convbench.verify.buffers import checksum

        if self.verifier is None:
            return []
        return [checksum(array) for array in self.verifier.operands()[:2]]

    def _lose(self, name: str, error: Exception) -> None:
        """A subject that raised while it was timed."""
        reason = f"while it was timed: {sentence_of(error)}"
        self.emit({"ev": "lost", "implementation": name, "status": "failed", "reason": reason})
        self._leave_if_gpu_is_lost()

    def _leave_if_gpu_is_lost(self) -> None:
        """Ends this process where a kernel's error (an illegal address) stays with the GPU's context: the parent
        blames the case in hand and goes on with another worker."""
        if not self.on_gpu:
            return
        try:
            self.device.synchronize()
        except Exception as error:  # noqa: BLE001 - the libraries' errors have no common type
            sys.stderr.write(f"{sentence_of(error)}\n")
            sys.stderr.flush()
            os._exit(EXIT_GPU_LOST)

    def _clock(self, mode: str) -> Any:
        """The host's clock, with a flush of the caches that matter."""
        from convbench.devices.base import HostClock

        return HostClock(self._flushing_device() if mode == "cold" and not self.on_gpu else self.device)

    def _subject(self, name: str, mode: str, loops: int) -> Any:
        """A verified plan as something to time: by the host's clock, or by events on its stream."""
        from convbench.measure.sampler import Subject

        ready = self.prepared[name]
        pool, first_ns = ready.plan.implementation.pool, float(ready.first_run_ns)
        if not self.on_gpu:
            return Subject(name, self._call(ready), pool, first_ns, loops=loops)
        from convbench.devices.cuda_timing import CudaTimer

        timer = CudaTimer(self.device, ready.plan, ready.verifier.operands(), mode, self.monitor)
        self.timers[name] = timer
        return Subject(name, timer.call, pool, first_ns, loops=loops, timer=timer)

    def _emit_sample(self, name: str, block: int, position: int, ns: int, loops: int) -> None:
        event = {
            "ev": "sample",
            "implementation": name,
            "block": block,
            "position": position,
            "ns": ns,
            "loops": loops,
        }
        timer = self.timers.get(name)
        if timer is not None:
            event["reading"], timer.reading = timer.reading, {}
        self.emit(event)

    def _finish(self, subject: Any, spoiled: bool, energy_s: float, packing: dict[str, Any]) -> None:
        """After timing: the same plan must still be right, on inputs that it has not seen. energy_s: what may go
        into reading a GPU's energy counter. packing: what `_packing` found."""
        self.emit({"ev": "at", "implementation": subject.name})
        ready = self.prepared[subject.name]
        verdict = ready.verifier.recheck(ready.plan)
        reason = "somebody in its group changed the operands while they were timed" if spoiled else verdict.reason
        done = {"ev": "done", "implementation": subject.name, "ok": verdict.ok and not spoiled, "reason": reason}
        done |= packing
        timer = self.timers.pop(subject.name, None)
        if timer is not None:
            done |= {"energy_j": timer.energy_j(energy_s) if energy_s else "unavailable", "notes": timer.notes}
        self.emit(done)

    def _context(self) -> Any:
        return self.device.context(self.threads)

    def _flushing_device(self) -> Any:
        from convbench.devices.cpu import CpuDevice, last_level_cache_bytes

        return CpuDevice(flush_bytes=3 * last_level_cache_bytes())

    def _call(self, ready: Prepared) -> Any:
        a, b, out = ready.verifier.operands()
        return functools.partial(ready.plan.run, a, b, out)

    def _verify(
        self, problem: str, name: str, weights: str, seed: int, inputs: str = "normal",
        workspace_limit: int | None = None,
    ) -> dict[str, Any]:
        from convbench.descriptor import parse_descriptor
        from convbench.errors import Unavailable, Unsupported
        from convbench.verify import Verifier

        key = (problem, weights, seed, inputs)
        if key != self.problem_key:
            self.prepared.clear()
            target = parse_descriptor(problem).problem
            self.timers.clear()
            self.verifier = Verifier(target, seed=seed, cache_dir=self.cache_dir, device=self.device, inputs=inputs)
            self.problem_key = key
        target = self.verifier.problem
        chosen = self.catalog.implementations[name]
        try:
            for status, why in (
                ("unavailable", chosen.unavailable()),
                ("unsupported", chosen.why_not(target, weights)),
            ):
                if why is not None:
                    return {"ev": "refused", "status": status, "reason": why}
            estimate = chosen.estimate(target, weights)
            if workspace_limit is not None and estimate > workspace_limit:
                return {
                    "ev": "refused",
                    "status": "not_reached",
                    "reason": too_big(name, estimate, workspace_limit),
                }
            plan, verdict = self.verifier.verify(chosen, self._context, weights)
        except Unsupported as error:
            return {"ev": "refused", "status": "unsupported", "reason": str(error)}
        except Unavailable as error:
            return {"ev": "refused", "status": "unavailable", "reason": str(error)}
        except MemoryError as error:
            return {
                "ev": "refused",
                "status": "failed",
                "reason": f"out of memory: {error or 'the cap was reached'}",
            }
        except Exception as error:  # noqa: BLE001 - told to the parent, which records it
            traceback.print_exc()
            self._leave_if_gpu_is_lost()
            return {"ev": "refused", "status": "failed", "reason": sentence_of(error)}
        if plan is None or not verdict.ok:
            return {
                "ev": "refused",
                "status": "wrong",
                "reason": verdict.reason,
                "error": asdict(verdict.error),
            }
        wrong_pools = [p for p in thread_pools() if p["threads"] != self.threads]
        if wrong_pools:
            reason = f"{name}: thread pools do not have {self.threads} thread(s): {wrong_pools}"
            return {"ev": "refused", "status": "failed", "reason": reason}
        self.prepared[name] = Prepared(plan, self.verifier, verdict.first_run_ns)
        return {
            "ev": "verified",
            "error": asdict(verdict.error),
            "setup_ns": plan.setup_ns,
            "workspace_bytes": plan.workspace_bytes + verdict.peak_bytes,
            "workspace_estimate_bytes": estimate,
            "executed_flops": chosen.executed_flops(target),
            "arithmetic": target.native_arithmetic if chosen.arithmetic == "native" else chosen.arithmetic,
            "launches": getattr(plan.context, "launches", None),
            "vendor_impl": plan.notes.get("vendor_impl"),
            "notes": plan.notes,
            "first_run_ns": verdict.first_run_ns,
        }


def _ignore(*_: Any) -> None:
    """For whoever need not be told."""


def _raise(_: str, error: Exception) -> None:
    raise error


def executed(implementation: Any, problem: Any) -> float:
    """Operations that an implementation executes: what its time grows with, also where the direct count does not."""
    return float(sum(implementation.executed_flops(problem).values()))


def too_big(name: str, estimate: int, limit: int) -> str:
    """The sentence for a case that would need more workspace than the suite allows."""
    return (
        f"{name}: would need {estimate / 2**20:,.0f} MiB of workspace; the suite's workspace_limit is "
        f"{limit / 2**20:,.0f} MiB"
    )


def sentence_of(error: BaseException) -> str:
    """The exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shrink(problem: Any, macs: int) -> Any:
    """A problem of the same kind (filter, channels, strides) with at most about `macs` multiply-adds.

    Batch goes first, then the image, then, for wide layers, the channels.
    """
    from dataclasses import replace

    shape = replace(problem.shape, n=1)
    while shape.macs > macs:
        taller = shape.h + shape.padding[0] + shape.padding[1] >= 2 * shape.extent[0] + 2
        wider = shape.w + shape.padding[2] + shape.padding[3] >= 2 * shape.extent[1] + 2
        if taller or wider:
            shape = replace(
                shape,
                h=max(shape.h // 2, 1) if taller else shape.h,
                w=max(shape.w // 2, 1) if wider else shape.w,
            )
        elif shape.cg > 8 or shape.kg > 8:
            shape = replace(shape, c=max(shape.cg // 2, 1) * shape.groups, k=max(shape.kg // 2, 1) * shape.groups)
        elif shape.groups > 8:
            half = shape.groups // 2
            shape = replace(shape, c=shape.cg * half, k=shape.kg * half, groups=half)
        else:
            break
    return replace(problem, shape=shape)


def thread_pools() -> list[dict[str, Any]]:
    """The BLAS and OpenMP pools that are loaded, with their thread counts."""
    from threadpoolctl import threadpool_info

    return [
        {"library": p["internal_api"], "threads": p["num_threads"], "version": str(p.get("version"))}
        for p in threadpool_info()
    ]


if __name__ == "__main__":
    sys.exit(main())
