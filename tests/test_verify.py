import json
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.runners import OnnxRuntime
from stn_export.verify import __main__ as verify


@pytest.mark.slow
def test_a_good_run_passes(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((run / "verify.json").read_text())
    assert content["passed"] is True
    checks = {(check["model"], check["artifact"], check["runner"]): check for check in content["checks"]}
    for check in checks.values():
        assert check["deterministic"]
        assert len(check["comparisons"]) >= 10
        if check["precision"] == "fp32":
            assert check["multiple"] <= 4
            assert check["agreement"] == 1.0
    matmul = checks["stn", "matmul-fp32", "onnxruntime-cpu"]
    assert set(matmul["errors"]) == {"theta", "grid", "warped", "log_probs"}
    assert len(matmul["comparisons"]) == 21
    assert matmul["grid_pixels"]["worst"] < 1e-4
    history = [json.loads(line) for line in (run / "stn" / "history.jsonl").read_text().splitlines()]
    assert matmul["accuracy"] == pytest.approx(history[-1]["test_accuracy"], abs=1e-3)


def test_only_what_is_named_is_checked(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run), "--only", "stn/folded-fp32", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {check["artifact"] for check in checks} == {"folded-fp32"}
    assert not (run / "verify.json").exists()
    assert cli.run(verify.main, ["--run", str(run), "--only", "nothing"]) == 2
    assert "has no artifact or runner nothing" in capsys.readouterr().err


def test_a_runner_that_raises_is_a_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def crash(*_: object) -> None:
        raise RuntimeError("no kernel for AffineGrid")

    monkeypatch.setattr(OnnxRuntime, "infer_impl", crash)
    assert cli.run(verify.main, ["--run", str(run), "--only", "affinegrid-fp32", "checkpoint", "--fail-fast"]) == 1
    out, err = capsys.readouterr()
    assert "stn/affinegrid-fp32 on onnxruntime-cpu: RuntimeError: no kernel for AffineGrid" in err
    assert "FAILED" in out.splitlines()[2]  # failures come first
    assert "cnn/checkpoint" not in out  # it stopped before


def test_no_runner_at_all_is_a_failure(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(verify, "RUNNERS", ())
    assert cli.run(verify.main, ["--run", str(run)]) == 1
    assert "stn/matmul-fp32 on onnxruntime-cpu: onnxruntime-cpu did not run it" in capsys.readouterr().err
    assert json.loads((run / "verify.json").read_text())["passed"] is False


def test_a_runner_that_is_taken_away_turns_the_result_red(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    left = tuple(spec for spec in verify.RUNNERS if spec.name != "torchscript-cpu")
    monkeypatch.setattr(verify, "RUNNERS", left)
    assert cli.run(verify.main, ["--run", str(run), "--fail-fast"]) == 1
    assert "torchscript-cpu did not run it" in capsys.readouterr().err


def test_a_missing_artifact_is_no_shorter_table(run: Path, stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    (stn.path / "matmul-fp32.onnx").unlink()
    assert cli.run(verify.main, ["--run", str(run)]) == 2
    assert "missing" in capsys.readouterr().err
    assert not (run / "verify.json").exists()


def test_an_empty_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(tmp_path)]) == 2
    assert "holds no trained model" in capsys.readouterr().err
