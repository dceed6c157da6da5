"""The JSON and tensor files of a run beside its manifests: their keys, how to read them, which results are stale.

Keys listed here are read somewhere; files may hold more. ``docs/formats.md`` is made from this module.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import msgspec
from torch import Tensor

from stn_export.errors import UserError, command
from stn_export.limits import regular
from stn_export.run.manifest import (
    CHECKPOINT,
    HISTORY_FILE,
    POINTS_FILE,
    TRAINING_FILE,
    TRAINING_SCHEMA,
    VERIFY_FILE,
    VERIFY_SCHEMA,
    NetworkDirectory,
)
from stn_export.run.records import FACTS, Check, Number, Timing, Verified
from stn_export.run.store import AGAIN, checked, json_bytes, load_tensors, read_json


class Row(TypedDict):
    """``extra_info`` of a row of ``bench.json``, of any version: see ``records.Timing`` for its fields today."""

    network: str
    artifact: str
    sha256: str
    runner: str


TOGETHER = {  # a row with the key also has these
    "contest": (
        *("baseline", "baseline_label", "baseline_artifact", "seconds", "baseline_seconds", "ratio", "ratio_low"),
        *("ratio_high", "verdict", "blocks", "disturbed_blocks"),
    ),
    "p50": ("p50_low", "p50_high", "examples_per_second", "disturbed"),
}


class Stats(TypedDict):
    """Statistics by pytest-benchmark, in seconds."""

    median: float


class Timed(TypedDict):
    """A row of ``bench.json``."""

    extra_info: Row


class TimedWhole(Timed):
    """A row of ``bench.json`` with its test's name and statistics."""

    fullname: str
    stats: Stats


class Environment(TypedDict):
    """The machine that something was timed on."""

    versions: dict[str, str]
    cpu: str
    gpu: str | None
    instruction_sets: NotRequired[list[str]]
    threads: NotRequired[int]


class Machine(TypedDict):
    """``machine_info``; this package's own part of it."""

    stn_export: Environment


class _Bench(TypedDict):
    machine_info: Machine
    proved: NotRequired[list[tuple[str, str, str]]]
    portability: NotRequired[dict[str, dict]]
    peak: NotRequired[dict | None]
    not_timed: NotRequired[dict[str, str]]


class Bench(_Bench):
    """``bench.json``, a file of pytest-benchmark, as far as the card needs it."""

    benchmarks: list[Timed]


class Result(_Bench):
    """``bench.json`` with all that storing and comparing results needs."""

    benchmarks: list[TimedWhole]
    datetime: str
    work: dict[str, dict[str, dict]]


class Epoch(TypedDict):
    """A line of ``history.jsonl``; accuracies are in [0, 1]."""

    epoch: int
    train_loss: NotRequired[Number]
    test_loss: NotRequired[Number]
    test_accuracy: float
    seconds: float
    validation_accuracy: NotRequired[Number]


def read_verified(run: Path) -> Verified | None:
    """Read ``verify.json`` of a run; None where there is none yet.

    Raises:
        UserError: where the file is damaged.
    """
    path = run / VERIFY_FILE
    if not path.exists():
        return None
    content = read_json(path, VERIFY_SCHEMA)
    verified = checked(path, content, Verified)
    for entry, check in zip(content["checks"], verified.checks, strict=True):
        where = f"{check.network}/{check.artifact} in {check.runner}"
        if entry.get("passed") is not check.passed:
            raise UserError(f"{path} is damaged: whether {where} passed and its failure contradict each other", AGAIN)
        network = verified.networks.get(check.network)
        compared = [*check.errors, *(point for comparison in check.comparisons.values() for point in comparison)]
        if unknown := [name for name in compared if network is None or name not in network.points]:
            raise UserError(f"{path} is damaged: no network of it has a point {unknown[0]}", AGAIN)
    return verified


def read_bench(path: Path, kind: type[Bench] | type[Result] = Bench) -> dict:
    """Read a benchmark file of this package; as a ``Result`` where it is to be compared or stored.

    Raises:
        UserError: where it is damaged, or another file.
    """
    try:
        content: Bench | Result = read_json(path, kind=kind)
        for index, row in enumerate(benchmark["extra_info"] for benchmark in content["benchmarks"]):
            for name, others in TOGETHER.items():
                if name in row and (missing := [other for other in others if other not in row]):
                    raise UserError(f"row {index} has {name} and no {missing[0]}", AGAIN)
            if row.keys() >= FACTS:
                checked(path, row, Timing)
        return dict(content)
    except UserError as error:
        reason = error.message.removeprefix(f"{path} is damaged: ")
        hint = f"run {command('bench')} again, or name a file that it wrote"
        raise UserError(f"{path} is not a benchmark file of stn_export: {reason}", hint) from error


def read_history(folder: Path) -> tuple[Epoch, ...]:
    """Read the epochs of a training.

    Raises:
        UserError: where it is damaged.
    """
    path = folder / HISTORY_FILE
    try:
        lines = regular(path, "json", AGAIN).read_text(encoding="utf-8").splitlines()
        return tuple(checked(path, json.loads(line), Epoch) for line in lines)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", AGAIN) from error


# ``training.json``: results of a run's trainings, complete without their histories and data set.


@dataclass(frozen=True)
class Mean:
    """A mean over ``count`` seeds, with its standard deviation and 95 % interval."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Trained(Mean):
    """A trained network, and its test accuracy over the seeds.

    Attributes:
        role: its role in the manifest.
        multiply_adds: of one image.
        device: the devices it was trained on, with commas.
        seconds: of all epochs together, by seed.
        median_seconds: median of those.
        seeds: accuracy of each seed, see ``ModelComparison.measure``.
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
    """Accuracy of the transformer minus that of the network ``label``, in percentage points, and the finding.

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
    """The published run: accuracy after each epoch; ``settled`` is the figure to compare with, if any."""

    accuracies: list[float]
    settled: float | None


@dataclass(frozen=True)
class ModelComparison:
    """Trainings that share all ``settings`` but model and seed.

    Attributes:
        title: data set and settings in a few words.
        measure: which epochs' test accuracy represents a training, in words.
        sentence: the accuracy of every network.
        models: in display order.
        differences: by the other network; empty where there is no transformer or no common seed.
        reference: where the data set is the same.
        environments: machines they were trained on, without duplicates.
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
    """A run's comparisons, that of its own settings first, and the caveats, one sentence each."""

    runs: list[ModelComparison]
    caveats: list[str]

    def to_bytes(self) -> bytes:
        """Serialise as JSON, each innermost list on one line for readability."""
        content = json_bytes(TRAINING_SCHEMA, asdict(self))
        return re.sub(rb"\[[^][{}]*\]", lambda match: re.sub(rb"\n\s*", b" ", match.group()), content)


def read_trainings(run: Path) -> Trainings:
    """Read ``training.json`` of a run.

    Raises:
        UserError: where there is none, or it is damaged.
    """
    path = run / TRAINING_FILE
    if not run.is_dir():
        raise UserError(f"there is no run at {run}", f"run {command('train', run=run)} first, or name another")
    if not path.is_file():
        raise UserError(f"no training in {run} is finished", f"run {command('train', run=run)} (again) to go on")
    return read_json(path, TRAINING_SCHEMA, Trainings)


# ``points.pt``: values at the sites of a run's networks, stored so that a report needs no network.


SCHEMA = "stn_export/points/1"


class SitePoints(TypedDict):
    """A site's values over all examples: theta N×2×3 if there is one, the share of its grid outside the image (N)."""

    theta: NotRequired[Tensor]
    outside: Tensor
    image_size: Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]  # height and width
    align_corners: bool


class Pictures(TypedDict):
    """Some examples, and each site's warped images of them."""

    of: str
    indices: Tensor
    input: Tensor
    warped: dict[str, Tensor]
    labels: NotRequired[Tensor]


class Points(TypedDict):
    """Values of one network's sites; ``program`` is its sha256."""

    program: str
    examples: int
    sites: dict[str, SitePoints]
    pictures: NotRequired[Pictures]


class _File(TypedDict):
    networks: dict[str, Points]


def read_points_file(run: Path) -> dict[str, Points]:
    """Read ``points.pt`` by network; empty where ``verify`` has not run.

    Raises:
        UserError: where the file is of another schema, or damaged.
    """
    path = run / POINTS_FILE
    if not path.exists():
        return {}
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} is not of schema {SCHEMA}", AGAIN)
    return checked(path, content, _File)["networks"]


# Which results are current: those of today's files on today's examples. Others are stale.


@dataclass(frozen=True)
class Current:
    """The files and examples of a run today, against which results are current or stale.

    Attributes:
        files: the sha256 of every program and export.
        examples: the sha256 of each network's examples, labels included.
    """

    files: frozenset[str] = frozenset()
    examples: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, directories: Iterable[NetworkDirectory]) -> "Current":
        """Read them from the manifests."""
        networks = list(directories)
        artifacts = (artifact for network in networks for artifact in network.artifacts.values())
        examples = {network.name: network.facts.examples["sha256"] for network in networks}
        return cls(frozenset(artifact.sha256 for artifact in artifacts if artifact.name != CHECKPOINT), examples)

    def holds(self, result: Check | Timing) -> bool:
        """Return whether a check or a timing is of today's files and examples."""
        return not self.changed(result)

    def changed(self, result: Check | Timing) -> str:
        """Name what has changed since a check or a timing was made; empty where it is not stale.

        Results of older versions do not record their examples; these count as unchanged.
        """
        name = f"{result.network}/{result.artifact}"
        if result.sha256 not in self.files:
            return name
        baseline = result.baseline_sha256 if isinstance(result, Timing) else None
        if baseline is not None and baseline not in self.files:
            return f"{name}'s baseline"
        tried_on = result.examples_sha256
        return (
            f"what {result.network} is tried on" if tried_on and tried_on != self.examples.get(result.network) else ""
        )
