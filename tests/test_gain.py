"""Estimates and paired differences of synthetic histories, and what is kept of them."""

import json
from pathlib import Path

import pytest

from benchmarks.tools import keep_trainings
from benchmarks.tools.keep_trainings import markdown
from stn_export import cli
from stn_export.errors import UserError
from stn_export.results.statistics import estimate
from stn_export.run.manifest import (
    CHECKPOINT,
    CHECKPOINT_FILE,
    HISTORY_FILE,
    STATE_FILE,
    TRAINING_FILE,
    Artifact,
    Facts,
    NetworkDirectory,
)
from stn_export.run.schemas import read_trainings
from stn_export.train.handover import CONTRACT
from stn_export.train.outcomes import (
    accuracy_sentence,
    caveats,
    comparison,
    finding,
    groups,
    read_reference,
    verdict,
    write_trainings,
)
from stn_export.train.recipes import MODELS
from stn_export.train.sweep import seed_directory


def write(run: Path, model: str, seed: int, accuracies: list[float], recipe: str = "quick", **settings: object) -> Path:
    """One finished training as the trainer leaves it, without a checkpoint's bytes."""
    directory = NetworkDirectory(seed_directory(run, 0, seed) / model)
    directory.path.mkdir(parents=True)
    recipes = {"name": recipe, "epochs": len(accuracies)}
    settings = {"model": model, "seed": seed, "dataset": "digits", "recipe": recipes, "precision": "fp32"} | settings
    entry = Artifact(CHECKPOINT, CHECKPOINT_FILE, model, CHECKPOINT, "0", CONTRACT, settings=settings)
    entry.details["device"] = "cpu"
    entry.environment["cpu"] = "a fast one"
    directory.add(entry)
    directory.describe(Facts(MODELS[model].label, MODELS[model].role, parameters=40_000, multiply_adds=2_000_000))
    rows = [{"epoch": index + 1, "test_accuracy": value, "seconds": 2.0} for index, value in enumerate(accuracies)]
    (directory.path / HISTORY_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory.path


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Three models by three seeds: ahead by 3, 4 and 5 points of one, by 1, -1 and 0 of the other."""
    run = tmp_path / "digits"
    ahead = {"stn": (0, 0, 0), "cnn": (3, 4, 5), "cnn-matched": (1, -1, 0)}
    for model in MODELS:
        for seed in range(3):
            write(run, model, seed, [0.1, 0.8 + seed / 100 - ahead[model][seed] / 100])
    return run


def test_differences_are_taken_seed_by_seed(grid: Path):
    [one] = groups(grid)
    assert one.estimates["stn"].mean == pytest.approx(0.81)
    assert one.differences["cnn"] == pytest.approx({0: 3, 1: 4, 2: 5})
    gain = one.gains["cnn"]
    assert (gain.mean, gain.deviation, gain.count) == pytest.approx((4, 1, 3))
    assert gain.high - gain.mean == pytest.approx(4.302653 / 3**0.5)
    assert finding(gain) == "gain"
    assert finding(one.gains["cnn-matched"]) == "no measurable gain"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3.0, 3.1, 3.2], "the transformer gains 3.1 points (95 % interval 2.9 to 3.3, 3 seeds)"),
        ([0.5, 0.5, 0.5], "the transformer gains 0.5 points (95 % interval 0.5 to 0.5, 3 seeds)"),
        ([-3.0, -3.1, -3.2], "the transformer costs 3.1 points (95 % interval 2.9 to 3.3, 3 seeds)"),
        ([1.0, -1.0, 0.6], "there is no measurable gain: +0.2 points (95 % interval −2.4 to 2.8, 3 seeds)"),
        ([0.0, 0.0], "there is no measurable gain: +0.0 points (95 % interval 0.0 to 0.0, 2 seeds)"),
        ([-1.5], "the transformer changes accuracy by −1.5 points; one seed, so no interval"),
    ],
)
def test_a_difference_in_words(values: list[float], words: str):
    assert verdict(estimate(values)) == words


def test_no_interval_of_an_accuracy_leaves_what_an_accuracy_can_be(tmp_path: Path):
    for seed, (good, bad) in enumerate([(0.98, 0.0), (0.99, 0.3)]):
        write(tmp_path, "stn", seed, [good])
        write(tmp_path, "cnn", seed, [bad])
    [one] = groups(tmp_path)
    assert one.estimates["stn"].high == 1
    assert one.estimates["cnn"].low == 0
    assert one.gains["cnn"].high > 100


def test_only_common_seeds_are_paired(tmp_path: Path):
    for model, seed in (("stn", 0), ("stn", 1), ("cnn", 0), ("cnn-matched", 2)):
        write(tmp_path, model, seed, [0.5 + seed / 10])
    [one] = groups(tmp_path)
    assert one.differences == {"cnn": {0: 0.0}}
    assert finding(one.gains["cnn"]) == "one seed only: no interval"


def test_without_a_transformer_there_is_no_difference(tmp_path: Path):
    write(tmp_path, "cnn", 0, [0.5])
    [one] = groups(tmp_path)
    assert one.gains == {}


@pytest.mark.parametrize(
    ("recipe", "epochs", "expected", "measure"),
    [
        ("reference", 50, 0.445, "the mean over epochs 41 to 50"),
        ("reference", 60, 0.445, "the mean over epochs 41 to 50"),
        ("reference", 49, 0.48, "the last epoch"),
        ("tuned", 50, 0.49, "the last epoch"),
    ],
)
def test_the_reference_is_measured_over_its_last_ten_epochs(
    tmp_path: Path, recipe: str, epochs: int, expected: float, measure: str
):
    write(tmp_path, "stn", 0, [epoch / 100 for epoch in range(epochs)], recipe)
    [one] = groups(tmp_path)
    assert one.measure == measure
    assert one.accuracies("stn")[0] == pytest.approx(expected)


def test_the_best_epoch_counts_where_it_was_kept(tmp_path: Path):
    path = write(tmp_path, "stn", 0, [0.5, 0.6, 0.9], keep="best", validation=10)
    rows = [json.loads(line) for line in (path / HISTORY_FILE).read_text(encoding="utf-8").splitlines()]
    held_out = (0.4, 0.7, 0.7)  # of equals the first was kept
    rows = [row | {"validation_accuracy": value} for row, value in zip(rows, held_out, strict=True)]
    (path / HISTORY_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [one] = groups(tmp_path)
    assert one.accuracies("stn") == {0: 0.6}
    assert one.measure == "the epoch that did best on held-out images"


@pytest.mark.parametrize(
    ("other", "named"),
    [({"recipe": "tuned"}, "recipe"), ({"accuracies": [0.5, 0.6]}, "recipe"), ({"precision": "bf16"}, "precision")],
)
def test_different_settings_are_told_and_not_averaged(tmp_path: Path, other: dict, named: str):
    write(tmp_path, "stn", 0, [0.8])
    write(tmp_path, **({"model": "cnn", "seed": 0, "accuracies": [0.5]} | other))
    found = groups(tmp_path)
    assert [list(one.models) for one in found] == [["stn"], ["cnn"]]
    assert all(not one.gains for one in found)
    [line] = caveats(tmp_path, found)
    assert f"more than one setting ({named}): shown apart, not compared" in line


def test_all_settings_that_differ_are_named(tmp_path: Path):
    write(tmp_path, "stn", 0, [0.8], image_size=32)
    write(tmp_path, "cnn", 0, [0.5], image_size=64, precision="bf16")
    [line] = caveats(tmp_path, groups(tmp_path))
    said = "more than one setting (precision, image size): shown apart, not compared."
    assert line == f"{tmp_path.name} was trained with {said}"


def test_a_network_that_was_not_trained_here_is_no_training(tmp_path: Path):
    write(tmp_path, "stn", 0, [0.8])
    NetworkDirectory(tmp_path / "adopted").describe(Facts("somebody's"))
    assert [list(one.models) for one in groups(tmp_path)] == [["stn"]]


def test_what_is_not_finished_is_left_out_and_said(grid: Path):
    (grid / "seed-2" / "stn" / STATE_FILE).touch()
    [one] = groups(grid)
    assert list(one.accuracies("stn")) == [0, 1]
    assert list(one.differences["cnn"]) == [0, 1]
    assert caveats(grid, [one]) == ["digits/seed-2/stn is unfinished and was left out."]


def test_a_seed_that_is_there_twice_counts_once(grid: Path):
    first = NetworkDirectory(grid / "stn").listed(CHECKPOINT)
    first.settings["seed"] = 1  # as after training again with another first seed
    NetworkDirectory(grid / "stn").add(first)
    [one] = groups(grid)
    assert [seed.seed for seed in one.models["stn"]] == [1, 2]
    assert one.accuracies("stn")[1] == 0.8


def test_a_run_where_nothing_is_finished(tmp_path: Path):
    (write(tmp_path, "stn", 0, [0.5]) / STATE_FILE).touch()
    with pytest.raises(UserError, match=r"no training in .* is finished") as caught:
        groups(tmp_path)
    assert caught.value.hint == f"run 'make train RUN={tmp_path}' again to go on"
    with pytest.raises(UserError, match=r"there is no run at .*nowhere") as caught:
        groups(tmp_path / "nowhere")
    assert caught.value.hint == f"run 'make train RUN={tmp_path / 'nowhere'}' first, or name another"


def test_five_lines_of_markdown(grid: Path, tmp_path: Path):
    write(tmp_path / "one", "stn", 0, [0.5])
    found = [comparison(one) for one in groups(grid) + groups(tmp_path / "one") + groups(grid)]
    lines = markdown(found).splitlines()
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {8}
    assert "| digits, quick, 2 epochs | 3 | 81.0 % (78.5 to 83.5) | 77.0 % (77.0 to 77.0) |" in lines[2]
    assert lines[2].endswith("| +4.0 (1.5 to 6.5) | +0.0 (−2.5 to 2.5) |")
    assert lines[3] == "| digits, quick, 1 epochs | 1 | 50.0 % | – | – | – | – |"


def test_what_a_run_says_of_its_trainings(grid: Path):
    (grid / "seed-2" / "cnn" / STATE_FILE).touch()
    write_trainings(grid)
    found = read_trainings(grid)
    assert found.caveats == ["digits/seed-2/cnn is unfinished and was left out."]
    [one] = found.runs
    assert (one.title, one.epochs, one.measure) == ("digits, quick, 2 epochs", 2, "the last epoch")
    assert one.sentence == (
        "Test accuracy: spatial transformer 81.00% (3 seeds), plain CNN 77.00% (2 seeds), "
        "CNN of equal cost 81.00% (3 seeds) (the last epoch)."
    )
    ours = one.models["stn"]
    assert list(one.models) == ["stn", "cnn", "cnn-matched"]
    assert (ours.label, ours.role, ours.parameters, ours.device) == ("spatial transformer", "subject", 40_000, "cpu")
    assert (ours.mean, ours.deviation, ours.count, ours.median_seconds) == (0.81, 0.01, 3, 4.0)
    assert (one.differences["cnn"].seeds, one.differences["cnn"].finding) == ({"0": 3, "1": 4}, "no measurable gain")
    assert (one.reference, one.environments) == (None, [{"cpu": "a fast one", "device": "cpu"}])
    text = (grid / TRAINING_FILE).read_text(encoding="utf-8")
    assert '"2": [ 0.1, 0.82 ]' in text
    assert "NaN" not in text


def test_one_training_has_no_interval_and_nothing_beside_it(tmp_path: Path):
    write(tmp_path, "stn", 0, [0.5])
    write_trainings(tmp_path)
    [one] = read_trainings(tmp_path).runs
    assert (one.models["stn"].mean, one.models["stn"].low, one.differences) == (0.5, None, {})


def test_a_stopped_training_leaves_what_was_said_before(grid: Path):
    write_trainings(grid)
    before = (grid / TRAINING_FILE).read_bytes()
    for path in list(grid.rglob(HISTORY_FILE)):
        (path.parent / STATE_FILE).touch()
    write_trainings(grid)
    assert (grid / TRAINING_FILE).read_bytes() == before


def test_the_reference_run_is_the_published_one():
    reference = read_reference()
    assert len(reference) == 50
    assert sum(reference[40:50]) / 10 == pytest.approx(0.5729, abs=5e-5)


@pytest.mark.parametrize(
    ("dataset", "recipe", "epochs", "quoted"),
    [
        ("cifar10", "reference", 50, True),
        ("cifar10", "reference", 49, False),
        ("cifar10", "tuned", 50, False),
        ("digits", "reference", 50, False),
    ],
)
def test_the_reference_is_quoted_only_beside_its_like(
    tmp_path: Path, dataset: str, recipe: str, epochs: int, quoted: bool
):
    write(tmp_path, "stn", 0, [0.5] * epochs, recipe, dataset=dataset)
    [one] = groups(tmp_path)
    reference = comparison(one).reference
    assert (reference is not None) == (dataset == "cifar10")
    assert bool(reference and reference.settled) == quoted
    assert ("reference run 57.29% (the mean over" in accuracy_sentence(one)) == quoted


def test_what_is_kept(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other, output = tmp_path / "other", tmp_path / "kept" / "training.json"
    write(other, "stn", 0, [0.5], precision="bf16")
    (write(other, "cnn", 0, [0.5]) / STATE_FILE).touch()
    for run in (grid, other):
        write_trainings(run)
    assert cli.run(keep_trainings.main, [str(grid), str(other), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("other/cnn is unfinished and was left out.")
    assert out.count("\n") == 6
    content = json.loads(output.read_text(encoding="utf-8"))
    assert content["schema"] == "stn_export/training/2"
    one, second = content["runs"]
    assert (second["run"], second["precision"]) == ("other", "bf16")
    assert (one["dataset"], one["recipe"], one["epochs"], one["precision"]) == ("digits", "quick", 2, "fp32")
    assert one["models"]["cnn"]["seeds"] == {"0": 0.77, "1": 0.77, "2": 0.77}
    assert one["models"]["cnn"]["accuracies"]["2"] == [0.1, 0.77]
    assert one["models"]["stn"]["multiply_adds"] == 2_000_000
    assert one["differences"]["cnn"]["seeds"] == {"0": 3.0, "1": 4.0, "2": 5.0}
    assert one["differences"]["cnn"]["sentence"].startswith("the transformer gains 4.0 points")
    assert '"2": [ 0.1, 0.77 ]' in output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no training in"), ("{}", "is not of schema"), ('{"schema": "stn_export/training/2"}', "is damaged")],
)
def test_keeping_what_is_not_there(content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "a.json"
    assert cli.run(keep_trainings.main, [str(tmp_path / "none"), "--output", str(output)]) == 2
    assert "there is no run at" in capsys.readouterr().err
    if content:
        (tmp_path / TRAINING_FILE).write_text(content, encoding="utf-8")
    assert cli.run(keep_trainings.main, [str(tmp_path), "--output", str(output)]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()
