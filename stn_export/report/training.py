"""The part of the report that says what was trained, whether the transformer helps, and what it learned."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from stn_export.artifacts.manifest import network_directories
from stn_export.config import MODEL_LABELS
from stn_export.report import figures, figures_training
from stn_export.report.content import Report
from stn_export.report.thetas import decompose, outside_share, windows
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset, denormalise, example_images, normalise, trained_on
from stn_export.train.gain import SETTLED, SETTLED_WORDS, Comparison, caveats, comparisons, finding, verdict
from stn_export.train.networks import build_model, multiply_adds

REFERENCE_RUN, REFERENCE_DATASET = "reference_run.csv", "cifar10"
PICTURES = 10
OUTLINES = 40
BATCH = 1000
LABELS = {
    "rotation": "rotation, degrees",
    "scale_x": "scale x",
    "scale_y": "scale y",
    "shear": "shear",
    "shift_x": "shift x, pixels",
    "shift_y": "shift y, pixels",
    "outside": "output grid outside the image, %",
}


@dataclass(frozen=True)
class Trained:
    """A trained transformer and the data set that it was trained on."""

    transformer: nn.Module
    dataset: Dataset
    seed: int


def read_reference() -> list[float]:
    """Test accuracy after each epoch of the published CIFAR-10 run."""
    text = (resources.files("stn_export") / "resources" / REFERENCE_RUN).read_text()
    return [float(row["test_accuracy"]) for row in csv.DictReader(io.StringIO(text))]


def numbered(name: str, index: int) -> str:
    """A figure's name; those of the report's own run have no number."""
    return name if index == 0 else f"{name}-{index + 1}"


def add_training(report: Report, runs: Sequence[Path]) -> None:
    """What was trained in the report's own run, which comes first, and in those beside it; does the transformer help?

    Raises:
        UserError: where a run is missing or has no finished training.
    """
    every: list[Comparison] = []
    for index, run in enumerate(runs):
        those = comparisons(run)
        report.warnings += caveats(run, those)
        report.figures[numbered("accuracy", index)] = accuracy_figure(those)
        every += those
    report.training = [row for one in every for row in training_rows(one)]
    report.summary.append(accuracy_sentence(every[0]))
    add_gains(report, [one for one in every if one.gains])


def accuracy_figure(those: Sequence[Comparison]) -> Figure:
    """The curves of a run, over the reference run where it is of the same data set."""
    groups = [
        (one.title, {model: [seed.accuracies for seed in seeds] for model, seeds in one.models.items()})
        for one in those
    ]
    return figures_training.accuracy_curves(groups, reference_for(those[0]))


def reference_for(one: Comparison) -> list[float]:
    """The published run's accuracies, where it was of the same data set."""
    return read_reference() if one.dataset == REFERENCE_DATASET else []


def training_rows(one: Comparison) -> list[dict]:
    """A row each model: what it is, how it was trained, and its accuracy over the seeds."""
    facts = {"dataset": one.dataset, "recipe": one.recipe, "epochs": one.epochs, "precision": one.precision}
    return [
        {
            "title": one.title,
            "model": MODEL_LABELS[model],
            "parameters": sum(parameter.numel() for parameter in build_model(model).parameters()),
            "multiply_adds": multiply_adds(model),
            **facts,
            "seeds": [seed.seed for seed in seeds],
            "device": ", ".join(dict.fromkeys(seed.device for seed in seeds)),
            "seconds": statistics.median(seed.seconds for seed in seeds),
            "measure": one.measure,
            **one.estimates[model].as_dict(),
            "accuracies": [seed.accuracies for seed in seeds],
        }
        for model, seeds in one.models.items()
    ]


def accuracy_sentence(one: Comparison) -> str:
    """Every model's accuracy, and the reference run's where that is of the same recipe and epochs."""
    sentence = "Test accuracy: " + ", ".join(
        f"{MODEL_LABELS[model]} {found.mean:.2%}" + (f" ({found.count} seeds)" if found.count > 1 else "")
        for model, found in one.estimates.items()
    )
    if one.measure == SETTLED_WORDS and (reference := reference_for(one)):
        sentence += f", reference run {statistics.fmean(reference[SETTLED]):.2%}"
    return f"{sentence} ({one.measure})."


def add_gains(report: Report, those: Sequence[Comparison]) -> None:
    """The figures, the table and the sentences of what the transformer is worth, where there is a comparison."""
    if not those:
        return
    report.gains = [
        {"title": one.title, "model": MODEL_LABELS[model], **found.as_dict(), "finding": finding(found)}
        for one in those
        for model, found in one.gains.items()
    ]
    for one in those:
        verdicts = [f"against the {MODEL_LABELS[model]} {verdict(found)}" for model, found in one.gains.items()]
        report.summary.append(f"{one.title}: {'; '.join(verdicts)}.")
    if max(row["count"] for row in report.gains) < 2:
        return  # there is no spread to draw
    panels = [
        (one.title, {model: (one.accuracies(model), found) for model, found in one.estimates.items()}) for one in those
    ]
    rows = [(one.title, model, (one.differences[model], found)) for one in those for model, found in one.gains.items()]
    report.figures["gain"] = figures_training.seed_accuracies(panels)
    report.figures["gain-differences"] = figures_training.differences(rows)


def find_transformer(run: Path, data: Path | None) -> Trained | None:
    """The trained transformer of a run and the data set that it was trained on, where there is one.

    Raises:
        UserError: where that data set cannot be had.
    """
    for directory in network_directories(run):
        checkpoint = directory.checkpoint()
        transformer = getattr(load_checkpoint(directory.open(checkpoint)).model, "transformer", None)
        if transformer is not None:
            return Trained(transformer, trained_on(checkpoint, data), checkpoint.settings["seed"])
    return None


def add_learned(report: Report, trained: Trained, index: int) -> None:
    """Test images above what the transformer made of them, and theta over the whole test set."""
    images = example_images(trained.dataset, PICTURES)
    with torch.inference_mode():
        warped = denormalise(trained.transformer(normalise(images)))
        parts = trained.dataset.test.images.split(BATCH)
        theta = torch.cat([trained.transformer.theta(normalise(part)) for part in parts]).double()
    values = decompose(theta).as_dict() | {"outside": 100 * outside_share(theta)}
    report.figures[numbered("warped", index)] = figures.warped_images(images, warped)
    report.figures[numbered("theta", index)] = figures_training.theta_histograms(
        {name: part.numpy() for name, part in values.items()}, windows(theta[:OUTLINES]).numpy()
    )
    report.learned.append(
        {
            "dataset": trained.dataset.name,
            "seed": trained.seed,
            "images": len(theta),
            "warped": numbered("warped", index),
            "theta": numbered("theta", index),
            "parts": {name: spread(part) | {"label": LABELS[name]} for name, part in values.items()},
        }
    )


def spread(values: Tensor) -> dict[str, float]:
    """Mean, standard deviation and what nine tenths of N values lie between."""
    low, median, high = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    figures_of = {"mean": values.mean(), "deviation": values.std()}
    return {name: value.item() for name, value in figures_of.items()} | {"low": low, "median": median, "high": high}
