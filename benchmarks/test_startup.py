"""Time a fresh process: loading (or compiling) an artifact and its first answer; imports are a separate figure."""

from dataclasses import replace

from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.cases import Case
from stn_export.bench.machine import time_reported
from stn_export.bench.plan import BenchGrid
from stn_export.bench.startup import start, summary


def test_startup(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid) -> None:
    """Start fresh processes; the row's time is loading and the first inference together."""
    benchmark.group = f"start-up of a fresh process, {case.target.runner.device}"
    target, starts = replace(case.target, regime="start-up"), []
    [feeds] = target.feeds(case.batch)

    def begin() -> float:
        starts.append(start(target, feeds, grid.threads))
        return starts[-1]["load_seconds"] + starts[-1]["first_seconds"]

    time_reported(benchmark, begin, rounds=grid.startups)
    benchmark.extra_info.update(target.facts(case.batch) | summary(starts))
