"""Write `report.html` (self-contained), `report.md`, `report.json` and `figures/`: `python -m stn_export.report`.

The report only states what the run directory contains. A result measured on other bytes than the current artifacts is
called stale, one that does not exist is called missing. With ``--history`` it draws stored results over commits
instead.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
import markupsafe

from stn_export import cli
from stn_export.config import DEFAULT_RUN
from stn_export.onnx_graph.calls import HowToCall, call_of, calls_of
from stn_export.report.costs import add_benchmarks, costs, deploys
from stn_export.report.drawing import DARK, PRINTED, library
from stn_export.report.history import history
from stn_export.report.page import NONE, Block, Cell, Code, Page, Picture, Report, Section, Table, Text, number, share
from stn_export.report.parity import add_differing, add_parity, add_portability, artifacts_of
from stn_export.report.training_sections import (
    add_learned,
    add_networks,
    add_training,
    environment,
    learned,
    networks,
    read_points,
    trained,
)
from stn_export.results import card as answer
from stn_export.results.card import in_html, in_markdown
from stn_export.results.choice import REFUSING
from stn_export.results.contents import Held, held
from stn_export.results.text import by_reason, passed_words, sentence, times, verdict_words
from stn_export.run.manifest import PROGRAM, REPORT_SCHEMA, network_directories
from stn_export.run.store import alone, own_folder, write_atomically, write_json

MOST_FAILED = 5  # failed checks that stand outside the folded table


# Sections of the report, from what to deploy to how it was trained.


def sections(report: Report) -> list[Section]:
    """Return the sections that have any content, in their order."""
    made = (
        Section("beside", "Side by side", list(beside(report))),
        Section("deploy", "What to deploy", list(deploys(report))),
        Section("costs", "What it costs", list(costs(report))),
        Section("equal", "Is it equal", list(equal(report))),
        Section("runs", "Where it runs", list(runs(report))),
        Section("call", "How to call the files", [Code(call.title, call.fence, call.text) for call in report.calls]),
        Section("learned", "What was learned", list(learned(report))),
        Section("trained", "How it was trained", list(trained(report))),
        Section("networks", "The networks", list(networks(report))),
        Section("environment", "Environment", list(environment(report))),
    )
    return [section for section in made if section.blocks]


def beside(report: Report) -> Iterable[Block]:
    """Yield a table of the summaries of several runs, one column each."""
    if len(report.cards) > 1:
        words = list(dict.fromkeys(word for card in report.cards.values() for word in card))
        rows = [[word, *(card.get(word, NONE) for card in report.cards.values())] for word in words]
        yield Table("Cards", ("", *report.cards), rows, heading=False)


def equal(report: Report) -> Iterable[Block]:
    """Yield the checks that failed, the parity table, the errors by site, and the examples that differ most."""
    if report.parity:
        yield Text(
            f"{passed_words(sum(row.check.passed for row in report.parity), len(report.parity))} "
            "against the same network in float64."
        )
        failed = [row for row in report.parity if not row.check.passed]
        for row in failed[:MOST_FAILED]:
            yield Text(sentence(f"{row.name} in {row.check.runner} FAILED: {row.check.failure}"), "warning")
        if len(failed) > MOST_FAILED:
            yield Text(f"{len(failed) - MOST_FAILED} more failed: the table has them, last.", "warning")
        yield parity_table(report)
        for line in by_reason(report.unavailable):
            yield Text(sentence(f"Not run: {line}"), "note")
    yield from report.pictures("errors", folded=True)
    for site in report.sites:
        if len(site.places) > 1:
            rows = [
                [row.lowering, row.runner, *(number(row.errors.get(place), ".1e") for place in site.places)]
                for row in site.ranked
            ]
            title = f"{site.network}: sites, lowerings and runners"
            columns = ("lowering", "runner", *site.places)
            yield Table(title, columns, rows, order=f"the smallest error of {site.places[-1]} first", folded=True)
    for name, words in report.differing.items():
        drawn = report.figures.get(name)
        yield Text(words) if drawn is None else Picture(name, drawn, words, folded=True)


def parity_table(report: Report) -> Table:
    """Return the table of worst errors; multiples of eager's error are left out at reduced precision."""
    grids = any(row.grid is not None for row in report.parity)
    checks = [row.check for row in report.parity]
    agreed = any(check.agreement is not None for check in checks)
    labelled = any(check.accuracy is not None for check in checks)
    reduced = any(check.precision != "fp32" for check in checks)
    columns = [
        "artifact",
        "runner",
        "verdict",
        *["grid, px"] * grids,
        *["mean grid error, px"] * (grids and reduced),
        "outputs",
        "× eager",
    ]
    columns += [*["agreement"] * agreed, *["accuracy"] * labelled]
    subject = report.networks[0].name if report.networks else ""
    rows: list[list[str | Cell]] = []
    for row in sorted(report.parity, key=lambda row: (row.check.network != subject, row.rank)):
        check = row.check
        full = check.precision == "fp32"
        words = verdict_words(check.precision, check.passed)
        verdict = Cell(words, "good" if check.passed else "bad", check.failure)
        figures = (
            [number(row.grid, ".1e")] * grids
            + [NONE if full else number(row.pixels.mean, ".4f")] * (grids and reduced)
            + [number(row.output, ".1e"), times(check.multiple if full else None)]
            + [share(check.agreement)] * agreed
            + [share(check.accuracy)] * labelled
        )
        rows.append([row.name, check.runner, verdict, *figures])
    note = (
        f"Worst errors over every challenge{', every site' * grids} and every output; × eager is the worst of them in "
        "units of float32 eager's own, left out for reduced precision, where it is not meaningful."
    )
    order = (
        "the network under test first; equal, within bounds, failed; of these the smallest error of the outputs first"
    )
    return Table("Parity with PyTorch", columns, rows, note, order=order, folded=True)


def runs(report: Report) -> Iterable[Block]:
    """Yield the table of every lowering in every runtime, and the reasons why some do not run."""
    if not report.portability:
        return
    yield Text(sentence(answer.runs_words(report.portability)))
    runtimes = next(iter(report.portability.values()))
    rows: list[list[str | Cell]] = [
        [runtime, *(_runs(*verdicts[runtime]) for verdicts in report.portability.values())] for runtime in runtimes
    ]
    rows.sort(key=lambda row: sum(isinstance(cell, Cell) and cell.kind == "bad" for cell in row))
    title, order = "Every float32 lowering in every runtime", "the runtime that refuses the fewest first"
    yield Table(title, ("runtime", *report.portability), rows, order=order, folded=True)
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for lowering, verdicts in report.portability.items():
        for runtime, (verdict, why) in verdicts.items():
            if verdict in REFUSING:
                reasons.setdefault((runtime, verdict, why), []).append(lowering)
    for (runtime, verdict, why), lowerings in reasons.items():
        yield Text(sentence(f"{', '.join(lowerings)} in {runtime}: {verdict}. {why}"), "note")


def _runs(verdict: str, why: str) -> Cell:
    return Cell(verdict, "bad" if verdict in REFUSING else "good", why)


def collect(run: Path, beside: Sequence[Path] = ()) -> Report:
    """Read everything in the run directory, and the summaries, trainings and thetas of the runs ``beside`` it.

    Raises:
        UserError: if there is no run, or one of its files cannot be read.
    """
    runs = {path: network_directories(path) for path in (run, *beside)}
    directories, content = runs[run], held(run)
    report = Report(run.name, environment=directories[0].listed(PROGRAM).environment)
    report.card, report.answer = answer.card(content), answer.figures(content)
    report.cards = {path.name: answer.by_word(answer.card(held(path))) for path in runs} if beside else {}
    add_networks(report, directories)
    add_training(report, list(runs))
    points = {path: read_points(report, path, those) for path, those in runs.items()}
    for path, those in runs.items():
        for directory in those:
            if directory.name in points[path]:
                add_learned(report, directory, points[path][directory.name], f"{path.name}: " if beside else "")
    add_portability(report, directories, content.portability)
    add_parity(report, run, artifacts_of(directories), content.current)
    add_differing(report, directories[0], points[run].get(directories[0].name), content.current)
    add_benchmarks(report, content)
    report.calls = list(calls_of(directories[:1]))
    report.call = call_to_show(content, report.calls)
    return report


def call_to_show(content: Held, calls: Sequence[HowToCall]) -> HowToCall | None:
    """Return how the file to deploy is called; where none is chosen yet, how the first ONNX file is."""
    deployed = answer.Answer(content).deployed
    if deployed is None:
        return next((call for call in calls if call.file.endswith(".onnx")), None)
    row = deployed.quick.row
    directory = next(candidate for candidate in content.directories if candidate.name == row.network)
    return call_of(directory, directory.artifacts[row.artifact])


def render(template: str, page: Page) -> bytes:
    """Render a template with the page's content."""
    loader = jinja2.PackageLoader("stn_export", "resources")
    html = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=loader, autoescape=html, finalize=in_html if html else in_markdown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"card": answer.markdown, "raw": markupsafe.Markup}
    return environment.get_template(template).render(page=page, library=library, light=PRINTED, dark=DARK).encode()


def write_report(report: Report, run: Path) -> None:
    """Write the figures and the three report files."""
    lead = " ".join(f"The {row.label}: {row.note}." for row in report.networks if row.note)
    page = Page(report.title, sections(report), report.card, report.warnings, lead, report.call)
    own_folder(run / "figures")
    for section in page.sections:
        for picture in section.pictures:
            write_atomically(run / "figures" / f"{picture.name}.png", picture.png)
    write_json(run / "report.json", REPORT_SCHEMA, report.as_dict())
    for name in ("report.md", "report.html"):
        write_atomically(run / name, render(f"{name}.j2", page))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of a run, or with ``--history`` that of stored results."""
    options = cli.parse("report", arguments)
    if options.history:
        path = options.history / "history.html"
        write_atomically(path, render("report.html.j2", history(options.history)))
        cli.say(f"wrote {path}")
        return
    run = options.run or DEFAULT_RUN
    cli.say(cli.forecast("report", cli.Paces.read().of("report")))
    with alone(run, options.wait):
        with cli.measured("report", 1, 1):
            report = collect(run, options.beside)
            write_report(report, run)
        for line in report.warnings:
            cli.say(line, "yellow")
        cli.say(f"wrote {run / 'report.html'} and {run / 'report.md'}")
        answer.close(run)


if __name__ == "__main__":
    sys.exit(cli.run(main))
