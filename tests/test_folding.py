"""The last layer of a regressor and the affine grid as one layer: by arithmetic, and in graphs of a few nodes."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_export.export.lowerings import FOLDED, fold_grids, fold_linear

RANDOM = np.random.default_rng(0)
WEIGHT, BIAS, BASE = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((5, 6), (6,), (3, 4)))


def test_the_folded_layer_is_the_product_of_both():
    weight, bias = fold_linear(BASE, WEIGHT, BIAS)
    hidden = RANDOM.normal(size=(7, 5))
    theta = (hidden @ WEIGHT + BIAS).reshape(7, 2, 3)
    grid = np.einsum("nij,jp->npi", theta, BASE)  # x before y, pixel by pixel
    assert (weight.shape, bias.shape, weight.dtype, bias.dtype) == ((5, 8), (8,), np.float32, np.float32)
    np.testing.assert_allclose((hidden @ weight + bias).reshape(7, 4, 2), grid, rtol=1e-5, atol=1e-6)


def test_the_product_is_rounded_once():
    fine = np.full((1, 6), 1 + 2.0**-20, np.float32)
    weight, bias = fold_linear(np.full((3, 1), 1 + 2.0**-20, np.float32), fine, fine[0])
    exact = 3 * (1 + 2.0**-20) ** 2
    assert weight.tolist() == [[np.float32(exact)] * 2]
    assert bias.tolist() == [np.float32(exact)] * 2


@pytest.mark.parametrize("lacking", [(None, BIAS), (WEIGHT, None), (WEIGHT[:, :5], BIAS)])
def test_what_is_no_regressor_is_not_folded(lacking: tuple):
    assert fold_linear(BASE, *lacking) is None


GEMM = ("Gemm", ["hidden", "W", "b"], ["flat"], "gemm", {"transB": 1})
CHAIN = (
    GEMM,
    ("Reshape", ["flat", "theta_shape"], ["theta"], "shape_theta", {}),
    ("MatMul", ["theta", "base"], ["rows"], "product", {}),
    ("Transpose", ["rows"], ["columns"], "turn", {"perm": [0, 2, 1]}),
    ("Reshape", ["columns", "grid_shape"], ["grid"], "shape_grid", {}),
)


def model(
    chain: tuple = CHAIN, outputs: tuple[str, ...] = ("grid",), **constants: np.ndarray | None
) -> onnx.ModelProto:
    """A regressor of a 2 by 2 grid; a constant that is None is an input instead."""
    values = {"W": WEIGHT.T.copy(), "b": BIAS, "base": BASE, "theta_shape": np.array([-1, 2, 3])}
    values |= {"grid_shape": np.array([-1, 2, 2, 2])} | constants
    shapes = {
        "grid": ["N", 2, 2, 2],
        "theta": ["N", 2, 3],
        "flat": ["N", 6],
        "columns": ["N", 4, 2],
        "rows": ["N", 2, 4],
    }
    given = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["N", 5])]
    given += [helper.make_tensor_value_info("b", TensorProto.FLOAT, [6])] * (values["b"] is None)
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    nodes = [helper.make_node(op, reads, makes, name, **more) for op, reads, makes, name, more in chain]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items() if value is not None]
    seen = [info[name] for name in shapes if name not in outputs]
    graph = helper.make_graph(nodes, "g", given, [info[name] for name in outputs], constants, value_info=seen)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def answers(of: onnx.ModelProto, hidden: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(of.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"hidden": hidden})


def folded(of: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    ir = onnx_ir.from_proto(of)
    said = fold_grids(ir)
    return onnx_ir.to_proto(ir), said


PLAIN = ("Gemm", ["hidden", "W", "b"], ["flat"], "gemm", {})


@pytest.mark.parametrize(("gemm", "weight"), [(GEMM, WEIGHT.T.copy()), (PLAIN, WEIGHT)])
def test_a_grid_that_is_folded_is_the_same_grid(gemm: tuple, weight: np.ndarray):
    before = model((gemm, *CHAIN[1:]), W=weight)
    after, said = folded(before)
    assert said == {FOLDED: "1 of 1"}
    assert [node.op_type for node in after.graph.node] == ["Gemm", "Reshape"]
    assert [node.name for node in after.graph.node] == ["grid.folded", "shape_grid"]
    assert after.graph.node[0].output == ["grid.flat"]
    assert {each.name for each in after.graph.initializer} >= {"grid.weight", "grid.bias"}
    hidden = RANDOM.normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(answers(after, hidden), answers(before, hidden), rtol=1e-5, atol=1e-6)


SCALED = ("Gemm", ["hidden", "W", "b"], ["flat"], "gemm", {"transB": 1, "alpha": 2.0})
BETA = ("Gemm", ["hidden", "W", "b"], ["flat"], "gemm", {"transB": 1, "beta": 0.5})
NO_BIAS = ("Gemm", ["hidden", "W"], ["flat"], "gemm", {"transB": 1})
TURNED = ("Gemm", ["hidden", "W", "b"], ["flat"], "gemm", {"transA": 1, "transB": 1})
LEFT_OUT = ("Gemm", ["hidden", "W", ""], ["flat"], "gemm", {"transB": 1})
NO_LAYER = ("Relu", ["hidden"], ["flat"], "gemm", {})
READ = ("Identity", ["rows"], ["turned"], "keep", {})
OTHER = ("Identity", ["columns"], ["turned"], "keep", {})
KEEP = {
    "scaled": ((SCALED, *CHAIN[1:]), {}),
    "its bias scaled": ((BETA, *CHAIN[1:]), {}),
    "without a bias": ((NO_BIAS, *CHAIN[1:]), {}),
    "its input turned": ((TURNED, *CHAIN[1:]), {}),
    "its bias left out": ((LEFT_OUT, *CHAIN[1:]), {}),
    "no layer at all": ((NO_LAYER, *CHAIN[1:]), {}),
    "theta is given": (CHAIN[2:], {}),
    "the grid's rows are read twice": ((*CHAIN[:4], READ, CHAIN[4]), {}),
    "rows are not turned": ((*CHAIN[:3], ("Relu", ["rows"], ["columns"], "turn", {}), CHAIN[4]), {}),
    "theta is given out": (CHAIN, {"outputs": ("grid", "theta")}),
    "the layer's output is given out": (CHAIN, {"outputs": ("grid", "flat")}),
    "the grid's columns are read twice": ((*CHAIN[:4], OTHER, CHAIN[4]), {}),
    "a bias that is given": (CHAIN, {"b": None}),
}


@pytest.mark.parametrize("why", KEEP)
def test_what_cannot_be_folded_stays_as_it_was(why: str):
    chain, more = KEEP[why]
    before = model(chain, **more)
    if "read twice" in why:
        before.graph.output.append(helper.make_tensor_value_info("turned", TensorProto.FLOAT, ["N", 4, 2]))
    after, said = folded(before)
    assert said == {FOLDED: "0 of 1"}
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]


@pytest.mark.parametrize(
    "base", [RANDOM.normal(size=(3,)).astype(np.float32), RANDOM.normal(size=(2, 4)).astype(np.float32)]
)
def test_other_products_are_no_grids(base: np.ndarray):
    assert folded(model(base=base))[1] == {FOLDED: "0 of 0"}
    other = (("Relu", ["theta"], ["rows"], "product", {}),)
    assert folded(model((*CHAIN[:2], *other, *CHAIN[3:])))[1] == {FOLDED: "0 of 0"}


def test_a_theta_of_another_shape_or_of_none_is_no_grid():
    for shape in (["N", 3, 3], ["N", 2, 2]):
        odd = model()
        info = next(each for each in odd.graph.value_info if each.name == "theta")
        info.CopyFrom(helper.make_tensor_value_info("theta", TensorProto.FLOAT, shape))
        assert folded(odd)[1] == {FOLDED: "0 of 0"}
    unknown = model()
    del unknown.graph.value_info[:]
    assert folded(unknown)[1] == {FOLDED: "0 of 0"}
