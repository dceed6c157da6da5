"""What made an audit of other people's ONNX files wrong, refuse or hang: each kind in a small file."""

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from stn_export import cli
from stn_export.audit import __main__ as audit
from stn_export.audit.content import examine_apart, examined
from stn_export.errors import UserError
from stn_export.onnx_graph import deployment, portability
from stn_export.onnx_graph.inputs import Asked
from stn_export.onnx_graph.model import OnnxFile
from stn_export.onnx_graph.portability import TESTED, UNSURE, UNTRIED, WRONG, difference
from stn_export.onnx_graph.records import CPU, CUDA, PROVIDERS, Report

DOMAINS = '"com.microsoft": 1, "ai.onnx.ml": 3, "com.example": 1'


def model_of(signature: str, body: str, opset: int = 18, **weights: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, {DOMAINS}]> g {signature} {{ {body} }}')
    model.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in weights.items())
    return model


def report_of(model: onnx.ModelProto, asked: Asked | None = None) -> Report:
    return examined("", OnnxFile(model), asked=asked or Asked())


def rules(report: Report) -> set[str]:
    return {each.rule for each in report.findings}


PLAIN = "(float[N, 4] x) => (float[N, 4] y)"


def test_an_unused_weight_of_any_size_is_dead_weight_and_no_refusal():
    report = report_of(model_of(PLAIN, "y = Relu (x)", w=np.ones(4000, np.float32)))
    assert report.portability["ONNX Runtime CPU"][0] == TESTED
    assert "STN012" in rules(report)


def test_the_other_spelling_of_onnx_s_domain_is_onnx_s():
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["ai.onnx": 18]> g {PLAIN} {{ y = ai.onnx.Relu (x) }}')
    report = report_of(model)
    assert [node.provider for node in report.audits[1].nodes] == [CUDA]


@pytest.mark.parametrize(("operator", "provider"), [("Gelu", CUDA), ("QLinearSigmoid", CPU), ("Mystery", CPU)])
def test_operators_of_other_domains_are_placed_by_the_table(operator: str, provider: str):
    domain = "com.example" if operator == "Mystery" else "com.microsoft"
    report = report_of(model_of(PLAIN, f"y = {domain}.{operator} (x)"))
    assert [node.provider for node in report.audits[1].nodes] == [provider]


def test_on_the_cpu_nothing_is_said_of_every_node():
    report = report_of(model_of(PLAIN, "y = Relu (x)"))
    assert [node.reason for node in report.audits[0].nodes] == [""]


@pytest.mark.parametrize(
    ("body", "verdict"),
    [("y = com.microsoft.Gelu (x)", UNSURE), ("y = com.example.Mystery (x)", UNSURE), ("y = Relu (x)", "should run"),
     ("q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)", "refused")],
)  # fmt: skip
def test_no_news_of_an_operator_is_no_good_news(body: str, verdict: str):
    said, why = report_of(model_of(PLAIN, body)).portability["TensorRT"]
    assert said == verdict
    assert "onnx-tensorrt" in why or verdict == "should run"


def test_random_numbers_are_no_error():
    report = report_of(model_of(PLAIN, "r = RandomNormalLike (x) y = Add (x, r)"))
    assert WRONG not in {verdict for verdict, _ in report.portability.values()}
    assert report.portability["ONNX Runtime CPU"] == (TESTED, "On x 1×4 (chosen); its outputs are others each time.")


def test_what_is_no_number_on_both_sides_is_equal():
    report = report_of(model_of(PLAIN, "n = Neg (x) a = Abs (n) m = Neg (a) y = Log (m)"))
    assert report.portability["onnx reference evaluator"][0] == TESTED
    assert difference(np.array([np.nan, np.inf, 1]), np.array([np.nan, np.inf, 1])) == 0
    assert difference(np.array([np.nan, 1.0]), np.array([0, 1.0])) == np.inf
    assert difference(np.array(["a"], object), np.array(["b"], object)) == np.inf


def test_half_precision_is_judged_as_half_precision():
    weights = np.random.default_rng(0).uniform(-1, 1, (300, 4)).astype(np.float16)
    report = report_of(model_of("(float16[N, 300] x) => (float16[N, 4] y)", "y = MatMul (x, w)", w=weights))
    verdict, why = report.portability["onnx reference evaluator"]
    assert verdict == TESTED
    assert "2e-02" in why


def test_token_ids_that_are_floats_and_empty_detections_are_not_constant():
    tokens = model_of("(float[N, 8] x) => (float[a, b, c] y)", "i = Cast <to = 7> (x) y = Gather (w, i)",
                      w=np.random.default_rng(0).uniform(size=(300, 3)).astype(np.float32))  # fmt: skip
    empty = model_of("(float[N, 8] x) => (float[a, b] y)",
                     "z = Constant <value_ints = [0]> () y = Slice (x, z, z)")  # fmt: skip
    assert "STN010" not in rules(report_of(tokens))
    assert "STN010" not in rules(report_of(empty))


@pytest.mark.parametrize("kind", ["string", "float8e4m3fn"])
def test_text_and_small_floats_run(kind: str):
    report = report_of(model_of(f"({kind}[N] x) => ({kind}[N] y)", "y = Identity (x)", 21))
    assert report.portability["ONNX Runtime CPU"][0] == TESTED
    assert "STN013" not in rules(report)


def test_bfloat16_is_refused_by_a_runtime_and_not_by_the_audit():
    report = report_of(model_of("(bfloat16[N, 4] x) => (bfloat16[N, 4] y)", "y = Softplus (x)", 22))
    assert report.portability["ONNX Runtime CPU"][0] == "refused"
    assert "does not load" in report.audits[0].source


def test_sizes_that_were_not_found_are_not_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    body = "s = Constant <value_ints = [0, 3989]> () y = Reshape (x, s)"
    path = tmp_path / "odd.onnx"
    onnx.save(model_of("(float[N, 3] x) => (float[a, b] y)", body), path)
    assert cli.run(audit.main, [str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["portability"]["ONNX Runtime CPU"]["verdict"] == UNTRIED
    assert content["inputs"]["problem"]
    assert {each["rule"] for each in content["findings"]} == set()


def test_given_sizes_are_taken_and_wrong_ones_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "open.onnx"
    onnx.save(model_of("(float[N, M] x) => (float[N, M] y)", "y = Relu (x)"), path)
    assert cli.run(audit.main, [str(path), "--shape", "x=2,35"]) == 0
    assert "x 2×35 (given)" in capsys.readouterr().out
    np.savez(tmp_path / "in.npz", x=np.ones((3, 5), np.float32))
    assert cli.run(audit.main, [str(path), "--inputs", str(tmp_path / "in.npz")]) == 0
    assert "x 3×5 (given)" in capsys.readouterr().out
    assert cli.run(audit.main, [str(path), "--shape", "z=2"]) == 2
    assert "there is no input z" in capsys.readouterr().err
    assert cli.run(audit.main, [str(path), "--shape", "x=a"]) == 2


LONG = """m = Constant <value = int64 {4611686018427387904}> () c = Constant <value = bool {1}> ()
y = Loop (m, c, x) <body = b (int64 i, bool go, float[N, 4] state) => (bool on, float[N, 4] next) {
  on = Identity (go) next = Neg (state) }>"""
BOXES = "(float[1, 400000, 4] b, float[1, 1, 400000] s) => (int64[a, 3] y)"
HANGS = {
    "a Loop of 2^62 rounds": model_of(PLAIN, LONG),
    "400,000 boxes": model_of(BOXES, "m = Constant <value = int64 {400000}> () y = NonMaxSuppression (b, s, m)"),
    "a deformable convolution": model_of(
        "(float[1, 16, 64, 64] x, float[1, 18, 64, 64] o) => (float[1, 16, 64, 64] y)",
        "y = DeformConv <pads = [1, 1, 1, 1]> (x, w, o)", 19, w=np.ones((16, 16, 3, 3), np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("name", HANGS)
def test_nothing_hangs(name: str, tmp_path: Path):
    onnx.save(HANGS[name], tmp_path / "hang.onnx")
    begun = time.monotonic()
    report = examine_apart(tmp_path / "hang.onnx", ["cpu"], {}, None)
    assert time.monotonic() - begun < 40  # on a busy machine; 20 on one that is not
    assert UNTRIED in {verdict for verdict, _ in report.portability.values()} or name == "400,000 boxes"


def test_a_missing_operator_of_onnx_s_own_is_no_onnx():
    with pytest.raises(UserError, match="no operator Nonsense"):
        report_of(model_of(PLAIN, "y = Nonsense (x)"))


def test_many_outputs_take_no_time():
    nodes = [helper.make_node("Relu", ["x"], [f"y{n}"]) for n in range(1000)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["N", 4])], [value(f"y{n}", 1, ["N", 4]) for n in range(1000)])
    begun = time.monotonic()
    report_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert time.monotonic() - begun < 20


def test_the_lists_say_where_they_are_from():
    for runtime in (each for each in portability.RUNTIMES if each.alone):
        listed = portability.operators(runtime.name)
        assert listed.source
        assert not listed.has & listed.lacks
        assert {"Conv", "Relu"} <= listed.has
    assert set(PROVIDERS) == {"cpu", "cuda", "webgpu"}
    assert all(deployment.kernels(provider).source for provider in ("cuda", "webgpu"))
