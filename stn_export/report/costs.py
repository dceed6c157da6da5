"""Write the sections on which file to deploy and on costs, from ``bench.json``."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import comb

from stn_export.errors import command
from stn_export.report import charts, charts_costs
from stn_export.report.charts import DEVICES, Bar, Curves, Interval, Point
from stn_export.report.charts_costs import short_name
from stn_export.report.page import NONE, BenchTables, Block, Cell, Line, Picture, Report, SideBySide, Table, Text, cell
from stn_export.results.card import Answer, overhead_text, rate, seconds_of, speedup_text, speedup_words
from stn_export.results.choice import (
    STEPS,
    Marks,
    Program,
    Rows,
    Scored,
    baseline_words,
    headline,
    is_baseline,
    legend,
    more_accurate,
    others,
    program,
    steps,
    told_apart,
)
from stn_export.results.contents import Held
from stn_export.results.text import row_name, sentence, significant, span
from stn_export.run.manifest import PLAIN, SUBJECT, NetworkDirectory
from stn_export.run.records import Timing, known

SINGLE = (*STEPS, "request", "start-up")  # regimes in the table of one example
REGIMES = ("device", "request", "cold", "start-up")  # columns of it, the one that sorts the rows first
EAGER = "eager"
AGAINST = {  # baseline by kind of paired comparison
    EAGER: EAGER,
    "default": "default export",
    "lowering": "exporter's lowering",
    "pytorch": "request",
}


def add_benchmarks(report: Report, content: Held) -> None:
    """Add the charts and tables of ``bench.json`` to the report, or a warning if it is missing or stale."""
    if content.outdated:
        report.warnings.append(f"The timings are of an older format and not shown: run {command('bench')} again.")
        return
    if not content.environment:
        report.warnings.append(f"Nothing has been benchmarked yet: run {command('bench')}.")
        return
    report.environment = dict(content.environment)
    if not all(content.is_current(row) for row in content.rows if not is_baseline(row)):
        report.warnings.append(
            f"The timings are stale: they were taken of other files or examples. Run {command('bench')}."
        )
    report.timings, report.shipped = list(content.rows), Answer(content).by_device
    report.marks = Marks(report.timings)
    report.bench = tables(report.timings, placements(content.directories))
    scored = {name: score for name, score in content.scored.items() if name in set(map(program, content.verified_rows))}
    for device in sorted({row.device for row in content.rows}):
        add_charts(report, [row for row in content.rows if row.device == device], device, scored)


def placements(directories: Iterable[NetworkDirectory]) -> dict[str, dict]:
    """Return how ONNX Runtime's CUDA provider would place each ONNX file, as ``export`` found it, by sha256."""
    listed = (artifact for directory in directories for artifact in directory.artifacts.values())
    return {artifact.sha256: artifact.details["cuda"] for artifact in listed if "cuda" in artifact.details}


def tables(rows: Rows, placed: Mapping[str, dict]) -> BenchTables:
    """Return the tables of timings; ``placed``: see ``placements``."""
    costs = side_by_side((row for row in rows if row.contest == "overhead"), _batch)
    return BenchTables(
        replace(costs, lines=[replace(line, placement=placed.get(line.sha256)) for line in costs.lines]),
        side_by_side((row for row in rows if row.contest in AGAINST), _against),
        side_by_side((row for row in rows if row.batch == 1 and row.regime in SINGLE), _timing),
        *contestants(rows),
    )


def _batch(row: Timing) -> str:
    return f"batch {row.batch:,}"


def _against(row: Timing) -> str:
    way = f", {baseline_words(row)}" if row.contest == "pytorch" else ""
    return f"{AGAINST[known(row.contest)]}{way}, {_batch(row)}"


def _timing(row: Timing) -> str:
    """Return the column of a row: its regime; rows with inputs in place are ``device`` or ``cold``."""
    if row.regime not in STEPS:
        return row.regime
    return "cold" if row.inputs.startswith("cold") else "device"


def side_by_side(rows: Iterable[Timing], column: Callable[[Timing], str]) -> SideBySide:
    """Return one line per program and device, the network under test first, with its rows side by side as ``cells``."""
    ordered = sorted(rows, key=lambda row: (row.contest or "", row.batch))
    lines: dict[tuple, Line] = {}
    for row in ordered:
        line = Line(row.device, row.network, row.role, row.artifact, row.runner, row.sha256)
        lines.setdefault((row.device, *program(row)), line).cells[column(row)] = row
    columns = list(dict.fromkeys(map(column, ordered)))
    ranked = sorted(columns, key=lambda name: REGIMES.index(name) if name in REGIMES else not name.startswith(EAGER))

    def rank(line: Line) -> tuple:
        return line.device, line.role != SUBJECT, [speed(line.cells.get(name)) for name in ranked]

    return SideBySide(columns, sorted(lines.values(), key=rank))


def speed(row: Timing | None) -> float:
    """Return a sort key, the fastest first: a ratio to the baseline's time, or seconds; without one infinite."""
    if row is None:
        return math.inf
    first = row.ratio if row.contest else row.p50
    return next((value for value in (first, row.first_seconds) if value is not None), math.inf)


def add_charts(report: Report, rows: Rows, device: str, scored: Mapping[Program, Scored]) -> None:
    """Add a device's charts, as far as there is anything to draw."""
    timed, points, marks = steps(rows), pareto_points(rows, scored, device), Marks(rows)
    seen = charts.looks((row.network, row.label, row.role) for row in rows)
    ratios, bars = overheads(rows, device, marks), breakdowns(rows, device)
    drawn = {
        "latency": (
            timed,
            lambda: charts_costs.curves(latency(timed, marks), seen, device, "Latency", charts_costs.MS),
        ),
        "throughput": (
            timed,
            lambda: charts_costs.curves(throughput(timed, marks), seen, device, "Throughput", charts_costs.PER_SECOND),
        ),
        "overhead": (ratios, lambda: charts_costs.ratios(ratios, contestants(rows), device)),
        "pareto": (points, lambda: charts_costs.pareto(points, front(points), seen, device)),
        "breakdown": (bars, lambda: charts_costs.breakdown(bars, device)),
    }
    report.figures |= {f"{name}-{device}": draw() for name, (content, draw) in drawn.items() if content}


def contestants(rows: Rows) -> tuple[str, str]:
    """Return the labels of the network under test and of its plain baseline; empty if they were not compared."""
    labels = ((row.label, known(row.baseline_label)) for row in rows if row.contest == "overhead")
    return next(labels, ("", ""))


def fastest(rows: Rows, seconds: Callable[[Rows], float]) -> dict[tuple[str, str], Rows]:
    """Return, by runner and network, the rows of the fastest artifact among those timed at the most batch sizes."""
    artifacts: dict[tuple[str, str], dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        artifacts[row.runner, row.network][row.artifact].append(row)
    return {
        key: min(artifact.values(), key=lambda rows: (-len({row.batch for row in rows}), seconds(rows)))
        for key, artifact in artifacts.items()
    }


def latency(timed: Rows, marks: Marks) -> Curves:
    """Return milliseconds per batch, of each runner's fastest artifact at its smallest batch."""
    best = fastest(timed, lambda rows: min((row.batch, row.median.middle) for row in rows)[1])

    def interval(row: Timing) -> Interval:
        middle, low, high = (1e3 * seconds for seconds in row.median)
        return Interval(middle, low, high, marks.of(row))

    return _curves(best, interval)


def throughput(timed: Rows, marks: Marks) -> Curves:
    """Return examples per second, of each runner's artifact that reaches the highest rate."""
    best = fastest(timed, lambda rows: min(row.median.middle / row.batch for row in rows))

    def interval(row: Timing) -> Interval:
        middle, high, low = (row.batch / seconds for seconds in row.median)
        return Interval(middle, low, high, marks.of(row))

    return _curves(best, interval)


def _curves(best: Mapping[tuple[str, str], Rows], interval: Callable[[Timing], Interval]) -> Curves:
    return {
        (runner, rows[0].artifact, network): {row.batch: interval(row) for row in rows}
        for (runner, network), rows in best.items()
    }


def overheads(rows: Rows, device: str, marks: Marks) -> dict[str, dict[int, Interval]]:
    """Return the overhead over the plain network by backend and batch, of each runner's fastest artifact.

    The fastest is chosen at the smallest batch; only the smallest and the largest batch are returned.
    """
    contests = [row for row in rows if row.contest == "overhead"]
    shown = _outer(row.batch for row in contests)
    best = fastest(contests, lambda rows: min((row.batch, known(row.seconds)) for row in rows)[1])
    return {
        short_name(runner, lines[0].artifact, device): {
            row.batch: Interval(*row.paired, marks.of(row)) for row in lines if row.batch in shown
        }
        for (runner, _), lines in best.items()
    }


def _outer(batches: Iterable[int]) -> set[int]:
    """Return the smallest and the largest batch."""
    ordered = sorted(set(batches))
    return {*ordered[:1], *ordered[-1:]}


def pareto_points(rows: Rows, scored: Mapping[Program, Scored], device: str) -> list[Point]:
    """Return every timed program that is verified and has an accuracy, as timed at batch 1."""
    marks = Marks(rows)
    return [
        Point(f"{row.network} {short_name(row.runner, row.artifact, device)}", row, scored[program(row)], marks.of(row))
        for row in steps(rows)
        if row.batch == 1 and program(row) in scored
    ]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the Pareto front, the fastest first: no other point is measurably better in one and no worse in the other.

    Of points that differ measurably in neither, only the fastest is on the front.
    """
    pairs = max(1, comb(len(points), 2))

    def faster(one: Point, other: Point) -> bool:
        return told_apart(one.row, other.row, pairs)

    def better(one: Point, other: Point) -> bool:
        return more_accurate(one.scored, other.scored, one.row.network == other.row.network, pairs)

    def beats(one: Point, other: Point) -> bool:
        return (faster(one, other) and not better(other, one)) or (better(one, other) and not faster(other, one))

    def alike(one: Point, other: Point) -> bool:
        return not (faster(one, other) or faster(other, one) or better(one, other) or better(other, one))

    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.row.median.middle, -point.scored.accuracy)):
        if not any(beats(other, point) for other in points) and not any(alike(other, point) for other in front):
            front.append(point)
    return front


def breakdowns(rows: Rows, device: str) -> list[Bar]:
    """Return milliseconds by part and batch: each runner's fastest artifact, followed by the plain network's."""
    profiles = [row for row in rows if row.regime == "breakdown"]
    shown = _outer(row.batch for row in profiles)
    best = fastest(profiles, lambda rows: min((row.batch, sum(known(row.breakdown).values())) for row in rows)[1])
    bars: list[Bar] = []
    for (runner, _), lines in best.items():
        if lines[0].role != SUBJECT:
            continue
        parts = _parts(lines, shown)
        whole = {batch: sum(seconds.values()) for batch, seconds in parts.items()}
        plain = [row for row in profiles if row.role == PLAIN and kind(row) == kind(lines[0])]
        bars.append((f"{lines[0].network} {short_name(runner, lines[0].artifact, device)}", parts, whole))
        if plain:
            name = f"{plain[0].label} in {short_name(runner, '', device)}"
            bars.append((name.rstrip(), _parts(plain, shown), whole))
    return bars


def _parts(rows: Rows, shown: set[int]) -> dict[int, dict[str, float]]:
    return {
        row.batch: {part: 1e3 * seconds for part, seconds in known(row.breakdown).items()}
        for row in rows
        if row.batch in shown
    }


def kind(row: Timing) -> tuple[str, str, str]:
    """Return what two comparable networks share: runner, precision and input."""
    return row.runner, row.precision, row.input


# Sections on what to deploy and on costs.


VERDICTS = {"faster": "good", "slower": "bad"}
CHARTS = "each runner's best artifact of those timed at the most batches, with 95 % intervals"


def marks_in(rows: Iterable[Iterable[str | Cell]]) -> str:
    """Explain the marks that occur in a table's cells."""
    marks = legend(*(cell(value).text for row in rows for value in row))
    return marks and sentence(marks)


def deploys(report: Report) -> Iterable[Block]:
    """Yield the table of files to deploy by device, for one example and for many, with the alternatives."""
    rows = [
        [
            DEVICES[device].removeprefix("the "),
            purpose,
            row_name(choice.row),
            *_offer(report, device, purpose, choice.row),
            ", ".join(map(row_name, others(choice))) or "nothing",
        ]
        for device, chosen in report.shipped.items()
        for purpose, choice in (("latency", chosen.quick), ("throughput", chosen.most))
    ]
    if rows:
        columns = (
            "on the",
            "for",
            "deploy",
            "batch",
            "performance",
            "speed-up over",
            "not measurably faster than",
        )
        yield Table(
            "What to deploy",
            columns,
            rows,
            "Among files that are not measurably different the most portable one is deployed. Brackets hold 95 % "
            f"confidence intervals. {marks_in(rows)}",
            heading=False,
            order="the fastest device first",
        )
    if any(name.startswith("pareto") for name in report.figures):
        yield from by_device(report, "pareto")
        yield Text(
            "Named points are on the Pareto front: no other file is measurably faster and as accurate, or measurably "
            "more accurate and as fast. Vertical lines are 95 % intervals of their accuracy.",
            "note",
        )
    yield from by_device(report, "latency", folded=len({row.batch for row in report.timings}) < 2)
    yield from report.pictures("throughput", folded=True)
    if any(name.startswith("latency") for name in report.figures):
        yield Text(f"Curves show {CHARTS}.", "note")


def by_device(report: Report, name: str, folded: bool = False) -> Iterable[Picture]:
    """Yield a figure of each device, that of the device to deploy on first and the others folded."""
    first = f"{name}-{next(iter(report.shipped), '')}"
    pictures = sorted(report.pictures(name), key=lambda picture: picture.name != first)
    for index, picture in enumerate(pictures):
        yield replace(picture, folded=folded or index > 0)


def _offer(report: Report, device: str, purpose: str, row: Timing) -> list[str]:
    rows = [row for row in report.timings if row.device == device]
    shown = headline(rows, row)
    does = (seconds_of if purpose == "latency" else rate)(shown, report.marks.of(shown))
    return [f"{row.batch:,}", does, speedup_words(rows, shown, report.marks).removeprefix("speed-up over ") or NONE]


def costs(report: Report) -> Iterable[Block]:
    """Yield overheads, breakdowns, other baselines, and the table of one example."""
    yield from report.pictures("overhead")
    yield from report.pictures("breakdown", folded=True)
    if (tables := report.bench) is None:
        return
    if tables.costs.lines:
        yield overhead_table(tables, report.marks)
    if tables.against.lines:
        yield baselines_table(tables.against, report.marks)
    if tables.single.lines:
        # folded where there is a table of costs: else it is all that is known about them
        yield replace(single_table(tables.single, report.marks), folded=bool(tables.costs.lines))


def baselines_table(table: SideBySide, marks: Marks) -> Table:
    """Return the table of speed-ups over eager PyTorch and the other baselines."""
    rows = [
        [
            f"{line.network}/{line.artifact}",
            line.runner,
            *(against(line.cells.get(column), marks) for column in table.columns),
        ]
        for line in table.lines
    ]
    note = "Speed-up: 2 × is half the latency. “Same”: the whole interval is within 3 % of 1; “cannot tell”: it "
    note += "holds 1 and more. " + marks_in(rows)
    first = next((column for column in table.columns if column.startswith(EAGER)), table.columns[0])
    columns = ("artifact", "runner", *table.columns)
    title = "Speed-up over the baselines"
    return Table(title, columns, rows, note, order=f"the largest speed-up over {first} first", folded=True)


def overhead_table(tables: BenchTables, marks: Marks) -> Table:
    """Return the table of overheads by batch, and where CUDA would run the nodes."""
    costs = tables.costs
    rows = [
        [
            line.artifact,
            line.runner,
            *(interval(line.cells.get(column), marks) for column in costs.columns),
            *list(placement(line.placement)),
        ]
        for line in costs.lines
    ]
    columns = ("artifact", "runner", *costs.columns, "nodes on GPU / CPU", "CUDA graph")
    note = (
        f"Time of the {tables.ours} by that of the {tables.other}, timed alternately in blocks of random order. "
        f"{marks_in(rows)} On CUDA: where ONNX Runtime puts the file's nodes, predicted or asked."
    )
    title = f"The {tables.ours} against the {tables.other}"
    return Table(title, columns, rows, note, order=f"device by device, the smallest overhead at {columns[2]} first")


def interval(row: Timing | None, marks: Marks) -> str:
    """Return a paired comparison's overhead as text, or a dash."""
    return NONE if row is None else overhead_text(row, marks.of(row))


def against(row: Timing | None, marks: Marks) -> str | Cell:
    """Return a paired comparison's speed-up and verdict, or a dash."""
    if row is None:
        return NONE
    return Cell(f"{speedup_text(row, marks.of(row))} {row.verdict}", VERDICTS.get(row.verdict or "", ""))


def placement(audited: Mapping | None) -> tuple[str, str | Cell]:
    """Return the number of nodes on GPU and CPU, and whether a CUDA graph can capture the file."""
    if not audited:
        return NONE, NONE
    word = f"{'yes' if audited['graph'] else 'no'} ({'predicted' if audited['predicted'] else 'asked'})"
    return f"{audited['on_cuda']} / {audited['on_cpu']}", Cell(word, title=audited["reason"])


def single_table(table: SideBySide, marks: Marks) -> Table:
    """Return the table of one example: latency, start-up and sizes."""
    columns = ["artifact", "runner", "p50, ms", "95 %", "p90", "p99", "cold", "request", "load", "first answer"]
    columns += ["file, KiB", "host, MiB", "GPU, MiB"]
    rows = []
    for line in table.lines:
        row, cold, request, start = map(line.cells.get, ("device", "cold", "request", "start-up"))
        sized = row or request or start
        ends = span(1e3 * row.median.low, 1e3 * row.median.high) if row else NONE
        rows.append(
            [
                f"{line.network}/{line.artifact}",
                line.runner,
                milliseconds(row.p50) + marks.of(row) if row else NONE,
                ends,
            ]
            + [milliseconds(seconds) for seconds in ((row.p90, row.p99) if row else (None, None))]
            + [ranged(other) + marks.of(other) if other else NONE for other in (cold, request)]
            + [
                milliseconds(seconds)
                for seconds in ((start.load_seconds, start.first_seconds) if start else (None, None))
            ]
            + [
                size(sized.file_bytes if sized else None, 2**10),
                # of a fresh process: other rows miss memory that was freed before
                size(start.host_bytes if start else None, 2**20),
                size(sized.device_bytes if sized else None, 2**20),
            ]
        )
    shown = [index for index in range(len(columns)) if index < 2 or any(row[index] != NONE for row in rows)]
    note = (
        "One example, its inputs in place, in milliseconds; cold: inputs not in the CPU's cache; request: host array "
        f"in, host array out; load and first answer: a fresh process. p99 only from 662 samples on. "
        f"{marks_in(rows)} Host: peak growth of a fresh process's memory while it loads and answers once; "
        "GPU: that of the row."
    )
    return Table(
        "Latency at batch 1, and start-up",
        [columns[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        note,
        order="device by device, the network under test first, the fastest first",
    )


def milliseconds(seconds: float | None) -> str:
    """Format a time in ms with three figures; a dash for None."""
    return NONE if seconds is None else significant(1e3 * seconds)


def ranged(row: Timing) -> str:
    """Format a row's median in ms with its 95 % interval; a dash if it has none."""
    if row.p50 is None:
        return NONE
    return f"{milliseconds(row.p50)} ({span(1e3 * row.median.low, 1e3 * row.median.high)})"


def size(count: float | None, unit: int) -> str:
    """Format bytes in units of ``unit`` bytes; a dash for None."""
    return NONE if count is None else f"{count / unit:,.{1 if count < 100 * unit else 0}f}"
