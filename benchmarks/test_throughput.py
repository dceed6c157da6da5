"""Larger batches: how many images a second."""

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.methodology import time_target
from benchmarks.targets import Target
from stn_export.config import BenchGrid


def test_throughput(
    benchmark: BenchmarkFixture,
    target: Target,
    throughput_batch: int,
    grid: BenchGrid,
    images: Callable[[int], Tensor],
) -> None:
    benchmark.group = f"throughput, batch {throughput_batch}, {target.runner.device}"
    time_target(benchmark, target, images(throughput_batch), grid)
