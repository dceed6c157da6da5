"""The run directory: networks and the artifacts made from each.

``artifacts/<run>/<network>/manifest.json`` says what a network is and lists every file of it with its hash, the hash of
what it was made from and the settings it was made with. A stage is up to date where all of them still hold. What a file
means stands there, never in its name.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from stn_export.artifacts.examples import Examples, load_examples
from stn_export.artifacts.files import json_bytes, read_json, sha256_of, write_atomically
from stn_export.errors import UserError
from stn_export.program.program import Program, load_program
from stn_export.program.specs import Contract

MANIFEST = "manifest.json"
LOCK = ".manifest.lock"
PROGRAM = "program"
PROGRAM_FILE = "program.pt2"
CHECKPOINT_FILE = "checkpoint.pt"
STATE_FILE = "training.pt"
HISTORY_FILE = "history.jsonl"
TRAINING_FILE = "training.json"
VERIFY_FILE = "verify.json"
POINTS_FILE = "points.pt"
BENCH_FILE = "bench.json"
MODEL_CARD = "MODEL_CARD.md"
REPOSITORY_FILE = "repository.json"

MANIFEST_SCHEMA = "stn_export/manifest/2"
VERIFY_SCHEMA = "stn_export/verify/2"
REPORT_SCHEMA = "stn_export/report/2"
TRAINING_SCHEMA = "stn_export/training/2"
REPOSITORY_SCHEMA = "stn_export/triton/1"

SUBJECT, PLAIN, OTHER = "subject", "plain", "other"
TWIN_NOTE = "the same network, samplers bypassed: for cost, not accuracy"
CHECKPOINT = "checkpoint"
DEFAULT_EXPORT = "default"  # instead of a lowering: what torch.onnx.export gives when nothing is said


@dataclass(frozen=True)
class Artifact:
    """One file and what it means.

    ``settings`` is all that a rebuild depends on beside the parent's bytes; ``contract`` what goes in and comes out;
    ``beside`` the sha256 of each further file that belongs to it, by name.
    """

    name: str
    file: str
    network: str
    format: str
    sha256: str
    contract: Contract
    parent_sha256: str | None = None
    lowering: str | None = None
    precision: str = "fp32"
    opset: int | None = None
    settings: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """The sha256 of all its files by name, its own first."""
        return {self.file: self.sha256} | self.beside


@dataclass(frozen=True)
class Facts:
    """What a network is.

    Attributes:
        label: what people call it.
        role: ``subject``, ``plain`` for the one that others are set against, ``other``.
        note: a sentence on what it is.
        sites: a row each, see ``program.sites.Site``.
        parameters: how many numbers are trained.
        multiply_adds: of one example.
        examples: file beside the manifest, its sha256 and its source.
        classes: names in label order; empty where it is no classifier.
    """

    label: str
    role: str = SUBJECT
    note: str = ""
    sites: tuple[dict, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    examples: dict = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Content:
    """A manifest: the network, its artifacts by name, which rows ``export`` plans, and why it refuses others."""

    facts: Facts | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)


class NetworkDirectory:
    """The artifacts of one network of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def read(self) -> _Content:
        """What the manifest holds; nothing where there is none yet.

        Raises:
            UserError: where the manifest is not one of ours.
        """
        path = self.path / MANIFEST
        if not path.exists():
            return _Content()
        content = read_json(path, MANIFEST_SCHEMA)
        try:
            facts = content["network"]
            if facts:
                facts = Facts(**{**facts, "sites": tuple(facts["sites"]), "classes": tuple(facts["classes"])})
            artifacts = {
                name: Artifact(**{**entry, "contract": Contract.from_dict(entry["contract"])})
                for name, entry in content["artifacts"].items()
            }
            rows, refused = tuple(content["rows"]), dict(content["refused"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error}", "delete it, then run 'make train export' again") from error
        return _Content(facts, artifacts, rows, refused)

    def change(self, change: Callable[[_Content], _Content]) -> None:
        """Read the manifest, change it and write it, while nobody else may."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / LOCK):
            plain = asdict(change(self.read()))
            plain["network"] = plain.pop("facts")
            write_atomically(self.path / MANIFEST, json_bytes(MANIFEST_SCHEMA, plain))

    @property
    def facts(self) -> Facts:
        """What the network is.

        Raises:
            UserError: where nobody has said so yet.
        """
        facts = self.read().facts
        if facts is None:
            raise UserError(f"{self.path} holds no network yet", "run 'make train' or adopt first")
        return facts

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """What the manifest lists, by name."""
        return self.read().artifacts

    def describe(self, facts: Facts) -> None:
        """Say what the network is."""
        self.change(lambda content: replace(content, facts=facts))

    def describes(self, facts: Facts) -> bool:
        """Whether the manifest says just this."""
        found = self.read().facts
        return found is not None and json.dumps(asdict(found)) == json.dumps(asdict(facts))

    def plan(self, rows: tuple[str, ...], refused: dict[str, str]) -> None:
        """Say which artifacts the network is to have, and why it cannot have others."""
        self.change(lambda content: replace(content, rows=rows, refused=refused))

    def add(self, artifact: Artifact) -> Artifact:
        """List ``artifact``, whose file is already in place, instead of any older one of its name."""
        self.change(lambda content: replace(content, artifacts=content.artifacts | {artifact.name: artifact}))
        return artifact

    def forget(self, name: str) -> None:
        """List ``name`` no longer; its file stays."""
        self.change(
            lambda content: replace(
                content, artifacts={key: each for key, each in content.artifacts.items() if key != name}
            )
        )

    def holds(self, name: str, parent_sha256: str | None, settings: dict) -> bool:
        """Whether ``name`` is listed, made from this parent with these settings, and its file unchanged."""
        artifact = self.artifacts.get(name)
        return (
            artifact is not None
            and artifact.parent_sha256 == parent_sha256
            and artifact.settings == json.loads(json.dumps(settings))
            and all((self.path / file).exists() for file in artifact.files)
            and all(sha256_of(self.path / file) == digest for file, digest in artifact.files.items())
        )

    def listed(self, name: str) -> Artifact:
        """One entry.

        Raises:
            UserError: where there is none of that name.
        """
        artifact = self.artifacts.get(name)
        if artifact is None:
            raise UserError(f"{self.path} holds no {name}", "run 'make train' or adopt first")
        return artifact

    def program(self) -> Program:
        """The captured network itself, its bytes checked.

        Raises:
            UserError: where there is none, or it was edited.
        """
        artifact = self.listed(PROGRAM)
        return load_program(self.open(artifact), artifact.contract)

    def examples(self) -> Examples:
        """What the network is tried on, its bytes checked.

        Raises:
            UserError: where the file is missing or was edited.
        """
        said = self.facts.examples
        return load_examples(_unchanged(self.path / said["file"], said["sha256"], "run 'make train' or adopt again"))

    def expected(self) -> list[tuple[Artifact, Path]]:
        """The program, every artifact that ``export`` planned and all that was made on request, bytes checked.

        Raises:
            UserError: where one is missing, edited or stale, or nothing was exported yet.
        """
        content = self.read()
        listed = {name: artifact for name, artifact in content.artifacts.items() if name != CHECKPOINT}
        if not content.rows and not content.refused:
            raise UserError(f"{self.path} holds no exports", "run 'make export' first")
        if missing := [name for name in (PROGRAM, *content.rows) if name not in listed]:
            raise UserError(f"{self.path} lacks {', '.join(missing)}", "run 'make export' first")
        return [(artifact, self.open(artifact)) for artifact in listed.values()]

    def intact(self, artifact: Artifact) -> Path:
        """The artifact's path, once its bytes are known to be those that the manifest lists.

        Raises:
            UserError: where the file is missing or was edited.
        """
        stage = "train" if artifact.name in (CHECKPOINT, PROGRAM) else "export"
        for file, digest in artifact.files.items():
            _unchanged(self.path / file, digest, f"run 'make {stage}'")
        return self.path / artifact.file

    def open(self, artifact: Artifact) -> Path:
        """The same for an artifact that must be today's.

        Raises:
            UserError: where the file is missing, was edited, or was made from something else than today's.
        """
        path = self.intact(artifact)
        parent = {PROGRAM: CHECKPOINT, CHECKPOINT: ""}.get(artifact.name, PROGRAM)
        listed = self.artifacts.get(parent)
        if listed is not None and artifact.parent_sha256 != listed.sha256:
            raise UserError(f"{path} is stale: it was made from another {parent}", "run 'make train export' again")
        return path


def _unchanged(path: Path, sha256: str, remedy: str) -> Path:
    if not path.exists():
        raise UserError(f"{path} is listed in the manifest but missing", f"{remedy} to write it again")
    if sha256_of(path) != sha256:
        said = f"{path} was changed after it was written (its sha256 differs)"
        raise UserError(said, f"delete it, then {remedy} to write it again")
    return path


def network_directories(run: Path) -> list[NetworkDirectory]:
    """The networks of a run: the subject first, the plain one next, then the others by name.

    Raises:
        UserError: where the directory is missing or holds no network.
    """
    remedy = "run 'make train' or adopt first, or name another with --run"
    if not run.is_dir():
        raise UserError(f"there is no run at {run}", remedy)
    found = [NetworkDirectory(path.parent) for path in sorted(run.glob(f"*/{MANIFEST}"))]
    found = [directory for directory in found if directory.read().facts]
    if not found:
        raise UserError(f"{run} holds no network", remedy)
    order = (SUBJECT, PLAIN, OTHER)
    return sorted(found, key=lambda directory: (order.index(directory.facts.role), directory.name))
