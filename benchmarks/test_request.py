"""What a caller sees: a host array in, a host array out, all copies included."""

from collections.abc import Callable
from dataclasses import replace

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.methodology import time_target
from benchmarks.targets import Case
from stn_export.grids import BenchGrid


def test_request(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Callable[[int], Tensor]) -> None:
    benchmark.group = f"request, batch {case.batch}, {case.target.runner.device}"
    time_target(benchmark, replace(case.target, regime="request"), images(case.batch), grid)
