"""Read any ONNX file and say what is in it: types, shapes and bytes at batch 1, multiply-adds per node.

Multiply-adds (``MACS``) are those of the operator's definition, for the shapes at batch 1: Conv, ConvTranspose, Gemm,
MatMul; GridSample counts its taps for each output value (4 for bilinear in 2-D, 16 for cubic, 0 for nearest);
AffineGrid one row of theta for each coordinate; BatchNormalization one for each value. Everything else counts as none.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from google.protobuf.message import DecodeError
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from stn_export.errors import UserError
from stn_export.limits import regular, require

LINEAR, CUBIC = ("linear", "bilinear"), ("cubic", "bicubic")  # from opset 20 on, and before


@dataclass(frozen=True)
class OnnxFile:
    """A model and the names of those of its initialisers whose bytes lie in files beside it."""

    model: onnx.ModelProto
    external: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's ONNX element type (0 where unknown) and its shape at batch 1 (None where unknown)."""

    dtype: int
    shape: tuple[int, ...] | None

    @property
    def elements(self) -> int | None:
        """How many elements; None where the shape is unknown."""
        return None if self.shape is None else prod(self.shape)

    @property
    def nbytes(self) -> int | None:
        """How many bytes; None where the shape or the type is unknown, or has no fixed size."""
        if self.elements is None or self.dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
            return None
        return self.elements * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize


LARGE = 1024  # bytes
WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)
SIDE = 64  # pixels, for a dynamic height, width or depth
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
    _require_bounded(model.graph, str(path))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # some exporters' way to say that a size is open
                dim.ClearField("dim_value")
    external = tuple(each.name for each in model.graph.initializer if each.data_location == TensorProto.EXTERNAL)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:  # of its C++ parts, too
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} lacks its external data: {reason}", "put the data file beside it") from error
    return OnnxFile(model, external)


def _require_bounded(graph: onnx.GraphProto, said: str) -> None:
    """Refuse a graph that would take too long, or too much memory, before anything is made of it.

    Raises:
        UserError: naming the limit.
    """
    level, depth, nodes = [graph], 0, 0
    while level:
        depth, nodes = depth + 1, nodes + sum(len(each.node) for each in level)
        require("depth", depth, said)
        require("nodes", nodes, said)
        level = [
            inner
            for each in level
            for node in each.node
            for attribute in node.attribute
            for inner in (attribute.g, *attribute.graphs)
            if inner.node
        ]
    sizes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0] for value in graph.input]
    require("tensors", sum(map(prod, sizes)), f"{said} declares inputs")
    for tensor in graph.initializer:
        if not _is_whole(tensor):
            said = f"{said} is not an ONNX file: its tensor {tensor.name} has another size than its shape"
            raise UserError(said, "name a file that an ONNX exporter wrote")


def _is_whole(tensor: TensorProto) -> bool:
    """Whether a tensor's bytes are as many as its shape and type say; what lies elsewhere is not looked at."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return min(tensor.dims, default=0) >= 0
    try:
        return numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
    except (ValueError, TypeError, KeyError, OverflowError):  # NumPy's and onnx's, by what does not fit
        return False


def as_array(value: Any) -> np.ndarray:
    """An output as one array: of a sequence or a map all values, one behind the other."""
    if isinstance(value, np.ndarray):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [np.asarray(value)]
    return np.concatenate([np.zeros(0, np.float32), *(as_array(each).ravel() for each in parts)])


def opset_of(model: onnx.ModelProto, domain: str = "") -> int:
    """The version that the model imports of an operator set; 0 where it imports none."""
    aliases = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return max((each.version for each in model.opset_import if each.domain in aliases), default=0)


def since_version(node: NodeProto, opset: int) -> int:
    """The version of the operator itself that ``opset`` means; 0 where onnx does not know it."""
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return 0
    return onnx.defs.get_schema(node.op_type, opset, node.domain).since_version


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to be changed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with local functions inlined and a name of its own on every node of the main graph.

    Itself where it is so already, else a copy.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    taken: set[str] = set()
    names = [node.name for node in model.graph.node]
    if "" not in names and len(set(names)) == len(names):
        return model
    result = copied(model)
    for index, node in enumerate(result.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
    return result


def large_initialisers(model: onnx.ModelProto) -> list[TensorProto]:
    """Weights: what shapes and types never hang on, of types that NumPy knows by itself."""
    return [each for each in model.graph.initializer if each.ByteSize() > LARGE and each.data_type in WEIGHTS]


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A small copy whose large initialisers are said to lie elsewhere; types and shapes can be inferred from it."""
    graph, large = model.graph, {each.name for each in large_initialisers(model)}
    initialisers = [_elsewhere(each) if each.name in large else each for each in graph.initializer]
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


def walk(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """Every node, those in the bodies of control flow too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in _BODIES else ():
                yield from walk(body)


_BODIES = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, strings decoded."""
    for each in node.attribute:
        if each.name == name:
            value = helper.get_attribute_value(each)
            return value.decode() if isinstance(value, bytes) else value
    return default


def constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The initialisers, and the tensors of Constant nodes."""
    found = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and isinstance(value := attribute(node, "value", None), TensorProto):
            found[node.output[0]] = value
    return found


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What a caller has to feed: the graph's inputs that are no initialisers."""
    initialised = {each.name for each in graph.initializer}
    return [each for each in graph.input if each.name not in initialised]


def bound_dimensions(model: onnx.ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Each input's shape with ``batch`` for dynamic dimensions, but ``SIDE`` for the sides of images and volumes.

    A name stands for one size wherever it occurs, and the batch goes before a side.
    """
    rows = [
        [(dim, SIDE if len(dims) > 3 and index > 1 else batch) for index, dim in enumerate(dims)]
        for dims in (value.type.tensor_type.shape.dim for value in inputs_of(model.graph))
    ]
    named: dict[str, int] = {}
    for dim, size in (*(row[0] for row in rows if row), *chain.from_iterable(rows)):
        named.setdefault(dim.dim_param, size)
    shapes = (tuple(_size(dim, named, size) for dim, size in row) for row in rows)
    return dict(zip((value.name for value in inputs_of(model.graph)), shapes, strict=True))


def _size(dim: Any, named: dict[str, int], default: int) -> int:
    return dim.dim_value if dim.HasField("dim_value") else named[dim.dim_param] if dim.dim_param else default


def infer(model: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Types and shapes of every tensor with the inputs at ``bound_dimensions`` of batch 1.

    Raises:
        UserError: where the graph's types contradict each other.
    """
    bound = without_weights(model)
    shapes, sizes = bound_dimensions(model, batch=1), {}
    for value in inputs_of(bound.graph):
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            sizes[dim.dim_param] = size
            dim.dim_value = size
    for value in (*bound.graph.value_info, *bound.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes and dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    try:
        inferred = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:  # what C++ raises beside it
        raise UserError(f"the graph's types contradict each other: {error}", "export the model again") from error
    infos = _infos(inferred.graph)
    outputs = (name for node in bound.graph.node for name in node.output if name)
    if all(infos.get(name, UNKNOWN).shape is not None for name in outputs):
        return infos
    return infos | {name: each for name, each in _infos(_folded(bound).graph).items() if each.shape is not None}


def _infos(graph: onnx.GraphProto) -> dict[str, TensorInfo]:
    fixed = {name: TensorInfo(each.data_type, tuple(each.dims)) for name, each in constants(graph).items()}
    return {each.name: _info(each) for each in (*graph.value_info, *graph.input, *graph.output)} | fixed


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Sizes that the graph computes from those of its inputs, which inference alone follows through few operators."""
    from onnxscript.optimizer import fold_constants  # 0.4 s, and few files need it

    result = onnx_ir.from_proto(model)
    logger = logging.getLogger("onnxscript")  # says what it did not fold, as where weights are left out
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        fold_constants(result, onnx_shape_inference=True)
    finally:
        logger.setLevel(level)
    return onnx_ir.to_proto(result)


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    known = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    return TensorInfo(tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim) if known else None)


def initialiser_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initialisers and Constant nodes."""
    each = constants(model.graph).values()
    return sum(TensorInfo(tensor.data_type, tuple(tensor.dims)).nbytes or 0 for tensor in each)


def activation_bytes(model: onnx.ModelProto, infos: dict[str, TensorInfo]) -> int:
    """Bytes of every node's outputs at batch 1, none of them reused, so an upper bound of what a run holds."""
    nodes = (node for node in model.graph.node if node.op_type != "Constant")
    return sum(infos.get(name, UNKNOWN).nbytes or 0 for node in nodes for name in node.output)


Shape = tuple[int, ...]
Cost = Callable[[NodeProto, list[Shape], Shape], int]


def _gemm(node: NodeProto, inputs: list[Shape], output: Shape) -> int:
    return prod(output) * inputs[0][0 if attribute(node, "transA", 0) else 1]


def _taps(node: NodeProto, inputs: list[Shape], output: Shape) -> int:
    mode, rank = attribute(node, "mode", "linear"), len(output) - 2
    return prod(output) * (2**rank if mode in LINEAR else 4**rank if mode in CUBIC else 0)


MACS: dict[str, Cost] = {
    "Conv": lambda node, inputs, output: prod(output) * prod(inputs[1][1:]),
    "ConvTranspose": lambda node, inputs, output: prod(inputs[0]) * prod(inputs[1][1:]),
    "Gemm": _gemm,
    "MatMul": lambda node, inputs, output: prod(output) * inputs[0][-1],
    "GridSample": _taps,
    "AffineGrid": lambda node, inputs, output: prod(output) * inputs[0][-1],
    "BatchNormalization": lambda node, inputs, output: prod(output),
}


def macs(node: NodeProto, infos: dict[str, TensorInfo]) -> int | None:
    """Multiply-adds of a node at batch 1; 0 for operators not in ``MACS``, None where shapes are unknown."""
    cost = MACS.get(node.op_type)
    if cost is None:
        return 0
    shapes = [infos.get(name, UNKNOWN).shape for name in (*node.input[:2], node.output[0])]
    return None if None in shapes else int(cost(node, shapes[:-1], shapes[-1]))


def random_inputs(model: onnx.ModelProto, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs to try a model with: floats from -1 to 1, zeros or ones otherwise, of ``bound_dimensions``.

    Raises:
        UserError: for an input that is no tensor of numbers.
    """
    generator = np.random.default_rng(seed)
    shapes, result = bound_dimensions(model, batch), {}
    for value in inputs_of(model.graph):
        dtype = value.type.tensor_type.elem_type
        if dtype in (TensorProto.UNDEFINED, TensorProto.STRING):
            raise UserError(f"input {value.name} is no tensor of numbers", "such a model cannot be tried")
        shape = shapes[value.name]
        draw = generator.uniform(-1, 1, shape) if dtype in FLOATS else generator.integers(0, 2, shape)
        result[value.name] = draw.astype(helper.tensor_dtype_to_np_dtype(dtype))
    return result


HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *HALVES)
