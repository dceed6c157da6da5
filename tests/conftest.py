"""Runs that are made once a session and shared by all tests and workers; nothing is written into the checkout."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from filelock import FileLock

from stn_export import cli, errors
from stn_export.cli import tables
from stn_export.cli.tables import OUTPUT, Output
from stn_export.run.manifest import NetworkDirectory
from stn_export.train import __main__ as train
from stn_export.train.data import Dataset, Split, load_dataset
from stn_export.train.sweep import recipe_for
from stn_export.train.trainer import Settings
from tests import signal_stack
from tests.runs import enter_networks
from tests.widths import draw_at_every_width

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Hear the signals that ``nohup`` and shells without job control let every child ignore."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    tree = os.environ.get("STN_EXPORT_CIFAR10")
    reasons = {
        "cuda": "" if torch.cuda.is_available() else "PyTorch sees no GPU here",
        "cifar10": "" if tree else "STN_EXPORT_CIFAR10 names no CIFAR-10 image tree",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=needs_training)  # stable: tests stay in random order on either side


def needs_training(item: pytest.Item) -> bool:
    """Say whether a test waits for ``trained_run``: one worker makes it while the others run all that does not."""
    return "trained_run" in getattr(item, "fixturenames", ())


def skips_by_reason(reports: list[pytest.TestReport | pytest.CollectReport]) -> list[tuple[int, str]]:
    """Count skipped tests and files by reason, the most frequent first."""
    reasons = (each.longrepr[2].removeprefix("Skipped: ") for each in reports)
    return [(count, reason) for reason, count in Counter(reasons).most_common()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print skips grouped by reason, a line each."""
    if skipped := skips_by_reason(terminalreporter.stats.get("skipped", [])):
        terminalreporter.section("skipped, by reason")
        for count, reason in skipped:
            terminalreporter.write_line(f"{count:5} {reason}")


@pytest.fixture(scope="session", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of the whole session."""
    before, path = Path.cwd(), tmp_path_factory.mktemp("workspace")
    os.chdir(path)
    with mock.patch.object(errors, "has_make", errors.is_clone):  # hints as in the clone's folder
        yield path
    os.chdir(before)


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Where all workers of a session find what is made once; mutation testing names one for all of its sessions."""
    if named := os.environ.get("STN_EXPORT_TEST_RUNS"):
        Path(named).mkdir(parents=True, exist_ok=True)
        return Path(named)
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's state directory, for all workers of the session: what one writes the others may load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(shared_folder(tmp_path_factory) / "state"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _charts_stay_undrawn_for_mutants() -> Iterator[None]:
    """Mutation testing forks a process for every mutant, in which the threads of the drawing library are gone."""
    if "STN_EXPORT_TEST_RUNS" not in os.environ:
        yield
        return
    from stn_export.report import drawing, page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "to_svg", lambda chart: "<svg></svg>")
        patch.setattr(page, "to_png", lambda chart: b"\x89PNG")
        patch.setattr(drawing, "library", lambda: "")
        yield


@pytest.fixture(scope="session", autouse=True)
def _tables_lose_no_cell() -> Iterator[None]:
    """Every table that a test prints is drawn at all widths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "draw", draw_at_every_width)
        yield


@pytest.fixture(autouse=True)
def _signals_can_be_heard() -> Iterator[None]:
    """No test leaves the process unable to handle a signal, as a library did whose signal stack was unmapped."""
    yield
    assert signal_stack.is_usable(), "the next signal ends this process: its alternate signal stack is unmapped"


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    """No test leaves PyTorch another number of threads, with which matrix products round otherwise."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _output_as_usual() -> None:
    """Print as usual, whatever ``--brief`` or ``--format`` a parser of the tests before met."""
    vars(OUTPUT).update(vars(Output()))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The directory ``name/digits``, made by the first worker of the session that asks for it."""
    shared = shared_folder(factory)
    run, done = shared / name / "digits", shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(run, ignore_errors=True)
            make(run)
            done.touch()
    return run


def train_and_export(run: Path) -> None:
    """Two epochs of ``digits``, then all that is exported by default."""
    from stn_export.export import __main__ as export  # most tests do not need it

    assert cli.run(train.main, ["--epochs", "2", "--device", "cpu", "--run", str(run)]) == 0
    assert cli.run(export.main, ["--run", str(run)]) == 0


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``digits`` after two epochs, exported. Shared: read it, never change it."""
    return once(tmp_path_factory, "trained", train_and_export)


def compile_ahead(trained: Path, run: Path) -> None:
    """Copy a trained run and add its AOTInductor files; a precompiled header pays only where there are many."""
    from torch._inductor import config as inductor  # seconds, and few tests need it

    from stn_export.export.rows import EXPORTS, Source
    from stn_export.export.writing import unavailable, write

    shutil.copytree(trained, run)
    rows = [row for row in EXPORTS if row.format.startswith("aotinductor") and not unavailable(row)]
    assert rows
    with inductor.patch(cpp_cache_precompile_headers=False):
        assert not [said for row in rows if isinstance(said := write(Source(NetworkDirectory(run / "stn")), row), str)]


@pytest.fixture(scope="session")
def compiled_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``trained_run`` with AOTInductor files too. Shared: read it, never change it."""
    return once(tmp_path_factory, "compiled", partial(compile_ahead, trained_run))


@pytest.fixture(scope="session")
def entered_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``stn`` and ``cnn`` untrained, not exported. Shared: read it, never change it."""
    return once(tmp_path_factory, "entered", enter_networks)


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run for a test to spoil."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture
def stn(run: Path) -> NetworkDirectory:
    return NetworkDirectory(run / "stn")


@pytest.fixture(scope="session")
def drawn() -> dict[tuple[str, str], str | bytes]:
    """Charts by how and from what they were drawn."""
    return {}


@pytest.fixture
def charts_drawn_once(drawn: dict[tuple[str, str], str | bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports show a chart that was drawn from the same description before: drawing one takes a third of a second."""
    from stn_export.report import charts, drawing, page

    def kept(draw: Callable[..., str | bytes]) -> Callable[..., str | bytes]:
        def of(chart: charts.Chart) -> str | bytes:
            key = draw.__name__, json.dumps(chart.spec, sort_keys=True)
            if key not in drawn:
                drawn[key] = draw(chart)
            return drawn[key]

        return of

    for draw in (drawing.to_svg, drawing.to_png):
        monkeypatch.setattr(page, draw.__name__, kept(draw))


@pytest.fixture(scope="session")
def small() -> Dataset:
    """640 images to train on and 200 to test on: noise, brighter the larger the label."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (840,), generator=random)
    noise = torch.randint(150, (840, 3, 32, 32), generator=random)
    images = (noise + 10 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    whole = Split(images, labels)
    return Dataset("digits", whole[:640], whole[640:], fingerprint="small", source="made up")


@pytest.fixture
def settings() -> Settings:
    """Three epochs of ``stn`` on ``small``."""
    return Settings("stn", recipe_for("digits", None, 3), seed=1, dataset="digits", dataset_fingerprint="small")
