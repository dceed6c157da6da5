import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stn_export import cli, doctor
from stn_export.bench.plan import GRIDS
from stn_export.cli import everything
from stn_export.cli.options import PARSERS
from stn_export.errors import CheckFailedError, UserError
from stn_export.onnx_graph.placement import PROVIDERS
from stn_export.runners import RUNNERS
from stn_export.train.recipes import DATASETS, KEEP, MODELS, PRECISIONS, RECIPES
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("no [x] here", "try y"), 2, ("no [x] here", "try y")),
        (CheckFailedError("3 of 7"), 1, ("failed: 3 of 7",)),
        (KeyboardInterrupt("epoch 2 is kept"), 130, ("interrupted: epoch 2 is kept",)),
    ],
)
def test_exit_codes(error: BaseException, code: int, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    def main(arguments: object) -> None:
        raise error

    assert cli.run(main) == code
    err = capsys.readouterr().err
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]):
    def main(_: object) -> None:
        raise error

    assert cli.run(main) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: there is not enough memory",
        "hint: allow more (ulimit -v), or use a smaller batch size",
    ]


def test_a_bug_of_ours_is_a_traceback():
    def main(arguments: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


@pytest.mark.parametrize("stage", [stage for stage in cli.COMMANDS if stage not in ("all", "gain")])
def test_every_stage_is_a_module_of_its_name(stage: str):
    assert importlib.util.find_spec(f"stn_export.{stage}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "arguments", "code"),
    [
        *((stage, ["--nonsense"], 2) for stage in cli.COMMANDS if stage not in ("bench", "all", "gain")),
        ("bench", ["--suites=none"], 2),
        ("adopt", ["--help"], 0),
    ],
)
def test_every_stage_starts_as_a_module_and_refuses_nonsense(stage: str, arguments: list[str], code: int):
    command = [sys.executable, "-m", f"stn_export.{stage}", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def without_torch(arguments: list[str]) -> str:
    """What ``stn-export`` prints for these, PyTorch not having been imported."""
    code = f"import sys; from stn_export import cli; cli.start({arguments}); print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout
    assert printed.endswith("False\n")
    return printed


def test_stn_export_lists_every_command_at_once(capsys: pytest.CaptureFixture[str]):
    rooms = {path.parent.name for path in (REPOSITORY / "stn_export").glob("*/__main__.py")}
    assert set(cli.COMMANDS) == rooms | {"all", "doctor", "gain"} == set(PARSERS)
    for arguments in ([], ["--help"]):
        assert cli.start(arguments) == 0
        listed = capsys.readouterr().out
        assert all(f"  {command:9}{words}\n" in listed for command, (_, words) in cli.COMMANDS.items())
    without_torch([])


@pytest.mark.parametrize("command", PARSERS)
def test_help_states_defaults_that_are_some(command: str):
    shown = PARSERS[command]().format_help()
    assert "default: None" not in shown
    assert "default: False" not in shown
    assert "default: []" not in shown
    assert "(default: table)" in shown


def test_help_and_completion_take_no_time():
    assert "--fail-fast" in without_torch(["verify", "--help"])
    script = without_torch(["--completion", "bash"])
    assert all(f"{command}" in script and "--fail-fast" in script for command in PARSERS)


def test_completion_is_for_shells_that_there_are(capsys: pytest.CaptureFixture[str]):
    assert cli.start(["--completion", "dos"]) == 2
    assert "unknown shell 'dos'" in capsys.readouterr().err


def test_choices_in_help_are_those_that_there_are():
    """The options say them in words, because the tables take PyTorch with them."""
    shown = {action.dest: action for action in PARSERS["train"]()._actions}
    for option, table in (("dataset", DATASETS), ("recipe", RECIPES), ("models", MODELS), ("precision", PRECISIONS)):
        assert set(re.findall(r"[\w-]+", shown[option].help.partition(";")[0])) >= set(table), option
    assert (shown["precision"].default, shown["keep"].default) == (PRECISIONS[0], KEEP[0])
    assert all(grid in PARSERS["bench"]().format_help() for grid in GRIDS)
    [provider] = [action for action in PARSERS["audit"]()._actions if action.dest == "provider"]
    assert provider.choices == list(PROVIDERS)


def test_all_runs_every_stage_and_trains_only_what_is_not_adopted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    started = []

    def start(stage: str, options: list[str]) -> tuple[int, str]:
        started.append([stage, *options])
        return 2 * int(stage == "verify" and "--brief" not in options), ""

    monkeypatch.setattr(everything, "perform", start)
    assert cli.start(["all", "--run", str(tmp_path), "--epochs", "1", "--grid", "full"]) == 0
    assert [command[0] for command in started] == ["train", "export", "verify", "bench", "report"]
    assert started[0] == ["train", "--run", str(tmp_path), "--brief", "--device", "auto", "--epochs", "1"]
    assert started[3][-2:] == ["--grid", "full"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "program.pt2").touch()
    started.clear()
    with pytest.raises(SystemExit, match="2"):
        cli.start(["all", "--run", str(tmp_path), "--verbose"])
    assert [command[0] for command in started] == ["export", "verify"]
    assert cli.start(["all", "--nonsense"]) == 2


def test_doctor_says_how_to_get_what_is_missing(capsys: pytest.CaptureFixture[str]):
    assert cli.start(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "eager-cpu" in printed
    missing = [spec for spec in RUNNERS if spec.unavailable()]
    assert f"{len(RUNNERS) - len(missing)} of {len(RUNNERS)} at hand" in printed
    for spec in missing:
        assert doctor.remedy(spec.unavailable()) != cli.NONE
        assert doctor.remedy(spec.unavailable()) in printed


def test_stn_export_starts_a_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert cli.start(["nonsense"]) == 2
    assert "unknown command 'nonsense'" in capsys.readouterr().err
    seen = []
    monkeypatch.setattr("stn_export.adopt.__main__.main", seen.append)
    monkeypatch.setattr(sys, "argv", ["stn-export", "adopt", "what", "--eval"])
    assert cli.start() == 0
    assert seen == [["what", "--eval"]]
    found = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert found == {"stn-export": "stn_export.cli:start"}


def make(*arguments: str) -> str:
    """What ``make`` prints, also where the tests themselves were started by Make."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, encoding="utf-8", check=True
    ).stdout


def test_make_help_lists_every_target():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert listed == set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    help_text = make("help")
    for word in (*listed, "DATASET", "DATA", "RECIPE", "EPOCHS", "SEED", "DEVICE", "RUN"):
        assert word in help_text


@pytest.mark.parametrize("value", ["x'; touch {}; '", 'x"; touch {}; "', "`touch {}`", "$$(touch {})"])
@pytest.mark.parametrize("target", ["export", "bench-compare", "help"])
def test_a_variable_is_no_command(target: str, value: str, tmp_path: Path):
    given = value.format(tmp_path / "touched")
    said = make(target, "VENV=", "PYTHON=echo", f"RUN={given}", f"BASE={given}")
    assert given.replace("$$", "$") in said
    assert not list(tmp_path.iterdir())


def test_make_uses_a_given_interpreter_without_building_one():
    recipe = make("-n", "bench", "VENV=", "PYTHON=python3")
    assert recipe.startswith("python3 -m stn_export.bench --run")
    assert "venv" not in recipe
