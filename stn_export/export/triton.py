"""Write a model repository for NVIDIA Triton Inference Server from a run.

One model per ONNX and TorchScript artifact whose batch was not fixed on request: ``<model>_<artifact>/1/model.onnx``,
``config.pbtxt`` and, for a classifier, ``labels.txt``.

The configuration is an ``inference.ModelConfig`` in protobuf's text format; the names of its fields are those of
``model_config.proto`` in https://github.com/triton-inference-server/common.
If every input and output has a dynamic batch, Triton gathers requests into larger batches; else the configuration
gives whole shapes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypedDict

from stn_export.errors import UserError
from stn_export.program.specs import TensorSpec
from stn_export.run.manifest import REPOSITORY_FILE, REPOSITORY_SCHEMA, Artifact, network_directories
from stn_export.run.store import json_bytes, read_json, sweep, write_if_changed

MAX_BATCH, PREFERRED_BATCHES = 64, (16, 64)  # requests are gathered up to so many examples
MAX_DELAY_US = 1000  # how long a request waits for others, in microseconds
LABELS = "labels.txt"
CONFIG = "config.pbtxt"
REMEDY = "name a new or empty directory with --triton"


class _Listing(TypedDict):
    """Content of ``repository.json``: every file that was written."""

    files: list[str]


class Symbol(str):
    """An enum value, written without quotes."""


@dataclass(frozen=True)
class Backend:
    """How Triton runs a format: its backend, platform and file name, and whether it knows tensors by their names."""

    backend: str
    platform: str
    file: str
    named: bool = True


BACKENDS = {
    "onnx": Backend("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    "torchscript": Backend("pytorch", "pytorch_libtorch", "model.pt", named=False),
}
DATA_TYPES = {
    name: Symbol(f"TYPE_{kind}")
    for name, kind in (
        ("bool", "BOOL"),
        *((f"{sign}int{bits}", f"{sign.upper()}INT{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *((f"float{bits}", f"FP{bits}") for bits in (16, 32, 64)),
        ("bfloat16", "BF16"),
    )
}


def model_name(artifact: Artifact) -> str:
    """Return the model's name for clients, also its directory's: ``stn_matmul_fp32``."""
    return f"{artifact.network}_{artifact.name}".replace("-", "_")


def model_config(artifact: Artifact, classes: tuple[str, ...]) -> dict:
    """Return the fields of the artifact's ``ModelConfig``.

    Args:
        artifact: of a format in ``BACKENDS``.
        classes: class names, for the first float output with that many columns; empty if it is no classifier.
    """
    backend, contract = BACKENDS[artifact.format], artifact.contract
    gathered = contract.batch is None and all(spec.batched for spec in (*contract.inputs, *contract.outputs))
    inputs, outputs = (
        [
            _tensor(spec, spec.name if backend.named else f"{side}__{index}", gathered)
            for index, spec in enumerate(specs)
        ]
        for side, specs in (("INPUT", contract.inputs), ("OUTPUT", contract.outputs))
    )
    if (labelled := _labelled(artifact, classes)) is not None:
        outputs[labelled]["label_filename"] = LABELS
    batching = {"preferred_batch_size": PREFERRED_BATCHES, "max_queue_delay_microseconds": MAX_DELAY_US}
    return {
        "name": model_name(artifact),
        "backend": backend.backend,
        "platform": backend.platform,
        "max_batch_size": MAX_BATCH if gathered else 0,
        "input": inputs,
        "output": outputs,
        **({"dynamic_batching": batching} if gathered else {}),
        "instance_group": {"count": 1, "kind": Symbol("KIND_AUTO")},
        "parameters": [
            {"key": key, "value": {"string_value": value}}
            for key, value in (("sha256", artifact.sha256), ("program_sha256", artifact.parent_sha256))
        ],
    }


def _tensor(spec: TensorSpec, name: str, gathered: bool) -> dict:
    """Return an input or output; its dims leave out a batch that Triton gathers, and a scalar has one of size 1."""
    shape = spec.shape[1:] if gathered else spec.shape
    dims = tuple(size if isinstance(size, int) else -1 for size in shape)
    scalar: dict[str, object] = {} if dims else {"reshape": {}}
    return {"name": name, "data_type": DATA_TYPES[spec.dtype], "dims": dims or (1,)} | scalar


def _labelled(artifact: Artifact, classes: tuple[str, ...]) -> int | None:
    """Return the position of the output whose columns are the classes; None if there is none."""
    fitting = [spec.is_float and spec.shape[1:] == (len(classes),) for spec in artifact.contract.outputs]
    return fitting.index(True) if classes and True in fitting else None


def to_text(fields: Mapping[str, object], indent: str = "") -> str:
    """Write fields in protobuf's text format: dicts are messages, lists repeat their field, tuples are number lists."""
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
    """Yield every file of a run's repository: its path inside it, with slashes, and its bytes.

    Raises:
        UserError: if the run has no models, or one of its artifacts is missing, edited or stale.
    """
    for directory in network_directories(run):
        classes = directory.facts.classes
        for artifact, path in directory.expected():
            if artifact.format not in BACKENDS or artifact.settings["batch"] is not None:
                continue  # unknown to Triton, or with a static batch
            name = model_name(artifact)
            if _labelled(artifact, classes) is not None:
                yield f"{name}/{LABELS}", "".join(f"{label}\n" for label in classes).encode()
            yield f"{name}/1/{BACKENDS[artifact.format].file}", path.read_bytes()
            yield f"{name}/{CONFIG}", to_text(model_config(artifact, classes)).encode()


def write_repository(run: Path, target: Path) -> list[str]:
    """Write a run's model repository into ``target`` and return the names of its models.

    Files from an earlier call are replaced, or removed if the run no longer has them; unchanged files keep their
    modification time, so that a polling server loads only what is new.

    Raises:
        UserError: if ``target`` contains anything that this function did not write, or the run cannot be served.
    """
    written = _written_before(target)
    planned = dict(repository_files(run))
    try:
        _replace(target, written, planned)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}", REMEDY) from error
    return sorted(str(PurePosixPath(name).parent) for name in planned if name.endswith(CONFIG))


def _replace(target: Path, written: set[str], planned: dict[str, bytes]) -> None:
    # list before writing: whatever an interrupted call leaves, the next may replace
    _list_files(target, written | set(planned))
    for name, content in planned.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_if_changed(target / name, content)
    for name in written - set(planned):
        _remove(target, name)
    _list_files(target, set(planned))


def _list_files(target: Path, names: set[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    write_if_changed(target / REPOSITORY_FILE, json_bytes(REPOSITORY_SCHEMA, {"files": sorted(names)}))


def _written_before(target: Path) -> set[str]:
    """Return the files that an earlier call wrote into ``target``.

    Raises:
        UserError: if ``target`` holds anything else, or its listing is damaged.
    """
    if not target.exists():
        return set()
    if not target.is_dir():
        raise UserError(f"{target} is not a directory", REMEDY)
    listing = target / REPOSITORY_FILE
    listed = set(read_json(listing, REPOSITORY_SCHEMA, _Listing)["files"]) if listing.exists() else set()
    if outside := [name for name in listed if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute()]:
        raise UserError(f"{listing} is damaged: it lists {outside[0]}", REMEDY)
    sweep(target)
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if foreign := sorted(files - listed - {REPOSITORY_FILE}):
        raise UserError(f"{target} holds {foreign[0]}, which an export did not write", REMEDY)
    return listed & files


def _remove(target: Path, name: str) -> None:
    """Delete a file and the directories that this leaves empty."""
    path = target / name
    path.unlink(missing_ok=True)
    for folder in path.relative_to(target).parents[:-1]:
        if (target / folder).is_dir() and not any((target / folder).iterdir()):
            (target / folder).rmdir()
