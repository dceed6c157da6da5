"""Read what an ONNX file declares: inputs and outputs, operator sets, producer, size and operators.

Everything is read from the file; nothing is run.
"""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec
import onnx
from onnx import TensorProto, helper

from stn_export.onnx_graph.model import OnnxFile, attribute, bodies_of, inputs_of, walk
from stn_export.onnx_graph.records import NO_TENSORS, Described, FileContract

NO_WEIGHTS = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)  # sizes, indices, masks and strings
UNKNOWN_SIZE = "?"


class _Pixels(msgspec.Struct):
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Input(msgspec.Struct):
    name: str
    pixels: _Pixels | None = None


class _Contract(msgspec.Struct):
    inputs: tuple[_Input, ...] = ()


def contract_of(file: OnnxFile, path: Path | None = None) -> FileContract:
    """Read what a model declares; ``path`` is its file, for the size."""
    model, graph = file.model, file.model.graph
    pixels, external = _pixels(model), set(file.external)
    operators = Counter(_operator(node) for node in _nodes(model))
    weights = list(_weights(model))
    return FileContract(
        inputs=tuple(_described(value, pixels.get(value.name)) for value in inputs_of(graph)),
        outputs=tuple(_described(value) for value in graph.output),
        opsets={opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        ir_version=model.ir_version,
        producer=f"by {model.producer_name} {model.producer_version}".strip() if model.producer_name else "by nobody",
        parameters=sum(math.prod(weight.dims) for weight in weights if weight.data_type not in NO_WEIGHTS),
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        functions=len(model.functions),
        bytes=path.stat().st_size if path else None,
        external_bytes=sum(
            len(initializer.raw_data) for initializer in graph.initializer if initializer.name in external
        ),
    )


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for body in (model.graph, *model.functions):
        yield from walk(body)


def _operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _weights(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield the initialisers of all graphs, the values of sparse ones, and the tensors of Constant nodes."""
    graphs = [model.graph, *chain.from_iterable(map(bodies_of, (model.graph, *model.functions)))]
    yield from chain.from_iterable(graph.initializer for graph in graphs)
    yield from (sparse.values for graph in graphs for sparse in graph.sparse_initializer)
    for node in _nodes(model):
        if node.op_type == "Constant" and isinstance(value := attribute(node, "value", None), TensorProto):
            yield value


def _described(value: onnx.ValueInfoProto, pixels: _Pixels | None = None) -> Described:
    kind = value.type.WhichOneof("value")
    if kind in NO_TENSORS:
        return Described(value.name, NO_TENSORS[kind], None)
    tensor = value.type.sparse_tensor_type if kind == "sparse_tensor_type" else value.type.tensor_type
    shape = tuple(map(_size, tensor.shape.dim)) if tensor.HasField("shape") else None
    described = Described(value.name, _dtype(tensor.elem_type), shape)
    if pixels is None or not _fits(pixels, described):
        return described
    return Described(described.name, described.dtype, described.shape, pixels.mean, pixels.std)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or UNKNOWN_SIZE


def _dtype(element: int) -> str:
    """Return the NumPy name of an ONNX element type, ``unknown`` for an invalid one."""
    if element == TensorProto.STRING:
        return "string"
    try:
        return str(helper.tensor_dtype_to_np_dtype(element))
    except (KeyError, ValueError, TypeError):
        return "unknown"


def _pixels(model: onnx.ModelProto) -> dict[str, _Pixels]:
    """Return the image normalisation by input that a file of this package states; empty for any other file."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "contract"), "{}")
    try:
        contract = msgspec.json.decode(text, type=_Contract)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return {spec.name: spec.pixels for spec in contract.inputs if spec.pixels}


def _fits(pixels: _Pixels, declared: Described) -> bool:
    """Return whether a normalisation fits an input: one value or one per channel, no division by zero."""
    channels = declared.shape[1] if declared.shape is not None and len(declared.shape) == 4 else 0
    counts = {len(pixels.mean), len(pixels.std)} <= {1, channels}
    return counts and declared.dtype == "float32" and all(map(math.isfinite, pixels.mean)) and all(pixels.std)
