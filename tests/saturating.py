"""The int8 layers of a QDQ file in NumPy, exactly and as x86 without VNNI multiplies: ``vpmaddubsw``.

That instruction takes two products of an unsigned and a signed byte that lie side by side, adds them, and saturates the
sum at 16 bits; sums of such pairs are exact. Kernels differ in what lies side by side: ONNX Runtime's convolutions go
through the channels of a pixel first, others through the pixels of a channel.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from onnx import NodeProto, helper, numpy_helper

from stn_export.onnx_graph.model import attribute, constants, opset_of

Arrays = dict[str, np.ndarray]
Multiply = Callable[[np.ndarray, np.ndarray], np.ndarray]  # uint8 M×K by int8 N×K, into M×N
LAYERS = ("Conv", "Gemm", "MatMul")
LOWEST, HIGHEST = -(2**15), 2**15 - 1


def exact(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multiply in 64 bits."""
    return activations.astype(np.int64) @ weights.astype(np.int64).T


def vpmaddubsw(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multiply in pairs that saturate at 16 bits."""
    odd = activations.shape[1] % 2
    bytes_, rows = (np.pad(each.astype(np.int32), ((0, 0), (0, odd))) for each in (activations, weights))
    sums = [np.clip((bytes_ * row).reshape(len(bytes_), -1, 2).sum(2), LOWEST, HIGHEST).sum(1) for row in rows]
    return np.stack(sums, axis=1, dtype=np.int64) if sums else np.zeros((len(bytes_), 0), np.int64)


class Emulated:
    """A QDQ file whose int8 layers are multiplied as asked; ONNX Runtime computes the rest, node by node."""

    def __init__(self, model: onnx.ModelProto, multiply: Multiply, channels_first: bool = False) -> None:
        self.model, self.multiply, self.channels_first = model, multiply, channels_first
        self.tensors = {name: numpy_helper.to_array(each) for name, each in constants(model.graph).items()}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.opset = opset_of(model)

    def layers(self) -> list[NodeProto]:
        """The layers that compute in bytes."""
        return [node for node in self.model.graph.node if node.op_type in LAYERS and self._in_bytes(node)]

    def rows(self, node: NodeProto) -> np.ndarray:
        """A layer's int8 weights, outputs × terms of a sum, in the order in which they are multiplied."""
        values = self.tensors[self.producers[node.input[1]].input[0]]
        if node.op_type == "Conv":
            return (values if self.channels_first else np.moveaxis(values, 1, -1)).reshape(len(values), -1)
        return values if attribute(node, "transB", 0) else values.T

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs by name."""
        values = self.tensors | dict(feeds)
        for node in self.model.graph.node:
            computed = self._layer(node, values) if self._in_bytes(node) else _alone(node, values, self.opset)
            values.update(zip(node.output, computed, strict=True))
        return {each.name: values[each.name] for each in self.model.graph.output}

    def _in_bytes(self, node: NodeProto) -> bool:
        if node.op_type not in LAYERS:
            return False
        sources = [self.producers.get(name) for name in node.input[:2]]
        return all(source is not None and source.op_type == "DequantizeLinear" for source in sources)

    def _layer(self, node: NodeProto, values: Arrays) -> list[np.ndarray]:
        """One layer: the sums of products in bytes, then scales and bias in float32."""
        activation, weights = (self.producers[name] for name in node.input[:2])
        bytes_, scale, zero = (values[name] for name in activation.input)
        weight_scale = values[weights.input[1]]
        assert bytes_.dtype == np.uint8
        assert not values[weights.input[2]].any()
        rows = self.rows(node)
        matrix, shape = self._matrix(node, bytes_, zero)
        sums = self.multiply(matrix, rows) - int(zero) * rows.astype(np.int64).sum(1)
        result = sums * (scale.astype(np.float64) * weight_scale)
        if len(node.input) > 2:
            result = result + values[node.input[2]]
        result = result.astype(np.float32).reshape(*shape, -1)
        return [np.moveaxis(result, -1, 1) if node.op_type == "Conv" else result]

    def _matrix(self, node: NodeProto, bytes_: np.ndarray, zero: np.ndarray) -> tuple[np.ndarray, Sequence[int]]:
        """The activations, rows × terms of a sum, and the shape of the rows."""
        if node.op_type != "Conv":
            return bytes_.reshape(-1, bytes_.shape[-1]), bytes_.shape[:-1]
        assert attribute(node, "group", 1) == 1
        assert set(attribute(node, "dilations", [1])) == {1}
        top, left, bottom, right = attribute(node, "pads", [0] * 4)
        padded = np.pad(bytes_, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=int(zero))
        across, down = attribute(node, "strides", [1, 1])
        kernel = self.tensors[self.producers[node.input[1]].input[0]].shape[2:]
        windows = sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::across, ::down]  # N, C, H, W, kernel
        order = (0, 2, 3, 1, 4, 5) if self.channels_first else (0, 2, 3, 4, 5, 1)
        images, _, height, width = windows.shape[:4]
        return windows.transpose(order).reshape(images * height * width, -1), (images, height, width)


@cache
def _session(node: bytes, types: tuple[tuple[str, int], ...], opset: int) -> onnxruntime.InferenceSession:
    parsed = NodeProto.FromString(node)
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in types]
    outputs = [onnx.ValueInfoProto(name=name) for name in parsed.output]
    graph = helper.make_graph([parsed], "alone", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _alone(node: NodeProto, values: Arrays, opset: int) -> list[np.ndarray]:
    """One node by ONNX Runtime."""
    if node.op_type == "Constant":
        return [values[node.output[0]]]
    feeds = {name: values[name] for name in node.input if name}
    types = tuple((name, helper.np_dtype_to_tensor_dtype(value.dtype)) for name, value in feeds.items())
    return _session(node.SerializeToString(), types, opset).run(None, feeds)
