"""The part of the report that says what everything costs: which rows of ``bench.json`` stand in which table and chart.

Rows are the ``extra_info`` of pytest-benchmark's file; ``regime`` says what a row timed, and of contests ``contest``
says against what.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from stn_export.artifacts.manifest import BENCH_FILE, PLAIN, SUBJECT, TWIN_NOTE, NetworkDirectory
from stn_export.comparison.fastest import STEPS, Proved, Rows, program, proved_by, steps
from stn_export.errors import UserError
from stn_export.report import figures_bench
from stn_export.report.advice import advise
from stn_export.report.content import Report
from stn_export.report.figures import looks
from stn_export.report.figures_bench import Bar, Curves, Interval, short_name

NONE = "–"
BASELINES = ("eager-autograd", "onnxruntime-default")  # runners: what people get without this project
SINGLE = (*STEPS, "request", "start-up")  # what the table of one example shows
AGAINST = {"eager": "eager", "default": "default export", "lowering": "exporter's lowering"}  # by contest


def add_benchmarks(report: Report, run: Path, directories: list[NetworkDirectory], current: set[str]) -> None:
    """The charts, tables and advice that ``bench.json`` gives; needs the parity rows in place."""
    path = run / BENCH_FILE
    if not path.exists():
        report.warnings.append("Nothing has been benchmarked yet: run 'make bench'.")
        return
    content = read_bench(path)
    rows: Rows = [row["extra_info"] for row in content["benchmarks"]]
    report.environment = content["machine_info"]["stn_export"]
    if not all({"regime", "role"} <= row.keys() for row in rows):
        report.warnings.append("The timings are of an older format and not shown: run 'make bench' again.")
        return
    if not {row["sha256"] for row in rows if not is_baseline(row)} <= current:
        report.warnings.append("The timings are stale: they were taken of other artifacts. Run 'make bench'.")
    report.bench = tables(rows, placements(directories))
    untrained = {each["name"] for each in report.networks if each["note"] == TWIN_NOTE}
    proved = proved_by(report.parity, current)
    proved |= {name: None for name in proved if name[0] in untrained}
    for device in sorted({row["device"] for row in rows}):
        here = [row for row in rows if row["device"] == device]
        add_charts(report, here, device, proved)
        ours = [row for row in here if not is_baseline(row)]
        if advice := advise(ours, steps(ours), proved, report.portability, report.environment):
            report.summary.append(advice[0])
            report.advice.append(advice)


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


def is_baseline(row: Mapping) -> bool:
    """Whether a row is of what people get without this project; its file is no artifact of the run."""
    return row["runner"].startswith(BASELINES)


def placements(directories: Iterable[NetworkDirectory]) -> dict[str, dict]:
    """What ``export`` found of each ONNX file in ONNX Runtime's CUDA provider, by the file's sha256."""
    listed = (artifact for directory in directories for artifact in directory.artifacts.values())
    return {artifact.sha256: artifact.details["cuda"] for artifact in listed if "cuda" in artifact.details}


def tables(rows: Rows, placed: Mapping[str, dict]) -> dict[str, dict]:
    """The tables: ``costs`` (against the plain network), ``against`` (other baselines) and ``single`` (one example).

    Each has its ``columns``, and ``lines`` that hold what names them and ``cells``: a row by column.
    """
    costs = pivot((row for row in rows if row.get("contest") == "overhead"), _batch)
    for line in costs["lines"]:
        line["placement"] = placed.get(line["sha256"])
    return {
        "costs": costs | dict(zip(("ours", "other"), contestants(rows), strict=True)),
        "against": pivot((row for row in rows if row.get("contest") in AGAINST), _against),
        "single": pivot((row for row in rows if row["batch"] == 1 and row["regime"] in SINGLE), _timing),
    }


def _batch(row: Mapping) -> str:
    return f"batch {row['batch']:,}"


def _against(row: Mapping) -> str:
    return f"{AGAINST[row['contest']]}, {_batch(row)}"


def _timing(row: Mapping) -> str:
    """The regime of a row; whether inputs come from memory counts for a bound step."""
    if row["regime"] not in STEPS:
        return row["regime"]
    return "cold" if row["inputs"].startswith("cold") else "device"


def pivot(rows: Iterable[dict], column: Callable[[dict], str]) -> dict:
    """One line for each program on each device, the subject's first, its rows beside each other as ``cells``."""
    ordered = sorted(rows, key=lambda row: (row.get("contest", ""), row["batch"]))
    lines: dict[tuple, dict] = {}
    for row in ordered:
        names = {name: row[name] for name in ("device", "network", "role", "artifact", "runner", "sha256")}
        lines.setdefault((row["device"], *program(row)), names | {"cells": {}})["cells"][column(row)] = row
    return {
        "columns": list(dict.fromkeys(map(column, ordered))),
        "lines": sorted(lines.values(), key=lambda line: (line["device"], line["role"] != SUBJECT)),
    }


def add_charts(report: Report, rows: Rows, device: str, proved: Proved) -> None:
    """A device's charts, each where there is something to draw."""
    timed, points = steps(rows), pareto_points(rows, proved, device)
    seen = looks((row["network"], row["label"], row["role"]) for row in rows)
    drawn = {
        "latency": (
            timed,
            lambda: figures_bench.curves(latency(timed), seen, device, "Latency", "ms a batch (median)"),
        ),
        "throughput": (
            timed,
            lambda: figures_bench.curves(throughput(timed), seen, device, "Throughput", "examples per second"),
        ),
        "overhead": (
            ratios := overheads(rows, device),
            lambda: figures_bench.overhead_bars(ratios, contestants(rows), device),
        ),
        "pareto": (points, lambda: figures_bench.pareto(points, front(points), seen, device)),
        "breakdown": (bars := breakdowns(rows, device), lambda: figures_bench.breakdown_bars(bars, device)),
    }
    for name, (content, draw) in drawn.items():
        if content:
            report.figures[f"{name}-{device}"] = draw()


def contestants(rows: Rows) -> tuple[str, str]:
    """The labels of the subject and of the plain network that it is set against, where it was."""
    labels = ((row["label"], row["baseline_label"]) for row in rows if row.get("contest") == "overhead")
    return next(labels, ("", ""))


def fastest(rows: Rows, seconds: Callable[[Rows], float]) -> dict[tuple[str, str], Rows]:
    """By runner and network: the rows of the artifact with fewest ``seconds`` of those timed at the most batches."""
    artifacts: dict[tuple[str, str], dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        artifacts[row["runner"], row["network"]][row["artifact"]].append(row)
    return {
        key: min(each.values(), key=lambda rows: (-len({row["batch"] for row in rows}), seconds(rows)))
        for key, each in artifacts.items()
    }


def latency(timed: Rows) -> Curves:
    """Milliseconds a batch, of each runner's artifact that is fastest at its smallest batch."""
    best = fastest(timed, lambda rows: min((row["batch"], row["p50"]) for row in rows)[1])
    return _curves(best, lambda row: tuple(1e3 * row[name] for name in ("p50", "p50_low", "p50_high")))


def throughput(timed: Rows) -> Curves:
    """Examples a second, of each runner's artifact that reaches the most."""
    best = fastest(timed, lambda rows: min(row["p50"] / row["batch"] for row in rows))
    return _curves(best, lambda row: tuple(row["batch"] / row[name] for name in ("p50", "p50_high", "p50_low")))


def _curves(best: Mapping[tuple[str, str], Rows], interval: Callable[[dict], Interval]) -> Curves:
    return {
        (runner, rows[0]["artifact"], network): {row["batch"]: interval(row) for row in rows}
        for (runner, network), rows in best.items()
    }


def overheads(rows: Rows, device: str) -> dict[str, dict[int, Interval]]:
    """The subject over the plain network by backend and batch, of each runner's fastest at the smallest batch."""
    found = [row for row in rows if row.get("contest") == "overhead"]
    shown = _outer(row["batch"] for row in found)
    best = fastest(found, lambda rows: min((row["batch"], row["seconds"]) for row in rows)[1])
    return {
        short_name(runner, lines[0]["artifact"], device): {
            row["batch"]: (row["ratio"], row["ratio_low"], row["ratio_high"]) for row in lines if row["batch"] in shown
        }
        for (runner, _), lines in best.items()
    }


def _outer(batches: Iterable[int]) -> set[int]:
    """The smallest and the largest."""
    ordered = sorted(set(batches))
    return {*ordered[:1], *ordered[-1:]}


def pareto_points(rows: Rows, proved: Proved, device: str) -> Rows:
    """Latency of one example and accuracy of every program that is timed and proved equal today, where it has one."""
    return [
        {
            "name": f"{row['network']} {short_name(row['runner'], row['artifact'], device)}",
            "network": row["network"],
            "milliseconds": 1e3 * row["p50"],
            "accuracy": proved[program(row)],
        }
        for row in steps(rows)
        if row["batch"] == 1 and proved.get(program(row)) is not None
    ]


def front(points: Rows) -> Rows:
    """The points that no other beats or equals in both latency and accuracy, the fastest first."""
    best: Rows = []
    for point in sorted(points, key=lambda point: (point["milliseconds"], -point["accuracy"])):
        if not best or point["accuracy"] > best[-1]["accuracy"]:
            best.append(point)
    return best


def breakdowns(rows: Rows, device: str) -> list[Bar]:
    """Milliseconds by part and batch: each runner's fastest of the subject, above the plain network of its kind."""
    found = [row for row in rows if row["regime"] == "breakdown"]
    shown = _outer(row["batch"] for row in found)
    best = fastest(found, lambda rows: min((row["batch"], sum(row["breakdown"].values())) for row in rows)[1])
    bars: list[Bar] = []
    for (runner, _), lines in best.items():
        if lines[0]["role"] != SUBJECT:
            continue
        parts = _parts(lines, shown)
        whole = {batch: sum(each.values()) for batch, each in parts.items()}
        plain = [row for row in found if row["role"] == PLAIN and kind(row) == kind(lines[0])]
        bars.append((f"{lines[0]['network']} {short_name(runner, lines[0]['artifact'], device)}", parts, whole))
        if plain:
            name = f"{plain[0]['label']} in {short_name(runner, '', device)}"
            bars.append((name.rstrip(), _parts(plain, shown), whole))
    return bars


def _parts(rows: Rows, shown: set[int]) -> dict[int, dict[str, float]]:
    return {
        row["batch"]: {part: 1e3 * seconds for part, seconds in row["breakdown"].items()}
        for row in rows
        if row["batch"] in shown
    }


def kind(row: Mapping) -> tuple[str, str, str]:
    """What two networks share where they may be set against each other."""
    return row["runner"], row["precision"], row["input"]


def milliseconds(seconds: float | None) -> str:
    """Three figures of a time in ms, or a dash."""
    if not isinstance(seconds, float | int):
        return NONE
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def size(count: int | None, unit: int) -> str:
    """Bytes in units of ``unit`` bytes, or a dash."""
    return NONE if not isinstance(count, float | int) else f"{count / unit:,.{1 if count < 100 * unit else 0}f}"


def number(value: float | None, form: str) -> str:
    """A number in printf's format, or a dash."""
    return form % value if isinstance(value, float | int) else NONE


def percent(share: float | None) -> str:
    """A share in per cent, or a dash."""
    return f"{100 * share:.2f} %" if isinstance(share, float | int) else NONE


FILTERS = {"ms": milliseconds, "size": size, "num": number, "percent": percent}
