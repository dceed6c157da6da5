"""Write the sections on what was learned, training, the networks and the environment."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stn_export.errors import command
from stn_export.report import charts_training, drawing
from stn_export.report.charts_training import Frame
from stn_export.report.page import (
    NONE,
    Block,
    Cell,
    GainRow,
    LearnedSite,
    NetworkRow,
    Picture,
    Report,
    Spread,
    Table,
    Text,
    TrainedRow,
    minus,
    number,
    signed,
)
from stn_export.report.parity import MOST_SITES, rows_of
from stn_export.results.text import percent, sentence
from stn_export.run.manifest import PLAIN, PROGRAM, TRAINING_FILE, NetworkDirectory
from stn_export.run.schemas import ModelComparison, Points, read_points_file, read_trainings

# Networks: inputs, outputs and sampling sites.


def add_networks(report: Report, directories: Iterable[NetworkDirectory]) -> None:
    """Add an entry per network, the network under test first."""
    report.networks = [network(directory) for directory in directories]
    report.subject = report.networks[0].label
    report.plain = next((row.label for row in report.networks if row.role == PLAIN), "")


def network(directory: NetworkDirectory) -> NetworkRow:
    """Return the manifest's facts about one network."""
    content, facts = directory.read(), directory.facts
    program = content.artifacts.get(PROGRAM)
    return NetworkRow(
        directory.name,
        facts.label,
        facts.role,
        facts.note,
        facts.parameters,
        facts.multiply_adds,
        facts.examples.get("source", ""),
        [f"{spec.name}: {spec.text}" for spec in (program.contract.inputs if program else ())],
        [f"{spec.name}: {spec.text}" for spec in (program.contract.outputs if program else ())],
        [site_row(site) for site in facts.sites],
        content.refused,
    )


def site_row(site: Mapping) -> dict:
    """Return a site of ``Facts`` with its sizes as text: height×width of the image, and of the grid."""
    sizes = ("×".join(map(str, site[shape][-2:])) for shape in ("image_shape", "warped_shape"))
    shown = ("name", "where", "kind", "source", "mode", "padding_mode", "align_corners", "grid_align_corners")
    return {name: site[name] for name in shown} | dict(zip(("image", "grid"), sizes, strict=True))


# Training, from ``training.json``: accuracies and the transformer's gain.


def numbered(name: str, index: int) -> str:
    """Return a figure's name; the first of its kind has no number."""
    return name if index == 0 else f"{name}-{index + 1}"


def add_training(report: Report, runs: Sequence[Path]) -> None:
    """Add the trainings of the report's own run, which comes first, and of those beside it.

    Raises:
        UserError: if a run's ``training.json`` cannot be read.
    """
    every: list[ModelComparison] = []
    for index, run in enumerate(runs):
        if not (run / TRAINING_FILE).exists():  # its networks were adopted
            continue
        comparisons = read_trainings(run)
        report.warnings += comparisons.caveats
        report.figures[numbered("accuracy", index)] = charts_training.accuracy_curves(comparisons.runs)
        every += comparisons.runs
    report.training = [TrainedRow(one, name, model) for one in every for name, model in one.models.items()]
    add_gains(report, [one for one in every if one.differences])


def add_gains(report: Report, those: Sequence[ModelComparison]) -> None:
    """Add figures, table rows and sentences on the transformer's gain, if there is a comparison."""
    if not those:
        return
    report.gains = [GainRow(one, name, gain) for one in those for name, gain in one.differences.items()]
    for one in those:
        verdicts = [f"against the {difference.label} {difference.sentence}" for difference in one.differences.values()]
        report.verdicts.append(f"{one.title}: {'; '.join(verdicts)}.")
    if max(row.difference.count for row in report.gains) > 1:  # with one seed there is no spread to draw
        report.figures["gain"] = charts_training.seed_accuracies(those)
        report.figures["gain-differences"] = charts_training.differences(those)


def learned(report: Report) -> Iterable[Block]:
    """Yield what the samplers look at: warped examples, charts and statistics of theta."""
    for site in report.learned:
        about = f"{site.title}, over {site.examples:,} examples"
        rows = [
            [
                part.label,
                *(minus(f"{value:.2f}") for value in (part.mean, part.deviation, part.low, part.median, part.high)),
            ]
            for part in site.parts.values()
        ]
        if site.warped:
            words = f"{site.title}: examples above what the site makes of them"
            yield Picture(site.warped, report.figures[site.warped], words)
        for name in site.charts:
            yield Picture(name, report.figures[name], folded=True)
        columns = ("theta" if site.charts else "grid", "mean", "sd", "5 %", "median", "95 %")
        yield Table(about, columns, rows, folded=True)
    for line in report.unshown:
        yield Text(sentence(f"Not drawn: {line}"), "note")
    if any(site.charts for site in report.learned):
        yield Text(
            "Theta maps output to input coordinates, so these are the parts, in pixels of the sampled image, of the "
            "window of it that fills the output: a scale below 1 selects a smaller region, so its content is larger; a "
            "positive rotation turns it clockwise and what is seen anticlockwise; a shift moves it right or down.",
            "note",
        )


def trained(report: Report) -> Iterable[Block]:
    """Yield whether the transformer helps, and the trainings."""
    for verdict in report.verdicts:
        yield Text(verdict)
    titles = list(dict.fromkeys(row.training.title for row in report.training))
    if report.gains:
        yield _gains(report.gains, titles)
    yield from report.pictures("gain", "accuracy", folded=True)
    if report.training:
        yield _trainings(report.training, titles)


def _gains(gains: Iterable[GainRow], titles: list[str]) -> Table:
    best_first = sorted(gains, key=lambda row: (titles.index(row.training.title), -row.difference.mean))
    rows = [
        [
            row.training.title,
            gain.label,
            str(gain.count),
            signed(gain.mean),
            number(gain.deviation, ".2f"),
            NONE if gain.low is None or gain.high is None else f"{signed(gain.low)} to {signed(gain.high)}",
            gain.finding,
        ]
        for row in best_first
        for gain in (row.difference,)
    ]
    columns = ("trained on", "against the", "seeds", "gain, points", "sd", "95 % interval", "that is")
    note = (
        "Paired differences: both models of a pair were trained with the same seed, on the same batches in the same "
        "order."
    )
    return Table("Does the transformer help?", columns, rows, note, order="run by run, the largest gain first")


def _trainings(trainings: Sequence[TrainedRow], titles: list[str]) -> Table:
    best_first = sorted(trainings, key=lambda row: (titles.index(row.training.title), -row.model.mean))
    columns = ("trained on", "model", "parameters", "multiply-adds", "seeds", "time a seed", "test accuracy", "sd")
    rows: list[list[str | Cell]] = [
        [
            row.training.title,
            model.label,
            f"{model.parameters:,}",
            f"{model.multiply_adds:,}",
            Cell(str(model.count), title=", ".join(model.seeds)),
            f"{model.median_seconds:.0f} s, {model.device}",
            percent(model.mean),
            NONE if model.deviation is None else f"{100 * model.deviation:.2f}",
            NONE
            if model.low is None or model.high is None
            else minus(f"{100 * model.low:.2f} to {100 * model.high:.2f} %"),
        ]
        for row in best_first
        for model in (row.model,)
    ]
    measures = " or ".join(dict.fromkeys(row.training.measure for row in trainings))
    note = f"Test accuracy: {measures}; over several seeds their mean, its deviation and Student's interval."
    order = "run by run, the most accurate first"
    return Table("Trainings", (*columns, "95 % interval"), rows, note, order=order, folded=True)


def networks(report: Report) -> Iterable[Block]:
    """Yield tables of inputs and outputs, sampling sites, and rejected export variants."""
    rows = [
        [
            row.name,
            row.label,
            row.role,
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            "; ".join(row.inputs),
            "; ".join(row.outputs),
            row.examples,
        ]
        for row in report.networks
    ]
    columns = ("network", "what it is", "role", "parameters", "multiply-adds", "inputs", "outputs", "tried on")
    note = "Multiply-adds are those of one example, samplers included."
    yield Table("Inputs and outputs", columns, rows, note, order="the network under test first", folded=True)
    rows = [
        [
            row.name,
            *(str(site[key]) for key in ("name", "where", "kind", "source", "mode", "padding_mode", "align_corners")),
            f"{site['image']} → {site['grid']}",
        ]
        for row in report.networks
        for site in row.sites
    ]
    if rows:
        yield Table(
            "Where they sample",
            ("network", "site", "where", "kind", "from", "mode", "padding", "align_corners", "image → grid"),
            rows,
            order="as the network calls them",
            folded=True,
        )
    for row in report.networks:
        for variant, reason in row.refused.items():
            yield Text(sentence(f"{row.name} has no {variant}: {reason}"), "note")


def environment(report: Report) -> Iterable[Block]:
    """Yield a table of the machine and the versions."""
    facts = {key: value for key, value in report.environment.items() if not isinstance(value, Mapping)}
    rows = [
        [key.replace("_", " "), _plain(value)]
        for key, value in (facts | report.environment.get("versions", {})).items()
    ]
    yield Table("Processor, threads and versions", ("what", "here"), rows, heading=False, folded=True)


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none known"
    return "none" if value is None else str(value)


# What the sampling sites look at, from ``points.pt``.


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
    """Return the entries of ``points.pt`` for networks whose program is current; add a warning for the others.

    Raises:
        UserError: if the file is not one of this package.
    """
    content = read_points_file(run)
    programs = {directory.name: directory.listed(PROGRAM).sha256 for directory in directories}
    current = {name: entry for name, entry in content.items() if programs.get(name) == entry["program"]}
    others = [f"{run.name}/{name}" for name in content if name not in current]
    report.warnings += [f"The points of {name} are of another program. Run {command('verify')}." for name in others]
    return current


def add_learned(report: Report, directory: NetworkDirectory, points: Mapping, prefix: str = "") -> None:
    """Add a network's first sites: examples above their warped images, and theta over all examples.

    Args:
        report: to add to.
        directory: the network.
        points: its entry in ``points.pt``.
        prefix: of the titles, if the network is of another run.
    """
    facts = directory.facts
    where = {site["name"]: site["where"] for site in facts.sites}
    for count, (name, site) in enumerate(points["sites"].items()):
        if count == MOST_SITES:
            report.unshown.append(f"{prefix}{facts.label}: {', '.join(list(points['sites'])[count:])}")
            break
        title = prefix + facts.label + (f", {name} in {where[name]}" if len(where) > 1 else "")
        index, warped, charts = len(report.learned), "", {}
        if name in points.get("pictures", {}).get("warped", {}):
            warped = numbered("warped", index)
            report.figures[warped] = drawing.picture_rows(rows_of(points["pictures"], slice(PICTURES), [name]))
        values = {"outside": 100 * site["outside"].double()}
        if "theta" in site:
            height, width = site["image_size"]
            theta, frame = site["theta"].double(), Frame(height, width, site["align_corners"])
            values = frame.decompose(theta).as_dict() | values
            shown = {part: value.numpy() for part, value in values.items()}
            outlines = frame.windows(theta[:OUTLINES]).numpy()
            charts = {
                numbered("theta", index): charts_training.theta_histograms(shown, f"What theta is: {title}"),
                numbered("windows", index): charts_training.windows(outlines, frame, f"Where it looks: {title}"),
            }
            report.figures |= charts
        parts = {
            part: spread(finite, LABELS[part])
            for part, value in values.items()
            if len(finite := value[value.isfinite()])  # a map that flattens the image has no finite shear
        }
        row = LearnedSite(title, directory.name, name, points["examples"], warped, tuple(charts), parts)
        report.learned.append(row)


def spread(values: Tensor, label: str) -> Spread:
    """Return the spread of N values that are named so."""
    low, median, high = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    deviation = values.std(correction=min(1, len(values) - 1))
    return Spread(values.mean().item(), deviation.item(), low, median, high, label)
