"""``bench FILE.onnx``: anyone's file in every runner at hand, by the suites' method, and two files in turns."""

import json
import math
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser

from stn_export import cli
from stn_export.bench import __main__ as bench
from stn_export.bench import files
from stn_export.bench.files import FileBench, batch_of, bench_files, card, compare_files, subject_of, time_file
from stn_export.bench.plan import GRIDS
from stn_export.bench.timing import Budget
from stn_export.program.specs import Arrays
from stn_export.results.statistics import METHOD, estimate
from stn_export.runners.onnx_runtime import OnnxRuntime

QUICK = replace(GRIDS["quick"], row_seconds=0.02, warmup_seconds=0.01, blocks=10, block_seconds=0.002)
REFERENCE = files.REFERENCE


def chain(length: int, size: int = 64, open_sizes: str = "N") -> onnx.ModelProto:
    """So many products of a matrix, one after the other."""
    steps = "".join(f"x{index + 1} = MatMul (x{index}, w) " for index in range(length))
    signature = f"(float[{open_sizes},{size}] x0) => (float[{open_sizes},{size}] x{length})"
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {signature} {{ {steps} }}')
    weights = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32) / size
    made.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.GRIDS, "quick", QUICK)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Whatever a test sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(chain(1), "short.onnx")
    onnx.save(chain(12), "long.onnx")
    Path("words.onnx").write_text("words", encoding="utf-8")
    return Path("short.onnx")


@pytest.fixture
def of_the_reference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other runner: they take seconds to load."""
    monkeypatch.setattr(files, "RUNNERS", (REFERENCE,))


def test_every_runner_at_hand_is_timed_and_the_others_say_why(file: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(bench.main, [str(file), "--json", "--device", "cpu"]) == 0
    content = json.loads(capsys.readouterr().out)
    rows = {(each["runner"], each["batch"]): each for each in content["timings"]}
    assert {("onnxruntime-cpu", 1), ("onnxruntime-cpu", files.MANY)} <= set(rows)
    openvino = {("openvino-cpu", 1), ("openvino-cpu", files.MANY)} & set(rows)
    assert len(openvino) == 2 or "openvino" in content["not_timed"]["openvino-cpu"]
    assert "--runtimes" in content["not_timed"]["tract-cpu"]
    for (_, batch), row in rows.items():
        assert 0 < row["p50_low"] <= row["p50"] <= row["p50_high"]
        assert row["p50"] <= row["p90"]
        assert row["per_second"] == pytest.approx(batch / row["p50"])
        assert row["per_second_low"] <= row["per_second"] <= row["per_second_high"]
        assert row["agrees"]
        assert row["off"] < 1e-5
    assert content["files"][0]["inputs"] == {"x0": [1, 64]}
    assert content["threads"] == 1


@pytest.mark.usefixtures("of_the_reference_only")
def test_two_files_take_turns_and_the_shorter_is_faster(file: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(bench.main, [str(file), "long.onnx"]) == 0
    shown = capsys.readouterr().out
    assert "short.onnx against long.onnx, in turns" in shown
    assert "in turns   short.onnx takes 0." in shown
    assert "onnxruntime-cpu: faster" in shown
    assert "outputs    of both files:" not in shown  # they are called otherwise
    ours, theirs = (subject_of(Path(name), str(name), {}, None) for name in (file, "long.onnx"))
    assert compare_files(theirs, ours, REFERENCE, QUICK, Budget()).verdict == "slower"


@pytest.mark.usefixtures("of_the_reference_only")
def test_given_sizes_arrays_and_threads_are_what_is_timed(file: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(bench.main, [str(file), "--json", "--shape", "x0=5,64", "--threads", "2"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in content["timings"]] == [5]
    assert (content["files"][0]["inputs"], content["threads"]) == ({"x0": [5, 64]}, 2)
    assert torch.get_num_threads() == 1
    np.savez("arrays.npz", x0=np.zeros((7, 64), np.float32))
    assert cli.run(bench.main, [str(file), "--json", "--inputs", "arrays.npz"]) == 0
    assert [row["batch"] for row in json.loads(capsys.readouterr().out)["timings"]] == [7]


def test_a_larger_batch_is_what_a_runner_is_given(file: Path):
    subject = subject_of(file, file.name, {}, None)
    assert subject.batches == (1, files.MANY)
    step, outputs = subject.load(REFERENCE, files.MANY)
    assert outputs["x1"].shape == (files.MANY, 64)
    assert step()["x1"].shape == (files.MANY, 64)
    assert subject.load(REFERENCE, 1)[1]["x1"].shape == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["short.onnx", "--shape", "x0=5,63"], "x0 cannot be (5, 63)"),
        (["short.onnx", "--shape", "y=5,63"], "no input y"),
        (["short.onnx", "--inputs", "none.npz"], "none.npz"),
        (["short.onnx", "long.onnx", "short.onnx"], "3 files are named"),
        (["short.onnx", "--suites", "latency"], "--suites has no effect"),
        (["short.onnx", "-k", "latency"], "-k has no effect"),
        (["short.onnx", "--device", "tpu"], "unknown device"),
        (["short.onnx", "--budget", "0.000001"], "no runner could time it"),
        (["none.onnx"], "none.onnx"),
        (["words.onnx"], "is not an ONNX file"),
        (["--shape", "x0=5,64"], "--shape is of a file"),
        (["--threads", "2"], "--threads is of a file"),
    ],
)
@pytest.mark.usefixtures("of_the_reference_only")
def test_a_mistake_is_one_line(file: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(bench.main, arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("of_the_reference_only")
def test_two_files_that_give_other_outputs_are_said_to(file: Path, capsys: pytest.CaptureFixture[str]):
    other = chain(1)
    weights = numpy_helper.to_array(other.graph.initializer[0])
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(1.5 * weights, "w"))
    onnx.save(other, "other.onnx")
    assert cli.run(bench.main, [str(file), "other.onnx", "--shape", "x0=4,64"]) == 0
    shown = capsys.readouterr().out
    [apart] = re.findall(r"outputs    of both files DIFFER by (\S+) of the largest", shown)
    assert 1e-3 < float(apart) < 1
    assert "stn-export verify short.onnx other.onnx" in shown


class Wrong(OnnxRuntime):
    """Gives something else, and at once."""

    def infer_impl(self, feeds: Arrays) -> Arrays:
        if not hasattr(self, "once"):
            self.once = {name: 1.01 * each for name, each in super().infer_impl(feeds).items()}
        return self.once


class Refusing(OnnxRuntime):
    """Loads nothing."""

    def load(self, path: Path) -> None:
        raise RuntimeError("no such operator")


def test_what_gives_something_else_is_never_the_fastest_and_a_refusal_costs_a_row(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    wrong, refusing = replace(REFERENCE, name="wrong-cpu", load=Wrong), replace(REFERENCE, name="no-cpu", load=Refusing)
    monkeypatch.setattr(files, "RUNNERS", (wrong, refusing, REFERENCE))
    subject = subject_of(file, file.name, {}, None)
    result = FileBench((subject,))
    bench_files(result, "cpu", QUICK, Budget())
    rows = {(row.runner, row.batch): row for row in result.timings}
    assert not rows["wrong-cpu", 1].agrees
    assert rows["wrong-cpu", 1].p50 < rows[REFERENCE.name, 1].p50
    assert result.fastest(subject).runner == REFERENCE.name
    lines = dict(card(result))
    assert lines["outputs"] == "0 of 2 timings give what onnxruntime-cpu gives; not short.onnx in wrong-cpu"
    assert "onnxruntime-cpu" in lines["throughput"]
    assert "no such operator" in result.not_timed["short.onnx in no-cpu at batch 1"]


def test_a_file_that_draws_random_numbers_differs_from_nobody(tmp_path: Path):
    text = "y = RandomNormalLike <mean = 0.0, scale = 1.0> (x)"
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N,4] x) => (float[N,4] y) {{ {text} }}'
    )
    onnx.save(made, tmp_path / "random.onnx")
    subject = subject_of(tmp_path / "random.onnx", "random.onnx", {}, None)
    row = time_file(subject, REFERENCE, 1, QUICK)
    assert (subject.steady, row.off, row.agrees) == (False, None, True)


@pytest.mark.parametrize(
    ("shapes", "batch"), [([(3, 4), (3, 5)], 3), ([(3, 4), (2, 5)], 1), ([(512,), (512,)], 1), ([(3, 4), ()], 1)]
)
def test_examples_are_counted_where_all_arrays_hold_as_many(shapes: list[tuple[int, ...]], batch: int):
    assert batch_of(shapes) == batch


def perf_test(path: Path, feeds: Arrays, seconds: float) -> float:
    """Median seconds of a call, timed by nothing of this package: as ``onnxruntime_perf_test -m times`` does it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    taken, end = [], time.monotonic_ns() + 1.5 * seconds * 1e9
    while time.monotonic_ns() < end:
        begun = time.monotonic_ns()
        session.run(None, feeds)
        taken.append((time.monotonic_ns() - begun) / 1e9)
    return statistics.median(taken[len(taken) // 3 :])


def agreement(path: Path, rounds: int = 12) -> tuple[float, float]:
    """The ends of the 95 % interval of what ``bench`` says by what ``perf_test`` says, taken in turns.

    A load of a file differs from another for as long as it lives, by ``METHOD.load_spread``; every round loads anew.
    Calls are so long that the half microsecond which a step of Python's costs does not count.
    """
    subject = subject_of(path, path.name, {"x0": (16, 256)}, None)
    grid, logs = replace(QUICK, row_seconds=0.1, warmup_seconds=0.05), []
    for index in range(rounds):
        if index % 2:
            other = perf_test(path, subject.inputs.draw(), 0.1)
            ours = time_file(subject, REFERENCE, 16, grid).p50
        else:
            ours = time_file(subject, REFERENCE, 16, grid).p50
            other = perf_test(path, subject.inputs.draw(), 0.1)
        logs.append(math.log(ours / other))
    found = estimate(logs)
    return math.exp(found.low - METHOD.load_spread), math.exp(found.high + METHOD.load_spread)


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 8])
def test_bench_agrees_with_a_timing_written_independently(length: int, tmp_path: Path):
    onnx.save(chain(length, 256), tmp_path / "m.onnx")
    low, high = agreement(tmp_path / "m.onnx")
    assert low <= 1 <= high, f"{low:.3f} to {high:.3f}"


@pytest.mark.slow
def test_a_clock_that_counts_half_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    onnx.save(chain(8, 256), tmp_path / "m.onnx")
    right = files.timed
    monkeypatch.setattr(files, "timed", lambda step: right(step) / 2)
    low, high = agreement(tmp_path / "m.onnx")
    assert high < 1, f"{low:.3f} to {high:.3f}"
