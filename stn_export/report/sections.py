"""The report's sections, from what to deploy to how it was trained; each gives its blocks, or none."""

from collections.abc import Iterable

from stn_export.comparison.fastest import REFUSING
from stn_export.comparison.words import by_reason, passed_words, times, verdict_words
from stn_export.report.content import Report
from stn_export.report.page import NONE, Block, Cell, Code, Picture, Section, Table, Text, number, share
from stn_export.report.sections_costs import costs, deploys
from stn_export.report.sections_training import environment, learned, networks, trained


def sections(report: Report) -> list[Section]:
    """Those that have anything to say, in their order."""
    made = (
        Section("beside", "Side by side", list(beside(report))),
        Section("deploy", "What to deploy", list(deploys(report))),
        Section("costs", "What it costs", list(costs(report))),
        Section("equal", "Is it equal", list(equal(report))),
        Section("runs", "Where it runs", list(runs(report))),
        Section("call", "How to call it", [Code(each.title, each.fence, each.text) for each in report.calls]),
        Section("learned", "What was learned", list(learned(report))),
        Section("trained", "How it was trained", list(trained(report))),
        Section("networks", "The networks", list(networks(report))),
        Section("environment", "Environment", list(environment(report))),
    )
    return [section for section in made if section.blocks]


def beside(report: Report) -> Iterable[Block]:
    """The cards of several runs, a column each."""
    if len(report.cards) > 1:
        words = list(dict.fromkeys(word for card in report.cards.values() for word in card))
        rows = [[word, *(card.get(word, NONE) for card in report.cards.values())] for word in words]
        yield Table("Cards", ("", *report.cards), rows, heading=False)


def equal(report: Report) -> Iterable[Block]:
    """Every check, and where the backends differ most."""
    if report.parity:
        yield Text(
            f"{passed_words(sum(row.check.passed for row in report.parity), len(report.parity))} "
            "against the same network in float64."
        )
        yield parity_table(report)
        for line in by_reason(report.unavailable):
            yield Text(f"Not run: {line}.", "note")
    yield from report.pictures("errors")
    for known in report.sites:
        if len(known.places) > 1:
            rows = [
                [row.lowering, row.runner, *(number(row.errors.get(place), ".1e") for place in known.places)]
                for row in known.rows
            ]
            yield Table(f"{known.network}: sites, lowerings and runners", ("lowering", "runner", *known.places), rows)
    for name, sentence in report.differing.items():
        yield Text(sentence)
        if name in report.figures:
            yield Picture(name, report.figures[name], sentence)


def parity_table(report: Report) -> Table:
    """Worst errors; of reduced precision no multiple of eager's, which would mean nothing."""
    grids = any(row.grid is not None for row in report.parity)
    checks = [row.check for row in report.parity]
    agreed = any(check.agreement is not None for check in checks)
    known = any(check.accuracy is not None for check in checks)
    reduced = any(check.precision != "fp32" for check in checks)
    columns = [
        "artifact",
        "runner",
        *["grid, px"] * grids,
        *["mean grid error, px"] * (grids and reduced),
        "outputs",
        "× eager",
    ]
    columns += [*["agreement"] * agreed, *["accuracy"] * known, "verdict"]
    rows = []
    for row in report.parity:
        check = row.check
        full = check.precision == "fp32"
        words = verdict_words(check.precision, check.passed)
        rows.append(
            [f"{check.network}/{check.artifact}", check.runner]
            + [number(row.grid, ".1e")] * grids
            + [NONE if full else number(row.pixels.mean, ".4f")] * (grids and reduced)
            + [number(row.output, ".1e"), times(check.multiple if full else None)]
            + [share(check.agreement)] * agreed
            + [share(check.accuracy)] * known
            + [Cell(words, "good" if check.passed else "bad", check.failure)]
        )
    note = (
        f"Worst errors over every challenge{', every site' * grids} and every output; × eager is the worst of them in "
        "units of float32 eager's own, left out where less precision makes it meaningless."
    )
    return Table("Parity with PyTorch", columns, rows, note)


def runs(report: Report) -> Iterable[Block]:
    """Every lowering in every runtime, and why not."""
    if not report.portability:
        return
    runtimes = next(iter(report.portability.values()))
    rows: list[list[str | Cell]] = [
        [runtime, *(_runs(*verdicts[runtime]) for verdicts in report.portability.values())] for runtime in runtimes
    ]
    yield Table("Every float32 lowering in every runtime", ("runtime", *report.portability), rows, heading=False)
    for lowering, verdicts in report.portability.items():
        for runtime, (verdict, why) in verdicts.items():
            if verdict in REFUSING:
                yield Text(f"{lowering} in {runtime}: {verdict}. {why}", "note")


def _runs(verdict: str, why: str) -> Cell:
    return Cell(verdict, "bad" if verdict in REFUSING else "good", why)
