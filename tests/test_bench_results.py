"""What is kept of a run, RESULTS.md, the floors, the proof's judgement and the steps on a GPU machine."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

from benchmarks.tools import gpu_results, kept, proof, results_page
from benchmarks.tools.gpu_results import GPU_RESULTS, Step, bounded, perform, with_onnx_runtime
from benchmarks.tools.kept import PROOF_SCHEMA, file_name
from benchmarks.tools.proof import PROOF
from stn_export import cli
from stn_export.bench.profiling import all_work, work
from stn_export.cli.options import PARSERS
from stn_export.errors import UserError
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from stn_export.run.schemas import read_bench
from stn_export.run.store import write_json
from tests import made_records
from tests.bench_files import prove, rows_of, write
from tests.runs import built_in

PEAK = {"flops": {"fp32": 1e11}, "widths": {"256": 1e11}, "bytes": 1e10, "source": "measured"}


@pytest.fixture
def kept_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that holds one kept run, whose file was proved equal in two of its runners."""
    monkeypatch.setattr(kept, "measured_peak", lambda threads: PEAK)
    prove(tmp_path, "onnxruntime-cpu", "torchscript-cpu")
    bench = write(tmp_path / "bench.json", rows_of(0))
    arguments = ["--keep", str(bench), "--kept", str(tmp_path / "kept"), "--out", str(tmp_path / "RESULTS.md")]
    assert cli.run(results_page.main, arguments) == 0
    return tmp_path / "kept"


def proof_row(ratio: float, low: float, high: float, verdict: str) -> dict:
    return {"ratio": ratio, "ratio_low": low, "ratio_high": high, "verdict": verdict} | {
        "blocks": 25,
        "disturbed_blocks": 1,
    }


def test_a_kept_file_is_small_and_still_a_benchmark_file(kept_files: Path):
    path = kept_files / "test-cpu-1-ghz-2026-01-31.json"
    content = read_bench(path)
    assert path.stat().st_size < 40_000
    assert len(content["benchmarks"]) == len(rows_of(0))
    assert all("data" not in row["stats"] and row["stats"]["median"] for row in content["benchmarks"])
    assert content["peak"] == PEAK
    assert set(content["work"]["stn"]) == {"1", "16", "64", "256"}


def test_results_name_the_best_that_is_proved_and_its_share_of_the_peak(kept_files: Path):
    text = (kept_files.parent / "RESULTS.md").read_text(encoding="utf-8")
    assert "- For latency: onnxruntime-cpu some-fp32, 333 µs (330 to 337 µs) for one example, inputs in place." in text
    assert "- For throughput: onnxruntime-cpu some-fp32, 3,000 examples/s at batch" in text
    assert "openvino-cpu some-fp32, " not in text  # faster, and wrong
    assert "### What sampling costs: spatial transformer against plain CNN" in text
    assert "### Against eager PyTorch" in text
    # 4,000,000 FLOPs in 333 µs are 12 GFLOP/s, 12 % of 100
    assert "| spatial transformer | 1 | 4.0 M | – | 0.10 / 0.95 MiB | 20 | 333 µs |" in text
    assert "| onnxruntime-cpu some-fp32 | 12.0 | 12.0% of those stated |" in text
    assert "Peak: 100 GFLOP/s in float32 (100 at 256 bits), 10.0 GB/s (measured)." in text


def test_what_is_kept_of_a_run_that_nobody_verified_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "measured_peak", lambda threads: PEAK)
    results_of = results_page.document(kept.keep(write(tmp_path / "bench.json", rows_of(0)), tmp_path / "kept").parent)
    assert "- On cpu nothing is named the fastest" in results_of
    assert "for one example" not in results_of


def test_results_show_the_proof(kept_files: Path):
    trial = {"target": "stn-x", "trial": "A/A", "batch": 1, "found": 19, "passed": True}
    rows = [proof_row(1.0, 0.99, 1.01, "same")] * 19 + [proof_row(1.02, 1.01, 1.03, "slower")]
    content = {"datetime": "2026-01-31T00:00:00", "grid": "quick", "trials": [trial | {"rows": rows}]}
    write_json(kept_files / "proof-x.json", PROOF_SCHEMA, content)
    (kept_files / "old-report.json").write_text("{}", encoding="utf-8")
    line = "| stn-x | A/A | 1 | 1 | 19 of 20 | – | 1.000 to 1.020 | ±1.0% | 20 of 500 | 19 same, 1 slower | passed |"
    assert line in results_page.document(kept_files)


def test_names_of_files():
    environment = {"cpu": "Intel(R) Xeon(R) Processor", "gpu": "NVIDIA H100 80GB HBM3"}
    assert file_name(environment, "cuda", "2026-01-31T01:02") == "nvidia-h100-80gb-hbm3-2026-01-31.json"
    assert file_name(environment, "cpu", "2026-01-31") == "intel-xeon-processor-2026-01-31.json"


def counted(name: str, batch: int) -> dict[str, int]:
    return work(built_in(name), (torch.empty(batch, 3, 32, 32),))


def test_the_work_of_the_plain_cnn():
    """By hand: 2 × outputs × inputs a window, over both convolutions and both layers of the head."""
    convolutions = 2 * (10 * 28 * 28 * 3 * 25 + 20 * 10 * 10 * 10 * 25)
    found = counted("cnn", 7)
    assert found["flops"] == 7 * (convolutions + 2 * (500 * 50 + 50 * 10))
    assert found["bytes_fused"] == 4 * (31_340 + 7 * 3 * 32 * 32 + 7 * 10)
    assert found["bytes_unfused"] > found["bytes_fused"]
    assert found["launches"] == 10


def test_the_transformer_costs_more():
    stn, cnn = counted("stn", 1), counted("cnn", 1)
    assert all(stn[name] > figure for name, figure in cnn.items())
    assert stn["launches"] == 21


def test_work_is_counted_in_the_file_for_every_network_and_batch_that_was_timed():
    class Timed:
        program = built_in("cnn")

        def shapes(self, batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.empty(batch, 3, 32, 32),)

    rows = made_records.timings({"network": "a", "batch": batch} for batch in (1, 7, 7))
    found = all_work({"a": Timed()}, rows)
    assert list(found["a"]) == ["1", "7"]
    assert found["a"]["7"] == counted("cnn", 7)


class InPlace(nn.Module):
    """A product, a sum in place, a view of it."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return (values @ values).add_(1.0).flatten()


def test_what_is_done_in_place_is_work_and_a_view_is_none():
    captured = capture(InPlace().eval(), (torch.rand(4, 4),), [(4, 4)])
    found = work(Program(captured.exported, contract_of(captured.exported)), (torch.empty(4, 4),))
    assert (found["flops"], found["launches"]) == (2 * 4**3, 2)
    assert (found["bytes_fused"], found["bytes_unfused"]) == (2 * 64, 3 * 64 + 2 * 64)


@pytest.mark.parametrize(("held", "misled", "passed"), [(20, 0, True), (16, 0, True), (15, 0, False), (19, 1, False)])
def test_the_proof_is_strict(held: int, misled: int, passed: bool):
    close = proof_row(1.01, 1.005, 1.02, "slower")  # misses the truth, by less than counts
    rows = [proof_row(1.0, 0.99, 1.01, "same")] * held + [close] * (PROOF.trials - held - misled)
    rows += [proof_row(1.05, 1.04, 1.06, "slower")] * misled
    assert proof.judge(0.0, rows) == (held, passed)


def test_sixteen_of_twenty_are_what_an_honest_interval_hardly_ever_misses():
    assert stats.binom.cdf(PROOF.holding - 1, PROOF.trials, 0.95) == pytest.approx(1 / 400, rel=0.05)


@pytest.mark.parametrize(
    ("slowdown", "others", "passed"),
    [(0.15, [], True), (0.15, ["cannot tell"], False), (0.05, ["cannot tell"] * 9, True), (0.05, ["faster"], False)],
)
def test_a_large_planted_slowdown_must_be_found_and_none_be_called_faster(slowdown: float, others: list, passed: bool):
    found = 20 - len(others)
    held = proof_row(1 + slowdown, 1 + slowdown - 0.01, 1 + slowdown + 0.01, "slower")
    rows = [held] * found + [proof_row(1.0, 0.9, 1.4, said) for said in others]
    assert proof.judge(slowdown, rows) == (found, passed)


@pytest.mark.slow
def test_the_proof_runs_and_is_kept(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(proof, "PROOF", replace(PROOF, batches=(1,), planted=(3.0,), certain=3.0, holding=0))
    monkeypatch.setattr(proof, "TRIALS", {"planted 300%": 3.0})
    arguments = ["--run", str(trained_run), "--trials", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.run(proof.main, arguments) == 0  # four times as slow, on a machine however busy
    content = json.loads(next(tmp_path.glob("proof-*.json")).read_text(encoding="utf-8"))
    found = [(trial["target"], trial["trial"], trial["batch"], trial["found"]) for trial in content["trials"]]
    assert ("stn-eager-cpu-program", "planted 300%", 1, 1) in found
    assert ("stn-onnxruntime-cpu-folded-fp32", "planted 300%", 1, 1) in found
    assert cli.run(proof.main, [*arguments, "--target", "nothing"]) == 2
    assert "no target nothing on cpu" in capsys.readouterr().err


def test_what_the_proof_cannot_believe_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    row = proof_row(1.0, 0.99, 1.01, "same")
    monkeypatch.setattr(proof, "chosen_targets", lambda run, device, name: [])
    monkeypatch.setattr(
        proof,
        "prove",
        lambda targets, grid, trials: [
            {"target": "a", "trial": "planted 15%", "batch": 1, "found": 0, "passed": False, "rows": [row]}
        ],
    )
    assert cli.run(proof.main, ["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "results from this machine are unreliable: planted 15% of a at batch 1" in capsys.readouterr().err
    assert list(tmp_path.glob("proof-*.json"))


OPTIONS = gpu_results.build_parser()


def options_for(run: Path, *more: str) -> argparse.Namespace:
    return OPTIONS.parse_args(["--run", str(run), "--device", "cpu", "--out", str(run / "out"), *more])


def script(folder: Path, text: str, name: str = "step", limit: float = 60) -> Step:
    """A step that runs a module with this text; the folder must be on the path."""
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return Step(name, name, limit)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_a_step_that_was_done_is_not_done_again(scripts: Path, tmp_path: Path):
    counting = script(scripts, f"open({str(tmp_path / 'count')!r}, 'a').write('x')")
    states = [perform(counting, options_for(tmp_path), 100).state for _ in range(2)]
    assert states == ["done", "kept"]
    (tmp_path / "any").mkdir()
    (tmp_path / "any" / "manifest.json").write_text("{}", encoding="utf-8")  # another network
    assert perform(counting, options_for(tmp_path), 100).state == "done"
    assert (tmp_path / "count").read_text(encoding="utf-8") == "xx"


def test_a_step_that_fails_leaves_no_marker(scripts: Path, tmp_path: Path):
    failing = script(scripts, "raise SystemExit(3)")
    assert [perform(failing, options_for(tmp_path), 100).state for _ in range(2)] == ["failed", "failed"]


def test_a_step_that_takes_too_long_is_interrupted_and_may_still_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its time is counted from when it has begun: how long Python takes to start is the machine's affair."""
    path, ready = tmp_path / "kept", tmp_path / "ready"
    text = (
        f"import pathlib, time\ntry:\n  pathlib.Path({str(ready)!r}).touch(); time.sleep(600)\n"
        f"except KeyboardInterrupt: pathlib.Path({str(path)!r}).write_text('partial')"
    )
    wait = subprocess.Popen.wait

    def patient(process: subprocess.Popen, limit: float | None = None) -> int:
        while limit == 1.0 and not ready.exists():  # the limit begins when the step has begun
            time.sleep(0.01)
        return wait(process, limit)

    monkeypatch.setattr(subprocess.Popen, "wait", patient)
    assert bounded((sys.executable, "-c", text), 1.0) is None
    assert path.read_text(encoding="utf-8") == "partial"


def test_no_step_begins_when_no_time_is_left(tmp_path: Path):
    assert perform(Step("step", "this", 60), options_for(tmp_path), GPU_RESULTS.shortest / 2).state == "not begun"


def test_onnx_runtime_from_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The process starts anew, so that all that it says of ONNX Runtime is said of that one; and it does so once."""
    begun = []
    monkeypatch.setattr(os, "execve", lambda *said: begun.append(said))
    with pytest.raises(UserError, match="holds no onnxruntime"):
        with_onnx_runtime(tmp_path)
    (tmp_path / "onnxruntime").mkdir()
    monkeypatch.setenv("PYTHONPATH", "other")
    with_onnx_runtime(tmp_path)
    [(_, arguments, environment)] = begun
    assert arguments == sys.orig_argv
    assert environment["PYTHONPATH"] == f"{tmp_path}:other"
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    with_onnx_runtime(tmp_path)
    assert len(begun) == 1


@pytest.mark.slow
def test_all_is_kept_though_a_step_fails(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run, out = tmp_path / "run", tmp_path / "out"
    steps = (script(scripts, "", "good"), script(scripts, "raise SystemExit(1)", "bad"))
    monkeypatch.setattr(gpu_results, "STEPS", steps)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(scripts), str(Path(__file__).parent.parent)]))
    run.mkdir()
    write(run / "bench.json", rows_of(0))
    assert cli.run(gpu_results.main, ["--device", "cpu", "--run", str(run), "--out", str(out)]) == 1
    assert "bad (failed); run it again to go on" in capsys.readouterr().err
    names = sorted(path.name.split("-")[0] for path in out.iterdir())
    assert names == ["RESULTS.md", "steps", "test"]


def test_the_table_of_steps(tmp_path: Path):
    options = options_for(tmp_path / "a run", "--data", "some where")
    commands = {step.name: step.words(options) for step in gpu_results.STEPS}
    assert list(commands)[:4] == ["train", "export", "verify", "overhead"]
    assert list(commands)[-1] == "proof"
    assert "some where" in commands["train"]
    assert "--dataset" in commands["training"]
    for name, words in commands.items():
        assert str(tmp_path / "a run") in " ".join(words)
        parser = PARSERS.get(words[2].removeprefix("stn_export."))
        _, unknown = parser().parse_known_args(words[3:]) if parser else (None, [])
        assert set(unknown) <= {"--benchmark-only"}, name


def test_the_plan_counts_what_a_gpu_would_do(run: Path, capsys: pytest.CaptureFixture[str]):
    """On a machine without one as on a machine with one."""
    assert cli.run(gpu_results.main, ["--plan", "--run", str(run)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"latency +120 +(\d\d+) rows, \d+ s of timing", said)
    assert re.search(r"verify +120 +(\d\d+) checks", said)
    if not torch.cuda.is_available():
        assert "not to be run here: PyTorch sees no GPU here" in said
