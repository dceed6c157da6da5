"""Larger batches: how many images a second, inputs in place."""

from collections.abc import Callable
from dataclasses import replace

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.methodology import time_target
from benchmarks.targets import Case
from stn_export.grids import BenchGrid


def test_throughput(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Callable[[int], Tensor]) -> None:
    benchmark.group = f"throughput, batch {case.batch}, {case.target.runner.device}"
    time_target(benchmark, replace(case.target, regime="offline"), images(case.batch), grid)
