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
from stn_export.artifacts.manifest import REPORT_SCHEMA, VERIFY_FILE, network_directories
from stn_export.config import ARTIFACTS, DEFAULT_DATASET
from stn_export.report import figures
from stn_export.report.bench import FILTERS, add_benchmarks
from stn_export.report.content import Report
from stn_export.report.parity import add_differing, add_parity, add_portability
from stn_export.report.training import add_learned, add_training, find_transformer


def collect(run: Path, data: Path | None, beside: Sequence[Path] = ()) -> Report:
    """Read everything that the run directory holds, and of the runs ``beside`` it what was trained and learned.

    Raises:
        UserError: where there is no run, or a file of it cannot be read.
    """
    directories = network_directories(run)
    report = Report(run.name, environment=directories[0].checkpoint().environment)
    runs = [run, *beside]
    add_training(report, runs)
    transformers = [find_transformer(path, data) for path in runs]
    for index, trained in enumerate(transformers):
        if trained:
            add_learned(report, trained, index)
    add_portability(report, directories)
    current = {artifact.sha256 for directory in directories for artifact in directory.artifacts.values()}
    add_parity(report, run / VERIFY_FILE, current)
    if transformers[0]:
        add_differing(report, transformers[0].transformer, transformers[0].dataset, current)
    add_benchmarks(report, run, directories, current)
    return report


def render(report: Report, template: str, pictures: dict[str, str]) -> str:
    """Fill a template; ``pictures`` are what it shows for each figure, as mark-up or as an address."""
    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(loader=loader, autoescape=template.startswith("report.html"), trim_blocks=True)
    environment.filters |= FILTERS
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
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/{DEFAULT_DATASET}")
    parser.add_argument("--beside", type=Path, nargs="+", default=(), help="runs whose trainings are shown beside it")
    parser.add_argument("--data", type=cli.path_or_none, help="directory that holds CIFAR-10")
    options = parser.parse_args(arguments)
    run = options.run or ARTIFACTS / DEFAULT_DATASET
    report = collect(run, options.data, options.beside)
    write_report(report, run)
    for line in report.summary:
        cli.say(line)
    for line in report.warnings:
        cli.say(f"[yellow]{line}[/]")
    cli.say(f"wrote {run / 'report.html'} and {run / 'report.md'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
