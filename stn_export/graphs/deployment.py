"""One ONNX file on one provider: where every node runs, what is copied, and what it costs at batch 1.

On the CPU, and on CUDA where there is a GPU, ONNX Runtime itself says where it put each node; else CUDA is predicted
from the kernels that its provider registers. ``graph.MACS`` states what counts as a multiply-add.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import onnx
import onnxruntime

from stn_export.errors import require_choice
from stn_export.graphs.graph import (
    TensorInfo,
    activation_bytes,
    flat,
    infer,
    initialiser_bytes,
    inputs_of,
    macs,
    opset_of,
)
from stn_export.graphs.kernels import CPU, kernels
from stn_export.graphs.placement import (
    CONTROL_FLOW,
    CPU_INPUTS,
    CPU_OUTPUTS,
    FOLDED,
    PROVIDERS,
    Placed,
    free_nodes,
    predict_cuda,
    read_placement,
)


@dataclass(frozen=True)
class NodePlacement:
    """One node: the operator set it is of, where it runs and why, its multiply-adds at batch 1.

    A node is ``compute`` unless it yields a constant or works out a shape: those ONNX Runtime keeps on the CPU by
    design, at no cost to the images.
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
    bytes are the sum over all nodes, an upper bound. Nodes of unknown shape (their ``macs`` are None) count as none.
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

    def as_dict(self) -> dict:
        """Everything, for JSON; ``fallbacks`` are the names of the nodes."""
        return asdict(self) | {"fallbacks": [node.name for node in self.fallbacks]}


def audit(model: onnx.ModelProto, provider: str) -> Audit:
    """Place every node of a model whose weights are loaded.

    Args:
        model: any ONNX model; local functions are inlined first, and nodes without a name get one.
        provider: ``cpu`` or ``cuda``.

    Raises:
        UserError: for an unknown provider, or a model that ONNX Runtime cannot load.
    """
    require_choice("provider", provider, list(PROVIDERS))
    model = flat(model)
    infos = infer(model)
    free, read = free_nodes(model, infos), read_placement(model, provider)
    placed, source = _placed(model, provider, read, infos, free)
    nodes = tuple(_node(node, model, placed[node.name], free, infos) for node in model.graph.node)
    crossings = _crossings(model, placed, free)
    shapes = {name for node in model.graph.node if node.name in free for name in node.output}
    fallen = [node for node in nodes if node.compute and node.provider == CPU]
    obstacle = _obstacle(nodes, fallen, crossings) if provider == "cuda" else "a CUDA graph holds GPU kernels only"
    return Audit(
        provider=provider,
        predicted=read is None,
        nodes=nodes,
        copies=tuple(each for each in crossings if each.tensor not in shapes),
        capturable=not obstacle,
        capture_reason=obstacle or "every compute node on the GPU, no control flow; one graph per input shape",
        initialiser_bytes=initialiser_bytes(model),
        activation_bytes=activation_bytes(model, infos),
        macs=sum(node.macs or 0 for node in nodes),
        source=source,
    )


def _placed(
    model: onnx.ModelProto,
    provider: str,
    read: dict[str, str] | None,
    infos: dict[str, TensorInfo],
    free: dict[str, str],
) -> tuple[dict[str, Placed], str]:
    names = [node.name for node in model.graph.node]
    if provider == "cuda":
        predicted, said = (
            predict_cuda(model, infos, free),
            f"predicted from the kernels of ONNX Runtime {kernels().release}",
        )
    else:
        predicted = {name: Placed(CPU, "the CPU was asked for") for name in names}
        said = f"predicted: ONNX Runtime {onnxruntime.__version__} does not tell"
    if read is None:
        return predicted, said
    actual = {name: read.get(name, predicted[name].provider) for name in names}  # Constant nodes are not listed
    placed = {
        name: predicted[name] if predicted[name].provider == actual[name] else Placed(actual[name], "placed there")
        for name in names
    }
    return placed, f"read from a session of ONNX Runtime {onnxruntime.__version__}"


def _node(
    node: onnx.NodeProto, model: onnx.ModelProto, placed: Placed, free: dict[str, str], infos: dict[str, TensorInfo]
) -> NodePlacement:
    return NodePlacement(
        name=node.name,
        op_type=node.op_type,
        domain=node.domain,
        opset=opset_of(model, node.domain),
        provider=placed.provider,
        reason=placed.reason,
        macs=macs(node, infos),
        compute=node.name not in free,
    )


def _crossings(model: onnx.ModelProto, placed: dict[str, Placed], free: dict[str, str]) -> list[Copy]:
    """Tensors wanted where they do not lie, as ONNX Runtime inserts copies; an input wanted on both goes up once."""
    lies, wanted = {}, {}
    for node in model.graph.node:
        if free.get(node.name) == FOLDED:
            continue
        provider = placed[node.name].provider
        lies.update(dict.fromkeys(node.output, CPU if node.op_type in CPU_OUTPUTS else provider))
        for index, name in enumerate(node.input if node.op_type not in CPU_OUTPUTS else ()):
            target = CPU if index in CPU_INPUTS.get(node.op_type, ()) else provider
            wanted.setdefault(name, set()).add(target)
    fed = {each.name for each in inputs_of(model.graph)}
    lies |= {name: CPU for name in fed if len(wanted.get(name, ())) > 1}
    return [Copy(name, lies[name], to) for name in wanted if name in lies for to in sorted(wanted[name] - {lies[name]})]


def _obstacle(nodes: Sequence[NodePlacement], fallen: Sequence[NodePlacement], copies: Sequence[Copy]) -> str:
    """Why a CUDA graph cannot be captured; "" where it can."""
    if control := [node.name for node in nodes if node.op_type in CONTROL_FLOW]:
        return f"control flow: {', '.join(control)}"
    if fallen:
        return f"compute nodes on the CPU: {', '.join(node.name for node in fallen)}"
    return f"copies of {', '.join(each.tensor for each in copies)}" if copies else ""
