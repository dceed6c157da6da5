"""Long work says before it starts about how long it takes, by counted work and paces that were measured here."""

import os
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.cli import everything, progress_bar
from stn_export.cli.everything import Work, _work, left_words
from stn_export.cli.progress_bar import Paces, measured
from stn_export.export import __main__ as export
from stn_export.run.manifest import NetworkDirectory
from stn_export.train import __main__ as train
from stn_export.train.data import Dataset
from stn_export.train.sweep import Cell, recipe_for
from stn_export.train.trainer import Settings
from tests.test_chain import stages


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_pace_is_that_of_the_nearest_size():
    Paces.read().keep("export", 1e6, 4, 20.0)
    Paces.read().keep("export", 1e9, 2, 80.0)
    paces = Paces.read()
    assert [paces.of("export", size) for size in (1, 3e6, 4e7, 5e8, 1e12)] == [5.0, 5.0, 40.0, 40.0, 40.0]
    assert paces.of("verify") is None
    assert paces.expected("export", [(1e6, 3), (1e9, 1), (1e9, 0)]) == 3 * 5.0 + 40.0
    assert paces.expected("export", []) == 0
    assert paces.expected("verify", [(1e6, 3)]) is None


def test_a_later_measurement_replaces_an_earlier_one_and_no_work_is_none():
    for seconds in (9.0, 3.0):
        Paces.read().keep("verify", 10, 3, seconds)
    Paces.read().keep("verify", 10, 0, 5.0)
    assert Paces.read().of("verify", 10) == 1.0


@pytest.mark.parametrize("content", ["", "[]", '{"export/6": "x"}', "{" * 9, '{"export/6": null}'])
def test_a_damaged_file_of_paces_is_as_good_as_none(content: str):
    path = progress_bar._paces_file()
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    assert Paces.read().seconds == {}
    Paces.read().keep("export", 1, 1, 2.0)
    assert Paces.read().of("export") == 2.0


def test_where_nothing_can_be_written_only_the_estimate_is_lost(state: Path):
    state.write_text("a file", encoding="utf-8")
    Paces.read().keep("export", 1, 1, 2.0)
    assert Paces.read().of("export") is None


def test_only_work_that_ran_to_its_end_is_measured():
    with pytest.raises(KeyboardInterrupt), measured("export", 1, 2):
        raise KeyboardInterrupt
    assert Paces.read().of("export") is None
    with measured("export", 1, 2):
        time.sleep(0.02)
    assert Paces.read().of("export") >= 0.01


def test_a_bar_announces_the_work_and_estimates_by_earlier_paces_until_its_own_is_known(
    capsys: pytest.CaptureFixture[str],
):
    with cli.progress(word="export", unit="files") as bar:
        bar.announce(20, 100.0)
        task = bar.add_task("export", total=20)
        assert bar.left() == 100.0
        bar.update(task, completed=2)
        assert bar.left() == pytest.approx(90.0)  # whatever the first two took
        bar.update(task, completed=10)
        assert bar.left() < 1  # its own pace
        bar.most = lambda: 0.5
        bar.update(task, completed=0)
        assert bar.left() == 0.5
        bar.announce(3, None)
        bar.announce(0, None)
    said = capsys.readouterr().out
    assert said == "export: 20 files, about 1 min 40 s\nexport: 3 files, never timed on this machine so far\n"


def test_all_says_before_each_stage_what_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stages(monkeypatch, {})
    call = ["all", "--run", str(tmp_path / "run"), "--epochs", "2", "--seeds", "3"]
    assert cli.start(call) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0] == "all: 5 stages, never timed on this machine so far"
    assert first[1] == "train (1 of 5, after 0 s)"
    names = {name.rpartition("/")[0]: name for name in Paces.read().seconds}
    assert len(names) == 5
    for name, seconds in zip(names, (60, 10, 5, 30, 7), strict=True):
        work = _work(("train", "export", "verify", "bench", "report"), tmp_path, *parsed(call))
        units = next(each.units for each in work.values() if each.name == name)
        Paces.read().keep(name, 1, units, seconds)
    assert cli.start(call) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "all: 5 stages, about 1 min 52 s"
    assert said[1:6] == [
        "train (1 of 5, after 0 s; about 1 min 52 s left)",
        "export (2 of 5, after 0 s; about 52 s left)",
        "verify (3 of 5, after 0 s; about 42 s left)",
        "bench (4 of 5, after 0 s; about 37 s left)",
        "report (5 of 5, after 0 s; about 7 s left)",
    ]


def parsed(call: list[str]) -> tuple[Namespace, Namespace, float]:
    options, others = everything.PARSERS["all"]().parse_known_args(call[1:])
    return options, everything.PARSERS["train"]().parse_args(others), everything.QUICK_BUDGET


def test_twice_the_seeds_are_twice_the_work():
    one, two = (Work("all, train", units) for units in (2, 4))
    one.took(30.0)
    assert two.expected == 60.0
    one.took(1.0)  # everything was there
    assert two.expected == 60.0
    one.took(20.0)
    assert two.expected == 40.0
    assert left_words(["a", "b"], {"a": one, "b": Work("new", 1)}) == (
        "about 20 s and b, never timed on this machine so far,"
    )


def test_training_says_how_many_images_and_about_how_long(
    digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cells = [Cell(settings(model), NetworkDirectory(tmp_path / model), tmp_path) for model in ("stn", "cnn")]
    cpu, images = torch.device("cpu"), 2 * 2 * len(digits.train)
    train.announce(cells, cells, digits, cpu)
    assert f"train: {images:,} images, never timed on this machine so far" in capsys.readouterr().out
    for cell, seconds in zip(cells, (30.0, 60.0), strict=True):
        Paces.read().keep(*train.pace_of(cell, digits, cpu), images / 2, seconds)
    train.announce(cells, cells, digits, cpu)
    assert f"train: {images:,} images, about 1 min 30 s" in capsys.readouterr().out


def settings(model: str) -> Settings:
    """Two epochs of digits."""
    return Settings(model, recipe_for("digits", "quick", 2), seed=0, dataset="digits", dataset_fingerprint="any")


@pytest.mark.slow
def test_an_interrupted_export_keeps_its_files_and_goes_on(entered_run: Path, tmp_path: Path):
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    names = ["matmul-fp32", "decomposed-fp32", "gather-fp32", "plain-fp32"]
    command = [sys.executable, "-m", "stn_export.export", "--run", str(run), "--trust", "--only", *names]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=os.environ)
    while "matmul-fp32" not in NetworkDirectory(run / "stn").artifacts and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(2)
    out, err = first.communicate()
    assert first.returncode == 130
    assert re.search(r"interrupted: [1-3] of 4 files written; the same command goes on", err)
    assert out.startswith("export: 4 files, never timed on this machine so far")
    assert export.main(["--run", str(run), "--only", *names]) is None
    assert {*names} <= {name for each in ("stn", "cnn") for name in NetworkDirectory(run / each).artifacts}
    assert Paces.read().of("export") > 0
