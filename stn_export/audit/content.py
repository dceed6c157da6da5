"""Everything that the audit finds of an ONNX file, for a script."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx

from stn_export.graphs.contract import contract_of
from stn_export.graphs.deployment import audit
from stn_export.graphs.graph import OnnxFile, read_model
from stn_export.graphs.lint import lint
from stn_export.graphs.placement import PROVIDERS
from stn_export.graphs.portability import portability


def audited(model: Path | str | onnx.ModelProto, providers: Sequence[str] = tuple(PROVIDERS)) -> dict:
    """What it declares (``contract``), where its nodes run, what to mind (``findings``) and which runtimes take it.

    Raises:
        UserError: where the file cannot be read or ONNX Runtime cannot load it.
    """
    if isinstance(model, onnx.ModelProto):
        name, path, file = "", None, OnnxFile(model)
    else:
        name, path, file = str(model), Path(model), read_model(Path(model))
    loaded, found = file.model, lint(file.model, file.external)
    return {
        "model": name,
        "contract": contract_of(file, path).as_dict(),
        "audits": [audit(loaded, name).as_dict() for name in dict.fromkeys(providers)],
        "findings": [asdict(each) for each in found],
        "portability": {name: {"verdict": verdict, "why": why} for name, (verdict, why) in portability(loaded).items()},
    }
