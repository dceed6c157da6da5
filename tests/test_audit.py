import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper, parser

from stn_export import cli
from stn_export.audit import __main__ as audit_module
from stn_export.errors import UserError
from stn_export.onnx_graph import deployment, placement
from stn_export.onnx_graph.costs import macs
from stn_export.onnx_graph.deployment import audit
from stn_export.onnx_graph.inputs import Asked, declared_inputs, settled
from stn_export.onnx_graph.model import TensorInfo, flat, infer
from stn_export.onnx_graph.placement import Kernel, write_kernels
from stn_export.run.manifest import NetworkDirectory

PREDICTED = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU places the nodes itself")


def parse(body: str, signature: str, opset: int = 18) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {signature} {{ {body} }}')


def infos_of(model: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Of a model at batch 1."""
    return infer(model, settled(declared_inputs(model), Asked()).sizes)


def matmul(stn: NetworkDirectory) -> Path:
    return stn.path / "matmul-fp32.onnx"


def affinegrid(stn: NetworkDirectory) -> Path:
    return stn.path / "affinegrid-fp32.onnx"


def test_a_file_is_audited_without_pytorch(stn: NetworkDirectory):
    code = (
        "import sys; from stn_export.audit.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, matmul(stn)], capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, "Portability" in done.stdout) == (0, True), done.stderr


def test_matmul_runs_on_cuda_from_end_to_end(stn: NetworkDirectory):
    result = audit(onnx.load(matmul(stn)), "cuda")
    assert (result.fallbacks, result.copies, result.capturable) == ((), (), True)
    assert result.predicted is not placement.cuda_works()
    assert ("predicted" in result.source) is not placement.cuda_works()


def test_affinegrid_falls_back_and_takes_its_sampler_along(stn: NetworkDirectory):
    result = audit(onnx.load(affinegrid(stn)), "cuda")
    assert [node.op_type for node in result.fallbacks] == ["AffineGrid", "GridSample"]
    assert "AffineGrid" in result.capture_reason or result.fallbacks[0].name in result.capture_reason
    assert not result.capturable
    assert {each.tensor for each in result.copies} == {"images", "site0/theta", "site0/warped"}
    shapes = [node for node in result.nodes if node.op_type in ("Shape", "Squeeze", "Concat")]
    assert not any(node.compute for node in shapes)


def test_on_the_cpu_the_session_says_where(stn: NetworkDirectory):
    result = audit(onnx.load(affinegrid(stn)), "cpu")
    told = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    assert result.predicted is not told
    assert {node.provider for node in result.nodes} == {"CPUExecutionProvider"}
    assert (result.fallbacks, result.copies, result.capturable) == ((), (), False)


def test_an_onnxruntime_that_does_not_tell(stn: NetworkDirectory, monkeypatch: pytest.MonkeyPatch):
    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

    monkeypatch.setattr(placement.onnxruntime, "InferenceSession", Session)
    result = audit(onnx.load(matmul(stn)), "cpu")
    assert result.predicted
    assert "does not tell" in result.source


@pytest.mark.parametrize(("provider", "told"), [("CPUExecutionProvider", 1), ("CUDAExecutionProvider", 0)])
def test_a_session_on_a_gpu_is_believed(
    stn: NetworkDirectory, monkeypatch: pytest.MonkeyPatch, provider: str, told: int
):
    model = onnx.load(matmul(stn))
    said = {node.name: "CUDAExecutionProvider" for node in model.graph.node} | {"node_grid_sampler": provider}
    monkeypatch.setattr(deployment, "read_placement", lambda model, provider: said)
    result = audit(model, "cuda")
    assert not result.predicted
    assert "read from a session" in result.source
    assert [node.name for node in result.fallbacks] == ["node_grid_sampler"][:told]


@pytest.mark.cuda
def test_the_prediction_is_what_the_gpu_does(stn: NetworkDirectory):
    for path in stn.path.glob("*.onnx"):
        model = flat(onnx.load(path))
        infos = infos_of(model)
        free = placement.free_nodes(model, infos)
        read, predicted = placement.read_placement(model, "cuda"), placement.predict_gpu(model, infos, free)
        assert read
        compute = set(read) - set(free)
        assert {name: read[name] for name in compute} == {name: predicted[name].provider for name in compute}


def test_costs_at_batch_1(stn: NetworkDirectory):
    result = audit(onnx.load(matmul(stn)), "cpu")
    by_name = {node.op_type: node.macs for node in result.nodes}
    assert by_name["GridSample"] == 4 * 3 * 32 * 32
    assert by_name["MatMul"] == 2 * 3 * 32 * 32
    assert result.macs == 2_094_220
    weights = [numpy_helper.to_array(each) for each in onnx.load(matmul(stn)).graph.initializer]
    assert result.initialiser_bytes == sum(each.nbytes for each in weights)
    assert result.activation_bytes > 4 * 8 * 26 * 26


X = "(float[N,4,6,6] x, float[4,2,3,3] w)"
COSTS = {
    "Conv <group = 2> (x, w)": 4 * 4 * 4 * 2 * 9,
    "ConvTranspose (x, w)": 4 * 6 * 6 * 2 * 9,
    "Relu (x)": 0,
    'GridSample <mode = "nearest"> (x, w)': 0,
}


@pytest.mark.parametrize("call", COSTS)
def test_multiply_adds(call: str):
    grid = "(float[N,4,6,6] x, float[N,6,6,2] w)" if "GridSample" in call else X
    model = parse(f"y = {call}", f"{grid} => (float[N,M,H,W] y)")
    assert macs(model.graph.node[0], infos_of(model)) == COSTS[call]


def test_a_kernel_without_an_end_serves_one_version_only():
    assert Kernel(12, None, {}).serves(12)
    assert not Kernel(12, None, {}).serves(22)
    assert [Kernel(16, 19, {}).serves(version) for version in (15, 16, 19, 20)] == [False, True, True, False]


@PREDICTED
@pytest.mark.parametrize(
    ("body", "opset", "fallen"),
    [
        ("y = MaxPool <kernel_shape = [1, 1]> (x)", 21, []),
        ("y = MaxPool <kernel_shape = [1, 1]> (x)", 22, ["MaxPool"]),
        ("y = Tan (x)", 18, ["Tan"]),
        ("y = com.example.Mystery (x)", 18, ["Mystery"]),
        ("y = GroupNormalization <num_groups = 1> (x, s, s)", 21, []),
    ],
)
def test_predicted_kernels(body: str, opset: int, fallen: list[str]):
    model = parse(body, "(float[N,4,6,6] x, float[4] s) => (float[N,4,6,6] y)", opset)
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    model = flat(model)
    infos = infos_of(model)
    predicted = placement.predict_gpu(model, infos, placement.free_nodes(model, infos))
    assert [name.split("_")[0] for name, each in predicted.items() if each.provider == placement.CPU] == fallen


@PREDICTED
def test_a_half_precision_sampler_has_no_kernel():
    signature = "(float16[N,1,4,4] x, float16[N,4,4,2] grid) => (float16[N,1,4,4] y)"
    [node] = audit(parse("y = GridSample (x, grid)", signature), "cuda").fallbacks
    assert "no CUDA kernel of GridSample 16 for float16, float16" in node.reason


def test_control_flow_cannot_be_captured():
    branch = parser.parse_graph("b () => (float[N,4] z) { z = Relu (x) }")
    model = parse("y = Identity (x)", "(bool c, float[N,4] x) => (float[N,4] y)")
    model.graph.node[0].CopyFrom(
        onnx.helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    )
    result = audit(model, "cuda")
    assert not result.capturable
    assert result.capture_reason == "control flow: choice"


def test_an_unknown_provider(stn: NetworkDirectory):
    with pytest.raises(UserError, match="unknown provider 'tpu'"):
        audit(onnx.load(matmul(stn)), "tpu")


def test_require_cuda(stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    assert cli.run(audit_module.main, [str(matmul(stn)), "--require", "cuda"]) == 0
    assert cli.run(audit_module.main, [str(affinegrid(stn)), "--require", "cuda", "--provider", "cpu"]) == 1
    assert "(AffineGrid): " in capsys.readouterr().err


def test_what_gates_refuse_a_file_that_does_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = '<ir_version: 10, opset_import: ["" : {}]> g (float[N,4] x) => (float[N,4] y) {{ {} }}'
    twice, unknown = text.format(18, "y = Relu (x) y = Neg (x)"), text.format(99, "y = Relu (x)")
    for name, model in (("twice", onnx.parser.parse_model(twice)), ("unknown", onnx.parser.parse_model(unknown))):
        onnx.save(model, path := tmp_path / f"{name}.onnx")
        assert cli.run(audit_module.main, [str(path)]) == 0
        for gate in (["--strict"], ["--require", "cuda"]):
            assert cli.run(audit_module.main, [str(path), *gate]) == 1
        assert "STN018" in capsys.readouterr().err


def test_a_kernel_that_the_cpu_lacks_is_none_that_cuda_lacks(tmp_path: Path):
    halves = '<ir_version: 10, opset_import: ["" : 18]> g (bfloat16[N,4] x) => (bfloat16[N,4] y) { y = Max (x, x) }'
    onnx.save(onnx.parser.parse_model(halves), path := tmp_path / "halves.onnx")
    assert cli.run(audit_module.main, [str(path), "--strict"]) == 1
    assert cli.run(audit_module.main, [str(path), "--require", "cuda"]) == 0


def test_strict(stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    assert cli.run(audit_module.main, [str(matmul(stn)), "--strict"]) == 0
    assert cli.run(audit_module.main, [str(affinegrid(stn))]) == 0
    assert cli.run(audit_module.main, [str(affinegrid(stn)), "--strict"]) == 1
    assert "STN001, STN002, STN005" in capsys.readouterr().err


def test_the_text_says_what_matters(stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    assert cli.run(audit_module.main, [str(affinegrid(stn))]) == 0
    shown = capsys.readouterr().out
    for text in (
        "copies       3: ",
        "CUDA graph   cannot be captured",
        "2,094,220 multiply-adds",
        "STN002",
        "TensorRT",
    ):
        assert text in shown
    assert ("(predicted)" in shown) is not placement.cuda_works()


def test_json(stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    assert cli.run(audit_module.main, [str(affinegrid(stn)), "--provider", "cuda", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    [result] = content["audits"]
    assert result["provider"] == "cuda"
    assert len(result["copies"]) == 3
    assert len(result["fallbacks"]) == 2
    assert {each["rule"] for each in content["findings"]} == {"STN001", "STN002", "STN005"}
    assert content["portability"]["ONNX Runtime CPU"]["verdict"] == "runs, tested here"


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)), b"PK\x03\x04", b"{}"])
def test_a_foreign_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes):
    path = tmp_path / "foreign.onnx"
    path.write_bytes(content)
    assert cli.run(audit_module.main, [str(path)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert "is not an ONNX file" in error[0]
    assert error[1].startswith("hint:")


@pytest.mark.parametrize("arguments", [["missing.onnx"], ["."], [], ["x.onnx", "--provider", "tpu"]])
def test_a_missing_file_or_argument(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert cli.run(audit_module.main, arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_operator_that_nobody_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "unknown.onnx"
    onnx.save(parse("y = Nonsense (x)", "(float[N,4] x) => (float[N,4] y)"), path)
    assert cli.run(audit_module.main, [str(path)]) == 2
    assert "ONNX has no operator Nonsense" in capsys.readouterr().err


def test_external_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = parse("y = Add (x, w)", "(float[N,4] x) => (float[N,4] y)")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    path = tmp_path / "outside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert onnx.load(path, load_external_data=False).graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert cli.run(audit_module.main, [str(path)]) == 0
    assert "STN011" in capsys.readouterr().out
    (tmp_path / "weights.bin").unlink()
    assert cli.run(audit_module.main, [str(path)]) == 2
    assert "lacks its external data" in capsys.readouterr().err


@PREDICTED
def test_the_table_cannot_be_written_without_the_cuda_provider(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(audit_module.main, ["--kernels", str(tmp_path / "kernels.json")]) == 2
    assert "does not list its CUDA kernels" in capsys.readouterr().err


def test_the_table_is_written_from_what_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    types = {"T": ["tensor(float)"]}
    rows = [
        (placement.CPU, "", "Relu", 6, 13, types),
        (placement.CPU, placement.CONTRIBUTED, "QGemm", 1, placement.UNBOUNDED, types),
        (placement.CUDA, placement.CONTRIBUTED, "FusedConv", 1, placement.UNBOUNDED, types),
        (placement.CUDA, "", "Relu", 6, 13, types),
        (placement.CUDA, "", "Relu", 6, 13, {"T": ["tensor(double)"]}),
        (placement.CUDA, "", "Relu", 14, placement.UNBOUNDED, types),
    ]
    monkeypatch.setattr(placement, "_registrations", lambda: rows)
    assert write_kernels(tmp_path / "kernels.json") == 1
    content = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))
    assert content["operators"] == {"Relu": [[14, None, {"T": ["float"]}], [6, 13, {"T": ["double", "float"]}]]}
    assert content["cpu_operators"] == ["Relu"]
    assert content["contributed"]["operators"] == ["FusedConv"]
