"""Charts rendered without a browser, and what makes them interactive in one: both come out of ``vl-convert``.

Of the charting libraries that can be inlined Vega-Lite was taken: one description gives an SVG that prints, with no
script at all, and the same chart with tooltips. Its 0.9 MB are more than uPlot's 50 KB and Chart.js's 205 KB, which
draw on a canvas only (a bitmap in print, nothing for a screen reader), and than Observable Plot's 490 KB with D3, which
nothing renders outside a browser, so that each chart would have to be written twice.
"""

import re
from functools import cache
from importlib.metadata import version

from stn_export.artifacts.environment import cache_directory
from stn_export.artifacts.files import write_atomically
from stn_export.report.charts import Chart

PRINTED = {  # the page's colours on paper and in a PNG; Okabe and Ito's where a thing is told by its colour
    "ink": "#111827",
    "soft": "#5b6472",
    "line": "#e5e7eb",
    "card": "#ffffff",
    "ground": "#f9fafb",
    "accent": "#00669e",
    "good": "#15713a",
    "bad": "#b91c1c",
    "warn": "#854d0e",
    "warn-ground": "#fef3c7",
    "n0": "#0072b2",
    "n1": "#d55e00",
    "n2": "#aa4499",
    "n3": "#6b7280",
    "r0": "#117733",
    "r1": "#332288",
    "r2": "#b8860b",
    "r3": "#882255",
    "r4": "#1f9e89",
    "r5": "#7a5230",
    "r6": "#5c5c5c",
    "r7": "#c2185b",
    "p0": "#1f4e5f",
    "p1": "#9cc4c0",
    "p2": "#3f7480",
    "p3": "#d3dedb",
}
DARK = {  # what a dark screen shows instead
    "ink": "#e5e7eb",
    "soft": "#a3adba",
    "line": "#374151",
    "card": "#1f2937",
    "ground": "#111827",
    "accent": "#6cb6ea",
    "good": "#5fd08a",
    "bad": "#ff8f8f",
    "warn": "#fde68a",
    "warn-ground": "#422006",
    "n0": "#56b4e9",
    "n1": "#ff9d4d",
    "n2": "#e58bd3",
    "n3": "#a3adba",
    "r0": "#5fd08a",
    "r1": "#a5a0f0",
    "r2": "#e8c14a",
    "r3": "#f58bb4",
    "r4": "#5eead4",
    "r5": "#d2a679",
    "r6": "#c4c4c4",
    "r7": "#ff7aa8",
}
NAME = re.compile(r"var\(--([\w-]+)\)")
SCALE = 2.0  # of a PNG


def to_svg(chart: Chart) -> str:
    """The chart as an <svg> for a page's own text, in the page's colours."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(chart.spec)
    svg = re.sub(r' (?:aria-[a-z]+|role|xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def to_png(chart: Chart) -> bytes:
    """The chart as a PNG, on white."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(chart.spec | {"config": chart.spec["config"] | {"background": "#ffffff"}})
    return vl_convert.svg_to_png(NAME.sub(lambda found: PRINTED[found[1]], svg), scale=SCALE)


@cache
def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, kept in the user's cache: to put it together takes seconds."""
    import vl_convert

    path = cache_directory() / f"vega-{version('vl-convert-python')}.js"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        bundle = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub leaves the default out
        write_atomically(path, bundle.encode())
    return path.read_text(encoding="utf-8")
