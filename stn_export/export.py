"""Write every artifact of the export matrix: ``python -m stn_export.export``.

ONNX goes through the dynamo exporter, TorchScript through tracing and freezing. What an artifact was made from stands
in the manifest and inside the file.
"""

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

import onnx
import torch
from torch import Tensor, nn

from stn_export import cli, modelcard, triton
from stn_export.artifacts import (
    MODEL_CARD,
    Artifact,
    ModelDirectory,
    fingerprint,
    model_directories,
    sha256_of,
    write_atomically,
)
from stn_export.checkpoint import Checkpoint, load_checkpoint
from stn_export.config import (
    ALIGN_CORNERS,
    ARTIFACTS,
    DEFAULT_DATASET,
    EXPORTS,
    IMAGE_SHAPE,
    INPUT_NAME,
    MEAN,
    OUTPUT_NAME,
    STD,
    ExportSpec,
)
from stn_export.environment import describe, git_commit, versions
from stn_export.errors import UserError, require_choice
from stn_export.lowering import LOWERINGS
from stn_export.torchscript import to_torchscript

EXAMPLE_BATCH = 2  # a batch of 1 would be taken for a constant


def export_onnx(
    module: nn.Module,
    images: Tensor,
    *,
    lowering: str = "matmul",
    opset: int = 18,
) -> onnx.ModelProto:
    """Export a module of one input and one output with a dynamic batch.

    Args:
        module: in evaluation mode, from images to log-probabilities.
        images: an example batch of at least 2.
        lowering: how ``affine_grid`` is written, a key of ``lowering.LOWERINGS``.
        opset: the ONNX operator set.

    Raises:
        UserError: for an unknown lowering, or an opset that it cannot be written at.
    """
    require_choice("lowering", lowering, list(LOWERINGS))
    rule = LOWERINGS[lowering]
    if opset not in rule.opsets:
        span = f"{rule.opsets[0]} to {rule.opsets[-1]}"
        raise UserError(f"lowering {lowering} cannot be written at opset {opset}", f"choose an opset from {span}")
    table = {torch.ops.aten.affine_grid_generator.default: rule.translate} if rule.translate else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter's own making
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table=table,
        )
    model = program.model_proto
    strip_traces(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def strip_traces(model: onnx.ModelProto) -> None:
    """Drop the exporter's per-node notes, which hold file paths of this machine and outweigh the graph."""
    for part in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        del part.metadata_props[:]
        part.doc_string = ""


def _onnx_bytes(checkpoint: Checkpoint, spec: ExportSpec, metadata: dict) -> tuple[bytes, dict]:
    model = export_onnx(checkpoint.model, example_batch(), lowering=spec.lowering, opset=spec.opset)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    operators = Counter(node.op_type for node in model.graph.node)
    return model.SerializeToString(), {
        "ir_version": model.ir_version,
        "operators": dict(sorted(operators.items())),
    }


def _torchscript_bytes(checkpoint: Checkpoint, spec: ExportSpec, metadata: dict) -> tuple[bytes, dict]:
    return to_torchscript(checkpoint.model, example_batch(), metadata), {}


EXPORTERS: dict[str, Callable[[Checkpoint, ExportSpec, dict], tuple[bytes, dict]]] = {
    "onnx": _onnx_bytes,
    "torchscript": _torchscript_bytes,
}


def example_batch() -> Tensor:
    """Two fixed random images to trace with."""
    return torch.rand(EXAMPLE_BATCH, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def export_artifact(directory: ModelDirectory, checkpoint: Checkpoint, spec: ExportSpec) -> Artifact:
    """Write one row of the matrix and list it in the manifest."""
    parent = directory.checkpoint()
    metadata = {
        "model": directory.model,
        "classes": checkpoint.meta["classes"],
        "normalisation": {"mean": MEAN, "std": STD},
        "align_corners": ALIGN_CORNERS,
        "checkpoint_sha256": parent.sha256,
        "git_commit": git_commit(),
        "versions": versions(),
    }
    started = time.perf_counter()
    content, details = EXPORTERS[spec.format](checkpoint, spec, metadata)
    path = directory.path / (spec.name + spec.suffix)
    write_atomically(path, content)
    return directory.add(
        Artifact(
            name=spec.name,
            file=path.name,
            model=directory.model,
            format=spec.format,
            sha256=sha256_of(path),
            parent_sha256=parent.sha256,
            lowering=spec.lowering,
            precision=spec.precision,
            opset=spec.opset,
            input_contract=parent.input_contract,
            settings=settings_of(spec),
            details=details | {"bytes": len(content), "seconds": round(time.perf_counter() - started, 2)},
            environment=describe(),
        )
    )


def settings_of(spec: ExportSpec) -> dict:
    """What an export depends on beside its checkpoint: its row and the exporters' versions."""
    relevant = ("torch", "onnx", "onnxscript", "stn_export")
    row = json.loads(json.dumps(asdict(spec)))  # as it reads back from the manifest
    return row | {"versions": fingerprint(f"{key}={versions()[key]}".encode() for key in relevant)[:16]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Export every model of a run, leaving alone what is up to date."""
    parser = cli.stage("export", "Export a run's models to ONNX and TorchScript.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/{DEFAULT_DATASET}")
    parser.add_argument("--triton", type=cli.path_or_none, metavar="DIR", help="write a Triton model repository there")
    options = parser.parse_args(arguments)
    run = options.run or ARTIFACTS / DEFAULT_DATASET

    rows = []
    for directory in model_directories(run):
        parent = directory.checkpoint()
        checkpoint = load_checkpoint(directory.open(parent))
        for spec in EXPORTS:
            if directory.model not in spec.models:
                continue
            fresh = directory.holds(spec.name, parent.sha256, settings_of(spec))
            artifact = directory.artifacts[spec.name] if fresh else export_artifact(directory, checkpoint, spec)
            rows.append(_row(artifact, "up to date" if fresh else f"exported in {artifact.details['seconds']} s"))
    cli.table("Exports", ("artifact", "format", "lowering", "opset", "operators", "KiB", "state"), rows)
    if modelcard.write_model_card(run):
        cli.say(f"wrote {run / MODEL_CARD}")
    if options.triton:
        cli.say(f"{options.triton} serves {', '.join(triton.write_repository(run, options.triton))}")


def _row(artifact: Artifact, state: str) -> tuple[str, ...]:
    operators = artifact.details.get("operators")
    return (
        f"{artifact.model}/{artifact.name}",
        artifact.format,
        artifact.lowering or "",
        str(artifact.opset or "–"),
        str(sum(operators.values())) if operators else "–",
        f"{artifact.details['bytes'] / 1024:.0f}",
        state,
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
