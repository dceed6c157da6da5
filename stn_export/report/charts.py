"""Describe charts in Vega-Lite; ``drawing`` renders them as SVG, and the page makes them interactive.

Colours are variables of the page (``drawing.PRINTED``, ``drawing.DARK``), one for each network, family of runners or
part of a network throughout the page. Whatever has a colour also has a shape or a line style.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from stn_export.program.sites import PARTS
from stn_export.results.choice import Scored
from stn_export.run.manifest import OTHER, PLAIN, SUBJECT
from stn_export.run.records import Timing


class Interval(NamedTuple):
    """A value with the ends of its interval, and its marks; see ``results.choice``."""

    middle: float
    low: float
    high: float
    marks: str = ""


Spec = dict[str, Any]
Curves = Mapping[tuple[str, str, str], Mapping[int, Interval]]  # by (runner, artifact, network) and batch
Bar = tuple[str, Mapping[int, Mapping[str, float]], Mapping[int, float]]  # name; ms by batch and part; 100 % by batch

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
WIDTH, HIGH = 680, 300
MOST_LINES = 5  # lines drawn before a reader asks for the others
INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"
NETWORKS = {SUBJECT: "var(--n0)", PLAIN: "var(--n1)"}
OTHERS = ("var(--n2)", "var(--n3)")
RUNNERS = tuple(f"var(--r{index})" for index in range(8))
PART_COLOURS = {part: f"var(--p{index})" for index, part in enumerate(PARTS)}
DARK_PARTS = PARTS[::2]  # dark enough for light text
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
DEVICES = {"cpu": "the CPU", "cuda": "the GPU", "webgpu": "the GPU by WebGPU"}
NAMED_SHARE = 0.08  # share of a bar; smaller parts have no room for a number
CONFIG: Spec = {
    "background": None,
    "aria": False,
    "font": "system-ui, 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridColor": LINE,
        "domainColor": SOFT,
        "tickColor": SOFT,
        "labelColor": INK,
        "titleColor": INK,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "labelLimit": 260,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "labelLimit": 260, "symbolStrokeWidth": 2},
    "header": {"labelColor": INK, "titleColor": INK, "labelFontSize": 11},
    "title": {"color": INK},
    "text": {"color": INK, "fontSize": 11},
    "rule": {"color": SOFT},
}


class Look(NamedTuple):
    """How a network is shown: label, role and colour."""

    label: str
    role: str
    colour: str


@dataclass(frozen=True)
class Point:
    """A verified program in the chart of accuracy against the latency of one example."""

    name: str
    row: Timing
    scored: Scored
    marks: str = ""


@dataclass(frozen=True)
class Figures:
    """What a chart draws, as a table; ``order`` says how its rows are sorted."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    order: str


@dataclass(frozen=True)
class Chart:
    """A chart with its title, one sentence for readers who do not see it, and its figures.

    Where another table of the page holds these, ``figures`` is None.
    """

    title: str
    spec: Spec
    text: str
    figures: Figures | None = None

    @property
    def lines(self) -> list[str]:
        """The names of its lines, the first drawn ones first; empty where all are drawn."""
        return self.spec.get("usermeta", {}).get("lines", [])


def looks(networks: Iterable[tuple[str, str, str]]) -> dict[str, Look]:
    """Return how networks, given by name, label and role, are shown: network under test, plain network, then others."""
    ordered = sorted(dict.fromkeys(networks), key=lambda network: (SUBJECT, PLAIN, OTHER).index(network[2]))
    own, others = dict(NETWORKS), cycle(OTHERS)
    return {name: Look(label, role, own.pop(role, "") or next(others)) for name, label, role in ordered}


def chart(
    title: str,
    rows: Sequence[Mapping],
    sentence: str,
    height: int | Spec = HIGH,
    figures: Figures | None = None,
    **parts: Any,
) -> Chart:
    """Build a chart of rows, as wide as all others; ``sentence`` says what it shows."""
    fit = {"width": WIDTH, "height": height, "autosize": {"type": "fit-x", "contains": "padding"}}
    size = {} if "facet" in parts else fit
    spec = {"$schema": SCHEMA, "config": CONFIG, "data": {"values": list(rows)}} | size | parts
    return Chart(title, spec, f"{title}: {sentence}.", figures)


def figures(rows: Iterable[Mapping[str, Any]], order: str, **titles: str) -> Figures:
    """Return fields of a chart's rows, given with their headings, as its table."""
    return Figures(list(titles.values()), [[str(row[name]) for name in titles] for row in rows], order)


def first_lines(lines: Sequence[str]) -> Spec:
    """Return the parts of a chart that draw the first ``MOST_LINES`` lines, by ``line`` of each row."""
    shown = {"field": "line", "oneOf": list(lines[:MOST_LINES])}
    return {"transform": [{"filter": shown}], "usermeta": {"lines": list(lines)}}


def measure(field: str, title: str | None, scale: str = "linear", **more: Any) -> Spec:
    """Return a quantitative channel whose axis need not start at zero."""
    logarithmic = scale == "log"
    plain = {"format": ",~r", "tickCount": 6 if logarithmic else 10, "labelBound": True, "labelSeparation": 4}
    plain |= {"labelOverlap": "greedy" if logarithmic else True}
    return (
        {
            "field": field,
            "type": "quantitative",
            "title": title,
            "scale": {"type": scale, "nice": False, "padding": 12} | ({"zero": False} if scale == "linear" else {}),
        }
        | more
        | {"axis": plain | more.get("axis", {})}
    )


def nominal(field: str, title: str | None = None, **more: Any) -> Spec:
    """Return a channel of names, in the order of the rows."""
    return {"field": field, "type": "nominal", "title": title, "sort": None} | more


def scale(pairs: Mapping[str, Any]) -> Spec:
    """Return a scale that maps each name to its value."""
    return {"domain": list(pairs), "range": list(pairs.values())}


def each_its(names: Iterable[str], choices: Sequence[Any]) -> dict[str, Any]:
    """Assign one of the choices to each name, cyclically."""
    return dict(zip(names, cycle(choices), strict=False))


def tips(**titles: str) -> list[Spec]:
    """Return the fields of a tooltip with their titles."""
    return [{"field": field, "title": title} for field, title in titles.items()]


def toggled(field: str) -> list[Spec]:
    """Return a selection of series by clicks on the legend; all are shown at first."""
    return [{"name": "picked", "select": {"type": "point", "fields": [field], "toggle": "true"}, "bind": "legend"}]


LEGEND = {"orient": "bottom", "columns": 2, "direction": "vertical", "symbolSize": 110}
