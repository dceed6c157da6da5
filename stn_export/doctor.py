"""``stn-export doctor``: list what is installed, which runners are available and how to install the others."""

import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from stn_export import cli
from stn_export.errors import installing
from stn_export.results.text import by_reason
from stn_export.run import gpu
from stn_export.run.environment import describe
from stn_export.runners import RUNNERS

REMEDIES = (  # by a word of the reason why a runner is unavailable
    ("--runtimes", "stn-export runtimes, then --runtimes .runtimes"),
    ("openvino", installing("openvino")),
    ("Python.h", "install Python's headers, such as Debian's python3-dev"),
    ("compiler", "install a C++ compiler, such as Debian's g++"),
    ("Triton", "pip install triton"),
    ("TensorRT", "install TensorRT 10 beside CUDA"),
    ("without CUDA", "pip install onnxruntime-gpu, on a machine with a GPU"),
    ("GPU", "it needs an NVIDIA GPU and PyTorch's CUDA build"),
)


def remedy(reason: str) -> str:
    """Return how to install what a reason names as missing; a dash where there is no reason, or no known remedy."""
    if (obstacle := gpu.obstacle()) and reason == obstacle.reason:
        return obstacle.remedy
    return next((command for word, command in REMEDIES if word in reason), cli.NONE)


def _gpu(environment: dict[str, Any]) -> str:
    """Say which GPU PyTorch uses, of how many and with which driver; or why it uses none, and what to do."""
    if obstacle := gpu.obstacle():
        return f"none: {obstacle.reason}; {obstacle.remedy}"
    others = f", the first of {environment['gpus']} (CUDA_VISIBLE_DEVICES chooses)" if environment["gpus"] > 1 else ""
    return (
        f"{environment['gpu']}{others}, compute capability {environment['compute_capability']}, {environment['driver']}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print tables of the machine, the packages and the runners; change nothing."""
    cli.parse("doctor", arguments)
    environment: dict[str, Any] = describe()
    facts = {
        "Python": f"{platform.python_version()} ({sys.executable})",
        "CPU": f"{environment['cpu']}, {os.cpu_count()} cores",
        "instruction sets": ", ".join(environment["instruction_sets"]) or "none known",
        "GPU": _gpu(environment),
        "commit": str(environment["git_commit"]),
    }
    cli.table("This machine", ("what", "here"), list(facts.items()))
    versions = environment["versions"]
    cli.table("Packages", ("package", "version"), [(name, str(versions[name])) for name in sorted(versions)])
    reasons = {spec.name: spec.unavailable() for spec in RUNNERS}
    here = [(spec.name, spec.format) for spec in RUNNERS if not reasons[spec.name]]
    cli.table("Runners at hand", ("runner", "runs"), here)
    missing = [line.partition(": ") for line in by_reason({name: why for name, why in reasons.items() if why})]
    rows = [(names, why, remedy(why)) for names, _, why in missing]
    cli.table("Not at hand", ("runner", "why not", "how to get it"), rows, ("why not",))
    cli.card([("runners", f"{len(here)} of {len(reasons)} at hand")])


if __name__ == "__main__":
    sys.exit(cli.run(main))
