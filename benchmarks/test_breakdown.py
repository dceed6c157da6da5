"""Where the time goes, part by part: profiled, and never a latency to quote."""

from collections.abc import Callable
from dataclasses import replace

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from stn_export.bench.clocks import time_reported
from stn_export.bench.grids import BenchGrid
from stn_export.bench.parts import Timed, summed
from stn_export.bench.profiling import profile_eager, profile_onnx
from stn_export.bench.targets import Case
from stn_export.train.data import contract_batch


def test_breakdown(
    benchmark: BenchmarkFixture,
    case: Case,
    grid: BenchGrid,
    images: Callable[[int], Tensor],
    close: Callable[[str, dict], None],
) -> None:
    """The row's time is the sum over all nodes."""
    benchmark.group = f"where the time goes, batch {case.batch}, {case.target.runner.device}"
    target = replace(case.target, regime="breakdown")
    batch = contract_batch(images(case.batch), target.artifact.input_contract)
    nodes: list[Timed] = []

    def look() -> float:
        if target.artifact.format == "onnx":
            nodes[:] = profile_onnx(target.path, batch, grid.profiled_calls, grid.threads)
        else:
            runner = target.open()
            nodes[:] = profile_eager(runner.module, torch.from_numpy(batch).to(runner.device), grid.profiled_calls)
        return sum(node.seconds for node in nodes)

    time_reported(benchmark, look, rounds=1)
    benchmark.extra_info.update(target.facts(case.batch) | {"breakdown": summed(nodes), "nodes": nodes})
    close("breakdown", benchmark.extra_info)
