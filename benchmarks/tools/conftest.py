"""Options of the suite that times training; use it with ``--confcutdir`` to exclude the other suites' options."""

import pytest

from stn_export import cli
from stn_export.run.environment import describe


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("stn_export")
    group.addoption("--dataset", default="digits", help="what is trained on")
    group.addoption("--data", type=cli.path_or_none, help="directory that contains CIFAR-10")
    group.addoption("--device", default="auto", help="cpu, cuda or auto")
    group.addoption("--pairs", type=int, default=5, help="how many epochs of either loop take turns")


def pytest_benchmark_update_machine_info(machine_info: dict) -> None:
    """Add our environment to pytest-benchmark's."""
    machine_info["stn_export"] = describe()
