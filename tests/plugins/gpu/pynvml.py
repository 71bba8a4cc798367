"""In place of nvidia-ml-py in child processes: one GPU, 500 W. FAKE_GPU=hot: held back for its power."""

import os
import time

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0


class NVMLError(Exception):
    pass


def nvmlInit() -> None:
    pass


def nvmlDeviceGetHandleByPciBusId(address: str) -> str:
    return address


def nvmlDeviceGetCurrentClocksEventReasons(handle: str) -> int:
    return 0x4 if os.environ.get("FAKE_GPU") == "hot" else 0


def nvmlDeviceGetClockInfo(handle: str, kind: int) -> int:
    return 1980


def nvmlDeviceGetTotalEnergyConsumption(handle: str) -> int:
    return int(500e3 * time.monotonic())


def nvmlSystemGetDriverVersion() -> str:
    return "580.65.06"


def nvmlDeviceGetMaxClockInfo(handle: str, kind: int) -> int:
    return 1980


def nvmlDeviceGetComputeRunningProcesses(handle: str) -> list:
    return []
