"""Options and fixtures of the suites, and the closing tables.

python -m pytest benchmarks --run artifacts/digits --grid quick --benchmark-json bench.json

With ``--dataset`` training is timed, and nothing else: that takes minutes and needs no run.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stn_export import cli
from stn_export.artifacts.environment import DEVICES, describe, resolve_device
from stn_export.artifacts.manifest import network_directories
from stn_export.bench.grids import GRIDS, BenchGrid
from stn_export.bench.parts import PARTS
from stn_export.bench.targets import cases, find_targets, left_out
from stn_export.config import ARTIFACTS, DEFAULT_DATASET
from stn_export.errors import EXIT_USER, UserError, require_choice
from stn_export.train.data import example_images, load_dataset, trained_on

OF_TRAINING = "test_training.py"
CONTESTS = {
    "overhead": ("The spatial transformer against the plain CNN", "STN", "CNN"),
    "lowering": ("Lowerings against what PyTorch's exporter gives by itself", "lowering", "decomposed"),
    "eager": ("Against eager PyTorch with the same images", "this", "eager"),
    "default": ("Against the default export in a default session, one image", "this", "default"),
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
    config.closing = {table: [] for table in (*CONTESTS, "start-up", "breakdown")}
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
    """One test for every row that the grid has in the suite which the function is named after."""
    if "case" in metafunc.fixturenames:
        suite, grid = metafunc.function.__name__.removeprefix("test_"), metafunc.config.grid
        metafunc.parametrize("case", list(cases(suite, metafunc.config.targets, getattr(grid, suite))), ids=str)


@pytest.fixture
def grid(pytestconfig: pytest.Config) -> BenchGrid:
    """How long and how often."""
    return pytestconfig.grid


@pytest.fixture(scope="session")
def images(pytestconfig: pytest.Config) -> Callable[[int], Tensor]:
    """Real test images by batch size, N×3×32×32 uint8."""
    checkpoint = network_directories(pytestconfig.getoption("--run"))[0].checkpoint()
    dataset = trained_on(checkpoint, pytestconfig.getoption("--data"))
    return lambda batch: example_images(dataset, batch)


@pytest.fixture
def close(pytestconfig: pytest.Config) -> Callable[[str, dict], None]:
    """Add a row's figures to one of the closing tables."""
    return lambda table, figures: pytestconfig.closing[table].append(figures)


def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    """Put our environment beside pytest-benchmark's own."""
    machine_info["stn_export"] = describe()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(config: pytest.Config) -> None:
    """Close with the contests, what starting takes, where the time goes, and what could not be timed here."""
    for name, (title, ours, theirs) in CONTESTS.items():
        columns = ("backend", "batch", f"{ours} ms", f"{theirs} ms", f"{ours}/{theirs}", "95 % interval")
        _table(title, columns, list(map(_contest_row, config.closing[name])))
    columns = ("backend", "imports s", "load s", "first answer s")
    _table("A fresh process until its first answer", columns, list(map(_start_row, config.closing["start-up"])))
    columns = ("backend", "batch", *(f"{part} µs" for part in PARTS))
    _table("Where the time goes (profiled)", columns, list(map(_breakdown_row, config.closing["breakdown"])))
    reasons = left_out(config.getoption("--run"), config.getoption("--device"))
    for reason in sorted(set(reasons.values())):
        names = ", ".join(name for name, each in reasons.items() if each == reason)
        cli.say(f"[dim]not timed, {cli.escape(reason)}: {cli.escape(names)}[/]")
    if slow := sorted({each.runner.name for each in config.targets if each.runner.slow}):
        cli.say(f"[dim]slow to start, timed only where grid {config.grid.name} asks for them: {', '.join(slow)}[/]")


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if rows:
        cli.table(f"\n{title}", columns, rows)


def _name(figures: dict) -> str:
    return f"{figures['model']} {figures['runner']} {figures['artifact']}"


def _contest_row(figures: dict) -> tuple[str, ...]:
    return (
        _name(figures),
        str(figures["batch"]),
        f"{figures['seconds'] * 1e3:.3f}",
        f"{figures['baseline_seconds'] * 1e3:.3f}",
        f"{figures['ratio']:.2f}",
        f"{figures['ratio_low']:.2f} to {figures['ratio_high']:.2f}",
    )


def _start_row(figures: dict) -> tuple[str, ...]:
    times = (figures[name] for name in ("import_seconds", "load_seconds", "first_seconds"))
    return (_name(figures), *(f"{seconds:.3f}" for seconds in times))


def _breakdown_row(figures: dict) -> tuple[str, ...]:
    return (_name(figures), str(figures["batch"]), *(f"{figures['breakdown'][part] * 1e6:.0f}" for part in PARTS))
