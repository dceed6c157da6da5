"""Facts that every result carries: versions, machine, device, commit."""

import functools
import gc
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from stn_export import __version__, cli
from stn_export.cli import children
from stn_export.errors import ROOT, UserError, require_choice
from stn_export.run import gpu
from stn_export.run.store import private_folder

PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy")
DEVICES = ("auto", "cpu", "cuda")
SELDOM = (50_000, 20, 50)  # objects made until a collection; collections until the next older generation's
CPUINFO = Path("/proc/cpuinfo")
INSTRUCTION_SETS = {  # by short name: Linux's CPU flags on x86 and aarch64, any of the alternatives
    "AVX": ("avx",),
    "AVX2": ("avx2",),
    "FMA": ("fma",),
    "AVX-512": ("avx512f avx512bw avx512cd avx512dq avx512vl",),  # as in oneDNN and x86-64-v4
    "NEON": ("asimd",),
    "dot product": ("asimddp",),
    "I8MM": ("i8mm",),
    "SVE": ("sve",),
    "SVE2": ("sve2",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "FP16": ("avx512_fp16", "asimdhp"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX": ("amx_tile",),
}


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the installed packages that affect results."""
    return dict(_installed())


@functools.cache  # each is a search of the path for files, and every row of the export matrix asks for all
def _installed() -> dict[str, str]:
    packages = {"python": platform.python_version(), "stn_export": __version__}
    for package in PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return packages


def cache_directory() -> Path:
    """Return this user's folder for downloads and slow builds; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stn_export"


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let PyTorch, and runners that are opened in this block, use ``count`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Let Python's cyclic garbage collector run a seventieth as often, and pass over what is there already.

    PyTorch's tracing makes so many small objects, hardly any of them garbage, that the collector takes a tenth of the
    time of an export.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def use_own_compile_cache() -> None:
    """Give ``torch.compile`` a cache for this processor and these versions, unless the user names one.

    PyTorch's default in /tmp would be reused on another processor, which may lack instructions.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    made_for = repr((cpu_name(), instruction_sets(), versions()["torch"], versions()["python"]))
    folder = cache_directory() / "inductor" / hashlib.sha256(made_for.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder if writable else private_folder())


@functools.cache
def git_commit() -> str:
    """Return this source tree's commit, with ``-dirty`` if files differ; ``unknown`` outside a checkout."""
    if not (ROOT / ".git").exists() or not (ROOT / "pyproject.toml").exists():  # installed below some other repository
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"]
    try:
        return children.run(command, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@functools.cache
def cpu_facts() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = [line.partition(":") for line in text.strip().partition("\n\n")[0].splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines}


def cpu_name() -> str:
    """Return the processor's model name as the operating system states it."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the short names of the processor's instruction sets that affect results and times."""
    facts = cpu_facts()
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return [name for name, needed in INSTRUCTION_SETS.items() if any(set(names.split()) <= flags for names in needed)]


def describe() -> dict[str, object]:
    """Return the environment JSON-ready."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    } | gpu.describe()


def resolve_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device; ``auto`` takes CUDA where it can be used, and says why not.

    Raises:
        UserError: for an unknown name, or ``cuda`` where PyTorch cannot use a GPU. It never falls back.
    """
    require_choice("device", name, DEVICES)
    if name == "cpu":
        return torch.device("cpu")
    obstacle = gpu.obstacle()
    if obstacle is None:
        return torch.device("cuda")
    if name == "cuda":
        raise UserError(f"DEVICE=cuda, but {obstacle.reason}", f"{obstacle.remedy}; DEVICE=auto takes what there is")
    if obstacle.reason != gpu.UNSEEN:
        cli.say(f"not on the GPU: {obstacle.reason} ({obstacle.remedy})", "yellow")
    return torch.device("cpu")
