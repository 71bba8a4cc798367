"""What lives as long as a run: workers (one per thread count), measured rates, known refusals, the listing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from convbench.environment import memory_bytes
from convbench.runner.handle import WorkerGone, WorkerHandle

MEMORY_SHARE = 0.8  # of the machine's memory: what a worker may take
HANGS_ALLOWED = 2
ORACLE_PREFIX = ".oracle-"
UNKNOWN_MEMORY_BYTES = 4 * 2**30  # where the system does not say


class Session:
    """Workers and what was learnt from them. A context manager: leaving it ends every worker.

    device: whose rows they run; memory_bytes is what may be taken of that device's memory.
    """

    def __init__(
        self,
        listing: dict[str, Any],
        env_id: str,
        versions: dict[str, str],
        scratch: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = device
        self.env_id, self.versions = env_id, versions
        self.described: dict[str, dict[str, Any]] = {d["name"]: d for d in listing["implementations"]}
        self.broken: dict[str, str] = {b["name"]: b["reason"] for b in listing["broken"]}
        self._skip: dict[str, str] = listing["skip"]
        gpu_bytes = (listing.get("gpu") or {}).get("memory_bytes") if device == "cuda" else None
        self.memory_bytes = int(MEMORY_SHARE * (gpu_bytes or memory_bytes() or UNKNOWN_MEMORY_BYTES))
        for left_over in scratch.glob(f"{ORACLE_PREFIX}*") if scratch else ():
            shutil.rmtree(left_over, ignore_errors=True)  # of a run that was killed
        self._cache = tempfile.TemporaryDirectory(prefix=ORACLE_PREFIX, dir=scratch)
        self._workers: dict[int, WorkerHandle] = {}
        self._rates: dict[tuple[Any, ...], float] = {}
        self._hangs: dict[str, int] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._cache.cleanup()

    def worker(self, threads: int) -> WorkerHandle:
        """The worker for this thread count; a new one where there is none. One at a time holds memory."""
        if threads not in self._workers:
            cache = Path(self._cache.name)
            self._workers[threads] = WorkerHandle(threads, self._skip, self.memory_bytes, cache, self.device)
        return self._workers[threads]

    def forget_worker(self, threads: int) -> None:
        """Ends a worker; the next one asked for is new."""
        worker = self._workers.pop(threads, None)
        if worker is not None:
            worker.close()

    def drop(self, threads: int, oracle: bool = False) -> None:
        """Frees a worker's plans, and with `oracle` the expected results that are kept on disk."""
        if threads in self._workers:
            try:
                self._workers[threads].send("drop")
            except WorkerGone:
                self.forget_worker(threads)
        if oracle:
            for file in Path(self._cache.name).glob("*"):
                file.unlink(missing_ok=True)

    def refusal(self, name: str) -> tuple[str, str] | None:
        """(status, reason) of an algorithm that is not worth asking: a broken plug-in, or one that hangs."""
        if name in self.broken:
            return ("failed", self.broken[name])
        hangs = self._hangs.get(name, 0)
        if hangs >= HANGS_ALLOWED:
            return (
                "not_reached",
                f"{name}: hung {hangs} times before in this run, so it was not tried again",
            )
        return None

    def note_hang(self, name: str) -> None:
        """Counts a hang."""
        self._hangs[name] = self._hangs.get(name, 0) + 1

    def rate(self, key: tuple[Any, ...]) -> float | None:
        """Best rate seen so far for this kind of case, in floating-point operations per nanosecond."""
        return self._rates.get(key)

    def learn_rate(self, key: tuple[Any, ...], flops_per_ns: float) -> None:
        """Keeps the best rate: predictions should refuse only what is hopeless."""
        self._rates[key] = max(flops_per_ns, self._rates.get(key, 0.0))

    def peaks(self, threads: int) -> dict[str, float]:
        """Measured compute peaks at this thread count; empty where they could not be measured."""
        worker = self.worker(threads)
        try:
            worker.send("peaks")
            return dict(worker.next_event(120.0).get("peaks") or {})
        except WorkerGone:
            self.forget_worker(threads)
            return {}

    def versions_for(self, name: str) -> dict[str, str]:
        """Versions of the libraries that matter, and of the plug-in that brought the algorithm."""
        described = self.described.get(name, {})
        own = {described["distribution"]: described["version"]} if described.get("distribution") else {}
        return self.versions | {k: v for k, v in own.items() if v}
