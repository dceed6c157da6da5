"""The report's figures: each function takes plain data and returns a matplotlib figure.

The colours stand for names that a page may give other values (``to_svg``), so that one drawing serves light and dark.
"""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

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
MODEL_COLOURS = {"stn": PALETTE[0], "cnn": PALETTE[1], "cnn-matched": PALETTE[2]}
CAPTIONS = {"axes.grid": False, "axes.titlesize": 9, "axes.titleweight": "normal"}  # of pictures
SVG_TRIMS = (  # namespaces, ids of groups (those referred to are hashes), comments, fonts, decimals of coordinates
    (r' (xmlns(:\w+)?|version)="[^"]*"', ""),
    (r' id="[A-Za-z]\w*_\d+"', ""),
    (r"<!--.*?-->\s*", ""),
    (r" font-family: [^;\"]*;", ""),
    (r"(\d\.\d\d)\d+(?=[^<>]*>)", r"\1"),
    (r"\n\s*", "\n"),
)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


@matplotlib.rc_context(STYLE | CAPTIONS)
def warped_images(images: Tensor, warped: Tensor, titles: Sequence[str] = ()) -> Figure:
    """Images (uint8 N×3×32×32) above what the transformer made of them (the same, uint8), titles over all."""
    figure = Figure(figsize=(0.75 * max(len(images), 2), 2.1 if titles else 1.75))
    rows = figure.subplots(2, len(images), squeeze=False)
    for row, pictures, label in zip(rows, (images, warped), ("input", "warped"), strict=True):
        for axes, picture in zip(row, pictures, strict=True):
            _show_picture(axes, picture)
        row[0].set_ylabel(label)
    for axes, title in zip(rows[0], titles, strict=False):
        axes.set_title(title, loc="center", fontsize=7.5)
    return figure


@matplotlib.rc_context(STYLE | CAPTIONS)
def warped_pairs(images: Tensor, warped: Tensor, titles: Sequence[str]) -> Figure:
    """A row an image: it (uint8 N×3×32×32) under its title, beside what the transformer made of it (the same)."""
    figure = Figure(figsize=(4.6, 2.5 * len(images)))
    rows = figure.subplots(len(images), 2, squeeze=False)
    for row, pair, title in zip(rows, zip(images, warped, strict=True), titles, strict=True):
        for axes, picture, label in zip(row, pair, (title, "warped"), strict=True):
            _show_picture(axes, picture)
            axes.set_title(label.replace("$", r"\$"))  # a pair of $ would start a formula
    return figure


def _show_picture(axes: Axes, picture: Tensor) -> None:
    """One uint8 3×H×W picture, pixel by pixel, without ticks or frame."""
    axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


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
    """Errors against float64 by point and artifact, a dot a challenge; float32 eager's own worst as a line."""
    artifacts = list(next(iter(errors.values())))
    figure = Figure(figsize=(8.5, 1.0 + 0.3 * len(artifacts)))
    panels = figure.subplots(1, len(errors), sharey=True)
    for axes, (point, by_artifact) in zip(panels, errors.items(), strict=True):
        for row, artifact in enumerate(artifacts):
            values = [value for value in by_artifact.get(artifact, ()) if value > 0]
            axes.plot(values, [row] * len(values), "o", ms=4, alpha=0.4, color=MODEL_COLOURS["stn"])
        axes.axvline(eager[point], color=MODEL_COLOURS["cnn"], label="float32 eager's worst")
        axes.set(title=f"{point}, px" if point == "grid" else point, xscale="log", xlabel="error")
        axes.set_yticks(range(len(artifacts)), artifacts)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure
