"""Larger batches: how many images a second."""

from collections.abc import Callable

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.methodology import time_target
from benchmarks.targets import Target
from stn_export.config import BenchGrid


def test_throughput(
    benchmark: BenchmarkFixture,
    target: Target,
    throughput_batch: int,
    grid: BenchGrid,
    images: Callable[[int], np.ndarray],
) -> None:
    benchmark.group = f"throughput, batch {throughput_batch}, {target.runner.device}"
    time_target(benchmark, target, images(throughput_batch), grid)
