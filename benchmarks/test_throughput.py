"""Larger batches: how many images a second, inputs in place."""

from collections.abc import Callable
from dataclasses import replace

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from stn_export.bench.grids import BenchGrid
from stn_export.bench.methodology import time_target
from stn_export.bench.targets import Case


def test_throughput(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Callable[[int], Tensor]) -> None:
    benchmark.group = f"throughput, batch {case.batch}, {case.target.runner.device}"
    time_target(benchmark, replace(case.target, regime="offline"), images(case.batch), grid)
