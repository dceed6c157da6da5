"""What a PyTorch user runs without this project: eager, eager in channels_last, torch.compile; few threads or all."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stn_export.bench.targets import Target
from stn_export.program.specs import Arrays
from stn_export.runners import RUNNERS, RunnerSpec
from stn_export.runners.pytorch import Compiled, Eager

IMAGES = 4  # dimensions of what channels_last lays out


class EagerChannelsLast(Eager):
    """Eager PyTorch with images and weights laid out channels last, which its CPU convolutions prefer."""

    def place(self, feeds: Arrays) -> list[Tensor]:
        """Lay the inputs out on the device, in the contract's order."""
        return [channels_last(value) for value in super().place(feeds)]

    def load(self, path: Path) -> None:
        """Load the network and lay its weights out."""
        super().load(path)
        if isinstance(self.module, torch.nn.Module):
            self.module = self.module.to(memory_format=torch.channels_last)
        self.options["memory_format"] = "channels_last"


def channels_last(value: Tensor) -> Tensor:
    """Lay images out channels last, and leave all else as it is."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == IMAGES else value


CHANNELS_LAST = RunnerSpec("eager-channels-last-cpu", "pt2", "cpu", EagerChannelsLast, verify_batch=1)
BASELINES = tuple(
    (CHANNELS_LAST if name is EagerChannelsLast else next(spec for spec in RUNNERS if spec.load is name))
    for name in (Eager, EagerChannelsLast, Compiled)
)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytorch_of(target: Target, targets: Sequence[Target]) -> list[Target]:
    """List the same network in every way a PyTorch user would run it, on the present number of threads and on all."""
    threads = sorted({torch.get_num_threads(), cores()})
    programs = [each for each in targets if each.network.name == target.network.name and each.runner.load is Eager]
    on_cpu = [each for each in programs if each.runner.device == target.runner.device == "cpu"]
    return [
        replace(each, runner=spec, host=True, threads=count)
        for each in on_cpu[:1]
        for spec in BASELINES
        if not spec.unavailable()
        for count in threads
    ]
