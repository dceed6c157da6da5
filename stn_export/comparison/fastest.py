"""The one rule by which every report names the fastest row: of verified programs, the most portable of a tie."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import comb

from stn_export.artifacts.records import Check, Timing, known
from stn_export.comparison.moments import drift

PORTABLE = ("onnx", "torchscript", "pt2")  # formats, the one that most programs read first; all others last
REFUSING = ("refused", "runs, WRONG")  # verdicts of portability
STEPS = ("device", "offline")  # regimes of a bound step

Rows = list[Timing]
Portability = Mapping[str, Mapping]  # verdicts by lowering and runtime
Program = tuple[str, str, str]
Proved = Mapping[Program, float | None]  # accuracy, where there are labels, by what ``program`` gives


def program(row: Timing | Check) -> Program:
    """What rows of one program share: network, artifact and runner."""
    return row.network, row.artifact, row.runner


def proved_by(checks: Iterable[Check], is_current: Callable[[Check], bool]) -> dict[Program, float | None]:
    """Return the programs that passed every check that is current.

    A program that also failed is not among them.
    """
    checked = list(filter(is_current, checks))
    failed = {program(check) for check in checked if not check.passed}
    return {program(check): check.accuracy for check in checked if program(check) not in failed}


def portability_of(artifacts: Iterable) -> dict[str, Mapping]:
    """What the manifests say of each lowering, by its float32 file."""
    known = (each for each in artifacts if each.precision == "fp32" and "portability" in each.details)
    found: dict[str, Mapping] = {}
    for artifact in known:
        found.setdefault(artifact.lowering, artifact.details["portability"])
    return found


def steps(rows: Iterable[Timing]) -> Rows:
    """One row for each program and batch: hot inputs before cold ones, device time before offline."""
    timed = [row for row in rows if row.regime in STEPS and row.p50 is not None]
    timed.sort(key=lambda row: (row.inputs.startswith("cold"), STEPS.index(row.regime)), reverse=True)
    chosen = {(*program(row), row.batch): row for row in timed}
    return sorted(chosen.values(), key=lambda row: row.batch)


@dataclass(frozen=True)
class Choice:
    """The row to deploy, the fastest one, and those that are not measurably slower than the fastest.

    ``single`` where there was no other row to choose from.
    """

    row: Timing
    fastest: Timing
    tied: tuple[Timing, ...]
    single: bool = False


def choose(rows: Rows, portability: Portability) -> Choice:
    """The row with the least time an example; among those that cannot be told from it, the most portable file."""
    fastest = min(rows, key=lambda row: row.median.middle / row.batch)
    pairs = max(1, comb(len(rows), 2))  # each of them could have come out as the fastest
    tied = tuple(row for row in rows if row is not fastest and not told_apart(fastest, row, pairs))
    chosen = min((fastest, *tied), key=lambda row: _portable(row, portability))
    return Choice(chosen, fastest, tied, len(rows) == 1)


def choices(rows: Rows, portability: Portability) -> tuple[Choice, Choice] | None:
    """What to ship for one example, and what for many; ``rows`` of proved programs, a row each and batch.

    Returns:
        None where nothing was timed for one example.
    """
    single = [row for row in rows if row.batch == 1]
    return (choose(single, portability), choose(_best_batches(rows), portability)) if single else None


def told_apart(fast: Timing, slow: Timing, pairs: int = 1) -> bool:
    """Say whether one row is measurably faster than another, of ``pairs`` that are looked at together.

    Rows are timed one after the other: their intervals must lie further apart than the drift between moments of a
    machine explains.
    """
    return slow.median.low / slow.batch > drift(pairs) * fast.median.high / fast.batch


def _best_batches(rows: Rows) -> Rows:
    """Each program at the batch where it takes the least time an example."""
    best: dict[Program, Timing] = {}
    for row in sorted(rows, key=lambda row: -row.median.middle / row.batch):
        best[program(row)] = row
    return list(best.values())


def _portable(row: Timing, portability: Portability) -> tuple:
    """Sorts by format, then float32 first, then by how many runtimes refuse the lowering, then by size."""
    refusing = sum(verdict in REFUSING for verdict, _ in portability.get(row.lowering or "", {}).values())
    form = PORTABLE.index(row.format) if row.format in PORTABLE else len(PORTABLE)
    return form, row.precision != "fp32", refusing, known(row.file_bytes)
