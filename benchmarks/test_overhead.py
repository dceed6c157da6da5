"""Paired comparisons: two artifacts timed alternately in one process, their ratio and its interval."""

from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.cases import Case
from stn_export.bench.plan import BenchGrid
from stn_export.bench.timing import Budget, contest


def test_overhead(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """Compare the network that samples with the run's plain one."""
    contest("overhead", benchmark, case, grid, budget)


def test_default(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """Compare a backend with the default export in a default session of ONNX Runtime."""
    contest("default", benchmark, case, grid, budget)


def test_eager(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """Compare a backend with eager PyTorch on the same examples."""
    contest("eager", benchmark, case, grid, budget)


def test_lowering(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """Compare a lowering with the one that PyTorch's exporter uses by default."""
    contest("lowering", benchmark, case, grid, budget)


def test_pytorch(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """Compare requests to a backend with those to eager PyTorch, channels_last or torch.compile, on as many threads."""
    contest("pytorch", benchmark, case, grid, budget)
