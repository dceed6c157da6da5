"""The tutorials hold: their files are written, their commands run in order, and what the pages show is printed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stn_export.cli import children
from tests.conftest import REPOSITORY

PAGES = sorted(path.name for path in (REPOSITORY / "docs").glob("tutorial-*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORTER = {
    "--budget 60s": "--budget 5s",
    "--budget 30s": "--budget 5s",
    "--epochs 20": "--epochs 1",
}  # the rest as it is


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each block of a page."""
    yield from BLOCK.findall((REPOSITORY / "docs" / page).read_text(encoding="utf-8"))


def ran(command: str, place: Path) -> str:
    """What a command prints, at any width."""
    for shown, shorter in SHORTER.items():
        command = command.replace(shown, shorter)
    name, *words = command.split()
    words = [*(("-m", "stn_export") if name == "stn-export" else ()), *words]
    environment = children.environment({"XDG_STATE_HOME": str(place / "state"), "COLUMNS": "400"})
    done = subprocess.run(
        [sys.executable, "-P", *words], cwd=place, env=environment, capture_output=True, encoding="utf-8", timeout=900
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-1000:]}"
    return done.stdout + done.stderr


def pattern_of(line: str) -> str:
    """A line of a page as a pattern: an ellipsis is anything, and any space is any other."""
    words = (".*".join(map(re.escape, word.split("…"))) for word in line.split())
    return r"\s+".join(words)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_holds(page: str, tmp_path: Path):
    printed = ""
    for language, text in blocks(page):
        if language == "python":
            (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif language == "sh":
            printed = "".join(ran(command, tmp_path) for command in text.splitlines())
        else:
            assert language == "text"
            missing = [line for line in text.splitlines() if not re.search(pattern_of(line), printed)]
            assert not missing, printed


def test_there_is_a_tutorial_for_each_reader():
    assert PAGES == ["tutorial-network.md", "tutorial-onnx.md", "tutorial-pictures.md"]
    for page in PAGES:
        found = [language for language, _ in blocks(page)]
        assert {"python", "sh", "text"} == set(found)
        commands = [line for language, text in blocks(page) if language == "sh" for line in text.splitlines()]
        assert sum(line.startswith("stn-export") for line in commands) <= 3


@pytest.mark.parametrize(
    ("line", "printed", "holds"),
    [
        ("deploy     stn/… (runner x)", "deploy stn/a.onnx (runner x)", True),
        ("latency    … ms per example", "latency    seconds per example", False),
        ("8 of 9", "8 of 10", False),
    ],
)
def test_a_line_that_differs_is_found(line: str, printed: str, holds: bool):
    assert bool(re.search(pattern_of(line), printed)) == holds
