"""The export matrix as a table: what is there, proved, how large, and what cannot be had here."""

from collections.abc import Iterator
from pathlib import Path

from stn_export.artifacts.files import read_json
from stn_export.artifacts.manifest import VERIFY_FILE, VERIFY_SCHEMA, Artifact, NetworkDirectory
from stn_export.config import EXPORTS, MODELS, ExportSpec

KIND = ("artifact", "format", "lowering", "precision", "input")
COLUMNS = (*KIND, "exported", "verified", "KiB", "nodes", "CUDA graph", "note")
NONE = "–"


def matrix_rows(run: Path, unavailable: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """One row for each model and export, whether it has been written in ``run`` or not.

    Args:
        run: a run directory; it may be missing or empty.
        unavailable: why an export cannot be written here, by name.
    """
    verdicts = read_verdicts(run)
    for model in MODELS:
        artifacts = NetworkDirectory(run / model).artifacts
        checkpoint = artifacts.get("checkpoint")
        for spec in EXPORTS:
            if spec.applies_to(model):
                artifact = artifacts.get(spec.name)
                note = unavailable.get(spec.name) or ("" if spec.default else f"on request: --only {spec.name}")
                yield (
                    f"{model}/{spec.name}",
                    *_kind(spec),
                    _exported(artifact, checkpoint),
                    verdicts.get(artifact.sha256, NONE) if artifact else NONE,
                    *sizes(artifact),
                    cuda_graph(artifact),
                    note,
                )


def read_verdicts(run: Path) -> dict[str, str]:
    """``yes`` or ``FAILED`` by the sha256 of what ``verify`` looked at; failed in one runner is failed."""
    path = run / VERIFY_FILE
    if not path.exists():
        return {}
    verdicts: dict[str, str] = {}
    for check in read_json(path, VERIFY_SCHEMA)["checks"]:
        if not check["passed"] or check["sha256"] not in verdicts:
            verdicts[check["sha256"]] = "yes" if check["passed"] else "FAILED"
    return verdicts


def _kind(spec: ExportSpec) -> tuple[str, ...]:
    return spec.format, spec.lowering or NONE, spec.precision, spec.contract


def _exported(artifact: Artifact | None, checkpoint: Artifact | None) -> str:
    if artifact is None or checkpoint is None:
        return NONE
    return "yes" if artifact.parent_sha256 == checkpoint.sha256 else "stale"


def cuda_graph(artifact: Artifact | None) -> str:
    """Whether ONNX Runtime could capture the file as a CUDA graph; torch formats are captured by PyTorch, or not."""
    found = artifact.details.get("cuda") if artifact else None
    if not found:
        return NONE
    return ("yes" if found["graph"] else "no") + (" (predicted)" if found["predicted"] else "")


def sizes(artifact: Artifact | None) -> tuple[str, str]:
    """KiB and node count for a table."""
    if artifact is None:
        return NONE, NONE
    operators = artifact.details.get("operators")
    nodes = sum(operators.values()) if operators else 0
    before = artifact.details.get("nodes_before", nodes)
    text = f"{before} → {nodes}" if before != nodes else str(nodes or NONE)
    return f"{artifact.details['bytes'] / 1024:.0f}", text
