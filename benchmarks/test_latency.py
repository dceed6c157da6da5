"""Time single examples, batch 1, with inputs in place."""

from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.cases import Case
from stn_export.bench.plan import BenchGrid
from stn_export.bench.timing import time_case


def test_latency(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid) -> None:
    """Time with inputs in the cache: the same buffer in every call."""
    benchmark.group = f"latency, batch {case.batch}, {case.target.runner.device}"
    time_case(benchmark, case, grid, regime="device")


def test_cold(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid) -> None:
    """Time with inputs out of the cache: more buffers in turn than it can hold. Weights and code stay in it."""
    benchmark.group = f"latency, cold input, batch {case.batch}, {case.target.runner.device}"
    time_case(benchmark, case, grid, regime="device", cold=True)
