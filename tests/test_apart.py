"""Work on foreign data ends where its limits are: time, memory, a crash; what it gives and raises arrives."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from stn_export.cli import apart as apart_module
from stn_export.cli.apart import BeyondLimitError, apart, forked
from stn_export.errors import UserError

HERE = f"{__name__}"


def doubled(number: int) -> int:
    return 2 * number


def refusing(text: str) -> None:
    raise UserError(text, "a hint")


def broken() -> None:
    raise KeyError("a bug")


def sleeping() -> None:
    time.sleep(60)


def sleeping_deeply() -> None:
    forked(sleeping, 60)


def crashing() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def greedy() -> int:
    return np.empty(2**31).nbytes  # 16 GiB, twice the limit; untouched, so that no machine suffers


def surroundings() -> tuple[str, str]:
    print("what libraries print is no answer")
    return str(Path.cwd()), os.environ["STN_EXPORT_TEST"]


def alive(path: Path) -> None:
    path.write_text(str(os.getpid()), encoding="ascii")
    time.sleep(60)


def call(name: str, *arguments: object, seconds: float = 20.0) -> object:
    return apart(f"{HERE}:{name}", *arguments, seconds=seconds)


def test_what_a_call_gives_arrives():
    assert call("doubled", 21) == 42
    first = apart_module._servers[os.getpid()].process.pid
    assert call("doubled", 4) == 8
    assert apart_module._servers[os.getpid()].process.pid == first


def test_an_error_arrives_as_itself():
    with pytest.raises(UserError, match="no such thing") as raised:
        call("refusing", "no such thing")
    assert raised.value.hint == "a hint"
    with pytest.raises(KeyError, match="a bug"):
        call("broken")


@pytest.mark.parametrize("name", ["sleeping", "sleeping_deeply"])
def test_what_takes_too_long_ends(name: str):
    begun = time.monotonic()
    with pytest.raises(BeyondLimitError, match="more than 1 seconds"):
        call(name, seconds=0.5)
    assert time.monotonic() - begun < 10


def test_nothing_of_it_goes_on(tmp_path: Path):
    with pytest.raises(BeyondLimitError):
        call("alive", tmp_path / "pid", seconds=1.0)
    number = int((tmp_path / "pid").read_text(encoding="ascii"))
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_crash_is_told():
    with pytest.raises(BeyondLimitError, match="SIGSEGV"):
        call("crashing")
    assert call("doubled", 1) == 2


def test_a_flood_of_memory_is_told():
    with pytest.raises(BeyondLimitError, match="bytes"):
        call("greedy")


def test_it_runs_where_and_with_what_the_call_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STN_EXPORT_TEST", "yes")
    assert call("surroundings") == (str(tmp_path), "yes")


def test_a_server_that_ended_is_started_again():
    call("doubled", 1)
    apart_module._servers[os.getpid()].end()
    assert call("doubled", 3) == 6
