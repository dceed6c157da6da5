"""The records of an audit; light to import, so that the process that prints them need not load onnx."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from stn_export.cli.tables import by, normalisation
from stn_export.results.text import counted

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WEBGPU = "WebGpuExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "webgpu": WEBGPU}
USUAL = ("cpu", "cuda")  # providers that a file is audited for unless others are asked for
Verdict = tuple[str, str]  # a runtime's verdict on a file, and why
NO_TENSORS = {"sequence_type": "sequence", "map_type": "map", "optional_type": "optional", "opaque_type": "opaque"}
NO_KERNEL = "Could not find an implementation"  # what ONNX Runtime says of an operator in a type that a provider lacks
GIVE_SIZES = "give sizes with --shape NAME=1,16000 or arrays with --inputs FILE.npz"
SHOWN = 20  # most inputs, and outputs, that are printed


@dataclass(frozen=True)
class Described:
    """One input or output as the file declares it.

    Attributes:
        name: of the input or output.
        dtype: NumPy's name, ``string``, or what it is instead of a tensor: ``sequence``, ``map``, ``optional``.
        shape: sizes, dynamic ones as names, ``?`` for those without a name; None where even the rank is unknown.
        mean: of images given as bytes, ``(x / 255 - mean) / std``, each one value or one per channel.
        std: likewise; both are empty where the file states no normalisation.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def is_tensor(self) -> bool:
        """Whether it is a single tensor."""
        return self.dtype not in NO_TENSORS.values()

    @property
    def sizes(self) -> str:
        """The shape for people: ``N×3×32×32``."""
        return "any shape" if self.shape is None else by(self.shape)

    @property
    def text(self) -> str:
        """The declaration for people: ``images: N×3×32×32 float32, (x / 255 - 0.5) / 0.5``."""
        normalised = f", {normalisation(self.mean, self.std)}" if self.mean else ""
        return f"{self.name}: {f'{self.sizes} ' * self.is_tensor}{self.dtype}{normalised}"


@dataclass(frozen=True)
class FileContract:
    """What a file declares.

    Attributes:
        inputs: those a caller has to feed, in order.
        outputs: in order.
        opsets: the version of each operator set, by its domain; ``ai.onnx`` is the standard one.
        ir_version: of the file format.
        producer: who wrote it, as the file says.
        parameters: values in its weights, without 64-bit integers, booleans and strings, which are no weights.
        nodes: how many, also inside control flow and local functions.
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
        """Return the contract JSON-ready."""
        return asdict(self)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the opening lines of ``audit``, as word and sentence."""
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
    """One node: operator and operator set, where it runs and why, its multiply-adds.

    A node is ``compute`` unless it yields a constant or computes a shape: ONNX Runtime keeps those on the CPU by
    design, at no cost to the images. ``macs`` is None where they are unknown.
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
    """A tensor copied between CPU and GPU memory in the middle of the graph."""

    tensor: str
    source: str
    target: str


@dataclass(frozen=True)
class Audit:
    """The audit of one file on one provider.

    ``predicted`` is set unless ONNX Runtime itself placed the nodes; ``source`` says what the placement is based on.
    ``copies`` leave out shapes, constants, and the ordinary upload of an input and download of an output. Activation
    bytes are the sum over all nodes, an upper bound. Where nodes are ``uncounted``, ``macs`` is a lower bound.
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
        """Compute nodes that fall back to the CPU although another provider was asked for."""
        return tuple(node for node in self.nodes if node.compute and node.provider == CPU != PROVIDERS[self.provider])

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The nodes whose multiply-adds are unknown."""
        return tuple(node.name for node in self.nodes if node.macs is None)

    def as_dict(self) -> dict:
        """Return the audit JSON-ready; ``fallbacks`` are names of nodes."""
        return asdict(self) | {"fallbacks": [node.name for node in self.fallbacks], "uncounted": list(self.uncounted)}


@dataclass(frozen=True)
class Finding:
    """A finding of a lint rule: its id, the node or tensor, what was found, why it matters, and what to do."""

    rule: str
    where: str
    detail: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Tried:
    """The inputs that a file was tried on: shapes, their origin, and why it did not run, if so.

    ``loads`` says whether ONNX Runtime loads the file at all: where it does not, other sizes are no help.
    """

    shapes: dict[str, tuple[int, ...]]
    origin: str
    problem: str = ""
    loads: bool = True

    @property
    def invalid(self) -> bool:
        """Whether no provider would load the file: it is not only that the CPU has no kernel for one of its types."""
        return not self.loads and NO_KERNEL not in self.problem

    @property
    def line(self) -> tuple[str, str]:
        """The line of ``audit``: what the file ran on, or why it was not tried and what helps."""
        if not self.problem:
            return "tried on", str(self)
        return "not tried", f"{self.problem}; {GIVE_SIZES}" if self.loads else self.problem

    def __str__(self) -> str:
        shapes = (f"{name} {by(shape)}" for name, shape in self.shapes.items())
        return f"{', '.join(shapes) or 'no inputs'} ({self.origin})"


@dataclass(frozen=True)
class Report:
    """All results of an audit."""

    model: str
    contract: FileContract
    tried: Tried
    audits: tuple[Audit, ...]
    findings: tuple[Finding, ...]
    portability: dict[str, Verdict] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Return the report JSON-ready."""
        return {
            "model": self.model,
            "contract": self.contract.as_dict(),
            "inputs": asdict(self.tried),
            "audits": [audit.as_dict() for audit in self.audits],
            "findings": [asdict(finding) for finding in self.findings],
            "portability": {
                name: {"verdict": verdict, "why": why} for name, (verdict, why) in self.portability.items()
            },
        }
