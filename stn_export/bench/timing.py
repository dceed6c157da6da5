"""How things are timed, rows and paired comparisons alike, and when no other row is begun; suites only say what."""

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

if TYPE_CHECKING:  # an extra that `check` does without
    from pytest_benchmark.fixture import BenchmarkFixture


# Which rows come first, and when no other one is begun.


# By worth: what ``all`` and the card must know comes before what the report draws. Of a suite the rows of one example,
# of the network that samples, come in the first place and all others in the second.
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
    """The place of a row among those that a budget may not suffice for; what answers most has the lowest.

    Of a suite without rows pytest collects a placeholder, which has no case.
    """
    if not isinstance(case, Case):
        return max(map(max, ORDER.values())) + 1
    subject, single = case.target.network.facts.role == SUBJECT, case.batch == 1
    first, others = ORDER[suite]
    return first if subject and (single or suite == "throughput") else others


class Budget:
    """Seconds for a session, counted from now; none is without end."""

    def __init__(self, seconds: float | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.end = math.inf if seconds is None else now() + seconds

    @property
    def left(self) -> float | None:
        """Seconds that are left, at least none; None where there is no end."""
        return None if math.isinf(self.end) else max(0.0, self.end - self.now())

    @property
    def over(self) -> bool:
        """Whether no other row is begun."""
        return self.now() >= self.end


Clock = Callable[[], float]  # seconds
ENDLESS = Budget()
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


def warm_up(step: Step, seconds: float, now: Clock = time.perf_counter) -> WarmUp:
    """Call ``step`` for ``seconds`` at least, and until the medians of two windows in a row agree or it is enough."""
    started, medians, stable = now(), [_window(step, seconds / 2, now)], False
    while not stable and len(medians) < METHOD.warm_windows:
        medians.append(_window(step, seconds / 2, now))
        stable = abs(medians[-1] / medians[-2] - 1) <= METHOD.warm_agreement
    return WarmUp(medians[-1], now() - started, stable)


def _window(step: Step, seconds: float, now: Clock) -> float:
    samples, end = [timed(step)], now() + seconds
    while now() < end:
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


def time_case(
    benchmark: "BenchmarkFixture", case: Case, grid: BenchGrid, *, regime: str = "", cold: bool = False
) -> None:
    """Warm up, time single calls for the grid's ``row_seconds``, and note what was timed.

    ``regime`` and ``cold`` stand instead of the target's own where they are given.
    """
    target, batch = replace(case.target, regime=regime) if regime else replace(case.target), case.batch
    target = replace(target, cold=True) if cold else target
    step = target.step(batch)
    use_clock(benchmark, step.clock)
    warm = warm_up(step, grid.warmup_seconds)
    with Watch(target.runner.device) as watch:
        benchmark.pedantic(step, rounds=calls_for(warm.call_seconds, grid.row_seconds))
    benchmark.extra_info.update(target.facts(batch) | {"warm_up": warm.facts(), "machine": watch.facts()})
    if benchmark.stats:  # not so with --benchmark-disable
        times = summarise(np.array(benchmark.stats.stats.data))
        disturbed = watch.disturbed[0] or not warm.stable
        benchmark.extra_info.update(times | {"examples_per_second": batch / times["p50"], "disturbed": disturbed})


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
        self.medians.append((taken[0], taken[1]))

    def hold(self, budget: Budget = ENDLESS) -> Self:
        """All blocks, and more of them where it takes more and the budget allows."""
        for _ in range(self.blocks):
            self.block()
        self.go_on(budget)
        return self

    def go_on(self, budget: Budget = ENDLESS) -> None:
        """More blocks where their noise alone makes an interval wider than the same, up to ``METHOD.patience`` as many.

        Neither the ratio nor its interval plays a part in when this stops: to stop once an interval looks narrow makes
        those that are too narrow the likelier ones. Nor do they in when a budget ends, which leaves an interval that
        is wide and as honest.
        """
        while len(self.medians) < METHOD.patience * self.blocks and self.noisy() and not budget.over:
            for _ in range(len(self.loads)):
                self.block()

    def ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """Ours by the baseline's in every block so far, and which load ran there."""
        ours, theirs = np.array(self.medians).T
        return ours / theirs, np.arange(len(ours)) % len(self.loads)

    def noisy(self) -> bool:
        """Whether more blocks would make the interval narrower where that matters."""
        return noise_reach(*self.ratios()) > METHOD.same

    def summary(self) -> dict:
        """Seconds of either, their ratio, its 95 % interval and what that says."""
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
    """Load both ``METHOD.loads`` times, each being first in turn; only once where that takes long."""
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
    """Load and warm up two contenders, ready for the grid's ``blocks``, fewer where calls are long.

    ``now`` is the clock that loading and warming up go by; blocks are timed by the steps' own.
    """
    loads = load_pairs(ours, theirs, now)
    found = [warm_up(step, grid.warmup_seconds / len(loads), now).call_seconds for pair in loads for step in pair]
    seconds = (min(found[0::2]), min(found[1::2]))
    calls = (calls_for(seconds[0], grid.block_seconds), calls_for(seconds[1], grid.block_seconds))
    block_seconds = sum(count * call_seconds for count, call_seconds in zip(calls, seconds, strict=True))
    longest = METHOD.overtime * 2 * grid.block_seconds * grid.blocks
    blocks = int(np.clip(longest / block_seconds, METHOD.fewest_blocks, grid.blocks))
    random = np.random.default_rng(seed)
    order = [random.permutation(np.arange(blocks) % 2 == part % 2) for part in range(METHOD.patience)]
    return Interleaved(loads, calls, np.concatenate(order).tolist(), blocks, Watch(device))


def on_one_clock(ours: Target, theirs: Target) -> tuple[Target, Target]:
    """Both contenders in one regime: where only one side's events can be had, host arrays go in and out of both.

    So they do where one is another runtime, which is given nothing else.
    """
    one = ours.runner.on_events == theirs.runner.on_events
    alike = one and not (ours.runner.foreign or theirs.runner.foreign)
    return (ours, theirs) if alike else (replace(ours, host=True), replace(theirs, host=True))


def contest(name: str, benchmark: "BenchmarkFixture", case: Case, grid: BenchGrid, budget: Budget = ENDLESS) -> None:
    """Set a target against its baseline; the row's own samples are ours in each block.

    Raises:
        TypeError: where the case has none.
    """
    if case.baseline is None:
        raise TypeError(f"{case} is set against nothing")
    target, baseline = on_one_clock(case.target, case.baseline)
    benchmark.group = f"contest: {name}, batch {case.batch}, {target.runner.device}"
    seed = METHOD.seed + zlib.crc32(f"{target} {baseline} {case.batch}".encode())
    ours, theirs = (partial(each.step, case.batch) for each in (target, baseline))
    with using_threads(torch.get_num_threads()):  # either side may set its own
        turns = interleave(ours, theirs, target.runner.device, grid, seed).hold(budget)
    time_reported(benchmark, iter([median for median, _ in turns.medians]).__next__, len(turns.medians))
    benchmark.extra_info.update(contest_row(name, target, baseline, case.batch, turns))


def contest_row(name: str, target: Target, baseline: Target, batch: int, turns: Interleaved) -> dict:
    """State a paired comparison as a row of the JSON does: both sides, how they were fed, and how it went."""
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
