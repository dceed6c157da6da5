"""A session of the benchmark suites: their location, targets, rows so far, and closing tables."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from stn_export import cli
from stn_export.bench.cases import Case, cases
from stn_export.bench.plan import GRIDS, BenchGrid
from stn_export.bench.profiling import all_work
from stn_export.bench.targets import Target, find_targets, left_out
from stn_export.bench.timing import ORDER, Budget
from stn_export.errors import EXIT_USER, UserError, require_choice
from stn_export.program.sites import PARTS
from stn_export.results.choice import baseline_words, time_of
from stn_export.results.statistics import METHOD
from stn_export.results.text import by_reason, significant, span
from stn_export.run.environment import DEVICES, describe
from stn_export.run.records import Timing, known, timing, timings
from stn_export.run.schemas import Result, read_bench
from stn_export.run.store import fingerprint

# Journal of timed rows, from which an interrupted session resumes.


class RowJournal:
    """Finished rows, one JSON line each, beside the file that they will be written to; incomplete lines are ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.rows.jsonl")

    def rows(self) -> list[dict]:
        """Read the rows, in the order in which they were timed."""
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                row = json.loads(line)
                if {"fullname", "stats", "extra_info"} <= row.keys():
                    rows.append(row)
            except (ValueError, AttributeError):
                continue
        return rows

    def add(self, row: dict) -> None:
        """Append a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Delete the journal, once its rows are written to the file or not wanted."""
        self.path.unlink(missing_ok=True)


def key(*parts: object) -> str:
    """Return a short fingerprint of what a row depends on; the ``repr`` of every part must be complete."""
    return fingerprint(repr(part).encode() for part in parts)[:16]


_PACKAGE = Path(__file__).resolve().parent.parent
# The suites are a subpackage of an installed package; in a checkout they are beside the package.
SUITES = next(path for path in (_PACKAGE / "suites", _PACKAGE.parent / "benchmarks") if path.is_dir())
LENGTHS = ("name", "row_seconds", "warmup_seconds", "blocks", "block_seconds", "startups", "profiled_calls", "threads")
STARTS = {"import_seconds": "imports s", "load_seconds": "load s", "first_seconds": "first answer s"}
CONTESTS = {
    "overhead": "What sampling costs: {label} against {baseline_label}",
    "eager": "Against eager PyTorch",
    "pytorch": "Requests against {way}",
    "default": "Compared with `torch.onnx.export` and `InferenceSession` with their defaults",
    "lowering": "Compared with the exporter's own decomposition",
}


def suite_files() -> dict[str, Path]:
    """Return the suites' files by name."""
    return {path.stem.removeprefix("test_"): path for path in sorted(SUITES.glob("test_*.py"))}


def contests(rows: Iterable[Timing]) -> Iterator[tuple[str, list[Timing]]]:
    """Yield titles, each with the rows of its paired comparison."""
    for contest, title in CONTESTS.items():
        rows_by_title: dict[str, list[Timing]] = {}
        for row in rows:
            if row.contest == contest and row.ratio is not None:
                way = baseline_words(row) if contest == "pytorch" else ""
                rows_by_title.setdefault(
                    title.format(label=row.label, baseline_label=row.baseline_label, way=way), []
                ).append(row)
        yield from rows_by_title.items()


@contextmanager
def refusing() -> Iterator[None]:
    """Turn a user error into the end of pytest, with the message and exit code of a stage."""
    try:
        yield
    except Exception as problem:
        if (error := cli.as_user_error(problem)) is None:
            raise
        pytest.exit(f"error: {cli.visible(error.message)}\nhint:  {cli.visible(error.hint)}", returncode=EXIT_USER)


@dataclass
class Session:
    """What is timed, and the rows so far."""

    run: Path
    device: str
    grid: BenchGrid
    targets: list[Target]
    rows: list[Timing] = field(default_factory=list)
    kept: dict[str, dict] = field(default_factory=dict)
    not_timed: dict[str, str] = field(default_factory=dict)  # reasons by a row's name
    budget: Budget = field(default_factory=Budget)
    journal: RowJournal | None = None

    @classmethod
    def open(cls, run: Path, device: str, grid: str) -> "Session":
        """Find what can be timed here, and set the number of threads.

        Raises:
            UserError: for an unknown grid or device, and a run that cannot be timed.
        """
        chosen = GRIDS[require_choice("grid", grid, list(GRIDS))]
        session = cls(run, device, chosen, find_targets(run, require_choice("device", device, DEVICES)))
        torch.set_num_threads(chosen.threads)
        return session

    def cases(self, suite: str) -> Iterator[Case]:
        """Return the rows that the grid has in a suite."""
        return cases(suite, self.targets, getattr(self.grid, suite))

    @cached_property
    def keys(self) -> dict[str, str]:
        """Return what each row of the grid depends on, as a fingerprint, by ``test_<suite>[<case>]``."""
        shared = describe(), METHOD, *(getattr(self.grid, name) for name in LENGTHS)
        return {
            f"test_{suite}[{case}]": key(*shared, *map(_side, (case.target, case.baseline)), case.batch)
            for suite in ORDER
            for case in self.cases(suite)
        }

    def resume(self, path: Path, journal: RowJournal, again: bool = False) -> None:
        """Take over rows from a file and from the journal of an interrupted session; with ``again``, none."""
        self.journal = journal
        if again:
            journal.close()
            return
        content = _content(path)
        alike = content["machine_info"]["stn_export"] == describe()
        rows = [(row, alike) for row in content["benchmarks"]] + [(row, False) for row in journal.rows()]
        self.kept = {row["fullname"]: row for row, alike in rows if self.holds(row, alike)}
        self.rows = timings({"benchmarks": self.kept.values()})
        reasons = {name: why for name, why in content.get("not_timed", {}).items() if _case(name) in self.keys}
        self.not_timed = {name: why for name, why in reasons.items() if name not in self.kept}

    def holds(self, row: dict, alike: bool) -> bool:
        """Return whether a row is still current: same files, settings, packages and machine.

        For a row that is not selected now (another device, an external runtime that was not requested) this is only
        known if its whole file is from this machine, ``alike``.
        """
        info, current = row["extra_info"], {target.artifact.sha256 for target in self.targets}
        if (name := _case(row["fullname"])) in self.keys:
            return info.get("key") == self.keys[name] and info["sha256"] in current
        files = {info["sha256"], info.get("baseline_sha256", info["sha256"])}
        return alike and info.get("grid") == self.grid.name and files <= current

    def note(self, name: str, benchmark: BenchmarkFixture) -> None:
        """Store a timed row, for the closing tables and for a session that resumes."""
        benchmark.extra_info.update(grid=self.grid.name, key=self.keys[name])
        self.rows.append(timing(benchmark.extra_info))
        if self.journal and benchmark.stats and benchmark.stats.stats.data:
            row = benchmark.stats.as_dict(include_data=True)
            self.journal.add(row | {"fullname": short_name(row["fullname"]), "params": None})

    def complete(self, content: dict) -> None:
        """Complete pytest-benchmark's file: add the kept rows and the networks' work, and shorten the rows' names.

        The names then say nothing of this machine.
        """
        for row in content["benchmarks"]:
            row |= {"fullname": short_name(row["fullname"]), "params": None}
        content["benchmarks"] = [*self.kept.values(), *content["benchmarks"]]
        timed = {row["fullname"] for row in content["benchmarks"]}
        content["not_timed"] = {name: why for name, why in self.not_timed.items() if name not in timed}
        networks = {target.network.name: target.network for target in self.targets}
        content["work"] = all_work(networks, self.rows)

    def close(self) -> None:
        """Print the paired comparisons, start-up times and breakdowns, and what could not be timed here."""
        columns = ("backend", "batch", "ms", "ratio", "95 % interval", "verdict")
        for title, rows in contests(self.rows):
            _table(title, columns, (_contest(row, self.rows) for row in rows), ("95 % interval", "ms"))
        starts = [row for row in self.rows if row.first_seconds is not None]
        _table(
            "A fresh process until its first answer", ("backend", *STARTS.values()), map(_start, starts), ("imports s",)
        )
        parts = ("backend", "batch", *(f"{part} µs" for part in PARTS))
        profiled = [row for row in self.rows if row.breakdown is not None]
        _table("Where the time goes (profiled)", parts, map(_breakdown, profiled), ("grid µs", "rest µs"))
        for line in by_reason(left_out(self.run, self.device), "row"):
            cli.say(f"not timed: {line}", "dim")
        for line in by_reason(self.not_timed, "row"):
            cli.say(f"not timed ({line.rpartition(': ')[2]}): {line.rpartition(': ')[0]}", "dim")
        if slow := sorted({target.runner.name for target in self.targets if target.runner.slow}):
            cli.say(
                f"slow to start, timed only for the settings that grid {self.grid.name} lists: {', '.join(slow)}", "dim"
            )


def suite_of(row: pytest.Function) -> str:
    """Return the suite that a row belongs to."""
    return row.originalname.removeprefix("test_")


def short_name(name: str) -> str:
    """Return a row's name without the directory of the suites."""
    file, _, test = name.partition("::")
    return f"{Path(file).name}::{test}"


def _case(name: str) -> str:
    return name.partition("::")[2]


def _side(target: Target | None) -> tuple[str, ...]:
    """Return what identifies a target for a row's key."""
    if target is None:
        return ()
    examples = target.network.facts.examples
    fed = ("by the host",) if target.host else ()
    return str(target), target.artifact.sha256, examples["sha256"] if examples else "", *fed


def _content(path: Path) -> dict:
    """Read a benchmark file; return an empty one if there is none, or one of another kind, which is overwritten."""
    none = {"machine_info": {"stn_export": {}}, "benchmarks": []}
    if not path.is_file():
        return none
    try:
        return read_bench(path, Result)
    except UserError as error:
        cli.say(f"{error.message}; it is made anew")
        return none


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], drop: tuple[str, ...]) -> None:
    if rows := list(rows):
        cli.say("")
        cli.table(title, columns, rows, drop)


def _name(row: Timing) -> str:
    return f"{row.network} {row.runner} {row.artifact}"


def _contest(row: Timing, rows: list[Timing]) -> tuple[str, ...]:
    paired = row.paired
    return (
        _name(row),
        str(row.batch),
        significant(1e3 * time_of(row, rows)),
        significant(paired.middle),
        span(paired.low, paired.high),
        known(row.verdict),
    )


def _start(row: Timing) -> tuple[str, ...]:
    return (_name(row), *(f"{getattr(row, name):.3f}" for name in STARTS))


def _breakdown(row: Timing) -> tuple[str, ...]:
    return (_name(row), str(row.batch), *(f"{known(row.breakdown)[part] * 1e6:.0f}" for part in PARTS))
