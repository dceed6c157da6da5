"""Finish a written ONNX file: widely supported operators, ONNX Runtime's optimiser, names of inputs and outputs."""

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
    """Apply every pass of ``PASSES`` to a graph."""
    for optimiser_pass in PASSES:
        optimiser_pass(model)


def lift_constants(model: onnx_ir.Model) -> None:
    """Replace Constant nodes by initialisers: pnnx (ncnn) and MNN fold only those into shapes and weights."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def reshape_as_before(model: onnx_ir.Model) -> None:
    """Remove ``allowzero``, which onnx2torch rejects, from every Reshape whose constant shape has no 0."""
    for node in model.graph.all_nodes():
        if node.op_type == "Reshape" and node.domain == "" and not _has_zero(node.inputs[1]):
            node.attributes.pop("allowzero", None)


def _has_zero(shape: onnx_ir.Value | None) -> bool:
    constant = None if shape is None else onnx_ir.convenience.get_const_tensor(shape)
    return constant is not None and 0 in constant.numpy()


def name_in_ascii(model: onnx_ir.Model) -> None:
    """Rename inner values and nodes in ASCII, which TVM and MNN need for generated code; inputs and outputs stay."""
    fixed = {*model.graph.inputs, *model.graph.outputs}
    values = [
        *model.graph.initializers.values(),
        *(value for node in model.graph.all_nodes() for value in node.outputs),
    ]
    named: list[onnx_ir.Node | onnx_ir.Value] = [*model.graph.all_nodes()]
    for value in (*named, *(value for value in values if value not in fixed)):
        if value.name and not value.name.isascii():
            value.name = value.name.encode("ascii", "backslashreplace").decode().replace("\\", "_")


def forget_shapes(model: onnx_ir.Model) -> None:
    """Drop the shapes of inner values: tract takes ``batch`` there for another size than the 1 it is loaded with."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
                value.metadata_props.clear()


def state_sizes(model: onnx_ir.Model) -> None:
    """Write static sizes of inputs and outputs as numbers: the exporter may name a dimension ``2``.

    TVM and IREE take such a name for a dynamic size.
    """
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = () if value.shape is None else value.shape
        symbols = {axis: str(getattr(size, "value", None)) for axis, size in enumerate(shape)}
        for axis, number in symbols.items():
            if number.isdecimal() and value.shape is not None:
                value.shape[axis] = int(number)


PASSES = (state_sizes, lift_constants, reshape_as_before, name_in_ascii, forget_shapes)


# ONNX Runtime's optimiser, ahead of time and limited to standard operators.


def optimise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and remove redundant nodes with ONNX Runtime's basic level, which writes standard operators only.

    The higher levels write operators for one processor and one version of ONNX Runtime, which applies them itself when
    it loads a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "optimised.onnx")
        basic = GraphOptimizationLevel.ORT_ENABLE_BASIC
        cpu_session(model, graph_optimization_level=basic, optimized_model_filepath=target)
        return onnx.load(target)


# Names of a file's inputs and outputs.


def require_distinct(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Require that no two inputs or outputs share a name.

    Raises:
        UserError: naming the first duplicate.
    """
    names = [*inputs, *outputs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{twice!r} names two inputs or outputs", "give each a name of its own")


def name_ends(model: onnx_ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name a graph's inputs and outputs; inner values with one of these names are renamed.

    An output that is also an input, a weight or another output is copied with an Identity: one value cannot have two
    names.
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
    """Register constants that nodes read as initialisers: onnxscript loses those of the second of two fused Clips."""
    ends = set(graph.inputs)
    for value in (operand for node in graph for operand in node.inputs if operand is not None):
        if value.const_value is not None and value.producer() is None and value not in ends:
            graph.initializers.setdefault(value.name or "", value)  # it rejects values without a name


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
    """Return every value of a graph and of its subgraphs once."""
    graphs = [model.graph, *model.graph.subgraphs()]
    pairs = [
        value
        for graph in graphs
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs))
    ]
    return list(dict.fromkeys(pairs))
