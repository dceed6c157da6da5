from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from stn_export.onnx_graph import portability as portability_module
from stn_export.onnx_graph.lint import RULES, Subject, lint
from stn_export.onnx_graph.model import WEIGHTS, without_weights
from stn_export.onnx_graph.portability import (
    NOTHING_AGAINST,
    REFUSED,
    RUNTIMES,
    SHOULD,
    TESTED,
    UNSURE,
    UNTRIED,
    WRONG,
    portability,
)
from stn_export.run.manifest import NetworkDirectory

METADATA = {"classes": '["a", "b"]', "contract": '{"inputs": [], "outputs": []}', "align_corners": "false"}


def graph(body: str, opset: int = 18, signature: str = "", metadata: dict[str, str] | None = None) -> onnx.ModelProto:
    """A model of two inputs, x and grid, and one output, y."""
    signature = signature or "(float[N,1,4,4] x, float[N,4,4,2] grid) => (float[N,1,4,4] y)"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {signature} {{ {body} }}')
    helper.set_model_props(model, METADATA if metadata is None else metadata)
    return model


def sampler(mode: str = "bilinear", padding: str = "zeros", corners: int = 0, **rest: object) -> onnx.ModelProto:
    attributes = f'mode = "{mode}", padding_mode = "{padding}", align_corners = {corners}'
    return graph(f"[sampler] y = GridSample <{attributes}> (x, grid)", **rest)


def half(kind: str = "float16") -> onnx.ModelProto:
    return sampler(signature=f"({kind}[N,1,4,4] x, {kind}[N,4,4,2] grid) => ({kind}[N,1,4,4] y)", opset=16)


def volume() -> onnx.ModelProto:
    return sampler("linear", opset=20, signature="(float[N,1,4,4,4] x, float[N,4,4,4,3] grid) => (float[N,1,4,4,4] y)")


def affine() -> onnx.ModelProto:
    signature = "(float[N,1,4,4] x, float[N,2,3] theta) => (float[N,1,4,4] y)"
    body = "size = Shape (x) [affine] grid = AffineGrid (theta, size) y = GridSample (x, grid)"
    return graph(body, opset=20, signature=signature)


def frozen() -> onnx.ModelProto:
    return sampler(signature="(float[2,1,4,4] x, float[N,4,4,2] grid) => (float[2,1,4,4] y)")


def sized() -> onnx.ModelProto:
    """Its output depends on the shape of the input only."""
    return graph("s = Shape (x) y = ConstantOfShape (s)", signature="(float[N,4] x) => (float[N,4] y)")


def cancelled() -> onnx.ModelProto:
    return graph("y = Sub (x, x)", signature="(float[N,4] x) => (float[N,4] y)")


def spoilt_batch() -> onnx.ModelProto:
    return graph(
        "shape = Constant <value = int64[2] {1, 4}> () y = Reshape (x, shape)",
        signature="(float[N,2,2] x) => (float[M,4] y)",
    )


def with_initialiser(external: bool = False, used: bool = False) -> onnx.ModelProto:
    model = graph(f"y = Add (x, {'w' if used else 'x'})", signature="(float[N,4] x) => (float[N,4] y)")
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    if external:
        onnx.external_data_helper.set_external_data(weight, "weights.bin", length=16)
        weight.data_location = TensorProto.EXTERNAL
    model.graph.initializer.append(weight)
    return model


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64])
def test_large_weights_of_any_type_are_run_with_and_not_copied_to_infer_shapes(dtype: int):
    model = graph("c = Cast <to = 1> (w) y = Mul (x, c)", signature="(float[N,2000] x) => (float[N,2000] y)")
    values = np.arange(2000)
    model.graph.initializer.append(helper.make_tensor("w", dtype, [2000], values.astype(float)))
    subject = Subject(model)
    assert subject.infos["c"].shape == (2000,)
    [y] = subject.trial.outputs.values()
    held = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float32)
    np.testing.assert_allclose(y, subject.trial.inputs.draw()["x"] * held)
    assert (len(without_weights(model).SerializeToString()) < 1000) == (dtype in WEIGHTS)


def in_bytes(weight: int) -> onnx.ModelProto:
    """One product of bytes by two equal weights, see tests/test_saturation.py for every form of it."""
    model = graph("[layer] y = MatMulInteger (x, w)", signature="(uint8[N,2] x) => (int32[N,1] y)")
    model.graph.initializer.append(numpy_helper.from_array(np.full((2, 1), weight, np.int8), "w"))
    return model


def deformed(operator: str) -> onnx.ModelProto:
    """A convolution at given offsets, or an ordinary one."""
    model = graph(
        f"[layer] y = {operator} (x, w{', offsets' if operator == 'DeformConv' else ''})",
        signature="(float[1,1,3,3] x) => (float[1,1,3,3] y)",
        opset=19,
    )
    for name, shape in (("w", (1, 1, 1, 1)), ("offsets", (1, 2, 3, 3))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    return model


def averages(window: int, channels: int = 1, padding_counts: int = 1) -> onnx.ModelProto:
    """One average of a window for each channel; WebGPU's are wrong as STN017 says, tried at each of these sizes."""
    return graph(
        f"[layer] y = AveragePool <kernel_shape = [{window}, {window}], count_include_pad = {padding_counts}> (x)",
        signature=f"(float[1,{channels},{window},{window}] x) => (float[1,{channels},1,1] y)",
    )


@dataclass(frozen=True)
class Case:
    trips: Callable[[], onnx.ModelProto]
    where: str
    passes: Callable[[], onnx.ModelProto] = sampler


CASES = {
    "STN001": [
        Case(lambda: sampler("linear", opset=20), "sampler"),
        Case(lambda: sampler("cubic", opset=20), "sampler", passes=lambda: sampler("nearest", opset=20)),
    ],
    "STN002": [Case(affine, "affine")],
    "STN003": [Case(half, "sampler"), Case(lambda: half("bfloat16"), "sampler")],
    "STN004": [Case(frozen, "x")],
    "STN005": [Case(lambda: sampler("nearest", opset=20), "sampler")],
    "STN006": [Case(lambda: sampler("linear", opset=22), "opset", passes=lambda: sampler("linear", opset=21))],
    "STN007": [
        Case(lambda: sampler("bicubic"), "sampler"),
        Case(lambda: sampler(padding="reflection"), "sampler", passes=lambda: sampler(padding="border")),
    ],
    "STN008": [Case(volume, "sampler")],
    "STN009": [Case(lambda: sampler(metadata={"classes": "[]"}), "metadata")],
    "STN010": [Case(sized, "y"), Case(cancelled, "y")],
    "STN011": [Case(lambda: with_initialiser(external=True, used=True), "w", lambda: with_initialiser(used=True))],
    "STN012": [Case(with_initialiser, "w", passes=lambda: with_initialiser(used=True))],
    "STN013": [Case(spoilt_batch, "a run")],
    "STN014": [Case(lambda: sampler(corners=1), "sampler")],
    "STN015": [Case(lambda: in_bytes(65), "layer", passes=lambda: in_bytes(-64))],
    "STN016": [Case(lambda: deformed("DeformConv"), "layer", passes=lambda: deformed("Conv"))],
    "STN017": [
        Case(lambda: averages(12), "layer", passes=lambda: averages(11)),
        Case(lambda: averages(16, channels=128), "layer", passes=lambda: averages(16, channels=129)),
        Case(lambda: averages(16), "layer", passes=lambda: averages(16, padding_counts=0)),
    ],
}
CASES["STN018"] = [
    Case(lambda: graph("y = Relu (x)\n y = Neg (x)", signature="(float[N,4] x) => (float[N,4] y)"), "the file"),
    Case(lambda: graph("y = Nonsense (x)", signature="(float[N,4] x) => (float[N,4] y)"), "the file"),
]
EVERY = [(rule, case) for rule, cases in CASES.items() for case in cases]


def found(model: onnx.ModelProto, rule: str) -> list[str]:
    return [each.where for each in lint(model) if each.rule == rule]


def test_every_rule_has_a_case_and_says_why_and_what_to_do():
    assert [rule.id for rule in RULES] == sorted(CASES)
    assert all(rule.summary and rule.remedy for rule in RULES)


@pytest.mark.parametrize(("rule", "case"), EVERY, ids=[rule for rule, _ in EVERY])
def test_a_rule_finds_what_it_is_for_and_nothing_else(rule: str, case: Case):
    assert found(case.trips(), rule) == [case.where]
    assert found(case.passes(), rule) == []


def test_the_plain_sampler_is_clean():
    assert lint(sampler()) == []


def test_the_matmul_file_is_clean_and_the_affinegrid_file_is_not(stn: NetworkDirectory):
    assert lint(onnx.load(stn.path / "matmul-fp32.onnx")) == []
    rules = {each.rule for each in lint(onnx.load(stn.path / "affinegrid-fp32.onnx"))}
    assert rules == {"STN001", "STN002", "STN005"}


def test_a_dynamic_image_size_is_tried_at_one_that_a_net_can_take():
    signature = "(float[N,1,H,W] x) => (float[N,1,P,Q] y)"
    assert lint(graph("y = AveragePool <kernel_shape = [7, 7]> (x)", signature=signature)) == []


def test_an_input_of_text_is_drawn():
    model = graph("y = Identity (x)", signature="(string[N] x) => (string[N] y)")
    assert found(model, "STN013") == []
    assert Subject(model).trial.outputs["y"].tolist() == ["0"]


def test_late_kernels_names_the_operator_without_one():
    model = graph(
        "y = MaxPool <kernel_shape = [2, 2]> (x)", opset=22, signature="(float[N,1,4,4] x) => (float[N,1,3,3] y)"
    )
    [finding] = [each for each in lint(model) if each.rule == "STN006"]
    assert "CUDA kernels lacks MaxPool" in finding.detail


def test_a_node_in_the_body_of_control_flow_is_seen():
    body = sampler("linear", opset=20).graph
    del body.input[:]
    signature = "(bool c, float[N,1,4,4] x, float[N,4,4,2] grid) => (float[N,1,4,4] z)"
    model = graph("z = Identity (x)", opset=20, signature=signature)
    model.graph.node[0].CopyFrom(helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
    assert found(model, "STN001") == ["sampler", "GridSample_2"]  # names of their own
    assert found(model, "STN010") == []


def test_what_was_loaded_from_outside_is_still_reported():
    [finding] = [each for each in lint(with_initialiser(used=True), external=("w",)) if each.rule == "STN011"]
    assert finding.where == "w"


def test_portability_names_every_runtime_and_three_verdicts(stn: NetworkDirectory):
    matmul = portability(onnx.load(stn.path / "matmul-fp32.onnx"))
    affinegrid = portability(onnx.load(stn.path / "affinegrid-fp32.onnx"))
    assert list(matmul) == [runtime.name for runtime in RUNTIMES]
    assert {verdict for verdict, _ in (*matmul.values(), *affinegrid.values())} == {TESTED, SHOULD, REFUSED}
    assert matmul["ONNX Runtime CPU"][0] == affinegrid["ONNX Runtime CPU"][0] == TESTED
    assert matmul["onnx reference evaluator"][0] == REFUSED
    assert affinegrid["onnx reference evaluator"][0] == TESTED
    assert matmul["TensorRT"] == (SHOULD, NOTHING_AGAINST)
    assert affinegrid["TensorRT"][0] == REFUSED
    assert "nearest" in affinegrid["TensorRT"][1]
    assert "AffineGrid" in affinegrid["ONNX Runtime CUDA"][1] or "affine_grid" in affinegrid["ONNX Runtime CUDA"][1]


def test_a_runtime_that_gives_other_numbers_will_not_do(monkeypatch: pytest.MonkeyPatch):
    wrong = portability_module.Runtime("wrong", trial=lambda subject: {"y": np.full((1, 1, 4, 4), np.nan)})
    monkeypatch.setattr(portability_module, "RUNTIMES", (wrong,))
    verdict, why = portability(sampler())["wrong"]
    assert verdict == WRONG
    assert "differs" in why


@pytest.mark.parametrize(("side", "verdict"), [(140, TESTED), (141, UNTRIED)])  # 140 * 71 values are 9,940
def test_a_runtime_that_samples_value_by_value_is_tried_with_few(
    side: int, verdict: str, monkeypatch: pytest.MonkeyPatch
):
    def crash(*_: object) -> None:
        raise AssertionError("it was tried")

    if verdict == UNTRIED:
        monkeypatch.setattr(portability_module, "ReferenceEvaluator", crash)
    model = sampler(
        "linear", opset=20, signature=f"(float[N,1,4,4] x, float[N,{side},71,2] grid) => (float[N,1,{side},71] y)"
    )
    assert portability(model)["onnx reference evaluator"][0] == verdict


def test_a_model_that_nothing_runs():
    verdicts = portability(graph("y = Nonsense (x)", signature="(float[N,4] x) => (float[N,4] y)"))
    assert verdicts["ONNX Runtime CPU"][0] == REFUSED
    assert {verdict for verdict, _ in verdicts.values()} == {REFUSED, UNSURE}
