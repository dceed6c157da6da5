"""Show stored results over commits: a list of the runs, then for each machine a chart, and its runs side by side.

The ratios of paired comparisons are drawn, not times: both sides were timed alternately, which cancels the state of the
machine that day. A change point is a ratio whose interval, with all that its run showed of the two files, does not meet
that of the commit before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
    datetime: str
    commit: str
    machine: str
    timed: list[Timing]


@dataclass(frozen=True)
class Point:
    """The speed-up of a file over eager PyTorch at a commit.

    Attributes:
        commit: with its date.
        line: the file, as a line of the chart is called.
        ratio: of the paired comparison, with its interval.
        widened: the same, the interval with all that the run showed of the two files.
        marks: see ``results.choice.Marks``.
        change: since the commit before; empty where the two widened intervals meet.
    """

    commit: str
    line: str
    ratio: Ratio
    widened: Ratio
    marks: str
    change: str = ""

    @property
    def text(self) -> str:
        """Return the ratio as text."""
        return f"{significant(self.ratio.middle)} ×{self.marks}"

    @property
    def interval(self) -> str:
        """Return its interval as text."""
        return span(self.ratio.low, self.ratio.high)

    def as_dict(self) -> dict[str, object]:
        """Return what the chart draws."""
        middle, low, high = self.ratio
        return {
            "commit": self.commit,
            "series": self.line,
            "line": self.line,
            "value": middle,
            "low": low,
            "high": high,
            "told": self.text,
            "interval": self.interval,
            "change": self.change,
        }


def history(kept: Path) -> Page:
    """Return a page with the list of runs, and one section per machine.

    Raises:
        UserError: if the directory has no stored results, or one of them cannot be read.
    """
    files = [path for path in sorted(kept.glob("*.json")) if b'"benchmarks"' in path.read_bytes()]
    if not files:
        hint = in_clone("run 'make bench-keep' first, or name benchmarks/results", "name a folder of them")
        raise UserError(f"{kept} holds no kept results", hint)
    runs = [read(path.name, read_bench(path)) for path in files]
    runs.sort(key=lambda run: run.datetime)
    machines: dict[str, list[Point]] = {}
    for run in runs:
        machines.setdefault(run.machine, []).extend(points(run))
    sections = [
        Section(
            f"machine-{index}",
            machine,
            [Picture(f"history-{index}", drawn(machine, compared)), side_by_side(compared), table(compared)],
        )
        for index, (machine, compared) in enumerate((name, changed(points)) for name, points in machines.items())
        if compared
    ]
    return Page(f"Over commits: {kept}", [Section("runs", "Runs", [listed(runs)]), *sections])


def read(name: str, content: Mapping) -> Kept:
    """Read what a stored file says of itself, and its timings."""
    environment, when = content["machine_info"]["stn_export"], content["datetime"]
    machine = f"{environment['cpu']}, {environment.get('threads', '?')} threads"
    return Kept(name, when, f"{when[:10]} {str(environment['git_commit'])[:12]}", machine, timings(content))


def listed(runs: Sequence[Kept]) -> Table:
    """List the stored runs, each with its fastest file."""
    cells = []
    for run in reversed(runs):
        best = max(points(run), key=lambda point: point.ratio.middle, default=None)
        fastest = (best.line, f"{best.text} ({best.interval})") if best else (NONE, NONE)
        cells.append([run.commit, run.name, run.machine, f"{len(run.timed):,}", *fastest])
    columns = ("commit", "stored in", "machine", "timings", "fastest file", "× eager PyTorch")
    return Table("Stored runs", columns, cells, heading=False, order="the newest first")


def points(run: Kept) -> Iterator[Point]:
    """Yield a point for each paired comparison with eager PyTorch in one file."""
    marks = Marks(run.timed)
    for row in run.timed:
        if (row.contest, row.batch) == (CONTEST, BATCH):
            line = f"{row.network} {short_name(row.runner, row.artifact, row.device)}"
            widened = over_moments(row, run.timed).inverse
            yield Point(run.commit, line, paired_ratio(row).inverse, widened, marks.of(row))


def changed(points: Sequence[Point]) -> list[Point]:
    """Return the points with their change since the commit before."""
    before: dict[str, Ratio] = {}
    compared = []
    for point in points:
        now, then = point.widened, before.get(point.line)
        apart = then is not None and (now.low > then.high or now.high < then.low)
        change = f"{significant(now.middle / then.middle)} × the commit before" if then and apart else ""
        compared.append(replace(point, change=change))
        before[point.line] = now
    return compared


def drawn(machine: str, points: Sequence[Point]) -> Chart:
    """Draw one line per backend, at first those that are the fastest at their last commit; rings mark change points."""
    last = {point.line: point for point in points}
    series = sorted(last, key=lambda name: -last[name].ratio.middle)
    best = last[series[0]]
    colours = scale({name: RUNNERS[index % len(RUNNERS)] for index, name in enumerate(series)})
    shapes = scale({name: SHAPES[index % len(SHAPES)] for index, name in enumerate(series)})
    legend_of_drawn = LEGEND | {"values": series[:MOST_LINES]}
    title = "times as fast as eager PyTorch"
    return chart(
        f"Times as fast as eager PyTorch, one example, on {machine}",
        [point.as_dict() for point in points],
        f"the fastest is {best.line} with {best.text} at {best.commit}",
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


def side_by_side(points: Sequence[Point]) -> Table:
    """Return a column for each commit, of which a reader chooses two; the script adds how they compare."""
    commits = list(dict.fromkeys(point.commit for point in points))
    texts = {(point.line, point.commit): point.text for point in points}
    names = sorted({point.line for point in points})
    cells = [[name, *(texts.get((name, commit), NONE) for commit in commits)] for name in names]
    note = "× eager PyTorch; whether a ratio is a change stands in the table below"
    return Table("Two runs side by side", ("file", *commits), cells, note, order="by name", pairwise=len(commits) > 1)


def table(points: Sequence[Point]) -> Table:
    """Return the figures of the chart as a table."""
    cells = [[point.line, point.commit, point.text, point.interval, point.change or NONE] for point in points]
    note = legend(*(point.text for point in points))
    columns = ("file", "commit", "× eager PyTorch", "95 %", "change")
    return Table("In figures", columns, cells, note, order="the oldest first")
