"""The part of the report that says how equal the artifacts are, where they differ, and where they run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from stn_export.artifacts.current import Current
from stn_export.artifacts.manifest import CHECKPOINT, PROGRAM, Artifact, NetworkDirectory
from stn_export.artifacts.schemas import read_verified
from stn_export.cli import visible
from stn_export.comparison.compare import KINDS, worst_by_kind
from stn_export.comparison.fastest import Portability
from stn_export.report import charts_bench, figures
from stn_export.report.content import Report

MOST_DIFFERENT = 10
MOST_SITES = 4  # that are drawn of a network
MEASURES = {"grid": "grid px", "warped": "warped", "theta": "theta"}  # at a site, the one to show first
OUTPUTS = "outputs"

Checks = list[dict]
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
    checks, networks = content["checks"], content["networks"]
    for check in checks:
        worst = worst_by_kind(check["errors"], networks[check["network"]]["points"])
        check |= {"grid": worst.get("grid"), "output": worst.get("output"), "pixels": worst_pixels(check)}
    report.parity, report.unavailable = checks, content["unavailable"] | content.get("refused", {})
    if not all(map(current.holds, checks)):
        report.warnings.append("The parity table is stale: it was made of other files or examples. Run 'make verify'.")
    if missing := unverified(checks, artifacts):
        report.warnings.append(f"Not verified: {', '.join(missing)}. Run 'make verify'.")
    report.sites = site_tables(checks, artifacts, networks)
    probed = [check for check in checks if check["grid_pixels"] and check["precision"] == "fp32"]
    if probed:
        own = networks[probed[0]["network"]]["points"]
        probed = [check for check in probed if check["network"] == probed[0]["network"]]
        eager = worst_by_kind({point: each["eager_error"] for point, each in own.items()}, own)
        drawn = charts_bench.error_strips(errors_by_kind(probed, own), eager)
        report.figures |= {f"errors-{kind}": chart for kind, chart in drawn.items()}


def unverified(checks: Checks, artifacts: Artifacts) -> list[str]:
    """The artifacts of today that nobody checked, but those of formats that no runner here takes."""
    checked = {check["sha256"] for check in checks}
    formats = {artifact.format for artifact in artifacts.values() if artifact.sha256 in checked}
    return [
        "/".join(name)
        for name, artifact in artifacts.items()
        if artifact.sha256 not in checked and (not formats or artifact.format in formats)
    ]


def worst_pixels(check: Mapping) -> dict[str, float | None]:
    """The mean and the worst grid error over the examples, at the site where it is largest."""
    found = {name: [each[name] for each in check["grid_pixels"].values()] for name in ("mean", "worst")}
    return {name: None if None in values else max(values, default=None) for name, values in found.items()}


def errors_by_kind(checks: Checks, points: Mapping[str, Mapping]) -> dict[str, dict[str, list[float]]]:
    """The errors of every challenge, by kind of point and artifact; whole numbers are equal or not, and left out."""
    kinds = [kind for kind in KINDS if any(each["kind"] == kind for each in points.values())]
    errors: dict[str, dict[str, list[float]]] = {kind: {check["artifact"]: [] for check in checks} for kind in kinds}
    for check in checks:
        for compared in check["comparisons"].values():
            for point, comparison in compared.items():
                if points[point]["kind"] in errors:
                    errors[points[point]["kind"]][check["artifact"]].append(comparison["max_abs"])
    return errors


def site_tables(checks: Checks, artifacts: Artifacts, networks: Mapping[str, Mapping]) -> list[dict]:
    """How far every lowering is off in every runner at every site and at the outputs, a table each network.

    A table has ``network``, ``places`` (see ``worst_by_place``) and ``rows``: ``lowering`` (or format, with any
    precision below float32), ``runner``, and the worst of ``errors`` over challenges and artifacts by place.
    """
    tables: dict[str, dict] = {}
    for check in checks:
        artifact = artifacts.get((check["network"], check["artifact"]))
        if artifact is None:
            continue
        lowering = f"{artifact.lowering or artifact.format} {artifact.precision}".removesuffix(" fp32")
        table = tables.setdefault(check["network"], {"network": check["network"], "rows": {}})
        names = {"lowering": lowering, "runner": check["runner"]}
        errors = table["rows"].setdefault((lowering, check["runner"]), names | {"errors": {}})["errors"]
        for place, error in worst_by_place(check["errors"], networks[check["network"]]["points"]).items():
            known = (errors.get(place, 0.0), error)
            errors[place] = None if None in known else max(known)
    for name, table in tables.items():
        table["rows"] = list(table["rows"].values())
        there = {place for row in table["rows"] for place in row["errors"]}
        sites = dict.fromkeys(each["site"] for each in networks[name]["points"].values() if each["site"])
        places = (f"{site}, {measure}" for site in sites for measure in MEASURES.values())
        table["places"] = [place for place in (*places, OUTPUTS) if place in there]
    return list(tables.values())


def worst_by_place(errors: Mapping[str, float | None], points: Mapping[str, Mapping]) -> dict[str, float | None]:
    """The worst error at each site and at the outputs, in their own units.

    At a site it is that of the grid in pixels, where a format shows no grid that of the warped image.
    """
    found = {}
    for site in dict.fromkeys(points[point]["site"] for point in errors):
        here = worst_by_kind({point: each for point, each in errors.items() if points[point]["site"] == site}, points)
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
    checks = [check for check in report.parity if check["network"] == directory.name and current.holds(check)]
    for name, full in (("differing", True), ("differing-reduced", False)):
        rows = most_different([check for check in checks if (check["precision"] == "fp32") == full])
        if not rows:
            continue
        index, error, output, check = rows[0]
        report.differing[name] = (
            f"In {'float32' if full else 'reduced precision'} example {index} differs most from float64: "
            f"{error:.0e} in {output}, by {check['artifact']} on {check['runner']}."
        )
        if points and "pictures" in points:
            drawn = differing_pictures(points["pictures"], rows, directory.facts.classes)
            report.figures |= {name: figures.picture_rows(*drawn)} if drawn[1] else {}


def most_different(checks: Checks) -> list[tuple[int, float, str, dict]]:
    """The ten examples with the largest difference over all checks: index, difference, output, and whose it is."""
    worst: dict[int, tuple[float, str, dict]] = {}
    for check in checks:
        for index, error, output in check["differing"]:
            if error is not None and error > worst.get(index, (-1.0,))[0]:
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
