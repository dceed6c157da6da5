"""The spatial transformer against the plain CNN, taking turns in one process: the ratio and its interval."""

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.methodology import Interleaved, rounds_for, warm_up
from benchmarks.targets import Target
from stn_export.config import BenchGrid


def test_overhead(
    benchmark: BenchmarkFixture,
    pair: tuple[Target, Target],
    overhead_batch: int,
    grid: BenchGrid,
    images: Callable[[int], Tensor],
    record_overhead: Callable[[tuple[str, ...]], None],
) -> None:
    """Each round times one block of either in its setup, then one call of the transformer for the row itself."""
    batch = images(overhead_batch)
    stn, cnn = (target.step(batch) for target in pair)
    warm_up(cnn, grid.warmup_seconds)
    calls = rounds_for(warm_up(stn, grid.warmup_seconds), grid.block_seconds)
    turns = Interleaved(stn, cnn, calls)
    benchmark.group = f"overhead of the transformer, batch {overhead_batch}, {pair[0].runner.device}"
    benchmark.pedantic(stn, setup=turns.block, rounds=grid.blocks)
    summary = turns.summary()
    benchmark.extra_info.update(pair[0].facts(overhead_batch) | {"baseline": str(pair[1])} | summary)
    record_overhead(
        (
            pair[0].backend,
            str(overhead_batch),
            f"{summary['seconds'] * 1e3:.3f}",
            f"{summary['baseline_seconds'] * 1e3:.3f}",
            f"{summary['ratio']:.2f}",
            f"{summary['ratio_low']:.2f} to {summary['ratio_high']:.2f}",
        )
    )
