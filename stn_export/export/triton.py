"""A model repository for NVIDIA Triton Inference Server, written from a run.

One model per ONNX and TorchScript artifact: ``<model>_<artifact>/1/model.onnx``, ``config.pbtxt`` and ``labels.txt``.
The configuration is an ``inference.ModelConfig`` in protobuf's text format; the names of its fields are those of
``model_config.proto`` in https://github.com/triton-inference-server/common.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stn_export.artifacts.files import json_bytes, read_json, write_if_changed
from stn_export.artifacts.manifest import (
    REPOSITORY_FILE,
    REPOSITORY_SCHEMA,
    Artifact,
    NetworkDirectory,
    network_directories,
)
from stn_export.config import INPUT_NAME, OUTPUT_NAME, SERVING
from stn_export.errors import UserError
from stn_export.train.data import class_names

LABELS = "labels.txt"
CONFIG = "config.pbtxt"
REMEDY = "name a new or empty directory with --triton"


class Symbol(str):
    """An enum value: written without quotes."""


@dataclass(frozen=True)
class Backend:
    """How Triton runs a format: its backend, platform and file name, and what it calls the input and the output."""

    backend: str
    platform: str
    file: str
    input: str
    output: str


# libtorch has no names for tensors: Triton takes the number behind the two underscores for the position
BACKENDS = {
    "onnx": Backend("onnxruntime", "onnxruntime_onnx", "model.onnx", INPUT_NAME, OUTPUT_NAME),
    "torchscript": Backend("pytorch", "pytorch_libtorch", "model.pt", "INPUT__0", "OUTPUT__0"),
}
DATA_TYPES = {"float32": Symbol("TYPE_FP32"), "float16": Symbol("TYPE_FP16"), "uint8": Symbol("TYPE_UINT8")}


def model_name(artifact: Artifact) -> str:
    """The name that clients ask for, and the model's directory: ``stn_matmul_fp32``."""
    return f"{artifact.model}_{artifact.name}".replace("-", "_")


def model_config(artifact: Artifact, classes: tuple[str, ...]) -> dict:
    """The fields of the artifact's ``ModelConfig``; dims leave out the batch, which any number up to the maximum is."""
    backend, contract = BACKENDS[artifact.format], artifact.input_contract
    return {
        "name": model_name(artifact),
        "backend": backend.backend,
        "platform": backend.platform,
        "max_batch_size": SERVING.max_batch,
        "input": {
            "name": backend.input,
            "data_type": DATA_TYPES[contract["dtype"]],
            "dims": tuple(contract["shape"][1:]),
        },
        "output": {
            "name": backend.output,
            "data_type": DATA_TYPES["float32"],
            "dims": (len(classes),),
            "label_filename": LABELS,
        },
        "dynamic_batching": {
            "preferred_batch_size": SERVING.preferred_batches,
            "max_queue_delay_microseconds": SERVING.max_delay_us,
        },
        "instance_group": {"count": SERVING.instances, "kind": Symbol("KIND_AUTO")},
        "parameters": [
            {"key": key, "value": {"string_value": value}}
            for key, value in (("sha256", artifact.sha256), ("checkpoint_sha256", artifact.parent_sha256))
        ],
    }


def to_text(fields: Mapping[str, object], indent: str = "") -> str:
    """Fields in protobuf's text format: dicts are messages, lists repeat their field, tuples are lists of numbers."""
    return "".join(_field(name, value, indent) for name, value in fields.items())


def _field(name: str, value: object, indent: str) -> str:
    if isinstance(value, list):
        return "".join(_field(name, item, indent) for item in value)
    if isinstance(value, dict):
        return f"{indent}{name} {{\n{to_text(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, tuple):
        return f"{indent}{name}: {list(value)}\n"
    return f"{indent}{name}: {value if isinstance(value, int | Symbol) else json.dumps(value)}\n"


def repository_files(run: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a run's repository: its path inside it, with slashes, and its bytes.

    Raises:
        UserError: where the run has no models, or one of its artifacts is missing, edited or stale.
    """
    for directory in network_directories(run):
        classes = class_names(directory.checkpoint())
        for artifact, path in _servable(directory):
            name = model_name(artifact)
            yield f"{name}/{LABELS}", "".join(f"{label}\n" for label in classes).encode()
            yield f"{name}/1/{BACKENDS[artifact.format].file}", path.read_bytes()
            yield f"{name}/{CONFIG}", to_text(model_config(artifact, classes)).encode()


def _servable(directory: NetworkDirectory) -> list[tuple[Artifact, Path]]:
    return [(artifact, path) for artifact, path in directory.expected() if _can_be_served(artifact)]


def _can_be_served(artifact: Artifact) -> bool:
    """Of a format that Triton knows, and with an open batch: requests are gathered into batches of any size."""
    return artifact.format in BACKENDS and artifact.input_contract["shape"][0] == "N"


def write_repository(run: Path, target: Path) -> list[str]:
    """Write a run's model repository into ``target`` and return the names of its models.

    What an earlier call wrote there is replaced, and removed where the run has it no longer; a file that is already
    right keeps its time, so that a polling server loads only what is new.

    Raises:
        UserError: where ``target`` holds anything that this function did not write, or the run cannot be served.
    """
    written = _written_before(target)
    planned = dict(repository_files(run))
    try:
        _replace(target, written, planned)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}", REMEDY) from error
    return sorted(str(PurePosixPath(name).parent) for name in planned if name.endswith(CONFIG))


def _replace(target: Path, written: set[str], planned: dict[str, bytes]) -> None:
    # listed before they are written: an interrupted call leaves nothing that the next would refuse to replace
    _list_files(target, written | set(planned))
    for name, content in planned.items():
        write_if_changed(target / name, content)
    for name in written - set(planned):
        _remove(target, name)
    _list_files(target, set(planned))


def _list_files(target: Path, names: set[str]) -> None:
    write_if_changed(target / REPOSITORY_FILE, json_bytes(REPOSITORY_SCHEMA, {"files": sorted(names)}))


def _written_before(target: Path) -> set[str]:
    """What an earlier call wrote into ``target``, once nothing else is known to be there."""
    if not target.exists():
        return set()
    if not target.is_dir():
        raise UserError(f"{target} is not a directory", REMEDY)
    listing = target / REPOSITORY_FILE
    listed = set(read_json(listing, REPOSITORY_SCHEMA).get("files", [])) if listing.exists() else set()
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if foreign := sorted(found - listed - {REPOSITORY_FILE}):
        raise UserError(f"{target} holds {foreign[0]}, which an export did not write", REMEDY)
    return listed & found


def _remove(target: Path, name: str) -> None:
    """Delete a file that was listed, and the directories that it leaves empty."""
    path = target / name
    path.unlink(missing_ok=True)
    for folder in path.relative_to(target).parents[:-1]:
        if (target / folder).is_dir() and not any((target / folder).iterdir()):
            (target / folder).rmdir()
