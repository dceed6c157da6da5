import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stn_export import cli
from stn_export.artifacts.files import sha256_of
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.comparison.tolerances import TOLERANCES
from stn_export.runners import RUNNERS, OnnxRuntime
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset
from stn_export.verify import __main__ as verify
from stn_export.verify import checks, search
from stn_export.verify.checks import Truth, check_artifact, truth_of
from stn_export.verify.diagnosis import class_order
from stn_export.verify.pictures import Changed, Edge, Noisy, Picture, Sparse, Stripes
from stn_export.verify.search import SearchResult, describe, with_search

ONNX = next(spec for spec in RUNNERS if spec.name == "onnxruntime-cpu")
FP32 = TOLERANCES["fp32"]
DIM = 200  # no test image of the restricted challenges is brighter


@pytest.fixture(scope="module")
def truth(trained_run: Path, small: Dataset) -> Truth:
    """Of dim test images alone: the challenges that the clip below gets past."""
    dim = replace(small, test=replace(small.test, images=small.test.images.clamp(max=DIM)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "image_challenges", lambda dataset: {"test images ×8": dataset.test.images[:8]})
        patch.setattr(checks, "THETAS", {"identity": checks.THETAS["identity"]})
        return truth_of(load_checkpoint(trained_run / "stn" / "checkpoint.pt").model, dim)


def clip_images(path: Path) -> None:
    """Make the artifact wrong for bright images only: 0.9 is what a byte of 242 is normalised to."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["clipped" if name == "images" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.9, np.float32), "most"))
    model.graph.node.insert(0, helper.make_node("Clip", ["images", "", "most"], ["clipped"]))
    onnx.save(model, path)


def searched(directory: NetworkDirectory, truth: Truth, **limits: float) -> SearchResult:
    artifact = directory.artifacts["matmul-fp32"]
    runner = ONNX.open(directory.path / artifact.file, artifact.input_contract)
    return search.search(runner, artifact.input_contract, truth, FP32, **limits)


def test_a_good_artifact_passes(stn: NetworkDirectory, truth: Truth, workspace: Path):
    result = searched(stn, truth, seconds=3)
    assert not result.failure
    assert result.examples > 20
    assert 0 < result.excess < 10
    assert result.worst
    assert not (workspace / ".hypothesis" / "constants").exists()


def test_what_only_bright_images_show_is_found_and_described(stn: NetworkDirectory, truth: Truth):
    artifact = stn.artifacts["matmul-fp32"]
    path = stn.path / artifact.file
    clip_images(path)
    artifact = replace(artifact, sha256=sha256_of(path))
    passed = check_artifact(artifact, path, ONNX, truth)
    assert not passed.failure
    check = with_search(passed, artifact, path, ONNX, truth, 60)
    assert check.failure == check.search["failure"]
    assert check.failure.startswith("search: ")
    assert "first wrong at theta" in check.failure
    assert max(int(word) for word in check.failure.split(":")[1].replace(",", " ").split() if word.isdigit()) > 242
    assert check.search["excess"] > 1
    assert check.search["seconds"] == 60
    json.dumps(check.as_dict())


def test_the_same_seed_gives_the_same_result(stn: NetworkDirectory, truth: Truth):
    limits = {"seconds": 60, "examples": 100}
    first = searched(stn, truth, seed=1, **limits)
    assert searched(stn, truth, seed=1, **limits) == first
    assert searched(stn, truth, seed=2, **limits) != first
    clip_images(stn.path / "matmul-fp32.onnx")
    broken = searched(stn, truth, seed=1, **limits)
    assert broken.failure
    assert searched(stn, truth, seed=1, **limits) == broken


def test_a_runner_that_raises_is_found(stn: NetworkDirectory, truth: Truth, monkeypatch: pytest.MonkeyPatch):
    def crash(*_: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(OnnxRuntime, "points", crash)
    result = searched(stn, truth, seconds=10)
    assert result.failure == "search: flat grey 0: RuntimeError: no kernel"
    assert result.excess == float("inf")


def test_a_check_that_failed_already_is_not_searched(stn: NetworkDirectory, truth: Truth):
    artifact = stn.artifacts["matmul-fp32"]
    failed = checks.Check("stn", artifact.name, artifact.sha256, ONNX.name, "fp32")
    assert with_search(failed, artifact, stn.path / artifact.file, ONNX, truth, 60) is failed


def test_a_rounding_is_not_called_another_order_of_classes():
    log_probs = np.arange(20.0).reshape(2, 10)
    assert class_order(log_probs + 1e-4, log_probs) == ""
    assert class_order(log_probs[:, ::-1], log_probs).startswith("the classes are in the order 9, 8")


def test_no_time_is_no_search(stn: NetworkDirectory, truth: Truth):
    assert searched(stn, truth, seconds=0) == SearchResult(0, 0.0, "", "")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (
            Changed(3, 2, True, 50, -20),
            "test image 3, without its outer 2 px, mirrored, contrast +50 %, brightness -20",
        ),
        (Changed(3, 0, False, 0, 0), "test image 3"),
        (Noisy(5, 30, 7), "test image 5 under 30 % noise (seed 7)"),
        (Stripes("a checkerboard", 2, ((0, 0, 0), (1, 2, 3))), "a checkerboard of 2 px in grey 0 and RGB (1, 2, 3)"),
        (Edge(True, 4, ((0, 0, 0), (255, 255, 255))), "grey 0 up to column 4, from there grey 255"),
        (Edge(False, 4, ((7, 7, 7), (7, 7, 7))), "flat grey 7"),
        (Sparse(((1, 2, (9, 9, 9)),)), "black but for grey 9 at row 1, column 2"),
    ],
)
def test_a_picture_is_what_its_words_say(picture: Picture, words: str, small: Dataset):
    assert describe((picture,)) == words
    image = picture.draw(small.test.images)
    assert image.shape == (3, 32, 32)
    assert str(image.dtype) == "torch.uint8"
    if isinstance(picture, Edge) and picture.upright:
        assert image[:, :, :4].max() == 0
        assert image[:, :, 4:].min() == 255
    if isinstance(picture, Sparse):
        assert (image.sum(), image[0, 1, 2]) == (27, 9)
    if isinstance(picture, Stripes):
        assert [int(image[2, y, x]) for y, x in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))] == [0, 3, 3, 0, 0]
    if picture == Changed(3, 0, False, 0, 0):
        assert image.equal(small.test.images[3])


def test_the_bounds_widen_where_eager_strays():
    eager = {"grid": 0.25, "log_probs": 1e-6}
    assert FP32.widened(eager).grid == replace(FP32.grid, absolute=FP32.grid.absolute + FP32.multiple * 0.25)
    assert FP32.widened(eager).theta == FP32.theta
    assert TOLERANCES["fp16"].widened(eager) == TOLERANCES["fp16"]


def test_verify_searches_where_it_is_told_to(run: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--run", str(run), "--only", "cnn/plain-fp32", "--json"]
    assert cli.run(verify.main, [*options, "--search", "1"]) == 0
    for check in json.loads(capsys.readouterr().out)["checks"]:
        assert check["search"]["examples"] > 0
        assert check["search"]["failure"] == ""


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_a_time_that_is_none(value: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--search", value]) == 2
    assert "invalid seconds value" in capsys.readouterr().err
