"""Write the rows of the export matrix, their manifest entries, and ``MODEL_CARD.md``."""

import json
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
import markupsafe
import onnx

from stn_export.cli import NONE
from stn_export.errors import UserError, one_line
from stn_export.export.finish import optimise
from stn_export.export.onnx import export_default, to_onnx
from stn_export.export.precision import floats_of_c, int8_layers, to_int8
from stn_export.export.rows import ExportSpec, Source
from stn_export.native.build import HERE, built, no_compiler
from stn_export.native.source import write_source
from stn_export.onnx_graph.calls import calls_of
from stn_export.onnx_graph.deployment import audit
from stn_export.onnx_graph.model import initialiser_bytes
from stn_export.onnx_graph.portability import portability
from stn_export.program.formats import to_aotinductor, to_torchscript
from stn_export.program.specs import TensorSpec, by
from stn_export.results.card import in_markdown, top
from stn_export.results.contents import held
from stn_export.run.environment import describe, use_own_compile_cache
from stn_export.run.manifest import DEFAULT_EXPORT, MODEL_CARD, PROGRAM, Artifact, NetworkDirectory
from stn_export.run.store import sha256_of, write_atomically, write_if_changed
from stn_export.runners.external.environments import OWN, by_name, why_not
from stn_export.runners.external.process import RefusedError, converted
from stn_export.runners.registry import no_gpu

DEVICES = {"aotinductor": "cpu", "aotinductor-cuda": "cuda"}


def _onnx_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    if spec.lowering is None:
        raise UserError(f"{spec.name} says no way to write affine_grid and grid_sample", "name a row of export --list")
    if spec.lowering == DEFAULT_EXPORT:
        model = export_default(source.program, source.contract(spec))
    else:
        model = to_onnx(source.marked(spec), spec.lowering)
    notes = {prop.key: prop.value for prop in model.metadata_props}
    judged: dict[str, dict] = {}
    if spec.precision == "int8":
        quantised = to_int8(model, source.calibration(spec))
        model, judged = quantised.model, {"int8": quantised.as_dict()}
    nodes_before = len(model.graph.node)
    if spec.optimised:
        model = optimise(model)
    if spec.lowering != DEFAULT_EXPORT:
        del model.graph.value_info[:]  # written again by quantising and optimising, see `plain`
    texts = {key: json.dumps(value) for key, value in source.metadata(spec).items()}
    onnx.helper.set_model_props(model, notes | texts)
    operators = Counter(node.op_type for node in model.graph.node)
    details = {
        "opset": model.opset_import[0].version,
        "ir_version": model.ir_version,
        "operators": dict(sorted(operators.items())),
        "nodes_before": nodes_before,
        "initialiser_bytes": initialiser_bytes(model),
        "cuda": _on_cuda(model),
    } | judged
    if (spec.precision, spec.contract) == ("fp32", "float"):
        details["portability"] = {runtime: list(verdict) for runtime, verdict in portability(model).items()}
    return model.SerializeToString(deterministic=True), details


def _on_cuda(model: onnx.ModelProto) -> dict:
    """Return how ONNX Runtime's CUDA provider would place the model: fallbacks, copies, CUDA graph or not."""
    placement = audit(model, "cuda")
    return {
        "predicted": placement.predicted,
        "fallbacks": [node.op_type for node in placement.fallbacks],
        "copies": len(placement.copies),
        "graph": placement.capturable,
        "reason": placement.capture_reason,
        "on_cuda": sum(node.compute for node in placement.nodes) - len(placement.fallbacks),
        "on_cpu": len(placement.fallbacks),
    }


def _aotinductor_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    use_own_compile_cache()
    return to_aotinductor(source.program, DEVICES[spec.format]), {}


def _native_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    """Return the C source and, beside it, its header, its weights if they are large, and the compiled library."""
    program, layers, judged = source.program, [], {}
    if spec.contract != "float":
        program = program.recaptured(source.graph(spec), source.contract(spec))
    if spec.precision == "int8":
        model = to_onnx(source.marked(spec), "matmul" if source.facts.sites else "plain")
        quantised = to_int8(model, source.calibration(spec), floats_of_c(model))
        layers, judged = int8_layers(quantised.model), {"int8": quantised.as_dict()}
    name = re.sub(r"\W", "_", source.directory.name, flags=re.ASCII)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / spec.file
        metadata = json.dumps(source.metadata(spec), ensure_ascii=True)
        name = f"network_{name}" if name[0].isdigit() else name
        write_source(program, name, spec.target or HERE, metadata, layers).write(path)
        built(path)
        files = {file.name: file.read_bytes() for file in sorted(path.parent.iterdir())}
    return files.pop(spec.file), {"beside": files} | judged


def _foreign_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    """Return the file that an external runtime's converter makes of the captured program."""
    inputs = source.contract(spec).arrays(source.examples.take(spec.batch or 1))
    return converted(by_name(spec.format), source.directory.open(source.parent), inputs), {}


WRITERS: dict[str, Callable[[Source, ExportSpec], tuple[bytes, dict]]] = {
    "onnx": _onnx_bytes,
    "torchscript": lambda source, spec: (to_torchscript(source.graph(spec), source.metadata(spec)), {}),
    "aotinductor": _aotinductor_bytes,
    "aotinductor-cuda": _aotinductor_bytes,
    "native": _native_bytes,
    **dict.fromkeys(OWN, _foreign_bytes),
}


def unavailable(spec: ExportSpec) -> str:
    """Return why a row cannot be written on this machine; empty if it can."""
    if spec.format == "native":
        return no_compiler()
    if spec.format in OWN:
        return why_not(by_name(spec.format))
    if spec.format in DEVICES and not shutil.which("c++"):
        return "no C++ compiler here"
    if DEVICES.get(spec.format) == "cuda":
        return no_gpu()
    if (spec.format, spec.precision) == ("onnx", "bf16"):
        return (
            "ONNX's Conv supports bfloat16 from opset 22 only, for which ONNX Runtime has no CUDA kernel of GridSample"
        )
    return ""


def write(source: Source, spec: ExportSpec) -> Artifact | str:
    """Write one row's file and its manifest entry, or return why this network or this machine cannot have it.

    Raises:
        UserError: if a module that the exporter needs is missing, which is no property of the network.
    """
    if reason := unavailable(spec):
        return reason
    started = time.perf_counter()
    try:
        content, details = WRITERS[spec.format](source, spec)
    except UserError as error:
        return error.message
    except RefusedError as error:
        return str(error)
    except Exception as error:  # exporters may raise anything for an unsupported network
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, ImportError):
            raise _lacking(spec, root) from root
        return one_line(root)
    path = source.directory.path / spec.file
    before, beside = source.directory.artifacts.get(spec.name), details.pop("beside", {})
    for file in before.beside if before else ():
        (path.parent / file).unlink(missing_ok=True)
    for file, content_beside in (beside | {path.name: content}).items():
        write_atomically(path.parent / file, content_beside)
    opset = details.pop("opset", None)
    return source.directory.add(
        Artifact(
            name=spec.name,
            file=path.name,
            network=source.directory.name,
            format=spec.format,
            sha256=sha256_of(path),
            contract=source.contract(spec),
            parent_sha256=source.parent.sha256,
            lowering=spec.lowering,
            precision=spec.precision,
            opset=opset,
            settings=source.settings(spec),
            details=details | {"bytes": len(content), "seconds": round(time.perf_counter() - started, 2)},
            environment=describe(),
            beside={file: sha256_of(path.parent / file) for file in beside},
        )
    )


def _lacking(spec: ExportSpec, error: ImportError) -> UserError:
    """Return the error for a missing exporter module, or a package too old to have it, with what to install."""
    package = (error.name or "").partition(".")[0]
    hint = f"pip install --upgrade {package}" if package else "install a newer version of the package that it names"
    return UserError(f"{spec.name} cannot be written here: {one_line(error)}", hint)


# The model card, ``MODEL_CARD.md``.


TEMPLATE = "MODEL_CARD.md.j2"
SHORT_HASH = 12


def write_model_card(run: Path) -> bool:
    """Write ``<run>/MODEL_CARD.md`` if its content changes; return whether it did.

    Raises:
        UserError: if the run has no networks, or one of its artifacts is missing, edited or stale.
    """
    loader = jinja2.PackageLoader("stn_export", "resources")
    environment = jinja2.Environment(loader=loader, finalize=in_markdown, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"sizes": by, "raw": markupsafe.Markup}
    text = environment.get_template(TEMPLATE).render(card_facts(run))
    return write_if_changed(run / MODEL_CARD, text.encode())


def card_facts(run: Path) -> dict:
    """Return the template's values: the summary, networks, their files, trainings if any, and how to call the files."""
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
    """Describe inputs or outputs for people: ``N×3×32×32 float32, (x / 255 - 0.5) / 0.5``; with names if several."""
    return "; ".join(f"{spec.name} " * (len(specs) > 1) + _meaning(spec) for spec in specs)


def _meaning(spec: TensorSpec) -> str:
    if spec.pixels is not None:
        return f"{spec.text}, {spec.pixels}"
    return f"{spec.text}, bytes as they are" if spec.dtype == "uint8" and spec.is_picture else spec.text
