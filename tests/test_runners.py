"""Every runner that this machine has gives what eager PyTorch gives, and refuses the same things."""

import gc

import numpy as np
import pytest
import torch

from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.errors import UserError
from stn_export.runners import FLOAT, RUNNERS, Runner, RunnerSpec
from stn_export.runners.base import EventClock
from stn_export.runners.onnx_runtime import OnnxRuntimeDefault
from stn_export.train.data import Dataset, contract_batch, example_images, normalise

SPECS = [
    pytest.param(spec, id=spec.name, marks=[pytest.mark.cuda] * (spec.device == "cuda"))
    for spec in RUNNERS
    if not spec.verify_batch
] + [
    pytest.param(spec, id=spec.name, marks=[pytest.mark.slow] + [pytest.mark.cuda] * (spec.device == "cuda"))
    for spec in RUNNERS
    if spec.verify_batch
]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> RunnerSpec:
    if reason := request.param.unavailable():
        pytest.skip(reason)
    return request.param


@pytest.fixture
def runner(spec: RunnerSpec, stn: NetworkDirectory) -> Runner:
    artifacts = [artifact for artifact in stn.artifacts.values() if spec.takes(artifact)]
    if not artifacts:
        pytest.skip(f"{spec.format} is exported on request only")
    artifact = max(artifacts, key=lambda artifact: artifact.input_contract["shape"][0] == "N")
    return spec.open(stn.open(artifact), artifact.input_contract)


def infer(runner: Runner, images: np.ndarray) -> np.ndarray:
    """What a runner gives for a batch, in parts where its own batch is fixed."""
    parts = np.split(images, len(images) // runner.batch) if runner.batch else [images]
    return np.concatenate([runner.infer(part) for part in parts])


def test_infer_equals_eager(runner: Runner, stn: NetworkDirectory, digits: Dataset):
    images = normalise(example_images(digits, 33)).numpy()
    expected = RUNNERS[0].open(stn.path / "checkpoint.pt").infer(images)
    actual = infer(runner, images)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def test_infer_takes_any_memory_layout(runner: Runner, digits: Dataset):
    images = normalise(example_images(digits, 4))
    strided = images.to(memory_format=torch.channels_last).numpy()
    np.testing.assert_allclose(infer(runner, strided), infer(runner, images.numpy()), atol=1e-6)


def test_a_bound_step_runs_again_and_again(runner: Runner, digits: Dataset):
    images = normalise(example_images(digits, runner.batch or 3)).numpy()
    expected = runner.infer(images)
    step = runner.bind(images.copy())  # whatever the step needs of this copy it must keep alive itself
    gc.collect()
    rubbish = [np.full_like(images, np.nan) for _ in range(50)]
    for _ in range(3):
        np.testing.assert_allclose(runner.read(step()), expected, atol=1e-6)
    assert len(rubbish) == 50


def test_several_bound_batches_take_turns(runner: Runner, digits: Dataset):
    size = runner.batch or 3
    batches = normalise(example_images(digits, 3 * size)).numpy().reshape(3, size, *runner.shape)
    expected = [runner.infer(images) for images in batches]
    bound, request = runner.bind(*batches.copy()), runner.request(*batches.copy())
    for turn in range(7):
        np.testing.assert_allclose(runner.read(bound()), expected[turn % 3], atol=1e-6)
        np.testing.assert_allclose(request(), expected[turn % 3], atol=1e-6)
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
    with pytest.raises(UserError, match="cannot be classified"):
        runner.infer(images)


def test_opening_a_runner_pins_tf32(runner: Runner, spec: RunnerSpec):
    assert runner.tf32 is spec.tf32
    if spec.format != "onnx":
        assert torch.backends.cudnn.allow_tf32 is spec.tf32
        assert torch.backends.cuda.matmul.allow_tf32 is (spec.tf32 and "autograd" not in spec.name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(runner: Runner, value: float):
    images = np.zeros((runner.batch or 2, 3, 32, 32), np.float32)
    images[-1, 2, 3, 4] = value
    with pytest.raises(UserError, match="not finite"):
        runner.infer(images)


@pytest.mark.parametrize("name", ["folded-fp32-uint8", "folded-fp32-uint8-nhwc"])
def test_raw_bytes_are_classified_as_normalised_images_are(stn: NetworkDirectory, digits: Dataset, name: str):
    images, artifact = example_images(digits, 16), stn.artifacts[name]
    expected = RUNNERS[0].open(stn.path / "checkpoint.pt").infer(normalise(images).numpy())
    spec = next(spec for spec in RUNNERS if spec.format == "onnx")
    runner = spec.open(stn.open(artifact), artifact.input_contract)
    actual = runner.infer(contract_batch(images, artifact.input_contract))
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="cannot be classified"):
        runner.infer(normalise(images).numpy())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_runner_that_is_not_available_says_why():
    reasons = {spec.name: spec.unavailable() for spec in RUNNERS}
    assert {name for name, reason in reasons.items() if reason} >= {s.name for s in RUNNERS if s.device == "cuda"}
    assert all(
        any(word in reason for word in ("GPU", "CUDA", "openvino", "compiler")) for reason in reasons.values() if reason
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


def test_a_runner_that_compiles_anew_is_verified_in_one_batch_size():
    spec = next(spec for spec in RUNNERS if spec.verify_batch)
    assert spec.verified_as(FLOAT)["shape"] == [spec.verify_batch, 3, 32, 32]
    assert RUNNERS[0].verified_as(FLOAT) == FLOAT


def test_the_default_session_takes_the_default_export_only(stn: NetworkDirectory):
    spec = next(spec for spec in RUNNERS if spec.load is OnnxRuntimeDefault)
    assert {artifact.name for artifact in stn.artifacts.values() if spec.takes(artifact)} == {"default-fp32"}
