"""The report's figures: each function takes plain data and returns a matplotlib figure.

The colours stand for names that a page may give other values (``to_svg``), so that one drawing serves light and dark.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from stn_export.artifacts.manifest import OTHER, PLAIN, SUBJECT

INK, GRID, SOFT, CARD = "#111827", "#e5e7eb", "#6b7280", "#ffffff"
PALETTE = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#dc2626", "#65a30d")
PAGE_COLOURS = {INK: "var(--ink)", GRID: "var(--line)", SOFT: "var(--soft)", CARD: "var(--card)"} | {
    colour: f"var(--c{index})" for index, colour in enumerate(PALETTE)
}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}
CAPTIONS = {"axes.grid": False, "axes.titlesize": 9, "axes.titleweight": "normal"}  # of pictures
SVG_TRIMS = (  # namespaces, ids of groups (those referred to are hashes), comments, fonts, decimals of coordinates
    (r' (xmlns(:\w+)?|version)="[^"]*"', ""),
    (r' id="[A-Za-z]\w*_\d+"', ""),
    (r"<!--.*?-->\s*", ""),
    (r" font-family: [^;\"]*;", ""),
    (r"(\d\.\d\d)\d+(?=[^<>]*>)", r"\1"),
    (r"\n\s*", "\n"),
)


class Look(NamedTuple):
    """How a network is shown."""

    label: str
    role: str
    colour: str


def looks(networks: Iterable[tuple[str, str, str]]) -> dict[str, Look]:
    """How networks, each by name, label and role, are shown: the subject first, the plain one next, then the others."""
    found = sorted(dict.fromkeys(networks), key=lambda each: (SUBJECT, PLAIN, OTHER).index(each[2]))
    own, others = {SUBJECT: PALETTE[0], PLAIN: PALETTE[1]}, cycle(PALETTE[2:])
    return {name: Look(label, role, own.pop(role, None) or next(others)) for name, label, role in found}


@matplotlib.rc_context(STYLE | CAPTIONS)
def picture_rows(rows: Mapping[str, Tensor], titles: Sequence[str] = ()) -> Figure:
    """Pictures (uint8 N×C×H×W, grey or RGB, N the same for all) in rows by name, titles over the first."""
    count = max(map(len, rows.values()))
    figure = Figure(figsize=(0.75 * max(count, 2), 0.25 + 0.75 * len(rows) + 0.35 * bool(titles)))
    for (name, pictures), panels in zip(rows.items(), figure.subplots(len(rows), count, squeeze=False), strict=True):
        for axes, picture in zip(panels, pictures, strict=True):
            axes.imshow(picture.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="none")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel(name)
    for axes, title in zip(figure.axes, titles, strict=False):
        axes.set_title(title, loc="center", fontsize=7.5)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG without dates or versions in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, dpi=STYLE["savefig.dpi"])
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> for a page's own text: letters are letters, colours the page's ``PAGE_COLOURS``.

    Args:
        figure: drawn in the colours of this module.
        name: another one for each figure of a page, which keeps their ids apart.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    for pattern, kept in SVG_TRIMS:
        body = re.sub(pattern, kept, body)
    return re.sub("|".join(PAGE_COLOURS), lambda found: PAGE_COLOURS[found.group()], body)


@matplotlib.rc_context(STYLE)
def error_strips(errors: Mapping[str, Mapping[str, Sequence[float]]], eager: Mapping[str, float]) -> Figure:
    """Errors against float64 by kind of point and artifact, a dot a challenge; float32 eager's own worst as a line."""
    artifacts = list(dict.fromkeys(artifact for by_artifact in errors.values() for artifact in by_artifact))
    figure = Figure(figsize=(8.5, 1.0 + 0.3 * len(artifacts)))
    panels = figure.subplots(1, len(errors), sharey=True, squeeze=False)[0]
    for axes, (point, by_artifact) in zip(panels, errors.items(), strict=True):
        for row, artifact in enumerate(artifacts):
            values = [value for value in by_artifact.get(artifact, ()) if value]
            axes.plot(values, [row] * len(values), "o", ms=4, alpha=0.4, color=PALETTE[0])
        if eager[point]:
            axes.axvline(eager[point], color=PALETTE[1], label="float32 eager's worst")
        axes.set(title=f"{point}, px" if point == "grid" else point, xscale="log", xlabel="error")
        axes.set_yticks(range(len(artifacts)), artifacts)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure
