"""Write the export matrix: ``python -m stn_export.export``; ``--list`` shows it.

ONNX goes through the dynamo exporter, TorchScript through tracing and freezing, .pt2 through ``torch.export``. What an
artifact was made from stands in the manifest and inside the file.
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from stn_export import cli
from stn_export.artifacts.environment import describe, git_commit, versions
from stn_export.artifacts.files import fingerprint, sha256_of, write_atomically
from stn_export.artifacts.manifest import MODEL_CARD, Artifact, NetworkDirectory, network_directories
from stn_export.config import (
    ALIGN_CORNERS,
    ARTIFACTS,
    CALIBRATION_IMAGES,
    CHECKPOINT,
    CONTRACTS,
    DEFAULT_DATASET,
    DEFAULT_EXPORT,
    EXPORTS,
    IMAGE_SHAPE,
    INPUT_NAME,
    MEAN,
    OUTPUT_NAME,
    STD,
    ExportSpec,
)
from stn_export.errors import UserError, require_choice
from stn_export.export import matrix, modelcard, triton
from stn_export.export.onnx_export import export_default, export_onnx
from stn_export.export.optimise import optimise
from stn_export.export.quantise import quantise
from stn_export.export.variants import BODY_TYPES, at_precision, with_contract
from stn_export.graphs.deployment import audit
from stn_export.graphs.graph import initialiser_bytes
from stn_export.runners import torch_files
from stn_export.train.checkpoint import Checkpoint, load_checkpoint
from stn_export.train.data import contract_batch, seen_in_training, trained_on

EXAMPLE_BATCH = 2  # a batch of 1 would be taken for a constant
DEVICES = {"aotinductor": "cpu", "aotinductor-cuda": "cuda"}


@dataclass(frozen=True)
class Source:
    """What a model's exports are made from."""

    directory: NetworkDirectory
    checkpoint: Checkpoint
    data: Path | None

    @cached_property
    def calibration(self) -> Tensor:
        """The first training images, uint8: read only where something is quantised."""
        return seen_in_training(trained_on(self.directory.checkpoint(), self.data), CALIBRATION_IMAGES)

    def module(self, spec: ExportSpec) -> nn.Module:
        """The model at the row's precision, fed as its contract says; int8 starts from float32."""
        precision = spec.precision if spec.precision in BODY_TYPES else "fp32"
        return with_contract(at_precision(self.checkpoint.model, precision), CONTRACTS[spec.contract])

    def metadata(self, spec: ExportSpec) -> dict:
        """What travels inside the file."""
        return {
            "model": self.directory.model,
            "classes": self.checkpoint.meta["classes"],
            "normalisation": {"mean": MEAN, "std": STD, "inside": spec.contract != "float"},
            "align_corners": ALIGN_CORNERS,
            "precision": spec.precision,
            "input_contract": contract_of(spec),
            "checkpoint_sha256": self.directory.checkpoint().sha256,
            "git_commit": git_commit(),
            "versions": versions(),
        }


def example_batch(spec: ExportSpec) -> Tensor:
    """Two fixed random images to capture the model with."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (spec.batch or EXAMPLE_BATCH, *IMAGE_SHAPE), generator=random, dtype=torch.uint8)
    return torch.from_numpy(contract_batch(images, CONTRACTS[spec.contract].as_dict()))


def _onnx_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    names = {"input_names": [INPUT_NAME], "output_names": [OUTPUT_NAME]}
    if spec.lowering == DEFAULT_EXPORT:
        model = export_default(source.module(spec), example_batch(spec), **names)
    else:
        how = {"lowering": spec.lowering, "dynamic_batch": spec.batch is None}
        model = export_onnx(source.module(spec), example_batch(spec), **how, **names)
    if spec.precision == "int8":
        model = quantise(model, source.calibration)
    notes = {prop.key: prop.value for prop in model.metadata_props}
    nodes_before = len(model.graph.node)
    if spec.optimised:
        model = optimise(model)
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
    }
    return model.SerializeToString(deterministic=True), details


def _on_cuda(model: onnx.ModelProto) -> dict:
    """Where ONNX Runtime's CUDA provider would leave the model: what falls to the CPU, copies, CUDA graph or not."""
    found = audit(model, "cuda")
    return {
        "predicted": found.predicted,
        "fallbacks": [node.op_type for node in found.fallbacks],
        "copies": len(found.copies),
        "graph": found.capturable,
    }


def _torchscript_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    return torch_files.to_torchscript(source.module(spec), example_batch(spec), source.metadata(spec)), {}


def _pt2_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    return torch_files.to_pt2(source.module(spec), example_batch(spec), source.metadata(spec)), {}


def _aotinductor_bytes(source: Source, spec: ExportSpec) -> tuple[bytes, dict]:
    return torch_files.to_aotinductor(source.module(spec), example_batch(spec), DEVICES[spec.format]), {}


EXPORTERS: dict[str, Callable[[Source, ExportSpec], tuple[bytes, dict]]] = {
    "onnx": _onnx_bytes,
    "torchscript": _torchscript_bytes,
    "pt2": _pt2_bytes,
    "aotinductor": _aotinductor_bytes,
    "aotinductor-cuda": _aotinductor_bytes,
}


def unavailable(spec: ExportSpec) -> str:
    """Why a row cannot be written here, or an empty string."""
    if spec.format in DEVICES and not shutil.which("c++"):
        return "no C++ compiler here"
    if DEVICES.get(spec.format) == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no GPU here"
    if (spec.format, spec.precision) == ("onnx", "bf16"):
        return "ONNX's Conv takes bfloat16 from opset 22 only, where no CUDA GridSample is"
    return ""


def export_artifact(source: Source, spec: ExportSpec) -> Artifact:
    """Write one row of the matrix and list it in the manifest.

    Raises:
        UserError: where the row cannot be written here.
    """
    if reason := unavailable(spec):
        raise UserError(f"{spec.name} cannot be written here: {reason}", "python -m stn_export.export --list")
    started = time.perf_counter()
    content, details = EXPORTERS[spec.format](source, spec)
    path = source.directory.path / spec.file
    write_atomically(path, content)
    opset = details.pop("opset", None)
    return source.directory.add(
        Artifact(
            name=spec.name,
            file=path.name,
            model=source.directory.model,
            format=spec.format,
            sha256=sha256_of(path),
            parent_sha256=source.directory.checkpoint().sha256,
            lowering=spec.lowering,
            precision=spec.precision,
            opset=opset,
            input_contract=contract_of(spec),
            settings=settings_of(spec),
            details=details | {"bytes": len(content), "seconds": round(time.perf_counter() - started, 2)},
            environment=describe(),
        )
    )


def contract_of(spec: ExportSpec) -> dict:
    """The row's input contract, its batch filled in where that is fixed."""
    contract = CONTRACTS[spec.contract].as_dict()
    return contract | {"shape": [spec.batch or "N", *contract["shape"][1:]]}


def settings_of(spec: ExportSpec) -> dict:
    """What an export depends on beside its checkpoint: its row and the exporters' versions."""
    relevant, found = ("torch", "onnx", "onnxscript", "stn_export"), versions()
    return asdict(spec) | {"versions": fingerprint(f"{key}={found[key]}".encode() for key in relevant)[:16]}


def chosen_exports(directory: NetworkDirectory, names: list[str]) -> list[ExportSpec]:
    """The named rows of the model's matrix, else its default ones and all that was asked for before."""
    rows = [spec for spec in EXPORTS if spec.applies_to(directory.model)]
    if names:
        return [spec for spec in rows if spec.name in names]
    chosen = [spec for spec in rows if spec.default]
    before = []
    for name, artifact in directory.artifacts.items():
        if name != CHECKPOINT and (spec := _spec_of(artifact)).name == name:
            before.append(spec)
        elif name != CHECKPOINT:
            directory.forget(name)
            cli.say(f"{directory.model}/{name}: no row of the matrix any more, listed no longer")
    return chosen + [spec for spec in before if spec not in chosen]


def _spec_of(artifact: Artifact) -> ExportSpec:
    """The row that an artifact was written from; it stands among its settings."""
    return ExportSpec(**{name: value for name, value in artifact.settings.items() if name != "versions"})


def with_variants(specs: list[ExportSpec], batch: int | None, optimised: bool) -> list[ExportSpec]:
    """The rows, and behind them the ONNX ones again with a fixed batch or optimised ahead of time.

    Raises:
        UserError: for a batch below 1.
    """
    if batch is not None and batch < 1:
        raise UserError(f"a batch of {batch} holds no image", "give --batch 1 or more")
    float_rows = [spec for spec in specs if (spec.format, spec.precision, spec.batch) == ("onnx", "fp32", None)]
    fixed = [replace(spec, batch=batch) for spec in float_rows] if batch else []
    return specs + fixed + ([replace(spec, optimised=True) for spec in float_rows] if optimised else [])


def main(arguments: Sequence[str] | None = None) -> None:
    """Export every model of a run, leaving alone what is up to date."""
    parser = cli.stage("export", "Export a run's models: ONNX, TorchScript, torch.export, AOTInductor.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/{DEFAULT_DATASET}")
    parser.add_argument("--data", type=cli.path_or_none, help="directory that holds CIFAR-10, to calibrate int8 on")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these rows, also those that are not default")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="also write the chosen ONNX rows with a batch of N, fixed"
    )
    parser.add_argument(
        "--optimise", action="store_true", help="also write the chosen ONNX rows optimised ahead of time"
    )
    parser.add_argument("--triton", type=cli.path_or_none, metavar="DIR", help="write a Triton model repository there")
    parser.add_argument("--list", action="store_true", help="show the matrix and what of it is there")
    options = parser.parse_args(arguments)
    run = options.run or ARTIFACTS / DEFAULT_DATASET
    if options.list:
        reasons = {spec.name: unavailable(spec) for spec in EXPORTS}
        cli.table(f"Export matrix of {run}", matrix.COLUMNS, list(matrix.matrix_rows(run, reasons)))
        return
    names = [require_choice("export", name, [spec.name for spec in EXPORTS]) for name in options.only or []]
    rows = []
    for directory in network_directories(run):
        source = Source(directory, load_checkpoint(directory.open(directory.checkpoint())), options.data)
        specs = with_variants(chosen_exports(directory, names), options.batch, options.optimise)
        rows += [_export_row(source, spec) for spec in specs]
    cli.table("Exports", ("artifact", "format", "opset", "KiB", "nodes", "state"), rows)
    if modelcard.write_model_card(run):
        cli.say(f"wrote {run / MODEL_CARD}")
    if options.triton:
        cli.say(f"{options.triton} serves {', '.join(triton.write_repository(run, options.triton))}")


def _export_row(source: Source, spec: ExportSpec) -> tuple[str, ...]:
    directory = source.directory
    if directory.holds(spec.name, directory.checkpoint().sha256, settings_of(spec)):
        artifact, state = directory.artifacts[spec.name], "up to date"
    else:
        artifact = export_artifact(source, spec)
        state = f"exported in {artifact.details['seconds']} s"
    opset = str(artifact.opset or matrix.NONE)
    return (f"{artifact.model}/{artifact.name}", artifact.format, opset, *matrix.sizes(artifact), state)


if __name__ == "__main__":
    sys.exit(cli.run(main))
