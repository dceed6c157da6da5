"""Batch 1: how long one image takes."""

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.methodology import time_target
from benchmarks.targets import Target
from stn_export.config import BenchGrid


def test_latency(benchmark: BenchmarkFixture, target: Target, grid: BenchGrid, images: Callable[[int], Tensor]) -> None:
    benchmark.group = f"latency, batch 1, {target.runner.device}"
    time_target(benchmark, target, images(1), grid)
