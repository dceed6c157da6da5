"""``MODEL_CARD.md``: what a run's networks are, how far they can be trusted, and every file of them.

The card states what the run directory holds; before anything is timed, equal runs give equal cards.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import markupsafe

from stn_export.answer.card import in_markdown, top
from stn_export.answer.held import held
from stn_export.artifacts.files import write_if_changed
from stn_export.artifacts.manifest import (
    MODEL_CARD,
    PROGRAM,
    Artifact,
    NetworkDirectory,
)
from stn_export.cli import NONE
from stn_export.graphs.calls import calls_of
from stn_export.program.specs import TensorSpec, by

TEMPLATE = "MODEL_CARD.md.j2"
SHORT_HASH = 12


def write_model_card(run: Path) -> bool:
    """Write ``<run>/MODEL_CARD.md`` where its content changes, and say whether it did.

    Raises:
        UserError: where the run has no networks, or one of its artifacts is missing, edited or stale.
    """
    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(loader=loader, finalize=in_markdown, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"sizes": by, "raw": markupsafe.Markup}
    text = environment.get_template(TEMPLATE).render(card_facts(run))
    return write_if_changed(run / MODEL_CARD, text.encode())


def card_facts(run: Path) -> dict:
    """What the template shows: networks, their files, trainings where there are any, and how to call the files."""
    content = held(run)
    directories = content.directories
    exported = [directory for directory in directories if directory.read().rows]
    entries = [entry for directory in exported for entry in directory.expected()]
    return {
        "card": top(content),
        "networks": [_network(directory) for directory in directories],
        "files": [_file(*entry) for entry in entries],
        "trainings": content.trainings,
        "calls": list(calls_of(exported)),
    }


def _network(directory: NetworkDirectory) -> dict:
    facts, contract = directory.facts, directory.listed(PROGRAM).contract
    tensors = [
        (side, spec.name, contract_text([spec])) for side in ("inputs", "outputs") for spec in getattr(contract, side)
    ]
    return {"name": directory.name, "facts": facts, "tensors": tensors}


def _file(artifact: Artifact, path: Path) -> dict:
    return {
        "path": f"{artifact.network}/{artifact.file}",
        "format": artifact.format,
        "lowering": artifact.lowering or NONE,
        "precision": artifact.precision,
        "opset": artifact.opset or NONE,
        "contract": contract_text(artifact.contract.inputs),
        "bytes": path.stat().st_size,
        "sha256": artifact.sha256[:SHORT_HASH],
    }


def contract_text(specs: Sequence[TensorSpec]) -> str:
    """Inputs or outputs for a person: ``N×3×32×32 float32, (x / 255 - 0.5) / 0.5``; with their names if several."""
    return "; ".join(f"{spec.name} " * (len(specs) > 1) + _meaning(spec) for spec in specs)


def _meaning(spec: TensorSpec) -> str:
    if spec.pixels is not None:
        return f"{spec.text}, {spec.pixels}"
    return f"{spec.text}, bytes as they are" if spec.dtype == "uint8" and spec.is_picture else spec.text
