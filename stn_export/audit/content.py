"""Collect everything that the audit finds in an ONNX file."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import onnx

from stn_export.cli.apart import apart
from stn_export.errors import UserError
from stn_export.limits import LIMITS
from stn_export.onnx_graph.contract import contract_of
from stn_export.onnx_graph.deployment import Session, placement_of
from stn_export.onnx_graph.inputs import Asked, Shape
from stn_export.onnx_graph.lint import Subject, findings
from stn_export.onnx_graph.model import ALIAS, OnnxFile, flat, read_model, walk
from stn_export.onnx_graph.placement import kernels
from stn_export.onnx_graph.portability import verdicts
from stn_export.onnx_graph.records import USUAL, FileContract, Report, Tried
from stn_export.onnx_graph.trial import ASKED, Step, here, try_model, within_limits
from stn_export.run.store import load_arrays


def audited(
    model: Path | str | onnx.ModelProto,
    providers: Sequence[str] = USUAL,
    shapes: Mapping[str, Shape] | None = None,
    inputs: Path | str | None = None,
) -> dict:
    """Audit a model; return its contract, placements, findings and portability, JSON-ready.

    Args:
        model: a file, which is read in a separate process with limits, or a model in memory.
        providers: of ONNX Runtime.
        shapes: of inputs with dynamic sizes; others are searched.
        inputs: an ``.npz`` of arrays by name.

    Raises:
        UserError: if the file cannot be read, or the inputs are not those that it declares.
    """
    if isinstance(model, onnx.ModelProto):
        arrays = load_arrays(Path(inputs)) if inputs else {}
        return examined("", OnnxFile(model), providers, Asked(shapes or {}, arrays)).as_dict()
    return examine_apart(Path(model), providers, shapes or {}, Path(inputs) if inputs else None).as_dict()


def examine_apart(path: Path, providers: Sequence[str], shapes: Mapping[str, Shape], inputs: Path | None) -> Report:
    """Audit a file in a separate process, with limits.

    Raises:
        UserError: if the file cannot be read, exceeds the limits, or the inputs are not those that it declares.
    """
    place = f"{__name__}:examine_file"
    return apart(place, path, providers, dict(shapes), inputs, seconds=LIMITS["audit"].value)


def examine_file(path: Path, providers: Sequence[str], shapes: Mapping[str, Shape], inputs: Path | None) -> Report:
    """Audit a file in this process, which another one limits."""
    arrays = load_arrays(inputs) if inputs else {}
    return examined(str(path), read_model(path), providers, Asked(shapes, arrays), within_limits)


def declared_file(path: Path, shapes: Mapping[str, Shape], inputs: Path | None) -> tuple[FileContract, Tried]:
    """Return what a file declares and the sizes it runs at; runs in this process, which another one limits."""
    arrays, file = load_arrays(inputs) if inputs else {}, read_model(path)
    return contract_of(file, path), try_model(flat(file.model), Asked(shapes, arrays), within_limits).tried


def examined(
    name: str, file: OnnxFile, providers: Sequence[str] = USUAL, asked: Asked = ASKED, step: Step = here
) -> Report:
    """Audit a model.

    Raises:
        UserError: if it has operators that ONNX lacks, or the inputs are not those that it declares.
    """
    _require_operators(file.model)
    subject = Subject(file.model, file.external, asked, step)
    placed = partial(placement_of, infos=subject.infos, runs=subject.trial.runs, step=step)
    audits = [
        placed(subject.model, provider, session=_elsewhere(subject.model, provider))
        for provider in dict.fromkeys(providers)
    ]
    results = findings(subject)
    declared, tried = contract_of(file, Path(name) if name else None), subject.trial.tried
    return Report(name, declared, tried, tuple(audits), tuple(results), verdicts(subject, results))


def _elsewhere(model: onnx.ModelProto, provider: str) -> Session | None:
    """Ask the ONNX Runtime that has WebGPU, where ``--runtimes`` names one; None for providers of this environment."""
    if provider != "webgpu":
        return None
    from stn_export.runners.external.environments import OnWebGpu, by_name, why_not  # they import PyTorch

    runtime = by_name(provider)
    if not isinstance(runtime, OnWebGpu) or why_not(runtime):
        return None
    return Session(runtime.placement(model), runtime.version)


def _require_operators(model: onnx.ModelProto) -> None:
    """Require that ONNX has every operator of its own domain that the model uses.

    Raises:
        UserError: naming one that it lacks.
    """
    functions = {function.name for function in model.functions}
    for node in walk(model.graph):
        if node.domain in ("", ALIAS) and node.op_type not in functions and node.op_type not in _known_operators():
            raise UserError(f"ONNX has no operator {node.op_type}", "name a file that an ONNX exporter wrote")


@cache
def _known_operators() -> frozenset[str]:
    """Return the operators of ONNX's own domain, and those that ONNX Runtime adds to it."""
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    return frozenset(names | set(kernels().gpu)) | kernels().cpu
