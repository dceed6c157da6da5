"""What the benchmarks time: which targets, set against what, fed with what."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_export.bench import machine, targets
from stn_export.bench.cases import BASELINES, Case, cases, own_batch, picked, takes
from stn_export.bench.machine import Memory, Reported, cache_bytes
from stn_export.bench.plan import BEST, GRIDS, SHIPPED, BenchGrid, Pick
from stn_export.bench.startup import start, summary
from stn_export.bench.targets import Target, check_same, find_targets, left_out
from stn_export.bench.timing import on_one_clock
from stn_export.errors import UserError
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import Arrays
from stn_export.run.examples import Examples
from stn_export.run.manifest import PLAIN, SUBJECT, NetworkDirectory, network_directories
from stn_export.run.network import enter, write_examples
from stn_export.runners import RUNNERS, Step
from stn_export.runners.pytorch import Eager
from tests.foreign import TwoInputs
from tests.zoo import ZOO

SUITES = ("latency", "cold", "request", "throughput", "startup", "breakdown", *BASELINES)
FACTS = {
    *(
        "network",
        "label",
        "role",
        "artifact",
        "sha256",
        "examples_sha256",
        "format",
        "lowering",
        "precision",
        "input",
        "runner",
        "device",
    ),
    *("batch", "sizes", "threads", "tf32", "options", "regime", "inputs", "file_bytes", "host_bytes", "device_bytes"),
    "clock",
}


@pytest.fixture(scope="session")
def found(trained_run: Path) -> list[Target]:
    return find_targets(trained_run, "cpu")


@pytest.fixture
def target(found: list[Target]) -> Target:
    return next(each for each in found if str(each) == "stn-onnxruntime-cpu-folded-fp32")


def rows(suite: str, found: list[Target], grid: BenchGrid) -> list[Case]:
    return list(cases(suite, found, getattr(grid, suite)))


def entered(run: Path, program: Program, inputs: Arrays, batched: tuple[str, ...], role: str = SUBJECT) -> list[Target]:
    """The targets of a run that holds one network, which nothing was exported of."""
    file = write_examples(run, Examples({name: torch.from_numpy(each) for name, each in inputs.items()}, batched))
    directory = NetworkDirectory(run / "mine")
    enter(directory, program, file, label="my network", role=role)
    directory.plan(("program",), {})
    return find_targets(run, "cpu")


def by_name(found: list[Target], name: str) -> Target:
    return next(each for each in found if str(each) == name)


@pytest.fixture
def two_inputs(tmp_path: Path) -> list[Target]:
    """Pictures, and what is not batched: it is the same for all; the outputs are floats and whole numbers."""

    class Warps(TwoInputs):
        def forward(self, images: torch.Tensor, pose: torch.Tensor) -> dict[str, torch.Tensor]:
            warped, theta = super().forward(images, pose.expand(images.shape[0], -1))
            return {"warped": warped, "bright": (warped.mean((1, 2, 3)) > 0.4).long(), "theta": theta}

    captured = capture(Warps().eval(), (torch.rand(2, 3, 12, 10), torch.rand(1, 5)), [("N", 3, 12, 10), (1, 5)])
    contract = contract_of(captured.exported, captured.shapes, ["images", "pose"], ["warped", "bright", "theta"])
    random = np.random.default_rng(0)
    inputs = {"images": random.random((7, 3, 12, 10), np.float32), "pose": random.random((1, 5), np.float32)}
    return entered(tmp_path, Program(captured.exported, contract), inputs, ("images",))


@pytest.fixture
def fixed(tmp_path: Path) -> list[Target]:
    """A network that takes four examples at a time."""
    program = ZOO["NoSampler"].program()
    captured = capture(ZOO["NoSampler"].build(), (torch.rand(4, 3, 32, 32),), [(4, 3, 32, 32)])
    program = Program(captured.exported, program.contract.fixed({"N": 4}))
    return entered(tmp_path, program, {"images": np.zeros((5, 3, 32, 32), np.uint8)}, ("images",))


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
    assert against["stn-eager-cpu-program", 64] == "cnn-eager-cpu-program"
    assert not [name for name, _ in against if name.startswith("cnn")]
    eager = {str(case.target): str(case.baseline) for case in rows("eager", found, quick)}
    assert eager["stn-onnxruntime-cpu-folded-fp32"] == "stn-eager-cpu-program"
    assert "stn-eager-cpu-program" not in eager
    default = {str(case.target): str(case.baseline) for case in rows("default", found, quick)}
    assert set(default.values()) == {"stn-onnxruntime-default-cpu-default-fp32"}
    assert {"stn-onnxruntime-cpu-folded-fp32", "stn-eager-cpu-program"} <= set(default)
    lowering = {str(case.target): str(case.baseline) for case in rows("lowering", found, quick)}
    assert lowering["stn-onnxruntime-cpu-matmul-fp32"] == "stn-onnxruntime-cpu-decomposed-fp32"


def test_the_plain_network_is_told_by_its_role(entered_run: Path, tmp_path: Path):
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    for directory in network_directories(run):
        directory.plan(("program",), {})
    found = find_targets(run, "cpu")
    turned = {"stn": PLAIN, "cnn": SUBJECT}
    found = [
        replace(each, network=replace(each.network, facts=replace(each.network.facts, role=turned[each.network.name])))
        for each in found
    ]
    against = {str(case.target): str(case.baseline) for case in rows("overhead", found, GRIDS["quick"])}
    assert against["cnn-eager-cpu-program"] == "stn-eager-cpu-program"
    assert not [name for name in against if name.startswith("stn")]


def test_without_a_plain_network_or_exports_there_is_nothing_to_be_set_against(two_inputs: list[Target]):
    assert not rows("overhead", two_inputs, GRIDS["quick"])
    assert not rows("default", two_inputs, GRIDS["quick"])
    assert rows("latency", two_inputs, GRIDS["quick"])


def test_the_default_export_is_set_against_itself_only(found: list[Target]):
    both = [case for case in rows("overhead", found, GRIDS["full"]) if case.target.artifact.lowering == "default"]
    assert both
    assert all(case.baseline.artifact.lowering == "default" for case in both)


def test_what_has_a_batch_of_its_own_is_timed_at_that_only(found: list[Target]):
    default = by_name(found, "stn-onnxruntime-default-cpu-default-fp32")
    assert [case.batch for case in picked([default], [Pick(batches=(1, 2, 64))])] == [1]


def test_a_network_that_is_made_for_one_batch_is_timed_at_that(fixed: list[Target]):
    for suite in ("latency", "throughput", "eager"):
        assert {case.batch for case in rows(suite, fixed, GRIDS["full"])} == {4}
    eager = replace(by_name(fixed, "mine-eager-cpu-program"), regime="device")
    eager.step(4)
    assert eager.facts(4)["sizes"] == {"images": [4, 3, 32, 32]}


def test_what_takes_no_batch_is_timed_as_one_example(two_inputs: list[Target]):
    contract = two_inputs[0].network.contract
    alone = replace(contract, inputs=tuple(replace(spec, batched=False) for spec in contract.inputs))
    assert (own_batch(contract), own_batch(alone)) == (None, 1)


@pytest.mark.parametrize(
    ("pick", "taken"),
    [
        (Pick(), True),
        (Pick(roles=("plain",)), False),
        (Pick(roles=("subject",)), True),
        (Pick(runners=("onnx*",)), True),
        (Pick(runners=("eager-*", "openvino-*")), False),
        (Pick(lowerings=(None, "folded")), True),
        (Pick(lowerings=("matmul", BEST)), True),
        (Pick(lowerings=("matmul",)), False),
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


@pytest.mark.parametrize("name", ["stn-onnxruntime-cpu-folded-fp32", "cnn-onnxruntime-cpu-plain-fp32"])
def test_the_best_lowering_is_the_networks_own(found: list[Target], name: str):
    best = [str(case.target) for case in picked(found, [SHIPPED]) if case.target.runner.name == "onnxruntime-cpu"]
    assert name in best
    assert len(best) == 2


def test_one_buffer_or_enough_to_leave_the_cache(two_inputs: list[Target], monkeypatch: pytest.MonkeyPatch):
    target = two_inputs[0]
    [hot] = target.feeds(4)
    assert {name: array.shape for name, array in hot.items()} == {"images": (4, 3, 12, 10), "pose": (1, 5)}
    size = sum(array.nbytes for array in hot.values())
    monkeypatch.setattr(targets, "cache_bytes", lambda device: 10 * size)
    cold = replace(target, cold=True).feeds(4)
    assert sum(array.nbytes for feeds in cold for array in feeds.values()) > 10 * size
    for name in hot:
        assert not any(np.shares_memory(cold[0][name], other[name]) for other in cold[1:])
        np.testing.assert_array_equal(cold[0][name], hot[name])
    assert not np.array_equal(cold[1]["images"], hot["images"])
    np.testing.assert_array_equal(cold[1]["images"][0], target.network.examples.inputs["images"][4])


@pytest.mark.parametrize("regime", ["device", "request", "offline"])
def test_a_row_says_what_was_timed(target: Target, regime: str):
    timed = replace(target, regime=regime)
    step = timed.step(2)
    assert step.clock() <= step.clock()
    facts = timed.facts(2)
    assert set(facts) == FACTS
    assert (facts["network"], facts["label"], facts["role"]) == ("stn", "spatial transformer", "subject")
    assert (facts["regime"], facts["batch"], facts["tf32"], facts["device"]) == (regime, 2, False, "cpu")
    assert (facts["input"], facts["sizes"]) == ("float", {"images": [2, 3, 32, 32]})
    assert facts["inputs"].startswith("hot: one buffer")
    assert facts["file_bytes"] == target.path.stat().st_size
    assert facts["host_bytes"] >= 0
    assert facts["device_bytes"] is None
    json.dumps(facts)


@pytest.mark.parametrize(
    ("name", "code"),
    [("stn", "the module's own"), ("mine", "the captured graph: its code was not given")],
)
def test_a_row_of_eager_says_whose_code_ran(found: list[Target], two_inputs: list[Target], name: str, code: str):
    eager = replace(by_name([*found, *two_inputs], f"{name}-eager-cpu-program"), regime="device")
    eager.step(1)
    assert eager.facts(1)["options"]["code"] == code


@pytest.mark.parametrize(
    ("artifact", "said"),
    [
        ("program", "float"),
        ("folded-fp32", "float"),
        ("folded-fp32-uint8", "uint8"),
        ("folded-fp32-uint8-nhwc", "uint8-nhwc"),
    ],
)
def test_a_row_says_how_it_is_fed(found: list[Target], artifact: str, said: str):
    assert {each.input for each in found if each.artifact.name == artifact} == {said}


def test_a_cold_row_says_how_many_buffers(target: Target, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "cache_bytes", lambda device: 2**20)
    cold = replace(target, regime="device", cold=True)
    cold.step(1)
    assert cold.facts(1)["inputs"] == "cold: 87 buffers, 1 MiB, in turn"
    assert cold.facts(1)["sizes"] == {"images": [1, 3, 32, 32]}


def test_a_request_gives_the_answers_to_the_host(two_inputs: list[Target]):
    answers = replace(two_inputs[0], regime="request").step(2)()
    assert {name: type(each) for name, each in answers.items()} == dict.fromkeys(
        ("warped", "bright", "theta"), np.ndarray
    )


@pytest.mark.parametrize("wrong", ["warped", "bright", "theta"])
def test_a_wrong_step_is_not_timed(two_inputs: list[Target], wrong: str):
    """Every output is looked at, whole numbers as well."""
    eager = by_name(two_inputs, "mine-eager-cpu-program")

    class Off(Eager):
        def bind_one(self, feeds: Arrays) -> Step:
            answers = {name: array.copy() for name, array in self.infer(feeds).items()}
            answers[wrong].flat[-1] += 1 if wrong == "bright" else 0.01
            return Step(lambda: answers)

        def read(self, result: object) -> Arrays:
            return (
                result
                if isinstance(result, dict) and isinstance(result["warped"], np.ndarray)
                else super().read(result)
            )

    with pytest.raises(AssertionError, match=f"mine-off-program does not give what it infers: {wrong}"):
        replace(eager, runner=replace(eager.runner, name="off", load=Off)).step(2)


def test_floats_may_differ_by_a_share_of_the_largest_and_whole_numbers_not_at_all():
    large, whole = np.array([1000.0, 1.0], np.float32), np.arange(1000)
    check_same({"x": large + 0.05}, {"x": large}, 1e-4, "said")
    with pytest.raises(AssertionError, match="said: x"):
        check_same({"x": large + 0.5}, {"x": large}, 1e-4, "said")
    one = whole + (whole == 3)
    check_same({"x": one}, {"x": whole}, 1e-4, "said", strays=1e-3)
    with pytest.raises(AssertionError, match="said: x, 1 of 1000 differ"):
        check_same({"x": one}, {"x": whole}, 1e-4, "said")


def test_what_is_verified_at_one_batch_size_is_checked_at_the_timed_one(two_inputs: list[Target]):
    """A compiler that is wrong for one batch size: its step and its ``infer`` agree with each other."""
    eager = by_name(two_inputs, "mine-eager-cpu-program")

    class Off(Eager):
        def read(self, result: object) -> Arrays:
            answers = super().read(result)
            return answers | {"warped": answers["warped"] + (0.1 if len(answers["warped"]) == 2 else 0.0)}

    off = replace(eager, runner=replace(eager.runner, name="off", load=Off, verify_batch=64))
    off.step(3)
    with pytest.raises(AssertionError, match=r"does not give what eager does at .*'images': \[2, 3, 12, 10\]"):
        off.step(2)


def test_what_cannot_be_timed_is_named_with_the_reason(trained_run: Path):
    reasons = left_out(trained_run, "auto")
    assert set(reasons) >= {spec.name for spec in RUNNERS if spec.unavailable()}
    assert all(reasons.values())
    assert not [name for name in left_out(trained_run, "cpu") if "cuda" in name]


def test_a_device_without_runners(trained_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "RUNNERS", ())
    with pytest.raises(UserError, match="nothing can run on cpu"):
        find_targets(trained_run, "cpu")


def test_the_cache_is_the_machines_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for index, size in enumerate(("48K", "2048K", "30M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert cache_bytes("cpu") == 30 * 2**20
    monkeypatch.setattr(machine, "CACHES", tmp_path / "nowhere")
    assert cache_bytes("cpu") == machine.UNKNOWN_CACHE


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
def test_a_fresh_process_gives_its_first_answer(two_inputs: list[Target]):
    target = by_name(two_inputs, "mine-eager-cpu-program")
    [feeds] = target.feeds(1)
    figures = summary([start(target, feeds, 1)])
    assert all(figures[name] > 0 for name in ("import_seconds", "load_seconds", "first_seconds"))
    assert figures["threads"] == figures["n"] == 1
    assert figures["options"]["code"].startswith("the captured graph")
    with pytest.raises(RuntimeError, match=f"a fresh process with {target} failed"):
        start(target, feeds | {"pose": feeds["pose"][:, :2]}, 1)


RUNNER_ROWS = {spec.name: spec for spec in RUNNERS}


@pytest.mark.parametrize(
    ("ours", "theirs", "host"),
    [
        ("onnxruntime-cuda", "eager-cuda", True),
        ("onnxruntime-default-cuda", "eager-autograd-cuda", True),
        ("onnxruntime-graph-cuda", "eager-cuda", False),
        ("onnxruntime-cuda", "onnxruntime-default-cuda", False),
        ("onnxruntime-cpu", "eager-cpu", False),
        ("web-cpu", "eager-cpu", True),
        ("web-cpu", "web-cpu", True),
    ],
)
def test_a_contest_keeps_to_one_clock(found: list[Target], ours: str, theirs: str, host: bool):
    contenders = (replace(found[0], runner=RUNNER_ROWS[name]) for name in (ours, theirs))
    assert {target.host for target in on_one_clock(*contenders)} == {host}


def test_contenders_by_the_host_are_fed_from_there(found: list[Target]):
    target = replace(next(each for each in found if str(each) == "stn-eager-cpu-program"), host=True)
    assert isinstance(target.step(2)(), dict)  # arrays by name, as a caller has them
    assert target.found["clock"] == "wall"
