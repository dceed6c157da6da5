"""Every runner that this machine has gives what eager PyTorch gives, and refuses the same things."""

import gc

import numpy as np
import pytest
import torch

from stn_export.artifacts import ModelDirectory
from stn_export.data import Dataset, contract_batch, example_images, normalise
from stn_export.errors import UserError
from stn_export.runners import RUNNERS, Runner, RunnerSpec

SPECS = [
    pytest.param(spec, id=spec.name, marks=[pytest.mark.cuda] if spec.device == "cuda" else []) for spec in RUNNERS
]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> RunnerSpec:
    if reason := request.param.unavailable():
        pytest.skip(reason)
    return request.param


@pytest.fixture
def runner(spec: RunnerSpec, stn: ModelDirectory) -> Runner:
    artifact = next((artifact for artifact in stn.artifacts.values() if artifact.format == spec.format), None)
    if artifact is None:
        pytest.skip(f"{spec.format} is exported on request only")
    return spec.open(stn.open(artifact))


def test_infer_equals_eager(runner: Runner, stn: ModelDirectory, digits: Dataset):
    images = normalise(example_images(digits, 33)).numpy()
    expected = RUNNERS[0].open(stn.path / "checkpoint.pt").infer(images)
    actual = runner.infer(images)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def test_infer_takes_any_memory_layout(runner: Runner, digits: Dataset):
    images = normalise(example_images(digits, 4))
    strided = images.to(memory_format=torch.channels_last).numpy()
    np.testing.assert_allclose(runner.infer(strided), runner.infer(images.numpy()), atol=1e-6)


def test_a_bound_step_runs_again_and_again(runner: Runner, digits: Dataset):
    images = normalise(example_images(digits, 3)).numpy()
    expected = runner.infer(images)
    step = runner.bind(images.copy())  # whatever the step needs of this copy it must keep alive itself
    gc.collect()
    rubbish = [np.full_like(images, np.nan) for _ in range(50)]
    for _ in range(3):
        np.testing.assert_allclose(runner.read(step()), expected, atol=1e-6)
    assert len(rubbish) == 50


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
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is spec.tf32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(runner: Runner, value: float):
    images = np.zeros((2, 3, 32, 32), np.float32)
    images[1, 2, 3, 4] = value
    with pytest.raises(UserError, match="not finite"):
        runner.infer(images)


@pytest.mark.parametrize("name", ["folded-fp32-uint8", "folded-fp32-uint8-nhwc"])
def test_raw_bytes_are_classified_as_normalised_images_are(stn: ModelDirectory, digits: Dataset, name: str):
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
    assert all(any(word in reason for word in ("GPU", "CUDA", "openvino")) for reason in reasons.values() if reason)
