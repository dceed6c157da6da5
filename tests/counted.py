"""Multiply-adds counted a second time, from the arrays of a real run; nothing of the package's own counting is used.

ONNX Runtime gives every tensor of the main graph; where control flow holds products, onnx's reference evaluator runs
the file, and every operator that it calls is counted as it is called.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def attributes(node: NodeProto) -> dict[str, Any]:
    """By name, text decoded."""
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return {name: each.decode() if isinstance(each, bytes) else each for name, each in found.items()}


def size(shape: Shape | None) -> int:
    """How many elements."""
    assert shape is not None
    return int(np.prod(shape, dtype=np.int64))


def convolution(weights: int) -> Callable[[dict, Shapes, Shapes], int]:
    """Every output value sums one filter."""
    return lambda said, given, made: size(made[0]) * (size(given[weights]) // max(1, given[weights][0]))


def transposed(said: dict, given: Shapes, made: Shapes) -> int:
    """Every input value is spread by the filters of its channel."""
    return size(given[0]) * (size(given[1]) // given[1][0])


def deformed(said: dict, given: Shapes, made: Shapes) -> int:
    """A convolution, and four taps for every value that a filter sees."""
    (n, _, *sides), (_, _, *kernel) = made[0], given[1]
    return convolution(1)(said, given, made) + 4 * n * given[0][1] * size(tuple(sides)) * size(tuple(kernel))


def gemm(said: dict, given: Shapes, made: Shapes) -> int:
    """Rows by columns by depth."""
    return size(given[0]) * made[0][1] if made[0][0] else 0


def product(said: dict, given: Shapes, made: Shapes) -> int:
    """Every output value is a row times a column."""
    return size(made[0]) * given[0][-1]


def recurrent(kind: str, turned: bool = False) -> Callable[[dict, Shapes, Shapes], int]:
    """Each step multiplies input and state by the weights of every gate, in every direction; ``turned`` ones lie so."""

    def count(said: dict, given: Shapes, made: Shapes) -> int:
        a, b, features = given[0]
        directions, hidden = given[2][0], given[2][1 if turned else 2]
        return a * b * directions * GATES[kind] * hidden * (features + hidden)

    return count


def einsum(said: dict, given: Shapes, made: Shapes) -> int:
    """As many products as there are combinations of indices: what ones sum to."""
    left = said["equation"].replace(" ", "").split("->")[0].split(",")
    spare = "ZYXWVUTS"
    terms = []
    for term, shape in zip(left, given, strict=False):
        hidden = len(shape) - len(term.replace("...", ""))
        terms.append(term.replace("...", spare[:hidden][::-1]))
    combinations = np.einsum(",".join(terms) + "->", *(np.ones(shape) for shape in given[: len(terms)]))
    return int(combinations) * (len(terms) - 1)


def attention(said: dict, given: Shapes, made: Shapes) -> int:
    """Scores, then their sums of values."""
    query, key, value = given[:3]
    heads, others = said.get("q_num_heads"), said.get("kv_num_heads")
    if len(query) == 3:
        query = (query[0], heads, query[1], query[2] // heads)
        key, value = ((each[0], others, each[1], each[2] // others) for each in (key, value))
    length = key[2] + (given[4][2] if len(given) > 4 and given[4] else 0)
    scores = query[0] * query[1] * query[2] * length
    return scores * query[3] + scores * value[3]


def taps(said: dict, given: Shapes, made: Shapes) -> int:
    """Two by axis where it is linear, four where it is cubic."""
    by_axis = {"nearest": 0, "linear": 2, "bilinear": 2, "cubic": 4, "bicubic": 4}[said.get("mode", "linear")]
    return size(made[0]) * by_axis ** (len(made[0]) - 2)


def few_bits(said: dict, given: Shapes, made: Shapes) -> int:
    """The depth stands in an attribute: the weights are packed."""
    return size(made[0]) * said["K"]


def fused(said: dict, given: Shapes, made: Shapes) -> int:
    """A product of matrices either of which may be turned."""
    assert not said.get("transBatchA")
    return size(made[0]) * given[0][-2 if said.get("transA") else -1]


def linear(said: dict, given: Shapes, made: Shapes) -> int:
    """Each row times all coefficients."""
    return (given[0][0] if len(given[0]) > 1 else 1) * len(said["coefficients"])


FORMULAS: dict[str, Callable[[dict, Shapes, Shapes], int]] = {
    "Conv": convolution(1), "ConvInteger": convolution(1), "QLinearConv": convolution(3), "FusedConv": convolution(1),
    "ConvTranspose": transposed, "DeformConv": deformed, "Gemm": gemm, "QGemm": gemm, "FusedGemm": gemm,
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat"), product),
    "DynamicQuantizeMatMul": product,
    "FusedMatMul": fused, "MatMulNBits": few_bits, "Einsum": einsum, "Attention": attention, "GridSample": taps,
    "AffineGrid": lambda said, given, made: size(made[0]) * given[0][2],
    "BatchNormalization": lambda said, given, made: size(given[0]),
    **{kind: recurrent(kind) for kind in GATES},
    "LinearRegressor": linear, "LinearClassifier": linear,
    "DynamicQuantizeLSTM": recurrent("LSTM", turned=True),
}  # fmt: skip


def formula(node: NodeProto) -> Callable[[dict, Shapes, Shapes], int] | None:
    """How an operator is counted; None where it is not."""
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        return None
    return FORMULAS.get(node.op_type)


@dataclass(frozen=True)
class Count:
    """What was counted, and in what."""

    macs: int
    by: str


def nodes_of(graph: onnx.GraphProto) -> Iterator[tuple[NodeProto, bool]]:
    """Every node, and whether it lies in a body."""
    for node in graph.node:
        yield node, False
        for each in node.attribute:
            for body in [each.g, *each.graphs]:
                yield from ((inner, True) for inner, _ in nodes_of(body))


def counted(model: onnx.ModelProto, feeds: dict[str, Any]) -> Count:
    """Count a model without local functions, on these inputs."""
    if any(inside and formula(node) for node, inside in nodes_of(model.graph)):
        return Count(by_calls(model, feeds), "reference evaluator")
    return Count(by_tensors(model, feeds), "ONNX Runtime")


def by_tensors(model: onnx.ModelProto, feeds: dict[str, Any]) -> int:
    """From the shapes of all tensors that ONNX Runtime makes."""
    wanted = [node for node in model.graph.node if formula(node)]
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    shapes |= {name: np.shape(each) for name, each in feeds.items() if not isinstance(each, list)}
    names = {name for node in wanted for name in (*node.input, *node.output) if name} - set(shapes)
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    del open_model.graph.output[:]
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    if names:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(open_model.SerializeToString(), options)
        values = session.run(sorted(names), feeds)
        shapes |= {name: np.shape(value) for name, value in zip(sorted(names), values, strict=True)}
    return sum(
        formula(node)(attributes(node), [shapes.get(name) for name in node.input], [shapes.get(n) for n in node.output])
        for node in wanted
    )


def by_calls(model: onnx.ModelProto, feeds: dict[str, Any]) -> int:
    """From the arrays of every call of an operator in the reference evaluator, bodies included."""
    evaluator = ReferenceEvaluator(model)  # which loads the kinds of operators
    with calls() as found:
        evaluator.run(None, feeds)
    return sum(formula(node)(attributes(node), given, made) for node, given, made in found)


def kinds(kind: type[OpRun]) -> Iterator[type[OpRun]]:
    """Every kind of operator whose way to run is its own."""
    if "run" in vars(kind):
        yield kind
    for each in kind.__subclasses__():
        yield from kinds(each)


@contextmanager
def calls() -> Iterator[list[tuple[NodeProto, Shapes, Shapes]]]:
    """Note every call of an operator that is counted; those inside such a call are its own affair."""
    found: list[tuple[NodeProto, Shapes, Shapes]] = []
    inside: list[NodeProto] = []

    def noting(plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: OpRun, *given: Any, **options: Any) -> Any:
            node = self.onnx_node
            if inside or formula(node) is None:
                return plain(self, *given, **options)
            inside.append(node)
            try:
                made = plain(self, *given, **options)
            finally:
                inside.pop()
            found.append((node, [None if x is None else np.shape(x) for x in given], [np.shape(x) for x in made]))
            return made

        return run

    with ExitStack() as patched:
        for kind in set(kinds(OpRun)):
            patched.enter_context(mock.patch.object(kind, "run", noting(kind.run)))
        yield found
