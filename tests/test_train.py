import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stn_export import cli, train
from stn_export.artifacts import ModelDirectory, read_json
from stn_export.data import Dataset
from stn_export.errors import CheckFailedError, UserError
from stn_export.train import Settings, Trainer, batches, evaluate, recipe_for, train_model

CPU = torch.device("cpu")


def finish(settings: Settings, dataset: Dataset, path: Path) -> bytes:
    """Train to the end in ``path`` and return the checkpoint's bytes."""
    directory = ModelDirectory(path / settings.model)
    return (directory.path / train_model(settings, dataset, CPU, directory).file).read_bytes()


def interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt in the middle of the epoch after ``epochs`` complete ones."""
    whole = Trainer.run_epoch

    def run_epoch(self: Trainer, on_step: object) -> dict:
        if self.epoch == epochs:
            whole(self, lambda count: (_ for _ in ()).throw(KeyboardInterrupt))
        return whole(self, on_step)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)


def test_two_runs_of_one_seed_give_the_same_bytes(settings: Settings, small: Dataset, tmp_path: Path):
    first = finish(settings, small, tmp_path / "a")
    assert first == finish(settings, small, tmp_path / "b")
    assert first != finish(replace(settings, seed=2), small, tmp_path / "c")


@pytest.mark.parametrize("model", ["stn", "cnn"])
def test_going_on_gives_the_bytes_of_an_uninterrupted_run(
    model: str, settings: Settings, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = replace(settings, model=model)
    uninterrupted = finish(settings, small, tmp_path / "a")
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt, match="epoch 2 is kept"):
            finish(settings, small, tmp_path / "b")
    directory = tmp_path / "b" / model
    assert sorted(path.name for path in directory.iterdir()) == ["history.jsonl", "training.pt"]
    assert finish(settings, small, tmp_path / "b") == uninterrupted
    assert not (directory / "training.pt").exists()
    assert len((directory / "history.jsonl").read_text().splitlines()) == 3


def test_a_state_of_other_settings_is_not_gone_on_with(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, CPU)
    trainer.run_epoch(lambda count: None)
    other = Trainer(replace(settings, seed=9), small, CPU)
    assert not other.restore(trainer.state())
    assert other.epoch == 0


def test_every_image_is_seen_once_and_the_last_batch_is_kept(small: Dataset):
    torch.manual_seed(0)
    sizes = [len(labels) for _, labels in batches(small.train, 100)]
    assert sizes == [100] * 6 + [40]


def test_the_localisation_network_learns_at_its_own_rate(settings: Settings, small: Dataset):
    groups = Trainer(settings, small, CPU).optimizer.param_groups
    assert [group["max_lr"] for group in groups] == pytest.approx([3e-4, 3e-3])


def test_evaluation_weighs_images_not_batches(settings: Settings, small: Dataset, monkeypatch: pytest.MonkeyPatch):
    model = Trainer(settings, small, CPU).model
    whole = evaluate(model, small.test)
    monkeypatch.setattr(train, "EVALUATION_BATCH", 70)
    assert evaluate(model, small.test) == pytest.approx(whole)


def test_a_diverging_run_stops_and_says_where(settings: Settings, small: Dataset, tmp_path: Path):
    wild = replace(settings, recipe=replace(settings.recipe, optimizer="sgd", one_cycle=False, learning_rate=1e6))
    with pytest.raises(CheckFailedError, match=r"stn diverged in epoch 1 .*learning rate 1e\+06"):
        finish(wild, small, tmp_path)
    assert not (tmp_path / "stn" / "checkpoint.pt").exists()


def test_training_again_does_nothing_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.run(train.main, ["--epochs", "2", "--run", str(run)]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_other_epochs_train_again_and_make_the_exports_stale(run: Path, stn: ModelDirectory):
    before = stn.checkpoint().sha256
    assert cli.run(train.main, ["--epochs", "1", "--run", str(run)]) == 0
    assert stn.checkpoint().sha256 != before
    with pytest.raises(UserError, match="stale"):
        stn.open(stn.artifacts["matmul-fp32"])


def test_the_manifest_and_the_history_say_how_it_went(stn: ModelDirectory):
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


@pytest.mark.cuda
def test_training_on_cuda_learns(settings: Settings, small: Dataset):
    trainer = Trainer(settings, small, torch.device("cuda"))
    losses = [trainer.run_epoch(lambda count: None)["train_loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    assert next(trainer.model.parameters()).device.type == "cuda"
