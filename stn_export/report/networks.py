"""The part of the report that says what the networks are: what goes in and out, where they sample."""

from collections.abc import Iterable, Mapping

from stn_export.artifacts.manifest import PLAIN, PROGRAM, NetworkDirectory
from stn_export.report.content import Report


def add_networks(report: Report, directories: Iterable[NetworkDirectory]) -> None:
    """An entry each network, the subject first."""
    report.networks = [network(directory) for directory in directories]
    report.subject = report.networks[0]["label"]
    report.plain = next((each["label"] for each in report.networks if each["role"] == PLAIN), "")


def network(directory: NetworkDirectory) -> dict:
    """What the manifest says of one network, JSON-ready."""
    content, known = directory.read(), directory.facts
    program = content.artifacts.get(PROGRAM)
    specs = {side: getattr(program.contract, side) if program else () for side in ("inputs", "outputs")}
    facts = ("label", "role", "note", "parameters", "multiply_adds")
    return {
        "name": directory.name,
        **{name: getattr(known, name) for name in facts},
        "examples": known.examples.get("source", ""),
        **{side: [f"{spec.name}: {spec.text}" for spec in found] for side, found in specs.items()},
        "sites": [site_row(site) for site in known.sites],
        "refused": content.refused,
    }


def site_row(site: Mapping) -> dict:
    """A site as ``Facts`` keeps it, with its sizes in words: height×width of the image, and of the grid."""
    sizes = ("×".join(map(str, site[shape][-2:])) for shape in ("image_shape", "warped_shape"))
    shown = ("name", "where", "kind", "source", "mode", "padding_mode", "align_corners", "grid_align_corners")
    return {name: site[name] for name in shown} | dict(zip(("image", "grid"), sizes, strict=True))
