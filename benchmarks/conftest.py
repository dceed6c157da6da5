"""Options and fixtures of the suites; their session is in ``stn_export.bench.session``.

python -m stn_export.bench --run artifacts/digits --grid quick
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from stn_export.bench.plan import BenchGrid
from stn_export.bench.plugin import Plugin
from stn_export.bench.session import Session, refusing
from stn_export.bench.timing import Budget
from stn_export.config import DEFAULT_RUN
from stn_export.run.environment import describe
from stn_export.runners.external import RefusedError

collect_ignore = ["tools"]  # the maintainers' tools; their suite times training


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suites' options."""
    group = parser.getgroup("stn_export")
    group.addoption("--run", type=Path, default=DEFAULT_RUN, help="run directory")
    group.addoption("--grid", default="quick", help="how much is timed")
    group.addoption("--device", default="auto", help="time on this device only: cpu or cuda; auto takes both")


def pytest_configure(config: pytest.Config) -> None:
    """Open the session, or stop with a user error before anything is collected."""
    opened = [each.opened for _, each in config.pluginmanager.list_name_plugin() if isinstance(each, Plugin)]
    config.timing = next(iter(opened), None)
    if config.timing is None:  # pytest was not started by the stage
        with refusing():
            config.timing = Session.open(*map(config.getoption, ("--run", "--device", "--grid")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Create one test for every row that the grid has in the suite that the function is named after."""
    if "case" in metafunc.fixturenames:
        suite = metafunc.function.__name__.removeprefix("test_")
        metafunc.parametrize("case", list(metafunc.config.timing.cases(suite)), ids=str)


@pytest.fixture
def grid(pytestconfig: pytest.Config) -> BenchGrid:
    """Return how long and how often rows are timed."""
    return pytestconfig.timing.grid


@pytest.fixture
def budget(pytestconfig: pytest.Config) -> Budget:
    """Return the time limit after which no row starts."""
    return pytestconfig.timing.budget


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip a row if the runtime does not support its batch."""
    try:
        return (yield)
    except RefusedError as why:
        pytest.skip(str(why))


@pytest.fixture(autouse=True)
def noted(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Iterator[None]:
    """Store the row's figures."""
    yield
    if request.config.timing is not None and benchmark.extra_info:
        request.config.timing.note(request.node.name, benchmark)


def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    """Add our environment to pytest-benchmark's."""
    machine_info["stn_export"] = describe()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict) -> None:
    """Complete the file: kept rows, the networks' work, short row names."""
    if config.timing is not None:
        config.timing.complete(output_json)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(config: pytest.Config) -> None:
    """Print the closing tables."""
    if config.timing is not None:
        config.timing.close()
