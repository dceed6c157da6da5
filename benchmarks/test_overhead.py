"""Two artifacts that take turns in one process: their ratio and its interval."""

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.methodology import contest
from benchmarks.targets import Target
from stn_export.config import BenchGrid


def test_overhead(
    benchmark: BenchmarkFixture,
    pair: tuple[Target, Target],
    overhead_batch: int,
    grid: BenchGrid,
    images: Callable[[int], Tensor],
    closing_table: Callable[[str, dict], None],
) -> None:
    """The spatial transformer against the plain CNN."""
    benchmark.group = f"overhead of the transformer, batch {overhead_batch}, {pair[0].runner.device}"
    closing_table("overhead", contest(benchmark, *pair, images(overhead_batch), grid))


def test_lowering(
    benchmark: BenchmarkFixture,
    rivals: tuple[Target, Target],
    grid: BenchGrid,
    images: Callable[[int], Tensor],
    closing_table: Callable[[str, dict], None],
) -> None:
    """A lowering against the one that PyTorch's exporter gives by itself, for one image."""
    benchmark.group = f"lowerings against the exporter's own, batch 1, {rivals[0].runner.device}"
    closing_table("lowering", contest(benchmark, *rivals, images(1), grid))
