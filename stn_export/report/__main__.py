"""Write `report.html` (self-contained), `report.md`, `report.json` and `figures/`: `python -m stn_export.report`.

The report only states what the run directory holds. A result measured on other bytes than today's artifacts is
called stale, one that is not there is called missing. With ``--history`` it draws kept results over commits instead.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import markupsafe

from stn_export import cli
from stn_export.answer import card as answer
from stn_export.answer.card import in_html, in_markdown
from stn_export.answer.held import held
from stn_export.artifacts.alone import alone
from stn_export.artifacts.files import own_folder, write_atomically, write_json
from stn_export.artifacts.manifest import PROGRAM, REPORT_SCHEMA, network_directories
from stn_export.config import DEFAULT_RUN
from stn_export.graphs.calls import calls_of
from stn_export.report.bench import add_benchmarks
from stn_export.report.content import Report
from stn_export.report.drawing import DARK, PRINTED, library
from stn_export.report.history import history
from stn_export.report.learned import add_learned, read_points
from stn_export.report.networks import add_networks
from stn_export.report.page import Page
from stn_export.report.parity import add_differing, add_parity, add_portability, artifacts_of
from stn_export.report.sections import sections
from stn_export.report.training import add_training


def collect(run: Path, beside: Sequence[Path] = ()) -> Report:
    """Read everything that the run directory holds, and the cards, trainings and thetas of the runs ``beside`` it.

    Raises:
        UserError: where there is no run, or a file of it cannot be read.
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
    return report


def render(template: str, page: Page) -> bytes:
    """Fill a template."""
    loader = jinja2.PackageLoader("stn_export", "resources")
    html = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=loader, autoescape=html, finalize=in_html if html else in_markdown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"card": answer.markdown, "raw": markupsafe.Markup}
    return environment.get_template(template).render(page=page, library=library, light=PRINTED, dark=DARK).encode()


def write_report(report: Report, run: Path) -> None:
    """Write the figures and all three reports."""
    lead = " ".join(f"The {one['label']}: {one['note']}." for one in report.networks if one["note"])
    page = Page(report.title, sections(report), report.card, report.warnings, lead)
    own_folder(run / "figures")
    for section in page.sections:
        for picture in section.pictures:
            write_atomically(run / "figures" / f"{picture.name}.png", picture.png)
    write_json(run / "report.json", REPORT_SCHEMA, report.as_dict())
    for name in ("report.md", "report.html"):
        write_atomically(run / name, render(f"{name}.j2", page))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of a run."""
    options = cli.parse("report", arguments)
    if options.history:
        path = options.history / "history.html"
        write_atomically(path, render("report.html.j2", history(options.history)))
        cli.say(f"wrote {path}")
        return
    run = options.run or DEFAULT_RUN
    with alone(run, options.wait):
        report = collect(run, options.beside)
        write_report(report, run)
        for line in report.warnings:
            cli.say(line, "yellow")
        cli.say(f"wrote {run / 'report.html'} and {run / 'report.md'}")
        answer.close(run)


if __name__ == "__main__":
    sys.exit(cli.run(main))
