"""Files of a run: changed together or not at all, never outside of it, and nothing of others is cleaned up."""

import errno
import os
from pathlib import Path

import pytest
import torch

import stn_export
from stn_export import cli
from stn_export.errors import UserError
from stn_export.report import __main__ as report
from stn_export.run import environment, store
from stn_export.run.store import HOLDER, PARTIAL, all_or_none, alone, latest, own_folder, sweep, write_atomically
from stn_export.train.data import Dataset
from stn_export.train.trainer import Settings, Trainer
from tests.zoo import ZOO

DEAD = 2**22 + 1  # above the largest process number


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_change_together_or_not_at_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"old")

    def change(fails: bool) -> None:
        with all_or_none():
            write_atomically(tmp_path / "a", b"first")
            write_atomically(tmp_path / "a", b"new")
            assert latest(tmp_path / "a").read_bytes() == b"new"
            assert (tmp_path / "a").read_bytes() == b"old"
            write_atomically(tmp_path / "b", b"new")
            if fails:
                raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        change(fails=True)
    assert contents(tmp_path) == {"a": b"old", "b": b"old"}
    change(fails=False)
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


@pytest.mark.parametrize("writes", range(1, 6))
def test_an_adoption_that_the_disk_has_no_room_for_leaves_the_run_as_it_was(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, run, count = ZOO["GreyDigits"], tmp_path / "run", iter(range(1, 100))
    module = foreign.build().eval()
    stn_export.adopt(module, foreign.shapes, run=run, name="net")
    before = {name: content for name, content in contents(run).items() if not name.endswith(".lock")}
    actual = os.fsync

    def full(handle: int) -> None:
        if next(count) == writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        actual(handle)

    monkeypatch.setattr(store.os, "fsync", full)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.25)
    with pytest.raises(OSError, match="No space"):
        stn_export.adopt(module, foreign.shapes, run=run, name="net", data_seed=5)
    after = {name: content for name, content in contents(run).items() if not name.endswith(".lock")}
    assert after == before


def test_only_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "net" / "deep" / "deeper").mkdir(parents=True)
    kept = [
        tmp_path / f".mine{PARTIAL}",
        tmp_path / f".file.{os.getpid()}.abc{PARTIAL}",
        tmp_path / "net" / "deep" / "deeper" / f".file.{DEAD}.abc{PARTIAL}",
    ]
    swept = [tmp_path / f".file.{DEAD}.abc{PARTIAL}", tmp_path / "net" / f".bench.json.{DEAD}{PARTIAL}"]
    for path in (*kept, *swept):
        path.touch()
    sweep(tmp_path)
    assert [path.exists() for path in (*kept, *swept)] == [True] * 3 + [False] * 2


def test_a_directory_that_is_no_run_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / f".file.{DEAD}.abc{PARTIAL}").touch()
    (tmp_path / "photo.jpg").touch()
    before = contents(tmp_path)
    assert cli.run(report.main, ["--run", str(tmp_path)]) == 2
    assert contents(tmp_path) == before


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "net").mkdir(parents=True)
    (run / "net" / "manifest.json").write_text("{}", encoding="utf-8")
    outside.write_text("precious", encoding="utf-8")
    (run / HOLDER).symlink_to(outside)
    (run / "figures").symlink_to(tmp_path / "elsewhere")
    with alone(run):
        assert outside.read_text(encoding="utf-8") == "precious"
    with pytest.raises(UserError, match="is a link"):
        own_folder(run / "figures")


def test_a_commit_is_that_of_this_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed into somebody's repository, the package says nothing of that repository."""
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    environment.git_commit.cache_clear()
    try:
        assert environment.git_commit() == "unknown"
    finally:
        environment.git_commit.cache_clear()


@pytest.mark.parametrize(
    "change",
    [
        {"position": 1_000_000},
        {"position": -1},
        {"position": "3"},
        {"history": "[]]"},
        {"history": '[{"epoch": 7}]'},
        {"losses": torch.zeros(3)},
        {"model": {}},
        {"model": None},
        {"optimizer": {"state": 3}},
        {"settings": "{"},
        {"generators": 5},
        {"best": [1]},
    ],
    ids=str,
)
def test_a_state_of_another_version_is_refused(change: dict, settings: Settings, small: Dataset) -> None:
    trainer = Trainer(settings, small, torch.device("cpu"))
    state = trainer.state()
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError, RuntimeError)):
        trainer.restore(state | change)
    for name in state:
        with pytest.raises((ValueError, KeyError)):
            trainer.restore({key: value for key, value in state.items() if key != name})
