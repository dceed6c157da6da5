"""The points of sampling sites inside an ONNX file: theta, grid and warped image, as far as the file has them.

A file of this package states in its metadata which values they are; a lowering may remove some of them.
"""

import json

import numpy as np
import onnx

from stn_export.onnx_graph.model import copied
from stn_export.program.sites import POINTS, Step, Values

SITES = "sites"  # metadata key: a list with the values of each site by point


def site_values(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Return by site the values of its image, theta, grid and warped image; empty for files of other tools."""
    entry = {prop.key: prop.value for prop in model.metadata_props}.get(SITES)
    made = {name for node in model.graph.node for name in node.output} | {value.name for value in model.graph.input}
    try:
        sites = json.loads(entry) if entry else []
        return [{point: value for point, value in site.items() if value in made} for site in sites]
    except (ValueError, AttributeError, TypeError):
        return []  # another tool's key of that name


def point_values(model: onnx.ModelProto) -> dict[str, str]:
    """Return the values by point (``site0/theta``), in the network's order; outputs are not among them."""
    sites = enumerate(site_values(model))
    return {f"site{index}/{point}": site[point] for index, site in sites for point in POINTS if point in site}


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Copy the model with these values as additional outputs."""
    copy = copied(model)
    listed = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    for name in dict.fromkeys(names):
        if name not in listed:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))  # its type is inferred from the graph
    return copy


def conditions(model: onnx.ModelProto) -> dict[str, str]:
    """Return the condition of every ``If`` of the main graph by the node's name, or its first output's."""
    return {node.name or node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "If"}


def only_with(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Copy the model with copies of these values, in their order, as its only outputs."""
    copy = copied(model)
    del copy.graph.output[:]
    for index, name in enumerate(names):  # copies, as a value may be an input or a weight
        copy.graph.node.append(onnx.helper.make_node("Identity", [name], [f"{name}/copy{index}"]))
        copy.graph.output.append(onnx.ValueInfoProto(name=f"{name}/copy{index}"))
    return copy


def with_input(model: onnx.ModelProto, name: str, dtype: np.dtype) -> onnx.ModelProto:
    """Copy the model with a value turned into an input of this type."""
    copy = copied(model)
    for node in copy.graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = f"{name}/computed"
    if name not in {value.name for value in copy.graph.input}:
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        copy.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return copy


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the graph's initialisers by their names in ``state_dict``, without the prefix of a wrapper."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name.removeprefix("model."): array for name, array in arrays.items()}


def steps_of(model: onnx.ModelProto) -> list[Step]:
    """Return the graph's nodes in the form of ``program.sites``; their names must be unique."""
    return [Step(node.name, list(filter(None, node.input)), list(node.output)) for node in model.graph.node]


def part_values(model: onnx.ModelProto) -> list[Values]:
    """Return the sites in the form of ``program.sites``; sites without image, grid or warped image are left out."""
    return [
        Values(site["image"], site["grid"], site["warped"], site.get("theta", ""))
        for site in site_values(model)
        if {"image", "grid", "warped"} <= set(site)
    ]
