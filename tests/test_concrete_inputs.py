"""Sizes that a file leaves open are found by running it, given ones are kept, and what does not run is said to."""

from argparse import ArgumentTypeError
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from stn_export.cli.options import shape as shape_of
from stn_export.errors import UserError
from stn_export.onnx_graph.inputs import Asked, Inputs, concrete_inputs, session_run
from stn_export.onnx_graph.model import flat
from stn_export.onnx_graph.placement import open_session
from stn_export.run.store import load_arrays

ASKED = Asked()


def graph(signature: str, body: str, opset: int = 18, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A model with weights of these shapes, every node named."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {signature} {{ {body} }}')
    for seed, (name, shape) in enumerate(weights.items()):
        values = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return flat(model)


def found(model: onnx.ModelProto, asked: Asked = ASKED) -> Inputs:
    return concrete_inputs(model, session_run(open_session(model, "cpu")), asked)


SPEECH = graph("(float[batch, samples] x) => (float[batch, a, b] y)",
               "c = Constant <value_ints = [1]> () u = Unsqueeze (x, c) y = Conv <strides = [160]> (u, w)",
               w=(4, 1, 512))  # fmt: skip
NHWC = graph("(float[n, height, width, 3] x) => (float[n, a, b, c] y)",
             "t = Transpose <perm = [0, 3, 1, 2]> (x) y = Conv (t, w)", w=(4, 3, 5, 5))  # fmt: skip
MEL = graph("(float[n, bands, frames] x) => (float[n, a, b] y)", "y = Conv (x, w)", w=(4, 77, 3))
TOKENS = graph("(int64[batch, sequence] x, int64[batch, sequence] mask) => (float[a, b, c] y)",
               "e = Gather (w, x) m = Cast <to = 1> (mask) axis = Constant <value_ints = [2]> ()"
               " u = Unsqueeze (m, axis) y = Mul (e, u)", w=(30, 8))  # fmt: skip
MULTIPLE = graph("(float[n, length] x) => (float[a, b] y)",
                 "s = Constant <value_ints = [-1, 37]> () r = Reshape (x, s) y = MatMul (r, w)", w=(37, 2))  # fmt: skip
PAIRED = graph("(float[n, samples] x, float[2, m, 4] state) => (float[a, b] y, float[c, d] z)",
               "s = Constant <value_ints = [1, 512]> () r = Reshape (x, s) y = MatMul (r, w)"
               " t = Constant <value_ints = [2, 4]> () z = Reshape (state, t)", w=(512, 2))  # fmt: skip
LENGTHS = graph("(float[n, frames, 3] x, int64[n] x_lengths) => (float[a, b, c] y)",
                "s = Constant <value_ints = [0]> () one = Constant <value_ints = [1]> ()"
                " y = Slice (x, s, x_lengths, one)")  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name", "axis", "least"),
    [(SPEECH, "x", 1, 512), (NHWC, "x", 1, 5), (MEL, "x", 1, 77), (TOKENS, "mask", 1, 2), (MULTIPLE, "x", 1, 37),
     (LENGTHS, "x", 1, 2)],
)  # fmt: skip
def test_sizes_that_a_file_leaves_open_are_found(model: onnx.ModelProto, name: str, axis: int, least: int):
    inputs = found(model)
    assert not inputs.problem
    assert inputs.sizes[name][axis] >= least
    outputs = session_run(open_session(model, "cpu"))(inputs.draw())
    assert not isinstance(outputs, str)
    assert all(each.size for each in outputs.values())
    assert str(inputs.sizes[name][axis]) in str(inputs)


def test_what_was_found_and_what_was_declared_are_told_apart():
    assert found(MEL).origin == "found by running it"
    assert found(graph("(float[2, 3] x) => (float[2, 3] y)", "y = Relu (x)")).origin == "declared"


def test_given_shapes_are_kept_and_bind_equal_names():
    inputs = found(TOKENS, Asked({"x": (2, 5)}))
    assert inputs.sizes == {"x": (2, 5), "mask": (2, 5)}
    assert inputs.origin == "given"


def test_a_given_shape_that_does_not_run_is_not_replaced():
    inputs = found(SPEECH, Asked({"x": (1, 100)}))
    assert inputs.sizes == {"x": (1, 100)}
    assert inputs.problem


def test_given_arrays_are_fed(tmp_path: Path):
    array = np.arange(600, dtype=np.float32)[None]
    np.savez(tmp_path / "x.npz", x=array)
    inputs = found(SPEECH, Asked(arrays=load_arrays(tmp_path / "x.npz")))
    assert inputs.draw(seed=3)["x"] is inputs.given["x"]
    np.testing.assert_array_equal(inputs.given["x"], array)


@pytest.mark.parametrize(
    "asked",
    [Asked({"z": (1,)}), Asked({"x": (1,)}), Asked({"x": (2, 5), "mask": (2, 6)}),
     Asked(arrays={"x": np.zeros((2, 5), np.float32)})],
)  # fmt: skip
def test_what_contradicts_the_file_is_refused(asked: Asked):
    with pytest.raises(UserError):
        found(TOKENS, asked)


def test_a_file_that_never_runs_says_why():
    body = "s = Constant <value_ints = [0, 4]> () y = Reshape (x, s)"
    assert "Reshape" in found(graph("(float[N, 3] x) => (float[a, b] y)", body)).problem


def test_what_runs_and_gives_nothing_will_do():
    model = graph("(float[N, 3] x) => (float[a, b] y)", "s = Constant <value_ints = [0]> () y = Slice (x, s, s)")
    assert not found(model).problem


@pytest.mark.parametrize("kind", ["bfloat16", "float8e4m3fn", "float16", "string", "bool", "seq(float[N])"])
def test_every_type_is_fed(kind: str):
    signature = kind if kind.startswith("seq") else f"{kind}[N]"
    model = graph(f"({signature} x, float[N] z) => ({signature} y, float[N] w)", "y = Identity (x) w = Neg (z)", 21)
    inputs = found(model)
    assert not inputs.problem


def test_bits_of_bfloat16_arrive():
    model = graph("(bfloat16[3] x) => (float[3] y)", "y = Cast <to = 1> (x)", 21)
    array = np.array([1.5, -2, 0.25]).astype(ml_dtypes.bfloat16)
    [y] = session_run(open_session(model, "cpu"))({"x": array}).values()
    np.testing.assert_array_equal(y, [1.5, -2, 0.25])


def test_outputs_of_types_that_numpy_lacks_are_read():
    model = graph("(float[3] x) => (bfloat16[3] y)", "y = Cast <to = 16> (x)", 21)
    [y] = session_run(open_session(model, "cpu"))({"x": np.array([1.5, -2, 0.25], np.float32)}).values()
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), [1.5, -2, 0.25])


def test_a_length_beside_a_size_that_must_be_one_is_found():
    assert found(PAIRED).sizes == {"x": (1, 512), "state": (2, 1, 4)}


def test_a_map_cannot_be_drawn():
    model = graph("(float[N] x) => (float[N] y)", "y = Relu (x)")
    entry = model.graph.input[0].type
    entry.Clear()
    entry.map_type.key_type = TensorProto.INT64
    entry.map_type.value_type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    with pytest.raises(UserError, match="no tensor"):
        concrete_inputs(model, lambda feeds: {})


@pytest.mark.parametrize(("text", "shape"), [("a=1,16000", (1, 16000)), ("a=1x3", (1, 3)), ("a=", ())])
def test_shapes_are_read(text: str, shape: tuple[int, ...]):
    assert shape_of(text) == ("a", shape)


@pytest.mark.parametrize("text", ["1,2", "a=b", "a=-1", "=1"])
def test_other_texts_are_no_shapes(text: str):
    with pytest.raises(ArgumentTypeError, match="as NAME=1,16000"):
        shape_of(text)
