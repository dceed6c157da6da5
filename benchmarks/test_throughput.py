"""Time larger batches with inputs in place: examples per second."""

from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.cases import Case
from stn_export.bench.plan import BenchGrid
from stn_export.bench.timing import time_case


def test_throughput(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid) -> None:
    """Time a batch with its inputs in place."""
    benchmark.group = f"throughput, batch {case.batch}, {case.target.runner.device}"
    time_case(benchmark, case, grid, regime="offline")
