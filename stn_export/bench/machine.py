"""The machine while something is timed: load, processor time, GPU, caches, memory, and clocks other than the wall's."""

import ctypes
import gc
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import torch

from stn_export.results.statistics import METHOD
from stn_export.runners import Runner, Step

if TYPE_CHECKING:  # an extra that `check` does without
    from pytest_benchmark.fixture import BenchmarkFixture


# Rows of pytest-benchmark on another clock than the wall's: a GPU's events, another process, a profiler.


def use_clock(benchmark: "BenchmarkFixture", clock: Callable[[], float]) -> None:
    """Time one row by ``clock``. A marker's ``timer`` would do it for a whole test, before the step is there."""
    benchmark._timer = clock


def on_threads(step: Step, threads: int) -> Step:
    """Return the step on so many of PyTorch's threads, whatever the other side of a comparison has set meanwhile."""

    def run() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return step.run()

    return Step(run, step.clock)


class Reported:
    """Something that reports itself how many seconds it took: a step on a clock of its own."""

    def __init__(self, work: Callable[[], float]) -> None:
        self.work, self.seconds = work, 0.0

    def run(self) -> None:
        """Do it once."""
        self.seconds += self.work()

    @property
    def step(self) -> Step:
        """As what can be timed."""
        return Step(self.run, lambda: self.seconds)


def time_reported(benchmark: "BenchmarkFixture", work: Callable[[], float], rounds: int) -> None:
    """Time one row by the seconds that ``work`` says it took, each time that it is done."""
    step = Reported(work).step
    use_clock(benchmark, step.clock)
    benchmark.pedantic(step, rounds=rounds)


# What this process and its children took of the processor, and how long their threads had to wait for it.


PROCESSES = Path("/proc")
NANOSECONDS = 1e-9


def descendants(process: int) -> Iterator[int]:
    """Yield the ids of a process's children and of their children; of none where the system does not list them."""
    for listed in (PROCESSES / str(process) / "task").glob("*/children"):
        try:
            children = [int(word) for word in listed.read_text(encoding="utf-8").split()]
        except OSError:  # the thread has ended meanwhile
            continue
        for child in children:
            yield child
            yield from descendants(child)


def cpu_seconds(process: int) -> float:
    """Return the processor time of another process, all its threads together; 0 where it has ended."""
    clock = (~process << 3) | 2  # CPUCLOCK_SCHED of a process: clock_getcpuclockid(3), Linux
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


def waits(process: int) -> dict[int, float]:
    """Return how long each thread of a process has waited for a core since it began, in seconds, by its id."""
    found = {}
    for path in (PROCESSES / str(process) / "task").glob("*/schedstat"):
        try:
            found[int(path.parent.name)] = int(path.read_text(encoding="utf-8").split()[1]) * NANOSECONDS
        except (OSError, IndexError):  # the thread has ended meanwhile, or the system keeps no such statistics
            continue
    return found


@dataclass(frozen=True)
class Usage:
    """Processor time of this process and of its children by process id, and each thread's waiting, in seconds."""

    wall: float
    cpu: dict[int, float]
    waited: dict[int, float]

    @classmethod
    def now(cls) -> "Usage":
        """Read all of it."""
        own, children = os.getpid(), list(descendants(os.getpid()))
        cpu = {child: cpu_seconds(child) for child in children}
        waited = {thread: seconds for process in (own, *children) for thread, seconds in waits(process).items()}
        return cls(time.perf_counter(), cpu | {own: time.process_time()}, waited)

    def disturbed_since(self, before: "Usage", share: float) -> bool:
        """Say whether others took the processor: we had less than ``share`` of one core, or a thread waited for one.

        The first alone would miss a call on several threads, which have more than one core's time even so.
        """
        wall = self.wall - before.wall
        cpu = sum(_grown(before.cpu, self.cpu))
        return cpu < share * wall or max(_grown(before.waited, self.waited), default=0.0) > (1 - share) * wall


def _grown(before: dict[int, float], after: dict[int, float]) -> Iterator[float]:
    """Yield how much each figure has grown; of what was not there before, all of it."""
    return (value - before.get(key, 0.0) for key, value in after.items() if value >= before.get(key, 0.0))


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


# Sizes: the last-level cache, and the memory that something takes while it is loaded and run.


CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
PROCESS = Path("/proc/self")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
UNKNOWN_CACHE = 64 * 2**20  # where the machine does not tell: more than most have for one core


def cache_bytes(device: str) -> int:
    """Of the largest cache before the memory of the CPU or the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = [path.read_text(encoding="utf-8").strip() for path in CACHES.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes), default=UNKNOWN_CACHE)


def _status(field: str) -> int:
    """Bytes of a line of this process's status.

    Raises:
        OSError: where the system does not tell.
    """
    found = re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise OSError(f"{PROCESS / 'status'} has no {field}")
    return int(found[1]) * 2**10


class Memory:
    """What is taken inside a ``with``: ``host_bytes``, the growth of resident memory to its peak, and ``device_bytes``.

    What the process has taken and freed before is given back first as far as the C library can; what is used again
    nevertheless does not count, so that only a fresh process (see ``startup``) shows all of it. On the GPU it is what
    the allocators took and keep, of PyTorch and ONNX Runtime alike. None where the system does not tell.
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
            (PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
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
        """For a row: what a runner in another process takes is not known here."""
        return {"host_bytes": self.host_bytes if runner.in_process else None, "device_bytes": self.device_bytes}
