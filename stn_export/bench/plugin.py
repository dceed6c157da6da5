"""What the stage ``bench`` adds to pytest: the order of rows, a budget, what is shown meanwhile, and what is kept.

Without ``--verbose`` pytest itself says nothing: what failed and what was interrupted is said as every stage says it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pytest
from pytest_benchmark.session import BenchmarkSession
from pytest_benchmark.stats import Metadata
from rich.progress import TaskID

from stn_export import cli
from stn_export.bench.session import RowJournal, Session, suite_of
from stn_export.bench.timing import Budget, worth
from stn_export.cli.progress_bar import Progress

OVER = "budget"  # why a row that no time was left for is not timed


@dataclass
class Plugin:
    """One session of the suites as the stage starts it.

    Attributes:
        path: the file that kept rows come from and that all are written to in the end.
        budget: when no other row is begun.
        again: whether what is kept is timed once more.
        loud: whether pytest says its own lines.
        timing: what is timed; None where that is training, and before it is known.
        total: rows that were chosen, kept ones among them.
        failed: why a row could not be timed, by its name.
        interrupted: whether Ctrl-C or a signal ended it.
        broken: what went wrong with pytest itself.
        ended: why a suite ended the session.
    """

    path: Path
    budget: Budget
    again: bool = False
    loud: bool = False
    timing: Session | None = None
    total: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    broken: str = ""
    ended: str = ""
    bar: Progress | None = None
    task: TaskID | None = None

    @property
    def kept(self) -> int:
        """How many of the chosen rows there are."""
        return self.done - len(self.failed) - len(self.skipped)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Take up what is kept, once the conftest of the suites knows what is to be timed."""
        self.timing = config.timing  # type: ignore[attr-defined]  # set by the suites' conftest
        if not self.loud and not config.getoption("collectonly"):
            silence(config)
        if self.timing:
            self.timing.budget = self.budget
            self.timing.resume(self.path, RowJournal(self.path), self.again)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what is kept of what was chosen, and put first what answers most."""
        if self.timing:
            kept = [item for item in items if item.nodeid in self.timing.kept]
            self.total, self.done = len(items), len(kept)
            config.hook.pytest_deselected(items=kept)
            items[:] = [item for item in items if item.nodeid not in self.timing.kept]
            items.sort(key=_worth)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        """Show what is done and what is left."""
        with ExitStack() as stack:
            if self.timing and session.items and not self.loud:
                self.bar = stack.enter_context(cli.progress(word="bench", unit="rows", still=True))
                self.bar.most = lambda: self.budget.left
                self.task = self.bar.add_task("bench", total=self.total, completed=self.done)
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Leave out a row that no time is left for."""
        if self.timing is None or not self.budget.over:
            return None
        self.timing.not_timed[item.nodeid] = OVER
        return True

    def pytest_runtest_logfinish(self) -> None:
        """Count a row."""
        self.done += 1
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done)
            self.bar.refresh()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note why a row could not be timed."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[report.nodeid] = crash.message if crash else str(report.longrepr)
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a suite that cannot be read."""
        if report.failed:
            self.broken = str(report.longrepr)

    def pytest_internalerror(self, excrepr: object) -> None:
        """Note a bug."""
        self.broken = str(excrepr)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo) -> None:
        """Tell Ctrl-C from what ends pytest otherwise, which says why."""
        self.interrupted = excinfo.type is KeyboardInterrupt
        self.ended = "" if self.interrupted else str(excinfo.value)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Have pytest-benchmark write whole rows only, and also where this session has no new one."""
        benchmarks: BenchmarkSession = session.config._benchmarksession  # type: ignore[attr-defined]  # set by its plugin
        benchmarks.benchmarks[:] = [each for each in benchmarks.benchmarks if whole(each, self.timing)]
        if self.timing and not benchmarks.benchmarks:
            if self.timing.kept or self.timing.not_timed:
                write(benchmarks)
            benchmarks.json = None
        return (yield)


def _worth(item: pytest.Item) -> int:
    """Where a row stands among those of a session.

    Raises:
        TypeError: where it is none of a suite.
    """
    if not isinstance(item, pytest.Function):
        raise TypeError(f"{item.nodeid} is no row of a suite")
    return worth(suite_of(item), item.callspec.params["case"])


def whole(benchmark: Metadata, timing: Session | None) -> bool:
    """Tell whether a row was timed to its end; of training it is its seconds that say so."""
    return bool(benchmark.stats.data and ("key" if timing else "seconds") in benchmark.extra_info)


def write(benchmarks: BenchmarkSession) -> None:
    """Write a file of pytest-benchmark's that holds kept rows only."""
    hook, config = benchmarks.config.hook, benchmarks.config
    commit = hook.pytest_benchmark_generate_commit_info(config=config)
    none: dict = {"config": config, "benchmarks": []}
    machine = {"machine_info": benchmarks.get_machine_info(), "commit_info": commit}
    content = hook.pytest_benchmark_generate_json(**none, **machine, include_data=True)
    hook.pytest_benchmark_update_json(**none, output_json=content)
    benchmarks.save_json(content)


def silence(config: pytest.Config) -> None:
    """Let pytest's reporter write nowhere."""
    nowhere: TextIO = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # as long as the reporter lives
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(pytest.TerminalReporter(config, nowhere), "terminalreporter")


def say_broken(text: str) -> None:
    """Print what pytest would have."""
    sys.stderr.write(text + "\n")
