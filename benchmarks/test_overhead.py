"""Contests: two artifacts that take turns in one process, their ratio and its interval."""

from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.cases import Case
from stn_export.bench.plan import BenchGrid
from stn_export.bench.timing import Budget, contest


def test_overhead(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """The network that samples against the run's plain one."""
    contest("overhead", benchmark, case, grid, budget)


def test_default(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """A backend against what people get by default: the default export in a default session of ONNX Runtime."""
    contest("default", benchmark, case, grid, budget)


def test_eager(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """A backend against eager PyTorch with the same examples."""
    contest("eager", benchmark, case, grid, budget)


def test_lowering(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """A lowering against the one that PyTorch's exporter gives by itself."""
    contest("lowering", benchmark, case, grid, budget)


def test_pytorch(benchmark: BenchmarkFixture, case: Case, grid: BenchGrid, budget: Budget) -> None:
    """A request to a backend against one to eager PyTorch, channels_last or torch.compile, on as many threads each."""
    contest("pytorch", benchmark, case, grid, budget)
