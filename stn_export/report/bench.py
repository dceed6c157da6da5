"""The part of the report that says what everything costs: which rows of ``bench.json`` stand in which table and chart.

Rows are the ``extra_info`` of pytest-benchmark's file; ``regime`` says what a row timed, and of contests ``contest``
says against what.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from stn_export.artifacts.manifest import BENCH_FILE, NetworkDirectory
from stn_export.errors import UserError
from stn_export.export.matrix import NONE
from stn_export.graphs.deployment import audit
from stn_export.graphs.graph import read_model
from stn_export.report import figures_bench
from stn_export.report.advice import advise, program
from stn_export.report.content import Report
from stn_export.report.figures_bench import Bar, Curves, Interval, short_name

BASELINES = ("eager-autograd", "onnxruntime-default")  # runners: what people get without this project
STEPS = ("device", "offline")  # regimes of a bound step
SINGLE = (*STEPS, "request", "start-up")  # what the table of one image shows
AGAINST = {"eager": "eager", "default": "default export", "lowering": "exporter's lowering"}  # by contest

Rows = list[dict]


def add_benchmarks(report: Report, run: Path, directories: list[NetworkDirectory], current: set[str]) -> None:
    """The charts, tables and advice that ``bench.json`` gives; needs the parity rows in place."""
    path = run / BENCH_FILE
    if not path.exists():
        report.warnings.append("Nothing has been benchmarked yet: run 'make bench'.")
        return
    content = read_bench(path)
    rows: Rows = [row["extra_info"] for row in content["benchmarks"]]
    report.environment = content["machine_info"]["stn_export"]
    if not all("regime" in row for row in rows):
        report.warnings.append("The timings are of an older format and not shown: run 'make bench' again.")
        return
    if not {row["sha256"] for row in rows if not is_baseline(row)} <= current:
        report.warnings.append("The timings are stale: they were taken of other artifacts. Run 'make bench'.")
    report.bench = tables(rows, placements(directories))
    proved = {
        program(check): check["accuracy"] for check in report.parity if check["passed"] and check["sha256"] in current
    }
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
    """Where ONNX Runtime's CUDA provider puts each ONNX file's compute nodes, by the file's sha256."""
    found = {}
    for directory in directories:
        for artifact, path in directory.expected():
            if artifact.format == "onnx":
                placed = audit(read_model(path).model, "cuda")
                compute = sum(node.compute for node in placed.nodes)
                found[artifact.sha256] = {
                    "cuda": compute - len(placed.fallbacks),
                    "cpu": len(placed.fallbacks),
                    "graph": placed.capturable,
                    "reason": placed.capture_reason,
                    "predicted": placed.predicted,
                }
    return found


def tables(rows: Rows, placed: Mapping[str, dict]) -> dict[str, dict]:
    """The report's tables: ``costs`` (STN against CNN), ``against`` (other baselines) and ``single`` (one image).

    Each has its ``columns``, and ``lines`` that hold what names them and ``cells``: a row by column.
    """
    costs = pivot((row for row in rows if row.get("contest") == "overhead"), _batch)
    for line in costs["lines"]:
        line["placement"] = placed.get(line["sha256"])
    return {
        "costs": costs,
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
    """One line for each program on each device, transformers first, its rows beside each other as ``cells``."""
    ordered = sorted(rows, key=lambda row: (row.get("contest", ""), row["batch"]))
    lines: dict[tuple, dict] = {}
    for row in ordered:
        names = {name: row[name] for name in ("device", "model", "artifact", "runner", "sha256")}
        lines.setdefault((row["device"], *program(row)), names | {"cells": {}})["cells"][column(row)] = row
    return {
        "columns": list(dict.fromkeys(map(column, ordered))),
        "lines": sorted(lines.values(), key=lambda line: (line["device"], line["model"] != "stn")),
    }


def add_charts(report: Report, rows: Rows, device: str, proved: Mapping[tuple, float]) -> None:
    """A device's charts, each where there is something to draw."""
    timed, points = steps(rows), pareto_points(rows, proved, device)
    drawn = {
        "latency": (timed, lambda: figures_bench.curves(latency(timed), device, "Latency", "ms a batch (median)")),
        "throughput": (
            timed,
            lambda: figures_bench.curves(throughput(timed), device, "Throughput", "images per second"),
        ),
        "overhead": (ratios := overheads(rows, device), lambda: figures_bench.overhead_bars(ratios, device)),
        "pareto": (points, lambda: figures_bench.pareto(points, front(points), device)),
        "breakdown": (bars := breakdowns(rows, device), lambda: figures_bench.breakdown_bars(bars, device)),
    }
    for name, (content, draw) in drawn.items():
        if content:
            report.figures[f"{name}-{device}"] = draw()


def steps(rows: Rows) -> Rows:
    """One row for each program and batch: hot inputs before cold ones, device time before offline."""
    timed = [row for row in rows if row["regime"] in STEPS]
    timed.sort(key=lambda row: (row["inputs"].startswith("cold"), STEPS.index(row["regime"])), reverse=True)
    chosen = {(*program(row), row["batch"]): row for row in timed}
    return sorted(chosen.values(), key=lambda row: row["batch"])


def fastest(rows: Rows, seconds: Callable[[Rows], float]) -> dict[tuple[str, str], Rows]:
    """By runner and model: of the artifacts timed at the most batches, the rows of the one with fewest ``seconds``."""
    artifacts: dict[tuple[str, str], dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        artifacts[row["runner"], row["model"]][row["artifact"]].append(row)
    return {
        key: min(each.values(), key=lambda rows: (-len({row["batch"] for row in rows}), seconds(rows)))
        for key, each in artifacts.items()
    }


def latency(timed: Rows) -> Curves:
    """Milliseconds a batch, of each runner's artifact that is fastest at its smallest batch."""
    best = fastest(timed, lambda rows: min((row["batch"], row["p50"]) for row in rows)[1])
    return _curves(best, lambda row: tuple(1e3 * row[name] for name in ("p50", "p50_low", "p50_high")))


def throughput(timed: Rows) -> Curves:
    """Images a second, of each runner's artifact that reaches the most."""
    best = fastest(timed, lambda rows: min(row["p50"] / row["batch"] for row in rows))
    return _curves(best, lambda row: tuple(row["batch"] / row[name] for name in ("p50", "p50_high", "p50_low")))


def _curves(best: Mapping[tuple[str, str], Rows], interval: Callable[[dict], Interval]) -> Curves:
    return {
        (runner, rows[0]["artifact"], model): {row["batch"]: interval(row) for row in rows}
        for (runner, model), rows in best.items()
    }


def overheads(rows: Rows, device: str) -> dict[str, dict[int, Interval]]:
    """STN over CNN by backend and batch, of each runner's artifact that is fastest at the smallest batch."""
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


def pareto_points(rows: Rows, proved: Mapping[tuple, float], device: str) -> Rows:
    """Latency of one image and accuracy of every program that is timed and proved equal today."""
    return [
        {
            "name": f"{'STN' if row['model'] == 'stn' else 'CNN'} {short_name(row['runner'], row['artifact'], device)}",
            "model": row["model"],
            "milliseconds": 1e3 * row["p50"],
            "accuracy": proved[program(row)],
        }
        for row in steps(rows)
        if row["batch"] == 1 and program(row) in proved
    ]


def front(points: Rows) -> Rows:
    """The points that no other beats or equals in both latency and accuracy, the fastest first."""
    best: Rows = []
    for point in sorted(points, key=lambda point: (point["milliseconds"], -point["accuracy"])):
        if not best or point["accuracy"] > best[-1]["accuracy"]:
            best.append(point)
    return best


def breakdowns(rows: Rows, device: str) -> list[Bar]:
    """Milliseconds by part and batch: each runner's fastest transformer, and the plain CNN of its kind below it."""
    found = [row for row in rows if row["regime"] == "breakdown"]
    shown = _outer(row["batch"] for row in found)
    best = fastest(found, lambda rows: min((row["batch"], sum(row["breakdown"].values())) for row in rows)[1])
    bars: list[Bar] = []
    for (runner, model), lines in best.items():
        if model != "stn":
            continue
        parts = _parts(lines, shown)
        whole = {batch: sum(each.values()) for batch, each in parts.items()}
        plain = [row for row in found if row["model"] == "cnn" and kind(row) == kind(lines[0])]
        bars.append((f"STN {short_name(runner, lines[0]['artifact'], device)}", parts, whole))
        bars += [(f"plain CNN in {short_name(runner, '', device)}".rstrip(), _parts(plain, shown), whole)] * bool(plain)
    return bars


def _parts(rows: Rows, shown: set[int]) -> dict[int, dict[str, float]]:
    return {
        row["batch"]: {part: 1e3 * seconds for part, seconds in row["breakdown"].items()}
        for row in rows
        if row["batch"] in shown
    }


def kind(row: Mapping) -> tuple[str, str, str]:
    """What a transformer and the plain CNN share where they may be set against each other."""
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


FILTERS = {"ms": milliseconds, "size": size}
