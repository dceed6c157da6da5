import os
import re
import subprocess
import sys
import tomllib

import pytest

from stn_export import cli
from stn_export.errors import CheckFailedError, UserError
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("no [x] here", "try y"), 2, ("no [x] here", "try y")),
        (CheckFailedError("3 of 7"), 1, ("failed: 3 of 7",)),
        (KeyboardInterrupt("epoch 2 is kept"), 130, ("interrupted epoch 2 is kept",)),
    ],
)
def test_exit_codes(error: BaseException, code: int, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    def main(arguments: object) -> None:
        raise error

    assert cli.run(main) == code
    err = capsys.readouterr().err
    assert all(word in err for word in words)


def test_a_bug_of_ours_is_a_traceback():
    def main(arguments: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "arguments", "code"),
    [
        *((stage, ["--nonsense"], 2) for stage in cli.STAGES if stage != "bench"),
        ("bench", ["--suites=none"], 2),
        ("adopt", ["--help"], 0),
    ],
)
def test_every_stage_starts_as_a_module_and_refuses_nonsense(stage: str, arguments: list[str], code: int):
    command = [sys.executable, "-m", f"stn_export.{stage}", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def test_stn_export_lists_every_stage_at_once(capsys: pytest.CaptureFixture[str]):
    rooms = {path.parent.name for path in (REPOSITORY / "stn_export").glob("*/__main__.py")}
    assert set(cli.STAGES) == rooms
    for arguments in ([], ["--help"]):
        assert cli.start(arguments) == 0
        listed = capsys.readouterr().out
        assert all(f"  {stage:9}{words}\n" in listed for stage, words in cli.STAGES.items())
    command = [
        sys.executable,
        "-c",
        "import sys; from stn_export import cli; cli.start([]); print('torch' in sys.modules)",
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("False\n")


def test_stn_export_starts_a_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert cli.start(["nonsense"]) == 2
    assert "unknown stage 'nonsense'" in capsys.readouterr().err
    seen = []
    monkeypatch.setattr("stn_export.adopt.__main__.main", seen.append)
    monkeypatch.setattr(sys, "argv", ["stn-export", "adopt", "what", "--eval"])
    assert cli.start() == 0
    assert seen == [["what", "--eval"]]
    found = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert found == {"stn-export": "stn_export.cli:start"}


def make(*arguments: str) -> str:
    """What ``make`` prints, also where the tests themselves were started by Make."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout


def test_make_help_lists_every_target():
    makefile = (REPOSITORY / "Makefile").read_text()
    listed = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert listed == set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    help_text = make("help")
    for word in (*listed, "DATASET", "DATA", "RECIPE", "EPOCHS", "SEED", "DEVICE", "RUN"):
        assert word in help_text


def test_make_uses_a_given_interpreter_without_building_one():
    recipe = make("-n", "bench", "VENV=", "PYTHON=python3")
    assert recipe.startswith("python3 -m stn_export.bench --run")
    assert "venv" not in recipe
