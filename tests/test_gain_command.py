"""``stn-export gain``: what it runs, how long it says that it takes, and what it answers."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.cli import everything
from stn_export.results.contents import held
from stn_export.run.manifest import NetworkDirectory
from stn_export.run.schemas import read_trainings
from stn_export.train import gain
from stn_export.train.data import Dataset, Split
from tests.report_files import comparison, write_training
from tests.shapes import STROKES, draw_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "shapes", train=3, test=2, turned=True)


Started = list[tuple[str, list[str]]]


@pytest.fixture
def started(entered_run: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """The stages that were started: ``train`` leaves networks and a training of three seeds, ``verify`` fails."""
    seen: Started = []

    def perform(stage: str, options: list[str]) -> tuple[int, str]:
        seen.append((stage, list(options)))
        if stage == "train":
            run = Path(options[options.index("--run") + 1])
            shutil.copytree(entered_run, run)
            write_training(run, comparison(3))
        return (1, "stn/matmul-fp32 on r: off") if stage == "verify" else (0, "")

    monkeypatch.setattr(everything, "perform", perform)
    return seen


def test_it_says_how_long_before_it_starts_and_ends_in_the_answer(
    started: Started, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    arguments = ["--data", str(folder), "--size", "20", "--epochs", "2", "--seed", "4", "--run", str(run)]
    assert cli.start(["gain", *arguments]) == 1  # as verify found a difference
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("pictures of shapes: 4 classes, 12 for training and 8 for testing")
    assert lines[1].startswith("about ")
    assert "15 trainings of 2 epochs in" in lines[1]
    assert lines[2].startswith("gain: 5 stages")
    assert lines[3].startswith("train (1 of 5")
    assert lines[-1].startswith("answer     Test accuracy with the spatial transformer: 91.00 %; against the plain CNN")
    assert "failed: verify: stn/matmul-fp32 on r: off" in err
    assert [stage for stage, _ in started] == ["train", "export", "verify", "bench", "report"]
    training = started[0][1]
    assert training == [
        *("--run", str(run), "--brief", "--dataset", "folder", "--data", str(folder), "--size", "20"),
        *("--epochs", "2", "--seed", "4", "--seeds", "5", "--precision", "fp32", "--device", "auto"),
        *("--models", "stn,cnn,cnn-matched"),
    ]
    cli.parse("train", training)  # which it takes
    for stage, options in started[1:]:
        assert cli.parse(stage, options).run == run


def test_its_run_is_its_own(started: Started, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert cli.start(["gain", "--data", "shapes", "--size", "20", "--epochs", "1"]) == 1
    assert started[0][1][1] == "artifacts/gain/folder-shapes"


def test_other_formats_are_refused(capsys: pytest.CaptureFixture[str]):
    assert cli.start(["gain", "--json"]) == 2
    assert "--format json is of single stages" in capsys.readouterr().err


def test_the_time_follows_from_steps_epochs_and_seeds(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gain, "_epoch_seconds", lambda trainer: {"stn": 20.0, "cnn": 10.0}[trainer.settings.model])
    options = cli.parse("train", ["--seeds", "3", "--epochs", "4", "--run", str(tmp_path)])
    cells = gain.grid(options, small)
    said = gain.estimate(cells, small, torch.device("cpu"))
    whole = cli.duration(3 * 4 * 30 + gain.OTHERS + gain.BUDGET)
    assert said.startswith(f"about {whole} if this machine has nothing else to do: 6 trainings of 4 epochs in 6 min,")
    assert gain.estimate(cells[:1], small, torch.device("cpu")).startswith("about 3 min if ")
    assert "trained already" in gain.estimate([], small, torch.device("cpu"))


def test_an_epoch_is_its_steps_and_its_test(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    monkeypatch.setattr(gain, "step_seconds", lambda _: 3.0)
    monkeypatch.setattr(gain, "evaluate", lambda _, split: seen.append(len(split)))
    clock = iter((10.0, 10.5))
    monkeypatch.setattr(gain.time, "perf_counter", lambda: next(clock))
    [cell] = gain.grid(cli.parse("train", ["--models", "cnn", "--run", str(tmp_path)]), small)
    trainer = gain.Trainer(cell.settings, small, torch.device("cpu"))
    assert gain._epoch_seconds(trainer) == pytest.approx(10 * 3.0 + 0.5 * 200 / 64)
    assert seen == [64]


def with_accuracies(one: gain.ModelComparison, *means: float) -> gain.ModelComparison:
    pairs = zip(one.models.items(), means, strict=True)
    return replace(one, models={name: replace(each, mean=mean) for (name, each), mean in pairs})


def test_networks_that_only_guess_say_nothing(small: Dataset):
    labels = torch.arange(5).repeat_interleave(20)  # guessing is 20 %, give or take 4 points
    dataset = replace(small, test=Split(small.test.images[:100], labels))
    assert "No network learned more than to guess (20.00 %)" in gain.learned(
        with_accuracies(comparison(3), 0.31, 0.25, 0.2), dataset
    )
    assert gain.learned(with_accuracies(comparison(3), 0.21, 0.33, 0.2), dataset) == ""


class Measured:
    """A card with a timing."""

    def __init__(self, content: object) -> None:
        del content

    def overhead(self) -> str:
        return "1.81 × (1.80 to 1.82) the latency of the plain CNN at batch 1"

    def deploy(self) -> str:
        return "stn/matmul-fp32.onnx (runner onnxruntime-cpu)"


def test_the_answer_is_one_paragraph(
    entered_run: Path, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    one = comparison(3)
    cheaper = replace(one.models["cnn"], parameters=31_340, multiply_adds=1_032_000)
    write_training(run, replace(one, models=one.models | {"cnn": cheaper}))
    unmeasured = gain.answer(held(run), small)
    assert "and a latency that was not measured." in unmeasured
    monkeypatch.setattr(gain, "Answer", Measured)
    assert gain.answer(held(run), small) == (
        "Test accuracy with the spatial transformer: 91.00 %; against the plain CNN (71.00 %) the transformer gains; "
        "against the wide CNN (81.00 %) the transformer gains. "
        "It costs 39,884 parameters instead of 31,340, 2.00 × the multiply-adds and 1.81 × (1.80 to 1.82) the latency "
        "of the plain CNN at batch 1, measured on stn/matmul-fp32.onnx (runner onnxruntime-cpu). "
        "The intervals are over seeds, on the same 200 test pictures, each of them 0.5 of a percentage point."
    )


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    def run(turned: bool) -> Path:
        place = tmp_path_factory.mktemp("gain")
        folder = draw_folder(place / "shapes", train=300 if turned else 100, test=200, turned=turned)
        epochs = "50" if turned else "30"  # upright ones are learned at once
        arguments = ["--data", str(folder), "--run", str(place / "run"), "--epochs", epochs, "--device", "cpu"]
        assert cli.start(["gain", *arguments]) == 0
        return place / "run"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("turned", [True, False])
def test_it_finds_the_gain_on_turned_shapes_and_none_on_upright_ones(
    turned: bool, answered: Callable[[bool], Path], capfd: pytest.CaptureFixture[str]
):
    run = answered(turned)
    answer = capfd.readouterr().out.splitlines()[-1]
    [one] = read_trainings(run).runs
    found = one.differences["cnn"]
    assert (found.low > 0) == turned
    assert found.low <= 0 <= found.high or turned
    assert found.sentence in answer
    assert found.count == 5
    assert one.models["cnn"].mean > 0.5  # it learned
    assert NetworkDirectory(run / "stn").facts.classes == tuple(STROKES)
    assert "× the multiply-adds and " in answer
    assert (run / "report.html").is_file()
