"""``training.json``: what the trainings of a run gave, for whoever has neither their histories nor their data set.

Accuracies and the ends of their intervals are in [0, 1]; differences are in points, hundredths of that. Dictionaries
are by model, or by seed: JSON's keys are text. Every interval is Student's 95 % interval of a mean over seeds; of a
single seed there is none, and no deviation.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from stn_export.artifacts.files import json_bytes, read_json
from stn_export.artifacts.manifest import TRAINING_FILE, TRAINING_SCHEMA
from stn_export.errors import UserError


@dataclass(frozen=True)
class Mean:
    """Of ``count`` seeds."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Trained(Mean):
    """One network: what it is, and its test accuracy over the seeds.

    Attributes:
        role: its role in the manifest.
        multiply_adds: of one image.
        device: where it was trained, all of them with commas.
        seconds: of all epochs, by seed.
        median_seconds: of those.
        seeds: the accuracy that stands for each seed, see ``Comparison.measure``.
        accuracies: after each epoch, by seed.
    """

    label: str
    role: str
    parameters: int
    multiply_adds: int
    device: str
    seconds: dict[str, float]
    median_seconds: float
    seeds: dict[str, float]
    accuracies: dict[str, list[float]]


@dataclass(frozen=True)
class Difference(Mean):
    """How many points the transformer is ahead of the network ``label``, by common seed, and what that says.

    Attributes:
        finding: ``gain``, ``loss``, ``no measurable gain`` or ``one seed only: no interval``.
        sentence: the same with its figures, to follow on "against the <label>".
    """

    label: str
    seeds: dict[str, float]
    finding: str
    sentence: str


@dataclass(frozen=True)
class Reference:
    """The published run: its accuracy after each epoch; ``settled`` is what compares with ours, where that does."""

    accuracies: list[float]
    settled: float | None


@dataclass(frozen=True)
class Comparison:
    """Trainings that share all ``settings`` but model and seed.

    Attributes:
        title: data set and settings in a few words.
        measure: which epochs' test accuracy stands for a training, in words.
        sentence: the accuracy of every network.
        models: in the order to show them.
        differences: by the other network; empty where there is no transformer or no common seed.
        reference: where it is of the same data set.
        environments: where they were trained, each once.
    """

    run: str
    title: str
    dataset: str
    recipe: str
    epochs: int
    precision: str
    measure: str
    sentence: str
    models: dict[str, Trained]
    differences: dict[str, Difference]
    reference: Reference | None
    settings: dict
    environments: list[dict]


@dataclass(frozen=True)
class Trainings:
    """A run's comparisons, its own settings first, and what a reader has to know of them, in sentences."""

    runs: list[Comparison]
    caveats: list[str]

    def to_bytes(self) -> bytes:
        """As a file, each innermost list on a line of its own, as fifty accuracies are read best."""
        content = json_bytes(TRAINING_SCHEMA, asdict(self))
        return re.sub(rb"\[[^][{}]*\]", lambda found: re.sub(rb"\n\s*", b" ", found.group()), content)


def read_trainings(run: Path) -> Trainings:
    """What training wrote into a run.

    Raises:
        UserError: where there is none, or it is damaged.
    """
    path = run / TRAINING_FILE
    if not run.is_dir():
        raise UserError(f"there is no run at {run}", "run 'make train' first, or name another")
    if not path.is_file():
        raise UserError(f"no training in {run} is finished", "run 'make train' (again) to go on")
    return read_json(path, TRAINING_SCHEMA, Trainings)
