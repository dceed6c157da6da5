"""Which figures were taken while other work disturbed the machine, and which ones contradict each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from stn_export.artifacts.records import Timing, known
from stn_export.comparison.fastest import STEPS, steps
from stn_export.comparison.moments import drift

DISTURBED, CONTRADICTED = "†", "‡"
LEGEND = {
    DISTURBED: "taken while other work disturbed the machine",
    CONTRADICTED: "paired comparison and separate timings disagree by more than their intervals allow",
}


class Ratio(NamedTuple):
    """A ratio of two times with its 95 % confidence interval."""

    middle: float
    low: float
    high: float

    @property
    def inverse(self) -> "Ratio":
        """Return the other time over ours."""
        return Ratio(1 / self.middle, 1 / self.high, 1 / self.low)


@dataclass(frozen=True)
class Contradiction:
    """The ratio of a paired comparison and the ratio of the two files' separate timings, which cannot both be right."""

    paired: Ratio
    separate: Ratio
    disturbed: bool  # whether other work was seen during any of the three measurements


def disagree(paired: Ratio, separate: Ratio) -> bool:
    """Say whether the intervals lie further apart than the drift between two moments of a machine explains."""
    return paired.low > drift() * separate.high or separate.low > drift() * paired.high


def was_disturbed(row: Timing) -> bool:
    """Say whether other work was seen during a timing, or during any block of a paired comparison."""
    return bool(row.disturbed) or (row.disturbed_blocks or 0) > 0


def paired_ratio(row: Timing) -> Ratio:
    """Return what a paired comparison found: our time over the baseline's."""
    return Ratio(*row.paired)


def separate_ratio(ours: Timing, baseline: Timing) -> Ratio:
    """Return the ratio of two separate timings' medians, its ends from the ends of both intervals."""
    own, other = ours.median, baseline.median
    return Ratio(own.middle / other.middle, own.low / other.high, own.high / other.low)


@dataclass(frozen=True)
class Marks:
    """The marks that the figures of one benchmark file carry wherever they are shown."""

    rows: Sequence[Timing]

    def of(self, row: Timing) -> str:
        """Return the marks of a row's figures; empty for a figure that can be trusted."""
        if row.contest:
            contradicted = self.contradiction(row) is not None
        else:
            contradicted = _separate(row) and (_name(row), row.batch) in self._contradicted
        return DISTURBED * was_disturbed(row) + CONTRADICTED * contradicted

    def contradiction(self, contest: Timing) -> Contradiction | None:
        """Return how a paired comparison contradicts the separate timings of its two files, if it does.

        Only timings of the same kind are compared: inputs in place and in the cache, read from the same clock.
        """
        ours, baseline = map(self._timed.get, _sides(contest))
        if ours is None or baseline is None or contest.ratio is None:
            return None
        if contest.by_host or len({row.clock for row in (contest, ours, baseline)}) > 1:
            return None
        paired, separate = paired_ratio(contest), separate_ratio(ours, baseline)
        if not disagree(paired, separate):
            return None
        return Contradiction(paired, separate, any(map(was_disturbed, (contest, ours, baseline))))

    @cached_property
    def contradicted(self) -> list[Timing]:
        """The paired comparisons that contradict separate timings."""
        return [row for row in self.rows if row.contest and self.contradiction(row)]

    @cached_property
    def _timed(self) -> dict[tuple[str, int], Timing]:
        return {(_name(row), row.batch): row for row in steps(filter(_separate, self.rows))}

    @cached_property
    def _contradicted(self) -> set[tuple[str, int]]:
        return {side for row in self.contradicted for side in _sides(row)}


def _separate(row: Timing) -> bool:
    """Say whether a row times what paired comparisons time: the step alone, its inputs in the cache."""
    return row.regime in STEPS and not row.inputs.startswith("cold")


def _name(row: Timing) -> str:
    """Return a program's name as paired comparisons name their baseline."""
    return f"{row.network}-{row.runner}-{row.artifact}"


def _sides(contest: Timing) -> tuple[tuple[str, int], tuple[str, int]]:
    return (_name(contest), contest.batch), (known(contest.baseline), contest.batch)


def legend(*texts: str) -> str:
    """Explain the marks that occur in these texts; empty where there are none."""
    found = [mark for mark in LEGEND if any(mark in text for text in texts)]
    return "; ".join(f"{mark} {LEGEND[mark]}" for mark in found)


@dataclass(frozen=True)
class Disturbance:
    """How many timings, and how many blocks of paired comparisons, were disturbed."""

    timings: int
    disturbed_timings: int
    blocks: int
    disturbed_blocks: int

    def __bool__(self) -> bool:
        return self.disturbed_timings > 0 or self.disturbed_blocks > 0

    @property
    def prevails(self) -> bool:
        """Whether most timings or most blocks were disturbed."""
        return bool(self._shares(0.5))

    @property
    def text(self) -> str:
        """Every share of what was disturbed: "3 of 40 timings and 12 of 800 blocks"."""
        return " and ".join(self._shares(0))

    @property
    def prevailing(self) -> str:
        """The same, only those of which most were disturbed."""
        return " and ".join(self._shares(0.5))

    def _shares(self, above: float) -> list[str]:
        counts = (
            (self.disturbed_timings, self.timings, "timings"),
            (self.disturbed_blocks, self.blocks, "blocks"),
        )
        return [f"{part:,} of {whole:,} {unit}" for part, whole, unit in counts if part > above * whole]


def disturbance(rows: Iterable[Timing]) -> Disturbance:
    """Count the disturbed timings and blocks of rows."""
    listed = list(rows)
    timings = [row.disturbed for row in listed if row.disturbed is not None]
    blocks, disturbed = sum(row.blocks or 0 for row in listed), sum(row.disturbed_blocks or 0 for row in listed)
    return Disturbance(len(timings), sum(timings), blocks, disturbed)
