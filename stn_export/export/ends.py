"""The names of a file's inputs and outputs: whatever the exporter called anything inside, these are theirs."""

import itertools
from collections.abc import Container, Sequence

import onnx_ir

from stn_export.errors import UserError


def require_distinct(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse names that would make two ends of a file one.

    Raises:
        UserError: naming the first that is there twice.
    """
    names = [*inputs, *outputs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{twice!r} names two inputs or outputs", "give each a name of its own")


def distinct(names: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """The names, with something behind those that are there before or among ``others``."""
    taken, found = set(others), []
    for name in names:
        found.append(_free(name if name not in others else f"{name}_output", taken))
        taken.add(found[-1])
    return found


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
            value.name = _free(f"{value.name}_inner", taken)
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


def _free(name: str, taken: Container[str]) -> str:
    return next(
        each for each in (name if count == 1 else f"{name}{count}" for count in itertools.count(1)) if each not in taken
    )
