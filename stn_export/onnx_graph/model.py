"""Read any ONNX file, and find types, shapes and bytes of its tensors for given sizes of its inputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto, TensorShapeProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from stn_export.errors import UserError
from stn_export.limits import regular, require

LINEAR, CUBIC = ("linear", "bilinear"), ("cubic", "bicubic")  # from opset 20 on, and before


@dataclass(frozen=True)
class OnnxFile:
    """A model, and the names of its initialisers that are stored in other files."""

    model: onnx.ModelProto
    external: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's ONNX element type (0 where unknown) and its shape (None where unknown)."""

    dtype: int
    shape: tuple[int, ...] | None

    @property
    def elements(self) -> int | None:
        """The number of elements; None where the shape is unknown."""
        return None if self.shape is None else prod(self.shape)

    @property
    def nbytes(self) -> int | None:
        """The number of bytes; None where the shape or type is unknown, or the type has no fixed size."""
        if self.elements is None or self.dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
            return None
        return self.elements * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize


ALIAS = "ai.onnx"  # another spelling of ONNX's own domain
LARGE = 1024  # bytes
LARGEST_OPSET = 2**31 - 1  # that onnx asks about
WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)
Shape = tuple[int, ...]
UNKNOWN = TensorInfo(TensorProto.UNDEFINED, None)


def read_model(path: Path) -> OnnxFile:
    """Read an ONNX file with its external data.

    Raises:
        UserError: where it is missing, is not ONNX, or lacks its external data.
    """
    try:
        model = onnx.load(regular(path, "onnx", "name an ONNX file that exists"), load_external_data=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "name an ONNX file that exists") from error
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path} is not an ONNX file", "name a file that an ONNX exporter wrote") from error
    if not model.graph.output or not model.opset_import:
        raise UserError(f"{path} is not an ONNX file: it has no graph", "name a file that an ONNX exporter wrote")
    versions = [entry.version for holder in (model, *model.functions) for entry in holder.opset_import]
    if wrong := [version for version in versions if not 0 <= version <= LARGEST_OPSET]:
        raise UserError(f"{path} names an opset that cannot be: {wrong[0]}", "name a file that an ONNX exporter wrote")
    _require_bounded(model.graph, str(path))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # some exporters mark a dynamic size so
                dim.ClearField("dim_value")
    external = tuple(tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:  # onnx's C++ raises RuntimeError
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} lacks its external data: {reason}", "put the data file beside it") from error
    if external:
        _require_whole(model.graph, str(path))
    return OnnxFile(model, external)


def _require_bounded(graph: onnx.GraphProto, label: str) -> None:
    """Reject a graph that would take too much time or memory, before it is processed.

    Raises:
        UserError: naming the limit.
    """
    level, depth, nodes = [graph], 0, 0
    while level:
        depth, nodes = depth + 1, nodes + sum(len(inner.node) for inner in level)
        require("depth", depth, label)
        require("nodes", nodes, label)
        level = [
            inner
            for body in level
            for node in body.node
            for attribute in node.attribute
            for inner in (attribute.g, *attribute.graphs)
            if inner.node
        ]
    sizes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0] for value in graph.input]
    require("tensors", sum(map(prod, sizes)), f"{label} declares inputs")
    _require_whole(graph, label)


def _require_whole(graph: onnx.GraphProto, label: str) -> None:
    """Reject tensors whose bytes do not match their shapes.

    Raises:
        UserError: naming one.
    """
    for tensor in graph.initializer:
        if not _is_whole(tensor):
            label = f"{label} is not an ONNX file: its tensor {tensor.name} has another size than its shape"
            raise UserError(label, "name a file that an ONNX exporter wrote")


def _is_whole(tensor: TensorProto) -> bool:
    """Return whether a tensor's bytes match its shape and type; external data is not checked."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return min(tensor.dims, default=0) >= 0
    try:
        return numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
    except (ValueError, TypeError, KeyError, OverflowError):  # NumPy and onnx raise these, by what does not fit
        return False


def as_array(value: Any) -> np.ndarray:
    """Return an output as one array: the values of a sequence or map are concatenated."""
    if isinstance(value, np.ndarray):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [np.asarray(value)]
    return np.concatenate([np.zeros(0, np.float32), *(as_array(part).ravel() for part in parts)])


def opset_of(model: onnx.ModelProto, domain: str = "") -> int:
    """Return the version of an operator set that the model imports; 0 where it imports none."""
    aliases = ("", ALIAS) if domain in ("", ALIAS) else (domain,)
    return max((opset.version for opset in model.opset_import if opset.domain in aliases), default=0)


def since_version(node: NodeProto, opset: int) -> int:
    """Return the operator version that ``opset`` refers to; 0 where onnx does not know the operator."""
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return 0
    return onnx.defs.get_schema(node.op_type, opset, node.domain).since_version


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with local functions inlined, every node named uniquely, and ONNX's own domain spelt "".

    The model itself where nothing changes, else a copy.
    """
    if model.functions:
        model = inline_local_functions(model)
    nodes = list(walk(model.graph))
    names = {node.name for node in nodes}
    if "" not in names and len(names) == len(nodes) and not any(node.domain == ALIAS for node in nodes):
        return model
    result, seen = copied(model), set[str]()
    for index, node in enumerate(walk(result.graph)):
        node.domain = "" if node.domain == ALIAS else node.domain
        if not node.name or node.name in seen:
            candidates = (f"{node.op_type}_{index}{suffix}" for suffix in ("", *(f"_{n}" for n in range(len(nodes)))))
            node.name = next(name for name in candidates if name not in names)
            names.add(node.name)
        seen.add(node.name)
    return result


def used_names(graph: onnx.GraphProto) -> set[str]:
    """Return what nodes read, also inside control flow, and the graph's outputs."""
    return {name for node in walk(graph) for name in node.input} | {output.name for output in graph.output}


def large_initialisers(model: onnx.ModelProto) -> list[TensorProto]:
    """Return the weights: large initialisers of NumPy's types, on which no shape or type depends."""
    return [tensor for tensor in model.graph.initializer if tensor.ByteSize() > LARGE and tensor.data_type in WEIGHTS]


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with its large initialisers marked as external, small enough for type and shape inference."""
    graph, large = model.graph, {tensor.name for tensor in large_initialisers(model)}
    initialisers = [_elsewhere(tensor) if tensor.name in large else tensor for tensor in graph.initializer]
    return helper.make_model(
        helper.make_graph(
            graph.node,
            graph.name,
            graph.input,
            graph.output,
            initialisers,
            value_info=graph.value_info,
            sparse_initializer=graph.sparse_initializer,
        ),
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
    )


def _elsewhere(tensor: TensorProto) -> TensorProto:
    result = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    result.data_location = TensorProto.EXTERNAL
    result.external_data.add(key="location", value="memory")
    return result


SIZES_ONLY = ("Shape", "Size")  # operators that look at no value
RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")


def outputs_apart_from_inputs(graph: onnx.GraphProto) -> set[str]:
    """Return the outputs that no value of an input reaches, and no random number; sizes may."""
    reached = {value.name for value in inputs_of(graph)}
    for node in graph.node:
        read = set(node.input).union(*map(used_names, _bodies(node)))
        random = any(inner.op_type in RANDOM for body in _bodies(node) for inner in walk(body))
        if random or node.op_type in RANDOM or (read & reached and node.op_type not in SIZES_ONLY):
            reached |= set(node.output)
    return {output.name for output in graph.output} - reached


def walk(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[NodeProto]:
    """Yield every node, also inside control flow."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from walk(body)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph, and the bodies of control flow inside it."""
    yield graph
    yield from bodies_of(graph)


def bodies_of(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of control flow inside a graph or a local function."""
    for node in graph.node:
        for body in _bodies(node):
            yield from graphs_of(body)


def _bodies(node: NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type in _BODIES:
            yield from (attribute.g, *attribute.graphs)


_BODIES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value, strings decoded, or the default."""
    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the initialisers, and the tensors of Constant nodes, by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and isinstance(value := attribute(node, "value", None), TensorProto):
            tensors[node.output[0]] = value
    return tensors


def all_constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the constants of the graph and of all control flow inside it, by name."""
    return {name: tensor for inner in graphs_of(graph) for name, tensor in constants(inner).items()}


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller has to feed: those that are not initialisers."""
    initialised = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialised]


def infer(model: onnx.ModelProto, shapes: Mapping[str, Shape] | None = None) -> dict[str, TensorInfo]:
    """Infer types and shapes of every tensor of the main graph.

    Args:
        model: any.
        shapes: of its inputs, by name; others stay as declared.

    Raises:
        UserError: where the graph's types contradict each other.
    """
    bound = without_weights(model)
    for value in inputs_of(bound.graph):
        if value.name in (shapes or {}) and value.type.WhichOneof("value") == "tensor_type":
            _bind(value.type.tensor_type.shape, (shapes or {})[value.name])
    for value in (*bound.graph.value_info, *bound.graph.output) if shapes else ():
        value.type.tensor_type.ClearField("shape")  # it may be for other sizes
    try:
        inferred = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:  # raised by onnx's C++ code
        raise UserError(f"the graph's types contradict each other: {error}", "export the model again") from error
    return _infos(inferred.graph)


def _bind(shape: TensorShapeProto, sizes: Shape) -> None:
    """Write sizes into a declared shape."""
    for axis, size in enumerate(sizes):
        dim = shape.dim[axis] if axis < len(shape.dim) else shape.dim.add()
        dim.dim_value = size


def _infos(graph: onnx.GraphProto) -> dict[str, TensorInfo]:
    fixed = {name: TensorInfo(tensor.data_type, tuple(tensor.dims)) for name, tensor in constants(graph).items()}
    return {value.name: _info(value) for value in (*graph.value_info, *graph.input, *graph.output)} | fixed


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    complete = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    shape = tuple(dim.dim_value for dim in tensor.shape.dim) if complete else None
    return TensorInfo(tensor.elem_type, None if shape is None or min(shape, default=0) < 0 else shape)


def initialiser_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all initialisers and Constant nodes of the main graph."""
    tensors = constants(model.graph).values()
    return sum(TensorInfo(tensor.data_type, tuple(tensor.dims)).nbytes or 0 for tensor in tensors)


def activation_bytes(model: onnx.ModelProto, infos: dict[str, TensorInfo]) -> int:
    """Return the bytes of all nodes' outputs, without reuse: an upper bound on what a run needs."""
    nodes = (node for node in model.graph.node if node.op_type != "Constant")
    return sum(infos.get(name, UNKNOWN).nbytes or 0 for node in nodes for name in node.output)


HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *HALVES)
