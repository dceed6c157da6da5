"""Caveats: one sentence per limit on the trust in a run's results, the worst first."""

from collections.abc import Callable, Iterator, Sequence
from textwrap import shorten

from stn_export.results.choice import (
    CONTRADICTED,
    DISTURBED,
    Marks,
    Shipped,
    disturbance,
    is_baseline,
    program,
    quoted,
    steps,
)
from stn_export.results.contents import Held
from stn_export.results.text import counted, listed, row_name, speed_ratio
from stn_export.run.manifest import SUBJECT
from stn_export.run.records import Check, Timing

LAUNCHES = 0.9  # of a call's time, from which on its launches are the limit
LONGEST = 160  # longest reason of a failed check, in characters
FINDINGS = ("loss", "no measurable gain")  # findings of training, the worse one first

Deployed = Shipped | None
Caveat = Callable[[Held, Deployed], Iterator[str]]


def failed(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name every check that failed, and why."""
    checks = [check for check in content.checks if not check.passed]
    if checks:
        reasons = [
            f"{check.network}/{check.artifact} on {check.runner}: {shorten(check.failure, LONGEST)}" for check in checks
        ]
        yield f"failed, never deployed: {counted(len(checks), 'check')}: {listed(reasons, '; ')}"


def stale(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name the files that were checked or timed before they changed."""
    timed = [row for row in content.rows if not is_baseline(row)]
    rows_by_stage: dict[str, Sequence[Check | Timing]] = {"verify": content.checks, "bench": timed}
    old = {
        stage: [name for name in map(content.current.changed, rows) if name] for stage, rows in rows_by_stage.items()
    }
    stages = [stage for stage, files in old.items() if files]
    if stages:
        names = dict.fromkeys(name for files in old.values() for name in files)
        commands = " and ".join(f"`stn-export {stage}`" for stage in stages)
        yield f"stale: {listed(list(names))} changed since {' and '.join(stages)} ran; run {commands} again"


def impossible(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name the figures that break a law, so that at least one of them is wrong."""
    if broken := content.broken_laws:
        yield f"figures that cannot be right, do not rely on them: {listed(list(map(str, broken)), '; ')}"


def unverified(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name the files without any check."""
    exported = {artifact.network for artifact in content.exports}
    files = [f"{artifact.network}/{artifact.name}" for artifact in content.artifacts if artifact.network in exported]
    checked = {f"{check.network}/{check.artifact}" for check in content.checks}
    if unchecked := [name for name in files if name not in checked]:
        yield f"not verified, never deployed: {listed(unchecked)}"


def faster(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name what was timed faster than the deployed file but has no check."""
    if deployed is None:
        return
    checked = {program(check) for check in content.checks}  # those that failed or are stale are named above
    fastest = deployed.quick.fastest
    rows = [
        row
        for row in steps(content.rows)
        if (row.batch, row.role, row.device) == (fastest.batch, SUBJECT, fastest.device)
        and program(row) not in checked
        and row.median.middle < fastest.median.middle
    ]
    if rows:
        yield f"faster, but nothing verifies it: {listed(list(map(row_name, rows)))}"


def disturbed(content: Held, deployed: Deployed) -> Iterator[str]:
    """State how much was timed while other work took the processor."""
    if disturbed := disturbance(content.rows):
        yield f"disturbed by other work: {disturbed.text} (their figures are marked {DISTURBED})"


def launches(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name what the host takes about as long to launch as the GPU to run, so that a faster GPU would be no faster."""
    rows = [row for row in steps(content.rows) if (row.launch_seconds or 0.0) >= LAUNCHES * row.median.middle]
    if rows:
        names = [f"{row_name(row)} at batch {row.batch:,}" for row in rows]
        yield f"bound by launches, not by the GPU: {listed(names)}; a CUDA graph launches once"


def contradicted(content: Held, deployed: Deployed) -> Iterator[str]:
    """Quote each speed-up or overhead of the card that the files' separate timings contradict, and count the others."""
    marks = Marks(content.rows)
    shown = list(quoted(content.rows, deployed)) if deployed else []
    for name, contest in shown:
        if contradiction := marks.contradiction(contest):
            pair = (contradiction.paired, contradiction.separate)
            paired, separate = (ratio.inverse if contest.contest in ("eager", "pytorch") else ratio for ratio in pair)
            cause = "measured while disturbed" if contradiction.disturbed else "the machine changed between them"
            yield (
                f"{name} at batch {contest.batch:,}: the paired comparison says {speed_ratio(paired)}, separate "
                f"timings {speed_ratio(separate)} (both marked {CONTRADICTED}): {cause}, run `stn-export bench --again`"
            )
    others = [row for row in marks.contradicted if all(row is not contest for _, contest in shown)]
    if others:
        names = listed([f"{row.contest} of {row_name(row)}, batch {row.batch:,}" for row in others])
        yield (
            f"{counted(len(others), 'paired comparison')} in the report against separate timings (marked "
            f"{CONTRADICTED}): {names}; run `stn-export bench --again`"
        )


def gain(content: Held, deployed: Deployed) -> Iterator[str]:
    """State where the transformer loses or gains nothing measurable, and where one seed gives no interval."""
    differences = list(content.trainings[0].differences.values()) if content.trainings else []
    for finding in FINDINGS:
        for difference in differences:
            if difference.finding == finding:
                yield f"against the {difference.label} {difference.sentence}"
    if any(difference.count == 1 for difference in differences):
        yield "trained with one seed, so the accuracy gain has no confidence interval"


def unlabelled(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name the networks whose examples have no labels, so that their accuracy is unknown."""
    networks = content.verified.networks if content.verified else {}
    if names := [name for name, network in networks.items() if not network.labels]:
        yield f"no labels: the accuracy of {listed(names)} is not known"


def not_timed(content: Held, deployed: Deployed) -> Iterator[str]:
    """Name the rows that the time budget left out."""
    if rows := list(map(_row_text, content.not_timed)):
        count = counted(len(rows), "row")
        yield f"not timed, the budget was spent: {count} ({listed(rows)}); run `stn-export bench` again"


def one_machine(content: Held, deployed: Deployed) -> Iterator[str]:
    """State that timings hold for the machine they were taken on."""
    if content.rows:
        yield "timed on one machine: another processor may rank the files differently"


CAVEATS: tuple[Caveat, ...] = (
    failed,
    impossible,
    stale,
    unverified,
    faster,
    disturbed,
    contradicted,
    launches,
    gain,
    unlabelled,
    not_timed,
    one_machine,
)


def caveats(content: Held, deployed: Deployed) -> list[str]:
    """Collect every caveat that applies, the worst first, each on one line."""
    return [" ".join(sentence.split()) for caveat in CAVEATS for sentence in caveat(content, deployed)]


def _row_text(row: str) -> str:
    """Name a row that was not timed, whose test is ``test_latency.py::test_latency[stn-...]``."""
    return row.rpartition("::")[2].removeprefix("test_")
