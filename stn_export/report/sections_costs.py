"""The sections that say which file to deploy and what the transformer costs."""

from collections.abc import Iterable, Mapping

from stn_export.answer.card import overhead_text, rate, seconds_of, speedup_text, speedup_words
from stn_export.answer.choice import headline, others
from stn_export.artifacts.records import Timing
from stn_export.comparison.disturbance import LEGEND, Marks, legend
from stn_export.comparison.words import row_name, significant, span
from stn_export.report.charts import DEVICES
from stn_export.report.content import Report
from stn_export.report.page import NONE, Block, Cell, Table, Text

VERDICTS = {"faster": "good", "slower": "bad"}
MARKS = f"{legend(*LEGEND)}."
CHARTS = "each runner's best artifact of those timed at the most batches, with 95 % intervals"


def deploys(report: Report) -> Iterable[Block]:
    """Show which file to deploy by device, for one example and for many, and what it was chosen from."""
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
            f"confidence intervals. {MARKS}",
            heading=False,
        )
    yield from report.pictures("pareto", "latency", "throughput")


def _offer(report: Report, device: str, purpose: str, row: Timing) -> list[str]:
    rows = [each for each in report.timings if each.device == device]
    shown = headline(rows, row)
    does = (seconds_of if purpose == "latency" else rate)(shown, report.marks.of(shown))
    return [f"{row.batch:,}", does, speedup_words(rows, shown, report.marks).removeprefix("speed-up over ") or NONE]


def costs(report: Report) -> Iterable[Block]:
    """The subject against the plain network, where the time goes, what others give, and getting ready."""
    yield from report.pictures("overhead", "breakdown")
    tables = report.bench
    if not tables:
        return
    if tables["costs"]["lines"]:
        yield overhead_table(report)
    if tables["against"]["lines"]:
        columns = tables["against"]["columns"]
        rows = [
            [
                f"{line['network']}/{line['artifact']}",
                line["runner"],
                *(against(line["cells"].get(each), report.marks) for each in columns),
            ]
            for line in tables["against"]["lines"]
        ]
        note = "How many times as fast: 2 × is half the time. “Same”: within 3 % for sure; “cannot tell”: 1 and more. "
        note += MARKS
        yield Table("Against what people get without this project", ("artifact", "runner", *columns), rows, note)
    if tables["single"]["lines"]:
        yield single_table(report)
        yield Text(f"Charts show {CHARTS}. {MARKS}", "note")


def overhead_table(report: Report) -> Table:
    """Ratios by batch, and where CUDA would run the nodes."""
    known = report.bench["costs"]
    rows = [
        [
            line["artifact"],
            line["runner"],
            *(interval(line["cells"].get(each), report.marks) for each in known["columns"]),
            *list(placement(line["placement"])),
        ]
        for line in known["lines"]
    ]
    columns = ("artifact", "runner", *known["columns"], "nodes on GPU / CPU", "CUDA graph")
    note = (
        f"Time of the {known['ours']} by that of the {known['other']}, which took turns in blocks in random order. "
        f"{MARKS} On CUDA: where ONNX Runtime puts the file's nodes, predicted or asked."
    )
    return Table(f"The {known['ours']} against the {known['other']}", columns, rows, note)


def interval(row: Timing | None, marks: Marks) -> str:
    """Show a paired comparison's overhead, or a dash."""
    return NONE if row is None else overhead_text(row, marks.of(row))


def against(row: Timing | None, marks: Marks) -> str | Cell:
    """Show a paired comparison's speed-up and its verdict, or a dash."""
    if row is None:
        return NONE
    return Cell(f"{speedup_text(row, marks.of(row))} {row.verdict}", VERDICTS.get(row.verdict or "", ""))


def placement(found: Mapping | None) -> tuple[str, str | Cell]:
    """Nodes on either, and whether a CUDA graph holds them."""
    if not found:
        return NONE, NONE
    word = f"{'yes' if found['graph'] else 'no'} ({'predicted' if found['predicted'] else 'asked'})"
    return f"{found['on_cuda']} / {found['on_cpu']}", Cell(word, title=found["reason"])


def single_table(report: Report) -> Table:
    """One example, and getting ready for it."""
    known = report.bench["single"]
    columns = ["artifact", "runner", "p50, ms", "95 %", "p90", "p99", "cold", "request", "load", "first answer"]
    columns += ["file, KiB", "host, MiB", "GPU, MiB"]
    rows = []
    for line in known["lines"]:
        row, cold, request, start = map(line["cells"].get, ("device", "cold", "request", "start-up"))
        sized = row or request or start
        ends = span(1e3 * row.median.low, 1e3 * row.median.high) if row else NONE
        rows.append(
            [
                f"{line['network']}/{line['artifact']}",
                line["runner"],
                milliseconds(row.p50) + report.marks.of(row) if row else NONE,
                ends,
            ]
            + [milliseconds(each) for each in ((row.p90, row.p99) if row else (None, None))]
            + [ranged(each) + report.marks.of(each) if each else NONE for each in (cold, request)]
            + [milliseconds(each) for each in ((start.load_seconds, start.first_seconds) if start else (None, None))]
            + [
                size(sized.file_bytes if sized else None, 2**10),
                # of a fresh process: what was freed before shows in no other row
                size(start.host_bytes if start else None, 2**20),
                size(sized.device_bytes if sized else None, 2**20),
            ]
        )
    shown = [index for index in range(len(columns)) if index < 2 or any(row[index] != NONE for row in rows)]
    note = (
        "One example, its inputs in place, in milliseconds; cold: out of the cache; request: host array in, host array "
        f"out; load and first answer: a fresh process. p99 only from 662 samples on. {MARKS} Host: peak growth of a "
        "fresh process's memory while it loads and answers once; GPU: that of the row."
    )
    return Table(
        "One example, and getting ready for it",
        [columns[index] for index in shown],
        [[row[index] for index in shown] for row in rows],
        note,
    )


def milliseconds(seconds: float | None) -> str:
    """Three figures of a time in ms, or a dash."""
    return NONE if seconds is None else significant(1e3 * seconds)


def ranged(row: Timing) -> str:
    """Three figures of a row's median in ms and its 95 % interval, or a dash."""
    if row.p50 is None:
        return NONE
    return f"{milliseconds(row.p50)} ({span(1e3 * row.median.low, 1e3 * row.median.high)})"


def size(count: float | None, unit: int) -> str:
    """Bytes in units of ``unit`` bytes, or a dash."""
    return NONE if count is None else f"{count / unit:,.{1 if count < 100 * unit else 0}f}"
