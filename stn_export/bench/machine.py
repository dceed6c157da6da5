"""The machine while something is timed: load, and what the GPU says of itself. Everything is read, nothing is set."""

import os
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

from stn_export.bench.method import METHOD
from stn_export.bench.usage import Usage

# Reasons for a lower clock that are none: an idle GPU, and clocks that somebody has pinned.
HARMLESS = ("GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks", "None", "All")
PREFIXES = ("nvmlClocksEventReason", "nvmlClocksThrottleReason")


@dataclass
class Watch:
    """Looks at the machine before and after a stretch of work on ``device``, and says whether it was disturbed.

    Disturbed is a stretch on the CPU in which this process and its children had less than ``METHOD.cpu_share`` of one
    core, or one of their threads waited for a core for more than the rest of the time (others ran on it), and one on
    the GPU in which a clock was held back or moved by more than ``METHOD.clock_change``, other than up from idling.
    Without nvidia-ml-py a GPU is never seen disturbed.
    """

    device: str
    gpu: dict | None = None
    disturbed: list[bool] = field(default_factory=list)

    def __enter__(self) -> "Watch":
        self.before = gpu_state() if self.device == "cuda" else None
        self.usage = None if self.device == "cuda" else Usage.now()
        return self

    def __exit__(self, *_: object) -> None:
        if self.usage is None:
            self.gpu = gpu_state()
            self.disturbed.append(gpu_disturbed(self.before, self.gpu))
        else:
            self.disturbed.append(Usage.now().disturbed_since(self.usage, METHOD.cpu_share))

    def facts(self) -> dict:
        """The row's ``machine``: the load average of the last minute and the GPU's last state."""
        return {"load_average": os.getloadavg()[0], "gpu": self.gpu}


def gpu_disturbed(before: dict | None, after: dict | None) -> bool:
    """Whether a GPU's clock was held back at either end of a stretch, or moved in between: not where it woke up."""
    if before is None or after is None:
        return False
    change = after["sm_clock_mhz"] / before["sm_clock_mhz"] - 1
    moved = abs(change) > METHOD.clock_change and not (change > 0 and before["idle"])
    return bool(before["held_back_by"] or after["held_back_by"] or moved)


@cache
def _nvml() -> tuple[ModuleType, object] | None:
    """NVIDIA's management library and the handle of PyTorch's GPU, where nvidia-ml-py is installed and may ask."""
    if not torch.cuda.is_available() or find_spec("pynvml") is None:
        return None
    import pynvml  # an optional package

    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        read_gpu(pynvml, gpu)
    except pynvml.NVMLError:  # a container or a part of a GPU that does not answer
        return None
    return pynvml, gpu


def gpu_state() -> dict | None:
    """What ``read_gpu`` says now; None where nobody can be asked."""
    found = _nvml()
    return read_gpu(*found) if found else None


def read_gpu(nvml: ModuleType, gpu: object) -> dict:
    """Clocks in MHz, power in W, temperature in °C, what holds the clocks back, and whether nothing runs."""
    given = reasons(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
    return {
        "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "power_watts": nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "temperature_c": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "held_back_by": sorted(given - set(HARMLESS)),
        "idle": "GpuIdle" in given,
    }


def reasons(nvml: ModuleType, bits: int) -> set[str]:
    """The names of the throttle reasons that are set."""
    names = {
        name.removeprefix(prefix): getattr(nvml, name)
        for prefix in PREFIXES
        for name in dir(nvml)
        if name.startswith(prefix)
    }
    return {name for name, bit in names.items() if isinstance(bit, int) and bits & bit}
