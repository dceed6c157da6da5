"""Which file to deploy on a device, by the one rule of ``comparison.fastest``; and the one time that a file has."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from stn_export.artifacts.manifest import SUBJECT
from stn_export.artifacts.records import Timing, known
from stn_export.comparison.disturbance import Ratio, paired_ratio
from stn_export.comparison.fastest import Choice, Portability, Proved, Rows, choices, program, steps
from stn_export.comparison.words import counted

BASELINES = ("eager-autograd", "onnxruntime-default")  # runners: what people get without this project
CONTESTS = ("eager", "overhead", "default", "lowering")  # whose time counts first
SIDE = ("network", "artifact", "runner")
MOMENTS = ("contest", "batch", "by_host")  # what paired comparisons share whose times are set beside each other
PYTORCH = {  # by the baseline's runner
    "eager-cpu": "eager PyTorch",
    "eager-channels-last-cpu": "eager PyTorch in channels_last",
    "compiled-cpu": "torch.compile",
}


def is_baseline(row: Timing) -> bool:
    """Whether a row is of what people get without this project; its file is no artifact of the run."""
    return row.runner.startswith(BASELINES)


def others(choice: Choice) -> list[Timing]:
    """List the rows that are not measurably slower than the one to deploy."""
    return [row for row in (choice.fastest, *choice.tied) if row is not choice.row]


def baseline_words(contest: Timing) -> str:
    """Name the side of PyTorch's that a paired comparison was with."""
    if contest.contest != "pytorch":
        return "eager PyTorch"
    runner = known(contest.baseline_runner)
    return f"{PYTORCH.get(runner, runner)} on {counted(known(contest.baseline_threads), 'thread')}"


@dataclass(frozen=True)
class Shipped:
    """The rows to deploy on one device: for one example (``quick``) and for many (``most``)."""

    quick: Choice
    most: Choice


def shipped(rows: Iterable[Timing], proved: Proved, portability: Portability) -> Shipped | None:
    """Choose the rows to deploy from a device's rows; None where no verified file was timed at batch 1."""
    ours = [row for row in steps(rows) if row.role == SUBJECT and program(row) in proved and not is_baseline(row)]
    chosen = choices(ours, portability)
    return Shipped(*chosen) if chosen else None


def contest_of(rows: Iterable[Timing], name: str, row: Timing) -> Timing | None:
    """The program's contest at the batch nearest to the row's, by factor; at the larger of two that are as near."""
    found = [other for other in rows if other.contest == name and program(other) == program(row)]
    return min(found, key=lambda other: (abs(math.log(other.batch / row.batch)), -other.batch), default=None)


def eager_contest(rows: Iterable[Timing], row: Timing) -> Timing | None:
    """Return the row's paired comparison with eager PyTorch at the very same batch."""
    contest = contest_of(rows, "eager", row)
    return contest if contest and contest.batch == row.batch else None


def headline(rows: Iterable[Timing], row: Timing) -> Timing:
    """Return the row whose time is quoted: of a request, from host array to host array, where one was timed."""
    found = [other for other in rows if other.regime == "request" and other.p50 is not None]
    same = [other for other in found if (*program(other), other.batch) == (*program(row), row.batch)]
    return same[0] if same else row


def pytorch_contests(rows: Iterable[Timing], row: Timing) -> list[Timing]:
    """List the row's paired comparisons with PyTorch as its users run it, the fastest of these first."""
    timed = [other for other in rows if other.contest == "pytorch" and other.ratio is not None]
    found = [other for other in timed if (*program(other), other.batch) == (*program(row), row.batch)]
    return sorted(found, key=lambda other: -other.paired.middle)


def speedup_contest(rows: Sequence[Timing], row: Timing) -> Timing | None:
    """Return the paired comparison whose speed-up is quoted: with PyTorch at its fastest, else with eager PyTorch."""
    return next(iter(pytorch_contests(rows, row)), None) or eager_contest(rows, row)


def over_moments(contest: Timing, rows: Iterable[Timing]) -> Ratio:
    """Return a paired comparison's ratio, its interval stretched over what the other comparisons of the run showed.

    The same two files took other times in these; any two of their times belong to the answer as well.
    """

    def alike(other: Timing, *names: str) -> bool:
        return other.ratio is not None and all(
            getattr(other, name) == getattr(contest, name) for name in (*names, *MOMENTS)
        )

    listed = list(rows)
    own, base = known(contest.seconds), known(contest.baseline_seconds)
    ours = [known(other.seconds) / own for other in listed if alike(other, *SIDE)]
    theirs = [known(other.baseline_seconds) / base for other in listed if alike(other, "baseline")]
    least, most = min([1.0, *ours]) / max([1.0, *theirs]), max([1.0, *ours]) / min([1.0, *theirs])
    middle, low, high = paired_ratio(contest)
    return Ratio(middle, min(low, middle * least), max(high, middle * most))


def quoted(rows: Sequence[Timing], deployed: Shipped) -> Iterator[tuple[str, Timing]]:
    """Yield each paired comparison that the card quotes, and what the card calls it."""
    quick, most = deployed.quick.row, deployed.most.row
    for row in (quick, most) if quick is not most else (quick,):
        if contest := speedup_contest(rows, row):
            yield f"speed-up over {baseline_words(contest)}", contest
    if contest := contest_of(rows, "overhead", quick):
        yield "overhead", contest


def time_of(row: Timing, rows: Rows) -> float:
    """Return the one time of a program at a batch, in seconds, wherever it is shown."""
    source = time_source(row, rows)
    return known(source.seconds) if source.p50 is None else source.p50


def time_source(row: Timing, rows: Rows) -> Timing:
    """Find the row whose time is shown for a program at a batch: its separate timing, else its first paired comparison.

    Two rows of one file are two moments of a machine, and their medians differ.
    """
    same = [other for other in rows if (*program(other), other.batch) == (*program(row), row.batch)]
    if row.contest and row.by_host:  # of requests
        return headline(same, row)
    if timed := steps(same):
        return timed[0]
    whole = [other for other in same if other.seconds is not None]  # of one that failed there is no time
    contests = [other for name in CONTESTS for other in whole if other.contest == name]
    return contests[0] if contests else row
