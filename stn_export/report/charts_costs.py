"""Draw the charts of timings and of errors in Vega-Lite; see ``charts``."""

from collections.abc import Mapping, Sequence

from stn_export.program.sites import PARTS
from stn_export.report.charts import (
    DARK_PARTS,
    DASHES,
    DEVICES,
    FADED,
    INK,
    LEGEND,
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
    Spec,
    chart,
    each_its,
    measure,
    nominal,
    scale,
    tips,
    toggled,
)
from stn_export.results.text import percent, significant, span


def family(runner: str) -> str:
    """Return the family of runners with the same colour: ``onnxruntime`` for all of ONNX Runtime's."""
    return runner.split("-")[0]


def short_name(runner: str, artifact: str, device: str) -> str:
    """Return runner and artifact for a label: without the device, which the title has, or the runner's name twice."""
    name = runner.replace(f"-{device}", "")
    return f"{name} {artifact.removeprefix(f'{name}-')}".strip()


def curves(values: Curves, looks: Mapping[str, Look], device: str, title: str, unit: str, dot: str) -> Chart:
    """Draw a value against batch size, one line per backend and network, with intervals; ``dot`` is the short unit."""
    rows: list[Spec] = [
        {
            "series": short_name(runner, artifact, device),
            "family": family(runner),
            "network": looks[network].label,
            "batch": batch,
            "value": middle,
            "low": low,
            "high": high,
            "told": f"{significant(middle)} {dot}{marks}",
            "interval": span(low, high),
        }
        for (runner, artifact, network), by_batch in values.items()
        for batch, (middle, low, high, marks) in sorted(by_batch.items())
    ]
    names = dict.fromkeys((row["series"], row["family"]) for row in rows)
    families = each_its(dict.fromkeys(name for _, name in names), RUNNERS)
    colours = {series: families[name] for series, name in names}
    shapes = each_its(colours, SHAPES)
    dashes = each_its(dict.fromkeys(row["network"] for row in rows), DASHES)
    shared = {
        "x": measure("batch", "batch size", "log", axis={"values": sorted({row["batch"] for row in rows})}),
        "color": nominal("series", "runner and file", scale=scale(colours), legend=LEGEND),
        "opacity": FADED,
        "tooltip": tips(series="runner and file", network="network", batch="batch", told=title, interval="95 %"),
    }
    y, lasts = measure("value", unit, "log"), {(row["series"], row["network"]): row for row in rows}
    return chart(
        f"{title} against batch size on {DEVICES[device]}",
        rows,
        [f"{row['network']} in {row['series']} at batch {row['batch']}: {row['told']}" for row in lasts.values()],
        encoding=shared,
        layer=[
            {
                "params": toggled("series"),
                "mark": "rule",
                "encoding": {"y": measure("low", unit, "log"), "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"y": y, "strokeDash": nominal("network", scale=scale(dashes), legend=LEGEND)},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {"y": y, "shape": nominal("series", "runner and file", scale=scale(shapes), legend=LEGEND)},
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
    batches = each_its(sorted({row["batch"] for row in rows}, key=lambda text: (len(text), text)), SHAPES)
    y = nominal("backend", axis={"labelLimit": 220})
    offset = nominal("batch", sort=list(batches))
    shared = {"y": y, "yOffset": offset, "tooltip": tips(backend="in", batch="batch", told="ratio", interval="95 %")}
    x = measure("value", f"time of the {ours} ÷ time of the {other} (the line at 1)")
    return chart(
        f"What the {ours} costs on {DEVICES[device]}",
        rows,
        [f"{row['backend']} at {row['batch']}: {row['told']} ({row['interval']})" for row in rows],
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


def pareto(points: Sequence[Mapping], front: Sequence[Mapping], looks: Mapping[str, Look], device: str) -> Chart:
    """Draw accuracy against the latency of one example; the points of the Pareto front are named.

    Args:
        points: each with ``name``, ``network``, ``milliseconds``, ``interval``, ``marks``, ``accuracy`` (0 to 1).
        front: the points on the Pareto front, the fastest first.
        looks: of the networks.
        device: for the title.
    """
    rows: list[Spec] = [
        {
            "name": point["name"],
            "network": looks[point["network"]].label,
            "ms": point["milliseconds"],
            "accuracy": 100 * point["accuracy"],
            "front": point in front,
            "place": front.index(point) if point in front else 0,
            "told": f"{significant(point['milliseconds'])} ms{point['marks']}",
            "interval": point["interval"],
            "share": percent(point["accuracy"]),
        }
        for point in points
    ]
    shown = {looks[point["network"]].label: looks[point["network"]] for point in points}
    colours = scale({label: look.colour for label, look in shown.items()})
    shapes = scale(each_its(shown, SHAPES))
    x = measure("ms", "median latency of one example, ms (left is better)", "log")
    y = measure("accuracy", "accuracy, %")
    best = {"transform": [{"filter": "datum.front"}]}
    ordered = sorted(rows, key=lambda row: (not row["front"], row["ms"]))
    return chart(
        f"Accuracy against latency on {DEVICES[device]}",
        rows,
        [f"{'on the front: ' * row['front']}{row['name']} {row['told']}, {row['share']}" for row in ordered],
        encoding={"x": x, "y": y},
        layer=[
            {"mark": {"type": "line", "interpolate": "step-after", "color": SOFT, "strokeDash": [4, 3]}} | best,
            {
                "mark": {"type": "point", "size": 70, "strokeWidth": 2},
                "encoding": {
                    "color": nominal("network", scale=colours, legend=LEGEND),
                    "shape": nominal("network", scale=shapes, legend=LEGEND),
                    "fillOpacity": {"condition": {"test": "datum.front", "value": 1}, "value": 0},
                    "fill": nominal("network", scale=colours, legend=None),
                    "tooltip": tips(
                        name="file", network="network", told="latency", interval="95 %, ms", share="accuracy"
                    ),
                },
            },
            *(
                {
                    "mark": {"type": "text", "align": "left", "dx": 8, "dy": rise, "limit": 240},
                    "transform": [{"filter": f"datum.front && datum.place % 2 == {odd}"}],
                    "encoding": {"text": {"field": "name"}},
                }
                for odd, rise in enumerate((14, -12))
            ),
        ],
    )


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
            "middle": (sum(parts.get(each, 0.0) for each in PARTS[: PARTS.index(part)]) + parts[part] / 2)
            / whole[batch],
        }
        for name, by_batch, whole in bars
        for batch, parts in by_batch.items()
        for part in PARTS
        if parts.get(part) and batch in whole
    ]
    y = nominal("name", axis={"labelLimit": 240})
    x = {"type": "quantitative", "title": "share of the first network's time in that runner", "axis": {"format": "%"}}
    return chart(
        f"Where the time goes on {DEVICES[device]}: profiled calls, which are slower than others",
        rows,
        [f"{row['name']}: {row['part']} {row['told']} ({row['percent']})" for row in rows],
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
        worst = {row["artifact"]: row["told"] for row in sorted(rows, key=lambda row: row["error"])}
        unit = "grid, pixels" if kind == "grid" else kind
        own = [{"own": eager[kind], "told": f"{eager[kind]:.1e}"}] if eager.get(kind) else []
        x = measure("error", f"error at {unit}; the line is float32 eager's own worst", "log", axis={"format": ".0e"})
        if rows:
            charts[kind] = chart(
                f"Errors against float64: {unit}",
                rows,
                [f"{artifact} up to {told}" for artifact, told in worst.items()]
                + [f"float32 eager's own worst {each['told']}" for each in own],
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
