"""Write `report.html` (self-contained), `report.md`, `report.json` and `figures/`: `python -m stn_export.report`.

The report only states what the run directory holds. A result measured on other bytes than today's artifacts is
called stale, one that is not there is called missing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2
import markupsafe

from stn_export import cli
from stn_export.artifacts.files import write_atomically, write_json
from stn_export.artifacts.manifest import PROGRAM, REPORT_SCHEMA, VERIFY_FILE, network_directories
from stn_export.config import DEFAULT_RUN
from stn_export.report import figures
from stn_export.report.bench import FILTERS, add_benchmarks
from stn_export.report.content import Report
from stn_export.report.learned import add_learned, read_points
from stn_export.report.networks import add_networks
from stn_export.report.parity import add_differing, add_parity, add_portability, artifacts_of, site_markdown
from stn_export.report.training import add_training


def collect(run: Path, beside: Sequence[Path] = ()) -> Report:
    """Read everything that the run directory holds, and of the runs ``beside`` it what was trained and learned.

    Raises:
        UserError: where there is no run, or a file of it cannot be read.
    """
    runs = {path: network_directories(path) for path in (run, *beside)}
    directories = runs[run]
    report = Report(run.name, environment=directories[0].listed(PROGRAM).environment)
    add_networks(report, directories)
    add_training(report, list(runs))
    points = {path: read_points(report, path, those) for path, those in runs.items()}
    for path, those in runs.items():
        for directory in those:
            if directory.name in points[path]:
                add_learned(report, directory, points[path][directory.name], f"{path.name}: " if beside else "")
    add_portability(report, directories)
    artifacts = artifacts_of(directories)
    current = {artifact.sha256 for artifact in artifacts.values()}
    add_parity(report, run / VERIFY_FILE, artifacts)
    add_differing(report, directories[0], points[run].get(directories[0].name), current)
    add_benchmarks(report, run, directories, current)
    return report


def render(report: Report, template: str, pictures: dict[str, str]) -> str:
    """Fill a template; ``pictures`` are what it shows for each figure, as mark-up or as an address."""
    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(loader=loader, autoescape=template.startswith("report.html"), trim_blocks=True)
    environment.filters |= FILTERS | {"site_markdown": site_markdown}
    return environment.get_template(template).render(report=report, pictures=pictures)


def write_report(report: Report, run: Path) -> None:
    """Write the figures and both reports."""
    for name, figure in report.figures.items():
        write_atomically(run / "figures" / f"{name}.png", figures.to_png(figure))
    linked = {name: f"figures/{name}.png" for name in report.figures}
    drawn = {name: markupsafe.Markup(figures.to_svg(figure, name)) for name, figure in report.figures.items()}
    write_json(run / "report.json", REPORT_SCHEMA, report.as_dict())
    write_atomically(run / "report.md", render(report, "report.md.j2", linked).encode())
    write_atomically(run / "report.html", render(report, "report.html.j2", drawn).encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of a run."""
    parser = cli.stage("report", "Write a run's report.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {DEFAULT_RUN}")
    parser.add_argument("--beside", type=Path, nargs="+", default=(), help="runs whose trainings are shown beside it")
    options = parser.parse_args(arguments)
    run = options.run or DEFAULT_RUN
    report = collect(run, options.beside)
    write_report(report, run)
    for line in report.summary:
        cli.say(line)
    for line in report.warnings:
        cli.say(f"[yellow]{line}[/]")
    cli.say(f"wrote {run / 'report.html'} and {run / 'report.md'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
