"""What the trainings of a run gave, written as ``training.json``, and what the transformer is worth over seeds."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from filelock import FileLock

from stn_export.errors import UserError
from stn_export.results.statistics import Estimate, estimate
from stn_export.run.manifest import CHECKPOINT, MANIFEST, STATE_FILE, SUBJECT, TRAINING_FILE, Facts, NetworkDirectory
from stn_export.run.schemas import Difference, Epoch, ModelComparison, Reference, Trained, Trainings, read_history
from stn_export.run.store import write_if_changed
from stn_export.train.recipes import MODELS, PRECISIONS

SETTLED = slice(40, 50)  # epochs 41 to 50, where the recipe ``reference`` goes up and down and no further
SETTLED_WORDS = f"the mean over epochs {SETTLED.start + 1} to {SETTLED.stop}"
TRANSFORMER = next(spec.name for spec in MODELS.values() if spec.role == SUBJECT)
PLACES = ("*", "seed-*/*")  # of a run's networks: the first seed's, then those of the others


def _held_out(row: Epoch) -> float:
    """An epoch's accuracy on held-out images.

    Raises:
        ValueError: where none were held out.
    """
    accuracy = row.get("validation_accuracy")
    if accuracy is None:
        raise ValueError(f"epoch {row['epoch']} has no accuracy on held-out images")
    return accuracy


@dataclass(frozen=True)
class Training:
    """One model, finished with one seed; ``settings`` are those that must be equal to compare it with another."""

    model: str
    seed: int
    settings: dict
    history: tuple[Epoch, ...]
    device: str
    environment: dict
    facts: Facts

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy after each epoch."""
        return [row["test_accuracy"] for row in self.history]

    @cached_property
    def measured(self) -> tuple[str, float]:
        """Which epochs' test accuracy stands for this training, in words, and what it is."""
        if self.settings.get("keep") == "best":
            best = max(self.history, key=_held_out)
            return "the epoch that did best on held-out images", best["test_accuracy"]
        if self.settings["recipe"]["name"] == "reference" and len(self.history) >= SETTLED.stop:
            settled = statistics.fmean(self.accuracies[SETTLED])
            return SETTLED_WORDS, settled
        return "the last epoch", self.accuracies[-1]

    @property
    def seconds(self) -> float:
        """How long all epochs took."""
        return sum(row["seconds"] for row in self.history)


@dataclass(frozen=True)
class Group:
    """The trainings of one run that share all settings but model and seed; at least one."""

    run: str
    trainings: tuple[Training, ...]

    @property
    def settings(self) -> dict:
        """What all of them were trained with."""
        return self.trainings[0].settings

    @property
    def measure(self) -> str:
        """Which epochs' test accuracy stands for a training, in words."""
        return self.trainings[0].measured[0]

    @cached_property
    def models(self) -> dict[str, list[Training]]:
        """The trainings of each model by rising seed, models in the order of ``MODELS``."""
        found = {model: [training for training in self.trainings if training.model == model] for model in MODELS}
        return {model: sorted(those, key=lambda one: one.seed) for model, those in found.items() if those}

    def accuracies(self, model: str) -> dict[int, float]:
        """The accuracy that stands for each seed."""
        return {training.seed: training.measured[1] for training in self.models[model]}

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Mean accuracy and its interval by model."""
        return {model: estimate(list(self.accuracies(model).values())).within(0, 1) for model in self.models}

    @property
    def differences(self) -> dict[str, dict[int, float]]:
        """By model other than the transformer: how many points the transformer is ahead, by common seed, if any."""
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
        """The mean of each difference, in points, and its interval."""
        return {model: estimate(list(values.values())) for model, values in self.differences.items()}


def finding(gain: Estimate) -> str:
    """What an interval allows one to say."""
    if gain.count == 1:
        return "one seed only: no interval"
    if not gain.excludes_zero:
        return "no measurable gain"
    return "gain" if gain.mean > 0 else "loss"


def verdict(gain: Estimate) -> str:
    """One difference in words, in points."""
    sentences = {
        "one seed only: no interval": f"the transformer is at {signed(gain.mean)} points, one seed only: no interval",
        "no measurable gain": f"there is no measurable gain: {signed(gain.mean)} points",
        "gain": f"the transformer gains {gain.mean:.1f} points",
        "loss": f"the transformer costs {-gain.mean:.1f} points",
    }
    found = finding(gain)
    low, high = (-gain.high, -gain.low) if found == "loss" else (gain.low, gain.high)
    interval = f" (95 % interval {low:.1f} to {high:.1f}, {gain.count} seeds)".replace("-", "−")
    return sentences[found] + (interval if gain.count > 1 else "")


def signed(value: float) -> str:
    """A number with its sign, one digit behind the point."""
    return f"{value:+.1f}".replace("-", "−")


def groups(run: Path) -> list[Group]:
    """The finished trainings of a run, those with equal settings together; the run's own come first.

    Raises:
        UserError: where there is no run, or no finished training in it.
    """
    if not run.is_dir():
        raise UserError(f"there is no run at {run}", "run 'make train' first, or name another")
    found: list[list[Training]] = []
    for training in _finished(run):
        group = next((group for group in found if group[0].settings == training.settings), None)
        if group is None:
            found.append([training])
        elif all((other.model, other.seed) != (training.model, training.seed) for other in group):
            group.append(training)  # a seed of an older run with another first seed may be there twice
    if not found:
        raise UserError(f"no training in {run} is finished", "run 'make train' again to go on")
    return [Group(run.name, tuple(group)) for group in found]


def _finished(run: Path) -> list[Training]:
    """By place, then by model."""
    busy, found = unfinished(run), []
    for pattern in PLACES:
        directories = [NetworkDirectory(path.parent) for path in sorted(run.glob(f"{pattern}/{MANIFEST}"))]
        those = [each for each in directories if each.path not in busy and _is_trained(each)]
        found += sorted(map(read_training, those), key=lambda one: list(MODELS).index(one.model))
    return found


def _is_trained(directory: NetworkDirectory) -> bool:
    content = directory.read()
    return content.facts is not None and CHECKPOINT in content.artifacts


def unfinished(run: Path) -> list[Path]:
    """The model directories of a run where a training is going on or was stopped."""
    return [path.parent for pattern in PLACES for path in sorted(run.glob(f"{pattern}/{STATE_FILE}"))]


def read_training(directory: NetworkDirectory) -> Training:
    """What the manifest and the history say of one model."""
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


def caveats(run: Path, found: Sequence[Group]) -> list[str]:
    """What a reader of a run's groups has to know: trainings left out, settings that differ."""
    lines = [f"{path.relative_to(run.parent)} is not finished and left out." for path in unfinished(run)]
    differing = [
        key for key in found[0].settings if any(one.settings.get(key) != found[0].settings[key] for one in found)
    ]
    if len(found) > 1:
        what = ", ".join(differing).replace("_", " ")
        lines.append(f"{run.name} was trained with more than one setting ({what}): shown apart, not compared.")
    return lines


# What the trainings of a run gave, written as ``training.json``: see ``run.schemas``.


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


def comparison(one: Group) -> ModelComparison:
    """All that is kept of trainings with equal settings."""
    dataset, recipe = one.settings["dataset"], one.settings["recipe"]
    precision = one.settings.get("precision", PRECISIONS[0])  # runs from before there was a choice do not name it
    title = f"{dataset}, {recipe['name']}, {recipe['epochs']} epochs"
    environments = [each.environment | {"device": each.device} for each in one.trainings]
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
