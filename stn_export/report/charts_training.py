"""Draw the charts of training and of what was learned in Vega-Lite; decompose affine maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from stn_export.report.charts import (
    DASHES,
    HIGH,
    INK,
    LEGEND,
    NETWORKS,
    SHAPES,
    SOFT,
    WIDTH,
    Chart,
    Look,
    chart,
    each_its,
    figures,
    looks,
    measure,
    nominal,
    scale,
    tips,
    toggled,
)
from stn_export.results.text import percent
from stn_export.run.manifest import SUBJECT
from stn_export.run.schemas import Mean, ModelComparison

# Decomposition of affine maps into rotation, scale, shear and shift.


CORNERS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class Affine:
    """N decomposed maps, each part a tensor of N: degrees, factors, the shear's factor, pixels."""

    rotation: Tensor
    scale_x: Tensor
    scale_y: Tensor
    shear: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """Return the parts by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True)
class Frame:
    """The frame of a sampled image, H×W pixels, in a site's coordinates."""

    height: int
    width: int
    align_corners: bool = False

    @property
    def half(self) -> Tensor:
        """Return the pixels in one unit of x and of y."""
        return torch.tensor([self.width - self.align_corners, self.height - self.align_corners]).double() / 2

    @property
    def edge(self) -> Tensor:
        """Return the coordinates x and y of the right and the lower edge."""
        return torch.tensor([self.width, self.height]).double() / 2 / self.half

    def pixels(self, coordinates: Tensor) -> Tensor:
        """Convert coordinates (..., 2), x before y, to pixels from the image's upper left edge."""
        return (coordinates + self.edge) * self.half

    def windows(self, theta: Tensor) -> Tensor:
        """Return the corners of each map's window, in pixels from the image's upper left edge: N×4×2, x before y."""
        corners = torch.tensor([(*corner, 1.0) for corner in CORNERS], dtype=theta.dtype)
        return self.pixels(corners @ theta.transpose(1, 2))

    def decompose(self, theta: Tensor) -> Affine:
        """Decompose theta, which in pixels is rotation · [[1, shear], [0, 1]] · diag(scale_x, scale_y).

        The rotation is in (-180, 180] degrees and ``scale_x`` is never negative; if the map mirrors, ``scale_y`` is. A
        map that flattens the image to a line has no finite shear.

        Source: S. W. Thomas, "Decomposing a Matrix into Simple Transformations", Graphics Gems II, 1991, in two
        dimensions: the Gram-Schmidt process on the columns.
        """
        (a, b, right), (c, d, lower) = (row.unbind(1) for row in theta.unbind(1))
        across, down = self.half
        b, c = b * across / down, c * down / across
        scale_x, determinant = torch.hypot(a, c), a * d - b * c
        return Affine(
            rotation=torch.atan2(c, a).rad2deg(),
            scale_x=scale_x,
            scale_y=determinant / scale_x,
            shear=(a * b + c * d) / determinant,
            shift_x=right * across,
            shift_y=lower * down,
        )


BINS = 40
PANEL = WIDTH // 3 - 14  # of three beside each other
MIDDLE = (0.005, 0.995)  # quantiles shown in a histogram, so that one example cannot flatten it
PANELS = {  # by part: its name and unit
    "rotation": "rotation, degrees",
    "scale_x": "scale x, of the window's side",
    "scale_y": "scale y, of the window's side",
    "shear": "shear, factor",
    "shift_x": "shift x, pixels",
    "shift_y": "shift y, pixels",
    "outside": "outside the image, %",
}


def _looks(one: ModelComparison) -> dict[str, Look]:
    return looks((name, model.label, model.role) for name, model in one.models.items())


def accuracy_curves(runs: Sequence[ModelComparison]) -> Chart:
    """Draw test accuracy after each epoch: by run and network the mean, with a band from the worst to the best seed."""
    rows, colours = [], {}
    if runs[0].reference:
        colours["the published run"] = SOFT
        rows += [
            {"network": "the published run", "run": runs[0].title, "epoch": epoch, "mean": 100 * value}
            | {"low": 100 * value, "high": 100 * value}
            for epoch, value in enumerate(runs[0].reference.accuracies, 1)
        ]
    for one in runs:
        for name, look in _looks(one).items():
            values = 100 * np.array(list(one.models[name].accuracies.values()))
            colours[look.label] = look.colour
            rows += [
                {"network": look.label, "run": one.title, "epoch": epoch, "mean": mean, "low": low, "high": high}
                for epoch, (mean, low, high) in enumerate(
                    np.stack([values.mean(0), values.min(0), values.max(0)], 1).tolist(), 1
                )
            ]
    for row in rows:
        row |= {"told": f"{row['mean']:.2f} %", "seeds": f"{row['low']:.2f} to {row['high']:.2f} %"}
    last = {(row["network"], row["run"]): row for row in rows}
    y = measure("mean", "test accuracy, %")
    dashes = each_its([one.title for one in runs], DASHES)
    return chart(
        f"Test accuracy after each epoch: {runs[0].title}",
        rows,
        ", ".join(f"{row['network']} {row['told']} after {row['epoch']} epochs" for row in last.values()),
        encoding={
            "x": measure("epoch", "epoch", axis={"tickMinStep": 1}),
            "color": nominal("network", scale=scale(colours), legend=LEGEND),
            "detail": {"field": "run"},
            "opacity": {"condition": {"param": "picked", "value": 1}, "value": 0.08},
            "tooltip": tips(network="network", run="run", epoch="epoch", told="accuracy", seeds="worst to best seed"),
        },
        layer=[
            {
                "params": toggled("network"),
                "mark": {"type": "area", "fillOpacity": 0.15},
                "encoding": {"y": measure("low", "test accuracy, %"), "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {
                    "y": y,
                    "strokeDash": nominal("run", scale=scale(dashes), legend=LEGEND if len(runs) > 1 else None),
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 22},
                "encoding": {
                    "y": y,
                    "shape": nominal("network", scale=scale(each_its(colours, SHAPES)), legend=LEGEND),
                },
            },
        ],
    )


def _mean_row(mean: Mean, factor: float, unit: str) -> dict:
    low, high = (mean.mean if end is None else end for end in (mean.low, mean.high))
    interval = "one seed: none" if mean.low is None else f"{factor * low:.2f} to {factor * high:.2f}{unit}"
    ends = {"mean": factor * mean.mean, "low": factor * low, "high": factor * high}
    return ends | {"told": f"{factor * mean.mean:.2f}{unit}", "interval": interval}


def seed_accuracies(runs: Sequence[ModelComparison]) -> Chart:
    """Draw every seed's accuracy by run and network, with the mean and its interval."""
    rows, colours = [], {}
    for one in runs:
        for name, look in _looks(one).items():
            colours[look.label] = look.colour
            shared = {"run": one.title, "network": look.label} | _mean_row(one.models[name], 100, " %")
            rows += [
                shared | {"seed": seed, "accuracy": 100 * value, "own": percent(value)}
                for seed, value in one.models[name].seeds.items()
            ]
    return _seeds("Test accuracy, seed by seed", rows, colours, "test accuracy, %")


def differences(runs: Sequence[ModelComparison]) -> Chart:
    """Draw the transformer's lead in points, by run and other network: each seed, the mean and its interval."""
    rows, colours = [], {}
    for one in runs:
        for name, difference in one.differences.items():
            look = _looks(one)[name]
            colours[f"over the {look.label}"] = look.colour
            shared = {"run": one.title, "network": f"over the {look.label}"} | _mean_row(difference, 1, " points")
            rows += [
                shared | {"seed": seed, "accuracy": value, "own": f"{value:+.2f} points"}
                for seed, value in difference.seeds.items()
            ]
    return _seeds("Gain of the transformer, seed by seed", rows, colours, "points of test accuracy", nothing=True)


def _seeds(title: str, rows: list[dict], colours: Mapping[str, str], unit: str, nothing: bool = False) -> Chart:
    """Draw a dot per seed, and the mean as a diamond with its interval."""
    means = {(row["run"], row["network"]): row for row in rows}
    y = {
        "y": nominal("run", axis={"labelLimit": 220}),
        "yOffset": nominal("network", sort=list(colours)),
        "color": nominal("network", scale=scale(colours), legend=LEGEND),
    }
    tip = tips(run="run", network="network", told="mean", interval="95 %")
    x = measure("mean", unit)
    zero = [
        {
            "mark": {"type": "rule", "color": INK},
            "data": {"values": [{"zero": 0}]},
            "encoding": {"x": {"field": "zero", "type": "quantitative"}},
        }
    ]
    return chart(
        title,
        rows,
        ", ".join(f"{network} {row['told']} on average" for (_, network), row in means.items()),
        figures=figures(rows, "as drawn", run="run", network="network", seed="seed", own=unit),
        height={"step": 24},
        layer=[
            *zero * nothing,
            {
                "mark": {"type": "point", "filled": True, "size": 30, "opacity": 0.5},
                "encoding": y
                | {
                    "x": measure("accuracy", unit),
                    "tooltip": tips(run="run", network="network", seed="seed", own="its"),
                },
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": y | {"x": measure("low", unit), "x2": {"field": "high"}, "tooltip": tip},
            },
            {
                "mark": {"type": "point", "filled": True, "shape": "diamond", "size": 110, "opacity": 1},
                "encoding": y | {"x": x, "tooltip": tip},
            },
        ],
    )


def theta_histograms(parts: Mapping[str, np.ndarray], title: str) -> Chart:
    """Draw the distributions of theta's parts over all examples; ``outside`` is in percent."""
    rows, notes = [], []
    for part, values in parts.items():
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        counts, edges = np.histogram(finite, BINS, range=tuple(np.quantile(finite, MIDDLE)))
        notes.append(f"{part.replace('_', ' ')} {np.median(finite):.2f}")
        rows += [
            {"part": PANELS[part], "low": low, "high": high, "examples": count, "told": f"{low:.3g} to {high:.3g}"}
            for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
            if count
        ]
    x = measure("low", None, axis={"tickCount": 4, "format": "~r"}) | {"bin": "binned"}
    inner = {
        "width": PANEL,
        "height": 90,
        "mark": {"type": "bar", "color": NETWORKS[SUBJECT], "binSpacing": 0},
        "encoding": {
            "x": x,
            "x2": {"field": "high"},
            "y": {"field": "examples", "type": "quantitative", "axis": None},
            "tooltip": tips(part="of", told="between", examples="examples"),
        },
    }
    return chart(
        title,
        rows,
        f"medians are {', '.join(notes)}",
        facet=nominal("part", header={"labelOrient": "top"}),
        columns=3,
        spec=inner,
        resolve={"scale": {"x": "independent", "y": "independent"}},
    )


def windows(outlines: np.ndarray, frame: Frame, title: str) -> Chart:
    """Draw output windows over the frame of the sampled image; ``outlines`` are M×4×2 corners in pixels."""
    own = [(0, 0), (frame.width, 0), (frame.width, frame.height), (0, frame.height)]
    every = [("the image", own), *((f"example {index}", corners) for index, corners in enumerate(outlines.tolist()))]
    rows = [
        {"of": name, "x": x, "y": y, "order": order, "frame": name == "the image"}
        for name, corners in every
        for order, (x, y) in enumerate([*corners, corners[0]])
    ]
    low, high = (float(pick([row[axis] for row in rows for axis in "xy"])) for pick in (min, max))
    middle, half = (low + high) / 2, (high - low) / 2 + 1
    wide = half * WIDTH / HIGH  # pixels are squares; the page does the same at its own width
    ends = [{"scale": {"domain": [middle - reach, middle + reach]}, "type": "quantitative"} for reach in (wide, half)]
    return chart(
        title,
        rows,
        f"windows of {len(outlines)} examples in an image of {frame.width}×{frame.height} pixels",
        mark={"type": "line", "clip": True},
        encoding={
            "x": {"field": "x", "title": "pixels, the image's frame in bold"} | ends[0],
            "y": {"field": "y", "title": None, "sort": "descending"} | ends[1],
            "order": {"field": "order"},
            "detail": {"field": "of"},
            "color": {"condition": {"test": "datum.frame", "value": INK}, "value": NETWORKS[SUBJECT]},
            "strokeWidth": {"condition": {"test": "datum.frame", "value": 2.5}, "value": 1},
            "opacity": {"condition": {"test": "datum.frame", "value": 1}, "value": 0.4},
            "tooltip": tips(of="window of"),
        },
        usermeta={"square": True},
    )
