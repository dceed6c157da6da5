"""Files of any origin, opened to be compared: ours with or without their manifest, and other people's ONNX."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stn_export.artifacts.manifest import MANIFEST, Artifact, NetworkDirectory
from stn_export.config import CONTRACTS, FORMATS, INPUT_NAME, OUTPUT_NAME
from stn_export.errors import UserError
from stn_export.graphs.graph import OnnxFile, read_model
from stn_export.runners import FLOAT, RUNNERS, Runner
from stn_export.runners.torch_files import read_metadata

SUFFIXES = {".pt": "checkpoint"} | {suffix: name for name, suffix in FORMATS.items()}
USABLE = "name two .onnx, .ts, .pt2 or checkpoint.pt files"
TYPES = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}  # as ONNX Runtime calls them

Arrays = dict[str, np.ndarray]
Signature = dict[str, tuple[str, tuple[int | None, ...]]]  # type and dimensions by name, None where open


@dataclass(frozen=True)
class Side:
    """An opened file. ``artifact`` has no input contract where the file says nothing of images."""

    path: Path
    artifact: Artifact
    runner: Runner
    onnx: OnnxFile | None
    directory: NetworkDirectory | None = None  # where a manifest lists the file

    @property
    def origin(self) -> str | None:
        """The sha256 of the checkpoint it was made from, or that it is; None where it is not known."""
        return self.artifact.parent_sha256 or self.artifact.sha256 or None

    @property
    def signature(self) -> Signature:
        """An ONNX file's declared inputs."""
        return {
            each.name: (each.type, tuple(size if isinstance(size, int) else None for size in each.shape))
            for each in self.runner.session.get_inputs()
        }

    def feed(self, batch: np.ndarray) -> Arrays:
        """A batch of images under the name of the one input that takes it."""
        return {next(iter(self.signature)) if self.onnx else INPUT_NAME: batch}

    def run(self, feeds: Arrays) -> Arrays | str:
        """Every output by name, or why there is none; in filled-up batches where the artifact's own is fixed."""
        if self.runner.batch is None:
            return self._run(feeds)
        [(name, images)] = feeds.items()
        parts = [self._run({name: part}) for part in _filled(images, self.runner.batch)]
        if failures := [part for part in parts if isinstance(part, str)]:
            return failures[0]
        return {output: np.concatenate([part[output] for part in parts])[: len(images)] for output in parts[0]}

    def _run(self, feeds: Arrays) -> Arrays | str:
        """What a foreign file raises is its own affair."""
        try:
            if self.onnx is None:
                return {OUTPUT_NAME: self.runner.infer(feeds[INPUT_NAME])}
            names = [each.name for each in self.runner.session.get_outputs()]
            return dict(zip(names, self.runner.session.run(names, feeds), strict=True))
        except Exception as error:
            return f"{self.path} does not run on it: {_first_line(error)}"


def _filled(images: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of ``size`` images, zeros added to the last."""
    rest = -len(images) % size
    zeros = np.zeros((rest, *images.shape[1:]), images.dtype)
    return list(np.concatenate([images, zeros]).reshape(-1, size, *images.shape[1:]))


def open_side(path: Path) -> Side:
    """Open a file; where a manifest beside it lists it, its bytes are checked and its contract is taken from there.

    Raises:
        UserError: where it is missing, edited, of an unknown kind or unreadable.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}", USABLE)
    directory = NetworkDirectory(path.parent)
    for artifact in _entries(directory).values():
        if artifact.file == path.name:
            return open_listed(directory, artifact)
    suffix = next((each for each in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(each)), None)
    if suffix is None:
        raise UserError(f"{path} is of no kind that can be compared", USABLE)
    return _open_unlisted(path, SUFFIXES[suffix])


def _entries(directory: NetworkDirectory) -> dict[str, Artifact]:
    """What the manifest lists; nothing where there is none, or where it is somebody else's."""
    path = directory.path / MANIFEST
    ours = path.is_file() and '"stn_export/' in path.read_text(errors="replace")
    return directory.artifacts if ours else {}


def open_listed(directory: NetworkDirectory, artifact: Artifact) -> Side:
    """Open an artifact of a run; one made from an older checkpoint will do.

    Raises:
        UserError: where it is missing, edited or unreadable.
    """
    path = directory.intact(artifact)
    onnx = read_model(path) if artifact.format == "onnx" else None
    return Side(path, artifact, _runner(path, artifact), onnx, directory)


def _open_unlisted(path: Path, kind: str) -> Side:
    """A file on its own: what its metadata says is believed; what is no ONNX takes images, normalised by default."""
    onnx = read_model(path) if kind == "onnx" else None
    said = {each.key: _parsed(each.value) for each in onnx.model.metadata_props} if onnx else read_metadata(path)
    contract = said.get("input_contract")
    ours = isinstance(contract, dict)
    artifact = Artifact(
        name=path.name,
        file=path.name,
        model="",
        format=kind,
        sha256="",
        parent_sha256=said.get("checkpoint_sha256") if ours else None,
        precision=said.get("precision", "fp32") if ours else "fp32",
        input_contract=contract if ours else {} if onnx else FLOAT,
    )
    return Side(path, artifact, _runner(path, artifact), onnx)


def _parsed(text: str) -> object:
    """A value of an ONNX file's metadata: ours are JSON, other people's any text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _runner(path: Path, artifact: Artifact) -> Runner:
    if artifact.format != "onnx" and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is truncated or no PyTorch file", USABLE)
    specs = [spec for spec in RUNNERS if (spec.format, spec.device) == (artifact.format, "cpu")]
    if not specs:
        raise UserError(f"{path} does not run on the CPU, where files are compared", USABLE)
    try:
        return specs[0].open(path, artifact.input_contract or FLOAT)
    except UserError:
        raise
    except Exception as error:  # what PyTorch and ONNX Runtime raise depends on the kind of damage
        raise UserError(f"{path} cannot be opened as {artifact.format}: {_first_line(error)}", USABLE) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def image_contract(side: Side) -> dict:
    """A side's input contract, or for another's ONNX file the one that its only input looks like; else empty."""
    if side.artifact.input_contract or len(side.signature) != 1:
        return side.artifact.input_contract
    kind, shape = next(iter(side.signature.values()))
    known = [contract.as_dict() for contract in CONTRACTS.values()]
    return next((each for each in known if (TYPES[each["dtype"]], each["shape"][1:]) == (kind, [*shape[1:]])), {})
