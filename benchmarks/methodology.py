"""How things are timed; the suites beside this module only say what.

A sample is one call of a runner's step, which waits for the device before it returns. Inputs are real test images.
Ratios come from interleaved blocks: the two contenders take turns, so that a drift of the machine hits both.
"""

import statistics
import time
from dataclasses import dataclass, field

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.clocks import use_clock
from benchmarks.targets import Target
from stn_export.grids import BenchGrid
from stn_export.runners import Step

CONFIDENCE = 0.95
RESAMPLES = 2000
ROUNDS = (5, 5000)


def warm_up(step: Step, seconds: float) -> float:
    """Call ``step`` for ``seconds`` (at least twice) and return the median seconds of a call."""
    samples = []
    end = time.perf_counter() + seconds
    while len(samples) < 2 or time.perf_counter() < end:
        samples.append(timed(step))
    return statistics.median(samples)


def timed(step: Step) -> float:
    """Seconds of one call."""
    started = step.clock()
    step()
    return step.clock() - started


def rounds_for(call_seconds: float, row_seconds: float) -> int:
    """How many calls fill ``row_seconds``, within ``ROUNDS``."""
    return int(np.clip(row_seconds / call_seconds, *ROUNDS))


def time_target(benchmark: BenchmarkFixture, target: Target, images: Tensor, grid: BenchGrid) -> None:
    """Warm up, time single calls for the grid's ``row_seconds``, and note what was timed."""
    step = target.step(images)
    use_clock(benchmark, step.clock)
    benchmark.pedantic(step, rounds=rounds_for(warm_up(step, grid.warmup_seconds), grid.row_seconds))
    rate = len(images) / benchmark.stats.stats.median
    benchmark.extra_info.update(target.facts(len(images)) | {"images_per_second": rate})


@dataclass
class Interleaved:
    """Two steps timed in turn, ``calls`` calls a block; each block keeps its medians."""

    step: Step
    baseline: Step
    calls: int
    step_medians: list[float] = field(default_factory=list)
    baseline_medians: list[float] = field(default_factory=list)

    def block(self) -> None:
        """One turn of each; who goes first alternates."""
        turns = [(self.step, self.step_medians), (self.baseline, self.baseline_medians)]
        for step, medians in turns if len(self.step_medians) % 2 == 0 else reversed(turns):
            step()  # the other contender's data is still in the cache
            medians.append(statistics.median(timed(step) for _ in range(self.calls)))

    def summary(self) -> dict[str, float]:
        """Seconds of either, their ratio, and its 95 % interval from resampled blocks."""
        low, high = bootstrap_ratio(np.array(self.step_medians), np.array(self.baseline_medians))
        seconds, baseline = statistics.median(self.step_medians), statistics.median(self.baseline_medians)
        return {
            "seconds": seconds,
            "baseline_seconds": baseline,
            "ratio": float(np.median(np.divide(self.step_medians, self.baseline_medians))),
            "ratio_low": low,
            "ratio_high": high,
            "blocks": len(self.step_medians),
        }


def contest(benchmark: BenchmarkFixture, target: Target, baseline: Target, images: Tensor, grid: BenchGrid) -> dict:
    """Set a target against a baseline; each round times a block of either in its setup, then one call for the row.

    Returns:
        what stands in the row's ``extra_info``.
    """
    step, other = target.step(images), baseline.step(images)
    warm_up(other, grid.warmup_seconds)
    turns = Interleaved(step, other, rounds_for(warm_up(step, grid.warmup_seconds), grid.block_seconds))
    use_clock(benchmark, step.clock)
    benchmark.pedantic(step, setup=turns.block, rounds=grid.blocks)
    benchmark.extra_info.update(target.facts(len(images)) | {"baseline": str(baseline)} | turns.summary())
    return benchmark.extra_info


def bootstrap_ratio(values: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
    """The percentile interval of the median of block-wise ratios, blocks resampled with replacement."""
    ratios = values / baseline
    chosen = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(ratios[chosen], axis=1), [tail, 1 - tail])
    return float(low), float(high)
