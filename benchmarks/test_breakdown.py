"""Profile where the time goes, part by part; the total is not a latency."""

from dataclasses import replace

from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.cases import Case
from stn_export.bench.machine import time_reported
from stn_export.bench.plan import BenchGrid
from stn_export.bench.profiling import profiled


def test_breakdown(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid) -> None:
    """Profile a target; the row's time is the sum over all nodes."""
    benchmark.group = f"where the time goes, batch {case.batch}, {case.target.runner.device}"
    target = replace(case.target, regime="breakdown")
    found = profiled(target, case.batch, grid)
    time_reported(benchmark, lambda: found.seconds, rounds=1)
    benchmark.extra_info.update(target.facts(case.batch) | found.facts())
