"""The export matrix as a table: what is there, proved, how large, and what cannot be had here."""

from collections.abc import Iterator
from pathlib import Path

from stn_export.artifacts.current import Current
from stn_export.artifacts.manifest import PROGRAM, Artifact, network_directories
from stn_export.artifacts.schemas import read_verified
from stn_export.cli import NONE
from stn_export.export.source import Source
from stn_export.export.writing import unavailable

KIND = ("artifact", "format", "lowering", "precision", "input")
COLUMNS = (*KIND, "exported", "verified", "KiB", "nodes", "CUDA graph", "note")
DROP = ("CUDA graph", "nodes", "input", "format", "lowering", "precision", "KiB", "note")


def rows(source: Source, run: Path) -> Iterator[tuple[str, ...]]:
    """The program of a network, then one row for each of its exports, whether it has been written or not."""
    verdicts, content = read_verdicts(run), source.directory.read()
    yield _row(source, (PROGRAM, source.parent.format, NONE, "fp32", "float"), source.parent, verdicts, "")
    for spec in source.rows:
        kind = spec.name, spec.format, spec.lowering or NONE, spec.precision, spec.contract
        on_request = "" if spec.default else f"on request: --only {spec.name}"
        note = "refused" if content.refused.get(spec.name) or unavailable(spec) else on_request
        yield _row(source, kind, content.artifacts.get(spec.name), verdicts, note)


def refusals(source: Source) -> Iterator[str]:
    """A line for each export that a network cannot have, or not here, and why."""
    refused = source.directory.read().refused
    for spec in source.rows:
        if why := refused.get(spec.name) or unavailable(spec):
            yield f"{source.directory.name}/{spec.name}: refused: {why}"


def _row(
    source: Source, kind: tuple[str, ...], artifact: Artifact | None, verdicts: dict[str, str], note: str
) -> tuple[str, ...]:
    name, *others = kind
    verified = verdicts.get(artifact.sha256, NONE) if artifact else NONE
    exported = _exported(artifact, source.parent)
    return f"{source.directory.name}/{name}", *others, exported, verified, *sizes(artifact), cuda_graph(artifact), note


def read_verdicts(run: Path) -> dict[str, str]:
    """``yes`` or ``FAILED`` by the sha256 of what ``verify`` looked at on today's examples; one failure is enough."""
    verdicts: dict[str, str] = {}
    verified = read_verified(run)
    for check in filter(Current.of(network_directories(run)).holds, verified.checks if verified else ()):
        if not check.passed or check.sha256 not in verdicts:
            verdicts[check.sha256] = "yes" if check.passed else "FAILED"
    return verdicts


def _exported(artifact: Artifact | None, program: Artifact) -> str:
    if artifact is None:
        return NONE
    return "yes" if artifact is program or artifact.parent_sha256 == program.sha256 else "stale"


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
