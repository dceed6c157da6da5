"""Two stages never change one run directory at once."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stn_export.errors import UserError
from stn_export.run import store as room
from stn_export.run.store import alone

HOLDS = """
import sys
from pathlib import Path
from stn_export.run.store import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that holds the directory until it reads a line."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "manifest.json").touch()
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_stage_says_who_is_first(tmp_path: Path, other: subprocess.Popen):
    with pytest.raises(UserError, match=f"is being changed by process {other.pid}: -c"), alone(tmp_path, wait=False):
        pass


def test_a_second_stage_waits(
    tmp_path: Path, other: subprocess.Popen, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def release(text: str) -> None:
        print(text)
        other.communicate("go on\n")

    monkeypatch.setattr(room.cli, "say", release)
    with alone(tmp_path):
        assert other.returncode == 0
    assert "waiting" in capsys.readouterr().out


def test_a_lock_dies_with_its_owner(tmp_path: Path, other: subprocess.Popen):
    other.kill()
    other.wait()
    with alone(tmp_path, wait=False):
        pass


def test_no_directory_is_made(tmp_path: Path):
    with alone(tmp_path / "none"):
        assert not list(tmp_path.iterdir())
