"""What the trainings of a run gave, written as ``training.json``: see ``artifacts.training``."""

import csv
import io
import statistics
from importlib import resources
from pathlib import Path

from filelock import FileLock

from stn_export.artifacts.files import write_if_changed
from stn_export.artifacts.manifest import TRAINING_FILE
from stn_export.artifacts.training import Comparison, Difference, Reference, Trained, Trainings
from stn_export.comparison.estimates import Estimate
from stn_export.errors import UserError
from stn_export.train.gain import SETTLED, SETTLED_WORDS, Group, caveats, finding, groups, verdict
from stn_export.train.recipes import MODELS, PRECISIONS

REFERENCE_RUN, REFERENCE_DATASET = "reference_run.csv", "cifar10"
LOCK = ".training.lock"
DIGITS = 6  # behind the point
ACCURACY_DIGITS = 4  # what ten thousand test images tell apart


def write_trainings(run: Path) -> None:
    """Write ``training.json`` where a training is finished and it changes; the last of several writers knows most."""
    with FileLock(run / LOCK):
        try:
            found = groups(run)
        except UserError:
            return
        content = Trainings([comparison(one) for one in found], caveats(run, found)).to_bytes()
        write_if_changed(run / TRAINING_FILE, content)


def comparison(one: Group) -> Comparison:
    """All that is kept of trainings with equal settings."""
    dataset, recipe = one.settings["dataset"], one.settings["recipe"]
    precision = one.settings.get("precision", PRECISIONS[0])  # runs from before there was a choice do not name it
    title = f"{dataset}, {recipe['name']}, {recipe['epochs']} epochs"
    environments = [each.environment | {"device": each.device} for each in one.trainings]
    return Comparison(
        run=one.run,
        title=title if precision == PRECISIONS[0] else f"{title}, {precision}",
        dataset=dataset,
        recipe=recipe["name"],
        epochs=recipe["epochs"],
        precision=precision,
        measure=one.measure,
        sentence=accuracy_sentence(one),
        models={model: trained(one, model) for model in one.models},
        differences={model: difference(one, model) for model in one.differences},
        reference=reference_for(one),
        settings=one.settings,
        environments=[each for index, each in enumerate(environments) if each not in environments[:index]],
    )


def trained(one: Group, model: str) -> Trained:
    """One network's part of it."""
    those = one.models[model]
    facts, seconds = those[0].facts, [each.seconds for each in those]
    return Trained(
        **_figures(one.estimates[model]),
        label=facts.label,
        role=facts.role,
        parameters=facts.parameters,
        multiply_adds=facts.multiply_adds,
        device=", ".join(dict.fromkeys(each.device for each in those)),
        seconds={str(each.seed): round(each.seconds, 1) for each in those},
        median_seconds=round(statistics.median(seconds), 1),
        seeds=_by_seed(one.accuracies(model)),
        accuracies={str(each.seed): [round(value, ACCURACY_DIGITS) for value in each.accuracies] for each in those},
    )


def difference(one: Group, model: str) -> Difference:
    """What the transformer is worth against one network."""
    gain = one.gains[model]
    return Difference(
        **_figures(gain),
        seeds=_by_seed(one.differences[model]),
        label=MODELS[model].label,
        finding=finding(gain),
        sentence=verdict(gain),
    )


def _by_seed(values: dict[int, float]) -> dict[str, float]:
    return {str(seed): round(value, DIGITS) for seed, value in values.items()}


def _figures(found: Estimate) -> dict:
    return {name: value if value is None else round(value, DIGITS) for name, value in found.as_dict().items()}


def accuracy_sentence(one: Group) -> str:
    """Every model's accuracy, and the reference run's where that is of the same recipe and epochs."""
    sentence = "Test accuracy: " + ", ".join(
        f"{MODELS[model].label} {found.mean:.2%}" + (f" ({found.count} seeds)" if found.count > 1 else "")
        for model, found in one.estimates.items()
    )
    reference = reference_for(one)
    if reference and reference.settled is not None:
        sentence += f", reference run {reference.settled:.2%}"
    return f"{sentence} ({one.measure})."


def reference_for(one: Group) -> Reference | None:
    """The published run, where it was of the same data set."""
    if one.settings["dataset"] != REFERENCE_DATASET:
        return None
    accuracies = read_reference()
    return Reference(accuracies, statistics.fmean(accuracies[SETTLED]) if one.measure == SETTLED_WORDS else None)


def read_reference() -> list[float]:
    """Test accuracy after each epoch of the published CIFAR-10 run."""
    text = (resources.files("stn_export") / "resources" / REFERENCE_RUN).read_text(encoding="utf-8")
    return [float(row["test_accuracy"]) for row in csv.DictReader(io.StringIO(text))]
