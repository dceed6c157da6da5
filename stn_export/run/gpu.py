"""The GPU of this machine: whether PyTorch can use it, why not, and how it is set up.

Nothing here imports PyTorch before it is needed: ``audit`` asks the driver only.
"""

import ctypes
import os
import re
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

UNSEEN = "PyTorch sees no GPU here"
KERNEL_MODULE = Path("/proc/driver/nvidia/version")
# The oldest driver on Linux for each major version of CUDA: NVIDIA, CUDA Toolkit Release Notes, "CUDA Toolkit and
# Minimum Required Driver Version for CUDA Minor Version Compatibility".
MINIMUM_DRIVERS = {11: 450, 12: 525, 13: 580}
BUILDS = {11: "cu118", 12: "cu126"}  # PyTorch's builds for older drivers, by CUDA's major version
TF32_SINCE = (8, 0)  # compute capability


@dataclass(frozen=True)
class Obstacle:
    """Why PyTorch cannot use a GPU here, and what to do about it."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class Driver:
    """An NVIDIA driver: the newest CUDA version that it supports, its release if known, the GPUs that it shows."""

    cuda: tuple[int, int]
    release: str
    devices: int

    def __str__(self) -> str:
        name = f"driver {self.release}" if self.release else "the driver"
        return f"{name} (CUDA {self.cuda[0]}.{self.cuda[1]})"


def driver() -> Driver | None:
    """Ask the driver library itself, as PyTorch does not tell an old driver from none; None where there is none."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    counted = library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0
    cuda = version.value // 1000, version.value % 1000 // 10  # 12040 is 12.4
    return Driver(cuda, _release(), count.value if counted else 0)


def _release() -> str:
    """Return the driver's release, such as 550.54.15; empty if the system does not tell."""
    try:
        text = KERNEL_MODULE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    release = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return release[0] if release else ""


def is_usable() -> bool:
    """Return whether PyTorch can use a GPU here."""
    return obstacle() is None


def obstacle() -> Obstacle | None:
    """Return what keeps PyTorch from using a GPU here; None where it can."""
    import torch

    with warnings.catch_warnings(action="ignore"):  # PyTorch's warning is of many lines, and at each call
        available = torch.cuda.is_available()
    if available:
        return _too_old(torch.cuda.get_device_properties(0).name, _capability(), torch.cuda.get_arch_list())
    if torch.version.cuda is None:
        return Obstacle(f"{UNSEEN}: it is built without CUDA", "install PyTorch's CUDA build, or use the CPU")
    return _unseen(driver(), torch.version.cuda, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _unseen(found: Driver | None, cuda: str, visible: str | None) -> Obstacle:
    """Say why PyTorch, built for this CUDA version, sees no GPU."""
    if found is None:
        return Obstacle(UNSEEN, "take a machine with an NVIDIA GPU and its driver, or use the CPU")
    wanted = int(cuda.partition(".")[0])
    if found.cuda[0] < wanted:
        build = BUILDS.get(found.cuda[0])
        other = f", or install PyTorch's {build} build" if build else ""
        least = MINIMUM_DRIVERS.get(wanted, "a newer release")
        return Obstacle(f"{found} is older than this PyTorch's CUDA {cuda}", f"update it to {least} or newer{other}")
    if not found.devices and visible is not None:
        return Obstacle(f"CUDA_VISIBLE_DEVICES={visible} hides every GPU", "unset it, or name one of nvidia-smi -L")
    if not found.devices:
        return Obstacle(f"{UNSEEN}: {found} shows none", "nvidia-smi says what it finds; or use the CPU")
    reason = f"{UNSEEN}, although {found} shows {found.devices}"
    return Obstacle(reason, "see what python -c 'import torch; torch.zeros(1).cuda()' says")


def _too_old(name: str, capability: tuple[int, int], kernels: list[str]) -> Obstacle | None:
    """Say that PyTorch has no kernels for a GPU, which its operators would tell one by one.

    Machine code runs on GPUs of its own major version, and PTX is compiled for any that is not older (NVIDIA, CUDA C++
    Programming Guide, "Binary Compatibility" and "PTX Compatibility").

    Args:
        name: of the GPU.
        capability: its compute capability.
        kernels: what PyTorch was compiled for, such as ``sm_80`` and ``compute_120``; nothing if it does not tell.
    """
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", kernel) for kernel in kernels]
    versions = [(match[1], (int(match[2]), int(match[3]))) for match in built if match]
    older = [(kind, version) for kind, version in versions if version <= capability]
    if not versions or any(kind == "compute" or version[0] == capability[0] for kind, version in older):
        return None
    oldest = min(version for _, version in versions)
    reason = f"{name} has compute capability {capability[0]}.{capability[1]}, for which this PyTorch has no kernels"
    remedy = f"try PyTorch's {BUILDS[12]} build, or use the CPU"
    return Obstacle(f"{reason}: they begin at {oldest[0]}.{oldest[1]}", remedy)


def _capability() -> tuple[int, int]:
    """Return the compute capability of the GPU that PyTorch uses."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return properties.major, properties.minor


def _dotted() -> str:
    return ".".join(map(str, _capability()))


def no_tf32() -> str:
    """Return why the GPU that PyTorch uses has no TF32; empty where it has."""
    import torch

    if _capability() >= TF32_SINCE:
        return ""
    return f"TF32 needs compute capability 8.0, and {torch.cuda.get_device_properties(0).name} has {_dotted()}"


# NVIDIA's management library, of the package nvidia-ml-py.


@cache
def management() -> tuple[ModuleType, object] | None:
    """Return NVIDIA's management library and the handle of PyTorch's GPU; None if either is not available."""
    if not is_usable() or find_spec("pynvml") is None:
        return None
    import pynvml  # an optional package
    import torch

    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    except pynvml.NVMLError:  # NVML may not work in a container or on part of a GPU
        return None


def describe() -> dict[str, object]:
    """Return what every result says of the GPU that PyTorch uses; ``gpu`` and ``cuda`` are None without one."""
    if not is_usable():
        return {"gpu": None, "cuda": None}
    import torch

    found = driver()
    facts = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "gpus": torch.cuda.device_count(),
        "compute_capability": _dotted(),
        "driver": str(found) if found else None,
        "cudnn": torch.backends.cudnn.version(),
    }
    return facts | {f"gpu_{name}": value for name, value in _settings().items()}


def _settings() -> dict[str, object]:
    """Return how the GPU is set up, as far as NVIDIA's management library tells: limits in W and MHz, and modes."""
    if (found := management()) is None:
        return {}
    nvml, device = found
    questions = {
        "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1e3,
        "largest_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_SM),
        "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(device)),
        "mig_mode": lambda: bool(nvml.nvmlDeviceGetMigMode(device)[0]),
    }
    settings = {}
    for name, ask in questions.items():
        try:
            settings[name] = ask()
        except nvml.NVMLError:  # not supported by this GPU, or not in this container
            settings[name] = None
    return settings
