"""What NVIDIA's management library says of a GPU: clocks, throttling, energy, other processes. Reads, never sets.

Needs nvidia-ml-py; where that or an answer is missing, a fact is None or "unavailable", never a guess.
NVML API reference, "Device Queries": clocks event reasons, total energy consumption.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

#: Bits of the clocks event reasons.
REASONS = {
    0x1: "gpu_idle", 0x2: "applications_clocks_setting", 0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost",
    0x20: "sw_thermal_slowdown", 0x40: "hw_thermal_slowdown", 0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}  # fmt: skip


class Monitor:
    """One GPU by its PCI address, such as "0000:19:00.0"."""

    def __init__(self, pci_bus_id: str) -> None:
        self._nvml: Any = None
        self.why = ""
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
            self._nvml = pynvml
        except ImportError:
            self.why = "nvidia-ml-py is not installed: pip install 'convbench[cuda]'"
        except Exception as error:  # noqa: BLE001 - NVML's errors are a type of a module that may be missing
            self.why = f"NVML does not answer: {error}"

    def reading(self) -> dict[str, Any]:
        """{"sm_mhz": the SM clock now, "reasons": why it is what it is}, each None where it cannot be had."""
        mask = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            mask = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        reasons = None if mask is None else [name for bit, name in REASONS.items() if mask & bit]
        return {"sm_mhz": self._clock("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"), "reasons": reasons}

    def energy_mj(self) -> int | None:
        """Millijoules that the whole GPU has taken since its driver was loaded, or None."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption")

    def facts(self) -> dict[str, Any]:
        """What environment.json keeps: driver, clock limits, power limit, MIG, persistence, other processes."""
        if self._nvml is None:
            return {"nvml": self.why}
        power = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        mode = self._ask("nvmlDeviceGetMigMode")
        return {
            "nvml": "answers",
            "driver": _text(self._call(self._nvml.nvmlSystemGetDriverVersion)),
            "sm_mhz_max": self._clock("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
            "sm_mhz_applications": self._clock("nvmlDeviceGetApplicationsClock", "NVML_CLOCK_SM"),
            "memory_mhz_max": self._clock("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
            "power_limit_w": None if power is None else power / 1000,
            "mig": None if mode is None else bool(mode[0]),
            "persistence": self._ask("nvmlDeviceGetPersistenceMode"),
            "ecc": self._ask("nvmlDeviceGetEccMode"),
            "temperature_c": self._temperature(),
            "other_processes": None if processes is None else sum(p.pid != os.getpid() for p in processes),
        }

    def _temperature(self) -> Any:
        if self._nvml is None:
            return None
        return self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)

    def _clock(self, function: str, kind: str) -> Any:
        return None if self._nvml is None else self._ask(function, getattr(self._nvml, kind))

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The answer about this GPU, or None where NVML has none."""
        if self._nvml is None or not hasattr(self._nvml, function):
            return None
        return self._call(getattr(self._nvml, function), self._handle, *arguments)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
