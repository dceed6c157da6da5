"""Mark the points of a captured graph's sampling sites, to find them again in the ONNX file made from it.

An exporter may fold, rename and merge nodes, so every point passes through a custom operator, ``mark``, which the
exporter must keep. Once the ONNX graph is made, the marks are removed and their values get the points' names.
"""

import copy
import json
from dataclasses import replace

import onnx
import onnx_ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Opset
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from stn_export.onnx_graph.points import SITES
from stn_export.program.capture import operand, samples_pictures
from stn_export.program.passes import sharing_copy
from stn_export.program.program import Program
from stn_export.program.sites import POINTS, find_sites

DOMAIN, OPERATOR = "stn_export", "Mark"


@torch.library.custom_op("stn_export::mark", mutates_args=())
def mark(value: Tensor, name: str) -> Tensor:
    """Return a copy of ``value``; the operator carries the point's name through the exporter."""
    return value.clone()


@mark.register_fake
def _(value: Tensor, name: str) -> Tensor:
    return torch.empty_like(value)


MARK = torch.ops.stn_export.mark.default
TRANSLATIONS = {MARK: lambda value, name: Opset(DOMAIN, 1).Mark(value, name=name)}
if not onnx.defs.has(OPERATOR, DOMAIN):  # the exporter looks up the schema of every operator
    onnx.defs.register_schema(
        OpSchema(
            OPERATOR,
            DOMAIN,
            1,
            inputs=[OpSchema.FormalParameter("value", "T")],
            outputs=[OpSchema.FormalParameter("same", "T")],
            type_constraints=[("T", [f"tensor({kind})" for kind in ("float", "double", "float16", "bfloat16")], "")],
            attributes=[OpSchema.Attribute("name", OpSchema.AttrType.STRING, required=True)],
        )
    )


def marked(module: GraphModule) -> GraphModule:
    """Return a copy of a flat graph in which image, theta, grid and warped image of every site pass through marks."""
    module = sharing_copy(module)
    _mark(module.graph)
    module.recompile()
    return module


def _mark(graph: Graph) -> dict[str, str]:
    """Insert marks into a graph; return the name of each marked warped image by its sampler's name."""
    nodes, warped_names = {node.name: node for node in graph.nodes}, {}
    for site in find_sites(graph, {}):
        sampler = nodes[site.warped]
        _mark_argument(sampler, 0, site.point("image"))
        if site.theta:
            _mark_argument(nodes[site.grid], 0, site.point("theta"))
        _mark_argument(sampler, 1, site.point("grid"))
        with graph.inserting_after(sampler):
            warped = graph.call_function(MARK, (sampler, site.point("warped")))
        warped.meta = dict(sampler.meta)
        sampler.replace_all_uses_with(warped, delete_user_cb=lambda user, warped=warped: user is not warped)
        warped_names[sampler.name] = warped.name
    return warped_names


def _mark_argument(node: Node, index: int, point: str) -> None:
    source = operand(node, index)
    with node.graph.inserting_before(node):
        through = node.graph.call_function(MARK, (source, point))
    through.meta = dict(source.meta)
    node.update_arg(index, through)


def marked_program(program: Program) -> Program:
    """Return the program with marks in its captured graph; unchanged if it samples nowhere."""
    if not any(samples_pictures(node) for node in program.exported.graph.nodes):
        return program
    exported = program.exported
    module, signature = sharing_copy(exported.graph_module), copy.deepcopy(exported.graph_signature)
    for node, original in zip(module.graph.nodes, exported.graph_module.graph.nodes, strict=True):
        node.name = original.name  # a copy renames nodes called like a builtin, such as ``input``
    for old, new in _mark(module.graph).items():
        signature.replace_all_uses(old, new)
    module.recompile()
    with_marks = ExportedProgram(
        module,
        module.graph,
        signature,
        exported.state_dict,
        exported.range_constraints,
        exported.module_call_graph,
        exported.example_inputs,
        exported.constants,
        verifiers=exported.verifiers,
    )
    return replace(program, exported=with_marks)


Marked = dict[str, onnx_ir.Value]


def take_marks(model: onnx_ir.Model) -> Marked:
    """Remove the marks from a graph and name their values by point, except for the graph's own inputs and outputs.

    Returns:
        The values by point; a value that is several points has the name of the first.
    """
    graph = model.graph
    marked: Marked = {}
    for node in [node for node in graph if node.domain == DOMAIN]:
        [value], [same] = [operand for operand in node.inputs if operand is not None], node.outputs
        if same.is_graph_output():
            value.name = same.name
        onnx_ir.convenience.replace_all_uses_with(same, value, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        fixed = value.is_graph_input() or value.is_graph_output() or value.is_initializer() or value in marked.values()
        marked[node.attributes.get_string("name")] = value
        if not fixed:
            value.name = node.attributes.get_string("name")
    model.graph.opset_imports.pop(DOMAIN, None)
    return marked


def site_notes(model: onnx_ir.Model, marked: Marked) -> dict[str, str]:
    """Return the file's metadata about its sampling sites: the names of their values that are still in the graph."""
    graph = model.graph
    unclaimed = {value.name for node in graph for value in node.outputs} | {value.name for value in graph.inputs}
    names = {point: value.name for point, value in marked.items() if value.name in unclaimed}
    count, kinds = len({point.partition("/")[0] for point in marked}), ("image", *POINTS)
    points = ({kind: f"site{index}/{kind}" for kind in kinds} for index in range(count))
    sites = [{kind: names[point] for kind, point in site.items() if point in names} for site in points]
    return {SITES: json.dumps(sites)} if sites else {}
