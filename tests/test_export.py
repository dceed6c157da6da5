import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export import rows, writing
from stn_export.export.onnx import export_onnx
from stn_export.export.precision import from_bytes, raw
from stn_export.export.rows import EXPORTS, Source
from stn_export.native.build import no_compiler
from stn_export.onnx_graph.points import point_values
from stn_export.program.capture import capture
from stn_export.program.formats import load_torchscript, read_metadata
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import Contract
from stn_export.run.examples import random_examples
from stn_export.run.manifest import CHECKPOINT, NetworkDirectory, network_directories
from stn_export.run.network import enter, write_examples
from stn_export.verify import __main__ as verify
from tests.foreign import Sampler
from tests.runs import enter_networks, lively
from tests.zoo import ZOO, enter_zoo

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
    points = {point: f"site0/{point}" for point in ("theta", "grid", "warped")}
    assert props.pop("sites") == [{"image": "images"} | points]
    assert (props["network"], props["classes"]) == ("stn", list("0123456789"))
    assert Contract.from_dict(props["contract"]) == stn.artifacts["matmul-fp32"].contract
    assert props["program_sha256"] == stn.artifacts["program"].sha256
    assert read_metadata(stn.path / "torchscript-fp32.ts") == props


def test_no_path_of_this_machine_is_left_in_a_graph(stn: NetworkDirectory):
    for path in stn.path.glob("*.onnx"):
        assert b".py" not in path.read_bytes()


def test_two_onnx_exports_of_one_module_are_identical():
    first, second = (export_onnx(lively("stn"), IMAGES).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("lowering", "opset"), [("matmul", 20), ("matmul", 15), ("affinegrid", 18)])
def test_an_opset_that_a_lowering_cannot_have(lowering: str, opset: int):
    with pytest.raises(UserError, match=f"{lowering} cannot be written at opset {opset}"):
        export_onnx(lively("stn"), IMAGES, lowering=lowering, opset=opset)


def test_an_unknown_lowering():
    with pytest.raises(UserError, match="unknown lowering 'magic'"):
        export_onnx(lively("stn"), IMAGES, lowering="magic")


@pytest.mark.parametrize("opset", [16, 17, 18, 19])
def test_matmul_at_every_opset_it_claims(opset: int):
    model = lively("stn")
    exported = export_onnx(model, IMAGES, opset=opset, input_names=["images"])
    assert exported.opset_import[0].version == opset
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.rand(5, 3, 32, 32)
    actual = session.run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(actual, model(images).detach().numpy(), atol=1e-5, rtol=0)


def test_exporting_again_does_nothing_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert capsys.readouterr().out.count("up to date") == 20 + 2 * (not no_compiler())
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_an_edited_export_is_written_again(run: Path, stn: NetworkDirectory):
    path = stn.path / "matmul-fp32.onnx"
    good = path.read_bytes()
    path.write_bytes(b"edited")
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert path.read_bytes() == good


def test_an_edited_program_is_not_exported(run: Path, stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    path = stn.path / "program.pt2"
    path.write_bytes(path.read_bytes()[:-1])
    assert cli.run(export.main, ["--run", str(run)]) == 2
    assert "changed after it was written" in capsys.readouterr().err


def test_what_the_report_needs_is_kept(stn: NetworkDirectory):
    details = {name: artifact.details for name, artifact in stn.artifacts.items()}
    cuda = details["affinegrid-fp32"]["cuda"]
    assert (cuda["on_cpu"], len(cuda["fallbacks"]), cuda["graph"]) == (2, 2, False)
    assert "compute nodes on the CPU" in cuda["reason"]
    assert details["gather-fp32"]["cuda"]["on_cuda"] > 50
    assert details["matmul-fp32"]["portability"]["ONNX Runtime CPU"][0] == "runs, tested here"
    assert {name for name, each in details.items() if "portability" in each} == {
        f"{lowering}-fp32" for lowering in ("default", "matmul", "affinegrid", "decomposed", "gather", "folded")
    }


@pytest.mark.slow
def test_a_fixed_batch_and_an_optimised_file_on_request(run: Path, stn: NetworkDirectory):
    assert cli.run(export.main, ["--run", str(run), "--only", "matmul-fp32", "--batch", "4", "--optimise"]) == 0
    fixed, optimised = stn.artifacts["matmul-fp32-batch4"], stn.artifacts["matmul-fp32-optimised"]
    assert fixed.contract.inputs[0].shape == (4, 3, 32, 32)
    assert onnx.load(stn.path / fixed.file).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert sum(optimised.details["operators"].values()) <= optimised.details["nodes_before"]
    assert {node.domain for node in onnx.load(stn.path / optimised.file).graph.node} == {""}
    assert {"site0/theta", "site0/grid", "site0/warped"} == set(point_values(onnx.load(stn.path / optimised.file)))
    for directory in network_directories(run):
        directory.forget(CHECKPOINT)
    enter_networks(run)  # others in their place
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert stn.artifacts[fixed.name].parent_sha256 == stn.artifacts["program"].sha256  # asked for once, kept up to date


def test_the_default_export_fixes_what_its_contract_says(tmp_path: Path):
    directory = enter_zoo(tmp_path, "FlowWarp")
    assert cli.run(export.main, ["--run", str(tmp_path), "--only", "default-fp32"]) == 0
    artifact = directory.artifacts["default-fp32"]
    inputs = onnx.load(directory.path / artifact.file).graph.input
    written = [tuple(dim.dim_value for dim in each.type.tensor_type.shape.dim) for each in inputs]
    assert [spec.shape for spec in artifact.contract.inputs] == written == [(1, 3, 40, 48), (1, 2, 40, 48)]
    assert [spec.shape for spec in artifact.contract.outputs] == [(1, 3, 40, 48), (1, 1, 40, 48)]
    assert cli.run(verify.main, ["--run", str(tmp_path), "--only", "FlowWarp/default-fp32"]) == 0


def test_a_batch_without_images(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(export.main, ["--run", str(run), "--batch", "0"]) == 2
    assert "argument --batch: 0 is less than 1" in capsys.readouterr().err


ROWS = {spec.name: spec for spec in EXPORTS}


def sampler_run(path: Path) -> NetworkDirectory:
    """A run of a network without layers: pictures and matrices in, warped pictures out; no labels."""
    captured = capture(Sampler("bilinear", "border", True).eval(), Sampler.inputs, [("N", 3, 9, 11), ("N", 2, 3)])
    program = Program(captured.exported, contract_of(captured.exported, captured.shapes, None, ["warped"]))
    file = write_examples(path, random_examples(program.contract, 8))
    directory = NetworkDirectory(path / "warp")
    enter(directory, program, file, label="a warp")
    return directory


def rows_are(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(rows, "EXPORTS", tuple(ROWS[name] for name in names))


def test_what_a_network_cannot_have_is_refused_with_why_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    directory = sampler_run(tmp_path)
    rows_are(monkeypatch, "torchscript-fp32", "torchscript-bf16", "matmul-fp32", "plain-fp32", "folded-fp32-uint8")
    assert cli.run(export.main, ["--run", str(tmp_path)]) == 0
    assert "refused: no layer of it may compute in bf16" in capsys.readouterr().out
    content = directory.read()
    assert content.rows == ("torchscript-fp32", "matmul-fp32")
    assert content.refused == {"torchscript-bf16": "no layer of it may compute in bf16"}
    feeds = directory.artifacts["matmul-fp32"].contract.arrays(directory.examples().take(5))
    session = onnxruntime.InferenceSession(directory.path / "matmul-fp32.onnx", providers=["CPUExecutionProvider"])
    scripted = load_torchscript(directory.path / "torchscript-fp32.ts", "cpu")(*map(torch.from_numpy, feeds.values()))
    np.testing.assert_allclose(session.run(["warped"], feeds)[0], scripted.numpy(), atol=1e-5, rtol=0)
    assert cli.run(export.main, ["--run", str(tmp_path), "--list"]) == 0
    assert "warp/torchscript-bf16: refused" in capsys.readouterr().out
    assert cli.run(export.main, ["--run", str(tmp_path), "--only", "torchscript-bf16"]) == 2
    assert "torchscript-bf16 cannot be written: no layer of it may" in capsys.readouterr().err
    assert cli.run(export.main, ["--run", str(tmp_path), "--only", "plain-fp32"]) == 2
    assert "no network of this run takes plain-fp32" in capsys.readouterr().err
    assert directory.read() == content


def test_whatever_an_exporter_raises_is_why_and_what_was_there_is_listed_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_: object) -> tuple[bytes, dict]:
        raise RuntimeError("Failed to convert. Next steps:\n- none") from KeyError("aten.nonsense")

    directory = sampler_run(tmp_path)
    rows_are(monkeypatch, "torchscript-fp32", "matmul-fp32")
    assert cli.run(export.main, ["--run", str(tmp_path)]) == 0
    (directory.path / "matmul-fp32.onnx").unlink()
    monkeypatch.setitem(writing.WRITERS, "onnx", broken)
    assert cli.run(export.main, ["--run", str(tmp_path)]) == 0
    assert directory.read().refused == {"matmul-fp32": "KeyError: 'aten.nonsense'"}
    assert set(directory.artifacts) == {"program", "torchscript-fp32"}
    monkeypatch.setitem(writing.WRITERS, "torchscript", broken)
    (directory.path / "torchscript-fp32.ts").unlink()
    assert cli.run(export.main, ["--run", str(tmp_path)]) == 2  # nothing but the program is left
    assert "cannot be written: KeyError" in capsys.readouterr().err


def test_rows_apply_by_what_a_network_samples_and_takes_and_int8_where_there_are_labels(
    tmp_path: Path, entered_run: Path
):
    def default(directory: NetworkDirectory) -> set[str]:
        return {spec.name for spec in Source(directory).rows if spec.default}

    warp, stn, cnn = sampler_run(tmp_path), NetworkDirectory(entered_run / "stn"), NetworkDirectory(entered_run / "cnn")
    everyones = {"torchscript-fp32", "torchscript-bf16", "default-fp32", "native-fp32"}
    sampling = {"matmul-fp32", "affinegrid-fp32", "decomposed-fp32", "gather-fp32", "folded-fp32", "folded-fp16"}
    raw = {"folded-fp32-uint8", "folded-fp32-uint8-nhwc"}
    assert default(warp) == everyones | sampling
    assert default(stn) == everyones | sampling | raw | {"matmul-int8"}
    assert {name.replace("plain", "folded") for name in default(cnn)} == everyones | raw | {
        "folded-fp32",
        "folded-fp16",
        "folded-int8",
    }
    assert "matmul-int8" in {spec.name for spec in Source(warp).rows}  # on request


def test_int8_is_made_anew_for_other_examples(entered_run: Path):
    network = Source(NetworkDirectory(entered_run / "stn"))
    assert "examples" not in network.settings(ROWS["matmul-fp32"])
    assert network.settings(ROWS["matmul-int8"])["examples"] == network.facts.examples["sha256"]


def test_pictures_are_fed_raw_channel_by_channel_normalised():
    homography = ZOO["Homography"].program()
    pixels, batch = homography.contract.inputs[0].pixels, ZOO["Homography"].inputs(2)
    expected = homography.run(homography.values(batch))
    for layout in ("NCHW", "NHWC"):
        contract = raw(homography.contract, layout)
        assert (contract.inputs[0].dtype, contract.inputs[0].pixels) == ("uint8", None)
        module = from_bytes(homography.module, homography.contract, layout)
        [array] = contract.arrays(batch).values()
        assert contract.inputs[0].fits(array.shape)
        for actual, wanted in zip(module(torch.from_numpy(array)), expected.values(), strict=True):
            torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=0)
    assert len(set(pixels.mean)) == 3
