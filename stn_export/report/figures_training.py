"""The figures of training: each function takes plain data and returns a matplotlib figure.

Accuracies are in [0, 1] and drawn in percent; differences are in points.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import MaxNLocator

from stn_export.comparison.estimates import Estimate
from stn_export.config import IMAGE_SHAPE, MODEL_LABELS
from stn_export.report.figures import INK, MODEL_COLOURS, PALETTE, SOFT, STYLE

WIDTH = 10.8  # inches, a screen page
LINES = ("-", "--", ":", "-.")
JITTER = 0.16  # of the distance between two models: how far the seeds' points spread
BINS = 40
MIDDLE = (0.005, 0.995)  # quantiles: what a histogram shows, lest one image flatten it
XY = {"x": PALETTE[0], "y": PALETTE[1]}
PANELS = (  # title, unit, parts with their letters
    ("rotation", "degrees", {"rotation": ""}),
    ("scale", "of the window's side", {"scale_x": "x", "scale_y": "y"}),
    ("shear", "factor", {"shear": ""}),
    ("shift", "pixels", {"shift_x": "x", "shift_y": "y"}),
    ("outside the image", "% of the output grid", {"outside": ""}),
)

Seeds = tuple[Mapping[int, float], Estimate]  # a value by seed, and their mean
Curves = Mapping[str, Sequence[Sequence[float]]]  # by model a curve a seed


@matplotlib.rc_context(STYLE)
def accuracy_curves(groups: Sequence[tuple[str, Curves]], reference: Sequence[float]) -> Figure:
    """Test accuracy after each epoch: by title and model the mean, with a band from the worst to the best seed.

    The reference run lies below, where there is one.
    """
    figure = Figure(figsize=(WIDTH, 4))
    axes = figure.add_subplot()
    if reference:
        axes.plot(_epochs(reference), _percent(reference), color=SOFT, lw=4, alpha=0.5, label="reference run")
    for (title, curves), line in zip(groups, LINES * len(groups), strict=False):
        for model, seeds in curves.items():
            values, colour = _percent(seeds), MODEL_COLOURS[model]
            label = MODEL_LABELS[model] + (f" ({title})" if len(groups) > 1 else "")
            if len(values) > 1:
                label += f", {len(values)} seeds: mean, worst to best"
                axes.fill_between(_epochs(values[0]), values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
            axes.plot(_epochs(values[0]), values.mean(axis=0), line, color=colour, marker=".", label=label)
    axes.set(title=f"Test accuracy: {groups[0][0]}", xlabel="epoch", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="lower right", frameon=False)
    return figure


def _epochs(values: Sequence[float]) -> range:
    return range(1, len(values) + 1)


def _percent(values: Sequence) -> np.ndarray:
    return 100 * np.asarray(values)


@matplotlib.rc_context(STYLE)
def seed_accuracies(panels: Sequence[tuple[str, Mapping[str, Seeds]]]) -> Figure:
    """A panel each title: every seed's accuracy by model, a line through each seed's, the mean and its interval."""
    figure = Figure(figsize=(WIDTH, 3.6))
    for axes, (title, models) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        places = {model: index for index, model in enumerate(models)}
        for seed in sorted({seed for values, _ in models.values() for seed in values}):
            shared = [(places[model], 100 * values[seed]) for model, (values, _) in models.items() if seed in values]
            axes.plot(*zip(*shared, strict=True), color=SOFT, lw=0.8, alpha=0.5)
        for model, (values, found) in models.items():
            axes.plot([places[model]] * len(values), _percent(list(values.values())), "o", **_dot(model))
            _interval(axes, places[model] + JITTER, found, 100, MODEL_COLOURS[model], vertical=True)
        axes.set_xticks(range(len(models)), [MODEL_LABELS[model].replace(" ", "\n", 1) for model in models])
        axes.set_title(title)
        axes.set_xlim(-0.5, len(models) - 0.5)
        axes.grid(axis="x", visible=False)
    figure.axes[0].set_ylabel("test accuracy, %")
    return figure


@matplotlib.rc_context(STYLE)
def differences(rows: Sequence[tuple[str, str, Seeds]]) -> Figure:
    """How many points the transformer is ahead, by title and other model: each seed, the mean and its interval."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * len(rows)))
    axes = figure.add_subplot()
    for place, (_, model, (values, found)) in enumerate(rows):
        axes.plot(list(values.values()), [place - JITTER] * len(values), "o", **_dot(model))
        _interval(axes, place + JITTER, found, 1, MODEL_COLOURS[model], vertical=False)
    axes.axvline(0, color=INK, lw=1)
    labels = [f"{title}\nover the {MODEL_LABELS[model]}" for title, model, _ in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(title="Gain of the spatial transformer", xlabel="points of test accuracy, seed by seed")
    axes.grid(axis="y", visible=False)
    return figure


def _dot(model: str) -> dict:
    return {"color": MODEL_COLOURS[model], "ms": 4.5, "alpha": 0.55, "markeredgewidth": 0}


def _interval(axes: Axes, place: float, found: Estimate, factor: float, colour: str, vertical: bool) -> None:
    """The mean as a diamond and its interval as a bar."""
    mean = factor * found.mean
    reach = factor * (found.high - found.mean) if found.count > 1 else 0
    point = {"x": place, "y": mean, "yerr": reach} if vertical else {"x": mean, "y": place, "xerr": reach}
    axes.errorbar(**point, fmt="D", ms=5, color=colour, capsize=4, lw=1.6)


@matplotlib.rc_context(STYLE)
def theta_histograms(parts: Mapping[str, np.ndarray], outlines: np.ndarray) -> Figure:
    """Distributions of theta's parts over the test set, and where in the input some output windows lie.

    Args:
        parts: by name N values; ``outside`` in percent.
        outlines: windows of some images, M×4×2 corners in pixels.
    """
    figure = Figure(figsize=(WIDTH, 5))
    grid = figure.subplots(2, 3).flat
    for axes, (title, unit, names) in zip(grid, PANELS, strict=False):
        shown = {letter: parts[name] for name, letter in names.items()}
        _histogram(axes, shown)
        axes.set(title=title, xlabel=unit, yticks=[])
        axes.spines["left"].set_visible(False)
    figure.axes[0].set_ylabel("test images")
    figure.axes[3].set_ylabel("test images")
    _outlines(figure.axes[5], outlines)
    return figure


def _histogram(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    """Histograms by letter over one range, the middle of all values."""
    low, high = np.quantile(np.concatenate(list(values.values())), MIDDLE)
    for letter, those in values.items():
        axes.hist(those, BINS, range=(low, high), color=XY.get(letter, PALETTE[0]), alpha=0.6, label=letter)
    axes.locator_params(axis="x", nbins=4)  # more would run into each other where a part hardly varies
    if len(values) > 1:
        axes.legend(frameon=False)


def _outlines(axes: Axes, outlines: np.ndarray) -> None:
    """Windows over the image's frame, drawn in pixels."""
    size = IMAGE_SHAPE[-1]
    for corners in outlines:
        axes.add_patch(Polygon(corners, fill=False, color=PALETTE[0], lw=0.8, alpha=0.35))
    axes.add_patch(Rectangle((0, 0), size, size, fill=False, color=INK, lw=1.6))
    low, high = min(-1.0, outlines.min()), max(size + 1.0, outlines.max())
    axes.set(xlim=(low, high), ylim=(high, low), aspect="equal", xlabel="pixels, the image's frame in bold")
    axes.set_title(f"windows of {len(outlines)} images")
