"""The sections of what was learned, how it was trained, the networks and the environment."""

from collections.abc import Iterable, Mapping

from stn_export.comparison.words import percent
from stn_export.report.content import Report
from stn_export.report.page import NONE, Block, Cell, Picture, Table, Text, minus, number, signed


def learned(report: Report) -> Iterable[Block]:
    """What the samplers look at."""
    for one in report.learned:
        about = f"{one['title']}, over {one['examples']:,} examples"
        rows = [
            [part["label"], *(minus(f"{part[key]:.2f}") for key in ("mean", "deviation", "low", "median", "high"))]
            for part in one["parts"].values()
        ]
        if "warped" in one:
            yield Picture(
                one["warped"],
                report.figures[one["warped"]],
                f"{one['title']}: examples above what the site makes of them",
            )
        for name in one.get("charts", ()):
            yield Picture(name, report.figures[name])
        yield Table(about, ("theta" if "charts" in one else "grid", "mean", "sd", "5 %", "median", "95 %"), rows)
    for line in report.unshown:
        yield Text(f"Not drawn: {line}.", "note")
    if any("charts" in one for one in report.learned):
        yield Text(
            "Theta maps output to input coordinates, so these are the parts, in pixels of the sampled image, of the "
            "window of it that fills the output: a scale below 1 is a smaller window, in which all looks larger; a "
            "positive rotation turns it clockwise and what is seen anticlockwise; a shift moves it right or down.",
            "note",
        )


def trained(report: Report) -> Iterable[Block]:
    """Whether the transformer helps, and the trainings."""
    for sentence in report.verdicts:
        yield Text(sentence)
    if report.gains:
        rows = [
            [
                row["title"],
                row["label"],
                str(row["count"]),
                signed(row["mean"]),
                number(row["deviation"], ".2f"),
                NONE if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'])}",
                row["finding"],
            ]
            for row in report.gains
        ]
        columns = ("trained on", "against the", "seeds", "gain, points", "sd", "95 % interval", "that is")
        note = "Differences between models trained with the same seed, and so on the same batches in the same order."
        yield Table("Does the transformer help?", columns, rows, note)
    yield from report.pictures("gain", "accuracy")
    if report.training:
        facts = (
            "trained on",
            "model",
            "parameters",
            "multiply-adds",
            "seeds",
            "time a seed",
            "test accuracy",
            "sd",
            "95 % interval",
        )
        rows = [
            [
                row["title"],
                row["label"],
                f"{row['parameters']:,}",
                f"{row['multiply_adds']:,}",
                Cell(str(row["count"]), title=", ".join(row["seeds"])),
                f"{row['median_seconds']:.0f} s, {row['device']}",
                percent(row["mean"]),
                NONE if row["deviation"] is None else f"{100 * row['deviation']:.2f}",
                NONE if row["low"] is None else minus(f"{100 * row['low']:.2f} to {100 * row['high']:.2f} %"),
            ]
            for row in report.training
        ]
        measures = " or ".join(dict.fromkeys(row["measure"] for row in report.training))
        yield Table(
            "Trainings",
            facts,
            rows,
            f"Test accuracy: {measures}; over several seeds their mean, its deviation and Student's interval.",
        )


def networks(report: Report) -> Iterable[Block]:
    """What goes in and out, and where they sample."""
    rows = [
        [
            one["name"],
            one["label"],
            one["role"],
            f"{one['parameters']:,}",
            f"{one['multiply_adds']:,}",
            "; ".join(one["inputs"]),
            "; ".join(one["outputs"]),
            one["examples"],
        ]
        for one in report.networks
    ]
    columns = ("network", "what it is", "role", "parameters", "multiply-adds", "inputs", "outputs", "tried on")
    yield Table("Inputs and outputs", columns, rows, "Multiply-adds are those of one example, samplers included.")
    rows = [
        [
            one["name"],
            *(str(site[key]) for key in ("name", "where", "kind", "source", "mode", "padding_mode", "align_corners")),
            f"{site['image']} → {site['grid']}",
        ]
        for one in report.networks
        for site in one["sites"]
    ]
    if rows:
        yield Table(
            "Where they sample",
            ("network", "site", "where", "kind", "from", "mode", "padding", "align_corners", "image → grid"),
            rows,
        )
    for one in report.networks:
        for row, reason in one["refused"].items():
            yield Text(f"{one['name']} has no {row}: {reason}", "note")


def environment(report: Report) -> Iterable[Block]:
    """Where it was measured."""
    facts = {key: value for key, value in report.environment.items() if not isinstance(value, Mapping)}
    rows = [
        [key.replace("_", " "), _plain(value)]
        for key, value in (facts | report.environment.get("versions", {})).items()
    ]
    yield Table("Environment", ("what", "here"), rows, heading=False)


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none known"
    return "none" if value is None else str(value)
