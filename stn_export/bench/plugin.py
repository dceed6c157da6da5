"""Extend pytest for the stage ``bench``: order of rows, budget, progress, and resuming from kept rows.

Without ``--verbose`` pytest itself prints nothing; failures and interrupts are reported as in every stage.
"""

import os
import sys
import time
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
from stn_export.cli.progress_bar import Paces, Progress

OVER = "budget"  # the reason recorded for a row beyond the budget


@dataclass
class Plugin:
    """One session of the suites, started by the stage.

    Attributes:
        path: the file that kept rows are read from and that all rows are written to at the end.
        budget: the time after which no row is started.
        again: whether kept rows are timed again.
        loud: whether pytest prints its own lines.
        timing: the session; None before it is known, and if training is timed.
        total: number of selected rows, including kept ones.
        done: number of rows that are finished, including kept ones.
        failed: why a row could not be timed, by its name.
        skipped: why a row was skipped, by its name.
        interrupted: whether Ctrl-C or a signal ended the session.
        broken: an error in pytest itself or in reading a suite.
        ended: why a suite ended the session.
        bar: the progress bar, if one is shown.
        task: its task.
        opened: the session, where the stage opened it before it started pytest.
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
    opened: Session | None = None

    @property
    def kept(self) -> int:
        """Return the number of selected rows that have a result."""
        return self.done - len(self.failed) - len(self.skipped)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Load kept rows, once the suites' conftest knows what is to be timed."""
        self.timing = config.timing  # type: ignore[attr-defined]  # set by the suites' conftest
        if not self.loud and not config.getoption("collectonly"):
            silence(config)
        if self.timing:
            self.timing.budget = self.budget
            self.timing.resume(self.path, RowJournal(self.path), self.again)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Deselect kept rows, and put the most informative rows first."""
        if self.timing:
            kept = [item for item in items if item.nodeid in self.timing.kept]
            self.total, self.done = len(items), len(kept)
            config.hook.pytest_deselected(items=kept)
            items[:] = [item for item in items if item.nodeid not in self.timing.kept]
            items.sort(key=_worth)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        """Show a progress bar."""
        with ExitStack() as stack:
            if self.timing and session.items and not self.loud:
                self.bar = stack.enter_context(cli.progress(word="bench", unit="rows", still=True))
                self.bar.most = lambda: self.budget.left
                self.bar.announce(len(session.items), self._expected(len(session.items)))
                self.task = self.bar.add_task("bench", total=self.total, completed=self.done)
            before, started = self.done, time.monotonic()
            result = yield
            if self.timing and session.items:
                Paces.read().keep(self._stage, self._size, self.done - before, time.monotonic() - started)
            return result

    def _expected(self, rows: int) -> float | None:
        """Return the seconds that rows will take by earlier sessions, at most those of the budget."""
        limits = (Paces.read().expected(self._stage, [(self._size, rows)]), self.budget.left)
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def _stage(self) -> str:
        return f"bench, grid {self.timing.grid.name}" if self.timing else "bench"

    @property
    def _size(self) -> int:
        """The multiply-adds of the largest network that is timed."""
        targets = self.timing.targets if self.timing else []
        return max((target.network.facts.multiply_adds for target in targets), default=0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Skip a row that the budget leaves no time for."""
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
        """Record why a row could not be timed."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[report.nodeid] = crash.message if crash else str(report.longrepr)
        elif report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Record a suite that cannot be read."""
        if report.failed:
            self.broken = str(report.longrepr)

    def pytest_internalerror(self, excrepr: object) -> None:
        """Record an internal error of pytest."""
        self.broken = str(excrepr)

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo) -> None:
        """Distinguish Ctrl-C from other ends of the session, and record their reason."""
        self.interrupted = excinfo.type is KeyboardInterrupt
        self.ended = "" if self.interrupted else str(excinfo.value)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Let pytest-benchmark write complete rows only; write the file even if this session has no new row."""
        benchmarks: BenchmarkSession = session.config._benchmarksession  # type: ignore[attr-defined]  # set by its plugin
        benchmarks.benchmarks[:] = [row for row in benchmarks.benchmarks if whole(row, self.timing)]
        if self.timing and not benchmarks.benchmarks:
            if self.timing.kept or self.timing.not_timed:
                write(benchmarks)
            benchmarks.json = None
        return (yield)


def _worth(item: pytest.Item) -> int:
    """Return the position of a row among those of a session.

    Raises:
        TypeError: if it is not a row of a suite.
    """
    if not isinstance(item, pytest.Function):
        raise TypeError(f"{item.nodeid} is no row of a suite")
    return worth(suite_of(item), item.callspec.params["case"])


def whole(benchmark: Metadata, timing: Session | None) -> bool:
    """Return whether a row was timed to its end; a row of training has ``seconds`` then."""
    return bool(benchmark.stats.data and ("key" if timing else "seconds") in benchmark.extra_info)


def write(benchmarks: BenchmarkSession) -> None:
    """Write a file of pytest-benchmark that contains kept rows only."""
    hook, config = benchmarks.config.hook, benchmarks.config
    commit = hook.pytest_benchmark_generate_commit_info(config=config)
    none: dict = {"config": config, "benchmarks": []}
    machine = {"machine_info": benchmarks.get_machine_info(), "commit_info": commit}
    content = hook.pytest_benchmark_generate_json(**none, **machine, include_data=True)
    hook.pytest_benchmark_update_json(**none, output_json=content)
    benchmarks.save_json(content)


def silence(config: pytest.Config) -> None:
    """Redirect pytest's reporter to the null device."""
    nowhere: TextIO = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # as long as the reporter lives
    config.pluginmanager.unregister(name="terminalreporter")
    config.pluginmanager.register(pytest.TerminalReporter(config, nowhere), "terminalreporter")


def say_broken(text: str) -> None:
    """Print the error that pytest would have printed."""
    sys.stderr.write(text + "\n")
