"""Observe the machine during a timing: load, processor time, GPU state, caches, memory; time on other clocks."""

import ctypes
import gc
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import torch

from stn_export.results.statistics import METHOD
from stn_export.run.gpu import management
from stn_export.runners import Runner, Step

if TYPE_CHECKING:  # an optional dependency that `check` does not need
    from pytest_benchmark.fixture import BenchmarkFixture


# Clocks other than wall time for rows of pytest-benchmark: GPU events, another process, a profiler.


def use_clock(benchmark: "BenchmarkFixture", clock: Callable[[], float]) -> None:
    """Time one row by ``clock``: a marker's ``timer`` would have to be known before the step is made."""
    benchmark._timer = clock


def on_threads(step: Step, threads: int) -> Step:
    """Return the step with PyTorch set to ``threads`` threads at each call, as a baseline's step may change them."""

    def run() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return step.run()

    return Step(run, step.clock)


class Reported:
    """Work that reports its own duration in seconds, as a step with its own clock."""

    def __init__(self, work: Callable[[], float]) -> None:
        self.work, self.seconds = work, 0.0

    def run(self) -> None:
        """Do the work once."""
        self.seconds += self.work()

    @property
    def step(self) -> Step:
        """Return the work as a step that can be timed."""
        return Step(self.run, lambda: self.seconds)


def time_reported(benchmark: "BenchmarkFixture", work: Callable[[], float], rounds: int) -> None:
    """Time one row by the seconds that ``work`` reports in each round."""
    step = Reported(work).step
    use_clock(benchmark, step.clock)
    benchmark.pedantic(step, rounds=rounds)


# Processor time of this process and its children, and how long their threads waited for a core.


PROCESSES = Path("/proc")
NANOSECONDS = 1e-9


def descendants(process: int) -> Iterator[int]:
    """Yield the ids of a process's children and their children; none if the system does not list them."""
    for listed in (PROCESSES / str(process) / "task").glob("*/children"):
        try:
            children = [int(word) for word in listed.read_text(encoding="utf-8").split()]
        except OSError:  # the thread has ended meanwhile
            continue
        for child in children:
            yield child
            yield from descendants(child)


def cpu_seconds(process: int) -> float:
    """Return the processor time of another process over all its threads; 0 if it has ended."""
    clock = (~process << 3) | 2  # CPUCLOCK_SCHED of a process: clock_getcpuclockid(3), Linux
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


def waits(process: int) -> dict[int, float]:
    """Return how long each thread of a process has waited for a core since its start, in seconds, by thread id."""
    seconds_of = {}
    for path in (PROCESSES / str(process) / "task").glob("*/schedstat"):
        try:
            seconds_of[int(path.parent.name)] = int(path.read_text(encoding="utf-8").split()[1]) * NANOSECONDS
        except (OSError, IndexError):  # the thread has ended meanwhile, or the system keeps no such statistics
            continue
    return seconds_of


@dataclass(frozen=True)
class Usage:
    """Processor time of this process and its children by process id, and waiting by thread id, in seconds."""

    wall: float
    cpu: dict[int, float]
    waited: dict[int, float]

    @classmethod
    def now(cls) -> "Usage":
        """Read the current usage."""
        own, children = os.getpid(), list(descendants(os.getpid()))
        cpu = {child: cpu_seconds(child) for child in children}
        waited = {thread: seconds for process in (own, *children) for thread, seconds in waits(process).items()}
        return cls(time.perf_counter(), cpu | {own: time.process_time()}, waited)

    def disturbed_since(self, before: "Usage", share: float) -> bool:
        """Return whether others used the processor: we had less than ``share`` of one core, or a thread waited for one.

        The first condition alone misses calls on several threads, which use more than one core's time anyway.
        """
        wall = self.wall - before.wall
        cpu = sum(_grown(before.cpu, self.cpu))
        return cpu < share * wall or max(_grown(before.waited, self.waited), default=0.0) > (1 - share) * wall


def _grown(before: dict[int, float], after: dict[int, float]) -> Iterator[float]:
    """Yield the growth of each figure; a new one counts in full."""
    return (value - before.get(key, 0.0) for key, value in after.items() if value >= before.get(key, 0.0))


# Reasons for a lower clock that are no disturbance: an idle GPU, and clocks that the user has fixed.
HARMLESS = ("GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks", "None", "All")
PREFIXES = ("nvmlClocksEventReason", "nvmlClocksThrottleReason")


@dataclass
class Watch:
    """Observe the machine before and after a stretch of work on ``device``, and decide whether it was disturbed.

    A stretch on the CPU was disturbed if this process and its children had less than ``METHOD.cpu_share`` of one core,
    or one of their threads waited for a core for more than the rest of the time; one on the GPU, if a clock was
    throttled or moved by more than ``METHOD.clock_change``, except upwards from idle. Without nvidia-ml-py a GPU never
    counts as disturbed.
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
        """Return the row's ``machine``: the load average of the last minute and the GPU's last state."""
        return {"load_average": os.getloadavg()[0], "gpu": self.gpu}


def gpu_disturbed(before: dict | None, after: dict | None) -> bool:
    """Return whether a GPU's clock was throttled at either end of a stretch, or moved, except upwards from idle."""
    if before is None or after is None:
        return False
    change = after["sm_clock_mhz"] / before["sm_clock_mhz"] - 1
    moved = abs(change) > METHOD.clock_change and not (change > 0 and before["idle"])
    return bool(before["held_back_by"] or after["held_back_by"] or moved)


@cache
def _nvml() -> tuple[ModuleType, object] | None:
    """Return NVIDIA's management library and the handle of PyTorch's GPU; None if its state cannot be read."""
    if (nvml := management()) is None:
        return None
    try:
        read_gpu(*nvml)
    except nvml[0].NVMLError:  # NVML does not tell the state of a part of a GPU
        return None
    return nvml


def gpu_state() -> dict | None:
    """Return the GPU's current state, see ``read_gpu``; None if it cannot be read."""
    nvml = _nvml()
    return read_gpu(*nvml) if nvml else None


def read_gpu(nvml: ModuleType, gpu: object) -> dict:
    """Return clocks in MHz, power in W, temperature in °C, throttle reasons, and whether the GPU is idle."""
    throttled = reasons(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
    return {
        "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "power_watts": nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "temperature_c": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "held_back_by": sorted(throttled - set(HARMLESS)),
        "idle": "GpuIdle" in throttled,
    }


def reasons(nvml: ModuleType, bits: int) -> set[str]:
    """Return the names of the throttle reasons that are set."""
    names = {
        name.removeprefix(prefix): getattr(nvml, name)
        for prefix in PREFIXES
        for name in dir(nvml)
        if name.startswith(prefix)
    }
    return {name for name, bit in names.items() if isinstance(bit, int) and bits & bit}


# Sizes of the last-level cache, and of the memory used while a file is loaded and run.


CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
PROCESS = Path("/proc/self")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
UNKNOWN_CACHE = 64 * 2**20  # assumed if unknown: more than most cores have


def cache_bytes(device: str) -> int:
    """Return the bytes of the last-level cache of the CPU or the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = [path.read_text(encoding="utf-8").strip() for path in CACHES.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes), default=UNKNOWN_CACHE)


def _status(field: str) -> int:
    """Read a size, in bytes, from this process's status.

    Raises:
        OSError: if the system does not provide it.
    """
    match = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise OSError(f"{PROCESS / 'status'} has no {field}")
    return int(match[1]) * 2**10


class Memory:
    """Measure the memory used in a ``with`` block: ``host_bytes``, peak growth of resident memory; ``device_bytes``.

    Memory that the process has freed before is returned first as far as the C library can; what is reused nevertheless
    does not count, so only a fresh process (see ``startup``) shows everything. On the GPU it is what the allocators of
    PyTorch and ONNX Runtime have reserved. None if the system does not provide it.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.host_bytes: int | None = None
        self.device_bytes: int | None = None
        self.resident: int | None = None

    def __enter__(self) -> "Memory":
        if self.on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            self.free_before = torch.cuda.mem_get_info()[0]
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        try:
            (PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # resets the peak
            self.resident = _status("VmRSS")
        except OSError:
            self.resident = None
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.resident is not None:
            self.host_bytes = max(0, _status("VmHWM") - self.resident)
        if self.on_gpu:
            self.device_bytes = max(0, self.free_before - torch.cuda.mem_get_info()[0])

    def of(self, runner: Runner) -> dict[str, int | None]:
        """Return the figures for a row; host memory is None for a runner in another process."""
        return {"host_bytes": self.host_bytes if runner.in_process else None, "device_bytes": self.device_bytes}
