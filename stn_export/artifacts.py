"""The run directory: artifacts, their manifest, and writing that never leaves half a file.

``artifacts/<run>/<model>/manifest.json`` lists every file of one model with its hash, the hash of what it was made
from and the settings it was made with. A stage is up to date where all of them still hold.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stn_export.config import CHECKPOINT, EXPORTS, MODELS
from stn_export.errors import UserError

MANIFEST = "manifest.json"
CHECKPOINT_FILE = "checkpoint.pt"
STATE_FILE = "training.pt"
HISTORY_FILE = "history.jsonl"
VERIFY_FILE = "verify.json"
BENCH_FILE = "bench.json"
MODEL_CARD = "MODEL_CARD.md"
REPOSITORY_FILE = "repository.json"

MANIFEST_SCHEMA = "stn_export/manifest/1"
VERIFY_SCHEMA = "stn_export/verify/1"
REPORT_SCHEMA = "stn_export/report/1"
TRAINING_SCHEMA = "stn_export/training/1"
REPOSITORY_SCHEMA = "stn_export/triton/1"


@dataclass(frozen=True)
class Artifact:
    """One file and what it means. ``settings`` is all that a rebuild depends on beside the parent's bytes."""

    name: str
    file: str
    model: str
    format: str
    sha256: str
    parent_sha256: str | None = None
    lowering: str | None = None
    precision: str = "fp32"
    opset: int | None = None
    input_contract: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)


class ModelDirectory:
    """The artifacts of one model of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path.name

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """What the manifest lists, by name; empty where there is no manifest yet.

        Raises:
            UserError: where the manifest is not one of ours.
        """
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        content = read_json(path, MANIFEST_SCHEMA)
        return {name: Artifact(**entry) for name, entry in content["artifacts"].items()}

    def add(self, artifact: Artifact) -> Artifact:
        """List ``artifact``, whose file is already in place, instead of any older one of its name."""
        entries = self.artifacts | {artifact.name: artifact}
        content = {"artifacts": {name: asdict(entry) for name, entry in entries.items()}}
        write_json(self.path / MANIFEST, MANIFEST_SCHEMA, content)
        return artifact

    def forget(self, name: str) -> None:
        """List ``name`` no longer; its file stays."""
        entries = {listed: asdict(entry) for listed, entry in self.artifacts.items() if listed != name}
        write_json(self.path / MANIFEST, MANIFEST_SCHEMA, {"artifacts": entries})

    def holds(self, name: str, parent_sha256: str | None, settings: dict) -> bool:
        """Whether ``name`` is listed, made from this parent with these settings, and its file unchanged."""
        artifact = self.artifacts.get(name)
        return (
            artifact is not None
            and artifact.parent_sha256 == parent_sha256
            and artifact.settings == settings
            and (self.path / artifact.file).exists()
            and sha256_of(self.path / artifact.file) == artifact.sha256
        )

    def checkpoint(self) -> Artifact:
        """The trained checkpoint's entry.

        Raises:
            UserError: where none was trained.
        """
        artifact = self.artifacts.get(CHECKPOINT)
        if artifact is None:
            raise UserError(f"{self.path} holds no trained {self.model}", "run 'make train' first")
        return artifact

    def expected(self) -> list[tuple[Artifact, Path]]:
        """The checkpoint, every default export and all that was made on request, with their paths, bytes checked.

        Raises:
            UserError: where one is missing, edited or stale.
        """
        listed = self.artifacts
        names = [CHECKPOINT, *(spec.name for spec in EXPORTS if spec.default and spec.applies_to(self.model))]
        if missing := [name for name in names if name not in listed]:
            raise UserError(f"{self.path} lacks {', '.join(missing)}", "run 'make export' first")
        names += [name for name in listed if name not in names]
        return [(listed[name], self.open(listed[name])) for name in names]

    def intact(self, artifact: Artifact) -> Path:
        """The artifact's path, once its bytes are known to be those that the manifest lists.

        Raises:
            UserError: where the file is missing or was edited.
        """
        path = self.path / artifact.file
        remedy = f"run 'make {'train' if artifact.name == CHECKPOINT else 'export'}' to write it again"
        if not path.exists():
            raise UserError(f"{path} is listed in the manifest but missing", remedy)
        if sha256_of(path) != artifact.sha256:
            raise UserError(
                f"{path} was changed after it was written (its sha256 differs)", f"delete it, then {remedy}"
            )
        return path

    def open(self, artifact: Artifact) -> Path:
        """The same for an artifact that must be today's.

        Raises:
            UserError: where the file is missing, was edited, or was made from another checkpoint than today's.
        """
        path = self.intact(artifact)
        if artifact.name != CHECKPOINT and artifact.parent_sha256 != self.checkpoint().sha256:
            raise UserError(f"{path} is stale: it was exported from another checkpoint", "run 'make export' again")
        return path


def model_directories(run: Path) -> list[ModelDirectory]:
    """The models trained in ``run``, in the order of ``config.MODELS``.

    Raises:
        UserError: where the directory is missing or holds no trained model.
    """
    if not run.is_dir():
        raise UserError(f"there is no run at {run}", "run 'make train' first, or name another with --run")
    found = [ModelDirectory(run / model) for model in MODELS if (run / model / MANIFEST).exists()]
    if not found:
        raise UserError(f"{run} holds no trained model", "run 'make train' first, or name another with --run")
    return found


def read_history(directory: ModelDirectory) -> list[dict]:
    """The figures of every epoch of a model."""
    lines = (directory.path / HISTORY_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def seed_directory(run: Path, first: int, seed: int) -> Path:
    """Where a seed's models lie: the first one's in the run itself, any other's in a run of its own beneath it."""
    return run if seed == first else run / f"seed-{seed}"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[bytes]) -> str:
    """Hex digest of byte strings, each preceded by its length so that no two lists share one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all: to a neighbour first, flushed to disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_if_changed(path: Path, content: bytes) -> bool:
    """Write ``path`` atomically unless it holds these bytes already; says whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    write_atomically(path, content)
    return True


def write_json(path: Path, schema: str, content: dict) -> None:
    """Write ``content`` under its schema's name, atomically."""
    write_atomically(path, json_bytes(schema, content))


def json_bytes(schema: str, content: dict) -> bytes:
    """``content`` under its schema's name, as ``read_json`` takes it."""
    return (json.dumps({"schema": schema} | content, indent=1) + "\n").encode()


def read_json(path: Path, schema: str) -> dict:
    """Read what ``write_json`` wrote under the same schema.

    Raises:
        UserError: where the file is no JSON or of another schema.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}", "delete it and run the stage that writes it again"
        ) from error
    if not isinstance(content, dict) or content.get("schema") != schema:
        raise UserError(f"{path} is not of schema {schema}", "delete it and run the stage that writes it again")
    return content
