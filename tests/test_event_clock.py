"""Events on a GPU are read in half microseconds, and it idles between calls: samples of many calls are right."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from stn_export.bench.plan import GRIDS
from stn_export.bench.timing import interleave, warm_up
from stn_export.results.statistics import METHOD
from stn_export.runners import base
from stn_export.runners.base import EventClock, Step, in_turn

CALL = 8e-6  # seconds, as the transformer in a CUDA graph at batch 1 may take
GAP = 1e-6  # seconds that work takes longer on a GPU that has been idle
LAUNCH = 3e-6  # seconds of the host for each launch
NOISE = 0.01
GRID = replace(GRIDS["quick"], blocks=20, block_seconds=0.01, warmup_seconds=0.02)


class Gpu:
    """A GPU on a simulated time: launches queue up, events are read in steps of half a microsecond."""

    def __init__(self, seed: int) -> None:
        self.host = self.free = 0.0  # when the host is, and when the queue is empty
        self.random = np.random.default_rng(seed)

    def launch(self, seconds: float) -> None:
        """Queue work of this length."""
        self.host += LAUNCH
        if self.host > self.free:  # idle until now
            self.free = self.host + GAP
        self.free += seconds * math.exp(self.random.normal(0, NOISE))

    def step(self, seconds: float) -> Step[None]:
        """A step whose calls take this long, on events of this GPU."""
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self, stream: object) -> None:
                self.at = max(gpu.host, gpu.free)

            def synchronize(self) -> None:
                gpu.host = max(gpu.host, gpu.free) + 5e-6

            def elapsed_time(self, end: "Event") -> float:
                ticks = round((end.at - self.at) / base.RESOLUTION)
                return max(ticks, 1) * base.RESOLUTION * 1e3

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "Event", Event)
            return EventClock(stream=None).step(lambda: self.launch(seconds))

    def now(self) -> float:
        """The host's time in seconds."""
        return self.host


def verdicts(trials: int) -> list[tuple[float, str, bool]]:
    """Of each paired comparison its true ratio, its verdict, and whether its interval holds the truth."""
    found = []
    for seed in range(trials):
        ratio, gpu = (0.9, 1.0, 1.06, 1.15)[seed % 4], Gpu(seed)
        loads = partial(gpu.step, ratio * CALL), partial(gpu.step, CALL)
        turns = interleave(*loads, "cpu", GRID, seed, gpu.now).hold()
        row = turns.summary()
        found.append((ratio, row["verdict"], row["ratio_low"] <= ratio <= row["ratio_high"]))
    return found


def right(ratio: float) -> str:
    """The verdict that is true."""
    return "same" if ratio == 1 else "faster" if ratio < 1 else "slower"


def test_every_verdict_is_right_at_eight_microseconds():
    found = verdicts(24)
    assert [verdict for _, verdict, _ in found] == [right(ratio) for ratio, _, _ in found]
    assert sum(held for _, _, held in found) >= 20  # of 24, at 95 % each


def test_single_calls_between_events_would_mislead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "MOST_REPEATS", 1)
    monkeypatch.setattr(base, "LATENCY", 0.0)
    found = verdicts(24)
    assert sum(held for _, _, held in found) < 12


def test_a_sample_is_the_mean_of_calls_that_follow_each_other():
    gpu = Gpu(0)
    step = gpu.step(CALL)
    assert step.repeats == 1
    warm = warm_up(step, 0.02, gpu.now)
    assert step.repeats == pytest.approx(500e-6 / CALL, abs=4)
    assert warm.call_seconds == pytest.approx(CALL, rel=0.01)
    assert warm.sample_seconds == pytest.approx(step.repeats * CALL, rel=0.01)


@pytest.mark.parametrize(("seconds", "repeats"), [(1e-7, 1000), (8e-6, 63), (400e-6, 2), (500e-6, 1), (0.1, 1)])
def test_how_many_calls_a_sample_takes_follows_from_their_length(seconds: float, repeats: int):
    clock = Gpu(0).step(CALL).events
    assert clock is not None
    clock.settle(seconds)
    assert clock.repeats == repeats


def test_the_hosts_time_for_launching_is_kept_beside(monkeypatch: pytest.MonkeyPatch):
    gpu = Gpu(0)
    step = gpu.step(CALL)
    monkeypatch.setattr(base.time, "perf_counter", gpu.now)
    warm_up(step, 0.02, gpu.now)
    assert step.events is not None
    assert step.events.launch_seconds == pytest.approx(LAUNCH)


def test_steps_in_turn_are_launched_in_turn_within_a_sample():
    launched: list[str] = []
    events = Gpu(0).step(CALL).events
    assert events is not None
    step = in_turn([events.step(lambda name=name: launched.append(name)) for name in "abc"])
    events.settle(250e-6)
    step()
    step()
    assert launched == list("abcabc")  # one goes ahead of two
    assert METHOD.same > 2 * base.SHARE  # the resolution cannot decide a verdict
