"""Write `report.html` (self-contained), `report.md`, `report.json` and `figures/`: `python -m stn_export.report`.

The report only states what the run directory holds. A result measured on other bytes than today's artifacts is
called stale, one that is not there is called missing.
"""

import base64
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jinja2

from stn_export import cli, figures
from stn_export.artifacts import (
    BENCH_FILE,
    REPORT_SCHEMA,
    VERIFY_FILE,
    model_directories,
    write_atomically,
    write_json,
)
from stn_export.config import ARTIFACTS, DEFAULT_DATASET
from stn_export.errors import UserError
from stn_export.report_content import Report
from stn_export.report_parity import add_differing, add_parity, add_portability
from stn_export.report_training import add_learned, add_training, find_transformer


def collect(run: Path, data: Path | None, beside: Sequence[Path] = ()) -> Report:
    """Read everything that the run directory holds, and of the runs ``beside`` it what was trained and learned.

    Raises:
        UserError: where there is no run, or a file of it cannot be read.
    """
    directories = model_directories(run)
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
    add_benchmarks(report, run / BENCH_FILE, current)
    return report


def add_benchmarks(report: Report, path: Path, current: set[str]) -> None:
    """The charts and the overhead table of ``bench.json``."""
    if not path.exists():
        report.warnings.append("Nothing has been benchmarked yet: run 'make bench'.")
        return
    content = read_bench(path)
    rows = [row["extra_info"] | {"median": row["stats"]["median"]} for row in content["benchmarks"]]
    report.environment = content["machine_info"]["stn_export"]
    if not {row["sha256"] for row in rows} <= current:
        report.warnings.append("The timings are stale: they were taken of other artifacts. Run 'make bench'.")
    report.overhead = [row for row in rows if row.get("baseline", "").startswith("cnn")]
    timings = [row for row in rows if "ratio" not in row]
    for device in sorted({row["device"] for row in timings}):
        here = [row for row in timings if row["device"] == device]
        report.figures[f"latency-{device}"] = figures.latency_bars(latencies(here), device)
        report.figures[f"throughput-{device}"] = figures.throughput_curves(throughputs(here), device)
    if at_one := [row for row in report.overhead if row["batch"] == 1]:
        best = min(at_one, key=lambda row: row["seconds"])
        report.summary.append(
            f"Fastest for one image: {best['runner']} with {best['artifact']}, {best['seconds'] * 1e3:.3f} ms; there "
            f"the transformer costs {best['ratio']:.2f} times the plain CNN "
            f"(95 % interval {best['ratio_low']:.2f} to {best['ratio_high']:.2f})."
        )


def read_bench(path: Path) -> dict:
    """A pytest-benchmark file that our suites wrote.

    Raises:
        UserError: where it is anything else.
    """
    try:
        content = json.loads(path.read_text())
        content["machine_info"]["stn_export"], [row["extra_info"]["sha256"] for row in content["benchmarks"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a benchmark file of stn_export", "run 'make bench' again") from error
    return content


def latencies(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Milliseconds at batch 1, by backend and model; the plain CNN stands beside every lowering of its runner."""
    single = [row for row in rows if row["batch"] == 1]
    plain = {_kind(row): row["median"] * 1e3 for row in single if row["model"] == "cnn"}
    return {
        f"{row['runner']}\n{row['artifact']}": {"stn": row["median"] * 1e3}
        | ({"cnn": plain[_kind(row)]} if _kind(row) in plain else {})
        for row in single
        if row["model"] == "stn"
    }


def _kind(row: dict) -> tuple[str, ...]:
    """What the transformer and the plain CNN share where they may be set against each other."""
    return row["runner"], row["precision"], row["input"]


def throughputs(rows: list[dict]) -> dict[tuple[str, str], dict[int, float]]:
    """Images per second by (backend, model) and batch, of each runner's fastest artifact of either model."""
    rates: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        rates[row["runner"], row["model"]][row["artifact"]][row["batch"]] = row["images_per_second"]
    fastest = {}
    for (runner, model), artifacts in rates.items():
        name = max(artifacts, key=lambda artifact: max(artifacts[artifact].values()))
        fastest[f"{runner} {name}", model] = artifacts[name]
    return fastest


def render(report: Report, template: str, pictures: dict[str, str]) -> str:
    """Fill a template; ``pictures`` are the sources that its <img> elements show."""
    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(loader=loader, autoescape=template.startswith("report.html"), trim_blocks=True)
    return environment.get_template(template).render(report=report, pictures=pictures)


def write_report(report: Report, run: Path) -> None:
    """Write the figures and both reports."""
    pictures = {name: figures.to_png(figure) for name, figure in report.figures.items()}
    for name, content in pictures.items():
        write_atomically(run / "figures" / f"{name}.png", content)
    linked = {name: f"figures/{name}.png" for name in pictures}
    embedded = {name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()}
    write_json(run / "report.json", REPORT_SCHEMA, report.as_dict())
    write_atomically(run / "report.md", render(report, "report.md.j2", linked).encode())
    write_atomically(run / "report.html", render(report, "report.html.j2", embedded).encode())


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
