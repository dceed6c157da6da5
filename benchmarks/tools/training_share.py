"""Show where a step of training spends its time on the CPU: ``python -m benchmarks.tools.training_share``.

Steps of the tutorial's recipe on the digits, eager and with a compiled network, timed alternately in one process; and
PyTorch's profile of the eager ones. The convolutions alone bound what any other loop around them could gain.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from stn_export import cli
from stn_export.bench.timing import timed
from stn_export.run.environment import cpu_name, instruction_sets, use_own_compile_cache, using_threads
from stn_export.runners import Step
from stn_export.train.data import Dataset, load_dataset
from stn_export.train.recipes import RECIPES
from stn_export.train.trainer import Settings, Trainer, advance

CONVOLUTIONS = ("aten::convolution_backward", "aten::mkldnn_convolution")
WARM, STEPS, TURNS = 10, 20, 5  # steps that do not count, steps of a turn, turns; 120 of an epoch's 157


@dataclass(frozen=True)
class Share:
    """Where steps spend their time: milliseconds of one, eager and compiled, and the convolutions' share of it."""

    threads: int
    eager: float
    compiled: float
    convolutions: float

    @property
    def row(self) -> tuple[str, ...]:
        """Return the row of the table."""
        faster, most = f"{self.eager / self.compiled:.2f}", f"{1 / self.convolutions:.2f}"
        return str(self.threads), f"{self.eager:.1f}", f"{self.convolutions:.0%}", faster, most


def trainer_of(dataset: Dataset, compiled: bool) -> Trainer:
    """Return a transformer's trainer in its first epoch, warmed up."""
    settings = Settings("stn", RECIPES["reference"], 0, dataset.name, dataset.fingerprint)
    trainer = Trainer(settings, dataset, torch.device("cpu"))
    if compiled:
        trainer.model.compile()
    trainer.begin_epoch()
    steps([trainer], WARM)
    return trainer


def steps(trainers: Sequence[Trainer], count: int = STEPS) -> None:
    """Run some steps."""
    for _ in range(count):
        advance(trainers)


def convolutions_of(trainer: Trainer) -> float:
    """Return the share of convolutions, forward and backward, in the time of steps."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        steps([trainer])
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(times[name] for name in CONVOLUTIONS) / sum(times.values())


def share_of(dataset: Dataset, threads: int) -> Share:
    """Time steps on ``threads`` threads."""
    with using_threads(threads):
        eager, compiled = trainer_of(dataset, compiled=False), trainer_of(dataset, compiled=True)
        turns = [(milliseconds(eager), milliseconds(compiled)) for _ in range(TURNS)]
        of_eager, of_compiled = (statistics.median(times) for times in zip(*turns, strict=True))
        return Share(threads, of_eager, of_compiled, convolutions_of(eager))


def milliseconds(trainer: Trainer) -> float:
    """Return the mean milliseconds of a turn's steps."""
    return 1e3 * timed(Step(partial(steps, [trainer]))) / STEPS


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the shares on one thread and on all."""
    words = "Show where a step of training spends its time on the CPU."
    cli.stage("benchmarks.tools.training_share", words).parse_args(arguments)
    use_own_compile_cache()
    dataset = load_dataset("digits")
    shares = [share_of(dataset, threads) for threads in dict.fromkeys((1, torch.get_num_threads()))]
    columns = ("threads", "ms a step", "convolutions", "compiled is faster", "at most, convolutions alone")
    cli.table(f"Training on {cpu_name()} ({', '.join(instruction_sets())})", columns, [one.row for one in shares])


if __name__ == "__main__":
    sys.exit(cli.run(main))
