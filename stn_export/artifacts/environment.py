"""What every result must carry: versions, machine, device, commit."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from stn_export import __version__
from stn_export.errors import UserError, require_choice

PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy")
DEVICES = ("auto", "cpu", "cuda")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the installed packages that shape a result."""
    found = {"python": platform.python_version(), "stn_export": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cache_directory() -> Path:
    """Where what was fetched or takes long to make is kept for this user; it need not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stn_export"


@functools.cache
def git_commit() -> str:
    """The checked-out commit of this source tree, ``-dirty`` appended where files differ; else ``unknown``."""
    root = Path(__file__).resolve().parent.parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_name() -> str:
    """The processor's model name as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe() -> dict[str, object]:
    """The whole environment as JSON-ready values."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "git_commit": git_commit(),
    }


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device; ``auto`` takes CUDA where there is one.

    Raises:
        UserError: for an unknown name, or ``cuda`` where PyTorch sees no GPU. It never falls back.
    """
    require_choice("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "DEVICE=cuda, but PyTorch sees no GPU here",
            "use DEVICE=cpu, or DEVICE=auto to take what there is",
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
