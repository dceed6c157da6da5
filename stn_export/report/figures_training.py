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

from stn_export.artifacts.training import Comparison, Mean
from stn_export.report.figures import INK, PALETTE, SOFT, STYLE, Look, looks
from stn_export.report.thetas import Frame

WIDTH = 10.8  # inches, a screen page
LINES = ("-", "--", ":", "-.")
JITTER = 0.16  # of the distance between two models: how far the seeds' points spread
BINS = 40
MIDDLE = (0.005, 0.995)  # quantiles: what a histogram shows, lest one example flatten it
XY = {"x": PALETTE[0], "y": PALETTE[1]}
PANELS = (  # title, unit, parts with their letters
    ("rotation", "degrees", {"rotation": ""}),
    ("scale", "of the window's side", {"scale_x": "x", "scale_y": "y"}),
    ("shear", "factor", {"shear": ""}),
    ("shift", "pixels", {"shift_x": "x", "shift_y": "y"}),
    ("outside the image", "% of the output grid", {"outside": ""}),
)


@matplotlib.rc_context(STYLE)
def accuracy_curves(runs: Sequence[Comparison]) -> Figure:
    """Test accuracy after each epoch: by run and network the mean, with a band from the worst to the best seed.

    The reference run lies below, where there is one.
    """
    figure = Figure(figsize=(WIDTH, 4))
    axes = figure.add_subplot()
    if runs[0].reference:
        reference = runs[0].reference.accuracies
        axes.plot(_epochs(reference), _percent(reference), color=SOFT, lw=4, alpha=0.5, label="reference run")
    for one, line in zip(runs, LINES * len(runs), strict=False):
        for name, look in _looks(one).items():
            values = _percent(list(one.models[name].accuracies.values()))
            label = look.label + (f" ({one.title})" if len(runs) > 1 else "")
            if len(values) > 1:
                label += f", {len(values)} seeds: mean, worst to best"
                axes.fill_between(_epochs(values[0]), values.min(0), values.max(0), color=look.colour, alpha=0.15, lw=0)
            axes.plot(_epochs(values[0]), values.mean(axis=0), line, color=look.colour, marker=".", label=label)
    axes.set(title=f"Test accuracy: {runs[0].title}", xlabel="epoch", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.legend(loc="lower right", frameon=False)
    return figure


def _looks(one: Comparison) -> dict[str, Look]:
    return looks((name, found.label, found.role) for name, found in one.models.items())


def _epochs(values: Sequence[float]) -> range:
    return range(1, len(values) + 1)


def _percent(values: Sequence) -> np.ndarray:
    return 100 * np.asarray(values)


@matplotlib.rc_context(STYLE)
def seed_accuracies(runs: Sequence[Comparison]) -> Figure:
    """A panel each run: every seed's accuracy by network, a line through each seed's, the mean and its interval."""
    figure = Figure(figsize=(WIDTH, 3.6))
    for axes, one in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        shown = _looks(one)
        values = [one.models[name].seeds for name in shown]
        for seed in sorted({seed for each in values for seed in each}):
            shared = [(place, 100 * each[seed]) for place, each in enumerate(values) if seed in each]
            axes.plot(*zip(*shared, strict=True), color=SOFT, lw=0.8, alpha=0.5)
        for place, (name, look) in enumerate(shown.items()):
            axes.plot([place] * len(values[place]), _percent(list(values[place].values())), "o", **_dot(look.colour))
            _interval(axes, place + JITTER, one.models[name], 100, look.colour, vertical=True)
        axes.set_xticks(range(len(shown)), [look.label.replace(" ", "\n", 1) for look in shown.values()])
        axes.set_title(one.title)
        axes.set_xlim(-0.5, len(shown) - 0.5)
        axes.grid(axis="x", visible=False)
    figure.axes[0].set_ylabel("test accuracy, %")
    return figure


@matplotlib.rc_context(STYLE)
def differences(runs: Sequence[Comparison]) -> Figure:
    """How many points the transformer is ahead, by run and other network: each seed, the mean and its interval."""
    rows = [(one, name, found) for one in runs for name, found in one.differences.items()]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.42 * len(rows)))
    axes = figure.add_subplot()
    for place, (one, name, found) in enumerate(rows):
        colour = _looks(one)[name].colour
        axes.plot(list(found.seeds.values()), [place - JITTER] * len(found.seeds), "o", **_dot(colour))
        _interval(axes, place + JITTER, found, 1, colour, vertical=False)
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(rows)), [f"{one.title}\nover the {found.label}" for one, _, found in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(title="Gain of the transformer", xlabel="points of test accuracy, seed by seed")
    axes.grid(axis="y", visible=False)
    return figure


def _dot(colour: str) -> dict:
    return {"color": colour, "ms": 4.5, "alpha": 0.55, "markeredgewidth": 0}


def _interval(axes: Axes, place: float, found: Mean, factor: float, colour: str, vertical: bool) -> None:
    """The mean as a diamond and its interval as a bar."""
    mean = factor * found.mean
    reach = 0 if found.high is None else factor * (found.high - found.mean)
    point = {"x": place, "y": mean, "yerr": reach} if vertical else {"x": mean, "y": place, "xerr": reach}
    axes.errorbar(**point, fmt="D", ms=5, color=colour, capsize=4, lw=1.6)


@matplotlib.rc_context(STYLE)
def theta_histograms(parts: Mapping[str, np.ndarray], outlines: np.ndarray, frame: Frame) -> Figure:
    """Distributions of theta's parts over all examples, and where in the image some output windows lie.

    Args:
        parts: by name N values; ``outside`` in percent.
        outlines: windows of some examples, M×4×2 corners in pixels.
        frame: the sampled image.
    """
    figure = Figure(figsize=(WIDTH, 5))
    grid = figure.subplots(2, 3).flat
    for axes, (title, unit, names) in zip(grid, PANELS, strict=False):
        shown = {letter: parts[name] for name, letter in names.items()}
        _histogram(axes, shown)
        axes.set(title=title, xlabel=unit, yticks=[])
        axes.spines["left"].set_visible(False)
    figure.axes[0].set_ylabel("examples")
    figure.axes[3].set_ylabel("examples")
    _outlines(figure.axes[5], outlines, frame)
    return figure


def _histogram(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    """Histograms by letter over one range, the middle of all values."""
    known = np.concatenate(list(values.values()))
    if not np.isfinite(known).any():
        return
    low, high = np.quantile(known[np.isfinite(known)], MIDDLE)
    for letter, those in values.items():
        axes.hist(those, BINS, range=(low, high), color=XY.get(letter, PALETTE[0]), alpha=0.6, label=letter)
    axes.locator_params(axis="x", nbins=4)  # more would run into each other where a part hardly varies
    if len(values) > 1:
        axes.legend(frameon=False)


def _outlines(axes: Axes, outlines: np.ndarray, frame: Frame) -> None:
    """Windows over the image's frame, drawn in pixels."""
    for corners in outlines:
        axes.add_patch(Polygon(corners, fill=False, color=PALETTE[0], lw=0.8, alpha=0.35))
    axes.add_patch(Rectangle((0, 0), frame.width, frame.height, fill=False, color=INK, lw=1.6))
    low = np.minimum(outlines.min((0, 1)), 0) - 1
    high = np.maximum(outlines.max((0, 1)), (frame.width, frame.height)) + 1
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xlabel="pixels, the image's frame in bold")
    axes.set_title(f"windows of {len(outlines)} examples")
