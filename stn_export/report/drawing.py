"""Render charts without a browser by ``vl-convert``, and rows of images by matplotlib."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from stn_export import cli
from stn_export.report.charts import Chart
from stn_export.run.environment import cache_directory
from stn_export.run.store import write_atomically

PRINTED = {  # the page's colours on paper and in a PNG; Okabe and Ito's where a colour carries meaning
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
    "shade": "#94a3b8",
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
DARK = {  # the colours of a dark screen
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
    "shade": "#0b0f16",
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
    """Render a chart as an <svg> element for a page, in the page's colours."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(chart.spec)
    svg = re.sub(r' (?:aria-[a-z]+|role|xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def to_png(chart: Chart) -> bytes:
    """Render a chart as a PNG on white."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(chart.spec | {"config": chart.spec["config"] | {"background": "#ffffff"}})
    return vl_convert.svg_to_png(NAME.sub(lambda match: PRINTED[match[1]], svg), scale=SCALE)


@cache
def library() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script; it is cached for the user, as bundling takes seconds."""
    import vl_convert

    path = cache_directory() / f"vega-{version('vl-convert-python')}.js"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        bundle = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub leaves the default out
        write_atomically(path, bundle.encode())
    return path.read_text(encoding="utf-8")


# Rows of images, laid out by matplotlib.


CAPTIONS: Any = {"font.size": 10, "figure.constrained_layout.use": True, "text.parse_math": False}


@matplotlib.rc_context(CAPTIONS)
def picture_rows(rows: Mapping[str, Tensor], titles: Sequence[str] = ()) -> Figure:
    """Draw images (uint8 N×C×H×W, grey or RGB, N the same for all) in named rows, with titles above the first row."""
    count = max(map(len, rows.values()))
    figure = Figure(figsize=(0.75 * max(count, 2), 0.25 + 0.75 * len(rows) + 0.35 * bool(titles)))
    for (name, pictures), panels in zip(rows.items(), figure.subplots(len(rows), count, squeeze=False), strict=True):
        for axes, picture in zip(panels, pictures, strict=True):
            axes.imshow(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel(cli.visible(name))
    for axes, title in zip(figure.axes, titles, strict=False):
        axes.set_title("\n".join(map(cli.visible, title.split("\n"))), loc="center", fontsize=7.5)
    return figure
