"""A session of the suites: where they lie, what they time, the rows so far, and what is said when they are through."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.answer.choice import time_of
from stn_export.artifacts.environment import DEVICES, describe
from stn_export.artifacts.schemas import Result, read_bench
from stn_export.bench.cases import Case, cases
from stn_export.bench.floors import all_work
from stn_export.bench.grids import GRIDS, BenchGrid
from stn_export.bench.results import contests
from stn_export.bench.targets import Target, find_targets, left_out
from stn_export.comparison.words import by_reason, significant, span
from stn_export.errors import EXIT_USER, require_choice
from stn_export.program.parts import PARTS

_PACKAGE = Path(__file__).resolve().parent.parent
# In an installed package the suites are one of its own; in a checkout they lie beside it.
SUITES = next(path for path in (_PACKAGE / "suites", _PACKAGE.parent / "benchmarks") if path.is_dir())
OF_TRAINING = "test_training.py"  # which takes a data set instead of a run
STARTS = {"import_seconds": "imports s", "load_seconds": "load s", "first_seconds": "first answer s"}


def suite_files() -> dict[str, Path]:
    """The suites by name."""
    return {path.stem.removeprefix("test_"): path for path in sorted(SUITES.glob("test_*.py"))}


@contextmanager
def refusing() -> Iterator[None]:
    """End pytest as a stage ends where the user must change something."""
    try:
        yield
    except Exception as problem:
        if (error := cli.as_user_error(problem)) is None:
            raise
        pytest.exit(f"error: {cli.visible(error.message)}\nhint:  {cli.visible(error.hint)}", returncode=EXIT_USER)


@dataclass
class Session:
    """What is timed, and the rows that were."""

    run: Path
    device: str
    grid: BenchGrid
    targets: list[Target]
    rows: list[dict] = field(default_factory=list)
    kept: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Path, device: str, grid: str) -> "Session":
        """Find what can be timed here, and pin the threads.

        Raises:
            UserError: for an unknown grid or device, and a run that cannot be timed.
        """
        chosen = GRIDS[require_choice("grid", grid, list(GRIDS))]
        found = cls(run, device, chosen, find_targets(run, require_choice("device", device, DEVICES)))
        torch.set_num_threads(chosen.threads)
        return found

    def cases(self, suite: str) -> Iterator[Case]:
        """The rows that the grid has in a suite."""
        return cases(suite, self.targets, getattr(self.grid, suite))

    def resume(self, path: Path) -> None:
        """Keep the rows of a file that this machine timed with the same packages and artifacts.

        Raises:
            UserError: where it is no file of ours.
        """
        content = read_bench(path, Result)
        if content["machine_info"]["stn_export"] != describe():
            return
        here = {(each.network.name, each.artifact.name): each.artifact.sha256 for each in self.targets}
        for row in content["benchmarks"]:
            said = row["extra_info"]
            if here.get((said["network"], said["artifact"])) == said["sha256"]:
                self.kept[row["fullname"]] = row
                self.rows.append(said)

    def complete(self, content: dict) -> None:
        """Make pytest-benchmark's file ours: names of rows that say nothing of this machine, rows that were kept, and
        the networks' work.
        """
        for row in content["benchmarks"]:
            file, _, name = row["fullname"].partition("::")
            row |= {"fullname": f"{Path(file).name}::{name}", "params": None}
        content["benchmarks"] = [*self.kept.values(), *content["benchmarks"]]
        networks = {target.network.name: target.network for target in self.targets}
        content["work"] = all_work(networks, self.rows)

    def close(self) -> None:
        """Say how the contests went, what starting takes, where the time goes, and what could not be timed here."""
        columns = ("backend", "batch", "ms", "ratio", "95 % interval", "verdict")
        for title, rows in contests(self.rows):
            _table(title, columns, (_contest(row, self.rows) for row in rows), ("95 % interval", "ms"))
        starts = [row for row in self.rows if "first_seconds" in row]
        columns = ("backend", *STARTS.values())
        _table("A fresh process until its first answer", columns, map(_start, starts), ("imports s",))
        columns = ("backend", "batch", *(f"{part} µs" for part in PARTS))
        profiled = [row for row in self.rows if "breakdown" in row]
        _table("Where the time goes (profiled)", columns, map(_breakdown, profiled), ("grid µs", "rest µs"))
        for line in by_reason(left_out(self.run, self.device), "row"):
            cli.say(f"not timed: {line}", "dim")
        if slow := sorted({each.runner.name for each in self.targets if each.runner.slow}):
            cli.say(f"slow to start, timed only where grid {self.grid.name} asks for them: {', '.join(slow)}", "dim")


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], drop: tuple[str, ...]) -> None:
    if rows := list(rows):
        cli.table(f"\n{title}", columns, rows, drop)


def _name(row: dict) -> str:
    return f"{row['network']} {row['runner']} {row['artifact']}"


def _contest(row: dict, rows: list[dict]) -> tuple[str, ...]:
    interval = span(row["ratio_low"], row["ratio_high"])
    return (
        _name(row),
        str(row["batch"]),
        significant(1e3 * time_of(row, rows)),
        significant(row["ratio"]),
        interval,
        row["verdict"],
    )


def _start(row: dict) -> tuple[str, ...]:
    return (_name(row), *(f"{row[name]:.3f}" for name in STARTS))


def _breakdown(row: dict) -> tuple[str, ...]:
    return (_name(row), str(row["batch"]), *(f"{row['breakdown'][part] * 1e6:.0f}" for part in PARTS))
