"""Contests: two artifacts that take turns in one process, their ratio and its interval."""

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from stn_export.bench.grids import BenchGrid
from stn_export.bench.methodology import contest
from stn_export.bench.targets import Case

Close = Callable[[str, dict], None]
Images = Callable[[int], Tensor]
GROUPS = {
    "overhead": "overhead of the transformer",
    "lowering": "lowerings against the exporter's own",
    "eager": "against eager PyTorch",
    "default": "against the default export in a default session",
}


def hold(name: str, benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Images, close: Close) -> None:
    """Hold the contest of that name, and enter it in its closing table."""
    benchmark.group = f"{GROUPS[name]}, batch {case.batch}, {case.target.runner.device}"
    benchmark.extra_info["contest"] = name
    close(name, contest(benchmark, case.target, case.baseline, images(case.batch), grid))


def test_overhead(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Images, close: Close) -> None:
    """The spatial transformer against the plain CNN."""
    hold("overhead", benchmark, case, grid, images, close)


def test_lowering(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Images, close: Close) -> None:
    """A lowering against the one that PyTorch's exporter gives by itself."""
    hold("lowering", benchmark, case, grid, images, close)


def test_eager(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Images, close: Close) -> None:
    """A backend against eager PyTorch with the same images."""
    hold("eager", benchmark, case, grid, images, close)


def test_default(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, images: Images, close: Close) -> None:
    """A backend against what people get by default: the default export in a default session of ONNX Runtime."""
    hold("default", benchmark, case, grid, images, close)
