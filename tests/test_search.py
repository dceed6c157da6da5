import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from stn_export import cli
from stn_export.results.tolerances import TOLERANCES
from stn_export.run.manifest import Artifact
from stn_export.run.store import sha256_of
from stn_export.runners import RUNNERS, OnnxRuntime
from stn_export.verify import __main__ as verify
from stn_export.verify import checks, search
from stn_export.verify import oracle as truths
from stn_export.verify.checks import check_artifact
from stn_export.verify.diagnosis import class_order
from stn_export.verify.oracle import Reference, reference_of
from stn_export.verify.search import Changed, Edge, Noisy, Picture, SearchResult, Sparse, Stripes, describe, with_search
from tests.exports import exported as exported_network
from tests.runs import built_in, digits_examples
from tests.zoo import ZOO

ONNX = next(spec for spec in RUNNERS if spec.name == "onnxruntime-cpu")
PT2 = next(spec for spec in RUNNERS if spec.name == "pt2-cpu")
FP32 = TOLERANCES["fp32"]
DIM = 200  # no example of the restricted challenges is brighter


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Of dim examples alone: the challenges that the clip below gets past."""
    examples = digits_examples(200)
    dim = replace(examples, inputs={"images": examples.inputs["images"].clamp(max=DIM)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(truths, "challenges", lambda contract, examples, most: {"examples ×8": examples.take(8)})
        patch.setattr(truths, "THETAS", {"identity": truths.THETAS["identity"]})
        return reference_of(built_in("stn"), dim)


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return exported_network("stn")


@pytest.fixture
def artifact(reference: Reference, exported: onnx.ModelProto, tmp_path: Path) -> tuple[Artifact, Path]:
    path = tmp_path / "matmul.onnx"
    onnx.save(exported, path)
    return Artifact("matmul-fp32", path.name, "stn", "onnx", sha256_of(path), reference.contract), path


def clip_images(path: Path) -> None:
    """Make the artifact wrong for bright images only: 0.9 is what a byte of 242 is normalised to."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["clipped" if name == "images" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.9, np.float32), "most"))
    model.graph.node.insert(0, helper.make_node("Clip", ["images", "", "most"], ["clipped"]))
    onnx.save(model, path)


def searched(artifact: tuple[Artifact, Path], reference: Reference, **limits: float) -> SearchResult:
    return search.search(ONNX.open(artifact[1], artifact[0].contract), reference, FP32, **limits)


def test_a_good_artifact_passes(artifact: tuple[Artifact, Path], reference: Reference, workspace: Path):
    result = searched(artifact, reference, seconds=60, examples=50)
    assert not result.failure
    assert result.examples > 20
    assert 0 < result.excess < 10
    assert result.worst
    assert not (workspace / ".hypothesis" / "constants").exists()


def test_what_only_bright_images_show_is_found_and_described(artifact: tuple[Artifact, Path], reference: Reference):
    listed, path = artifact
    clip_images(path)
    listed = replace(listed, sha256=sha256_of(path))
    passed = check_artifact(listed, path, ONNX, reference)
    assert not passed.failure
    check = with_search(passed, listed, path, ONNX, reference, 300)
    assert check.failure == check.search["failure"]
    assert check.failure.startswith("search: ")
    assert "first wrong at theta" in check.failure
    said = check.failure.split(":")[1].replace(",", " ").split()
    assert "brightness" in said or max(int(word) for word in said if word.isdigit()) > 242, check.failure
    assert check.search["excess"] > 1
    assert check.search["seconds"] == 300
    json.dumps(check.as_dict(), allow_nan=False)


def test_the_same_seed_gives_the_same_result(artifact: tuple[Artifact, Path], reference: Reference):
    limits = {"seconds": 300, "examples": 100}
    first = searched(artifact, reference, seed=1, **limits)
    assert searched(artifact, reference, seed=1, **limits) == first
    assert searched(artifact, reference, seed=2, **limits) != first
    clip_images(artifact[1])
    broken = searched(artifact, reference, seed=1, **limits)
    assert broken.failure
    assert searched(artifact, reference, seed=1, **limits) == broken


def test_a_runner_that_raises_is_found(
    artifact: tuple[Artifact, Path], reference: Reference, monkeypatch: pytest.MonkeyPatch
):
    def crash(*_: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(OnnxRuntime, "points", crash)
    result = searched(artifact, reference, seconds=10)
    assert result.failure == "search: flat grey 0: RuntimeError: no kernel"
    assert result.excess == float("inf")


def test_a_check_that_failed_already_is_not_searched(artifact: tuple[Artifact, Path], reference: Reference):
    listed, path = artifact
    failed = checks.unchecked(listed, ONNX.name, "fp32", "off")
    assert with_search(failed, listed, path, ONNX, reference, 60) is failed


def test_a_rounding_is_not_called_another_order_of_classes():
    log_probs = np.arange(20.0).reshape(2, 10)
    assert class_order(log_probs + 1e-4, log_probs) == ""
    assert class_order(log_probs[:, ::-1], log_probs).startswith("the classes are in the order 9, 8")
    columns = np.random.default_rng(0).random((2, 4, 3))
    assert class_order(columns[:, [1, 0, 2, 3]], columns, axis=1) == "the classes are in the order 1, 0, 2, 3"


def test_no_time_is_no_search(artifact: tuple[Artifact, Path], reference: Reference):
    assert searched(artifact, reference, seconds=0) == SearchResult(0, 0.0, "", "")


@pytest.mark.parametrize("network", ["FlowWarp", "DeformableAttention", "Glimpses"])
def test_any_network_is_searched(network: str, tmp_path: Path):
    """One whose pictures are floats of an open size, one without pictures, one with whole numbers."""
    reference, path = reference_of(ZOO[network].program(), ZOO[network].examples(8)), tmp_path / "program.pt2"
    path.write_bytes(reference.program.to_bytes({}))
    result = search.search(PT2.open(path, reference.contract), reference, FP32, seconds=60, examples=30)
    assert not result.failure
    assert result.examples > 10
    assert result.excess > 0
    assert ("noise" in result.worst) >= (network == "DeformableAttention")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (
            Changed(3, 2, True, 50, -20),
            "example 3, without its outer 2 px, mirrored, contrast +50 %, brightness -20",
        ),
        (Changed(3, 0, False, 0, 0), "example 3"),
        (Noisy(5, 30, 7), "example 5 under 30 % noise (seed 7)"),
        (Stripes("a checkerboard", 2, ((0, 0, 0), (1, 2, 3))), "a checkerboard of 2 px in grey 0 and RGB (1, 2, 3)"),
        (Edge(True, 4, ((0, 0, 0), (255, 255, 255))), "grey 0 up to column 4, from there grey 255"),
        (Edge(False, 4, ((7, 7, 7), (7, 7, 7))), "flat grey 7"),
        (Sparse(((1, 2, (9, 9, 9)),)), "black but for grey 9 at row 1, column 2"),
    ],
)
def test_a_picture_is_what_its_words_say(picture: Picture, words: str, reference: Reference):
    assert describe((picture,)) == words
    images = reference.examples.inputs["images"]
    image = picture.draw(images)
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
        assert image.equal(images[3])


def test_pictures_are_drawn_in_any_size():
    images = torch.zeros(4, 1, 24, 94, dtype=torch.uint8)
    pictures = (Edge(True, 90, ((0,), (7,))), Stripes("rows", 3, ((1,), (2,))), Noisy(1, 50, 0), Changed(2, 5, 1, 9, 9))
    assert {picture.draw(images).shape for picture in pictures} == {(1, 24, 94)}
    assert pictures[0].draw(images)[0, :, 90:].unique().tolist() == [7]
    assert str(Edge(True, 3, ((0, 1), (2, 2)))) == "levels (0, 1) up to column 3, from there grey 2"


def test_a_blend_keeps_whole_numbers_and_the_range():
    row = {"pose": torch.full((1, 50), 2.0), "index": torch.tensor([3])}
    blended = Noisy(0, 50, 1).blend(row, {"pose": (0.0, 4.0)})
    assert blended["index"].equal(row["index"])
    assert 1.0 <= blended["pose"].min() < 1.5 < 2.5 < blended["pose"].max() <= 3.0
    assert str(Noisy(3, 20, 7)) == "example 3 under 20 % noise (seed 7)"


def test_verify_searches_where_it_is_told_to(run: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--run", str(run), "--only", "cnn/plain-fp32", "--json"]
    assert cli.run(verify.main, [*options, "--search", "1"]) == 0
    for check in json.loads(capsys.readouterr().out)["checks"]:
        assert check["search"]["examples"] > 0
        assert check["search"]["failure"] == ""


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_a_time_that_is_none(value: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--search", value]) == 2
    assert "is no number from 0" in capsys.readouterr().err
