"""What to ship of a device's rows, by the one rule of ``comparison.fastest``; and the one time that a file has."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stn_export.artifacts.manifest import SUBJECT
from stn_export.comparison.fastest import Choice, Portability, Proved, Rows, choices, program, steps

BASELINES = ("eager-autograd", "onnxruntime-default")  # runners: what people get without this project
CONTESTS = ("eager", "overhead", "default", "lowering")  # whose time counts first


def is_baseline(row: Mapping) -> bool:
    """Whether a row is of what people get without this project; its file is no artifact of the run."""
    return row["runner"].startswith(BASELINES)


def others(choice: Choice) -> list[dict]:
    """All that cannot be told from what is to be shipped."""
    return [row for row in (choice.fastest, *choice.tied) if row is not choice.row]


@dataclass(frozen=True)
class Shipped:
    """What to ship for one example and what for many, of one device."""

    quick: Choice
    most: Choice


def shipped(rows: Iterable[dict], proved: Proved, portability: Portability) -> Shipped | None:
    """What to ship of a device's rows; None where no proved artifact of the subject was timed for one example."""
    ours = [row for row in steps(rows) if row["role"] == SUBJECT and program(row) in proved and not is_baseline(row)]
    chosen = choices(ours, portability)
    return Shipped(*chosen) if chosen else None


def contest_of(rows: Iterable[dict], name: str, row: Mapping) -> dict | None:
    """The program's contest at the batch nearest to the row's, by factor; at the larger of two that are as near."""
    found = [other for other in rows if other.get("contest") == name and program(other) == program(row)]
    return min(found, key=lambda other: (abs(math.log(other["batch"] / row["batch"])), -other["batch"]), default=None)


def time_of(row: Mapping, rows: Rows) -> float:
    """The one time of a program at a batch, wherever it is shown: the step's own row says it, else its first contest.

    Two rows of one file are two moments of a machine, and their medians differ.
    """
    same = [other for other in rows if (*program(other), other["batch"]) == (*program(row), row["batch"])]
    if timed := steps(same):
        return timed[0]["p50"]
    whole = [other for other in same if "seconds" in other]  # of one that failed there is no time
    contests = [other["seconds"] for name in CONTESTS for other in whole if other.get("contest") == name]
    return contests[0] if contests else row["seconds"]
