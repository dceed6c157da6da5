"""The report of a small grid that was really trained, and the sentences of its training part."""

import json
from pathlib import Path

import numpy as np
import pytest

from stn_export import cli
from stn_export.report import __main__ as report
from stn_export.report import figures
from stn_export.report import training as report_training
from stn_export.report.figures_training import theta_histograms
from stn_export.report.training import accuracy_sentence, read_reference
from stn_export.train import __main__ as train
from stn_export.train.data import Dataset
from stn_export.train.gain import Comparison, Training


@pytest.fixture(scope="module")
def grid(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models by two seeds after one epoch on ``small``, and ``cnn`` beside it. Shared: read it."""
    path = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_dataset", lambda name, data: small)
        for name, models, seeds in (("digits", "stn,cnn,cnn-matched", "2"), ("beside", "stn,cnn", "1")):
            arguments = ["--models", models, "--seeds", seeds, "--epochs", "1", "--device", "cpu"]
            assert cli.run(train.main, [*arguments, "--run", str(path / name)]) == 0
    return path


@pytest.fixture(autouse=True)
def trained_on_small(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_training, "trained_on", lambda checkpoint, data: small)


def test_the_gain_is_a_table_a_figure_and_a_sentence(grid: Path, capsys: pytest.CaptureFixture[str]):
    run = grid / "digits"
    assert cli.run(report.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Nothing has been exported yet" in out
    assert "digits, quick, 1 epochs: against the plain CNN" in out
    assert "; against the CNN of equal cost" in out
    content = json.loads((run / "report.json").read_text())
    assert [(row["model"], row["count"]) for row in content["training"]] == [
        ("spatial transformer", 2),
        ("plain CNN", 2),
        ("CNN of equal cost", 2),
    ]
    first, second = ({row["model"]: row for row in content[name]} for name in ("training", "gains"))
    expected = 100 * (first["spatial transformer"]["mean"] - first["plain CNN"]["mean"])
    assert second["plain CNN"]["mean"] == pytest.approx(expected)
    html, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert html.count("<svg") == 5
    for text in (html, markdown):
        assert "Does the transformer help?" in text
        assert "2,064,000" in text
        assert "output grid outside the image, %" in text
        assert "None" not in text
    for name in ("accuracy", "gain", "gain-differences", "warped", "theta"):
        assert (run / "figures" / f"{name}.png").exists()


def test_other_runs_stand_beside_it(grid: Path):
    assert cli.run(report.main, ["--run", str(grid / "digits"), "--beside", str(grid / "beside")]) == 0
    content = json.loads((grid / "digits" / "report.json").read_text())
    assert [row["count"] for row in content["gains"]] == [2, 2, 1]
    assert content["gains"][-1]["finding"] == "one seed only: no interval"
    assert [one["theta"] for one in content["learned"]] == ["theta", "theta-2"]
    markdown = (grid / "digits" / "report.md").read_text()
    assert "| one seed only: no interval |" in markdown
    for line in markdown.splitlines():
        if line.startswith("!["):
            assert (grid / "digits" / line.split("](")[1].rstrip(")")).exists()


def test_a_run_beside_it_that_is_not_there(grid: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(report.main, ["--run", str(grid / "digits"), "--beside", str(grid / "none")]) == 2
    assert "there is no run at" in capsys.readouterr().err


def test_a_fresh_transformer_has_learned_little(grid: Path):
    [one] = report.collect(grid / "digits", None).learned
    assert (one["dataset"], one["seed"], one["images"]) == ("digits", 0, 200)
    parts = one["parts"]
    assert parts["scale_x"]["mean"] == pytest.approx(1, abs=0.2)
    assert abs(parts["rotation"]["median"]) < 20
    assert 0 <= parts["outside"]["low"] <= parts["outside"]["median"] <= parts["outside"]["high"] < 50


def test_curves_have_a_band_where_there_are_seeds(grid: Path):
    content = report.collect(grid / "digits", None, [grid / "beside"])
    [several], [single] = (content.figures[name].axes for name in ("accuracy", "accuracy-2"))
    assert (len(several.lines), len(several.collections)) == (3, 3)
    assert (len(single.lines), len(single.collections)) == (2, 0)
    [label, *_] = [text.get_text() for text in several.get_legend().get_texts()]
    assert label == "spatial transformer, 2 seeds: mean, worst to best"


def test_a_transformer_that_never_moved_can_be_drawn():
    parts = {name: np.full(9, 1.0) for name in report_training.LABELS}
    figure = theta_histograms(parts, np.zeros((9, 4, 2)))
    assert len(figure.axes[0].patches) == 40
    assert figures.to_svg(figure, "theta").count("<svg") == 1


def comparison(dataset: str, recipe: str, accuracies: list[float]) -> Comparison:
    """One training of the transformer."""
    settings = {"dataset": dataset, "recipe": {"name": recipe, "epochs": len(accuracies)}}
    history = tuple({"test_accuracy": value, "seconds": 1.0} for value in accuracies)
    return Comparison("run", (Training("stn", 0, settings, history, "cpu", {}),))


def test_the_reference_run_is_the_published_one():
    reference = read_reference()
    assert len(reference) == 50
    assert sum(reference[40:50]) / 10 == pytest.approx(0.5729, abs=5e-5)


def test_the_reference_is_quoted_only_beside_its_like():
    assert "reference run 57.29% (the mean over" in accuracy_sentence(comparison("cifar10", "reference", [0.5] * 50))
    for dataset, recipe, epochs in (
        ("cifar10", "reference", 49),
        ("cifar10", "tuned", 50),
        ("digits", "reference", 50),
    ):
        assert "reference run" not in accuracy_sentence(comparison(dataset, recipe, [0.5] * epochs))
    assert accuracy_sentence(comparison("digits", "quick", [0.4, 0.5])).endswith("transformer 50.00% (the last epoch).")
