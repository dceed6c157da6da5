"""What an audit finds, as records: light to import, so that the process that prints them need not load onnx."""

from dataclasses import asdict, dataclass, field

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
Verdict = tuple[str, str]  # what a runtime makes of a file, and why


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
    """The inputs that a file was tried on: their shapes, where those come from, and why it did not run, if so."""

    shapes: dict[str, tuple[int, ...]]
    origin: str
    problem: str = ""

    def __str__(self) -> str:
        shapes = (f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in self.shapes.items())
        return f"{', '.join(shapes) or 'no inputs'} ({self.origin})"


@dataclass(frozen=True)
class Report:
    """Everything that an audit finds of a file."""

    model: str
    tried: Tried
    audits: tuple[Audit, ...]
    findings: tuple[Finding, ...]
    portability: dict[str, Verdict] = field(default_factory=dict)

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            "model": self.model,
            "inputs": asdict(self.tried),
            "audits": [each.as_dict() for each in self.audits],
            "findings": [asdict(each) for each in self.findings],
            "portability": {name: {"verdict": said, "why": why} for name, (said, why) in self.portability.items()},
        }
