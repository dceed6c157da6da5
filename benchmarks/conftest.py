"""Options and fixtures of the suites, and the closing table.

python -m pytest benchmarks --run artifacts/digits --grid quick --benchmark-json bench.json

With ``--dataset`` training is timed, and nothing else: that takes minutes and needs no run.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.targets import find_targets, pairs, rivals
from stn_export import cli
from stn_export.artifacts import model_directories
from stn_export.config import ARTIFACTS, DEFAULT_DATASET, GRIDS, BenchGrid
from stn_export.data import example_images, load_dataset, trained_on
from stn_export.environment import DEVICES, describe, resolve_device
from stn_export.errors import EXIT_USER, UserError, require_choice

OF_TRAINING = "test_training.py"
CLOSING_TABLES = {
    "overhead": ("The spatial transformer against the plain CNN", "STN", "CNN"),
    "lowering": ("Lowerings against what PyTorch's exporter gives by itself", "lowering", "default"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of our own."""
    group = parser.getgroup("stn_export")
    group.addoption("--run", type=Path, default=ARTIFACTS / DEFAULT_DATASET, help="run directory")
    group.addoption("--grid", default="quick", help=f"what is timed, one of: {', '.join(GRIDS)}")
    group.addoption("--device", default="auto", help="time on this device only: cpu or cuda; auto takes both")
    group.addoption("--data", type=cli.path_or_none, default=None, help="directory that holds CIFAR-10")
    group.addoption("--dataset", default=None, help="time training on this data set instead of a run's files")
    group.addoption("--pairs", type=int, default=5, help="how many epochs of either loop take turns")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be timed before anything is collected; pin the threads."""
    config.contests = {table: [] for table in CLOSING_TABLES}
    config.targets = []
    try:
        config.grid = GRIDS[require_choice("grid", config.getoption("--grid"), list(GRIDS))]
        device = require_choice("device", config.getoption("--device"), DEVICES)
        if name := config.getoption("--dataset"):
            config.training_device = resolve_device(device)
            config.training_dataset = load_dataset(name, config.getoption("--data"))
            return
        config.targets = find_targets(config.getoption("--run"), device)
    except UserError as error:
        pytest.exit(f"error: {error}\nhint:  {error.hint}", returncode=EXIT_USER)
    torch.set_num_threads(config.grid.threads)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Training's suite or the others, never both."""
    if not collection_path.name.startswith("test_"):
        return None
    return (collection_path.name == OF_TRAINING) != bool(config.getoption("--dataset")) or None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a target, or a pair of targets, and a batch size."""
    grid, targets = metafunc.config.grid, metafunc.config.targets
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("target", targets, ids=str)
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", pairs(targets), ids=lambda pair: pair[0].backend)
    if "rivals" in metafunc.fixturenames:
        metafunc.parametrize("rivals", rivals(targets), ids=lambda pair: pair[0].backend)
    if "throughput_batch" in metafunc.fixturenames:
        metafunc.parametrize("throughput_batch", grid.throughput_batches)
    if "overhead_batch" in metafunc.fixturenames:
        metafunc.parametrize("overhead_batch", grid.overhead_batches)


@pytest.fixture
def grid(pytestconfig: pytest.Config) -> BenchGrid:
    """How long and how often."""
    return pytestconfig.grid


@pytest.fixture(scope="session")
def images(pytestconfig: pytest.Config) -> Callable[[int], Tensor]:
    """Real test images by batch size, N×3×32×32 uint8."""
    checkpoint = model_directories(pytestconfig.getoption("--run"))[0].checkpoint()
    dataset = trained_on(checkpoint, pytestconfig.getoption("--data"))
    return lambda batch: example_images(dataset, batch)


@pytest.fixture
def closing_table(pytestconfig: pytest.Config) -> Callable[[str, dict], None]:
    """Add a contest's figures to one of the closing tables."""
    return lambda table, figures: pytestconfig.contests[table].append(figures)


def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    """Put our environment beside pytest-benchmark's own."""
    machine_info["stn_export"] = describe()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(config: pytest.Config) -> None:
    """Close with what the spatial transformer costs against the plain CNN, and each lowering against the default."""
    for table, (title, ours, theirs) in CLOSING_TABLES.items():
        if rows := config.contests[table]:
            columns = ("backend", "batch", f"{ours} ms", f"{theirs} ms", f"{ours}/{theirs}", "95 % interval")
            cli.table(f"\n{title}", columns, list(map(_closing_row, rows)))


def _closing_row(figures: dict) -> tuple[str, ...]:
    return (
        f"{figures['runner']} {figures['artifact']}",
        str(figures["batch"]),
        f"{figures['seconds'] * 1e3:.3f}",
        f"{figures['baseline_seconds'] * 1e3:.3f}",
        f"{figures['ratio']:.2f}",
        f"{figures['ratio_low']:.2f} to {figures['ratio_high']:.2f}",
    )
