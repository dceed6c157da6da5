"""Find layers whose products of bytes can exceed 16 bits on x86 processors without VNNI: a property of the file.

There ``vpmaddubsw`` multiplies activations (bytes from 0 to 255) by weights (bytes from -128 to 127), adds two
neighbouring products, and saturates a sum that exceeds 16 bits. Sources: Intel's description of it; ONNX
Runtime, ``onnxruntime/core/mlas/lib/x86_64/QgemmU8X8KernelAvx2.S``. Signed activations are no way out: its kernels add
128 to them and go on as above. Products of two unsigned bytes are exact, since kernels for them widen both first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from stn_export.onnx_graph.model import all_constants, attribute, inputs_of, walk

LOWEST, HIGHEST = -(2**15), 2**15 - 1  # of 16 bits
BYTE = 255  # the largest activation
NAMED = 3  # most layers that a message names
REMEDY = (
    "quantise the weights to 7 bits (reduce_range=True); run a file that cannot be made anew with ONNX Runtime's "
    "session option session.x64quantprecision=1"
)

UINT8, INT8 = TensorProto.UINT8, TensorProto.INT8
FLOAT_LAYERS = ("Conv", "Gemm", "MatMul")  # computed in bytes if activation and weights are dequantised
BYTE_LAYERS = {  # always computed in bytes, in any domain; the indices of weight inputs
    "ConvInteger": (1,),
    "DynamicQuantizeLSTM": (1, 2),
    "DynamicQuantizeMatMul": (1,),
    "MatMulInteger": (1,),
    "MatMulIntegerToFloat": (1,),
    "QAttention": (1,),
    "QGemm": (3,),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
}
ZERO_POINTS = {"QuantizeLinear": 2, "QGemm": 8, "QLinearConv": 7, "QLinearMatMul": 7}  # index of its zero point
OUTPUTS_FIRST = ("Conv", "ConvInteger", "QLinearConv")  # the first axis of their weights counts the outputs
PASSING = ("Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")  # move values


@dataclass(frozen=True)
class SaturatingLayer:
    """A layer that can saturate: its node, and the largest magnitudes of its weights and of a sum of two products."""

    node: str
    largest: int
    reach: int

    def __str__(self) -> str:
        return f"int8 weights up to {self.largest}: two products reach {self.reach:,}, 16 bits end at {HIGHEST:,}"


@dataclass(frozen=True)
class _Weights:
    """The int8 weights of a layer; ``as_stored`` where no node rearranges them on the way."""

    name: str
    as_stored: bool = True


def saturating_layers(model: onnx.ModelProto) -> list[SaturatingLayer]:
    """Find the layers where some input makes the sum of two products of bytes exceed 16 bits.

    Any two weights of one output count as neighbours, because each kernel has an order of its own. Computed weights
    count as full-range ones; weights in a file that was not loaded are left out.
    """
    graph = _Graph(model)
    verdicts = (graph.judge(node, weights) for node in graph.nodes for weights in graph.weights_of(node))
    return [layer for layer in verdicts if layer]


def saturation_of(path: Path) -> str:
    """Describe in one line which layers of a file saturate; empty where none does."""
    layers = saturating_layers(onnx.load(path))
    return saturates(layers) if layers else ""


def saturates(layers: Sequence[SaturatingLayer]) -> str:
    """Describe in one line which layers saturate, and by how much the first."""
    names = [layer.node for layer in layers[:NAMED]]
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    return f"saturates on x86 without VNNI: {', '.join(names)}{more} ({layers[0]})"


def extreme_pairs(rows: np.ndarray) -> tuple[int, int]:
    """Return the lowest and the highest sum of two products of a byte and a weight; rows: outputs × terms of a sum."""
    ordered = np.sort(rows.astype(np.int64), axis=1)
    lowest = np.minimum(ordered[:, :2], 0).sum(axis=1).min(initial=0)
    highest = np.maximum(ordered[:, -2:], 0).sum(axis=1).max(initial=0)
    return int(BYTE * lowest), int(BYTE * highest)


class _Graph:
    """A model's nodes, also inside control flow, and the producers of its values."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(walk(model.graph))
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.tensors = all_constants(model.graph)
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in inputs_of(model.graph)}

    def weights_of(self, node: NodeProto) -> Iterator[_Weights]:
        """Yield the int8 weights that a node multiplies bytes by; none where it computes in floating point."""
        for index in BYTE_LAYERS.get(node.op_type, ()):
            if self._type(_input(node, index)) == INT8:
                yield _Weights(_input(node, index))
        if node.op_type in FLOAT_LAYERS:
            activation, weights = (self._dequantised(_input(node, index)) for index in (0, 1))
            bytes_in = activation is not None and self._type(activation.name) in (UINT8, INT8)
            if bytes_in and weights is not None and self._type(weights.name) == INT8:
                yield weights

    def judge(self, node: NodeProto, weights: _Weights) -> SaturatingLayer | None:
        """Return the layer where two of its products can exceed 16 bits, else None."""
        source = self._constant(weights.name)
        if source is not None and source.data_location == TensorProto.EXTERNAL:
            return None
        rows = np.full((1, 2), -128) if source is None else self._rows(node, weights, source)
        lowest, highest = extreme_pairs(rows)
        if lowest >= LOWEST and highest <= HIGHEST:
            return None
        largest = int(np.abs(rows.astype(np.int64)).max())
        return SaturatingLayer(node.name or node.op_type, largest, max(-lowest, highest))

    def _rows(self, node: NodeProto, weights: _Weights, source: TensorProto) -> np.ndarray:
        """Return the weights as outputs × terms of a sum; as one row where it is unknown which belong together."""
        values = numpy_helper.to_array(source)
        if weights.name not in self.tensors:
            values = self._quantised(self.producers[weights.name], values)
        if values.ndim < 2 or not weights.as_stored:
            return values.reshape(1, -1)
        if node.op_type in OUTPUTS_FIRST or attribute(node, "transB", 0):
            return values.reshape(len(values), -1)
        return np.moveaxis(values, -2, -1).reshape(-1, values.shape[-2])

    def _quantised(self, node: NodeProto, values: np.ndarray) -> np.ndarray:
        """Apply QuantizeLinear to constants; full-range values where its scale is computed or has blocks."""
        parts = [self.tensors.get(name) for name in node.input[1:3] if name]
        if None in parts or attribute(node, "block_size", 0):
            return np.full_like(values, -128, dtype=np.int8)
        scale, *zeros = (numpy_helper.to_array(part) for part in parts if part)
        axis = attribute(node, "axis", 1) % max(values.ndim, 1)
        if scale.ndim and scale.shape != values.shape[axis : axis + 1]:
            return np.full_like(values, -128, dtype=np.int8)
        shape = [-1 if index == axis else 1 for index in range(values.ndim)] if scale.ndim else []
        zero = zeros[0].reshape(shape).astype(np.int64) if zeros else 0
        return np.clip(np.rint(values / scale.reshape(shape)) + zero, -128, 127).astype(np.int8)

    def _dequantised(self, value: str) -> _Weights | None:
        """Return the bytes that a float value is dequantised from, perhaps rearranged; None where it is computed."""
        start = self._start(value)
        node = self.producers.get(start)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        return _Weights(_input(node, 0), start == value)

    def _start(self, value: str) -> str:
        """Return the value that this one was rearranged from."""
        seen: set[str] = set()  # a damaged graph may contain a cycle
        while (node := self.producers.get(value)) is not None and node.op_type in PASSING and value not in seen:
            seen.add(value)
            value = _input(node, 0)
        return value

    def _constant(self, value: str) -> TensorProto | None:
        """Return the tensor that a value of bytes is, or is quantised from; None where it is computed."""
        node = self.producers.get(value)
        if value not in self.tensors and node is not None and node.op_type == "QuantizeLinear":
            value = node.input[0]
        return self.tensors.get(value)

    def _type(self, value: str) -> int:
        """Return the type of a value of bytes; undefined where it is unknown."""
        value = self._start(value)
        if value in self.tensors:
            return self.tensors[value].data_type
        node = self.producers.get(value)
        if node is None:
            return self.inputs.get(value, TensorProto.UNDEFINED)
        zero_point = self.tensors.get(_input(node, ZERO_POINTS.get(node.op_type, len(node.input))))
        if zero_point is not None:
            return zero_point.data_type
        quantises = node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        return (attribute(node, "output_dtype", 0) or UINT8) if quantises else TensorProto.UNDEFINED


def _input(node: NodeProto, index: int) -> str:
    """Return the name of a node's input; empty where it has none there."""
    return node.input[index] if index < len(node.input) else ""
