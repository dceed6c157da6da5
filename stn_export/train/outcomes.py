"""Collect the results of a run's trainings in ``training.json``, with the transformer's gain over seeds."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from filelock import FileLock

from stn_export.errors import UserError, command
from stn_export.results.statistics import Estimate, estimate
from stn_export.run.manifest import CHECKPOINT, MANIFEST, STATE_FILE, SUBJECT, TRAINING_FILE, Facts, NetworkDirectory
from stn_export.run.schemas import Difference, Epoch, ModelComparison, Reference, Trained, Trainings, read_history
from stn_export.run.store import write_if_changed
from stn_export.train.recipes import MODELS, PRECISIONS

SETTLED = slice(40, 50)  # epochs 41 to 50, where the recipe ``reference`` has converged
SETTLED_WORDS = f"the mean over epochs {SETTLED.start + 1} to {SETTLED.stop}"
TRANSFORMER = next(spec.name for spec in MODELS.values() if spec.role == SUBJECT)
PLACES = ("*", "seed-*/*")  # of a run's networks: the first seed's, then those of the others


def _held_out(row: Epoch) -> float:
    """Return an epoch's accuracy on held-out images.

    Raises:
        ValueError: if none were held out.
    """
    accuracy = row.get("validation_accuracy")
    if accuracy is None:
        raise ValueError(f"epoch {row['epoch']} has no accuracy on held-out images")
    return accuracy


@dataclass(frozen=True)
class Training:
    """One model trained with one seed; trainings can be compared if their ``settings`` are equal."""

    model: str
    seed: int
    settings: dict
    history: tuple[Epoch, ...]
    device: str
    environment: dict
    facts: Facts

    @property
    def accuracies(self) -> list[float]:
        """Return the test accuracy after each epoch."""
        return [row["test_accuracy"] for row in self.history]

    @cached_property
    def measured(self) -> tuple[str, float]:
        """Return the training's measured test accuracy, after a description of the epochs that it is from."""
        if self.settings.get("keep") == "best":
            best = max(self.history, key=_held_out)
            return "the epoch that did best on held-out images", best["test_accuracy"]
        if self.settings["recipe"]["name"] == "reference" and len(self.history) >= SETTLED.stop:
            settled = statistics.fmean(self.accuracies[SETTLED])
            return SETTLED_WORDS, settled
        return "the last epoch", self.accuracies[-1]

    @property
    def seconds(self) -> float:
        """Return the duration of all epochs."""
        return sum(row["seconds"] for row in self.history)


@dataclass(frozen=True)
class Group:
    """The trainings of one run that share all settings but model and seed; at least one."""

    run: str
    trainings: tuple[Training, ...]

    @property
    def settings(self) -> dict:
        """Return the settings that all trainings share."""
        return self.trainings[0].settings

    @property
    def measure(self) -> str:
        """Describe the epochs that the measured test accuracy is from."""
        return self.trainings[0].measured[0]

    @cached_property
    def models(self) -> dict[str, list[Training]]:
        """Return the trainings of each model by increasing seed, models in the order of ``MODELS``."""
        by_model = {model: [training for training in self.trainings if training.model == model] for model in MODELS}
        return {model: sorted(those, key=lambda one: one.seed) for model, those in by_model.items() if those}

    def accuracies(self, model: str) -> dict[int, float]:
        """Return the measured test accuracy by seed."""
        return {training.seed: training.measured[1] for training in self.models[model]}

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Return the mean accuracy by model, with its interval."""
        return {model: estimate(list(self.accuracies(model).values())).within(0, 1) for model in self.models}

    @property
    def differences(self) -> dict[str, dict[int, float]]:
        """Return the transformer's lead in points, by other model and common seed; models without one are left out."""
        if TRANSFORMER not in self.models:
            return {}
        ours = self.accuracies(TRANSFORMER)
        pairs = {
            model: {seed: 100 * (ours[seed] - value) for seed, value in self.accuracies(model).items() if seed in ours}
            for model in self.models
            if model != TRANSFORMER
        }
        return {model: values for model, values in pairs.items() if values}

    @property
    def gains(self) -> dict[str, Estimate]:
        """Return the mean difference by other model, in points, with its interval."""
        return {model: estimate(list(values.values())) for model, values in self.differences.items()}


def finding(gain: Estimate) -> str:
    """Return what an interval allows to conclude."""
    if gain.count == 1:
        return "one seed only: no interval"
    if not gain.excludes_zero:
        return "no measurable gain"
    return "gain" if gain.mean > 0 else "loss"


def verdict(gain: Estimate) -> str:
    """Describe a difference in words, in points."""
    points = f"{signed(gain.mean)} points"
    sentences = {
        "one seed only: no interval": f"the transformer changes accuracy by {points}; one seed, so no interval",
        "no measurable gain": f"there is no measurable gain: {points}",
        "gain": f"the transformer gains {gain.mean:.1f} points",
        "loss": f"the transformer costs {-gain.mean:.1f} points",
    }
    sentence = finding(gain)
    low, high = (-gain.high, -gain.low) if sentence == "loss" else (gain.low, gain.high)
    interval = f" (95 % interval {low:.1f} to {high:.1f}, {gain.count} seeds)".replace("-", "−")
    return sentences[sentence] + (interval if gain.count > 1 else "")


def signed(value: float) -> str:
    """Format a number with its sign and one decimal."""
    return f"{value:+.1f}".replace("-", "−")


def groups(run: Path) -> list[Group]:
    """Return the finished trainings of a run, grouped by equal settings; the run's own come first.

    Raises:
        UserError: if there is no run, or no finished training in it.
    """
    if not run.is_dir():
        raise UserError(f"there is no run at {run}", f"run {command('train', run=run)} first, or name another")
    grouped: list[list[Training]] = []
    for training in _finished(run):
        group = next((group for group in grouped if group[0].settings == training.settings), None)
        if group is None:
            grouped.append([training])
        elif all((other.model, other.seed) != (training.model, training.seed) for other in group):
            group.append(training)  # a seed may exist twice, from an older run with another first seed
    if not grouped:
        raise UserError(f"no training in {run} is finished", f"run {command('train', run=run)} again to go on")
    return [Group(run.name, tuple(group)) for group in grouped]


def _finished(run: Path) -> list[Training]:
    """Return the finished trainings, sorted by directory, then by model."""
    busy, groups_found = unfinished(run), []
    for pattern in PLACES:
        directories = [NetworkDirectory(path.parent) for path in sorted(run.glob(f"{pattern}/{MANIFEST}"))]
        those = [directory for directory in directories if directory.path not in busy and _is_trained(directory)]
        groups_found += sorted(map(read_training, those), key=lambda one: list(MODELS).index(one.model))
    return groups_found


def _is_trained(directory: NetworkDirectory) -> bool:
    content = directory.read()
    return content.facts is not None and CHECKPOINT in content.artifacts


def unfinished(run: Path) -> list[Path]:
    """Return the model directories of a run in which a training is unfinished."""
    return [path.parent for pattern in PLACES for path in sorted(run.glob(f"{pattern}/{STATE_FILE}"))]


def read_training(directory: NetworkDirectory) -> Training:
    """Read a training from the manifest and the history of its model's directory."""
    checkpoint = directory.listed(CHECKPOINT)
    settings = {key: value for key, value in checkpoint.settings.items() if key not in ("model", "seed")}
    return Training(
        checkpoint.settings["model"],
        checkpoint.settings["seed"],
        settings,
        read_history(directory.path),
        checkpoint.details["device"],
        checkpoint.environment,
        directory.facts,
    )


def caveats(run: Path, those: Sequence[Group]) -> list[str]:
    """Return the caveats on a run's groups: trainings left out, settings that differ."""
    lines = [f"{path.relative_to(run.parent)} is unfinished and was left out." for path in unfinished(run)]
    differing = [
        key for key in those[0].settings if any(one.settings.get(key) != those[0].settings[key] for one in those)
    ]
    if len(those) > 1:
        what = ", ".join(differing).replace("_", " ")
        lines.append(f"{run.name} was trained with more than one setting ({what}): shown apart, not compared.")
    return lines


# Content of ``training.json``, see ``run.schemas``.


REFERENCE_RUN, REFERENCE_DATASET = "reference_run.csv", "cifar10"
LOCK = ".training.lock"
DIGITS = 6  # decimals
ACCURACY_DIGITS = 4  # the resolution of ten thousand test images


def write_trainings(run: Path) -> None:
    """Write ``training.json`` if a training is finished and the content changes; the last of several writers wins."""
    with FileLock(run / LOCK):
        try:
            found_groups = groups(run)
        except UserError:
            return
        content = Trainings([comparison(one) for one in found_groups], caveats(run, found_groups)).to_bytes()
        write_if_changed(run / TRAINING_FILE, content)


def comparison(one: Group) -> ModelComparison:
    """Return the stored content for trainings with equal settings."""
    dataset, recipe = one.settings["dataset"], one.settings["recipe"]
    precision = one.settings.get("precision", PRECISIONS[0])  # older runs, before there was a choice, do not name it
    title = f"{dataset}, {recipe['name']}, {recipe['epochs']} epochs"
    environments = [training.environment | {"device": training.device} for training in one.trainings]
    return ModelComparison(
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
        environments=[
            environment for index, environment in enumerate(environments) if environment not in environments[:index]
        ],
    )


def trained(one: Group, model: str) -> Trained:
    """Return the stored content for one network."""
    those = one.models[model]
    facts, seconds = those[0].facts, [training.seconds for training in those]
    return Trained(
        **_figures(one.estimates[model]),
        label=facts.label,
        role=facts.role,
        parameters=facts.parameters,
        multiply_adds=facts.multiply_adds,
        device=", ".join(dict.fromkeys(training.device for training in those)),
        seconds={str(training.seed): round(training.seconds, 1) for training in those},
        median_seconds=round(statistics.median(seconds), 1),
        seeds=_by_seed(one.accuracies(model)),
        accuracies={
            str(training.seed): [round(value, ACCURACY_DIGITS) for value in training.accuracies] for training in those
        },
    )


def difference(one: Group, model: str) -> Difference:
    """Return the stored content for the transformer's gain over one network."""
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


def _figures(estimate: Estimate) -> dict:
    return {name: value if value is None else round(value, DIGITS) for name, value in estimate.as_dict().items()}


def accuracy_sentence(one: Group) -> str:
    """Describe every model's accuracy, and the reference run's if it is of the same recipe and epochs."""
    sentence = "Test accuracy: " + ", ".join(
        f"{MODELS[model].label} {estimate.mean:.2%}" + (f" ({estimate.count} seeds)" if estimate.count > 1 else "")
        for model, estimate in one.estimates.items()
    )
    reference = reference_for(one)
    if reference and reference.settled is not None:
        sentence += f", reference run {reference.settled:.2%}"
    return f"{sentence} ({one.measure})."


def reference_for(one: Group) -> Reference | None:
    """Return the published run, if it is of the same data set."""
    if one.settings["dataset"] != REFERENCE_DATASET:
        return None
    accuracies = read_reference()
    return Reference(accuracies, statistics.fmean(accuracies[SETTLED]) if one.measure == SETTLED_WORDS else None)


def read_reference() -> list[float]:
    """Read the test accuracy after each epoch of the published CIFAR-10 run."""
    text = (resources.files("stn_export") / "resources" / REFERENCE_RUN).read_text(encoding="utf-8")
    return [float(row["test_accuracy"]) for row in csv.DictReader(io.StringIO(text))]
