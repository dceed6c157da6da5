"""Laws that figures must obey, checked where results are stored, read and shown, and by tests.

Each law reads timings of ``bench.json`` or checks of ``verify.json`` and yields its violations. None of them uses the
code that made the figures.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stn_export.errors import UserError, command
from stn_export.results.choice import CONTRADICTED, Marks
from stn_export.results.text import counted, listed, percent, row_name
from stn_export.run.records import Check, Timing, known, timings

EQUAL = 1e-6  # relative: figures of one source agree within it
SAME_ACCURACY = 1e-3  # training and verification use other batches, so this share of predictions may differ
NOISE = 1.25  # the ratio of two medians and the median of ratios per block agree within this factor
PROGRAM = "program"  # the artifact that is the network itself
AGAIN = f"run {command('bench')} again; if it stays so, the figures are made wrongly: please report it"


@dataclass(frozen=True)
class Broken:
    """A violation: the law, and the figure in words."""

    law: str
    figure: str

    def __str__(self) -> str:
        return f"{self.figure}: {self.law}"


def intervals_hold(row: Timing) -> Iterator[Broken]:
    """Check that a median or ratio lies in its interval."""
    medians = {"p50": row.median} if row.p50 is not None else {}
    medians |= {"ratio": row.paired} if row.ratio is not None else {}
    for name, (middle, low, high) in medians.items():
        if not low * (1 - EQUAL) <= middle <= high * (1 + EQUAL):
            difference = f"{name} {middle:.4g} of {_named(row)} against {low:.4g} to {high:.4g}"
            yield Broken("a median lies in its interval", difference)


def percentiles_rise(row: Timing) -> Iterator[Broken]:
    """Check that no percentile is below a smaller one."""
    percentiles = [seconds for seconds in (row.p50, row.p90, row.p99) if seconds is not None]
    if any(later < earlier for earlier, later in pairwise(percentiles)):
        values = ", ".join(f"{seconds:.4g}" for seconds in percentiles)
        yield Broken("percentiles rise", f"percentiles {values} of {_named(row)}")


def rate_is_of_the_median(row: Timing) -> Iterator[Broken]:
    """Check that examples per second are the batch divided by the median time."""
    rate = row.examples_per_second
    if rate is not None and row.p50 is not None and _differ(rate * row.p50, row.batch):
        difference = f"{rate:.6g} examples/s of {_named(row)}, whose median is {row.p50:.4g} s"
        yield Broken("a rate is that of the median", difference)


def parts_add_up(row: Timing, call_seconds: float | None = None) -> Iterator[Broken]:
    """Check that the parts of a profile, and its nodes, add up to the profiled call.

    Args:
        row: any.
        call_seconds: of the call, where they are known apart from the row.
    """
    if row.breakdown is None:
        return
    parts = sum(row.breakdown.values())
    nodes = [sum(node[-1] for node in row.nodes)] if row.nodes else []
    for whole in [*nodes, *([] if call_seconds is None else [call_seconds])]:
        if _differ(parts, whole):
            difference = f"parts of {parts:.4g} s of {_named(row)} against {whole:.4g} s of the call"
            yield Broken("the parts of a profile add up to the call", difference)


def ratio_is_of_the_seconds(row: Timing) -> Iterator[Broken]:
    """Check that a paired comparison's interval, widened by ``NOISE``, holds the ratio of its two times."""
    if row.ratio is None:
        return
    of_times, paired = known(row.seconds) / known(row.baseline_seconds), row.paired
    if not paired.low / NOISE <= of_times <= paired.high * NOISE:
        difference = f"ratio {paired.middle:.4g} of {_named(row)} against {of_times:.4g}"
        yield Broken("a ratio is that of its two times", difference)


def contradictions_are_marked(rows: Sequence[Timing]) -> Iterator[Broken]:
    """Check that all three figures are marked where paired comparison and separate timings disagree."""
    marks = Marks(rows)
    for contest in marks.contradicted:
        names = {(f"{contest.network}-{contest.runner}-{contest.artifact}"), contest.baseline}
        sides = [row for row in rows if row.p50 is not None and row.batch == contest.batch and _side(row) in names]
        hot = [row for row in sides if row.regime in ("device", "offline") and not row.inputs.startswith("cold")]
        for row in (contest, *hot):
            if CONTRADICTED not in marks.of(row):
                yield Broken("what is contradicted is marked", f"the time of {_named(row)}")


def no_peak_is_beaten(row: Timing, work: Mapping[str, Mapping], peak: Mapping | None) -> Iterator[Broken]:
    """Check that nothing exceeds the peak rate of floating-point operations of its device.

    Checked only where both are known: the operations really done, which ``native_flops`` counts for generated C, and
    the peak, measured by loops of fused multiply-adds (``widths``) or stated by the maker. A rate reached by matrix
    products is no peak.
    """
    counted = work.get(row.network, {}).get(str(row.batch), {})
    if peak is None or row.p50 is None or row.format != "native" or "native_flops" not in counted:
        return
    is_peak = peak.get("widths") or not peak["source"].startswith("measured")
    rate = peak["flops"].get(row.precision) if is_peak else None
    if rate is not None and counted["native_flops"] / row.p50 > rate * (1 + EQUAL):
        difference = f"{counted['native_flops'] / row.p50:.4g} FLOP/s of {_named(row)} where the peak is {rate:.4g}"
        yield Broken("no peak is beaten", difference)


LAWS_OF_A_ROW = (intervals_hold, percentiles_rise, rate_is_of_the_median, parts_add_up, ratio_is_of_the_seconds)


def broken_by_rows(rows: Sequence[Timing]) -> list[Broken]:
    """Return the violations among the rows of a benchmark file."""
    broken = [broken for row in rows for law in LAWS_OF_A_ROW for broken in law(row)]
    return [*broken, *contradictions_are_marked(rows)]


def broken_by_file(content: Mapping) -> list[Broken]:
    """Return the violations in a benchmark file, with pytest-benchmark's own statistics of its rows."""
    rows = timings(content)
    broken = broken_by_rows(rows)
    for row, entry in zip(rows, content["benchmarks"], strict=True):
        broken += parts_add_up(row, entry["stats"]["median"])
        broken += no_peak_is_beaten(row, content.get("work", {}), content.get("peak"))
    return list(dict.fromkeys(broken))


def require(content: Mapping, where: object) -> None:
    """Reject a benchmark file whose figures break a law.

    Raises:
        UserError: naming the first ones.
    """
    if broken := broken_by_file(content):
        raise UserError(f"{where} contradicts itself: {listed(list(map(str, broken)), '; ')}", AGAIN)


def broken_by_checks(checks: Sequence[Check]) -> Iterator[Broken]:
    """Check that every artifact is tested with each theta override that its network was, or a note says why not."""
    forced: dict[str, set[str]] = {}
    for check in checks:
        if check.artifact == PROGRAM:
            forced.setdefault(check.network, set()).update(filter(_forces, check.comparisons))
    for check in checks:
        noted, compared = " ".join([*check.notes, check.failure]), check.comparisons
        forced_sites = forced.get(check.network, set()) if check.passed and compared else set()
        if missing := [name for name in sorted(forced_sites) if name not in compared and name not in noted]:
            names = f"{counted(len(missing), 'theta')} ({listed(missing)}) of {check.network}/{row_name(check)}"
            yield Broken("every forced theta is counted", names)


def broken_by_accuracies(trained: Mapping[str, float], checks: Iterable[Check]) -> Iterator[Broken]:
    """Check that training and verification find the same test accuracy of a network.

    Args:
        trained: test accuracy in [0, 1] by network.
        checks: of today's files.
    """
    for check in checks:
        in_training, verified = trained.get(check.network), check.accuracy
        own = check.artifact == PROGRAM and check.precision == "fp32"
        if own and in_training is not None and verified is not None and abs(in_training - verified) > SAME_ACCURACY:
            difference = (
                f"{percent(verified)} of {check.network}/{row_name(check)} against {percent(in_training)} in training"
            )
            yield Broken("accuracy in training is that in verification", difference)


def _differ(one: float, other: float) -> bool:
    return not math.isclose(one, other, rel_tol=EQUAL)


def _forces(challenge: str) -> bool:
    """Return whether a test input overrides theta: ``theta upside down``, or ``site1/theta upside down``."""
    return challenge.partition(" ")[0].rpartition("/")[2] == "theta"


def _side(row: Timing) -> str:
    return f"{row.network}-{row.runner}-{row.artifact}"


def _named(row: Timing) -> str:
    return f"{row.network}/{row_name(row)}, batch {row.batch} ({row.contest or row.regime})"
