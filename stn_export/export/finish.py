"""What is done to a written ONNX file: operators most runtimes read, ONNX Runtime's optimiser, names of its ends."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxruntime import GraphOptimizationLevel

from stn_export.errors import UserError
from stn_export.onnx_graph.placement import cpu_session
from stn_export.program.specs import free_name


def plain(model: onnx_ir.Model) -> None:
    """Apply every pass of ``PASSES``."""
    for each in PASSES:
        each(model)


def lift_constants(model: onnx_ir.Model) -> None:
    """Initialisers instead of Constant nodes: pnnx (ncnn) and MNN fold only those into shapes and weights."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def reshape_as_before(model: onnx_ir.Model) -> None:
    """No ``allowzero``, which onnx2torch refuses: it changes a Reshape to a size of 0 only, and there is none."""
    for node in model.graph.all_nodes():
        if node.op_type == "Reshape" and node.domain == "" and not _has_zero(node.inputs[1]):
            node.attributes.pop("allowzero", None)


def _has_zero(shape: onnx_ir.Value | None) -> bool:
    constant = None if shape is None else onnx_ir.convenience.get_const_tensor(shape)
    return constant is not None and 0 in constant.numpy()


def name_in_ascii(model: onnx_ir.Model) -> None:
    """Values and nodes with ASCII names, as TVM and MNN want for what they generate; the caller's names stay his."""
    fixed = {*model.graph.inputs, *model.graph.outputs}
    values = [
        *model.graph.initializers.values(),
        *(value for node in model.graph.all_nodes() for value in node.outputs),
    ]
    named: list[onnx_ir.Node | onnx_ir.Value] = [*model.graph.all_nodes()]
    for each in (*named, *(value for value in values if value not in fixed)):
        if each.name and not each.name.isascii():
            each.name = each.name.encode("ascii", "backslashreplace").decode().replace("\\", "_")


def forget_shapes(model: onnx_ir.Model) -> None:
    """Nothing said of inner values: tract takes ``batch`` there for another size than the 1 that it is loaded with."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
                value.metadata_props.clear()


def state_sizes(model: onnx_ir.Model) -> None:
    """Sizes that are known as numbers, where the exporter names a dimension ``2``: TVM and IREE take it for open."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = () if value.shape is None else value.shape
        known = {axis: str(getattr(size, "value", None)) for axis, size in enumerate(shape)}
        for axis, number in known.items():
            if number.isdecimal() and value.shape is not None:
                value.shape[axis] = int(number)


PASSES = (state_sizes, lift_constants, reshape_as_before, name_in_ascii, forget_shapes)


# ONNX Runtime's own optimiser, run ahead of time and kept to what every runtime understands.


def optimise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and drop what does nothing: ONNX Runtime's basic level, which writes standard operators only.

    The levels above it write operators of one processor and one version of ONNX Runtime, which does the same by
    itself when it loads a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "optimised.onnx")
        basic = GraphOptimizationLevel.ORT_ENABLE_BASIC
        cpu_session(model, graph_optimization_level=basic, optimized_model_filepath=target)
        return onnx.load(target)


# The names of a file's inputs and outputs: whatever the exporter called anything inside, these are theirs.


def require_distinct(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse names that would make two ends of a file one.

    Raises:
        UserError: naming the first that is there twice.
    """
    names = [*inputs, *outputs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{twice!r} names two inputs or outputs", "give each a name of its own")


def name_ends(model: onnx_ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name a graph's inputs and outputs; inner values that bear one of these names get another.

    An output that is an input, a weight or another output becomes an Identity of it: two names cannot be one value.
    """
    graph = model.graph
    _register_constants(graph)
    _separate_outputs(graph)
    ends = {*graph.inputs, *graph.outputs}
    values = _values(model)
    taken = {value.name for value in values if value.name} | {*inputs, *outputs}
    for value in values:
        if value in ends or value.name in {*inputs, *outputs}:
            value.name = free_name(f"{value.name}_inner", taken)
            taken.add(value.name)
    for value, name in (*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)):
        value.name = name


def _register_constants(graph: onnx_ir.Graph) -> None:
    """Give a graph the constants that its nodes read: onnxscript loses those of the second of two fused Clips."""
    ends = set(graph.inputs)
    for value in (each for node in graph for each in node.inputs if each is not None):
        if value.const_value is not None and value.producer() is None and value not in ends:
            graph.initializers.setdefault(value.name or "", value)  # which refuses one without a name


def _separate_outputs(graph: onnx_ir.Graph) -> None:
    seen: set[onnx_ir.Value] = set()
    for index, value in enumerate(graph.outputs):
        if value in seen or value.is_graph_input() or value.is_initializer():
            node = onnx_ir.node("Identity", [value])
            copy = node.outputs[0]
            copy.name, copy.shape, copy.type = f"{value.name}_output{index}", value.shape, value.type
            graph.append(node)
            graph.outputs[index] = copy
        seen.add(value)


def _values(model: onnx_ir.Model) -> list[onnx_ir.Value]:
    """Every value of a graph and of what is inside its nodes, once."""
    graphs = [model.graph, *model.graph.subgraphs()]
    found = [
        value
        for graph in graphs
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
    ]
    return list(dict.fromkeys(found))
