"""The stage: grids, interruptions, torchrun, and what it says."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.artifacts.files import read_json
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.errors import CheckFailedError, UserError
from stn_export.train import __main__ as train
from stn_export.train.__main__ import train_cells
from stn_export.train.cells import Cell, recipe_for
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset
from stn_export.train.interrupts import Interrupts
from stn_export.train.trainer import Settings, Trainer, evaluate
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")


def finish(settings: Settings, dataset: Dataset, path: Path, interrupts: Interrupts | None = None) -> bytes:
    """Train to the end in ``path`` and return the checkpoint's bytes."""
    directory = NetworkDirectory(path / settings.model)
    train_cells([Cell(settings, directory)], dataset, CPU, interrupts or Interrupts())
    return (directory.path / "checkpoint.pt").read_bytes()


def interrupt_at(step: int, interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request the end within the step of this number, counted from 1 over all epochs."""
    whole, calls = Trainer.step, iter(range(1, 10_000))

    def interrupted(self: Trainer, chosen: torch.Tensor) -> torch.Tensor:
        interrupts.requested = next(calls) == step
        return whole(self, chosen)

    monkeypatch.setattr(Trainer, "step", interrupted)


def test_two_runs_of_one_seed_give_the_same_bytes(settings: Settings, small: Dataset, tmp_path: Path):
    first = finish(settings, small, tmp_path / "a")
    assert first == finish(settings, small, tmp_path / "b")
    assert first != finish(replace(settings, seed=2), small, tmp_path / "c")


@pytest.mark.parametrize(
    ("model", "step", "kept"),
    [
        ("stn", 1, "step 1 of 9 of epoch 1 is kept"),
        ("stn", 16, "step 7 of 9 of epoch 2 is kept"),
        ("cnn", 18, "epoch 2 of 3 is kept"),
        ("cnn-matched", 26, "step 8 of 9 of epoch 3 is kept"),
    ],
)
def test_going_on_gives_the_bytes_of_an_uninterrupted_run(
    model: str,
    step: int,
    kept: str,
    settings: Settings,
    small: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recipe = replace(settings.recipe, flip=True, crop=2)  # all that draws random numbers
    settings = replace(settings, model=model, recipe=recipe, validation=64, keep="best")
    uninterrupted = finish(settings, small, tmp_path / "a")
    with monkeypatch.context() as patch:
        interrupts = Interrupts()
        interrupt_at(step, interrupts, patch)
        with pytest.raises(KeyboardInterrupt, match=f"{kept}; run again to go on"):
            finish(settings, small, tmp_path / "b", interrupts)
    directory = tmp_path / "b" / model
    assert sorted(path.name for path in directory.iterdir()) == ["history.jsonl", "training.pt"]
    assert finish(settings, small, tmp_path / "b") == uninterrupted
    assert not (directory / "training.pt").exists()
    assert len((directory / "history.jsonl").read_text().splitlines()) == 3


def test_twenty_kills_lose_no_file_and_change_no_byte(settings: Settings, small: Dataset, tmp_path: Path):
    epochs = 24
    settings = replace(settings, recipe=replace(settings.recipe, epochs=epochs))
    started = time.perf_counter()
    uninterrupted = finish(settings, small, tmp_path / "a")
    epoch = (time.perf_counter() - started) / epochs
    directory, moments = NetworkDirectory(tmp_path / "b" / settings.model), random.Random(0)
    history, complete = directory.path / "history.jsonl", 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                finish(settings, small, tmp_path / "b")
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0, 2 * epoch))  # every other child completes an epoch: ten of 24
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before, complete = complete, len(history.read_text().splitlines()) if history.exists() else 0
        assert complete >= before
    assert 0 < complete < epochs
    assert finish(settings, small, tmp_path / "b") == uninterrupted


def test_a_diverging_run_names_the_step_the_rate_and_what_is_kept(settings: Settings, small: Dataset, tmp_path: Path):
    wild = replace(settings, recipe=replace(settings.recipe, optimizer="sgd", one_cycle=False, learning_rate=1e6))
    with pytest.raises(CheckFailedError, match=r"stn \(seed 1\) diverged in epoch 1 at step \d+ of 10 .*rate 1e\+06"):
        finish(wild, small, tmp_path)
    assert not (tmp_path / "stn" / "checkpoint.pt").exists()


def test_the_best_epoch_is_kept_where_that_is_asked_for(settings: Settings, small: Dataset, tmp_path: Path):
    settings = replace(settings, recipe=replace(settings.recipe, epochs=6), validation=200, keep="best")
    finish(settings, small, tmp_path)
    directory = NetworkDirectory(tmp_path / "stn")
    rows = [json.loads(line) for line in (directory.path / "history.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["validation_accuracy"])
    model = load_checkpoint(directory.path / "checkpoint.pt").model
    trainer = Trainer(settings, small, CPU)
    assert (len(trainer.train), len(trainer.held_out)) == (440, 200)
    assert evaluate(model, trainer.held_out)[1] == best["validation_accuracy"]


def test_a_grid_puts_further_seeds_beside_the_first(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(train, "load_dataset", lambda name, data: small)
    arguments = ["--models", "stn,cnn-matched", "--seed", "4", "--seeds", "2", "--epochs", "1", "--device", "cpu"]
    assert cli.run(train.main, [*arguments, "--run", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "cnn-matched: seeds 4, 5\n" in out
    assert "Test accuracy: the last epoch" in out
    assert "2,088,076" in out
    assert "2,064,000" in out
    seeds = {path.parent.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("checkpoint.pt")}
    assert sorted(seeds) == ["cnn-matched", "seed-5/cnn-matched", "seed-5/stn", "stn"]
    assert load_checkpoint(seeds["seed-5/stn"]).meta["settings"]["seed"] == 5
    assert cli.run(train.main, [*arguments, "--run", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("up to date") == 4


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_exits_with_130(tmp_path: Path):
    command = [sys.executable, "-m", "stn_export.train", "--device", "cpu", "--models", "cnn", "--run", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while " epoch " not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "is kept; run again to go on" in err
    assert "Traceback" not in err
    assert (tmp_path / "cnn" / "training.pt").exists()


@pytest.mark.slow
def test_torchrun_shares_the_grid_and_changes_no_byte(tmp_path: Path):
    arguments = ["--device", "cpu", "--models", "stn,cnn", "--epochs", "1", "--seeds", "2", "--run"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    for start, path in ((torchrun, tmp_path / "two"), (["-m"], tmp_path / "one")):
        command = [sys.executable, *start, "stn_export.train", *arguments, str(path)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    found = {path.relative_to(tmp_path / "two"): path for path in (tmp_path / "two").rglob("checkpoint.pt")}
    assert len(found) == 4
    for name, path in found.items():
        assert path.read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_training_again_does_nothing_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.run(train.main, ["--epochs", "2", "--run", str(run)]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_other_epochs_train_again_and_make_the_exports_stale(run: Path, stn: NetworkDirectory):
    before = stn.checkpoint().sha256
    assert cli.run(train.main, ["--epochs", "1", "--run", str(run)]) == 0
    assert stn.checkpoint().sha256 != before
    with pytest.raises(UserError, match="stale"):
        stn.open(stn.artifacts["matmul-fp32"])


def test_the_manifest_and_the_history_say_how_it_went(stn: NetworkDirectory):
    checkpoint = stn.checkpoint()
    assert checkpoint.settings["recipe"]["epochs"] == 2
    assert checkpoint.details["device"] == "cpu"
    assert checkpoint.environment["versions"]["torch"] == torch.__version__.split("+")[0]
    rows = [json.loads(line) for line in (stn.path / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["test_accuracy"] > rows[0]["test_accuracy"] > 0.1
    assert read_json(stn.path / "manifest.json", "stn_export/manifest/1")


def test_recipes_follow_the_data_set():
    assert recipe_for("cifar10", None, None).name == "reference"
    assert recipe_for("digits", None, None).name == "quick"
    assert recipe_for("digits", "reference", 7).epochs == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "unknown data set 'mnist'"),
        (["--recipe", "magic"], "unknown recipe 'magic'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--epochs", "0"], "EPOCHS=0 trains nothing"),
        (["--epochs", "many"], "argument --epochs: invalid"),
        (["--nonsense"], "unrecognized arguments"),
        (["--models", "resnet"], "unknown model 'resnet'"),
        (["--seeds", "0"], "SEEDS=0 trains nothing"),
        (["--keep", "best"], "the best epoch cannot be told"),
        (["--validation", "10000"], "10000 images cannot be held out of 10000"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
    ],
)
def test_nonsense_is_one_line_and_a_hint(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(train.main, arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "hint:" in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_an_error(capsys: pytest.CaptureFixture[str]):
    assert cli.run(train.main, ["--device", "cuda"]) == 2
    assert "PyTorch sees no GPU" in capsys.readouterr().err
