"""Sizes: the last-level cache, and the memory that something takes while it is loaded and run."""

import ctypes
import gc
import re
from pathlib import Path
from types import TracebackType

import torch

from stn_export.runners import Runner

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
