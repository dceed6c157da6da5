"""Show stored results over commits: a list of the runs, then for each machine a chart, and its runs side by side.

The ratios of paired comparisons are drawn, not times: both sides were timed alternately, which cancels the state of the
machine that day. A change point is a ratio whose interval, with all that its run showed of the two files, does not meet
that of the commit before.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stn_export.cli import NONE
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
from stn_export.results.choice import Marks, Ratio, legend, over_moments, paired_ratio
from stn_export.results.text import significant, span
from stn_export.run.records import Timing, timings
from stn_export.run.schemas import read_bench

BATCH = 1
CONTEST = "eager"


class Kept(NamedTuple):
    """A file of stored results."""

    name: str
    commit: str
    machine: str
    timed: list[Timing]


def history(kept: Path) -> Page:
    """Return a page with the list of runs, and one section per machine.

    Raises:
        UserError: if the directory has no stored results, or one of them cannot be read.
    """
    files = [path for path in sorted(kept.glob("*.json")) if b'"benchmarks"' in path.read_bytes()]
    if not files:
        hint = in_clone("run 'make bench-keep' first, or name benchmarks/results", "name a folder of them")
        raise UserError(f"{kept} holds no kept results", hint)
    contents = {path.name: read_bench(path) for path in files}
    runs = [read(name, contents[name]) for name in sorted(contents, key=lambda name: contents[name]["datetime"])]
    machines: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        machines.setdefault(run.machine, []).extend(rows(run))
    made = [
        Section(
            f"machine-{index}",
            machine,
            [Picture(f"history-{index}", drawn(machine, found)), side_by_side(found), table(found)],
        )
        for index, (machine, found) in enumerate((name, changed(rows)) for name, rows in machines.items())
        if found
    ]
    return Page(f"Over commits: {kept}", [Section("runs", "Runs", [listed(runs)]), *made])


def read(name: str, content: Mapping) -> Kept:
    """Read what a stored file says of itself, and its timings."""
    environment = content["machine_info"]["stn_export"]
    machine = f"{environment['cpu']}, {environment.get('threads', '?')} threads"
    return Kept(name, f"{content['datetime'][:10]} {str(environment['git_commit'])[:12]}", machine, timings(content))


def listed(runs: Sequence[Kept]) -> Table:
    """List the stored runs, each with its fastest file."""
    cells = []
    for run in reversed(runs):
        best = max(rows(run), key=lambda row: row["value"], default=None)
        fastest = (best["line"], f"{best['told']} ({best['interval']})") if best else (NONE, NONE)
        cells.append([run.commit, run.name, run.machine, f"{len(run.timed):,}", *fastest])
    columns = ("commit", "stored in", "machine", "timings", "fastest file", "× eager PyTorch")
    return Table("Stored runs", columns, cells, heading=False, order="the newest first")


def rows(run: Kept) -> Iterator[dict[str, Any]]:
    """Yield a row for each paired comparison with eager PyTorch in one file."""
    marks = Marks(run.timed)
    for row in run.timed:
        if (row.contest, row.batch) == (CONTEST, BATCH):
            middle, low, high = paired_ratio(row).inverse
            yield {
                "commit": run.commit,
                "series": (name := f"{row.network} {short_name(row.runner, row.artifact, row.device)}"),
                "line": name,
                "value": middle,
                "low": low,
                "high": high,
                "told": f"{significant(middle)} ×{marks.of(row)}",
                "interval": span(low, high),
                "widened": over_moments(row, run.timed).inverse,
            }


def changed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with their change since the commit before; empty where the two intervals meet."""
    before: dict[str, Ratio] = {}
    told = []
    for row in rows:
        now, then = row["widened"], before.get(row["series"])
        apart = then is not None and (now.low > then.high or now.high < then.low)
        change = f"{significant(now.middle / then.middle)} × the commit before" if then and apart else ""
        told.append({name: value for name, value in row.items() if name != "widened"} | {"change": change})
        before[row["series"]] = now
    return told


def drawn(machine: str, rows: Sequence[dict[str, Any]]) -> Chart:
    """Draw one line per backend, at first those that are the fastest at their last commit; rings mark change points."""
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
            "tooltip": tips(series="file", commit="commit", told="ratio", interval="95 %", change="change"),
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
            {
                "transform": [{"filter": "datum.change != ''"}],
                "mark": {"type": "point", "shape": "circle", "filled": False, "size": 260, "strokeWidth": 2},
                "encoding": {"y": measure("value", title)},
            },
        ],
    )


def side_by_side(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a column for each commit, of which a reader chooses two; the script adds how they compare."""
    commits = list(dict.fromkeys(row["commit"] for row in rows))
    found = {(row["series"], row["commit"]): row["told"] for row in rows}
    names = sorted(dict.fromkeys(row["series"] for row in rows))
    cells = [[name, *(found.get((name, commit), NONE) for commit in commits)] for name in names]
    note = "× eager PyTorch; whether a ratio is a change stands in the table below"
    return Table("Two runs side by side", ("file", *commits), cells, note, order="by name", pairwise=len(commits) > 1)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the figures of the chart as a table."""
    cells = [[row["series"], row["commit"], row["told"], row["interval"], row["change"] or NONE] for row in rows]
    note = legend(*(row["told"] for row in rows))
    columns = ("file", "commit", "× eager PyTorch", "95 %", "change")
    return Table("In figures", columns, cells, note, order="the oldest first")
