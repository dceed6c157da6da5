"""Multiply-adds of a node, from its operator's definition and the shapes of its tensors.

Counted are Conv, ConvTranspose, DeformConv (with four taps for each value that it samples), Gemm, MatMul, Einsum, their
quantised, fused and few-bit kin, the products of LSTM, GRU, RNN and attention, linear models; GridSample counts its
taps for each output value (4 for bilinear in 2-D, 16 for cubic, 0 for nearest), AffineGrid one row of theta for each
coordinate, BatchNormalization one for each value. Bodies of If, Loop and Scan count as often as they ran. All other
operators of ONNX itself count as none; of other domains only those in ``NONE``. The cost of any other operator is
unknown: it is None, and a sum with it is a lower bound.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from onnx import AttributeProto, NodeProto

from stn_export.onnx_graph.model import CUBIC, LINEAR, UNKNOWN, Shape, TensorInfo, attribute, walk

Infos = Mapping[str, TensorInfo]
Runs = Mapping[str, Sequence[Infos]]  # by node, its tensors in every run
MICROSOFT, ML = "com.microsoft", "ai.onnx.ml"


class _UnknownError(Exception):
    """A shape that a cost depends on is unknown."""


@dataclass(frozen=True)
class Seen:
    """A node and the shapes of its tensors."""

    node: NodeProto
    infos: Infos

    def has(self, index: int) -> bool:
        """Return whether the node has this input."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def input(self, index: int) -> Shape:
        """Return the shape of an input.

        Raises:
            _UnknownError: where it is unknown.
        """
        return self._shape(self.node.input[index] if index < len(self.node.input) else "")

    def output(self, index: int = 0) -> Shape:
        """Return the shape of an output.

        Raises:
            _UnknownError: where it is unknown.
        """
        return self._shape(self.node.output[index] if index < len(self.node.output) else "")

    def get(self, name: str, default: int = 0) -> int:
        """Return an integer attribute."""
        return int(attribute(self.node, name, default))

    def _shape(self, name: str) -> Shape:
        shape = self.infos.get(name, UNKNOWN).shape if name else None
        if shape is None:
            raise _UnknownError(name)
        return shape


Cost = Callable[[Seen], int]


def _conv(weights: int = 1) -> Cost:
    return lambda seen: prod(seen.output()) * prod(seen.input(weights)[1:])


def _conv_transpose(seen: Seen) -> int:
    return prod(seen.input(0)) * prod(seen.input(1)[1:])


def _deform_conv(seen: Seen) -> int:
    batch, channels = seen.input(0)[:2]
    taps = 4 * batch * channels * prod(seen.output()[2:]) * prod(seen.input(1)[2:])
    return prod(seen.output()) * prod(seen.input(1)[1:]) + taps


def _gemm(seen: Seen) -> int:
    return prod(seen.output()) * seen.input(0)[0 if seen.get("transA") else 1]


def _matmul(seen: Seen) -> int:
    return prod(seen.output()) * seen.input(0)[-1]


def _fused_matmul(seen: Seen) -> int:
    shape = seen.input(0)
    if seen.get("transBatchA"):  # then the batch lies behind the rows: (rows, batch, depth)
        shape = (*shape[1:-1], shape[0], shape[-1])
    return prod(seen.output()) * shape[-2 if seen.get("transA") else -1]


def _few_bits(seen: Seen) -> int:
    return prod(seen.output()) * seen.get("K")


def _recurrent(seen: Seen) -> int:
    steps = prod(seen.input(0)[:2])  # batch by time, in either order
    return steps * (prod(seen.input(1)) + prod(seen.input(2)))


def _einsum(seen: Seen) -> int:
    equation = attribute(seen.node, "equation", "").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = seen.input(index)
        hidden = [f".{axis}" for axis in range(len(shape) - len(term.replace("...", "")))]
        before, dots, after = term.partition("...")
        labels = [*before, *(hidden[::-1] if dots else ()), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1)) if size else 0
    return prod(sizes.values()) * (len(terms) - 1)


def _attention(seen: Seen) -> int:
    query, value = seen.input(0), seen.input(2)
    heads = query[1] if len(query) == 4 else seen.get("q_num_heads")
    rows, depth = (query[-2], query[-1]) if len(query) == 4 else (query[1], query[2] // heads)
    wide = value[-1] if len(value) == 4 else value[2] // seen.get("kv_num_heads")
    past = seen.input(4)[2] if seen.has(4) else 0
    return query[0] * heads * rows * (seen.input(1)[-2] + past) * (depth + wide)


def _packed_attention(seen: Seen) -> int:
    """Count com.microsoft's Attention: the projection of queries, keys and values, then the two products."""
    if seen.has(4):
        raise _UnknownError("past")
    batch, rows, width = seen.input(0)
    three = seen.input(1)[1]
    sizes = attribute(seen.node, "qkv_hidden_sizes", None) or [three // 3] * 3
    return batch * rows * width * three + batch * rows * rows * (sizes[0] + sizes[2])


def _multi_head(seen: Seen) -> int:
    if not (seen.has(1) and seen.has(2)) or seen.has(6) or len(seen.input(1)) != 3:
        raise _UnknownError("packed or past keys")
    batch, rows, width = seen.input(0)
    return batch * rows * seen.input(1)[1] * (width + seen.input(2)[2])


def _taps(seen: Seen) -> int:
    mode, rank = attribute(seen.node, "mode", "linear"), len(seen.output()) - 2
    return prod(seen.output()) * (2**rank if mode in LINEAR else 4**rank if mode in CUBIC else 0)


def _linear_model(seen: Seen) -> int:
    rows = seen.input(0)[0] if len(seen.input(0)) > 1 else 1
    return rows * len(attribute(seen.node, "coefficients", []))


def _unknown(seen: Seen) -> int:
    raise _UnknownError(seen.node.op_type)


COSTS: dict[tuple[str, str], Cost] = {
    ("", "Conv"): _conv(),
    ("", "ConvInteger"): _conv(),
    ("", "QLinearConv"): _conv(3),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "DeformConv"): _deform_conv,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "QLinearMatMul"): _matmul,
    ("", "Einsum"): _einsum,
    ("", "Attention"): _attention,
    **{("", name): _recurrent for name in ("LSTM", "GRU", "RNN")},
    ("", "GridSample"): _taps,
    ("", "AffineGrid"): lambda seen: prod(seen.output()) * seen.input(0)[-1],
    ("", "BatchNormalization"): lambda seen: prod(seen.output()),
    **{("", name): _unknown for name in ("DFT", "STFT", "Det", "LinearAttention", "CausalConvWithState")},
    (ML, "LinearClassifier"): _linear_model,
    (ML, "LinearRegressor"): _linear_model,
    **{(ML, name): _unknown for name in ("SVMClassifier", "SVMRegressor")},
    (MICROSOFT, "FusedConv"): _conv(),
    (MICROSOFT, "FusedGemm"): _gemm,
    (MICROSOFT, "FusedMatMul"): _fused_matmul,
    (MICROSOFT, "TransposeMatMul"): _fused_matmul,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "MatMulInteger16"): _matmul,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul,
    (MICROSOFT, "DynamicQuantizeMatMul"): _matmul,
    (MICROSOFT, "MatMulNBits"): _few_bits,
    (MICROSOFT, "MatMulBnb4"): _few_bits,
    (MICROSOFT, "MatMulFpQ4"): _unknown,
    (MICROSOFT, "DynamicQuantizeLSTM"): _recurrent,
    (MICROSOFT, "Attention"): _packed_attention,
    (MICROSOFT, "QAttention"): _packed_attention,
    (MICROSOFT, "MultiHeadAttention"): _multi_head,
    (MICROSOFT, "GridSample"): _taps,
}
NONE = {
    ML: ("ArrayFeatureExtractor", "Binarizer", "CastMap", "CategoryMapper", "DictVectorizer", "FeatureVectorizer",
         "Imputer", "LabelEncoder", "Normalizer", "OneHotEncoder", "Scaler", "TreeEnsemble", "TreeEnsembleClassifier",
         "TreeEnsembleRegressor", "ZipMap"),
    MICROSOFT: ("BiasAdd", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "BifurcationDetector", "CropAndResize",
                "DequantizeLinear", "EmbedLayerNormalization", "ExpandDims", "FastGelu", "GatherBlockQuantized",
                "GatherND", "Gelu", "GroupNorm", "LayerNormalization", "MaxpoolWithMask", "Pad",
                "QEmbedLayerNormalization",
                "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
                "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear",
                "QuickGelu", "ReduceSumInteger", "RelativePositionBias", "RotaryEmbedding", "SampleOp", "SkipGroupNorm",
                "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
                "NGramRepeatBlock", "Tokenizer", "Trilu", "Unique", "UnfoldTensor"),
}  # fmt: skip


def macs(node: NodeProto, infos: Infos, runs: Runs | None = None) -> int | None:
    """Return the multiply-adds of a node; None where they are unknown.

    Args:
        node: of a ``model.flat`` graph.
        infos: of the tensors that it reads and writes.
        runs: for every node that ran, also inside control flow, the shapes of its tensors each time.
    """
    bodies = [
        inner for attribute in node.attribute if attribute.type == AttributeProto.GRAPH for inner in walk(attribute.g)
    ]
    if bodies:
        costs = [_once(inner, infos) if _free(inner) else None for inner in bodies]
        return 0 if not any(cost != 0 for cost in costs) else None if not runs else _in_runs(bodies, infos, runs)
    cost = _once(node, infos)
    return _in_runs([node], infos, runs) if cost is None and runs and node.name in runs else cost


def _free(node: NodeProto) -> bool:
    """Return whether an operator costs nothing, whatever its shapes."""
    return (node.domain, node.op_type) not in COSTS


def _in_runs(nodes: Iterable[NodeProto], infos: Infos, runs: Runs) -> int | None:
    """Return the sum over every run of the nodes; None where one is unknown."""
    costs = [_once(node, {**infos, **seen}) for node in nodes for seen in runs.get(node.name, ())]
    return None if None in costs else sum(cost or 0 for cost in costs)


def _once(node: NodeProto, infos: Infos) -> int | None:
    cost = COSTS.get((node.domain, node.op_type))
    if cost is None:
        return 0 if not node.domain or node.op_type in NONE.get(node.domain, ()) else None
    try:
        return max(0, cost(Seen(node, infos)))
    except (_UnknownError, IndexError, ValueError, TypeError, ZeroDivisionError):  # a malformed node
        return None
