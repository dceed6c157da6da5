"""Rows of pytest-benchmark on another clock than the wall's: a GPU's events, another process, a profiler."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from stn_export.runners import Step

if TYPE_CHECKING:  # an extra that `check` does without
    from pytest_benchmark.fixture import BenchmarkFixture


def use_clock(benchmark: "BenchmarkFixture", clock: Callable[[], float]) -> None:
    """Time one row by ``clock``. A marker's ``timer`` would do it for a whole test, before the step is there."""
    benchmark._timer = clock


def on_threads(step: Step, threads: int) -> Step:
    """Return the step on so many of PyTorch's threads, whatever the other side of a comparison has set meanwhile."""

    def run() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        return step.run()

    return Step(run, step.clock)


class Reported:
    """Something that reports itself how many seconds it took: a step on a clock of its own."""

    def __init__(self, work: Callable[[], float]) -> None:
        self.work, self.seconds = work, 0.0

    def run(self) -> None:
        """Do it once."""
        self.seconds += self.work()

    @property
    def step(self) -> Step:
        """As what can be timed."""
        return Step(self.run, lambda: self.seconds)


def time_reported(benchmark: "BenchmarkFixture", work: Callable[[], float], rounds: int) -> None:
    """Time one row by the seconds that ``work`` says it took, each time that it is done."""
    step = Reported(work).step
    use_clock(benchmark, step.clock)
    benchmark.pedantic(step, rounds=rounds)
