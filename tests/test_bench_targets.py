"""What the benchmarks time: which targets, set against what, fed with what."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from stn_export.bench import memory, targets
from stn_export.bench.clocks import Reported
from stn_export.bench.grids import GRIDS, BenchGrid, Pick
from stn_export.bench.memory import Memory, cache_bytes
from stn_export.bench.startup import start, summary
from stn_export.bench.targets import BASELINES, Case, Target, cases, find_targets, left_out, picked, takes
from stn_export.errors import UserError
from stn_export.runners import RUNNERS, Step
from stn_export.runners.pytorch import Eager
from stn_export.train.data import Dataset, contract_batch, example_images

SUITES = ("latency", "cold", "request", "throughput", "startup", "breakdown", *BASELINES)
FACTS = {
    *("model", "artifact", "sha256", "format", "lowering", "precision", "input", "runner", "device", "batch"),
    *("threads", "tf32", "options", "regime", "inputs", "file_bytes", "host_bytes", "device_bytes", "clock"),
}


@pytest.fixture(scope="session")
def found(trained_run: Path) -> list[Target]:
    return find_targets(trained_run, "cpu")


@pytest.fixture
def target(found: list[Target]) -> Target:
    return next(each for each in found if str(each) == "stn-onnxruntime-cpu-folded-fp32")


def rows(suite: str, found: list[Target], grid: BenchGrid) -> list[Case]:
    return list(cases(suite, found, getattr(grid, suite)))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_of_every_grid_times_something_once(found: list[Target], suite: str, grid: BenchGrid):
    names = Counter(str(case) for case in rows(suite, found, grid))
    assert names
    assert set(names.values()) == {1}


def test_the_questions_of_a_user_are_answered_by_the_quick_grid(found: list[Target]):
    quick = GRIDS["quick"]
    against = {(str(case.target), case.batch): str(case.baseline) for case in rows("overhead", found, quick)}
    assert against["stn-onnxruntime-cpu-folded-fp32", 1] == "cnn-onnxruntime-cpu-plain-fp32"
    assert against["stn-eager-cpu-checkpoint", 64] == "cnn-eager-cpu-checkpoint"
    eager = {str(case.target): str(case.baseline) for case in rows("eager", found, quick)}
    assert eager["stn-onnxruntime-cpu-folded-fp32"] == "stn-eager-cpu-checkpoint"
    assert "stn-eager-cpu-checkpoint" not in eager
    default = {str(case.target): str(case.baseline) for case in rows("default", found, quick)}
    assert set(default.values()) == {"stn-onnxruntime-default-cpu-default-fp32"}
    assert {"stn-onnxruntime-cpu-folded-fp32", "stn-eager-cpu-checkpoint"} <= set(default)
    lowering = {str(case.target): str(case.baseline) for case in rows("lowering", found, quick)}
    assert lowering["stn-onnxruntime-cpu-matmul-fp32"] == "stn-onnxruntime-cpu-decomposed-fp32"


def test_the_default_export_is_set_against_itself_only(found: list[Target]):
    both = [case for case in rows("overhead", found, GRIDS["full"]) if case.target.artifact.lowering == "default"]
    assert both
    assert all(case.baseline.artifact.lowering == "default" for case in both)


def test_what_has_a_batch_of_its_own_is_timed_at_that_only(found: list[Target]):
    [default] = [each for each in found if str(each) == "stn-onnxruntime-default-cpu-default-fp32"]
    assert [case.batch for case in picked([default], [Pick(batches=(1, 2, 64))])] == [1]


@pytest.mark.parametrize(
    ("pick", "taken"),
    [
        (Pick(), True),
        (Pick(models=("cnn",)), False),
        (Pick(runners=("onnx*",)), True),
        (Pick(runners=("eager-*", "openvino-*")), False),
        (Pick(lowerings=(None, "folded")), True),
        (Pick(precisions=("fp16",)), False),
        (Pick(inputs=("uint8",)), False),
    ],
)
def test_a_pick_takes_what_it_names(target: Target, pick: Pick, taken: bool):
    assert takes(pick, target) is taken


def test_what_is_slow_to_start_comes_only_where_asked_for(found: list[Target]):
    usual, more = ({case.target.runner.name for case in picked(found, [Pick(slow=slow)])} for slow in (False, True))
    slow = {spec.name for spec in RUNNERS if spec.slow and spec.device == "cpu" and not spec.unavailable()}
    assert more - usual == slow


def test_one_buffer_or_enough_to_leave_the_cache(target: Target, digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    images = example_images(digits, 4)
    [hot] = target.batches(images)
    assert hot.shape == (4, 3, 32, 32)
    monkeypatch.setattr(targets, "cache_bytes", lambda device: 10 * hot.nbytes)
    cold = replace(target, rotated=example_images(digits, 13)).batches(images)
    assert sum(batch.nbytes for batch in cold) > 10 * hot.nbytes
    assert not any(np.shares_memory(cold[0], other) for other in cold[1:])
    np.testing.assert_array_equal(cold[0], hot)
    assert not np.array_equal(cold[1], hot)
    assert all(batch.std() > 0 for batch in cold)  # real images, never zeros


@pytest.mark.parametrize("regime", ["device", "request", "offline"])
def test_a_row_says_what_was_timed(target: Target, digits: Dataset, regime: str):
    timed = replace(target, regime=regime)
    step = timed.step(example_images(digits, 2))
    assert step.clock() <= step.clock()
    facts = timed.facts(2)
    assert set(facts) == FACTS
    assert (facts["regime"], facts["batch"], facts["tf32"], facts["device"]) == (regime, 2, False, "cpu")
    assert facts["inputs"].startswith("hot: one buffer")
    assert facts["file_bytes"] == target.path.stat().st_size
    assert facts["host_bytes"] >= 0
    assert facts["device_bytes"] is None
    json.dumps(facts)


def test_a_cold_row_says_how_many_buffers(target: Target, digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "cache_bytes", lambda device: 2**20)
    cold = replace(target, regime="device", rotated=example_images(digits, 100))
    cold.step(example_images(digits, 1))
    assert cold.facts(1)["inputs"] == "cold: 87 buffers, 1 MiB, in turn"


def test_a_request_gives_the_answer_to_the_host(target: Target, digits: Dataset):
    assert isinstance(replace(target, regime="request").step(example_images(digits, 2))(), np.ndarray)


def test_a_wrong_step_is_not_timed(target: Target, digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    runner = target.open()
    wrong = np.zeros((2, 10), np.float32)
    monkeypatch.setattr(type(runner), "bind_one", lambda self, images: Step(lambda: wrong))
    monkeypatch.setattr(type(runner), "read", lambda self, result: result)
    with pytest.raises(AssertionError, match="stn-onnxruntime-cpu-folded-fp32"):
        target.step(example_images(digits, 2))


def test_what_is_verified_at_one_batch_size_is_checked_at_the_timed_one(found: list[Target], digits: Dataset):
    """A compiler that is wrong for one batch size: its step and its ``infer`` agree with each other."""
    [eager] = [each for each in found if str(each) == "stn-eager-cpu-checkpoint"]

    class Off(Eager):
        def read(self, result: Tensor) -> np.ndarray:
            return super().read(result) + (0.1 if len(result) == 2 else 0.0)

    off = replace(eager, runner=replace(eager.runner, name="off", load=Off, verify_batch=64))
    off.step(example_images(digits, 3))
    with pytest.raises(AssertionError, match="does not give what eager does at batch 2"):
        off.step(example_images(digits, 2))


def test_what_cannot_be_timed_is_named_with_the_reason(trained_run: Path):
    reasons = left_out(trained_run, "auto")
    assert set(reasons) >= {spec.name for spec in RUNNERS if spec.unavailable()}
    assert all(reasons.values())
    assert not [name for name in left_out(trained_run, "cpu") if "cuda" in name]


def test_a_device_without_runners(trained_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.targets.RUNNERS", ())
    with pytest.raises(UserError, match="nothing can run on cpu"):
        find_targets(trained_run, "cpu")


def test_the_cache_is_the_machines_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for index, size in enumerate(("48K", "2048K", "30M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    monkeypatch.setattr(memory, "CACHES", tmp_path)
    assert cache_bytes("cpu") == 30 * 2**20
    monkeypatch.setattr(memory, "CACHES", tmp_path / "nowhere")
    assert cache_bytes("cpu") == memory.UNKNOWN_CACHE


def test_memory_sees_a_peak_that_is_gone_again():
    with Memory("cpu") as taken:
        np.ones(64 * 2**20, np.uint8).sum()
    assert 60 * 2**20 < taken.host_bytes < 200 * 2**20


def test_something_that_reports_its_own_seconds():
    step = Reported(lambda: 2.0).step
    before = step.clock()
    step()
    step()
    assert step.clock() - before == 4.0


@pytest.mark.slow
def test_a_fresh_process_gives_its_first_answer(target: Target, digits: Dataset):
    batch = contract_batch(example_images(digits, 1), target.artifact.input_contract)
    figures = summary([start(target, batch, 1)])
    assert all(figures[name] > 0 for name in ("import_seconds", "load_seconds", "first_seconds"))
    assert figures["threads"] == figures["n"] == 1
    with pytest.raises(RuntimeError, match=f"a fresh process with {target} failed"):
        start(target, batch[:, :2], 1)
