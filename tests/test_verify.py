import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stn_export import cli, verify
from stn_export.artifacts import ModelDirectory, sha256_of
from stn_export.runners import Runner


def spoil_weights(directory: ModelDirectory, name: str, by: float) -> None:
    """Move one weight of an ONNX artifact and let the manifest say that all is well."""
    artifact = directory.artifacts[name]
    path = directory.path / artifact.file
    model = onnx.load(path)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("head.3.bias"))
    values = numpy_helper.to_array(weights).copy()
    values[4] += by
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, path)
    directory.add(replace(artifact, sha256=sha256_of(path)))


def test_a_good_run_passes(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.count("equal") >= 20
    content = json.loads((run / "verify.json").read_text())
    assert content["passed"] is True
    for check in content["checks"]:
        assert len(check["comparisons"]) == 8
        if check["artifact"].split("-")[1:2] != ["fp32"]:
            continue
        assert check["max_abs"] <= 1e-5
        assert check["agreement"] == 1.0
    accuracies = {check["model"]: check["accuracy"] for check in content["checks"]}
    history = [json.loads(line) for line in (run / "stn" / "history.jsonl").read_text().splitlines()]
    assert accuracies["stn"] == pytest.approx(history[-1]["test_accuracy"], abs=1e-3)


def test_a_wrong_model_is_rejected(run: Path, stn: ModelDirectory, capsys: pytest.CaptureFixture[str]):
    spoil_weights(stn, "matmul-fp32", by=1e-3)
    assert cli.run(verify.main, ["--run", str(run)]) == 1
    out, err = capsys.readouterr()
    assert "stn/matmul-fp32 on onnxruntime-cpu: test images ×1" in err
    assert "FAILED" in out.splitlines()[2]  # failures come first
    assert json.loads((run / "verify.json").read_text())["passed"] is False


def test_json_goes_to_standard_output(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_a_runner_that_raises_is_a_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def crash(self: Runner, images: np.ndarray) -> np.ndarray:
        raise RuntimeError("no kernel for AffineGrid")

    monkeypatch.setattr("stn_export.runners.OnnxRuntime.infer_impl", crash)
    assert cli.run(verify.main, ["--run", str(run)]) == 1
    assert "RuntimeError: no kernel for AffineGrid" in capsys.readouterr().err


def test_no_runner_at_all_is_a_failure(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(verify, "RUNNERS", ())
    assert cli.run(verify.main, ["--run", str(run)]) == 1
    assert "0 of 0 checks" in capsys.readouterr().err


def test_a_missing_artifact_is_no_shorter_table(run: Path, stn: ModelDirectory, capsys: pytest.CaptureFixture[str]):
    (stn.path / "matmul-fp32.onnx").unlink()
    assert cli.run(verify.main, ["--run", str(run)]) == 2
    assert "missing" in capsys.readouterr().err
    assert not (run / "verify.json").exists()


def test_an_empty_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(tmp_path)]) == 2
    assert "holds no trained model" in capsys.readouterr().err
