"""Collect the report's content on verification: errors, the examples that differ most, and portability."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from stn_export.cli import visible
from stn_export.errors import command
from stn_export.report import charts_costs, drawing
from stn_export.report.page import ParityRow, Report, SiteRow, SiteTable
from stn_export.results.choice import Portability
from stn_export.results.tolerances import KINDS, worst_by_kind
from stn_export.run.manifest import CHECKPOINT, PROGRAM, Artifact, NetworkDirectory
from stn_export.run.records import Check, GridPixels, NetworkEntry, Number, PointEntry
from stn_export.run.schemas import Current, read_verified

MOST_DIFFERENT = 10
MOST_SITES = 4  # most sites drawn per network
MEASURES = {"grid": "grid px", "warped": "warped", "theta": "theta"}  # in order of preference at a site
OUTPUTS = "outputs"

Checks = Sequence[Check]
Artifacts = Mapping[tuple[str, str], Artifact]  # by network and name


def artifacts_of(directories: Iterable[NetworkDirectory]) -> Artifacts:
    """Return the artifacts of a run, except checkpoints, by network and name."""
    listed = (artifact for directory in directories for artifact in directory.artifacts.values())
    return {(artifact.network, artifact.name): artifact for artifact in listed if artifact.name != CHECKPOINT}


def add_parity(report: Report, run: Path, artifacts: Artifacts, current: Current) -> None:
    """Add the tables of ``verify.json`` to the report, or a warning if it is missing or stale."""
    content = read_verified(run)
    if content is None:
        report.warnings.append(f"Nothing has been verified yet: run {command('verify')}.")
        return
    checks, networks = content.checks, content.networks
    report.parity = [parity_row(check, networks) for check in checks]
    report.unavailable = content.unavailable | content.refused
    if not all(map(current.holds, checks)):
        report.warnings.append(
            f"The parity table is stale: it was made of other files or examples. Run {command('verify')}."
        )
    if missing := unverified(checks, artifacts):
        report.warnings.append(f"Not verified: {', '.join(missing)}. Run {command('verify')}.")
    report.sites = site_tables(checks, artifacts, networks)
    probed = [check for check in checks if check.grid_pixels and check.precision == "fp32"]
    if probed:
        own = networks[probed[0].network].points
        probed = [check for check in probed if check.network == probed[0].network]
        eager = worst_by_kind({name: point.eager_error for name, point in own.items()}, own)
        drawn = charts_costs.error_strips(errors_by_kind(probed, own), eager)
        report.figures |= {f"errors-{kind}": chart for kind, chart in drawn.items()}


def parity_row(check: Check, networks: Mapping[str, NetworkEntry]) -> ParityRow:
    """Return the parity table's row for a check."""
    worst = worst_by_kind(check.errors, _points_of(check.network, networks))
    return ParityRow(check, worst.get("grid"), worst.get("output"), worst_pixels(check))


def _points_of(network: str, networks: Mapping[str, NetworkEntry]) -> Mapping[str, PointEntry]:
    """Return a network's points; none if no runner could open any of its files."""
    return networks[network].points if network in networks else {}


def unverified(checks: Checks, artifacts: Artifacts) -> list[str]:
    """Return the current artifacts without a check, except those of formats that no runner here supports."""
    checked = {check.sha256 for check in checks}
    formats = {artifact.format for artifact in artifacts.values() if artifact.sha256 in checked}
    return [
        "/".join(name)
        for name, artifact in artifacts.items()
        if artifact.sha256 not in checked and (not formats or artifact.format in formats)
    ]


def worst_pixels(check: Check) -> GridPixels:
    """Return the largest mean and the largest worst grid error of any site over the examples."""
    sites = check.grid_pixels.values()
    return GridPixels(mean=_worst(site.mean for site in sites), worst=_worst(site.worst for site in sites))


def _worst(errors: Iterable[Number]) -> Number:
    """Return the largest error; None if one is unknown, or there is none."""
    listed = list(errors)
    numbers = [error for error in listed if error is not None]
    return max(numbers, default=None) if len(numbers) == len(listed) else None


def errors_by_kind(checks: Checks, points: Mapping[str, PointEntry]) -> dict[str, dict[str, list[Number]]]:
    """Return the errors for every test input, by kind of point and artifact, without those of integers."""
    kinds = [kind for kind in KINDS if any(point.kind == kind for point in points.values())]
    errors: dict[str, dict[str, list[Number]]] = {kind: {check.artifact: [] for check in checks} for kind in kinds}
    for check in checks:
        for compared in check.comparisons.values():
            for name, comparison in compared.items():
                if points[name].kind in errors:
                    errors[points[name].kind][check.artifact].append(comparison.max_abs)
    return errors


def site_tables(checks: Checks, artifacts: Artifacts, networks: Mapping[str, NetworkEntry]) -> list[SiteTable]:
    """Return a table per network of every lowering's error in every runner, at each site and at the outputs."""
    rows: dict[str, dict[tuple[str, str], dict[str, Number]]] = {}
    for check in checks:
        artifact = artifacts.get((check.network, check.artifact))
        if artifact is None:
            continue
        lowering = f"{artifact.lowering or artifact.format} {artifact.precision}".removesuffix(" fp32")
        errors = rows.setdefault(check.network, {}).setdefault((lowering, check.runner), {})
        for place, error in worst_by_place(check.errors, _points_of(check.network, networks)).items():
            errors[place] = _worst((errors.get(place, 0.0), error))
    return [_site_table(name, errors, _points_of(name, networks)) for name, errors in rows.items()]


def _site_table(
    network: str, errors: Mapping[tuple[str, str], dict[str, Number]], points: Mapping[str, PointEntry]
) -> SiteTable:
    rows = [SiteRow(lowering, runner, figures) for (lowering, runner), figures in errors.items()]
    there = {place for row in rows for place in row.errors}
    sites = dict.fromkeys(point.site for point in points.values() if point.site)
    places = (f"{site}, {measure}" for site in sites for measure in MEASURES.values())
    return SiteTable(network, rows, [place for place in (*places, OUTPUTS) if place in there])


def worst_by_place(errors: Mapping[str, Number], points: Mapping[str, PointEntry]) -> dict[str, Number]:
    """Return the largest error at each site and at the outputs, in their own units.

    At a site it is the grid's in pixels; for formats that do not expose the grid, the warped image's, else theta's.
    """
    by_site = {}
    for site in dict.fromkeys(points[name].site for name in errors):
        here = worst_by_kind({name: error for name, error in errors.items() if points[name].site == site}, points)
        kind = next((kind for kind in (*MEASURES, "output") if kind in here), None)
        if kind is None:  # integers only
            continue
        by_site[f"{site}, {MEASURES[kind]}" if site else OUTPUTS] = here[kind]
    return by_site


def add_portability(report: Report, directories: Sequence[NetworkDirectory], portability: Portability) -> None:
    """Add every lowering's verdict in every runtime: by trial if it is installed, else by rules."""
    if all(set(directory.artifacts) <= {CHECKPOINT, PROGRAM} for directory in directories):
        report.warnings.append(f"Nothing has been exported yet: run {command('export')}.")
    report.portability = portability


def add_differing(report: Report, directory: NetworkDirectory, points: Mapping | None, current: Current) -> None:
    """Add the examples on which a network's current artifacts differ most, in float32 and at reduced precision.

    Args:
        report: its parity rows must be set.
        directory: the network.
        points: its entry in ``points.pt``, if that is current.
        current: decides which checks are current.
    """
    listed = [row.check for row in report.parity]
    checks = [check for check in listed if check.network == directory.name and current.holds(check)]
    for name, full in (("differing", True), ("differing-reduced", False)):
        rows = most_different([check for check in checks if (check.precision == "fp32") == full])
        if not rows:
            continue
        index, error, output, check = rows[0]
        report.differing[name] = (
            f"In {'float32' if full else 'reduced precision'} example {index} differs most from float64: "
            f"{error:.0e} in {output}, by {check.artifact} on {check.runner}."
        )
        if points and "pictures" in points:
            drawn = differing_pictures(points["pictures"], rows, directory.facts.classes)
            report.figures |= {name: drawing.picture_rows(*drawn)} if drawn[1] else {}


def most_different(checks: Checks) -> list[tuple[int, float, str, Check]]:
    """Return the ten examples with the largest difference over all checks: index, difference, output and check."""
    worst: dict[int, tuple[float, str, Check]] = {}
    for check in checks:
        for index, error, output in check.differing:
            if error is not None and (index not in worst or error > worst[index][0]):
                worst[index] = (error, output, check)
    ranked = sorted(worst.items(), key=lambda item: -item[1][0])[:MOST_DIFFERENT]
    return [(index, *difference) for index, difference in ranked]


def differing_pictures(
    pictures: Mapping, rows: Sequence[tuple], classes: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return those of the examples that have images, above each site's warped images, and a title for each."""
    places = {int(index): place for place, index in enumerate(pictures["indices"])}
    kept = [row for row in rows if row[0] in places]
    chosen = [places[index] for index, *_ in kept]
    titles = []
    for place, (index, error, *_) in zip(chosen, kept, strict=True):
        label = int(pictures["labels"][place]) if "labels" in pictures else None
        words = [] if label is None else [classes[label] if classes else str(label)]
        titles.append("\n".join([f"#{index}", *map(visible, words), f"{error:.0e}"]))
    return rows_of(pictures, chosen), titles


def rows_of(pictures: Mapping, chosen: slice | list[int], sites: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return some of the images by name: the input, and each site's warped image."""
    names = [name for name in pictures["warped"] if sites is None or name in sites][:MOST_SITES]
    labels = names if len(names) > 1 else ["warped"]
    warped = {label: pictures["warped"][name][chosen] for label, name in zip(labels, names, strict=False)}
    return {"input": pictures["input"][chosen]} | warped
