"""Everything that the audit finds of an ONNX file, for a script."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx

from stn_export.graphs.deployment import audit
from stn_export.graphs.graph import read_model
from stn_export.graphs.lint import lint
from stn_export.graphs.placement import PROVIDERS
from stn_export.graphs.portability import portability


def audited(model: Path | str | onnx.ModelProto, providers: Sequence[str] = tuple(PROVIDERS)) -> dict:
    """Where its nodes run by provider (``audits``), what to mind (``findings``) and which runtimes take it.

    Raises:
        UserError: where the file cannot be read or ONNX Runtime cannot load it.
    """
    external: tuple[str, ...] = ()
    if isinstance(model, onnx.ModelProto):
        name, loaded = "", model
    else:
        file = read_model(Path(model))
        name, loaded, external = str(model), file.model, file.external
    found = lint(loaded, external)
    return {
        "model": name,
        "audits": [audit(loaded, name).as_dict() for name in dict.fromkeys(providers)],
        "findings": [asdict(each) for each in found],
        "portability": {name: {"verdict": verdict, "why": why} for name, (verdict, why) in portability(loaded).items()},
    }
