"""The keys of the JSON files of a run beside its manifests, by which whoever reads one checks it first.

What stands here is read by somebody; files may hold more. ``docs/formats.md`` is made from this module.
"""

import json
from pathlib import Path
from typing import NotRequired, TypedDict

from stn_export.artifacts.files import AGAIN, checked, read_json
from stn_export.artifacts.manifest import HISTORY_FILE, VERIFY_FILE, VERIFY_SCHEMA
from stn_export.artifacts.records import FACTS, Number, Timing, Verified
from stn_export.errors import UserError
from stn_export.limits import regular


class Row(TypedDict):
    """``extra_info`` of a row of ``bench.json``, of any age: see ``records.Timing`` for what it has today."""

    network: str
    artifact: str
    sha256: str
    runner: str


TOGETHER = {  # of a row that has the one: what it has too
    "contest": (
        *("baseline", "baseline_label", "baseline_artifact", "seconds", "baseline_seconds", "ratio", "ratio_low"),
        *("ratio_high", "verdict", "blocks", "disturbed_blocks"),
    ),
    "p50": ("p50_low", "p50_high", "examples_per_second", "disturbed"),
}


class Stats(TypedDict):
    """pytest-benchmark's own figures, in seconds."""

    median: float


class Timed(TypedDict):
    """A row of ``bench.json``."""

    extra_info: Row


class TimedWhole(Timed):
    """The same, known by its name."""

    fullname: str
    stats: Stats


class Environment(TypedDict):
    """Where something was timed."""

    versions: dict[str, str]
    cpu: str
    gpu: str | None
    instruction_sets: NotRequired[list[str]]
    threads: NotRequired[int]


class Machine(TypedDict):
    """``machine_info``, where our own is."""

    stn_export: Environment


class _Bench(TypedDict):
    machine_info: Machine
    proved: NotRequired[list[tuple[str, str, str]]]
    portability: NotRequired[dict[str, dict]]
    peak: NotRequired[dict | None]


class Bench(_Bench):
    """``bench.json``, a file of pytest-benchmark, as far as an answer needs it."""

    benchmarks: list[Timed]


class Result(_Bench):
    """The same with all that keeping and comparing need."""

    benchmarks: list[TimedWhole]
    datetime: str
    work: dict[str, dict[str, dict]]
    not_timed: NotRequired[dict[str, str]]


class Epoch(TypedDict):
    """A line of ``history.jsonl``; accuracies are in [0, 1]."""

    epoch: int
    train_loss: NotRequired[Number]
    test_loss: NotRequired[Number]
    test_accuracy: float
    seconds: float
    validation_accuracy: NotRequired[Number]


def read_verified(run: Path) -> Verified | None:
    """What ``verify`` found of a run; None where it has not looked at it.

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
        compared = [*check.errors, *(point for each in check.comparisons.values() for point in each)]
        if unknown := [name for name in compared if network is None or name not in network.points]:
            raise UserError(f"{path} is damaged: no network of it has a point {unknown[0]}", AGAIN)
    return verified


def read_bench(path: Path, kind: type[Bench] | type[Result] = Bench) -> dict:
    """A benchmark file that our suites wrote; as a ``Result`` where it is to be compared or kept.

    Raises:
        UserError: where it is anything else.
    """
    try:
        content: Bench | Result = read_json(path, kind=kind)
        for index, row in enumerate(each["extra_info"] for each in content["benchmarks"]):
            for name, others in TOGETHER.items():
                if name in row and (missing := [other for other in others if other not in row]):
                    raise UserError(f"row {index} has {name} and no {missing[0]}", AGAIN)
            if row.keys() >= FACTS:
                checked(path, row, Timing)
        return dict(content)
    except UserError as error:
        reason = error.message.removeprefix(f"{path} is damaged: ")
        hint = "run 'make bench' again, or name a file that it wrote"
        raise UserError(f"{path} is not a benchmark file of stn_export: {reason}", hint) from error


def read_history(folder: Path) -> tuple[Epoch, ...]:
    """The epochs of a training.

    Raises:
        UserError: where it is damaged.
    """
    path = folder / HISTORY_FILE
    try:
        lines = regular(path, "json", AGAIN).read_text(encoding="utf-8").splitlines()
        return tuple(checked(path, json.loads(line), Epoch) for line in lines)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}", AGAIN) from error
