"""How training is timed; ``test_training.py`` beside this module says what.

An epoch is timed whole: from the order of its images to the accuracy on the test set, which waits for the device. Two
loops take turns in one process, A B A B ..., after an epoch of each that does not count.
"""

import math
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.timing import timed
from stn_export.cli import children
from stn_export.results.statistics import ratio_interval
from stn_export.runners import Step
from stn_export.train.__main__ import FIRST_STEP
from stn_export.train.cuda_graph import CapturedSteps
from stn_export.train.data import Dataset
from stn_export.train.recipes import RECIPES
from stn_export.train.trainer import Settings, Trainer, advance, run_epoch

RECIPE = RECIPES["reference"]  # batch, optimiser and learning rate are the tutorial's

Epoch = Callable[[], object]


@dataclass(frozen=True)
class Loop:
    """Our training loop: so many seeds of a model at once, captured in a CUDA graph or step by step."""

    model: str
    captured: bool
    precision: str = "fp32"
    seeds: int = 1

    def trainers(self, dataset: Dataset, device: torch.device) -> list[Trainer]:
        """Fresh ones."""
        settings = Settings(self.model, RECIPE, 0, dataset.name, dataset.fingerprint, self.precision)
        return [Trainer(replace(settings, seed=seed), dataset, device) for seed in range(self.seeds)]

    def epoch(self, dataset: Dataset, device: torch.device) -> Epoch:
        """A call for each epoch; a graph is captured before the first."""
        trainers = self.trainers(dataset, device)
        step_all = CapturedSteps(trainers) if self.captured else advance
        return lambda: run_epoch(trainers, step_all=step_all)

    def train(self, dataset: Dataset, device: torch.device) -> None:
        """All the recipe's epochs, from the network's first weights on."""
        epoch = self.epoch(dataset, device)
        for _ in range(RECIPE.epochs):
            epoch()


def race(benchmark: BenchmarkFixture, ours: Epoch, baseline: Epoch, pairs: int) -> dict[str, object]:
    """Time an epoch of either in turn, ``baseline`` first; ``ours`` is the benchmark's own row.

    Returns:
        every epoch's seconds, the pairs' ratio baseline / ours and its interval.
    """
    ours()
    baseline()
    theirs: list[float] = []
    benchmark.pedantic(ours, setup=lambda: theirs.append(timed(Step(baseline))), rounds=pairs)
    seconds = list(benchmark.stats.stats.data)
    return {"seconds": seconds, "baseline_seconds": theirs} | pairs_ratio(seconds, theirs)


def pairs_ratio(seconds: Sequence[float], baseline_seconds: Sequence[float]) -> dict[str, float]:
    """Return the ratio baseline / ours of epochs that took turns, and its 95 % interval, of which it is the middle."""
    low, high = ratio_interval(np.divide(baseline_seconds, seconds), np.zeros(len(seconds)))  # of one load
    return {"ratio": math.sqrt(low * high), "ratio_low": low, "ratio_high": high}


class StartUp:
    """``python -m stn_export.train`` in fresh processes, each ended once its first step is done."""

    def __init__(self, dataset: str, data: Path | None, device: torch.device, scratch: Path) -> None:
        options = {"--dataset": dataset, "--data": str(data.absolute()) if data else "", "--device": device.type}
        options["--epochs"] = "1"  # all that is trained where a start goes wrong
        self.command = children.module("stn_export.train", *(part for pair in options.items() for part in pair))
        self.scratch = scratch
        self.process: subprocess.Popen[str] | None = None
        self.count = 0

    def until_first_step(self) -> None:
        """From the process's start until it says that its first step is done.

        Raises:
            RuntimeError: with what it said, where it ended before.
        """
        command = [*self.command, "--run", str(self.scratch / str(self.count))]
        self.count += 1
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        self.process = children.start(command, end=signal.SIGTERM, env=children.environment(), **piped)
        said = []
        for line in self.process.stdout:
            said.append(line)
            if FIRST_STEP in line:
                return
        self.end()
        raise RuntimeError("training ended before its first step:\n" + "".join(said))

    def end(self) -> None:
        """End the process of the last call: it finishes its step, saves and goes."""
        if self.process is not None:
            self.process.terminate()
            self.process.communicate()
            self.process = None
