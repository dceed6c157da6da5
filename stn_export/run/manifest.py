"""The manifest of each network in a run: what the network is, and the artifacts made from it.

``artifacts/<run>/<network>/manifest.json`` describes a network and lists every file of it with its hash, the hash of
what it was made from and the settings it was made with. A stage is up to date where all of them are unchanged. The
meaning of a file is stated there, never in its name.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Final, Literal, TypedDict

import msgspec
from filelock import FileLock

from stn_export.errors import UserError, command
from stn_export.limits import regular
from stn_export.program.program import Program, load_program
from stn_export.program.sites import Site
from stn_export.program.specs import Contract
from stn_export.run import provenance
from stn_export.run.examples import Examples, load_examples
from stn_export.run.store import (
    AGAIN,
    PARTIAL,
    checked,
    fingerprint,
    json_bytes,
    latest,
    private_folder,
    read_json,
    sha256_of,
    write_atomically,
)

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
PLACES_OF_EXAMPLES = (".", "..", "../..")  # relative to a manifest; the last is for seeds nested in the first one's run

MANIFEST_SCHEMA = "stn_export/manifest/2"
VERIFY_SCHEMA = "stn_export/verify/2"
REPORT_SCHEMA = "stn_export/report/3"
TRAINING_SCHEMA = "stn_export/training/2"
REPOSITORY_SCHEMA = "stn_export/triton/1"

Role = Literal["subject", "plain", "other"]
SUBJECT: Final = "subject"
PLAIN: Final = "plain"
OTHER: Final = "other"
TWIN_NOTE = "the same network, samplers bypassed: for cost, not accuracy"
CHECKPOINT = "checkpoint"
PREFERRED = ("folded", "plain", "matmul", "affinegrid", "decomposed", "gather")  # lowerings to deploy, best first
DEFAULT_EXPORT = "default"  # instead of a lowering: torch.onnx.export with its defaults


@dataclass(frozen=True)
class Artifact:
    """One file of a network, and what it means.

    ``settings`` is everything that a rebuild depends on beside the parent's bytes; ``contract`` its inputs and outputs;
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
        """The sha256 of all its files by name, the main one first."""
        return {self.file: self.sha256} | self.beside


Digest = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]  # SHA-256 in hexadecimal, or empty


class ExamplesFile(TypedDict):
    """The file of a network's examples: its path from the network's directory, and its source in words."""

    file: str
    sha256: Digest
    source: str


@dataclass(frozen=True)
class Facts:
    """Description of a network.

    Attributes:
        label: name for people.
        role: ``subject`` for the network under test, ``plain`` for the baseline, ``other``.
        note: a sentence on what it is.
        sites: one entry per sampling site, see ``program.sites.Site``.
        parameters: number of trained values.
        multiply_adds: of one example.
        examples: file, as a path from the manifest's folder, its sha256 and its source.
        classes: names in label order; empty where it is no classifier.
    """

    label: str
    role: Role = SUBJECT
    note: str = ""
    sites: tuple[dict, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    examples: ExamplesFile = field(default_factory=lambda: ExamplesFile(file="", sha256="", source=""))
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Content:
    """Content of a manifest: the network, artifacts by name, planned export variants, and why others are refused."""

    facts: Facts | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Written:
    """The same in the form of the JSON file."""

    network: Facts | None
    artifacts: dict[str, Artifact]
    rows: tuple[str, ...]
    refused: dict[str, str]


TIMES_LARGER, BYTES_LARGER = 2, 2**20  # beyond both, a file is oversized beside another of the same network


def is_oversized(size: int, other: int) -> bool:
    """Return whether a file is so much larger than another that it is worth it only where it is measurably faster."""
    return size > TIMES_LARGER * other and size - other > BYTES_LARGER


def preferred(sizes: Mapping[str, int]) -> list[str]:
    """Order lowerings by which one to take where no time is known: as in ``PREFERRED``, but oversized ones last.

    Args:
        sizes: bytes by lowering.
    """
    order = [name for name in PREFERRED if name in sizes]
    return sorted(order, key=lambda name: is_oversized(sizes[name], min(sizes.values())))


def size_words(sizes: Mapping[str, int]) -> str:
    """Say which lowerings are oversized, and beside what; empty where none is."""
    least = min(sizes, key=lambda name: sizes[name], default="")
    large = [name for name in sizes if is_oversized(sizes[name], sizes[least])]
    told = ", ".join(f"{name} takes {sizes[name] / 1e6:,.1f} MB" for name in large)
    return f"{told}, {least} {sizes[least] / 1e6:,.1f} MB: the smaller file is taken" if large else ""


class NetworkDirectory:
    """The directory of one network in a run, with its manifest and artifacts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    def read(self) -> _Content:
        """Read the manifest; empty content where there is none yet.

        Raises:
            UserError: where the manifest is damaged.
        """
        path = latest(self.path / MANIFEST)
        if not path.exists():
            return _Content()
        content = read_json(path, MANIFEST_SCHEMA, _Written)
        read = _Content(content.network, content.artifacts, content.rows, content.refused)
        if read.facts:
            for site in read.facts.sites:
                checked(path, site, Site)
            examples = Path(read.facts.examples["file"])
            if examples.name.startswith(".") or str(examples.parent) not in PLACES_OF_EXAMPLES:
                raise UserError(f"{path} is damaged: {str(examples)!r} is no name of examples in the run", AGAIN)
        for artifact in read.artifacts.values():
            if unsafe := [file for file in artifact.files if Path(file).name != file or file.startswith(".")]:
                raise UserError(f"{path} is damaged: {unsafe[0]!r} is no name of a file beside it", AGAIN)
        return read

    def _by(self, *stages: str) -> str:
        """Name the command that runs these stages on this run."""
        return command(*stages, run=self.path.parent)

    def change(self, change: Callable[[_Content], _Content]) -> None:
        """Read the manifest, change it and write it, under its lock.

        Raises:
            UserError: where the directory was deleted meanwhile; it is not created again.
        """
        if not self.path.is_dir():
            raise UserError(f"{self.path} was deleted", f"run {self._by('train')} or adopt again")
        with FileLock(self.path / LOCK):
            plain = asdict(change(self.read()))
            plain["network"] = plain.pop("facts")
            write_atomically(self.path / MANIFEST, json_bytes(MANIFEST_SCHEMA, plain))

    @property
    def lowering_sizes(self) -> dict[str, int]:
        """The bytes of the float32 file of each lowering, the lowering to take first first: see ``preferred``."""
        sizes: dict[str, int] = {}
        for each in self.artifacts.values():
            if each.lowering in PREFERRED and each.precision == "fp32":
                size = each.details.get("bytes", 0)
                sizes[each.lowering] = min(size, sizes.get(each.lowering, size))
        return {name: sizes[name] for name in preferred(sizes)}

    @property
    def facts(self) -> Facts:
        """The description of the network.

        Raises:
            UserError: where there is none yet.
        """
        facts = self.read().facts
        if facts is None:
            raise UserError(f"{self.path} holds no network yet", f"run {self._by('train')} or adopt first")
        return facts

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The listed artifacts by name."""
        return self.read().artifacts

    def describe(self, facts: Facts) -> None:
        """Write the description of the network; its directory may be new."""
        self.path.mkdir(exist_ok=True)
        self.change(lambda content: replace(content, facts=facts))

    def describes(self, facts: Facts) -> bool:
        """Return whether the manifest holds exactly this description."""
        written = self.read().facts
        return written is not None and json.dumps(asdict(written)) == json.dumps(asdict(facts))

    def plan(self, rows: tuple[str, ...], refused: dict[str, str]) -> None:
        """Write which export variants the network is to have, and why others are refused."""
        self.change(lambda content: replace(content, rows=rows, refused=refused))

    def add(self, artifact: Artifact) -> Artifact:
        """List an artifact that this process wrote, replacing any older one of its name."""
        provenance.remember(artifact.files.values(), "written")
        self.change(lambda content: replace(content, artifacts=content.artifacts | {artifact.name: artifact}))
        return artifact

    def forget(self, name: str) -> None:
        """Remove ``name`` from the list; its file stays."""
        self.change(
            lambda content: replace(
                content, artifacts={key: artifact for key, artifact in content.artifacts.items() if key != name}
            )
        )

    def holds(self, name: str, parent_sha256: str | None, settings: dict) -> bool:
        """Return whether ``name`` is listed, made from this parent with these settings, and its files unchanged."""
        artifact = self.artifacts.get(name)
        return (
            artifact is not None
            and artifact.parent_sha256 == parent_sha256
            and artifact.settings == json.loads(json.dumps(settings))
            and all(latest(self.path / file).exists() for file in artifact.files)
            and all(sha256_of(latest(self.path / file)) == digest for file, digest in artifact.files.items())
        )

    def listed(self, name: str) -> Artifact:
        """Return one listed artifact.

        Raises:
            UserError: where none of that name is listed.
        """
        artifact = self.artifacts.get(name)
        if artifact is None:
            raise UserError(f"{self.path} holds no {name}", f"run {self._by('train')} or adopt first")
        return artifact

    def program(self) -> Program:
        """Load the captured network, its bytes checked.

        Raises:
            UserError: where there is none, or it was edited.
        """
        artifact = self.listed(PROGRAM)
        return load_program(self.open(artifact), artifact.contract, artifact.sha256 in provenance.known("written"))

    def examples(self) -> Examples:
        """Load the network's examples, their bytes checked.

        Raises:
            UserError: where the file is missing or was edited.
        """
        entry = self.facts.examples
        path, remedy = self.path / entry["file"], f"run {self._by('train')} or adopt again"
        return load_examples(copied(path, entry["sha256"], private_folder() / entry["sha256"], remedy))

    def trust(self) -> None:
        """Trust all files that the manifest lists now, wherever they come from; remembered for this user."""
        listed = self.artifacts.values()
        provenance.remember([digest for artifact in listed for digest in artifact.files.values()], "trusted")

    def expected(self) -> list[tuple[Artifact, Path]]:
        """Return the program, every planned artifact and all that were made on request, their bytes checked.

        Raises:
            UserError: where one is missing, edited or stale, or nothing was exported yet.
        """
        content = self.read()
        listed = {name: artifact for name, artifact in content.artifacts.items() if name != CHECKPOINT}
        if not content.rows and not content.refused:
            raise UserError(f"{self.path} holds no exports", f"run {self._by('export')} first")
        if missing := [name for name in (PROGRAM, *content.rows) if name not in listed]:
            raise UserError(f"{self.path} lacks {', '.join(missing)}", f"run {self._by('export')} first")
        return [(artifact, self.open(artifact)) for artifact in listed.values()]

    def intact(self, artifact: Artifact, trusted: bool = False) -> Path:
        """Copy an artifact's files for this process alone, checking their bytes against the manifest.

        What is hashed is what runs, whatever happens to the run meanwhile. Every file of a run that is loaded comes
        through here.

        Raises:
            UserError: where a file is missing, was edited, is of another format than listed, or runs code and is
                neither this user's own nor ``trusted``.
        """
        provenance.require(self.path / artifact.file, artifact.format, artifact.files.values(), trusted)
        stage = "train" if artifact.name in (CHECKPOINT, PROGRAM) else "export"
        folder = private_folder() / fingerprint(map(str.encode, chain(*artifact.files.items())))
        for file, digest in artifact.files.items():
            copied(self.path / file, digest, folder, f"run {self._by(stage)}")
        provenance.require_kind(folder / artifact.file, artifact.format)
        return folder / artifact.file

    def open(self, artifact: Artifact) -> Path:
        """Return ``intact`` of an artifact that must not be stale.

        Raises:
            UserError: as ``intact``, or where the artifact was made from another parent than the one listed now.
        """
        path = self.intact(artifact)
        parent = {PROGRAM: CHECKPOINT, CHECKPOINT: ""}.get(artifact.name, PROGRAM)
        listed = self.artifacts.get(parent)
        if listed is not None and artifact.parent_sha256 != listed.sha256:
            source = self.path / artifact.file
            raise UserError(
                f"{source} is stale: it was made from another {parent}", f"run {self._by('train', 'export')} again"
            )
        return path


def copied(path: Path, sha256: str, folder: Path, remedy: str) -> Path:
    """Copy a file into ``folder`` under its name, hashing it as it is read, and return the copy.

    Raises:
        UserError: where it is missing or its sha256 differs.
    """
    if not path.exists():
        raise UserError(f"{path} is listed in the manifest but missing", f"{remedy} to write it again")
    folder.mkdir(exist_ok=True)
    target, made, digest = folder / path.name, folder / f".{path.name}{PARTIAL}", hashlib.sha256()
    with regular(path, "archive").open("rb") as source, made.open("wb") as copy:
        while part := source.read(2**20):
            digest.update(part)
            copy.write(part)
    if digest.hexdigest() != sha256:
        made.unlink()
        reason = f"{path} was changed after it was written (its sha256 differs)"
        raise UserError(reason, f"delete it, then {remedy} to write it again")
    if not target.exists():  # an older copy may be mapped into memory
        made.replace(target)
    made.unlink(missing_ok=True)
    return target


def network_directories(run: Path) -> list[NetworkDirectory]:
    """Return the networks of a run: the one under test, then the baseline, then the others by name.

    Raises:
        UserError: where the directory is missing or contains no network.
    """
    remedy = f"run {command('train', run=run)} or adopt first, or name another with --run"
    if not run.is_dir():
        raise UserError(f"there is no run at {run}", remedy)
    directories = [NetworkDirectory(path.parent) for path in sorted(run.glob(f"*/{MANIFEST}"))]
    directories = [directory for directory in directories if directory.read().facts]
    if not directories:
        raise UserError(f"{run} holds no network", remedy)
    order = (SUBJECT, PLAIN, OTHER)
    return sorted(directories, key=lambda directory: (order.index(directory.facts.role), directory.name))


def trust_run(run: Path) -> None:
    """Trust every network of a run, as ``--trust`` asks."""
    for directory in network_directories(run):
        directory.trust()
