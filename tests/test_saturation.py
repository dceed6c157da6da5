"""Int8 files give the same numbers on x86 without VNNI, which is emulated: no such processor is needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnxruntime import quantization

from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export import precision
from stn_export.export.precision import Calibration, Cost, by_sensitivity, outputs, quantisable, to_int8
from stn_export.export.rows import Source
from stn_export.export.writing import write
from stn_export.onnx_graph.lint import lint
from stn_export.onnx_graph.saturation import (
    BYTE,
    HIGHEST,
    LOWEST,
    extreme_pairs,
    saturates,
    saturating_layers,
    saturation_of,
)
from stn_export.results.tolerances import TOLERANCES
from stn_export.run.manifest import NetworkDirectory
from stn_export.runners import RUNNERS
from stn_export.verify.checks import check_artifact
from stn_export.verify.oracle import reference_of
from tests.saturating import Emulated, exact, vpmaddubsw

SEED = 3
[ONNX_RUNTIME] = [spec for spec in RUNNERS if spec.name == "onnxruntime-cpu"]


def network(seed: int = SEED, bias: float = 0.0) -> onnx.ModelProto:
    """Two convolutions, a hidden layer and one of ten classes; ``bias`` shifts the weights, so that pairs add up."""
    random = np.random.default_rng(seed)
    body = """
        c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (images, w0, b0)
        p0 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c0)
        r0 = Relu (p0)
        c1 = Conv <kernel_shape = [3, 3]> (r0, w1)
        r1 = Relu (c1)
        f = Flatten (r1)
        g = Gemm <transB = 1> (f, w2, b2)
        r2 = Relu (g)
        m = MatMul (r2, w3)
        r3 = Relu (m)
        scores = Gemm (r3, w4)
    """
    text = f'<ir_version: 8, opset_import: ["": 18]> g (float[N,3,16,16] images) => (float[N,10] scores) {{ {body} }}'
    model = parser.parse_model(text)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    shapes = {
        "w0": (8, 3, 3, 3),
        "b0": (8,),
        "w1": (7, 8, 3, 3),
        "w2": (33, 28),
        "b2": (33,),
        "w3": (33, 21),
        "w4": (21, 10),
    }
    for name, shape in shapes.items():
        spread = np.sqrt(2 / np.prod(shape[1:])) if name[0] == "w" else 0.1
        values = random.normal(bias * spread, spread, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def calibration(count: int = 64, batches: int = 2) -> Calibration:
    random = np.random.default_rng(SEED + 1)
    images = [random.uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32) for _ in range(batches)]
    found = tuple({"images": each} for each in images)
    return Calibration(found, "scores", random.integers(0, 10, count * batches))


def full_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporter write weights of 8 bits, as it did, and not look at them."""
    real = quantization.quantize_static
    monkeypatch.setattr(
        precision.quantization, "quantize_static", lambda *args, **given: real(*args, **given | {"reduce_range": False})
    )


def unchecked(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    with monkeypatch.context() as patch:
        full_range(patch)
        patch.setattr(precision, "saturating_layers", lambda model: [])
        return precision.quantise(network(bias=1.0), calibration().batches)


@pytest.fixture(scope="module")
def written() -> onnx.ModelProto:
    return precision.quantise(network(bias=1.0), calibration().batches)


def extreme_rows(rows: np.ndarray) -> np.ndarray:
    """Activations that drive each output as high, and as low, as they can, and all of them at their ends."""
    ends = [np.full((1, rows.shape[1]), value) for value in (0, BYTE)]
    return np.concatenate([BYTE * (rows > 0), BYTE * (rows < 0), *ends]).astype(np.uint8)


def deviations(model: onnx.ModelProto, channels_first: bool) -> dict[str, int]:
    """By layer, how far the saturating sums are off at most, over random and extreme activations."""
    emulated, random = Emulated(model, exact, channels_first), np.random.default_rng(0)
    found = {}
    for node in emulated.layers():
        rows = emulated.rows(node)
        activations = np.concatenate([random.integers(0, 256, (50, rows.shape[1]), np.uint8), extreme_rows(rows)])
        found[node.name] = int(np.abs(vpmaddubsw(activations, rows) - exact(activations, rows)).max())
    return found


def test_the_instruction_saturates_a_pair_and_adds_pairs_exactly():
    bytes_ = np.array([[255, 255, 255, 255, 9]], np.uint8)
    weights = np.array([[127, 127, -128, -128, 5], [64, 64, -64, -64, 5], [127, 1, 1, 127, -1]], np.int8)
    assert vpmaddubsw(bytes_, weights).tolist() == [[32767 - 32768 + 45, 45, 2 * 32640 - 9]]
    assert exact(bytes_, weights).tolist() == [[255 * 2 * -1 + 45, 45, 2 * 32640 - 9]]


@pytest.mark.parametrize("channels_first", [False, True])
def test_a_written_file_multiplies_the_same_on_every_processor(written: onnx.ModelProto, channels_first: bool):
    found = deviations(written, channels_first)
    assert len(found) == 4  # all but the last layer
    assert set(found.values()) == {0}
    images = calibration().batches[0]
    for_all, without_vnni = (Emulated(written, each, channels_first).run(images) for each in (exact, vpmaddubsw))
    np.testing.assert_array_equal(for_all["scores"], without_vnni["scores"])


@pytest.mark.parametrize("channels_first", [False, True])
def test_todays_file_does_not(monkeypatch: pytest.MonkeyPatch, channels_first: bool):
    old = unchecked(monkeypatch)
    assert min(deviations(old, channels_first).values()) > 1000
    images = calibration().batches[0]
    for_all, without_vnni = (Emulated(old, each, channels_first).run(images) for each in (exact, vpmaddubsw))
    assert np.abs(for_all["scores"] - without_vnni["scores"]).max() > 0.1


def test_the_emulation_computes_what_onnxruntime_does(written: onnx.ModelProto):
    """Also on processors without VNNI, as this file's products do not saturate."""
    images = calibration().batches[0]
    actual, emulated = outputs(written, [images])["scores"], Emulated(written, exact).run(images)["scores"]
    np.testing.assert_allclose(emulated, actual, atol=0.02 * np.abs(actual).max())  # a rounding moves a byte


def test_the_weights_of_a_written_file_are_within_seven_bits(written: onnx.ModelProto):
    held = {x.name: numpy_helper.to_array(x) for x in written.graph.initializer if x.data_type == TensorProto.INT8}
    weights = [value for name, value in held.items() if name.endswith("_quantized")]
    assert len(weights) == 4
    assert all(np.abs(value.astype(int)).max() == 64 for value in weights)  # whole of the range, and no more
    assert not any(value.any() for name, value in held.items() if name.endswith("zero_point"))
    assert saturating_layers(written) == [] == [each for each in lint(written) if each.rule == "STN015"]


def test_what_only_relus_read_is_quantised_from_zero(written: onnx.ModelProto):
    held = {x.name: numpy_helper.to_array(x) for x in written.graph.initializer}
    assert [int(held[f"{name}_zero_point"]) for name in ("c0", "c1", "g", "m")] == [0] * 4
    assert int(held["images_zero_point"]) == 128


def test_an_exporter_that_writes_all_eight_bits_is_refused_its_file(monkeypatch: pytest.MonkeyPatch):
    full_range(monkeypatch)
    said = r"saturates on x86 without VNNI: Conv_0, Conv_3, Gemm_6 and 1 more \(int8 weights up to 127: .*not written"
    with pytest.raises(UserError, match=said) as error:
        to_int8(network(bias=1.0), calibration())
    assert "reduce_range=True" in error.value.hint


def test_lint_names_the_layers_of_a_full_range_file(monkeypatch: pytest.MonkeyPatch):
    found = [each for each in lint(unchecked(monkeypatch)) if each.rule == "STN015"]
    assert [each.where for each in found] == ["Conv_0", "Conv_3", "Gemm_6", "MatMul_8"]
    assert "16 bits end at 32,767" in found[0].detail
    assert "session.x64quantprecision=1" in found[0].remedy


def test_a_pair_is_any_two_weights_of_one_output():
    assert extreme_pairs(np.array([[64, 1, 64], [-64, 3, -64]], np.int8)) == (-32640, 32640)
    assert extreme_pairs(np.array([[127, -127, 1], [2, 0, -127]], np.int8)) == (-127 * 255, 128 * 255)
    assert extreme_pairs(np.array([[127], [-128]], np.int8)) == (-128 * 255, 127 * 255)  # one product fits always
    assert LOWEST <= -128 * BYTE < 128 * BYTE <= HIGHEST < 129 * BYTE


FORMS = {  # of one layer: its text, and the type of its activation
    "QLinearConv": ("y = QLinearConv (x, s, zx, w, s, zw, s, zx)", "uint8"),
    "QLinearMatMul": ("y = QLinearMatMul (x, s, zx, w, s, zw, s, zx)", "uint8"),
    "ConvInteger": ("y = ConvInteger (x, w)", "uint8"),
    "MatMulInteger": ("y = MatMulInteger (x, w)", "uint8"),
    "signed": ("y = MatMulInteger (x, w)", "int8"),
    "dynamic": ("q, sx, zq = DynamicQuantizeLinear (x) y = MatMulInteger (q, w, zq)", "float"),
    "QDQ Gemm": ("a = DequantizeLinear (x, s, zx) b = DequantizeLinear (w, s) y = Gemm <transB = 1> (a, b)", "uint8"),
    "QDQ pooled": ("d = DequantizeLinear (x, s, zx) a = MaxPool <kernel_shape = [1, 1]> (d) "
                   "b = DequantizeLinear (w, s) y = Conv (a, b)", "int8"),
    "QDQ transposed": ("a = DequantizeLinear (x, s, zx) d = DequantizeLinear (w, s) b = Transpose <perm = [1, 0]> (d) "
                       "y = MatMul (a, b)", "uint8"),
    "QDQ of floats": ("a = DequantizeLinear (x, s, zx) q = QuantizeLinear (f, s, zw) b = DequantizeLinear (q, s, zw) "
                      "y = MatMul (a, b)", "uint8"),
}  # fmt: skip
CONVOLVES = ("QLinearConv", "ConvInteger", "QDQ pooled")


def layer(form: str, weights: list[list[int]], kind: str = "int8") -> onnx.ModelProto:
    """One layer whose weights are inputs × outputs, in one of the forms."""
    text, type_ = FORMS[form]
    dims = "[N,2,4,4]" if form in CONVOLVES else "[N,2]"
    y = "float[M]" if "Integer" not in text else "int32[M]"
    y = f"{type_}[M]" if "QLinear" in form else y
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g ({type_}{dims} x) => ({y} y) {{ {text} }}')
    values = np.array(weights).astype(kind)
    turned = values.T if form in (*CONVOLVES, "QDQ Gemm", "QDQ transposed") else values
    held = {
        "w": turned.reshape(*turned.shape, 1, 1) if form in CONVOLVES else turned,
        "f": 0.5 * values.astype(np.float32),
        "s": np.array(0.5, np.float32),
        "zx": np.array(0, type_ if type_ != "float" else "uint8"),
        "zw": np.array(0, kind),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in held.items())
    model.graph.node[-1].name = "layer"
    return model


LARGE, SMALL = [[100, -100], [100, 5]], [[100, -100], [5, 100]]  # outputs of 100, 100 and -100, 5; of 100, 5, -100, 100


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_layer_is_seen_and_bounded_by_its_own_weights(form: str):
    [found] = saturating_layers(layer(form, LARGE))
    assert (found.node, found.largest, found.reach) == ("layer", 100, 51_000)
    assert saturating_layers(layer(form, [[64, -64], [64, -64]])) == []
    assert saturating_layers(layer(form, LARGE, "uint8")) == []
    assert bool(saturating_layers(layer(form, SMALL))) == (form == "QDQ transposed")  # whose outputs are not followed


def test_floats_by_int8_weights_and_bytes_by_floats_are_no_products_of_bytes():
    text = "b = DequantizeLinear (w, s) y = MatMul (x, b)"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g (float[N,2] x) => (float[M] y) {{ {text} }}')
    held = {"w": np.full((2, 2), 127, np.int8), "s": np.array(0.5, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in held.items())
    assert saturating_layers(model) == []


def test_weights_that_the_graph_computes_count_as_full_range_ones_and_those_not_loaded_are_left_out():
    model = layer("MatMulInteger", SMALL)
    outside = onnx.ModelProto.FromString(model.SerializeToString())
    outside.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert saturating_layers(outside) == []
    del model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT8, (2, 2)))
    assert [each.reach for each in saturating_layers(model)] == [2 * 128 * 255]


def test_a_graph_that_goes_round_in_circles_is_no_endless_search():
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in (("p", "q"), ("q", "p"))]
    nodes.append(helper.make_node("MatMul", ["p", "q"], ["y"]))
    assert saturating_layers(helper.make_model(helper.make_graph(nodes, "g", [], []))) == []


def test_a_message_names_three_layers():
    [found] = saturating_layers(layer("MatMulInteger", LARGE))
    assert saturates([found] * 2).startswith("saturates on x86 without VNNI: layer, layer (int8 weights up to 100")
    assert "layer, layer, layer and 2 more (" in saturates([found] * 5)


def test_what_a_file_costs_is_said_in_figures():
    fine = Cost(200, 0.97, 0.01, {"count": (20, 200)}, {"box": 0.2})
    assert fine.shortfall(TOLERANCES["int8"]) == ""
    said = [
        (replace(fine, accuracy_loss=0.024), "loses 2.4 points, more than 1"),
        (replace(fine, agreement=0.894), "agrees with float32 on 89.4% of the examples, less than 90%"),
        (replace(fine, wrong={"count": (21, 200)}), "gets 21 of 200 count wrong, more than 10%"),
        (replace(fine, rms={"box": 0.25}), "is 25% off at box in root mean square, more than 20%"),
        (replace(fine, rms={"box": float("nan")}), "is nan% off at box in root mean square, more than 20%"),
    ]
    assert [worse.shortfall(TOLERANCES["int8"]) for worse, _ in said] == [words for _, words in said]
    assert Cost(0, float("nan"), float("nan"), {}, {"box": 0.1}).shortfall(TOLERANCES["int8"]) == ""  # no labels


def test_layers_that_cost_too_much_go_back_the_most_sensitive_first(monkeypatch: pytest.MonkeyPatch):
    own, found = network(), calibration()
    layers = [name for name in quantisable(own) if name not in precision.sensitive_nodes(own)]
    order = by_sensitivity(own, layers, found)
    assert sorted(order) == sorted(layers)
    alone = [precision.quantise(own, found.batches, [x for x in layers if x != name]) for name in (order[0], order[-1])]
    true = outputs(own, found.batches)["scores"]
    worst, best = (np.abs(outputs(each, found.batches)["scores"] - true).mean() for each in alone)
    assert worst > best

    tried = iter(["loses 2.4 points", "loses 1.9 points", ""])
    monkeypatch.setattr(Cost, "shortfall", lambda self, tolerance: next(tried))
    result = to_int8(own, found)
    assert result.returned == tuple(order[:2])
    assert set(result.kept) == {"Gemm_10"}
    assert result.as_dict()["returned_to_float32"] == order[:2]
    assert {node.name for node in Emulated(result.model, exact).layers()} == set(order[2:])


def test_where_that_does_not_help_the_row_is_refused_with_its_figures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Cost, "shortfall", lambda self, tolerance: "loses 2.4 points, more than 1")
    monkeypatch.setattr(precision, "RETURNS", 1)
    with pytest.raises(UserError, match=r"loses 2\.4 points, more than 1; with \w+ in float32 it loses.*: not written"):
        to_int8(network(), calibration())


def test_a_file_within_bounds_is_written_whole_and_says_what_it_costs():
    result = to_int8(network(), calibration())
    assert (result.returned, result.cost.examples) == ((), 128)
    assert 0.9 <= result.cost.agreement <= 1
    assert result.as_dict()["calibration"]["agreement"] == result.cost.agreement


def test_a_full_range_file_planted_in_a_run_is_red_in_lint_emulation_and_verify_and_export_makes_it_anew(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    network = NetworkDirectory(run / "cnn")
    [row] = [spec for spec in Source(network).rows if spec.name == "plain-int8"]
    with monkeypatch.context() as patch:
        full_range(patch)
        refused = write(Source(network), row)
        assert isinstance(refused, str)
        assert "saturates on x86 without VNNI: node_conv2d" in refused
        patch.setattr(precision, "saturating_layers", lambda model: [])
        planted = write(Source(network), row)  # and the manifest lists it
    assert not isinstance(planted, str)
    path = run / "cnn" / planted.file
    assert {each.rule for each in lint(onnx.load(path))} >= {"STN015"}
    assert min(deviations(onnx.load(path), channels_first=False).values()) > 0
    reference = reference_of(network.program(), network.examples())
    check = check_artifact(planted, path, ONNX_RUNTIME, reference)
    assert check.failure.startswith("saturates on x86 without VNNI: node_conv2d")

    assert cli.run(export.main, ["--run", str(run), "--only", "plain-int8"]) == 0
    assert "made anew" in capsys.readouterr().out
    made = NetworkDirectory(run / "cnn").listed("plain-int8")
    assert saturation_of(path) == ""
    assert made.details["int8"]["calibration"]["examples"] == 512
    assert check_artifact(made, path, ONNX_RUNTIME, reference).failure == ""
