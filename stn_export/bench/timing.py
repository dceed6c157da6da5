"""Time rows and paired comparisons, and decide the order of rows and when the budget is spent."""

import math
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from stn_export.bench.cases import Case
from stn_export.bench.machine import Watch, time_reported, use_clock
from stn_export.bench.plan import BenchGrid
from stn_export.bench.targets import Target
from stn_export.results.statistics import METHOD, noise_reach, ratio_interval, summarise, verdict
from stn_export.run.environment import using_threads
from stn_export.run.manifest import SUBJECT
from stn_export.runners import Step

if TYPE_CHECKING:  # an optional dependency that `check` does not need
    from pytest_benchmark.fixture import BenchmarkFixture


# Order of rows, and the budget.


# What ``all`` and the summary need comes before what the report draws. Of each pair of ranks, the first is for rows of
# the network that samples with one example (any batch in throughput), the second for all other rows of the suite.
ORDER = {
    "latency": (0, 9),
    "overhead": (1, 5),
    "eager": (2, 4),
    "throughput": (3, 8),
    "default": (6, 6),
    "breakdown": (7, 9),
    "request": (4, 10),
    "pytorch": (8, 8),
    "lowering": (10, 11),
    "startup": (11, 12),
    "cold": (13, 13),
}


def worth(suite: str, case: object) -> int:
    """Return the position of a row when a budget may not suffice for all; the most informative has the lowest.

    For a suite without rows pytest collects a placeholder, which has no case and comes last.
    """
    if not isinstance(case, Case):
        return max(map(max, ORDER.values())) + 1
    subject, single = case.target.network.facts.role == SUBJECT, case.batch == 1
    first, others = ORDER[suite]
    return first if subject and (single or suite == "throughput") else others


class Budget:
    """A number of seconds for a session, counted from now; None for no limit."""

    def __init__(self, seconds: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.end = math.inf if seconds is None else now() + seconds

    @property
    def left(self) -> float | None:
        """Return the seconds that are left, at least 0; None if there is no limit."""
        return None if math.isinf(self.end) else max(0.0, self.end - self.now())

    @property
    def over(self) -> bool:
        """Return whether the time is over, so that no row may start."""
        return self.now() >= self.end


Clock = Callable[[], float]  # seconds
ENDLESS = Budget()
SAMPLES = (5, 5000)  # one interruption would distort a median of fewer than 5


@dataclass(frozen=True)
class WarmUp:
    """The outcome of a warm-up: the median seconds of a call at its end, its duration, and whether it had settled.

    ``sample_seconds`` is what one sample takes, which on a GPU is many calls.
    """

    call_seconds: float
    sample_seconds: float
    seconds: float
    stable: bool

    def facts(self) -> dict:
        """Return the row's ``warm_up``."""
        return {"seconds": self.seconds, "stable": self.stable}


def warm_up(step: Step, seconds: float, now: Clock = time.perf_counter) -> WarmUp:
    """Call ``step`` for at least ``seconds``, until the medians of successive windows agree or a limit is reached.

    After the first window a step on a GPU takes as many calls for a sample as its clock needs.
    """
    started, medians, stable = now(), [_window(step, seconds / 2, now)], False
    if step.events:
        step.events.settle(medians[0])
        medians = [_window(step, seconds / 2, now)]
    while not stable and len(medians) < METHOD.warm_windows:
        medians.append(_window(step, seconds / 2, now))
        stable = abs(medians[-1] / medians[-2] - 1) <= METHOD.warm_agreement
    return WarmUp(medians[-1], medians[-1] * step.repeats, now() - started, stable)


def _window(step: Step, seconds: float, now: Clock) -> float:
    samples, end = [timed(step)], now() + seconds
    while now() < end:
        samples.append(timed(step))
    return statistics.median(samples)


def timed(step: Step) -> float:
    """Return the seconds of one call: the mean of all calls of a sample."""
    started = step.clock()
    step()
    return step.clock() - started


def samples_for(sample_seconds: float, seconds: float) -> int:
    """Return how many samples fill ``seconds``, within ``SAMPLES``."""
    return int(np.clip(seconds / sample_seconds, *SAMPLES))


def time_case(
    benchmark: "BenchmarkFixture", case: Case, grid: BenchGrid, *, regime: str = "", cold: bool = False
) -> None:
    """Warm up, time single calls for the grid's ``row_seconds``, and note what was timed.

    ``regime`` and ``cold`` replace the target's own if they are given.
    """
    target, batch = replace(case.target, regime=regime) if regime else replace(case.target), case.batch
    target = replace(target, cold=True) if cold else target
    step = target.step(batch)
    use_clock(benchmark, step.clock)
    warm = warm_up(step, grid.warmup_seconds)
    with Watch(target.runner.device) as watch:
        benchmark.pedantic(step, rounds=samples_for(warm.sample_seconds, grid.row_seconds))
    benchmark.extra_info.update(target.facts(batch) | {"warm_up": warm.facts(), "machine": watch.facts()})
    if step.events:
        benchmark.extra_info["launch_seconds"] = step.events.launch_seconds
    if benchmark.stats:  # None with --benchmark-disable
        times = summarise(np.array(benchmark.stats.stats.data))
        disturbed = watch.disturbed[0] or not warm.stable
        benchmark.extra_info.update(times | {"examples_per_second": batch / times["p50"], "disturbed": disturbed})


@dataclass
class Interleaved:
    """Two steps timed alternately, ``samples`` of each per block; every block keeps the median of each.

    Attributes:
        loads: pairs of steps, ours and the baseline's; successive blocks use successive pairs.
        samples: per block, of ours and of the baseline.
        order: for every block whether the baseline goes first; balanced over every ``blocks``.
        blocks: how many are requested.
        watch: observes the machine during each block.
        medians: of each block so far, of ours and of the baseline, in seconds.
    """

    loads: list[tuple[Step, Step]]
    samples: tuple[int, int]
    order: list[bool]
    blocks: int
    watch: Watch
    medians: list[tuple[float, float]] = field(default_factory=list)

    def block(self) -> None:
        """Time one block: one turn of each side."""
        number, taken = len(self.medians), [0.0, 0.0]
        with self.watch:
            for side in (1, 0) if self.order[number % len(self.order)] else (0, 1):
                step = self.loads[number % len(self.loads)][side]
                taken[side] = statistics.median(timed(step) for _ in range(self.samples[side]))
        self.medians.append((taken[0], taken[1]))

    def hold(self, budget: Budget = ENDLESS) -> Self:
        """Time all blocks, and more if their noise requires it and the budget allows."""
        for _ in range(self.blocks):
            self.block()
        self.go_on(budget)
        return self

    def go_on(self, budget: Budget = ENDLESS) -> None:
        """Time more blocks while noise alone makes the interval wider than ``METHOD.same``.

        At most ``METHOD.patience`` times the blocks requested are timed. Neither the ratio nor its interval decides
        when this stops: stopping once an interval looks narrow would favour intervals that are too narrow. They have no
        influence either on when a budget ends, which leaves an interval that is wide and still valid.
        """
        while len(self.medians) < METHOD.patience * self.blocks and self.noisy() and not budget.over:
            for _ in range(len(self.loads)):
                self.block()

    def ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """Return our time divided by the baseline's for every block so far, and the index of the load in each."""
        ours, theirs = np.array(self.medians).T
        return ours / theirs, np.arange(len(ours)) % len(self.loads)

    def noisy(self) -> bool:
        """Return whether more blocks would narrow the interval where that matters."""
        return noise_reach(*self.ratios()) > METHOD.same

    def summary(self) -> dict:
        """Return the seconds of both sides, their ratio, its 95 % interval, and the verdict."""
        ours, theirs = np.array(self.medians).T
        low, high = ratio_interval(*self.ratios())
        return {
            "seconds": float(np.median(ours)),
            "baseline_seconds": float(np.median(theirs)),
            "ratio": math.sqrt(low * high),
            "ratio_low": low,
            "ratio_high": high,
            "verdict": verdict(low, high),
            "blocks": len(ours),
            "disturbed_blocks": sum(self.watch.disturbed),
            "loads": len(self.loads),
        }


def load_pairs(
    ours: Callable[[], Step], theirs: Callable[[], Step], now: Clock = time.perf_counter
) -> list[tuple[Step, Step]]:
    """Load each contender ``METHOD.loads`` times, alternating which goes first; once if loading takes too long.

    Too long is ``METHOD.load_seconds`` for the first pair.
    """
    started = now()
    pairs = [(ours(), theirs())]
    if now() - started < METHOD.load_seconds:
        for load in range(1, METHOD.loads):
            pairs.append((ours(), theirs()) if load % 2 == 0 else (theirs(), ours())[::-1])
    return pairs


def interleave(
    ours: Callable[[], Step],
    theirs: Callable[[], Step],
    device: str,
    grid: BenchGrid,
    seed: int,
    now: Clock = time.perf_counter,
) -> Interleaved:
    """Load and warm up two contenders, ready for the grid's ``blocks``, or for fewer if calls are long.

    ``now`` is the clock for loading and warming up; blocks are timed by the steps' own clocks.
    """
    loads = load_pairs(ours, theirs, now)
    warm = [warm_up(step, grid.warmup_seconds / len(loads), now).sample_seconds for pair in loads for step in pair]
    seconds = (min(warm[0::2]), min(warm[1::2]))
    samples = (samples_for(seconds[0], grid.block_seconds), samples_for(seconds[1], grid.block_seconds))
    block_seconds = sum(count * sample for count, sample in zip(samples, seconds, strict=True))
    longest = METHOD.overtime * 2 * grid.block_seconds * grid.blocks
    blocks = int(np.clip(longest / block_seconds, METHOD.fewest_blocks, grid.blocks))
    random = np.random.default_rng(seed)
    order = [random.permutation(np.arange(blocks) % 2 == part % 2) for part in range(METHOD.patience)]
    return Interleaved(loads, samples, np.concatenate(order).tolist(), blocks, Watch(device))


def on_one_clock(ours: Target, theirs: Target) -> tuple[Target, Target]:
    """Return both contenders in one regime: host arrays for both if only one of them can be timed by GPU events.

    The same holds if one is an external runtime, which accepts no other inputs.
    """
    one = ours.runner.on_events == theirs.runner.on_events
    alike = one and not (ours.runner.foreign or theirs.runner.foreign)
    return (ours, theirs) if alike else (replace(ours, host=True), replace(theirs, host=True))


def contest(name: str, benchmark: "BenchmarkFixture", case: Case, grid: BenchGrid, budget: Budget = ENDLESS) -> None:
    """Time a target against its baseline; the row's own samples are the target's medians of each block.

    Raises:
        TypeError: if the case has no baseline.
    """
    if case.baseline is None:
        raise TypeError(f"{case} is set against nothing")
    target, baseline = on_one_clock(case.target, case.baseline)
    benchmark.group = f"contest: {name}, batch {case.batch}, {target.runner.device}"
    seed = METHOD.seed + zlib.crc32(f"{target} {baseline} {case.batch}".encode())
    ours, theirs = (partial(side.step, case.batch) for side in (target, baseline))
    with using_threads(torch.get_num_threads()):  # either side may set its own
        turns = interleave(ours, theirs, target.runner.device, grid, seed).hold(budget)
    time_reported(benchmark, iter([median for median, _ in turns.medians]).__next__, len(turns.medians))
    benchmark.extra_info.update(contest_row(name, target, baseline, case.batch, turns))


def contest_row(name: str, target: Target, baseline: Target, batch: int, turns: Interleaved) -> dict:
    """Return a paired comparison as a row of the JSON: both sides, how they were fed, and the result."""
    notes = {
        "contest": name,
        "baseline": str(baseline),
        "baseline_label": baseline.network.facts.label,
        "baseline_artifact": baseline.artifact.name,
        "baseline_sha256": baseline.artifact.sha256,
        "baseline_options": baseline.facts(batch)["options"],
        "baseline_runner": baseline.runner.name,
        "baseline_threads": baseline.facts(batch)["threads"],
        "by_host": target.by_host,
        "machine": turns.watch.facts(),
    }
    return target.facts(batch) | notes | turns.summary()
