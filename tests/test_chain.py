"""All stages in a row, and the processes that they run in: what is red, what ends it, who ends with whom."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stn_export import cli
from stn_export.cli import children, everything
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.run.store import sha256_of
from tests.conftest import REPOSITORY
from tests.zoo import enter_zoo

STAGES = ("train", "export", "verify", "bench", "report")
PLANTED = "GreyDigits"  # a small network of the zoo
FAR = 120.0  # seconds that nothing here takes


def stages(monkeypatch: pytest.MonkeyPatch, codes: Mapping[str, int]) -> list[tuple[str, Sequence[str]]]:
    """Stand in for the stages with these exit codes; what is started of them comes into the list."""
    started: list[tuple[str, Sequence[str]]] = []

    def perform(stage: str, options: Sequence[str]) -> tuple[int, str]:
        started.append((stage, list(options)))
        return codes.get(stage, 0), f"1 of 3 checks\n{stage}/file on x: differs" if codes.get(stage) == 1 else ""

    monkeypatch.setattr(everything, "perform", perform)
    return started


def test_a_red_check_does_not_end_the_chain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    started = stages(monkeypatch, {"verify": 1})
    assert cli.start(["all", "--run", str(tmp_path), "--epochs", "1"]) == 1
    assert tuple(stage for stage, _ in started) == STAGES
    said = capsys.readouterr().err
    assert "failed: verify: 1 of 3 checks\nverify/file on x: differs" in said
    assert started[3][1][-2:] == ["--budget", "90s"]


@pytest.mark.parametrize("codes", [{"export": 1}, {"bench": 1}, {"report": 1}, {"verify": 1, "bench": 1}])
def test_the_worst_stage_says_the_exit_code(
    codes: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    started = stages(monkeypatch, codes)
    assert cli.start(["all", "--run", str(tmp_path), "--epochs", "1"]) == 1
    assert len(started) == len(STAGES)
    assert all(f"{stage}/file on x: differs" in capsys.readouterr().err for stage in list(codes)[:1])


@pytest.mark.parametrize(
    ("stage", "code"), [("train", 1), ("train", 2), ("export", 2), ("verify", 70), ("verify", 130), ("bench", 139)]
)
def test_a_stage_that_cannot_run_ends_the_chain(
    stage: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    started = stages(monkeypatch, {stage: code})
    with pytest.raises(SystemExit) as ended:
        cli.start(["all", "--run", str(tmp_path), "--epochs", "1"])
    assert ended.value.code == code
    assert started[-1][0] == stage
    assert f"{stage} ended with exit code {code}" in capsys.readouterr().out


def test_a_stage_says_what_failed_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    code = "import sys\nfrom stn_export import cli\nfrom stn_export.errors import CheckFailedError\n"
    code += "def main(arguments):\n  raise CheckFailedError('1 of 2: ' + arguments[0])\n"
    code += "sys.exit(cli.run(main, sys.argv[1:]))"
    monkeypatch.setattr(children, "module", lambda _, stage, *options: [sys.executable, "-P", "-c", code, stage])
    assert everything.perform("größer", []) == (1, "1 of 2: größer")


def test_a_bug_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("stn_export.report.__main__.main", lambda _: 1 / 0)
    assert cli.start(["report"]) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_budget_of_other_grids_is_without_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    started = stages(monkeypatch, {})
    assert cli.start(["all", "--run", str(tmp_path), "--epochs", "1", "--grid", "full"]) == 0
    assert started[3][1][-2:] == ["--grid", "full"]
    assert cli.start(["all", "--run", str(tmp_path), "--epochs", "1", "--grid", "full", "--budget", "1h"]) == 0
    assert started[-2][1][-2:] == ["--budget", "3600s"]


@pytest.mark.parametrize(("text", "expected"), [("90s", 90.0), ("3m", 180.0), ("1h", 3600.0), ("7", 7.0), ("", None)])
def test_budgets(text: str, expected: float | None):
    assert cli.parse("all", ["--budget", text]).budget == expected


@pytest.mark.parametrize("text", ["3x", "m", "-1s", "infm", "0s"])
def test_no_budgets(text: str):
    with pytest.raises(UserError, match="--budget: invalid time value"):
        cli.parse("bench", [f"--budget={text}"])


def until(condition: object, limit: float = FAR) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + limit
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(process: int) -> bool:
    """Tell whether a process has ended, or waits only for whoever inherited it to notice."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


STARTING = "import sys, time\nfrom stn_export.cli import children\n"
SLEEPING = "import os, pathlib, time; pathlib.Path({!r}).write_text(str(os.getpid())); time.sleep(600)"


@pytest.fixture
def ending() -> Iterator[list[subprocess.Popen]]:
    """Processes that are ended with the test."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("how", ["start({}, group=True)\ntime.sleep(600)", "run({})", "follow({})"])
def test_a_child_ends_with_its_parent_however_that_ends(how: str, tmp_path: Path, ending: list[subprocess.Popen]):
    place = tmp_path / "child"
    command = [sys.executable, "-c", SLEEPING.format(str(place))]
    code = STARTING + f"kept = children.{how.format(command)}"
    ending.append(subprocess.Popen([sys.executable, "-c", code], env=children.environment()))
    until(lambda: place.exists() and place.read_text(encoding="utf-8"))
    ending[0].kill()
    until(lambda: gone(int(place.read_text(encoding="utf-8"))))


HAVING_ANOTHER = """
import os, pathlib, subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({!r}).write_text(str(other.pid))
time.sleep({})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize("how", ["start({}, group=True)\ntime.sleep(600)", "run({}, group=True)", "follow({})"])
@pytest.mark.parametrize("seconds", [600, 0])
def test_what_a_child_started_ends_with_it(how: str, seconds: int, tmp_path: Path, ending: list[subprocess.Popen]):
    """Whether it was ended, as pip's own children were not, or came to its end."""
    place = tmp_path / "grandchild"
    command = [sys.executable, "-c", HAVING_ANOTHER.format(str(place), seconds)]
    code = STARTING + f"kept = children.{how.format(command)}"
    ending.append(subprocess.Popen([sys.executable, "-c", code], env=children.environment()))
    until(lambda: place.exists() and place.read_text(encoding="utf-8"))
    if seconds:
        ending[0].kill()
    until(lambda: gone(int(place.read_text(encoding="utf-8"))))


KEEPING = """
import pathlib, signal, sys, time
def keep(number, frame):
    pathlib.Path(sys.argv[1]).write_text(str(number))
    sys.exit(130)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, keep)
pathlib.Path(sys.argv[2]).touch()
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_handed_on_once_and_the_stage_keeps_what_it_has(
    number: signal.Signals, tmp_path: Path, ending: list[subprocess.Popen]
):
    kept, ready = tmp_path / "kept", tmp_path / "ready"
    command = [sys.executable, "-c", KEEPING, str(kept), str(ready)]
    code = STARTING + f"sys.exit(children.follow({command}))"
    ending.append(subprocess.Popen([sys.executable, "-c", code], env=children.environment()))
    until(ready.exists)
    time.sleep(0.1)  # which follow has begun to wait by
    ending[0].send_signal(number)
    assert ending[0].wait(FAR) == 130
    assert kept.read_text(encoding="utf-8") == str(int(number))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_stage_as_ctrl_c_does(number: signal.Signals, capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(number)

    def main(_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(FAR)

    assert cli.run(main) == 130
    assert "interrupted: run the same command again" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.run(lambda _: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signals_number_is_the_exit_code():
    assert children.follow([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]) == 139


def test_children_import_nothing_that_lies_where_they_are_started(tmp_path: Path):
    (tmp_path / "argparse.py").write_text("raise RuntimeError('not me')", encoding="utf-8")
    command = children.module("stn_export", "--help")
    done = children.run(command, env=children.environment(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = children.run([*command[:1], *command[2:]], env=children.environment(), cwd=tmp_path)
    assert "not me" in done.stderr  # which is what the flag is for


@pytest.mark.parametrize(("installed", "path"), [(False, f"{REPOSITORY}:other"), (True, "other")])
def test_children_import_this_package_also_where_it_is_a_clone(
    installed: bool, path: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "other")
    monkeypatch.setattr(children.site, "getsitepackages", lambda: [str(REPOSITORY)] if installed else [])
    assert children.environment({"MORE": "x"})["PYTHONPATH"] == path


def test_a_command_that_there_is_not_is_no_exit_code():
    with pytest.raises(FileNotFoundError, match="nothing-of-this-name"):
        children.run(["nothing-of-this-name"])


def test_a_run_that_takes_too_long_is_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        children.run([sys.executable, "-c", "import time; time.sleep(600)"], timeout=0.2)


# The one place, and a script that another environment runs, which has nothing of ours.
STARTERS = {"cli/children.py", "cli/launch.py", "runners/external/serve.py"}
STARTS = {"subprocess": {"run", "Popen", "call", "check_call", "check_output"}, "os": {"system", "popen", "fork"}}


def test_there_is_one_place_that_starts_children():
    found = set()
    for path in (REPOSITORY / "stn_export").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                where = node.func.value
                if isinstance(where, ast.Name) and node.func.attr in STARTS.get(where.id, set()):
                    found.add(str(path.relative_to(REPOSITORY / "stn_export")))
    assert found == STARTERS


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A run of one small network, exported; one file of it holds other weights than the network."""
    run = tmp_path / "run"
    directory = enter_zoo(run, PLANTED)
    assert cli.run(export.main, ["--run", str(run), "--brief"]) == 0
    artifact = directory.artifacts["matmul-fp32"]
    path = directory.path / artifact.file
    model = onnx.load(path)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if np.issubdtype(values.dtype, np.floating):
            weight.CopyFrom(numpy_helper.from_array(values * np.float32(1.5) + np.float32(0.1), weight.name))
    onnx.save(model, path)
    directory.add(replace(artifact, sha256=sha256_of(path)))
    return run


@pytest.mark.slow
def test_the_chain_ends_in_a_report_that_marks_what_is_wrong(planted: Path):
    command = [sys.executable, "-m", "stn_export", "all", "--run", str(planted), "--device", "cpu", "--budget", "20s"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=children.environment())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: verify: " in done.stderr
    assert f"{PLANTED}/matmul-fp32 on onnxruntime-cpu" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    report = (planted / "report.md").read_text(encoding="utf-8")
    card = report.partition("<!-- /card -->")[0]
    assert "matmul-fp32 on onnxruntime-cpu" in card
    assert not any("**ship**" in line and "matmul-fp32" in line for line in card.splitlines())
