"""The part of the report that says what was trained and whether the transformer helps: ``training.json``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stn_export.artifacts.manifest import TRAINING_FILE
from stn_export.artifacts.training import Comparison, read_trainings
from stn_export.report import charts_training
from stn_export.report.content import Report


def numbered(name: str, index: int) -> str:
    """A figure's name; the first of its kind has no number."""
    return name if index == 0 else f"{name}-{index + 1}"


def add_training(report: Report, runs: Sequence[Path]) -> None:
    """What was trained in the report's own run, which comes first, and in those beside it, where anything was.

    Raises:
        UserError: where what a run says of it cannot be read.
    """
    every: list[Comparison] = []
    for index, run in enumerate(runs):
        if not (run / TRAINING_FILE).exists():  # its networks came in trained
            continue
        found = read_trainings(run)
        report.warnings += found.caveats
        report.figures[numbered("accuracy", index)] = charts_training.accuracy_curves(found.runs)
        every += found.runs
    report.training = [row for one in every for row in training_rows(one)]
    add_gains(report, [one for one in every if one.differences])


def training_rows(one: Comparison) -> list[dict]:
    """A row each network: what it is, how it was trained, and its accuracy over the seeds."""
    facts = {name: getattr(one, name) for name in ("title", "dataset", "recipe", "epochs", "precision", "measure")}
    return [facts | asdict(found) | {"network": name} for name, found in one.models.items()]


def add_gains(report: Report, those: Sequence[Comparison]) -> None:
    """The figures, the table and the sentences of what the transformer is worth, where there is a comparison."""
    if not those:
        return
    pairs = [(one, name, found) for one in those for name, found in one.differences.items()]
    report.gains = [asdict(found) | {"title": one.title, "network": name} for one, name, found in pairs]
    for one in those:
        verdicts = [f"against the {found.label} {found.sentence}" for found in one.differences.values()]
        report.verdicts.append(f"{one.title}: {'; '.join(verdicts)}.")
    if max(row["count"] for row in report.gains) > 1:  # else there is no spread to draw
        report.figures["gain"] = charts_training.seed_accuracies(those)
        report.figures["gain-differences"] = charts_training.differences(those)
