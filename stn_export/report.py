"""Write `report.html` (self-contained), `report.md`, `report.json` and `figures/`: `python -m stn_export.report`.

The report only states what the run directory holds. A result measured on other bytes than today's artifacts is
called stale, one that is not there is called missing.
"""

import csv
import io
import statistics
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
import markupsafe
from torch import nn

from stn_export import cli, figures
from stn_export.artifacts import (
    REPORT_SCHEMA,
    VERIFY_FILE,
    ModelDirectory,
    model_directories,
    read_history,
    write_atomically,
    write_json,
)
from stn_export.checkpoint import load_checkpoint
from stn_export.config import ARTIFACTS, DEFAULT_DATASET
from stn_export.data import Dataset, denormalise, example_images, normalise, trained_on
from stn_export.report_bench import FILTERS, add_benchmarks
from stn_export.report_content import Report
from stn_export.report_parity import add_differing, add_parity, add_portability

REFERENCE_RUN = "reference_run.csv"
LAST_TEN = slice(40, 50)  # epochs 41 to 50, where the reference run has settled
PICTURES = 10


def collect(run: Path, data: Path | None) -> Report:
    """Read everything that the run directory holds.

    Raises:
        UserError: where there is no run, or a file of it cannot be read.
    """
    directories = model_directories(run)
    report = Report(run.name, environment=directories[0].checkpoint().environment)
    add_training(report, directories)
    shown = find_transformer(directories, data)
    if shown:
        add_pictures(report, *shown)
    add_portability(report, directories)
    current = {artifact.sha256 for directory in directories for artifact in directory.artifacts.values()}
    add_parity(report, run / VERIFY_FILE, current)
    if shown:
        add_differing(report, *shown, current)
    add_benchmarks(report, run, directories, current)
    return report


def read_reference() -> list[float]:
    """Test accuracy after each epoch of the published CIFAR-10 run."""
    text = (resources.files("stn_export") / "resources" / REFERENCE_RUN).read_text()
    return [float(row["test_accuracy"]) for row in csv.DictReader(io.StringIO(text))]


def add_training(report: Report, directories: list[ModelDirectory]) -> None:
    """What was trained, on what, how far it got, and the curves."""
    accuracies = {}
    for directory in directories:
        checkpoint = directory.checkpoint()
        settings, history = checkpoint.settings, read_history(directory)
        model = load_checkpoint(directory.open(checkpoint)).model
        accuracies[directory.model] = [row["test_accuracy"] for row in history]
        report.training.append(
            {
                "model": figures.MODEL_LABELS[directory.model],
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "dataset": settings["dataset"],
                "recipe": settings["recipe"]["name"],
                "epochs": len(history),
                "seed": settings["seed"],
                "device": checkpoint.details["device"],
                "seconds": sum(row["seconds"] for row in history),
                "accuracy": history[-1]["test_accuracy"],
                "accuracies": accuracies[directory.model],
            }
        )
    reference = read_reference() if report.training[0]["dataset"] == "cifar10" else []
    report.figures["accuracy"] = figures.accuracy_curves(accuracies, reference)
    report.summary.append(_accuracy_sentence(accuracies, reference))


def _accuracy_sentence(accuracies: dict[str, list[float]], reference: list[float]) -> str:
    """The two models' accuracies, over epochs 41 to 50 where the reference run can be set beside them."""
    window, last = (LAST_TEN, f"the mean over epochs {LAST_TEN.start + 1} to {LAST_TEN.stop}"), "the last epoch"
    settled = reference and all(len(values) >= LAST_TEN.stop for values in accuracies.values())
    span, when = window if settled else (slice(-1, None), last)
    figures_of = {model: statistics.mean(values[span]) for model, values in accuracies.items()}
    sentence = "Test accuracy: " + ", ".join(
        f"{figures.MODEL_LABELS[model]} {value:.2%}" for model, value in figures_of.items()
    )
    if settled:
        sentence += f", reference run {statistics.mean(reference[span]):.2%}"
    return f"{sentence} ({when})."


def find_transformer(directories: list[ModelDirectory], data: Path | None) -> tuple[nn.Module, Dataset] | None:
    """The trained transformer of a run and the data set that it was trained on, where there is one.

    Raises:
        UserError: where that data set cannot be had.
    """
    for directory in directories:
        checkpoint = directory.checkpoint()
        transformer = getattr(load_checkpoint(directory.open(checkpoint)).model, "transformer", None)
        if transformer is not None:
            return transformer, trained_on(checkpoint, data)
    return None


def add_pictures(report: Report, transformer: nn.Module, dataset: Dataset) -> None:
    """Test images above what the transformer made of them."""
    images = example_images(dataset, PICTURES)
    report.figures["warped"] = figures.warped_images(images, denormalise(transformer(normalise(images))))


def render(report: Report, template: str, pictures: dict[str, str]) -> str:
    """Fill a template; ``pictures`` are what it shows for each figure, as mark-up or as an address."""
    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(loader=loader, autoescape=template.startswith("report.html"), trim_blocks=True)
    environment.filters |= FILTERS
    return environment.get_template(template).render(report=report, pictures=pictures)


def write_report(report: Report, run: Path) -> None:
    """Write the figures and both reports."""
    for name, figure in report.figures.items():
        write_atomically(run / "figures" / f"{name}.png", figures.to_png(figure))
    linked = {name: f"figures/{name}.png" for name in report.figures}
    drawn = {name: markupsafe.Markup(figures.to_svg(figure, name)) for name, figure in report.figures.items()}
    write_json(run / "report.json", REPORT_SCHEMA, report.as_dict())
    write_atomically(run / "report.md", render(report, "report.md.j2", linked).encode())
    write_atomically(run / "report.html", render(report, "report.html.j2", drawn).encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of a run."""
    parser = cli.stage("report", "Write a run's report.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/{DEFAULT_DATASET}")
    parser.add_argument("--data", type=cli.path_or_none, help="directory that holds CIFAR-10")
    options = parser.parse_args(arguments)
    run = options.run or ARTIFACTS / DEFAULT_DATASET
    report = collect(run, options.data)
    write_report(report, run)
    for line in report.summary:
        cli.say(line)
    for line in report.warnings:
        cli.say(f"[yellow]{line}[/]")
    cli.say(f"wrote {run / 'report.html'} and {run / 'report.md'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
