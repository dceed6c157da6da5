"""Multiply-adds equal a second count, made from the arrays of a real run, for every operator that is counted."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from stn_export.onnx_graph import costs
from stn_export.onnx_graph.deployment import placement_of
from stn_export.onnx_graph.inputs import Asked
from stn_export.onnx_graph.lint import Subject
from stn_export.onnx_graph.model import flat
from stn_export.onnx_graph.records import Audit
from tests.counted import counted

MICROSOFT = ', "com.microsoft": 1, "ai.onnx.ml": 3'


@dataclass(frozen=True)
class Case:
    """A small file: its text, weights by name (shape and type), and what it costs."""

    signature: str
    body: str
    macs: int
    weights: dict[str, tuple[tuple[int, ...], type]] = field(default_factory=dict)
    opset: int = 18

    @property
    def model(self) -> onnx.ModelProto:
        text = f'<ir_version: 10, opset_import: ["": {self.opset}{MICROSOFT}]> g {self.signature} {{ {self.body} }}'
        model = parser.parse_model(text)
        for seed, (name, (shape, dtype)) in enumerate(self.weights.items()):
            draw = np.random.default_rng(seed).uniform(0, 2, shape).astype(dtype)
            model.graph.initializer.append(numpy_helper.from_array(draw, name))
        return flat(model)


F, I8, U8 = np.float32, np.int8, np.uint8
SCALES = dict.fromkeys(("s", "t", "u"), ((), F)) | dict.fromkeys(("p", "q", "r"), ((), U8))
PICTURE = "(float[2, 4, 6, 7] x) => (float[a, b, c, d] y)"
WHILE = """
y = Loop (m, c, x) <body = b (int64 i, bool go, float[2, 4] state) => (bool on, float[2, 4] next) {
  on = Identity (go) next = MatMul (state, w) }>
"""
CHOICE = """
y = If (c) <then_branch = t () => (float[2, 4] h) { h = MatMul (x, w) },
            else_branch = e () => (float[2, 4] k) { l = MatMul (x, w) k = MatMul (l, w) }>
"""
SCAN = """
state, y = Scan <num_scan_inputs = 1, body = b (float[4] held, float[4] one) => (float[4] kept, float[4] row) {
  axes = Constant <value_ints = [0]> () wide = Unsqueeze (one, axes) product = MatMul (wide, w)
  flat = Squeeze (product, axes) kept = Add (held, flat) row = Identity (kept) }> (z, x)
"""
LONG = "m = Constant <value = int64 {5}> () c = Constant <value = bool {1}> ()"
CASES = {
    "Conv": Case(PICTURE, "y = Conv <group = 2, strides = [2, 1]> (x, w)", 2 * 6 * 2 * 5 * 2 * 9,
                 {"w": ((6, 2, 3, 3), F)}),
    "ConvTranspose": Case(PICTURE, "y = ConvTranspose <group = 2> (x, w)", 2 * 4 * 6 * 7 * 3 * 4,
                          {"w": ((4, 3, 2, 2), F)}),
    "ConvInteger": Case("(uint8[2, 4, 6, 7] x) => (int32[a, b, c, d] y)", "y = ConvInteger (x, w)",
                        2 * 5 * 4 * 5 * 4 * 9, {"w": ((5, 4, 3, 3), U8)}),
    "QLinearConv": Case("(uint8[2, 4, 6, 7] x) => (uint8[a, b, c, d] y)", "y = QLinearConv (x, s, p, w, t, q, u, r)",
                        2 * 5 * 4 * 5 * 4 * 9, {"w": ((5, 4, 3, 3), U8)} | SCALES),
    "DeformConv": Case("(float[1, 4, 5, 6] x) => (float[a, b, c, d] y)", "y = DeformConv (x, w, o)",
                       3 * 4 * 5 * 4 * 4 + 4 * 4 * 20 * 4, {"w": ((3, 4, 2, 2), F), "o": ((1, 8, 4, 5), F)}, 19),
    "Gemm": Case("(float[5, 3] x) => (float[a, b] y)", "y = Gemm <transA = 1> (x, w)", 3 * 5 * 7, {"w": ((5, 7), F)}),
    "MatMul": Case("(float[2, 3, 5, 4] x) => (float[a, b, c, d] y)", "y = MatMul (x, w)", 2 * 3 * 5 * 4 * 6,
                   {"w": ((3, 4, 6), F)}),
    "MatMulInteger": Case("(uint8[3, 5] x) => (int32[a, b] y)", "y = MatMulInteger (x, w)", 3 * 5 * 7,
                          {"w": ((5, 7), I8)}),
    "QLinearMatMul": Case("(uint8[3, 5] x) => (uint8[a, b] y)", "y = QLinearMatMul (x, s, p, w, t, q, u, r)",
                          3 * 5 * 7, {"w": ((5, 7), U8)} | SCALES),
    "Einsum": Case("(float[2, 3, 5] x) => (float[a, b, c] y)", 'y = Einsum <equation = "bij, ...jk -> b...ik"> (x, w)',
                   2 * 3 * 5 * 7, {"w": ((1, 5, 7), F)}),
    "LSTM": Case("(float[3, 2, 5] x) => (float[a, b, c, d] y)",
                 'y = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r)', 3 * 2 * 2 * 16 * 9,
                 {"w": ((2, 16, 5), F), "r": ((2, 16, 4), F)}),
    "GRU": Case("(float[3, 2, 5] x) => (float[a, b, c, d] y)", "y = GRU <hidden_size = 4> (x, w, r)", 3 * 2 * 12 * 9,
                {"w": ((1, 12, 5), F), "r": ((1, 12, 4), F)}),
    "Attention": Case("(float[2, 3, 8] x, float[2, 5, 8] k, float[2, 5, 12] v) => (float[a, b, c] y)",
                      "y = Attention <q_num_heads = 4, kv_num_heads = 4> (x, k, v)", 2 * 3 * 5 * (8 + 12), {}, 23),
    "GridSample": Case("(float[2, 3, 5, 6] x, float[2, 4, 7, 2] g) => (float[a, b, c, d] y)",
                       'y = GridSample <mode = "bicubic"> (x, g)', 2 * 3 * 4 * 7 * 16, {}, 16),
    "AffineGrid": Case("(float[2, 2, 3] x) => (float[a, b, c, d] y)",
                       "n = Constant <value_ints = [2, 1, 4, 5]> () y = AffineGrid (x, n)", 2 * 4 * 5 * 2 * 3, {}, 20),
    "BatchNormalization": Case(PICTURE, "y = BatchNormalization (x, w, w, w, w)", 2 * 4 * 6 * 7, {"w": ((4,), F)}),
    "LinearRegressor": Case("(float[5, 2] x) => (float[a, b] y)",
                            "y = ai.onnx.ml.LinearRegressor <coefficients = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "
                            "targets = 3> (x)", 5 * 2 * 3),
    "FusedConv": Case(PICTURE, 'y = com.microsoft.FusedConv <activation = "Relu", kernel_shape = [3, 3]> (x, w)',
                      2 * 5 * 4 * 5 * 4 * 9, {"w": ((5, 4, 3, 3), F)}),
    "FusedMatMul": Case("(float[5, 3] x) => (float[a, b] y)", "y = com.microsoft.FusedMatMul <transA = 1> (x, w)",
                        3 * 5 * 7, {"w": ((5, 7), F)}),
    "DynamicQuantizeMatMul": Case("(float[3, 5] x) => (float[a, b] y)",
                                  "y = com.microsoft.DynamicQuantizeMatMul (x, w, s, z)", 3 * 5 * 7,
                                  {"w": ((5, 7), U8), "s": ((), F), "z": ((), U8)}),
    "MatMulNBits": Case("(float[3, 64] x) => (float[a, b] y)",
                        "y = com.microsoft.MatMulNBits <K = 64, N = 7, bits = 4, block_size = 32> (x, w, s)",
                        3 * 64 * 7, {"w": ((7, 2, 16), U8), "s": ((14,), F)}),
    "behind an operator without shapes": Case(
        "(float[3, 4] x) => (float[a, b] y)", "g = com.microsoft.Gelu (x) y = MatMul (g, w)", 3 * 4 * 6,
        {"w": ((4, 6), F)}),
    "behind a size that hangs on data": Case(
        "(float[3, 4] x) => (float[a, b] y)",
        "n = NonZero (x) t = Transpose (n) f = Cast <to = 1> (t) y = MatMul (f, w)",
        12 * 2 * 6, {"w": ((2, 6), F)}),
    "Loop": Case("(float[2, 4] x) => (float[a, b] y)", LONG + WHILE, 5 * 2 * 4 * 4, {"w": ((4, 4), F)}),
    "If, true": Case("(float[2, 4] x) => (float[a, b] y)", "c = Constant <value = bool {1}> ()" + CHOICE, 32,
                     {"w": ((4, 4), F)}),
    "If, false": Case("(float[2, 4] x) => (float[a, b] y)", "c = Constant <value = bool {0}> ()" + CHOICE, 64,
                      {"w": ((4, 4), F)}),
    "Loop, by what a body reads from outside": Case(
        "(float[2, 4] x) => (float[a, b] y)", LONG + "w = Neg (v)" + WHILE, 5 * 2 * 4 * 4, {"v": ((4, 4), F)}),
    "Scan": Case("(float[4] z, float[3, 4] x) => (float[4] state, float[a, b] y)", SCAN, 3 * 4 * 4, {"w": ((4, 4), F)}),
    "a function": Case("(float[3, 4] x) => (float[a, b] y)", "y = MatMul (x, w)", 72, {"w": ((4, 6), F)}),
}  # fmt: skip


def audited(model: onnx.ModelProto) -> tuple[Audit, Subject]:
    subject = Subject(model, asked=Asked())
    return placement_of(subject.model, "cpu", subject.infos, subject.trial.runs), subject


@pytest.mark.parametrize("name", CASES)
def test_a_count_equals_its_definition_and_a_second_count(name: str):
    case = CASES[name]
    result, subject = audited(case.model)
    assert subject.trial.outputs.keys() == {each.name for each in case.model.graph.output}, subject.trial.outputs
    assert (result.macs, result.uncounted) == (case.macs, ())
    again = counted(case.model, subject.trial.inputs.draw())
    assert again.macs == case.macs
    assert again.by == ("reference evaluator" if name.split(",")[0] in ("Loop", "If", "Scan") else "ONNX Runtime")


def test_a_function_is_looked_into():
    text = """<ir_version: 10, opset_import: ["": 18, "own": 1]> g (float[3, 4] x, float[4, 6] w) => (float[3, 6] y)
    { y = own.product (x, w) }
    <domain: "own", opset_import: ["": 18]> product (a, b) => (c) { c = MatMul (a, b) }"""
    result, _ = audited(parser.parse_model(text))
    assert (result.macs, result.uncounted) == (72, ())


def test_every_operator_that_is_counted_has_a_case():
    names = {name for _, name in costs.COSTS if costs.COSTS[(_, name)] is not costs._unknown}
    tried = {node.op_type for case in CASES.values() for node in case.model.graph.node}
    untried = {
        "RNN", "LinearClassifier", "FusedGemm", "TransposeMatMul", "QGemm", "MatMulInteger16", "MatMulIntegerToFloat",
        "MatMulBnb4", "DynamicQuantizeLSTM", "QAttention", "MultiHeadAttention",
    }  # fmt: skip
    assert names - tried == untried


@pytest.mark.parametrize("operator", ["Mystery", "SparseAttention"])
def test_what_is_not_known_is_a_lower_bound(operator: str):
    domain = "com.example" if operator == "Mystery" else "com.microsoft"
    text = f"""<ir_version: 10, opset_import: ["": 18, "{domain}": 1]>
    g (float[3, 4] x, float[4, 6] w) => (float[3, 6] y)
    {{ m = {domain}.{operator} (x) h = MatMul (x, w) y = Identity (h) }}"""
    result, _ = audited(parser.parse_model(text))
    assert (result.macs, len(result.uncounted)) == (72, 1)


def test_a_shape_that_is_less_than_nothing_is_none():
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="n")
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, -3])
    model = helper.make_model(helper.make_graph([node], "g", [], [value]))
    from stn_export.onnx_graph.model import infer

    assert costs.macs(node, infer(model)) is None
