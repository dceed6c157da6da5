"""Every runner that this machine has gives what eager PyTorch gives, and refuses the same things."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_export.errors import UserError
from stn_export.program.specs import Arrays
from stn_export.results.tolerances import OUTPUT, TOLERANCES
from stn_export.run.manifest import PROGRAM, NetworkDirectory
from stn_export.runners import RUNNERS, Runner, RunnerSpec
from stn_export.runners.base import EventClock
from stn_export.runners.onnx_runtime import OnnxRuntimeDefault
from tests.captured_modules import program_of
from tests.test_truth import Several
from tests.zoo import ZOO

HERE = [spec for spec in RUNNERS if not spec.unavailable()]
SPECS = [
    pytest.param(
        spec,
        id=spec.name,
        marks=[pytest.mark.slow] * bool(spec.verify_batch) + [pytest.mark.cuda] * (spec.device == "cuda"),
    )
    for spec in HERE
]


@pytest.mark.parametrize("spec", RUNNERS, ids=lambda spec: spec.name)
def test_every_runner_is_tried_below_or_says_why_not(spec: RunnerSpec):
    """One skip a runner that this machine lacks, not one for every test that it would have had."""
    if reason := spec.unavailable():
        pytest.skip(reason)
    assert spec in HERE


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> RunnerSpec:
    return request.param


@pytest.fixture
def stn(trained_run: Path) -> NetworkDirectory:
    """The shared run's: no test here changes it."""
    return NetworkDirectory(trained_run / "stn")


@pytest.fixture
def runner(spec: RunnerSpec, stn: NetworkDirectory, request: pytest.FixtureRequest) -> Runner:
    if spec.format.startswith("aotinductor"):  # exported on request only
        stn = NetworkDirectory(request.getfixturevalue("compiled_run") / "stn")
    artifacts = [artifact for artifact in stn.artifacts.values() if spec.takes(artifact)]
    artifact = max(artifacts, key=lambda artifact: artifact.contract.batch is None)
    return spec.open(stn.open(artifact), artifact.contract)


def feeds_of(runner: Runner, stn: NetworkDirectory, count: int) -> Arrays:
    """The first examples as the runner takes them."""
    return runner.contract.arrays(stn.examples().take(count))


def eager(stn: NetworkDirectory, count: int) -> np.ndarray:
    """What eager PyTorch gives for them."""
    artifact = stn.listed(PROGRAM)
    runner = RUNNERS[0].open(stn.open(artifact), artifact.contract)
    return runner.infer(feeds_of(runner, stn, count))["log_probs"]


def infer(runner: Runner, feeds: Arrays) -> np.ndarray:
    """What a runner gives for a batch, in parts where its own batch is fixed."""
    images, size = feeds["images"], runner.contract.batch
    parts = np.split(images, len(images) // size) if size else [images]
    return np.concatenate([runner.infer({"images": part})["log_probs"] for part in parts])


def assert_close(actual: np.ndarray, expected: np.ndarray, spec: RunnerSpec) -> None:
    """As close as two answers of this runner have to be: a GPU may take another algorithm for another shape."""
    bound = TOLERANCES[spec.tolerance_of("fp32")].apart(OUTPUT, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, atol=bound.absolute, rtol=bound.relative)


def test_infer_equals_eager(runner: Runner, spec: RunnerSpec, stn: NetworkDirectory):
    actual = infer(runner, feeds_of(runner, stn, 33))
    assert actual.dtype == np.float32
    assert_close(actual, eager(stn, 33), spec)


def test_infer_takes_any_memory_layout(runner: Runner, spec: RunnerSpec, stn: NetworkDirectory):
    feeds = feeds_of(runner, stn, 4)
    strided = {"images": torch.from_numpy(feeds["images"]).to(memory_format=torch.channels_last).numpy()}
    assert_close(infer(runner, strided), infer(runner, feeds), spec)


def test_a_bound_step_runs_again_and_again(runner: Runner, spec: RunnerSpec, stn: NetworkDirectory):
    feeds = feeds_of(runner, stn, runner.contract.batch or 3)
    expected = runner.infer(feeds)["log_probs"]
    step = runner.bind({"images": feeds["images"].copy()})  # whatever the step needs it must keep alive itself
    gc.collect()
    rubbish = [np.full_like(feeds["images"], np.nan) for _ in range(50)]
    for _ in range(3):
        assert_close(runner.read(step())["log_probs"], expected, spec)
    assert len(rubbish) == 50


def test_several_bound_batches_take_turns(runner: Runner, spec: RunnerSpec, stn: NetworkDirectory):
    size = runner.contract.batch or 3
    images = np.split(feeds_of(runner, stn, 3 * size)["images"], 3)
    expected = [runner.infer({"images": part})["log_probs"] for part in images]
    bound, request = (take(*({"images": part.copy()} for part in images)) for take in (runner.bind, runner.request))
    for turn in range(7):
        assert_close(runner.read(bound())["log_probs"], expected[turn % 3], spec)
        assert_close(request()["log_probs"], expected[turn % 3], spec)
    assert bound.clock() <= bound.clock()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 3, 32, 32), np.float64),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((1, 3, 28, 28), np.float32),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
    ],
    ids=lambda images: f"{images.dtype}-{images.shape}",
)
def test_other_shapes_and_types_are_refused(runner: Runner, images: np.ndarray):
    with pytest.raises(UserError, match="input images cannot be"):
        runner.infer({"images": images})


def test_a_missing_input_is_refused(runner: Runner):
    with pytest.raises(UserError, match="input images cannot be nothing"):
        runner.infer({})


def test_opening_a_runner_pins_tf32(runner: Runner, spec: RunnerSpec):
    assert runner.tf32 is spec.tf32
    if spec.format != "onnx":
        assert torch.backends.cudnn.allow_tf32 is spec.tf32
        assert torch.backends.cuda.matmul.allow_tf32 is (spec.tf32 and "autograd" not in spec.name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(runner: Runner, value: float):
    images = np.zeros((runner.contract.batch or 2, 3, 32, 32), np.float32)
    images[-1, 2, 3, 4] = value
    with pytest.raises(UserError, match="not finite"):
        runner.infer({"images": images})


@pytest.mark.parametrize("name", ["folded-fp32-uint8", "folded-fp32-uint8-nhwc"])
def test_raw_bytes_are_classified_as_normalised_images_are(stn: NetworkDirectory, name: str):
    artifact = stn.artifacts[name]
    spec = next(spec for spec in RUNNERS if spec.format == "onnx")
    runner = spec.open(stn.open(artifact), artifact.contract)
    feeds = feeds_of(runner, stn, 16)
    assert feeds["images"].dtype == np.uint8
    np.testing.assert_allclose(runner.infer(feeds)["log_probs"], eager(stn, 16), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="input images cannot be float32"):
        runner.infer({"images": feeds["images"].astype(np.float32)})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_runner_that_is_not_available_says_why():
    reasons = {spec.name: spec.unavailable() for spec in RUNNERS}
    assert {name for name, reason in reasons.items() if reason} >= {s.name for s in RUNNERS if s.device == "cuda"}
    assert all(
        any(word in reason for word in ("GPU", "CUDA", "openvino", "compiler", "--runtimes"))
        for reason in reasons.values()
        if reason
    )


class Event:
    """A CUDA event on a clock that moves by 2 ms with every launch."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at, self.waited = -1.0, False

    def record(self, stream: object) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: "Event") -> float:
        assert end.waited
        return end.at - self.at


def test_a_gpus_clock_counts_what_lies_between_events(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def launch() -> str:
        Event.now += 2.0
        return "result"

    step = EventClock(stream=None).step(launch)
    before = step.clock()
    assert [step() for _ in range(3)] == ["result"] * 3
    Event.now += 100.0  # what happens between the calls does not count
    assert step.clock() - before == pytest.approx(6e-3)


def test_options_say_what_was_pinned(runner: Runner, spec: RunnerSpec):
    assert all(isinstance(value, str | bool) for value in runner.options.values())
    default_threads = spec.load is OnnxRuntimeDefault
    assert default_threads or runner.threads == torch.get_num_threads()
    if spec.device == "cuda":
        assert any("tf32" in name or "trt" in name for name in runner.options) or default_threads


def test_a_graph_runner_leaves_out_what_does_not_run_on_the_gpu(stn: NetworkDirectory):
    spec = next(spec for spec in RUNNERS if spec.name == "onnxruntime-graph-cuda")
    assert spec.takes(stn.artifacts["folded-fp32"])
    assert not spec.takes(stn.artifacts["affinegrid-fp32"])
    assert "no CUDA graph" in spec.refuses(stn.artifacts["affinegrid-fp32"])


def test_a_runner_that_compiles_anew_is_verified_in_one_batch_size(stn: NetworkDirectory):
    contract = stn.listed(PROGRAM).contract
    spec = next(spec for spec in RUNNERS if spec.verify_batch)
    assert spec.verified_as(contract).inputs[0].shape == (spec.verify_batch, 3, 32, 32)
    assert RUNNERS[0].verified_as(contract) == contract


def test_the_default_session_takes_the_default_export_only(stn: NetworkDirectory):
    spec = next(spec for spec in RUNNERS if spec.load is OnnxRuntimeDefault)
    assert {artifact.name for artifact in stn.artifacts.values() if spec.takes(artifact)} == {"default-fp32"}


def program_runner(name: str, folder: Path, spec: str) -> tuple[Runner, Arrays]:
    """A runner of a network of the zoo, and a batch for it."""
    program, path = ZOO[name].program(), folder / "program.pt2"
    path.write_bytes(program.to_bytes({}))
    found = next(each for each in RUNNERS if each.name == spec)
    return found.open(path, program.contract), program.contract.arrays(ZOO[name].examples(5).take(5))


def test_an_input_of_another_name_is_refused(runner: Runner, stn: NetworkDirectory):
    feeds = feeds_of(runner, stn, 2)
    with pytest.raises(UserError, match="there is no input pictures"):
        runner.infer(feeds | {"pictures": next(iter(feeds.values()))})


def test_several_inputs_and_outputs_by_name(tmp_path: Path):
    runner, feeds = program_runner("FlowWarp", tmp_path, "eager-cpu")
    assert runner.options["code"] == "the captured graph: its code was not given" or "own" in runner.options["code"]
    results = runner.infer(feeds)
    assert list(results) == ["warped", "brightness"]
    assert runner.read(runner.bind(feeds)())["brightness"].shape == (5, 1, 40, 48)
    with pytest.raises(UserError, match=r"different numbers of examples: \[4, 5\]"):
        runner.infer(feeds | {"flow": feeds["flow"][:4]})


def test_points_come_before_outputs_in_the_networks_order(tmp_path: Path):
    runner, feeds = program_runner("TwoSteps", tmp_path, "pt2-cpu")
    points = [f"site{site}/{point}" for site in (0, 1) for point in ("theta", "grid", "warped")]
    usual = runner.points(feeds)
    assert list(usual) == [*points, "scores", "aligned"]
    theta = np.array([[0.5, 0, 0], [0, 0.5, 0]])
    forced = runner.forced_points(feeds, "site1", theta, np.zeros((20, 20, 2)))
    np.testing.assert_array_equal(forced["site1/theta"], np.broadcast_to(theta, (5, 2, 3)))
    np.testing.assert_array_equal(forced["site0/warped"], usual["site0/warped"])
    assert np.abs(forced["aligned"] - usual["aligned"]).max() > 0.1
    own_grid, feeds = program_runner("TextRectifier", tmp_path, "pt2-cpu")
    forced = own_grid.forced_points(feeds, "site0", theta, np.zeros((32, 100, 2)))
    assert not forced["site0/grid"].any()
    assert np.ptp(forced["rectified"], axis=(2, 3)).max() == 0  # every pixel is the middle one


def test_a_file_that_gives_more_than_its_contract_says_is_refused(tmp_path: Path):
    program, path = program_of(Several(), {"values": ("N", 5)}, ["a", "b", "c", "d"]), tmp_path / "program.pt2"
    path.write_bytes(program.to_bytes({}))
    runner = RUNNERS[0].open(path, program.contract)
    runner.outputs = ("a", "b")
    with pytest.raises(UserError, match="gives 4 outputs instead of 2: a, b"):
        runner.infer({"values": np.zeros((2, 5), np.float32)})
