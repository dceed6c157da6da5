"""What an audit finds, as records: light to import, so that the process that prints them need not load onnx."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from stn_export.cli.tables import by, normalisation
from stn_export.results.text import counted

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
Verdict = tuple[str, str]  # what a runtime makes of a file, and why
NO_TENSORS = {"sequence_type": "sequence", "map_type": "map", "optional_type": "optional", "opaque_type": "opaque"}
GIVE_SIZES = "give sizes with --shape NAME=1,16000 or arrays with --inputs FILE.npz"
SHOWN = 20  # inputs, and outputs, that are printed


@dataclass(frozen=True)
class Described:
    """One input or output as the file declares it.

    Attributes:
        name: by which it is fed or read.
        dtype: as NumPy calls it, ``string``, or what it is instead of a tensor: ``sequence``, ``map``, ``optional``.
        shape: sizes, names of open ones, ``?`` for those without a name; None where not even their number is known.
        mean: of a picture that is given as bytes, ``(x / 255 - mean) / std``, each one figure or one a channel.
        std: likewise; both are empty where the file does not say that it takes normalised pictures.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def is_tensor(self) -> bool:
        """Whether it is one array."""
        return self.dtype not in NO_TENSORS.values()

    @property
    def sizes(self) -> str:
        """For a person: ``N×3×32×32``."""
        return "any shape" if self.shape is None else by(self.shape)

    @property
    def text(self) -> str:
        """For a person: ``images: N×3×32×32 float32, (x / 255 - 0.5) / 0.5``."""
        normalised = f", {normalisation(self.mean, self.std)}" if self.mean else ""
        return f"{self.name}: {f'{self.sizes} ' * self.is_tensor}{self.dtype}{normalised}"


@dataclass(frozen=True)
class FileContract:
    """What a file declares.

    Attributes:
        inputs: what a caller has to feed, in order.
        outputs: what it gives, in order.
        opsets: the version of each operator set, by its domain; ``ai.onnx`` is the standard one.
        ir_version: of the file format.
        producer: who wrote it, as the file says.
        parameters: numbers in its weights; whole numbers of 64 bits, which are sizes and indices, are left out.
        nodes: how many, those in the bodies of control flow and local functions too.
        operators: how many nodes each operator has, the most frequent first; other domains' with their domain.
        functions: how many local functions it defines.
        bytes: of the file; None for a model in memory.
        external_bytes: of weights in files beside it.
    """

    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    opsets: dict[str, int]
    ir_version: int
    producer: str
    parameters: int
    nodes: int
    operators: dict[str, int] = field(default_factory=dict)
    functions: int = 0
    bytes: int | None = None
    external_bytes: int = 0

    def as_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)

    def lines(self) -> Iterator[tuple[str, str]]:
        """What ``audit`` opens with: a word and a sentence a line."""
        sets = ", ".join(f"{domain} {version}" for domain, version in self.opsets.items())
        size = "" if self.bytes is None else f"{self.bytes:,} bytes"
        beside = f" and {self.external_bytes:,} bytes of weights beside it" if self.external_bytes else ""
        yield "file", f"{size}{beside}{'; ' * bool(size)}ONNX IR {self.ir_version}, opset {sets}; {self.producer}"
        for word, specs in (("input", self.inputs), ("output", self.outputs)):
            for spec in specs[:SHOWN]:
                yield word, spec.text
            if len(specs) > SHOWN:
                yield word, f"and {len(specs) - SHOWN:,} more; --format json names them all"
        functions = f", {counted(self.functions, 'local function')}" if self.functions else ""
        yield "size", f"{counted(self.parameters, 'parameter')}, {counted(self.nodes, 'node')}{functions}"
        yield "operators", ", ".join(f"{name} {count}" for name, count in self.operators.items()) or "none"


@dataclass(frozen=True)
class NodePlacement:
    """One node: the operator set it is of, where it runs and why, its multiply-adds.

    A node is ``compute`` unless it yields a constant or works out a shape: those ONNX Runtime keeps on the CPU by
    design, at no cost to the images. ``macs`` is None where they are not known.
    """

    name: str
    op_type: str
    domain: str
    opset: int
    provider: str
    reason: str
    macs: int | None
    compute: bool = True


@dataclass(frozen=True)
class Copy:
    """A tensor that changes from CPU to GPU memory or back in the middle of the graph."""

    tensor: str
    source: str
    target: str


@dataclass(frozen=True)
class Audit:
    """One file on one provider. ``predicted`` unless ONNX Runtime itself placed the nodes; ``source`` says by what.

    ``copies`` leave out shapes, constants, and the ordinary upload of an input and download of an output. Activation
    bytes are the sum over all nodes, an upper bound. Where ``uncounted`` nodes are named, ``macs`` is a lower bound.
    """

    provider: str
    predicted: bool
    nodes: tuple[NodePlacement, ...]
    copies: tuple[Copy, ...]
    capturable: bool
    capture_reason: str
    initialiser_bytes: int
    activation_bytes: int
    macs: int
    source: str = ""

    @property
    def fallbacks(self) -> tuple[NodePlacement, ...]:
        """Compute nodes that run on the CPU although another provider was asked for."""
        return tuple(node for node in self.nodes if node.compute and node.provider == CPU != PROVIDERS[self.provider])

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The nodes whose multiply-adds are not known."""
        return tuple(node.name for node in self.nodes if node.macs is None)

    def as_dict(self) -> dict:
        """Everything, for JSON; ``fallbacks`` are the names of the nodes."""
        return asdict(self) | {"fallbacks": [node.name for node in self.fallbacks], "uncounted": list(self.uncounted)}


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found: its id, the node or tensor, what is there, why that matters, and what to do."""

    rule: str
    where: str
    detail: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Tried:
    """The inputs that a file was tried on: their shapes, where those come from, and why it did not run, if so.

    ``loads`` says whether ONNX Runtime takes the file at all: where it does not, other sizes are no help.
    """

    shapes: dict[str, tuple[int, ...]]
    origin: str
    problem: str = ""
    loads: bool = True

    @property
    def line(self) -> tuple[str, str]:
        """What ``audit`` says of it, a word and a sentence: what it ran on, or why it was not tried and what helps."""
        if not self.problem:
            return "tried on", str(self)
        return "not tried", f"{self.problem}; {GIVE_SIZES}" if self.loads else self.problem

    def __str__(self) -> str:
        shapes = (f"{name} {by(shape)}" for name, shape in self.shapes.items())
        return f"{', '.join(shapes) or 'no inputs'} ({self.origin})"


@dataclass(frozen=True)
class Report:
    """Everything that an audit finds of a file."""

    model: str
    contract: FileContract
    tried: Tried
    audits: tuple[Audit, ...]
    findings: tuple[Finding, ...]
    portability: dict[str, Verdict] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            "model": self.model,
            "contract": self.contract.as_dict(),
            "inputs": asdict(self.tried),
            "audits": [each.as_dict() for each in self.audits],
            "findings": [asdict(each) for each in self.findings],
            "portability": {name: {"verdict": said, "why": why} for name, (said, why) in self.portability.items()},
        }
