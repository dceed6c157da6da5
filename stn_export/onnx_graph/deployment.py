"""Audit one ONNX file on one provider: where every node runs, what is copied, and the cost at batch 1.

On the CPU, and on CUDA where there is a GPU, ONNX Runtime itself reports the placement; otherwise CUDA is predicted
from the kernels that its provider registers. ``costs`` states what counts as a multiply-add.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import onnx
import onnxruntime

from stn_export.errors import UserError, require_choice
from stn_export.onnx_graph.costs import Runs, macs
from stn_export.onnx_graph.inputs import Asked, declared_inputs, settled
from stn_export.onnx_graph.model import (
    TensorInfo,
    activation_bytes,
    flat,
    infer,
    initialiser_bytes,
    inputs_of,
    opset_of,
)
from stn_export.onnx_graph.placement import (
    CONTROL_FLOW,
    CPU_INPUTS,
    CPU_OUTPUTS,
    FOLDED,
    Placed,
    free_nodes,
    kernels,
    predict_gpu,
    read_placement,
)
from stn_export.onnx_graph.records import CPU, PROVIDERS, Audit, Copy, NodePlacement
from stn_export.onnx_graph.trial import Step, here


class Session(NamedTuple):
    """What a session of ONNX Runtime says: the provider by node, and its version."""

    nodes: dict[str, str]
    release: str = onnxruntime.__version__


def audit(model: onnx.ModelProto, provider: str) -> Audit:
    """Place every node of a model and count its cost at batch 1.

    Args:
        model: any ONNX model with its weights loaded; local functions are inlined, and unnamed nodes get names.
        provider: ``cpu``, ``cuda`` or ``webgpu``.

    Raises:
        UserError: for an unknown provider, or a graph whose types contradict each other.
    """
    require_choice("provider", provider, list(PROVIDERS))
    model = flat(model)
    sizes = settled(declared_inputs(model), Asked()).sizes
    return placement_of(model, provider, infer(model, sizes))


def placement_of(
    model: onnx.ModelProto,
    provider: str,
    infos: dict[str, TensorInfo],
    runs: Runs | None = None,
    step: Step = here,
    session: Session | None = None,
) -> Audit:
    """Audit a ``model.flat`` model whose tensors' types and shapes are known.

    Args:
        model: each of its nodes has a unique name.
        provider: ``cpu``, ``cuda`` or ``webgpu``.
        infos: of its tensors.
        runs: shapes that were recorded in a run.
        step: calls the function that loads the model.
        session: what another ONNX Runtime says; by default this one is asked.
    """
    free, refusal = free_nodes(model, infos), ""
    try:
        if session is None and (read := step(partial(read_placement, model, provider))) is not None:
            session = Session(read)
    except UserError as error:
        refusal = f"predicted: ONNX Runtime does not load the file ({error.message})"
    placed, source = _placed(model, provider, session, infos, free)
    nodes = tuple(_node(node, model, placed[node.name], free, macs(node, infos, runs)) for node in model.graph.node)
    crossings = _crossings(model, placed, free)
    shapes = {name for node in model.graph.node if node.name in free for name in node.output}
    fallen = [node for node in nodes if node.compute and node.provider == CPU]
    obstacle = _obstacle(nodes, fallen, crossings) if provider == "cuda" else "a CUDA graph holds CUDA kernels only"
    return Audit(
        provider=provider,
        predicted=session is None,
        nodes=nodes,
        copies=tuple(crossing for crossing in crossings if crossing.tensor not in shapes),
        capturable=not obstacle,
        capture_reason=obstacle or "every compute node on the GPU, no control flow; one graph per input shape",
        initialiser_bytes=initialiser_bytes(model),
        activation_bytes=activation_bytes(model, infos),
        macs=sum(node.macs or 0 for node in nodes),
        source=refusal or source,
    )


def _placed(
    model: onnx.ModelProto,
    provider: str,
    session: Session | None,
    infos: dict[str, TensorInfo],
    free: dict[str, str],
) -> tuple[dict[str, Placed], str]:
    names = [node.name for node in model.graph.node]
    if provider == "cpu":
        predicted = {name: Placed(CPU, "") for name in names}
        asked = f"predicted: ONNX Runtime {onnxruntime.__version__} does not tell"
    else:
        predicted = predict_gpu(model, infos, free, provider)
        asked = f"predicted from the kernels of ONNX Runtime {kernels(provider).release}"
    if session is None:
        return predicted, asked
    actual = {name: session.nodes.get(name, predicted[name].provider) for name in names}  # constants are not listed
    placed = {
        name: predicted[name] if predicted[name].provider == actual[name] else Placed(actual[name], "placed there")
        for name in names
    }
    return placed, f"read from a session of ONNX Runtime {session.release}"


def _node(
    node: onnx.NodeProto, model: onnx.ModelProto, placed: Placed, free: dict[str, str], cost: int | None
) -> NodePlacement:
    return NodePlacement(
        name=node.name,
        op_type=node.op_type,
        domain=node.domain,
        opset=opset_of(model, node.domain),
        provider=placed.provider,
        reason=placed.reason,
        macs=cost,
        compute=node.name not in free,
    )


def _crossings(model: onnx.ModelProto, placed: dict[str, Placed], free: dict[str, str]) -> list[Copy]:
    """Return the tensors that ONNX Runtime copies between devices; an input needed on both is uploaded once."""
    lies: dict[str, str] = {}
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        if free.get(node.name) == FOLDED:
            continue
        provider = placed[node.name].provider
        lies.update(dict.fromkeys(node.output, CPU if node.op_type in CPU_OUTPUTS else provider))
        for index, name in enumerate(node.input if node.op_type not in CPU_OUTPUTS else ()):
            target = CPU if index in CPU_INPUTS.get(node.op_type, ()) else provider
            readers.setdefault(name, set()).add(target)
    fed = {value.name for value in inputs_of(model.graph)}
    lies |= {name: CPU for name in fed if len(readers.get(name, ())) > 1}
    return [
        Copy(name, lies[name], to) for name in readers if name in lies for to in sorted(readers[name] - {lies[name]})
    ]


def _obstacle(nodes: Sequence[NodePlacement], fallen: Sequence[NodePlacement], copies: Sequence[Copy]) -> str:
    """Return why no CUDA graph can be captured; empty where one can."""
    if control := [node.name for node in nodes if node.op_type in CONTROL_FLOW]:
        return f"control flow: {', '.join(control)}"
    if fallen:
        return f"compute nodes on the CPU: {', '.join(node.name for node in fallen)}"
    return f"copies of {', '.join(crossing.tensor for crossing in copies)}" if copies else ""
