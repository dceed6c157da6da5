"""The part of the report that says how equal the artifacts are, where they differ, and where they run."""

from pathlib import Path

import torch
from torch import nn

from stn_export.artifacts.files import read_json
from stn_export.artifacts.manifest import VERIFY_SCHEMA, NetworkDirectory
from stn_export.config import CHECKPOINT, DATASETS
from stn_export.graphs.graph import read_model
from stn_export.graphs.portability import portability
from stn_export.program.probes import POINTS
from stn_export.report import figures
from stn_export.report.content import Report
from stn_export.train.data import Dataset, denormalise, normalise

MOST_DIFFERENT = 10


def add_parity(report: Report, path: Path, current: set[str]) -> None:
    """The table of ``verify.json``."""
    if not path.exists():
        report.warnings.append("Nothing has been verified yet: run 'make verify'.")
        return
    content = read_json(path, VERIFY_SCHEMA)
    report.parity, report.unavailable = content["checks"], content["unavailable"]
    if {check["sha256"] for check in report.parity} != current:
        report.warnings.append("The parity table is stale: it was made of other artifacts. Run 'make verify'.")
    passed = sum(check["passed"] for check in report.parity)
    report.summary.append(f"{passed} of {len(report.parity)} checks equal PyTorch within tolerance.")
    report.reduced = [check for check in report.parity if check["precision"] != "fp32"]
    probed = [check for check in report.parity if check["grid_pixels"] and check["precision"] == "fp32"]
    if probed:
        report.figures["errors"] = figures.error_strips(errors_by_point(probed), probed[0]["errors"])


def errors_by_point(checks: list[dict]) -> dict[str, dict[str, list[float]]]:
    """The errors of every challenge, by point and artifact."""
    errors: dict[str, dict[str, list[float]]] = {point: {check["artifact"]: [] for check in checks} for point in POINTS}
    for check in checks:
        for points in check["comparisons"].values():
            for point, comparison in points.items():
                errors[point][check["artifact"]].append(comparison["max_abs"])
    return errors


def add_portability(report: Report, directories: list[NetworkDirectory]) -> None:
    """Every lowering in every runtime: tried where it is installed, else what the rules say."""
    if all(set(directory.artifacts) == {CHECKPOINT} for directory in directories):
        report.warnings.append("Nothing has been exported yet: run 'make export'.")
        return
    for directory in directories:
        for artifact, path in directory.expected():
            plain_float = (artifact.precision, artifact.input_contract["dtype"]) == ("fp32", "float32")
            if directory.model == "stn" and artifact.format == "onnx" and plain_float:
                report.portability[artifact.lowering] = portability(read_model(path).model)


def add_differing(report: Report, transformer: nn.Module, dataset: Dataset, current: set[str]) -> None:
    """The test images that the transformer's artifacts of today differ most on, in float32 and in less."""
    checks = [check for check in report.parity if check["model"] == "stn" and check["sha256"] in current]
    for name, full in (("differing", True), ("differing-reduced", False)):
        rows = most_different([check for check in checks if (check["precision"] == "fp32") == full])
        if not rows:
            continue
        classes = DATASETS[dataset.name].classes
        images = dataset.test.images[[index for index, _, _ in rows]]
        titles = [f"#{index}\n{classes[dataset.test.labels[index]]}\n{error:.0e}" for index, error, _ in rows]
        with torch.inference_mode():
            warped = denormalise(transformer(normalise(images)))
        report.figures[name] = figures.warped_images(images, warped, titles)
        index, error, check = rows[0]
        report.differing[name] = (
            f"In {'float32' if full else 'reduced precision'} test image {index} differs most from float64: "
            f"{error:.0e} in a log-probability, by {check['artifact']} on {check['runner']}."
        )


def most_different(checks: list[dict]) -> list[tuple[int, float, dict]]:
    """The ten test images with the largest difference over all checks: index, difference, and the check that has it."""
    worst: dict[int, tuple[float, dict]] = {}
    for check in checks:
        for index, error in check["differing"]:
            if error > worst.get(index, (-1.0,))[0]:
                worst[index] = (error, check)
    ranked = sorted(worst.items(), key=lambda item: -item[1][0])[:MOST_DIFFERENT]
    return [(index, error, check) for index, (error, check) in ranked]
