"""Timing that is interrupted, goes on, comes to the end of its budget, and says how far it is."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from stn_export.bench import __main__ as bench
from stn_export.bench.__main__ import outside_of_workers
from stn_export.bench.cases import Case
from stn_export.bench.plan import GRIDS, Pick
from stn_export.bench.plugin import Plugin
from stn_export.bench.session import RowJournal, Session
from stn_export.bench.timing import ORDER, Budget, worth
from stn_export.cli import children
from stn_export.cli.progress_bar import Progress, duration
from stn_export.run.manifest import network_directories
from stn_export.run.schemas import Result, read_bench
from tests.test_methodology import BLOCKS, contenders

NAME = "test_latency.py::test_latency[stn-eager-cpu-program-1]"
CONTEST = "test_overhead.py::test_overhead[stn-eager-cpu-program-1]"
FAR = 300.0


@pytest.fixture
def planned_run(entered_run: Path, tmp_path: Path) -> Path:
    """Two networks of which nothing was to be exported."""
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    for directory in network_directories(run):
        directory.plan(("program",), {})
    return run


@pytest.fixture
def session(planned_run: Path) -> Session:
    return Session.open(planned_run, "cpu", "quick")


def row_of(session: Session, fullname: str, **said: object) -> dict:
    """A row as the suites write it, but for what is ``said``."""
    target = next(each for each in session.targets if str(each) == "stn-eager-cpu-program")
    info = target.facts(1) | {"key": session.keys.get(fullname.partition("::")[2], "its own"), "grid": "quick"} | said
    return {"fullname": fullname, "stats": {"median": 1.0}, "extra_info": info}


def resumed(session: Session, tmp_path: Path, *rows: dict, again: bool = False) -> list[str]:
    """The names of the rows that a session keeps of a journal."""
    journal = RowJournal(tmp_path / "bench.json")
    for row in rows:
        journal.add(row)
    with journal.path.open("a") as file:
        file.write('{"fullname": "half')
    session.resume(tmp_path / "bench.json", journal, again)
    return list(session.kept)


def test_rows_of_an_interrupted_session_are_kept(session: Session, tmp_path: Path):
    assert resumed(session, tmp_path, row_of(session, NAME), row_of(session, CONTEST)) == [NAME, CONTEST]
    assert [row.regime for row in session.rows] == ["contest"] * 2


@pytest.mark.parametrize("said", [{"key": "another"}, {"sha256": "another"}])
def test_rows_of_anything_else_are_timed_anew(said: dict, session: Session, tmp_path: Path):
    assert resumed(session, tmp_path, row_of(session, NAME, **said)) == []


def test_again_keeps_nothing(session: Session, tmp_path: Path):
    assert resumed(session, tmp_path, row_of(session, NAME), again=True) == []
    assert not RowJournal(tmp_path / "bench.json").path.exists()


def spoil_file(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in session.targets:
        if target.network.name == "stn":
            object.__setattr__(target.artifact, "sha256", "another")


def spoil_grid(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    object.__setattr__(session, "grid", GRIDS["full"])


def spoil_machine(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn_export.bench.session.describe", lambda: {"cpu": "another"})


def spoil_baseline(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in session.targets:
        if target.network.name == "cnn":
            object.__setattr__(target.artifact, "sha256", "another")


@pytest.mark.parametrize(
    ("spoil", "changed"),
    [
        (spoil_file, {NAME, CONTEST}),
        (spoil_grid, {NAME, CONTEST}),
        (spoil_machine, {NAME, CONTEST}),
        (spoil_baseline, {CONTEST}),
    ],
)
def test_a_rows_key_is_of_its_files_its_settings_and_its_machine(
    spoil: Callable[[Session, pytest.MonkeyPatch], None],
    changed: set[str],
    session: Session,
    planned_run: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    before, other = session.keys, Session.open(planned_run, "cpu", "quick")
    assert other.keys == before
    other = Session.open(planned_run, "cpu", "quick")
    spoil(other, monkeypatch)
    names = {each: each.partition("::")[2] for each in (NAME, CONTEST)}
    assert {each for each, name in names.items() if other.keys[name] != before[name]} == changed


def bench_file(session: Session, path: Path, *rows: dict, environment: dict | None = None) -> None:
    """A benchmark file of these rows."""
    from stn_export.run.environment import describe

    content = {"machine_info": {"stn_export": environment or describe()}, "benchmarks": rows, "datetime": "now"}
    path.write_text(
        json.dumps(content | {"work": {}, "not_timed": {CONTEST: "budget", "x.py::y": "budget"}}), encoding="utf-8"
    )


def test_rows_that_are_not_chosen_now_stay_where_the_file_is_of_this_machine(session: Session, tmp_path: Path):
    """Of a runtime that was not asked for, or another device; what of it has changed does not."""
    path, elsewhere = tmp_path / "bench.json", "test_latency.py::test_latency[stn-tract-cpu-folded-fp32-1]"
    bench_file(session, path, row_of(session, elsewhere))
    session.resume(path, RowJournal(path))
    assert list(session.kept) == [elsewhere]
    assert session.not_timed == {CONTEST: "budget"}
    bench_file(session, path, row_of(session, elsewhere, grid="full"), row_of(session, NAME, sha256="x"))
    session.resume(path, RowJournal(path))
    assert session.kept == {}
    bench_file(session, path, row_of(session, elsewhere), environment={"versions": {}, "cpu": "x", "gpu": None})
    session.resume(path, RowJournal(path))
    assert session.kept == {}


def test_a_file_that_is_none_is_made_anew(session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "bench.json").write_text("hello", encoding="utf-8")
    session.resume(tmp_path / "bench.json", RowJournal(tmp_path / "bench.json"))
    assert "is not a benchmark file of stn_export" in capsys.readouterr().out


def test_every_suite_has_a_place_in_the_order():
    suites = {name for name, value in vars(GRIDS["full"]).items() if isinstance(value, tuple) and value[:1]}
    assert set(ORDER) == {name for name in suites if isinstance(getattr(GRIDS["full"], name)[0], Pick)}


def test_what_the_card_needs_comes_first(session: Session):
    rows = [(worth(suite, case), suite, case) for suite in ORDER for case in session.cases(suite)]
    first = [(suite, case.target.network.name) for place, suite, case in sorted(rows, key=lambda row: row[0])]
    assert {name for _, name in first[: first.index(("throughput", "stn"))]} == {"stn"}
    order = list(dict.fromkeys(suite for suite, name in first if name == "stn"))
    assert order[:3] == ["latency", "overhead", "throughput"]  # eager PyTorch alone is not set against itself
    target = next(each for each in session.targets if each.network.name == "stn")
    single, many = Case(target, 1), Case(target, 256)
    wanted = [("latency", single), ("overhead", single), ("eager", single), ("throughput", many), ("eager", many)]
    shuffled = wanted[::2] + wanted[1::2]
    assert sorted(shuffled, key=lambda pair: worth(*pair)) == wanted


def item(name: str) -> SimpleNamespace:
    return SimpleNamespace(nodeid=name)


def test_no_row_is_begun_when_the_budget_is_over(session: Session, tmp_path: Path):
    now = iter((0.0, 1.0, 9.9, 10.0, 11.0))
    plugin = Plugin(tmp_path / "bench.json", Budget(10.0, now.__next__), timing=session)
    assert [plugin.pytest_runtest_protocol(item(name)) for name in "abcd"] == [None, None, True, True]
    assert session.not_timed == {"c": "budget", "d": "budget"}


def test_a_file_says_what_was_not_timed(session: Session):
    session.not_timed = {NAME: "budget", "b.py::b": "budget"}
    content: dict = {"benchmarks": [{"fullname": f"../{NAME}", "extra_info": {}}]}
    session.complete(content)
    assert content["not_timed"] == {"b.py::b": "budget"}


def test_a_budget_ends_a_contest_between_rounds_of_its_loads_whatever_its_ratio():
    """All blocks that were asked for are there; those that noise would add are not."""
    now = [0.0]
    budget = Budget(10.0, lambda: now[0])
    _, turns = contenders((1e-3, 1e-3))
    turns.medians = [(1.0, 1.0 + 0.5 * (index % 2)) for index in range(turns.blocks)]
    now[0] = 10.0
    turns.go_on(budget)
    assert len(turns.medians) == BLOCKS
    assert turns.noisy()
    _, turns = contenders((1e-3, 1e-3))
    assert len(turns.hold(budget).medians) == BLOCKS


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, words: str):
    assert duration(seconds) == words


def test_a_pipe_gets_lines():
    said = io.StringIO()
    with Progress(Console(file=said, width=200), word="bench", unit="rows") as bar:
        task = bar.add_task("bench", total=14, completed=4)
        bar.update(task, completed=6)
        assert re.fullmatch(r"bench: 6 of 14 rows, about \d+ s left", bar.line())
        bar.most = lambda: 0.0
        assert bar.line() == "bench: 6 of 14 rows, about 0 s left"
    assert said.getvalue() == ""  # it was over before ten seconds were


def test_the_lines_come_by_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stn_export.cli.progress_bar.EACH", 0.02)
    said = io.StringIO()
    with Progress(Console(file=said, width=200), unit="checks") as bar:
        bar.add_task("verify", total=32)
        end = time.monotonic() + 30
        while said.getvalue().count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    assert said.getvalue().splitlines()[0] == "verify: 0 of 32 checks"


def begun(run: Path, *more: str) -> subprocess.Popen:
    """The stage, into a pipe."""
    command = children.module("stn_export", "bench", "--run", str(run), "--device", "cpu", *more)
    environment = os.environ | {"PYTEST_XDIST_WORKER": "gw0", "PYTHONPATH": str(children.ROOT)}  # as a suite starts it
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_session_keeps_its_rows_and_goes_on(planned_run: Path, number: signal.Signals):
    journal, path = RowJournal(planned_run / "bench.json"), planned_run / "bench.json"
    rows = ("--suites", "latency,request,overhead", "-k", "eager-cpu")
    process = begun(planned_run, *rows)
    end = time.monotonic() + FAR
    while len(journal.rows()) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=FAR)[0].decode()
    assert process.returncode == 130, said
    found = re.search(r"interrupted: (\d+) of (\d+) rows kept; the same command goes on\n$", said)
    assert found, said
    assert "Traceback" not in said
    assert "pytest" not in said.lower().replace("pytest-of-", "")
    kept, total = map(int, found.groups())
    first = read_bench(path, Result)["benchmarks"]
    assert 2 <= kept == len(first) < total
    process = begun(planned_run, *rows)
    said = process.communicate(timeout=FAR)[0].decode()
    assert process.returncode == 0, said
    second = {row["fullname"]: row["stats"] for row in read_bench(path, Result)["benchmarks"]}
    assert len(second) == total
    assert all(second[row["fullname"]] == row["stats"] for row in first)
    assert not journal.path.exists()


@pytest.mark.slow
def test_a_killed_session_goes_on_and_a_budget_says_what_it_left(planned_run: Path):
    journal, path = RowJournal(planned_run / "bench.json"), planned_run / "bench.json"
    rows = ("--suites", "latency", "-k", "eager-cpu")
    process = begun(planned_run, *rows)
    end = time.monotonic() + FAR
    while len(journal.rows()) < 1 and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not path.exists()
    kept = [row["fullname"] for row in journal.rows()]
    process = begun(planned_run, *rows, "--budget", "0.001s", "--brief")
    said = process.communicate(timeout=FAR)[0].decode()
    assert process.returncode == 0, said
    content = read_bench(path, Result)
    assert [row["fullname"] for row in content["benchmarks"]] == kept
    assert set(content["not_timed"].values()) == {"budget"}
    assert f"caveat     not timed, the budget was spent: {len(content['not_timed'])} rows" in said
    assert not journal.path.exists()


def test_the_placeholder_of_a_suite_without_rows_comes_last():
    assert worth("latency", object()) > max(place for places in ORDER.values() for place in places)


def test_a_worker_of_a_test_suite_may_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")  # pytest-benchmark would time nothing, without a word
    with outside_of_workers():
        assert "PYTEST_XDIST_WORKER" not in os.environ
    assert os.environ["PYTEST_XDIST_WORKER"] == "gw3"
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    with outside_of_workers():
        pass
    assert "PYTEST_XDIST_WORKER" not in os.environ


def test_an_interrupt_that_pytest_cannot_show_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugin = Plugin(tmp_path / "bench.json", Budget(), again=False, loud=False)
    options = SimpleNamespace(run=tmp_path, grid="quick", device="cpu", verbose=False)

    def crash(*_: object) -> int:
        raise TypeError("unsupported operand type(s) for -: 'NoneType' and 'int'")

    monkeypatch.setattr(bench.pytest, "main", crash)
    with pytest.raises(TypeError):
        bench._timed(options, plugin, tmp_path / "written", [])
    plugin.interrupted = True
    assert bench._timed(options, plugin, tmp_path / "written", []) == pytest.ExitCode.INTERRUPTED
