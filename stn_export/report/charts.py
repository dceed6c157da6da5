"""Describe charts in Vega-Lite; ``drawing`` renders them as SVG, and the page makes them interactive.

Colours are variables of the page (``drawing.PRINTED``, ``drawing.DARK``), one for each network, family of runners or
part of a network throughout the page. Whatever has a colour also has a shape or a line style.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from stn_export.program.sites import PARTS
from stn_export.results.choice import legend
from stn_export.run.manifest import OTHER, PLAIN, SUBJECT


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
WIDTH, LOW, HIGH = 680, 230, 300
INK, SOFT, LINE = "var(--ink)", "var(--soft)", "var(--line)"
NETWORKS = {SUBJECT: "var(--n0)", PLAIN: "var(--n1)"}
OTHERS = ("var(--n2)", "var(--n3)")
RUNNERS = tuple(f"var(--r{index})" for index in range(8))
PART_COLOURS = {part: f"var(--p{index})" for index, part in enumerate(PARTS)}
DARK_PARTS = PARTS[::2]  # dark enough for light text
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
DEVICES = {"cpu": "the CPU", "cuda": "the GPU"}
MOST_TOLD = 12  # most points named in a chart's text description
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
class Chart:
    """A chart with its title, and its content as text."""

    title: str
    spec: Spec
    text: str


def looks(networks: Iterable[tuple[str, str, str]]) -> dict[str, Look]:
    """Return how networks, given by name, label and role, are shown: network under test, plain network, then others."""
    found = sorted(dict.fromkeys(networks), key=lambda each: (SUBJECT, PLAIN, OTHER).index(each[2]))
    own, others = dict(NETWORKS), cycle(OTHERS)
    return {name: Look(label, role, own.pop(role, "") or next(others)) for name, label, role in found}


def chart(title: str, rows: Sequence[Mapping], text: Iterable[str], height: int | Spec = HIGH, **parts: Any) -> Chart:
    """Build a chart of rows; ``text`` describes them, of which the first ``MOST_TOLD`` are shown."""
    told = list(text)
    more = f"; {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    size = {} if "facet" in parts else {"width": WIDTH, "height": height}
    spec = {"$schema": SCHEMA, "config": CONFIG, "data": {"values": list(rows)}} | size | parts
    meanings = f" {found}." if (found := legend(*told)) else ""
    return Chart(title, spec, f"{title}. {'; '.join(told[:MOST_TOLD])}{more}.{meanings}")


def measure(field: str, title: str | None, scale: str = "linear", **more: Any) -> Spec:
    """Return a quantitative channel whose axis need not start at zero."""
    plain = {"format": ",~r", "labelOverlap": True, "tickCount": 6 if scale == "log" else 10}
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"type": scale, "nice": False, "padding": 12} | ({"zero": False} if scale == "linear" else {}),
        "axis": plain,
    } | more


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


FADED = {"condition": {"param": "picked", "value": 1}, "value": 0.08}


LEGEND = {"orient": "bottom", "columns": 2, "direction": "vertical", "symbolSize": 110}
