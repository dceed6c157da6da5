"""Draw stored results over commits: the speed-up of every backend over eager PyTorch, machine by machine.

The ratios of paired comparisons are drawn, not times: both sides were timed alternately, which cancels the state of the
machine that day.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stn_export.errors import UserError, in_clone
from stn_export.report.charts import (
    LEGEND,
    MOST_LINES,
    RUNNERS,
    SHAPES,
    Chart,
    chart,
    first_lines,
    measure,
    nominal,
    scale,
    tips,
)
from stn_export.report.charts_costs import short_name
from stn_export.report.page import Page, Picture, Section, Table
from stn_export.results.choice import Marks, legend, paired_ratio
from stn_export.results.text import significant, span
from stn_export.run.records import timings
from stn_export.run.schemas import read_bench

BATCH = 1
CONTEST = "eager"


def history(kept: Path) -> Page:
    """Return a page with one section per machine.

    Raises:
        UserError: if the directory has no stored results, or one of them cannot be read.
    """
    files = [path for path in sorted(kept.glob("*.json")) if b'"benchmarks"' in path.read_bytes()]
    if not files:
        hint = in_clone("run 'make bench-keep' first, or name benchmarks/results", "name a folder of them")
        raise UserError(f"{kept} holds no kept results", hint)
    machines: dict[str, list[dict]] = {}
    for content in sorted(map(read_bench, files), key=lambda content: content["datetime"]):
        environment = content["machine_info"]["stn_export"]
        machine = f"{environment['cpu']}, {environment.get('threads', '?')} threads"
        machines.setdefault(machine, []).extend(rows(content))
    made = [
        Section(f"machine-{index}", machine, [Picture(f"history-{index}", drawn(machine, rows)), table(rows)])
        for index, (machine, rows) in enumerate(machines.items())
        if rows
    ]
    return Page(f"Over commits: {kept}", made)


def rows(content: Mapping) -> Iterator[dict]:
    """Yield a row for each paired comparison with eager PyTorch in one file."""
    when, commit = content["datetime"][:10], str(content["machine_info"]["stn_export"]["git_commit"])[:12]
    timed = timings(content)
    marks = Marks(timed)
    for row in timed:
        if (row.contest, row.batch) == (CONTEST, BATCH):
            middle, low, high = paired_ratio(row).inverse
            yield {
                "commit": f"{when} {commit}",
                "series": (name := f"{row.network} {short_name(row.runner, row.artifact, row.device)}"),
                "line": name,
                "value": middle,
                "low": low,
                "high": high,
                "told": f"{significant(middle)} ×{marks.of(row)}",
                "interval": span(low, high),
            }


def drawn(machine: str, rows: list[dict]) -> Chart:
    """Draw one line per backend, at first those that are the fastest at their last commit."""
    last = {row["line"]: row for row in rows}
    series = sorted(last, key=lambda name: -last[name]["value"])
    best = last[series[0]]
    colours = scale({name: RUNNERS[index % len(RUNNERS)] for index, name in enumerate(series)})
    shapes = scale({name: SHAPES[index % len(SHAPES)] for index, name in enumerate(series)})
    legend_of_drawn = LEGEND | {"values": series[:MOST_LINES]}
    title = "times as fast as eager PyTorch"
    return chart(
        f"Times as fast as eager PyTorch, one example, on {machine}",
        rows,
        f"the fastest is {best['series']} with {best['told']} at {best['commit']}",
        **first_lines(series),
        encoding={
            "x": nominal("commit", axis={"labelAngle": -30}),
            "color": nominal("series", scale=colours, legend=legend_of_drawn),
            "tooltip": tips(series="file", commit="commit", told="ratio", interval="95 %"),
        },
        layer=[
            {"mark": "rule", "encoding": {"y": measure("low", title), "y2": {"field": "high"}}},
            {"mark": "line", "encoding": {"y": measure("value", title)}},
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {
                    "y": measure("value", title),
                    "shape": nominal("series", scale=shapes, legend=legend_of_drawn),
                },
            },
        ],
    )


def table(rows: list[dict]) -> Table:
    """Return the same figures as a table."""
    cells = [[row["series"], row["commit"], row["told"], row["interval"]] for row in rows]
    note = legend(*(row["told"] for row in rows))
    return Table("In figures", ("file", "commit", "× eager PyTorch", "95 %"), cells, note, order="the oldest first")
