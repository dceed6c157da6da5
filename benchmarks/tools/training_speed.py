"""Time training loops, and keep their times: ``python -m benchmarks.tools.training_speed FILE``.

``test_training.py`` beside this module selects what is timed.

An epoch is timed whole: from the order of its images to the accuracy on the test set, which waits for the device. Two
loops are timed alternately in one process, A B A B ..., after an epoch of each that does not count.
"""

import json
import math
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.tools.kept import KEPT
from stn_export import cli
from stn_export.bench.timing import timed
from stn_export.cli import children
from stn_export.errors import UserError
from stn_export.results.statistics import ratio_interval
from stn_export.run.store import write_json
from stn_export.runners import Step
from stn_export.train.__main__ import FIRST_STEP
from stn_export.train.cuda_graph import CapturedSteps
from stn_export.train.data import Dataset
from stn_export.train.recipes import RECIPES
from stn_export.train.trainer import Settings, Trainer, advance, run_epoch

RECIPE = RECIPES["reference"]  # batch, optimiser and learning rate are the tutorial's
SCHEMA = "stn_export/training-speed/1"
COMMAND = "make bench-train DATASET={dataset} DEVICE={device}"

Epoch = Callable[[], object]


@dataclass(frozen=True)
class Loop:
    """Our training loop: ``seeds`` models at once, captured in a CUDA graph or step by step."""

    model: str
    captured: bool
    precision: str = "fp32"
    seeds: int = 1

    def trainers(self, dataset: Dataset, device: torch.device) -> list[Trainer]:
        """Create the trainers."""
        settings = Settings(self.model, RECIPE, 0, dataset.name, dataset.fingerprint, self.precision)
        return [Trainer(replace(settings, seed=seed), dataset, device) for seed in range(self.seeds)]

    def epoch(self, dataset: Dataset, device: torch.device) -> Epoch:
        """Return a function that trains one epoch; a graph is captured before the first."""
        trainers = self.trainers(dataset, device)
        step_all = CapturedSteps(trainers) if self.captured else advance
        return lambda: run_epoch(trainers, step_all=step_all)

    def train(self, dataset: Dataset, device: torch.device) -> None:
        """Train all the recipe's epochs from freshly initialised weights."""
        epoch = self.epoch(dataset, device)
        for _ in range(RECIPE.epochs):
            epoch()


def race(benchmark: BenchmarkFixture, ours: Epoch, baseline: Epoch, pairs: int) -> dict[str, object]:
    """Time an epoch of each alternately, ``baseline`` first; ``ours`` is the benchmark's own row.

    Returns:
        Every epoch's seconds, the ratio baseline / ours and its interval.
    """
    ours()
    baseline()
    theirs: list[float] = []
    benchmark.pedantic(ours, setup=lambda: theirs.append(timed(Step(baseline))), rounds=pairs)
    seconds = list(benchmark.stats.stats.data)
    return {"seconds": seconds, "baseline_seconds": theirs} | pairs_ratio(seconds, theirs)


def pairs_ratio(seconds: Sequence[float], baseline_seconds: Sequence[float]) -> dict[str, float]:
    """Return the ratio baseline / ours of alternately timed epochs: the middle of its 95 % interval, and its ends."""
    low, high = ratio_interval(np.divide(baseline_seconds, seconds), np.zeros(len(seconds)))  # of one load
    return {"ratio": math.sqrt(low * high), "ratio_low": low, "ratio_high": high}


class StartUp:
    """``python -m stn_export.train`` in fresh processes, each ended after its first step."""

    def __init__(self, dataset: str, data: Path | None, device: torch.device, scratch: Path) -> None:
        options = {"--dataset": dataset, "--data": str(data.absolute()) if data else "", "--device": device.type}
        options["--epochs"] = "1"  # limits the training if ending it fails
        self.command = children.module("stn_export.train", *(part for pair in options.items() for part in pair))
        self.scratch = scratch
        self.process: subprocess.Popen[str] | None = None
        self.count = 0

    def until_first_step(self) -> None:
        """Start a process and wait until it reports that its first step is done.

        Raises:
            RuntimeError: with its output, if it ended before.
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
        """End the last process: it finishes its step, saves and exits."""
        if self.process is not None:
            self.process.terminate()
            self.process.communicate()
            self.process = None


def kept(measured: dict) -> dict:
    """Return the rows of a pytest-benchmark file with their command and environment only.

    Raises:
        UserError: if it contains no timing of training.
    """
    rows = [row["extra_info"] for row in measured["benchmarks"] if "what" in row["extra_info"]]
    if not rows:
        raise UserError("that file holds no timing of training", "run 'make bench-train'")
    environment = measured["machine_info"]["stn_export"]
    command = COMMAND.format(**rows[0])
    return {"command": command, "environment": environment, "rows": rows}


def print_rows(rows: Sequence[dict]) -> None:
    """Print medians, and the ratios of paired comparisons."""
    table = []
    for row in rows:
        seconds, against, ratio = f"{statistics.median(row['seconds']):.2f}", "–", "–"
        if "ratio" in row:
            against = f"{statistics.median(row['baseline_seconds']):.2f}"
            ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        table.append((row["what"], seconds, against, ratio))
    cli.table("", ("what", "seconds", "against", "ratio (interval)"), table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``benchmarks/results/training-speed-<device>.json``."""
    parser = cli.stage("benchmarks.tools.training_speed", main.__doc__)
    parser.add_argument("measured", type=Path, help="a file of --benchmark-json")
    parser.add_argument("--results", type=Path, default=KEPT, help="directory to write into")
    options = parser.parse_args(arguments)
    content = kept(json.loads(options.measured.read_text(encoding="utf-8")))
    path = options.results / f"training-speed-{content['rows'][0]['device']}.json"
    write_json(path, SCHEMA, content)
    print_rows(content["rows"])
    cli.say(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
