"""The points of sampling sites inside an ONNX file: theta, grid and warped image, as far as the file shows them.

A file of ours says in its metadata which of its values they are; a lowering may leave some of them out.
"""

import json

import numpy as np
import onnx

from stn_export.onnx_graph.model import copied
from stn_export.program.sites import POINTS, Step, Values

SITES = "sites"  # the key in a file's metadata: a list of values by point, one a site


def site_values(model: onnx.ModelProto) -> list[dict[str, str]]:
    """By site the values that are its image, theta, grid and warped image; nothing for other people's files."""
    found = {prop.key: prop.value for prop in model.metadata_props}.get(SITES)
    made = {name for node in model.graph.node for name in node.output} | {each.name for each in model.graph.input}
    try:
        sites = json.loads(found) if found else []
        return [{point: value for point, value in site.items() if value in made} for site in sites]
    except (ValueError, AttributeError, TypeError):
        return []  # somebody else's key of that name


def point_values(model: onnx.ModelProto) -> dict[str, str]:
    """The values that are points by the point's name (``site0/theta``), in the network's order; no outputs."""
    sites = enumerate(site_values(model))
    return {f"site{index}/{point}": site[point] for index, site in sites for point in POINTS if point in site}


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of the model that also gives these values."""
    copy = copied(model)
    known = {each.name for each in (*copy.graph.output, *copy.graph.input)}
    for name in dict.fromkeys(names):
        if name not in known:
            copy.graph.output.append(onnx.ValueInfoProto(name=name))  # of the type that the graph gives it
    return copy


def with_input(model: onnx.ModelProto, name: str, dtype: np.dtype) -> onnx.ModelProto:
    """A copy of the model in which a value of this type is fed instead of computed."""
    copy = copied(model)
    for node in copy.graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = f"{name}/computed"
    if name not in {each.name for each in copy.graph.input}:
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        copy.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return copy


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The graph's initialisers by name, as ``state_dict`` calls them: without the name of a wrapper around it all."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name.removeprefix("model."): array for name, array in arrays.items()}


def steps_of(model: onnx.ModelProto) -> list[Step]:
    """The graph's nodes as ``program.sites`` takes them; names must be given and unique."""
    return [Step(node.name, list(filter(None, node.input)), list(node.output)) for node in model.graph.node]


def part_values(model: onnx.ModelProto) -> list[Values]:
    """The sites as ``program.sites`` takes them; those that do not show their grid and warped image are left out."""
    return [
        Values(site["image"], site["grid"], site["warped"], site.get("theta", ""))
        for site in site_values(model)
        if {"image", "grid", "warped"} <= set(site)
    ]
