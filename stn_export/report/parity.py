"""The part of the report that says how equal the artifacts are, where they differ, and where they run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from stn_export.cli import visible
from stn_export.report import charts_costs, drawing
from stn_export.report.page import ParityRow, Report, SiteRow, SiteTable
from stn_export.results.choice import Portability
from stn_export.results.tolerances import KINDS, worst_by_kind
from stn_export.run.manifest import CHECKPOINT, PROGRAM, Artifact, NetworkDirectory
from stn_export.run.records import Check, GridPixels, NetworkEntry, Number, PointEntry
from stn_export.run.schemas import Current, read_verified

MOST_DIFFERENT = 10
MOST_SITES = 4  # that are drawn of a network
MEASURES = {"grid": "grid px", "warped": "warped", "theta": "theta"}  # at a site, the one to show first
OUTPUTS = "outputs"

Checks = Sequence[Check]
Artifacts = Mapping[tuple[str, str], Artifact]  # by network and name


def artifacts_of(directories: Iterable[NetworkDirectory]) -> Artifacts:
    """What a run holds beside checkpoints."""
    listed = (artifact for directory in directories for artifact in directory.artifacts.values())
    return {(each.network, each.name): each for each in listed if each.name != CHECKPOINT}


def add_parity(report: Report, run: Path, artifacts: Artifacts, current: Current) -> None:
    """The tables of ``verify.json``."""
    content = read_verified(run)
    if content is None:
        report.warnings.append("Nothing has been verified yet: run 'make verify'.")
        return
    checks, networks = content.checks, content.networks
    report.parity = [parity_row(check, networks) for check in checks]
    report.unavailable = content.unavailable | content.refused
    if not all(map(current.holds, checks)):
        report.warnings.append("The parity table is stale: it was made of other files or examples. Run 'make verify'.")
    if missing := unverified(checks, artifacts):
        report.warnings.append(f"Not verified: {', '.join(missing)}. Run 'make verify'.")
    report.sites = site_tables(checks, artifacts, networks)
    probed = [check for check in checks if check.grid_pixels and check.precision == "fp32"]
    if probed:
        own = networks[probed[0].network].points
        probed = [check for check in probed if check.network == probed[0].network]
        eager = worst_by_kind({name: point.eager_error for name, point in own.items()}, own)
        drawn = charts_costs.error_strips(errors_by_kind(probed, own), eager)
        report.figures |= {f"errors-{kind}": chart for kind, chart in drawn.items()}


def parity_row(check: Check, networks: Mapping[str, NetworkEntry]) -> ParityRow:
    """Return what the parity table shows of a check."""
    worst = worst_by_kind(check.errors, _points_of(check.network, networks))
    return ParityRow(check, worst.get("grid"), worst.get("output"), worst_pixels(check))


def _points_of(network: str, networks: Mapping[str, NetworkEntry]) -> Mapping[str, PointEntry]:
    """A network's points; none where no runner could open a file of it."""
    return networks[network].points if network in networks else {}


def unverified(checks: Checks, artifacts: Artifacts) -> list[str]:
    """The artifacts of today that nobody checked, but those of formats that no runner here takes."""
    checked = {check.sha256 for check in checks}
    formats = {artifact.format for artifact in artifacts.values() if artifact.sha256 in checked}
    return [
        "/".join(name)
        for name, artifact in artifacts.items()
        if artifact.sha256 not in checked and (not formats or artifact.format in formats)
    ]


def worst_pixels(check: Check) -> GridPixels:
    """The mean and the worst grid error over the examples, at the site where it is largest."""
    sites = check.grid_pixels.values()
    return GridPixels(mean=_worst(site.mean for site in sites), worst=_worst(site.worst for site in sites))


def _worst(errors: Iterable[Number]) -> Number:
    """The largest; None where one is no number, or there is none."""
    listed = list(errors)
    known = [error for error in listed if error is not None]
    return max(known, default=None) if len(known) == len(listed) else None


def errors_by_kind(checks: Checks, points: Mapping[str, PointEntry]) -> dict[str, dict[str, list[Number]]]:
    """The errors of every challenge, by kind of point and artifact; whole numbers are equal or not, and left out."""
    kinds = [kind for kind in KINDS if any(point.kind == kind for point in points.values())]
    errors: dict[str, dict[str, list[Number]]] = {kind: {check.artifact: [] for check in checks} for kind in kinds}
    for check in checks:
        for compared in check.comparisons.values():
            for name, comparison in compared.items():
                if points[name].kind in errors:
                    errors[points[name].kind][check.artifact].append(comparison.max_abs)
    return errors


def site_tables(checks: Checks, artifacts: Artifacts, networks: Mapping[str, NetworkEntry]) -> list[SiteTable]:
    """How far every lowering is off in every runner at every site and at the outputs, a table each network."""
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
    rows = [SiteRow(lowering, runner, found) for (lowering, runner), found in errors.items()]
    there = {place for row in rows for place in row.errors}
    sites = dict.fromkeys(point.site for point in points.values() if point.site)
    places = (f"{site}, {measure}" for site in sites for measure in MEASURES.values())
    return SiteTable(network, rows, [place for place in (*places, OUTPUTS) if place in there])


def worst_by_place(errors: Mapping[str, Number], points: Mapping[str, PointEntry]) -> dict[str, Number]:
    """The worst error at each site and at the outputs, in their own units.

    At a site it is that of the grid in pixels, where a format shows no grid that of the warped image.
    """
    found = {}
    for site in dict.fromkeys(points[name].site for name in errors):
        here = worst_by_kind({name: error for name, error in errors.items() if points[name].site == site}, points)
        kind = next((kind for kind in (*MEASURES, "output") if kind in here), None)
        if kind is None:  # whole numbers only
            continue
        found[f"{site}, {MEASURES[kind]}" if site else OUTPUTS] = here[kind]
    return found


def add_portability(report: Report, directories: Sequence[NetworkDirectory], portability: Portability) -> None:
    """Every lowering of the subject in every runtime: tried where it is installed, else what the rules say."""
    if all(set(directory.artifacts) <= {CHECKPOINT, PROGRAM} for directory in directories):
        report.warnings.append("Nothing has been exported yet: run 'make export'.")
    report.portability = portability


def add_differing(report: Report, directory: NetworkDirectory, points: Mapping | None, current: Current) -> None:
    """The examples that a network's artifacts of today differ most on, in float32 and in less.

    Args:
        report: its parity rows must be in place.
        directory: the network.
        points: what ``points.pt`` holds of it, where that is of today.
        current: what results must be of to count.
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
    """The ten examples with the largest difference over all checks: index, difference, output, and whose it is."""
    worst: dict[int, tuple[float, str, Check]] = {}
    for check in checks:
        for index, error, output in check.differing:
            if error is not None and (index not in worst or error > worst[index][0]):
                worst[index] = (error, output, check)
    ranked = sorted(worst.items(), key=lambda item: -item[1][0])[:MOST_DIFFERENT]
    return [(index, *found) for index, found in ranked]


def differing_pictures(
    pictures: Mapping, rows: Sequence[tuple], classes: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Those examples that there are pictures of, above what each site makes of them, and a title for each."""
    places = {int(index): place for place, index in enumerate(pictures["indices"])}
    known = [row for row in rows if row[0] in places]
    chosen = [places[index] for index, *_ in known]
    titles = []
    for place, (index, error, *_) in zip(chosen, known, strict=True):
        label = int(pictures["labels"][place]) if "labels" in pictures else None
        said = [] if label is None else [classes[label] if classes else str(label)]
        titles.append("\n".join([f"#{index}", *map(visible, said), f"{error:.0e}"]))
    return rows_of(pictures, chosen), titles


def rows_of(pictures: Mapping, chosen: slice | list[int], sites: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Some of the pictures by what they are: the input, and what sites made of it."""
    names = [name for name in pictures["warped"] if sites is None or name in sites][:MOST_SITES]
    labels = names if len(names) > 1 else ["warped"]
    warped = {label: pictures["warped"][name][chosen] for label, name in zip(labels, names, strict=False)}
    return {"input": pictures["input"][chosen]} | warped
