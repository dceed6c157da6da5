"""Peak memory of ``adopt``, ``check`` and ``verify`` on four networks; ``python -m tests.memory_table`` prints it.

Each stage runs in a process of its own; the peak is the process's, libraries included.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import stn_export
from stn_export import cli
from stn_export.export import __main__ as export
from stn_export.verify import __main__ as verify
from tests.zoo import GreyDigits

SCALE = 1024**3 if sys.platform == "darwin" else 1024**2  # ru_maxrss to GiB
STAGES = ("nothing", "adopt", "check", "verify")


def convolutions(width: int, depth: int) -> nn.Module:
    """Convolutions 3×3 at full size."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))


class Network:
    """What is measured, by name: how it is made, and its input's sizes but for the batch."""

    ALL = {
        "digits 28×28": (GreyDigits, (1, 28, 28)),
        "10,000 parameters at 64×64": (lambda: convolutions(32, 1), (3, 64, 64)),
        "64 channels at 224×224": (lambda: convolutions(64, 1), (3, 224, 224)),
        "10 million parameters": (
            lambda: nn.Sequential(nn.Linear(1000, 5000), nn.ReLU(), nn.Linear(5000, 1000)),
            (1000,),
        ),
    }


def peak(stage: str, name: str, folder: Path) -> float:
    """The peak of this process after a stage, GiB."""
    make, sizes = Network.ALL[name]
    torch.manual_seed(0)
    module, run = make().eval(), folder / "run"
    parameter = "images" if make is GreyDigits else "input"
    if stage in ("adopt", "prepare"):
        stn_export.adopt(module, {parameter: ("N", *sizes)}, run=run, sizes={})
    if stage == "prepare":
        cli.run(export.main, ["--run", str(run), "--only", "matmul-fp32", "plain-fp32"])
    elif stage == "check":
        stn_export.check(module, torch.rand(4, *sizes))
    elif stage == "verify":
        networks = verify.planned(run, ["onnxruntime-cpu", "eager-cpu"])
        assert not any(check.failure for check in verify.verify(networks, fail_fast=False))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / SCALE


def measured(stage: str, name: str, folder: Path) -> float:
    """The same in a process of its own."""
    code = [sys.executable, "-m", "tests.memory_table", stage, name, str(folder)]
    result = subprocess.run(code, capture_output=True, encoding="utf-8", check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Print the table, or one figure of it."""
    if len(sys.argv) == 4:
        print(json.dumps(peak(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
        return
    names = sys.argv[1:] or list(Network.ALL)
    print("| network | libraries alone | adopt | check | verify |\n| --- | --: | --: | --: | --: |")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            measured("prepare", name, Path(folder))
            rows = [f"{measured(stage, name, Path(folder)):.2f} GiB" for stage in STAGES]
        print(f"| {name} | {' | '.join(rows)} |", flush=True)


if __name__ == "__main__":
    main()
