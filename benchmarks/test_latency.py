"""Batch 1: how long one image takes, its input in place."""

from collections.abc import Callable
from dataclasses import replace

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from stn_export.bench.grids import BenchGrid
from stn_export.bench.methodology import time_target
from stn_export.bench.targets import Case

DIFFERENT = 1000  # images that the buffers of a cold row are filled from


def test_latency(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Callable[[int], Tensor]) -> None:
    """The input in the cache: the same buffer again and again."""
    benchmark.group = f"latency, batch {case.batch}, {case.target.runner.device}"
    time_target(benchmark, replace(case.target, regime="device"), images(case.batch), grid)


def test_cold(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Callable[[int], Tensor]) -> None:
    """The input out of the cache: more buffers in turn than it holds. Weights and code stay in it."""
    benchmark.group = f"latency, cold input, batch {case.batch}, {case.target.runner.device}"
    target = replace(case.target, regime="device", rotated=images(max(DIFFERENT, case.batch)))
    time_target(benchmark, target, images(case.batch), grid)
