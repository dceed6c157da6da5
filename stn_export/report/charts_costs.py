"""Draw the charts of timings and of errors in Vega-Lite; see ``charts``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stn_export.program.sites import PARTS
from stn_export.report.charts import (
    DARK_PARTS,
    DASHES,
    DEVICES,
    INK,
    LEGEND,
    MOST_LINES,
    NAMED_SHARE,
    NETWORKS,
    PART_COLOURS,
    PLAIN,
    RUNNERS,
    SHAPES,
    SOFT,
    SUBJECT,
    Bar,
    Chart,
    Curves,
    Interval,
    Look,
    Point,
    Spec,
    chart,
    each_its,
    figures,
    first_lines,
    measure,
    nominal,
    scale,
    tips,
)
from stn_export.results.statistics import share_interval
from stn_export.results.text import listed, percent, significant, span


def family(runner: str) -> str:
    """Return the family of runners with the same colour: ``onnxruntime`` for all of ONNX Runtime's."""
    return runner.split("-")[0]


def short_name(runner: str, artifact: str, device: str) -> str:
    """Return runner and artifact for a label: without the device, which the title has, or the runner's name twice."""
    name = runner.replace(f"-{device}", "")
    return f"{name} {artifact.removeprefix(f'{name}-')}".strip()


@dataclass(frozen=True)
class Unit:
    """What curves are in: a name for their axis, a short one for a value, and whether less is better."""

    axis: str
    short: str
    less_is_better: bool


MS = Unit("ms a batch", "ms", True)
PER_SECOND = Unit("examples a second", "examples a second", False)


def ranked(values: Curves, looks: Mapping[str, Look], unit: Unit) -> list[tuple[str, str, str]]:
    """Return the lines' keys, the first ones to draw first: of the network under test its best, and one of another."""
    sign = 1 if unit.less_is_better else -1
    best = {key: min(sign * estimate.middle for estimate in by_batch.values()) for key, by_batch in values.items()}
    ordered = sorted(values, key=best.__getitem__)
    ours = [key for key in ordered if looks[key[2]].role == SUBJECT]
    others = [key for key in ordered if key not in ours]
    first = ours[: MOST_LINES - min(1, len(others))]
    first += others[: MOST_LINES - len(first)]
    return first + [key for key in (*ours, *others) if key not in first]


def _by_batch(values: Mapping[int, Interval], unit: Unit) -> list[Spec]:
    """Return a row of a line's chart for each batch size, the smallest first."""
    return [
        {"batch": batch, "value": middle, "low": low, "high": high}
        | {"told": f"{significant(middle)} {unit.short}{marks}", "interval": span(low, high)}
        for batch, (middle, low, high, marks) in sorted(values.items())
    ]


def curves(values: Curves, looks: Mapping[str, Look], device: str, title: str, unit: Unit) -> Chart:
    """Draw a value against batch size, one line per backend and network, with intervals."""
    keys = ranked(values, looks, unit)
    several = len({network for _, _, network in keys}) > 1
    series = {key: short_name(*key[:2], device) for key in keys}
    lines = {key: f"{looks[key[2]].label}, {series[key]}" if several else series[key] for key in keys}
    rows = [
        {"series": series[key], "network": looks[key[2]].label, "line": lines[key]} | drawn
        for key in keys
        for drawn in _by_batch(values[key], unit)
    ]
    own = values[keys[0]]
    batch = (min if unit.less_is_better else max)(own, key=lambda batch: own[batch].middle)
    best = f"{significant(own[batch].middle)} {unit.short}{own[batch].marks} at batch {batch:,}"
    families = each_its(dict.fromkeys(family(runner) for runner, _, _ in keys), RUNNERS)
    colours = {series[key]: families[family(key[0])] for key in keys}
    shapes = each_its(colours, SHAPES)
    legend = LEGEND | {"values": list(dict.fromkeys(series[key] for key in keys[:MOST_LINES]))}
    dashes = each_its(dict.fromkeys(row["network"] for row in rows), DASHES)
    headings = {"series": "runner and file", "network": "network", "batch": "batch"}
    shared = {
        "x": measure("batch", "batch size", "log", axis={"values": sorted({row["batch"] for row in rows})}),
        "color": nominal("series", "runner and file", scale=scale(colours), legend=legend),
        "detail": {"field": "line"},
        "tooltip": tips(**headings, told=title, interval="95 %"),
    }
    y = measure("value", unit.axis, "log")
    return chart(
        f"{title} against batch size on {DEVICES[device]}",
        rows,
        f"{looks[keys[0][2]].label} in {series[keys[0]]} is best with {best}",
        figures=figures(rows, "the network under test first, the best first", **headings, told=title, interval="95 %"),
        **first_lines(list(dict.fromkeys(lines.values()))),
        encoding=shared,
        layer=[
            {"mark": "rule", "encoding": {"y": measure("low", unit.axis, "log"), "y2": {"field": "high"}}},
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": y, "strokeDash": nominal("network", scale=scale(dashes), legend=LEGEND)},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {"y": y, "shape": nominal("series", "runner and file", scale=scale(shapes), legend=legend)},
            },
        ],
    )


def ratios(values: Mapping[str, Mapping[int, Interval]], labels: tuple[str, str], device: str) -> Chart:
    """Draw the time of one network divided by another's (the second label), by backend and batch, with intervals."""
    ours, other = labels
    rows: list[Spec] = [
        {"backend": backend, "batch": f"batch {batch:,}", "value": middle, "low": low, "high": high}
        | {"told": f"{significant(middle)} ×{marks}", "interval": span(low, high)}
        for backend, by_batch in values.items()
        for batch, (middle, low, high, marks) in by_batch.items()
    ]
    least, most = (pick(rows, key=lambda row: row["value"]) for pick in (min, max))
    batches = each_its(sorted({row["batch"] for row in rows}, key=lambda text: (len(text), text)), SHAPES)
    y = nominal("backend", axis={"labelLimit": 220})
    offset = nominal("batch", sort=list(batches))
    shared = {"y": y, "yOffset": offset, "tooltip": tips(backend="in", batch="batch", told="ratio", interval="95 %")}
    x = measure("value", f"latency of the {ours} ÷ latency of the {other} (vertical line: 1, no overhead)")
    return chart(
        f"What the {ours} costs on {DEVICES[device]}",
        rows,
        f"it takes {least['told']} to {most['told']} the time of the {other}, by runner and batch",
        height={"step": 16},
        layer=[
            {
                "mark": {"type": "rule", "color": NETWORKS[PLAIN], "strokeWidth": 2, "strokeDash": DASHES[1]},
                "data": {"values": [{"one": 1}]},
                "encoding": {"x": {"field": "one", "type": "quantitative"}},
            },
            {
                "mark": {"type": "rule", "color": NETWORKS[SUBJECT], "strokeWidth": 2},
                "encoding": shared | {"x": measure("low", x["title"]), "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "color": NETWORKS[SUBJECT], "opacity": 1},
                "encoding": shared | {"x": x, "shape": nominal("batch", scale=scale(batches), legend=LEGEND)},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 7},
                "encoding": {"y": y, "yOffset": offset, "x": measure("high", x["title"]), "text": {"field": "told"}},
            },
        ],
    )


def pareto(points: Sequence[Point], front: Sequence[Point], looks: Mapping[str, Look], device: str) -> Chart:
    """Draw accuracy against the latency of one example, the Pareto front with names and intervals of the accuracy.

    Args:
        points: all programs.
        front: those of them on the Pareto front, the fastest first.
        looks: of the networks.
        device: for the title.
    """
    rows = [_pareto_row(point, front, looks) for point in sorted(points, key=lambda point: point.row.median.middle)]
    shown = {looks[point.row.network].label: looks[point.row.network] for point in points}
    colours = scale({label: look.colour for label, look in shown.items()})
    shapes = scale(each_its(shown, SHAPES))
    x = measure("ms", "median latency of one example, ms (left is better)", "log")
    y = measure("accuracy", "accuracy, %")
    best = {"transform": [{"filter": "datum.front"}]}
    headings = {"name": "file", "network": "network", "told": "latency", "interval": "95 %, ms"}
    headings |= {"share": "accuracy", "shares": "95 %, accuracy"}
    ordered = sorted(rows, key=lambda row: not row["front"])
    chosen = [f"{point.name} ({_milliseconds(point)}, {percent(point.scored.accuracy)})" for point in front]
    return chart(
        f"Accuracy against latency on {DEVICES[device]}",
        rows,
        f"nothing is measurably faster and no less accurate than {listed(chosen)}",
        figures=figures(ordered, "the Pareto front first, then the fastest first", **headings, best="on the front"),
        encoding={"x": x, "y": y},
        layer=[
            {"mark": {"type": "line", "interpolate": "step-after", "color": SOFT, "strokeDash": [4, 3]}} | best,
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.6},
                "encoding": {
                    "y": measure("low", "accuracy, %"),
                    "y2": {"field": "high"},
                    "color": nominal("network", scale=colours, legend=LEGEND),
                },
            }
            | best,
            {
                "mark": {"type": "point", "size": 70, "strokeWidth": 2},
                "encoding": {
                    "color": nominal("network", scale=colours, legend=LEGEND),
                    "shape": nominal("network", scale=shapes, legend=LEGEND),
                    "fillOpacity": {"condition": {"test": "datum.front", "value": 1}, "value": 0},
                    "fill": nominal("network", scale=colours, legend=None),
                    "tooltip": tips(**headings),
                },
            },
            *(
                {
                    "mark": {"type": "text", "align": align, "dx": shift, "dy": rise, "limit": 200},
                    "transform": [{"filter": f"datum.front && datum.left == {left} && datum.place % 2 == {odd}"}],
                    "encoding": {"text": {"field": "name"}},
                }
                for odd, rise in enumerate((14, -12))
                for left, align, shift in (("true", "right", -8), ("false", "left", 8))
                if any(row["front"] and (row["left"], row["place"] % 2) == (left == "true", odd) for row in rows)
            ),
        ],
    )


def _milliseconds(point: Point) -> str:
    return f"{significant(1e3 * point.row.median.middle)} ms{point.marks}"


def _pareto_row(point: Point, front: Sequence[Point], looks: Mapping[str, Look]) -> Spec:
    row, score, on_front = point.row, point.scored, point in front
    low, high = share_interval(score.accuracy, score.examples)
    return {
        "name": point.name,
        "network": looks[row.network].label,
        "ms": 1e3 * row.median.middle,
        "accuracy": 100 * score.accuracy,
        "low": 100 * low,
        "high": 100 * high,
        "front": on_front,
        "best": "yes" if on_front else "",
        "place": front.index(point) if on_front else 0,
        "left": on_front and len(front) > 1 and point is front[-1],  # of the last point: right of it there is no room
        "told": _milliseconds(point),
        "interval": span(1e3 * row.median.low, 1e3 * row.median.high),
        "share": percent(score.accuracy),
        "shares": f"{100 * low:.2f} to {100 * high:.2f} %",
    }


def breakdown(bars: Sequence[Bar], device: str) -> Chart:
    """Draw the time of a call by part, stacked, as shares of that of the network under test in the same runner."""
    rows: list[Spec] = [
        {
            "name": f"{name}, batch {batch:,}",
            "part": part,
            "share": parts[part] / whole[batch],
            "order": PARTS.index(part),
            "told": f"{significant(parts[part])} ms",
            "percent": f"{100 * parts[part] / whole[batch]:.0f} %",
            "middle": (sum(parts.get(other, 0.0) for other in PARTS[: PARTS.index(part)]) + parts[part] / 2)
            / whole[batch],
        }
        for name, by_batch, whole in bars
        for batch, parts in by_batch.items()
        for part in PARTS
        if parts.get(part) and batch in whole
    ]
    longest = max((row for row in rows if row["name"] == rows[0]["name"]), key=lambda row: row["share"])
    y = nominal("name", axis={"labelLimit": 330})
    x = {"type": "quantitative", "title": "share of the first network's time in that runner", "axis": {"format": "%"}}
    return chart(
        f"Time per part of the network on {DEVICES[device]}, in profiled calls, which are slower than others",
        rows,
        f"most goes into {longest['part']}, {longest['percent']} in {longest['name']}",
        figures=figures(rows, "as drawn", name="in", part="part", told="time", percent="share"),
        height={"step": 24},
        layer=[
            {
                "mark": {"type": "bar", "stroke": "var(--card)"},
                "encoding": {
                    "y": y,
                    "x": x | {"field": "share", "stack": "zero"},
                    "color": nominal("part", scale=scale(PART_COLOURS), legend=LEGEND | {"columns": 4}),
                    "order": {"field": "order"},
                    "tooltip": tips(name="in", part="part", told="time", percent="share"),
                },
            },
            {
                "mark": {"type": "text", "fontSize": 10},
                "transform": [{"filter": f"datum.share > {NAMED_SHARE}"}],
                "encoding": {
                    "y": y,
                    "x": x | {"field": "middle"},
                    "text": {"field": "percent"},
                    "color": {
                        "condition": {"test": f"indexof({list(DARK_PARTS)}, datum.part) >= 0", "value": "#fff"},
                        "value": "#111827",
                    },
                },
            },
        ],
    )


def error_strips(
    errors: Mapping[str, Mapping[str, Sequence[float | None]]], eager: Mapping[str, float | None]
) -> dict[str, Chart]:
    """Draw errors against float64: a chart per kind of point, a dot per artifact and test input, a line for eager."""
    charts = {}
    for kind, by_artifact in errors.items():
        rows: list[Spec] = [
            {"artifact": artifact, "error": value, "told": f"{value:.1e}"}
            for artifact, values in by_artifact.items()
            for value in values
            if value
        ]
        worst = {row["artifact"]: row for row in sorted(rows, key=lambda row: row["error"])}
        unit = "grid, pixels" if kind == "grid" else kind
        own = [{"own": eager[kind], "told": f"{eager[kind]:.1e}"}] if eager.get(kind) else []
        x = measure("error", f"error at {unit}; the line is float32 eager's own worst", "log", axis={"format": ".0e"})
        if rows:
            charts[kind] = chart(
                f"Errors against float64: {unit}",
                rows,
                f"the largest is {list(worst.values())[-1]['told']}, of {list(worst)[-1]}",
                figures=figures(
                    sorted(worst.values(), key=lambda row: row["error"]),
                    "the smallest error first",
                    artifact="artifact",
                    told="largest error",
                ),
                height={"step": 18},
                layer=[
                    {
                        "mark": {"type": "rule", "color": INK, "strokeDash": DASHES[1]},
                        "data": {"values": own},
                        "encoding": {
                            "x": {"field": "own", "type": "quantitative"},
                            "tooltip": tips(told="float32 eager's worst"),
                        },
                    },
                    {
                        "mark": {
                            "type": "point",
                            "filled": True,
                            "size": 40,
                            "opacity": 0.5,
                            "color": NETWORKS[SUBJECT],
                        },
                        "encoding": {
                            "y": nominal("artifact"),
                            "x": x,
                            "tooltip": tips(artifact="artifact", told="error"),
                        },
                    },
                ],
            )
    return charts
