"""Time what a caller sees: host arrays in, host arrays out, with all copies."""

from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.cases import Case
from stn_export.bench.plan import BenchGrid
from stn_export.bench.timing import time_case


def test_request(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid) -> None:
    """Time a request from host arrays to host arrays."""
    benchmark.group = f"request, batch {case.batch}, {case.target.runner.device}"
    time_case(benchmark, case, grid, regime="request")
