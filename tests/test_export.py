import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stn_export import cli
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export.onnx_export import export_onnx
from stn_export.runners.torch_files import METADATA
from stn_export.train import __main__ as train
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.networks import build_model
from stn_export.verify import __main__ as verify

IMAGES = torch.zeros(2, 3, 32, 32)


def operators(path: Path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_matmul_is_one_matmul_and_a_sampler_at_opset_18(stn: NetworkDirectory):
    found = operators(stn.path / "matmul-fp32.onnx")
    assert (found["MatMul"], found["GridSample"]) == (1, 1)
    assert not {"AffineGrid", "ReduceSum"} & set(found)
    assert onnx.load(stn.path / "matmul-fp32.onnx").opset_import[0].version == 18


def test_affinegrid_is_the_operator_at_opset_20(stn: NetworkDirectory):
    found = operators(stn.path / "affinegrid-fp32.onnx")
    assert (found["AffineGrid"], found["GridSample"], found["MatMul"]) == (1, 1, 0)
    assert onnx.load(stn.path / "affinegrid-fp32.onnx").opset_import[0].version == 20


def test_the_plain_cnn_has_no_sampler(run: Path):
    assert not {"AffineGrid", "GridSample"} & set(operators(run / "cnn" / "plain-fp32.onnx"))


@pytest.mark.parametrize("name", ["matmul-fp32", "affinegrid-fp32"])
def test_names_and_batch(stn: NetworkDirectory, name: str):
    graph = onnx.load(stn.path / f"{name}.onnx").graph
    for value, expected in ((graph.input[0], "images"), (graph.output[0], "log_probs")):
        assert value.name == expected
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_metadata_travels_inside_the_file(stn: NetworkDirectory):
    props = {prop.key: prop.value for prop in onnx.load(stn.path / "matmul-fp32.onnx").metadata_props}
    assert props.pop("lowering") == "matmul"
    props = {key: json.loads(value) for key, value in props.items()}
    assert props["classes"] == list("0123456789")
    assert props["normalisation"] == {"mean": 0.5, "std": 0.5, "inside": False}
    assert props["align_corners"] is False
    assert props["checkpoint_sha256"] == stn.checkpoint().sha256
    archive = zipfile.ZipFile(stn.path / "torchscript-fp32.ts")
    [member] = [name for name in archive.namelist() if name.endswith("extra/metadata.json")]
    assert json.loads(archive.read(member)) == props
    loaded = {METADATA: ""}
    torch.export.load(stn.path / "pt2-fp32.pt2", extra_files=loaded)
    assert json.loads(loaded[METADATA]) == props


def test_no_path_of_this_machine_is_left_in_a_graph(stn: NetworkDirectory):
    for path in stn.path.glob("*.onnx"):
        assert b".py" not in path.read_bytes()


def test_two_onnx_exports_of_one_checkpoint_are_identical(stn: NetworkDirectory):
    model = load_checkpoint(stn.path / "checkpoint.pt").model
    first, second = (export_onnx(model, IMAGES).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("lowering", "opset"), [("matmul", 20), ("matmul", 15), ("affinegrid", 18)])
def test_an_opset_that_a_lowering_cannot_have(lowering: str, opset: int):
    with pytest.raises(UserError, match=f"{lowering} cannot be written at opset {opset}"):
        export_onnx(build_model("stn").eval(), IMAGES, lowering=lowering, opset=opset)


def test_an_unknown_lowering():
    with pytest.raises(UserError, match="unknown lowering 'magic'"):
        export_onnx(build_model("stn").eval(), IMAGES, lowering="magic")


@pytest.mark.parametrize("opset", [16, 17, 18, 19])
def test_matmul_at_every_opset_it_claims(opset: int):
    model = build_model("stn").eval()
    torch.nn.init.normal_(model.transformer.regressor[-1].weight, std=0.1)
    exported = export_onnx(model, IMAGES, opset=opset, input_names=["images"])
    assert exported.opset_import[0].version == opset
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, 32, 32)
    actual = session.run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(actual, model(images).detach().numpy(), atol=1e-5, rtol=0)


def test_exporting_again_does_nothing_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert capsys.readouterr().out.count("up to date") == 22
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_edited_export_is_written_again(run: Path, stn: NetworkDirectory):
    path = stn.path / "matmul-fp32.onnx"
    good = path.read_bytes()
    path.write_bytes(b"edited")
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert path.read_bytes() == good


def test_an_edited_checkpoint_is_not_exported(run: Path, stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    path = stn.path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert cli.run(export.main, ["--run", str(run)]) == 2
    assert "changed after it was written" in capsys.readouterr().err


def test_a_fixed_batch_and_an_optimised_file_on_request(run: Path, stn: NetworkDirectory):
    assert cli.run(export.main, ["--run", str(run), "--only", "matmul-fp32", "--batch", "4", "--optimise"]) == 0
    fixed, optimised = stn.artifacts["matmul-fp32-batch4"], stn.artifacts["matmul-fp32-optimised"]
    assert fixed.input_contract["shape"] == [4, 3, 32, 32]
    assert onnx.load(stn.path / fixed.file).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert sum(optimised.details["operators"].values()) <= optimised.details["nodes_before"]
    assert {node.domain for node in onnx.load(stn.path / optimised.file).graph.node} == {""}
    assert cli.run(verify.main, ["--run", str(run), "--only", fixed.name, optimised.name]) == 0
    assert cli.run(train.main, ["--run", str(run), "--epochs", "1"]) == 0
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert stn.artifacts[fixed.name].parent_sha256 == stn.checkpoint().sha256  # asked for once, kept up to date


def test_a_batch_without_images(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(export.main, ["--run", str(run), "--batch", "0"]) == 2
    assert "holds no image" in capsys.readouterr().err
