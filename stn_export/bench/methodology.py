"""How things are timed; the suites beside this module only say what.

A sample is one call of a runner's step, which waits for the device before it returns. Inputs are real test images.
Ratios come from interleaved blocks: the two contenders take turns, so that a drift of the machine hits both. Who goes
first is drawn at random, which makes the noise of a block as likely to favour one as the other, however it is
correlated with the block before. Either is loaded several times: two loads of one file can differ by some per cent,
for as long as they live, and no number of blocks would show that.
"""

import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from stn_export.bench.clocks import use_clock
from stn_export.bench.grids import BenchGrid
from stn_export.bench.intervals import ratio_interval, summarise, verdict
from stn_export.bench.machine import Watch
from stn_export.bench.method import METHOD
from stn_export.bench.targets import Target
from stn_export.runners import Step

CALLS = (5, 5000)  # a median of fewer than 5 calls is at the mercy of a single interruption


@dataclass(frozen=True)
class WarmUp:
    """What warming up found: the median seconds of a call at its end, and whether that had settled."""

    call_seconds: float
    seconds: float
    stable: bool

    def facts(self) -> dict:
        """The row's ``warm_up``."""
        return {"seconds": self.seconds, "stable": self.stable}


def warm_up(step: Step, seconds: float) -> WarmUp:
    """Call ``step`` for ``seconds`` at least, and until the medians of two windows in a row agree or it is enough."""
    started, medians, stable = time.perf_counter(), [_window(step, seconds / 2)], False
    while not stable and len(medians) < METHOD.warm_windows:
        medians.append(_window(step, seconds / 2))
        stable = abs(medians[-1] / medians[-2] - 1) <= METHOD.warm_agreement
    return WarmUp(medians[-1], time.perf_counter() - started, stable)


def _window(step: Step, seconds: float) -> float:
    samples, end = [timed(step)], time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples.append(timed(step))
    return statistics.median(samples)


def timed(step: Step) -> float:
    """Seconds of one call."""
    started = step.clock()
    step()
    return step.clock() - started


def calls_for(call_seconds: float, seconds: float) -> int:
    """How many calls fill ``seconds``, within ``CALLS``."""
    return int(np.clip(seconds / call_seconds, *CALLS))


def time_target(benchmark: BenchmarkFixture, target: Target, images: Tensor, grid: BenchGrid) -> None:
    """Warm up, time single calls for the grid's ``row_seconds``, and note what was timed."""
    step = target.step(images)
    use_clock(benchmark, step.clock)
    warm = warm_up(step, grid.warmup_seconds)
    with Watch(target.runner.device) as watch:
        benchmark.pedantic(step, rounds=calls_for(warm.call_seconds, grid.row_seconds))
    benchmark.extra_info.update(target.facts(len(images)) | {"warm_up": warm.facts(), "machine": watch.facts()})
    if benchmark.stats:  # not so with --benchmark-disable
        times = summarise(np.array(benchmark.stats.stats.data))
        disturbed = watch.disturbed[0] or not warm.stable
        benchmark.extra_info.update(times | {"images_per_second": len(images) / times["p50"], "disturbed": disturbed})


@dataclass
class Interleaved:
    """Two steps timed in turn, ``calls`` calls a block; every block keeps the median of either.

    Attributes:
        loads: pairs of steps, ours and the baseline's; block after block takes the next.
        calls: a block's, of ours and of the baseline.
        order: for every block whether the baseline goes first; balanced over every ``blocks``.
        blocks: how many are asked for.
    """

    loads: list[tuple[Step, Step]]
    calls: tuple[int, int]
    order: list[bool]
    blocks: int
    watch: Watch
    medians: list[tuple[float, float]] = field(default_factory=list)

    def block(self) -> None:
        """One turn of each."""
        number, taken = len(self.medians), [0.0, 0.0]
        with self.watch:
            for side in (1, 0) if self.order[number % len(self.order)] else (0, 1):
                step = self.loads[number % len(self.loads)][side]
                taken[side] = statistics.median(timed(step) for _ in range(self.calls[side]))
        self.medians.append(tuple(taken))

    def go_on(self) -> None:
        """More blocks where the interval is wider than what counts as the same, up to ``METHOD.patience`` as many.

        What the ratio is plays no part in when this stops: stopping once it looks good would spoil the interval.
        """
        while len(self.medians) < METHOD.patience * self.blocks and not self.narrow():
            for _ in range(len(self.loads)):
                self.block()

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the ratio so far."""
        ours, theirs = np.array(self.medians).T
        return ratio_interval(ours / theirs, np.arange(len(ours)) % len(self.loads))

    def narrow(self) -> bool:
        """Whether the interval spans no more than "same" does."""
        low, high = self.interval()
        return high / low <= (1 + METHOD.same) / (1 - METHOD.same)

    def summary(self) -> dict:
        """Seconds of either, their ratio, its 95 % interval and what that says."""
        ours, theirs = np.array(self.medians).T
        low, high = self.interval()
        return {
            "seconds": float(np.median(ours)),
            "baseline_seconds": float(np.median(theirs)),
            "ratio": float(np.median(ours / theirs)),
            "ratio_low": low,
            "ratio_high": high,
            "verdict": verdict(low, high),
            "blocks": len(ours),
            "disturbed_blocks": sum(self.watch.disturbed),
            "loads": len(self.loads),
        }


def load_pairs(ours: Callable[[], Step], theirs: Callable[[], Step]) -> list[tuple[Step, Step]]:
    """Load both ``METHOD.loads`` times, each being first in turn; only once where that takes long."""
    started = time.perf_counter()
    pairs = [(ours(), theirs())]
    if time.perf_counter() - started < METHOD.load_seconds:
        for load in range(1, METHOD.loads):
            pairs.append((ours(), theirs()) if load % 2 == 0 else (theirs(), ours())[::-1])
    return pairs


def interleave(
    ours: Callable[[], Step], theirs: Callable[[], Step], device: str, grid: BenchGrid, seed: int
) -> Interleaved:
    """Load and warm up two contenders, ready for the grid's ``blocks``, fewer where calls are long."""
    loads = load_pairs(ours, theirs)
    seconds = [warm_up(step, grid.warmup_seconds / len(loads)).call_seconds for pair in loads for step in pair]
    seconds = (min(seconds[0::2]), min(seconds[1::2]))
    calls = tuple(calls_for(call_seconds, grid.block_seconds) for call_seconds in seconds)
    block_seconds = sum(count * call_seconds for count, call_seconds in zip(calls, seconds, strict=True))
    longest = METHOD.overtime * 2 * grid.block_seconds * grid.blocks
    blocks = int(np.clip(longest / block_seconds, METHOD.fewest_blocks, grid.blocks))
    random = np.random.default_rng(seed)
    order = [random.permutation(np.arange(blocks) % 2 == part % 2) for part in range(METHOD.patience)]
    return Interleaved(loads, calls, np.concatenate(order).tolist(), blocks, Watch(device))


def contest(benchmark: BenchmarkFixture, target: Target, baseline: Target, images: Tensor, grid: BenchGrid) -> dict:
    """Set a target against a baseline; each round times a block of either in its setup, then one call for the row.

    Returns:
        what stands in the row's ``extra_info``.
    """
    seed = METHOD.seed + zlib.crc32(f"{target} {baseline} {len(images)}".encode())
    device = target.runner.device
    turns = interleave(lambda: target.step(images), lambda: baseline.step(images), device, grid, seed)
    use_clock(benchmark, turns.loads[0][0].clock)
    benchmark.pedantic(turns.loads[0][0], setup=turns.block, rounds=turns.blocks)
    turns.go_on()
    notes = {"baseline": str(baseline), "machine": turns.watch.facts()}
    benchmark.extra_info.update(target.facts(len(images)) | notes | turns.summary())
    return benchmark.extra_info
