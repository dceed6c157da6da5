"""The part of the report that says what the sites of a run's networks look at: what ``points.pt`` holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stn_export.artifacts.manifest import PROGRAM, NetworkDirectory
from stn_export.artifacts.points import Points, read_points_file
from stn_export.report import charts_training, figures
from stn_export.report.content import Report
from stn_export.report.parity import MOST_SITES, rows_of
from stn_export.report.thetas import Frame
from stn_export.report.training import numbered

PICTURES = 10
OUTLINES = 40
LABELS = {
    "rotation": "rotation, degrees",
    "scale_x": "scale x",
    "scale_y": "scale y",
    "shear": "shear",
    "shift_x": "shift x, pixels",
    "shift_y": "shift y, pixels",
    "outside": "output grid outside the image, %",
}


def read_points(report: Report, run: Path, directories: Sequence[NetworkDirectory]) -> dict[str, Points]:
    """What verification kept of the points of each network whose program is today's; others are warned of.

    Raises:
        UserError: where the file is not one of ours.
    """
    content = read_points_file(run)
    programs = {each.name: each.listed(PROGRAM).sha256 for each in directories}
    known = {name: each for name, each in content.items() if programs.get(name) == each["program"]}
    others = [f"{run.name}/{name}" for name in content if name not in known]
    report.warnings += [f"The points of {name} are of another program. Run 'make verify'." for name in others]
    return known


def add_learned(report: Report, directory: NetworkDirectory, points: Mapping, prefix: str = "") -> None:
    """A network's first sites: examples above what the site made of them, and theta over all examples.

    Args:
        report: what is added to.
        directory: the network.
        points: what ``points.pt`` holds of it.
        prefix: of the titles, where the network is of another run.
    """
    facts = directory.facts
    where = {site["name"]: site["where"] for site in facts.sites}
    for count, (name, site) in enumerate(points["sites"].items()):
        if count == MOST_SITES:
            report.unshown.append(f"{prefix}{facts.label}: {', '.join(list(points['sites'])[count:])}")
            break
        title = prefix + facts.label + (f", {name} in {where[name]}" if len(where) > 1 else "")
        index = len(report.learned)
        entry = {"title": title, "network": directory.name, "site": name, "examples": points["examples"]}
        if name in points.get("pictures", {}).get("warped", {}):
            entry["warped"] = numbered("warped", index)
            rows = rows_of(points["pictures"], slice(PICTURES), [name])
            report.figures[entry["warped"]] = figures.picture_rows(rows)
        values = {"outside": 100 * site["outside"].double()}
        if "theta" in site:
            height, width = site["image_size"]
            theta, frame = site["theta"].double(), Frame(height, width, site["align_corners"])
            values = frame.decompose(theta).as_dict() | values
            shown = {part: each.numpy() for part, each in values.items()}
            outlines = frame.windows(theta[:OUTLINES]).numpy()
            drawn = {
                numbered("theta", index): charts_training.theta_histograms(shown, f"What theta is: {title}"),
                numbered("windows", index): charts_training.windows(outlines, frame, f"Where it looks: {title}"),
            }
            report.figures |= drawn
            entry["charts"] = list(drawn)
        entry["parts"] = {
            part: spread(known) | {"label": LABELS[part]}
            for part, each in values.items()
            if len(known := each[each.isfinite()])  # a map that flattens the image has no finite shear
        }
        report.learned.append(entry)


def spread(values: Tensor) -> dict[str, float]:
    """Mean, standard deviation and what nine tenths of N values lie between."""
    low, median, high = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    deviation = values.std(correction=min(1, len(values) - 1))
    return {"mean": values.mean().item(), "deviation": deviation.item(), "low": low, "median": median, "high": high}
