"""The figures of the benchmarks: each function takes plain data and returns a matplotlib figure.

An interval is the middle value, the lower and the upper bound.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from matplotlib.transforms import Bbox

from stn_export.artifacts.manifest import PLAIN
from stn_export.program.parts import PARTS
from stn_export.report.figures import CARD, INK, PALETTE, SOFT, STYLE, Look

Interval = tuple[float, float, float]
Curves = Mapping[tuple[str, str, str], Mapping[int, Interval]]  # by (runner, artifact, network) and batch
Bar = tuple[str, Mapping[int, Mapping[str, float]], Mapping[int, float]]  # name; ms by batch and part; 100 % by batch

WIDTH = 10.8  # inches, a screen page
LINES = ("-", "--", ":", "-.")
NAME_GAP = 0.05  # of an axis: a line of small type
PART_COLOURS = dict(zip(PARTS, (PALETTE[0], PALETTE[2], PALETTE[3], PALETTE[1]), strict=True))
NAMED_SHARE = 8  # %: smaller parts have no room for a number
DEVICES = {"cpu": "the CPU", "cuda": "the GPU"}
LEADER = {"arrowstyle": "-", "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3}  # from a name's left edge to its line
MARK = 6  # pixels from a point's middle to its edge
PLACES = tuple(
    (side * (9 + rise / 4), up * rise) for rise in (10, 24, 38, 52, 70) for side in (1, -1) for up in (1, -1)
)


def short_name(runner: str, artifact: str, device: str) -> str:
    """Runner and artifact for a label: neither the device, which the title has, nor the runner's name twice."""
    name = runner.replace(f"-{device}", "")
    return f"{name} {artifact.removeprefix(f'{name}-')}"


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions in 0 to 1 moved as far as needed to lie ``gap`` apart, in their order and below 1."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed, ceiling = list(positions), 1.0
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


@matplotlib.rc_context(STYLE)
def curves(values: Curves, looks: Mapping[str, Look], device: str, title: str, unit: str) -> Figure:
    """Something against batch size on two logarithmic axes, a panel a network, a line a backend, with intervals."""
    networks = [network for network in looks if any(key[2] == network for key in values)]
    figure = Figure(figsize=(WIDTH, 4.2))
    panels = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
    lines = _lines([runner for runner, _, _ in values])
    for axes, network in zip(panels, networks, strict=True):
        axes.set_title(looks[network].label, fontsize=10, fontweight="normal")
        for (runner, _, _), by_batch in _of(values, network).items():
            _curve(axes, by_batch, *lines[runner])
    batches = sorted({batch for by_batch in values.values() for batch in by_batch})
    panels[0].set(xscale="log", yscale="log", ylabel=unit)
    shown = batches[:: 1 + len(batches) // 9]
    panels[0].set_xticks(shown, [f"{batch:,}" for batch in shown])
    figure.supxlabel("batch size", fontsize=10)
    _title(figure, f"{title} against batch size on {DEVICES[device]}")
    for axes, network in zip(panels, networks, strict=True):
        axes.xaxis.set_minor_locator(NullLocator())
        _plain_numbers(axes)
        _name_ends(axes, _of(values, network), device, lines)
    return figure


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold")


def _of(values: Curves, network: str) -> Curves:
    return {key: by_batch for key, by_batch in values.items() if key[2] == network}


def _lines(runners: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and line style by runner: a family, such as all of ONNX Runtime's, shares its colour."""
    families: dict[str, list[str]] = {}
    for runner in dict.fromkeys(runners):
        families.setdefault(runner.split("-")[0], []).append(runner)
    return {
        runner: (PALETTE[colour % len(PALETTE)], LINES[style % len(LINES)])
        for colour, members in enumerate(families.values())
        for style, runner in enumerate(members)
    }


def _curve(axes: Axes, by_batch: Mapping[int, Interval], colour: str, style: str) -> None:
    batches = sorted(by_batch)
    middle, low, high = np.array([by_batch[batch] for batch in batches]).T
    axes.errorbar(
        batches, middle, (middle - low, high - middle), color=colour, ls=style, marker="o", ms=3.5, lw=1.4, capsize=2.5
    )


def _plain_numbers(axes: Axes) -> None:
    """0.1 and 20,000 instead of powers of ten, and marks between them where the axis spans little."""
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _name_ends(axes: Axes, values: Curves, device: str, lines: Mapping[str, tuple[str, str]]) -> None:
    """Each line's backend in its colour: right of the axes, moved apart, or beside its end where that is earlier."""
    last = max(max(by_batch) for by_batch in values.values())
    ends = {key: (max(by_batch), by_batch[max(by_batch)][0]) for key, by_batch in values.items()}
    full = {key: value for key, (batch, value) in ends.items() if batch == last}
    low, high = np.log(axes.get_ylim())
    heights = [float((np.log(value) - low) / (high - low)) for value in full.values()]
    placed = dict(zip(full, spread(heights, min(NAME_GAP, 1 / len(full))), strict=True))
    for (runner, artifact, network), end in ends.items():
        colour, height = lines[runner][0], placed.get((runner, artifact, network))
        where = {"xytext": (1.06, height), "textcoords": "axes fraction"}
        where |= {"arrowprops": {"color": colour, "lw": 0.5, "alpha": 0.7} | LEADER}
        beside = {"xytext": (7, 0), "textcoords": "offset points"}
        name = short_name(runner, artifact, device)
        axes.annotate(name, end, va="center", fontsize=8, color=colour, **(beside if height is None else where))


@matplotlib.rc_context(STYLE)
def overhead_bars(ratios: Mapping[str, Mapping[int, Interval]], labels: tuple[str, str], device: str) -> Figure:
    """Time of one network over another's (the second label), by backend, a panel a batch size."""
    ours, other = labels
    backends = list(ratios)
    batches = sorted({batch for by_batch in ratios.values() for batch in by_batch})
    figure = Figure(figsize=(WIDTH, 1.3 + 0.32 * len(backends)))
    panels = figure.subplots(1, len(batches), sharex=True, sharey=True, squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        for row, backend in enumerate(backends):
            if interval := ratios[backend].get(batch):
                _ratio_bar(axes, row, interval)
        axes.axvline(1, color=PALETTE[1], lw=1.5)
        axes.set_title(f"batch {batch:,}", fontsize=10, fontweight="normal")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.25, y=0.02)
    panels[0].set_yticks(range(len(backends)), backends)
    panels[0].invert_yaxis()
    figure.supxlabel(f"time of the {ours} ÷ time of the {other}, which is the line at 1", fontsize=10)
    _title(figure, f"What the {ours} costs on {DEVICES[device]}, with 95 % intervals")
    return figure


def _ratio_bar(axes: Axes, row: int, interval: Interval) -> None:
    ratio, low, high = interval
    axes.barh(row, ratio, 0.62, color=PALETTE[0], alpha=0.75)
    axes.errorbar(ratio, row, xerr=[[ratio - low], [high - ratio]], color=INK, capsize=3, lw=1.2)
    axes.annotate(f"{ratio:.2f}", (high, row), (6, 0), textcoords="offset points", va="center", fontsize=8.5)


@matplotlib.rc_context(STYLE)
def pareto(points: Sequence[Mapping], front: Sequence[Mapping], looks: Mapping[str, Look], device: str) -> Figure:
    """Accuracy against the latency of one example; the points that no other beats in both are named.

    Args:
        points: each with ``name``, ``network``, ``milliseconds`` and ``accuracy`` (0 to 1).
        front: those of them on the Pareto front, the fastest first.
        looks: of the networks.
        device: for the title.
    """
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.add_subplot()
    steps = [(point["milliseconds"], 100 * point["accuracy"]) for point in front]
    axes.step(*zip(*steps, strict=True), where="post", color=SOFT, lw=1.2, ls="--", zorder=1)
    for point in points:
        look = looks[point["network"]]
        filled = look.colour if point in front else CARD
        mark = {"marker": _marker(look), "mfc": filled, "mec": look.colour}
        axes.plot(point["milliseconds"], 100 * point["accuracy"], ls="", ms=7, mew=1.4, **mark)
    axes.set(xscale="log", xlabel="median latency of one example, ms (left is better)", ylabel="accuracy, %")
    axes.set_title(f"Accuracy against latency on {DEVICES[device]}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(0.12, 0.3)
    keys = [
        Line2D([], [], ls="", marker=_marker(look), color=look.colour, label=look.label)
        for network, look in looks.items()
        if any(point["network"] == network for point in points)
    ]
    keys.append(Line2D([], [], ls="--", color=SOFT, label="Pareto front (filled points)"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    place_names(axes, steps, [f"{point['name']}, {point['milliseconds']:.3g} ms" for point in front])
    return figure


def _marker(look: Look) -> str:
    return "s" if look.role == PLAIN else "o"


def place_names(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """A name beside each point, in the first of ``PLACES`` within the axes, clear of other names, marks and lines.

    Where there is no such place, the point stays without a name.
    """
    axes.figure.draw_without_rendering()
    frame, taken = axes.get_window_extent(), _marks(axes)
    for point, name in zip(points, names, strict=True):
        for offset in PLACES:
            side = "left" if offset[0] > 0 else "right"
            line = {"arrowstyle": "-", "color": SOFT, "lw": 0.6, "relpos": (float(side == "right"), 0.5)}
            label = axes.annotate(
                name, point, offset, textcoords="offset points", ha=side, va="center", fontsize=8.5, arrowprops=line
            )
            label.get_window_extent()  # puts it in place
            box = Text.get_window_extent(label)  # without the line to its point
            if frame.contains(*box.min) and frame.contains(*box.max) and not any(map(box.overlaps, taken)):
                taken.append(box)
                break
            label.remove()


def _marks(axes: Axes) -> list[Bbox]:
    """The boxes, in pixels, of all points drawn and of the stretches of all stepped lines."""
    boxes = []
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_path().vertices)
        if line.get_drawstyle() == "default":
            boxes += [Bbox.from_extents(*(corner - MARK), *(corner + MARK)) for corner in corners]
        else:
            for (left, lower), (right, upper) in pairwise(corners):
                boxes += [Bbox([(left, lower), (right, lower)]), Bbox([(right, lower), (right, upper)])]
    return boxes


@matplotlib.rc_context(STYLE)
def breakdown_bars(bars: Sequence[Bar], device: str) -> Figure:
    """Time a call by part of the network, stacked, as shares of the subject's in the same runner, and in ms."""
    batches = sorted({batch for _, by_batch, _ in bars for batch in by_batch})
    figure = Figure(figsize=(WIDTH, 1.6 + 0.3 * len(bars)))
    panels = figure.subplots(1, len(batches), sharex=True, sharey=True, squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        _stack(axes, [(by_batch.get(batch, {}), whole.get(batch, 1.0)) for _, by_batch, whole in bars])
        axes.set_xlabel("% of the first network's time in that runner")
        axes.margins(x=0.16, y=0.02)
        axes.set_title(f"batch {batch:,}", fontsize=10, fontweight="normal")
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(bars)), [name for name, _, _ in bars])
    panels[0].invert_yaxis()
    _title(figure, f"Where the time goes on {DEVICES[device]}: profiled calls, which are slower than others")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), frameon=False)
    return figure


def _stack(axes: Axes, bars: Sequence[tuple[Mapping[str, float], float]]) -> None:
    """A stacked bar for each mapping of parts to milliseconds and whole that is 100 %; its sum behind it."""
    left = np.zeros(len(bars))
    for part in PARTS:
        widths = np.array([100 * parts.get(part, 0.0) / whole for parts, whole in bars])
        drawn = axes.barh(range(len(bars)), widths, 0.7, left, color=PART_COLOURS[part], label=part)
        shares = [f"{width:.0f} %" if width > NAMED_SHARE else "" for width in widths]
        axes.bar_label(drawn, shares, label_type="center", fontsize=8, color=CARD)
        left += widths
    for row, (parts, _) in enumerate(bars):
        total = f"{sum(parts.values()):.3g} ms" if parts else ""
        axes.annotate(total, (left[row], row), (5, 0), textcoords="offset points", va="center", fontsize=8)
