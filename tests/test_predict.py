"""Pictures through artifacts of any network: what they are fed with, and what is said of what comes out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stn_export import cli
from stn_export.errors import UserError
from stn_export.predict import __main__ as predict
from stn_export.predict.__main__ import Feeder, archive, feeder_of, picture_of, probabilities, runner_for, seen
from stn_export.program.program import Program
from stn_export.program.specs import Contract, Pixels, TensorSpec
from stn_export.run.examples import Examples, read_picture
from stn_export.run.manifest import CHECKPOINT, PROGRAM, NetworkDirectory, network_directories
from stn_export.run.network import enter, write_examples
from tests.sweeps import swept
from tests.zoo import ZOO, enter_zoo


@pytest.fixture
def run(entered_run: Path, tmp_path: Path) -> Path:
    """``stn`` and ``cnn``, not exported: a copy to spoil."""
    return Path(shutil.copytree(entered_run, tmp_path / "run"))


@pytest.fixture
def picture(tmp_path: Path, run: Path) -> Path:
    """The first example, as a file."""
    path = tmp_path / "a [digit].png"
    save(NetworkDirectory(run / "stn"), path)
    return path


def save(directory: NetworkDirectory, path: Path) -> None:
    """The first picture among a network's examples."""
    image = directory.examples().take(1)[directory.program().contract.picture.name][0]
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)


def read(path: Path) -> torch.Tensor:
    return read_picture(path, 3, 32, 32)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert cli.run(predict.main, [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def outputs(program: Program, examples: Examples, count: int = 1) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in program.run(program.values(examples.take(count))).items()}


def test_every_artifact_gives_what_the_network_gives(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checked = 0
    for directory in network_directories(trained_run):
        program, examples = directory.program(), directory.examples()
        save(directory, path := tmp_path / "first.png")
        expected = torch.from_numpy(outputs(program, examples)["log_probs"]).exp()[0].topk(3)
        for artifact in directory.artifacts.values():
            if artifact.precision != "fp32" or artifact.name == CHECKPOINT:
                continue
            [found] = run_json(capsys, path, "--artifact", directory.path / artifact.file)["pictures"]
            assert found["picture"] == str(path)
            assert [row["class"] for row in found["classes"]] == [str(index.item()) for index in expected.indices]
            actual = [row["probability"] for row in found["classes"]]
            np.testing.assert_allclose(actual, expected.values.numpy(), atol=1e-5, rtol=0)
            checked += 1
    assert checked >= 12


def test_the_table_shows_three_classes_of_every_picture(
    run: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(predict, "DEFAULT_RUN", run)
    assert cli.run(predict.main, [str(picture), str(picture)]) == 0
    out = capsys.readouterr().out
    assert "stn/program on eager-cpu" in out
    rows = [line for line in out.splitlines() if "a [digit].png" in line]
    assert len(rows) == 2
    assert rows[0].count("%") == 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_any_size_and_mode(mode: str, tmp_path: Path):
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (97, 41)).save(path)
    for size in ((3, 32, 32), (1, 24, 94)):
        image = read_picture(path, *size)
        assert (image.dtype, image.shape) == (torch.uint8, size)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_no_stated_range_are_refused(mode: str, tmp_path: Path):
    Image.new(mode, (8, 8)).save(tmp_path / "picture.tif")
    with pytest.raises(UserError, match="has 32-bit values of an unknown range"):
        read_picture(tmp_path / "picture.tif", 3, 32, 32)


def test_a_picture_of_the_right_size_is_taken_as_it_is(picture: Path, run: Path):
    assert torch.equal(read(picture), NetworkDirectory(run / "stn").examples().inputs["images"][0])


def test_resizing_is_antialiased(tmp_path: Path):
    checkers = (np.indices((320, 320)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "checkers.png")
    assert (read(tmp_path / "checkers.png").float() - 127.5).abs().max() < 16


def test_the_exif_orientation_is_applied(tmp_path: Path):
    image = Image.new("RGB", (32, 32))
    image.paste("white", (0, 0, 32, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90°, so the upper half comes to lie on the right
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read(tmp_path / "turned.png")
    assert turned[:, :, 16:].min() == 255
    assert turned[:, :, :16].max() == 0


def test_what_is_transparent_is_white(tmp_path: Path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read(tmp_path / "clear.png").min() == 255


def test_16_bit_greys_keep_their_brightness(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "grey.png")
    assert read(tmp_path / "grey.png").unique().tolist() == [128]


def test_colours_become_grey_where_a_network_takes_one_channel(tmp_path: Path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    assert read_picture(tmp_path / "red.png", 1, 4, 4).unique().tolist() == [76]  # ITU-R 601-2 luma


PICTURED = ("GreyDigits", "PlateRectifier", "TextRectifier", "Homography", "Pyramid", "Glimpses")


@pytest.mark.parametrize("name", swept(PICTURED, "GreyDigits", "PlateRectifier"))
def test_pictures_through_any_network(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = enter_zoo(tmp_path / "zoo", name)
    program, kept = directory.program(), tmp_path / "outputs.npz"
    save(directory, path := tmp_path / "first.png")
    arguments = [
        path,
        path,
        "--artifact",
        directory.path / "program.pt2",
        "--output",
        kept,
        "--show",
        tmp_path / "x.png",
    ]
    found = run_json(capsys, *arguments)
    expected = outputs(program, directory.examples())
    with np.load(kept) as stored:
        assert set(stored) == set(ZOO[name].outputs)
        for output, values in expected.items():
            np.testing.assert_allclose(stored[output], np.concatenate([values, values]), atol=1e-5, rtol=1e-5)
    if ZOO[name].classes:
        assert found["pictures"][1]["classes"][0]["class"] == str(next(iter(expected.values())).argmax())
    else:
        first = found["pictures"][1]["outputs"][ZOO[name].outputs[0]]
        values = next(iter(expected.values()))[0]
        assert (first["shape"], first["dtype"]) == (list(values.shape), str(values.dtype))
        assert first["mean"] == pytest.approx(values.mean(), abs=1e-5)
    with Image.open(tmp_path / "x.png") as image:
        assert image.width == pytest.approx(368 * (1 + ZOO[name].sites), abs=2)


def test_outputs_that_are_no_classes_are_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = enter_zoo(tmp_path / "zoo", "PlateRectifier")
    save(directory, path := tmp_path / "first.png")
    assert cli.run(predict.main, [str(path), "--artifact", str(directory.path / "program.pt2")]) == 0
    out = capsys.readouterr().out
    assert "PlateRectifier/program on eager-cpu" in out
    shape = "×".join(map(str, outputs(directory.program(), directory.examples())["characters"].shape[1:]))
    assert f"{shape} float32" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FlowWarp", "no input takes pictures (images: N×3×H×W float32; flow: N×2×H×W float32)"),
        ("TwoSteps", "input images has 2 channels"),
        ("DeformableAttention", "no input takes pictures"),
    ],
)
def test_networks_that_take_no_pictures(
    name: str, words: str, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
):
    directory = enter_zoo(tmp_path / "zoo", name)
    assert cli.run(predict.main, [str(picture), "--artifact", str(directory.path / "program.pt2")]) == 2
    assert words in capsys.readouterr().err


def test_other_inputs_come_from_the_first_example_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    foreign = ZOO["FlowWarp"]
    program, given = foreign.program(), foreign.inputs(3)
    images, flow = program.contract.inputs
    contract = replace(program.contract, inputs=(replace(images, pixels=Pixels()), flow))
    examples = Examples({"images": given["images"].mul(255).byte(), "flow": given["flow"]}, ("images", "flow"))
    directory = NetworkDirectory(tmp_path / "run" / "flow")
    enter(directory, replace(program, contract=contract), write_examples(tmp_path / "run", examples), label="flow")
    chosen = examples.inputs["images"][1]
    Image.fromarray(chosen.permute(1, 2, 0).numpy()).save(path := tmp_path / "second.png")
    artifact, kept = str(directory.path / "program.pt2"), tmp_path / "kept.npz"
    assert cli.run(predict.main, [str(path)] * 2 + ["--artifact", artifact, "--output", str(kept)]) == 0
    assert "from the first example of the run instead of the images: flow" in capsys.readouterr().out
    expected = program.run((Pixels().normalise(chosen[None]), given["flow"][:1]))
    with np.load(kept) as stored:  # the open height and width are those of the examples
        for warped in stored["warped"]:
            np.testing.assert_allclose(warped, expected["warped"][0].numpy(), atol=1e-6)
    assert run_json(capsys, path, "--artifact", artifact)["from_first_example"] == ["flow"]


def spec(name: str, *shape: int | str, **more: object) -> TensorSpec:
    return TensorSpec(name, "float32", shape, **{"batched": shape[:1] == ("N",)} | more)


def test_pictures_fill_up_a_fixed_batch_and_go_one_by_one_where_an_output_has_none():
    images = spec("images", "N", 3, 4, 4, pixels=Pixels())
    feeder = Feeder(
        "images",
        torch.arange(5).byte().view(5, 1, 1, 1).expand(5, 3, 4, 4),
        Examples({"images": torch.zeros(2, 3, 4, 4)}, ("images",)),
    )

    def parts(contract: Contract) -> list[tuple[int, list[int]]]:
        return [(count, batch["images"][:, 0, 0, 0].tolist()) for count, batch in feeder.parts(contract)]

    each = Contract((images,), (spec("scores", "N", 10),))
    assert parts(each) == [(5, [0, 1, 2, 3, 4])]
    assert parts(each.fixed({"N": 3})) == [(3, [0, 1, 2]), (2, [3, 4, 3])]
    whole = Contract((images,), (spec("mean", 10),))
    assert parts(whole) == [(1, [index]) for index in range(5)]
    assert parts(whole.fixed({"N": 2})) == [(1, [index, index]) for index in range(5)]
    single = Contract((replace(images, shape=(1, 3, 4, 4), batched=False),), (spec("scores", 1, 10),))
    assert parts(single) == [(1, [index]) for index in range(5)]


def test_bytes_with_channels_last_are_the_same_picture(run: Path, picture: Path):
    last = TensorSpec("images", "uint8", ("N", 32, 32, 3), layout="NHWC")
    examples = NetworkDirectory(run / "stn").examples()
    assert picture_of(Contract((last,), ()), examples) == (last, (3, 32, 32))
    feeder, _ = feeder_of(Contract((last,), ()), examples, [picture])
    [(_, batch)] = feeder.parts(Contract((last,), ()))
    np.testing.assert_array_equal(last.array(batch["images"])[0], np.asarray(Image.open(picture)))


def test_what_fills_up_a_batch_is_cut_off_again(run: Path, picture: Path):
    directory = NetworkDirectory(run / "stn")
    artifact = directory.artifacts[PROGRAM]
    fixed = replace(artifact, contract=artifact.contract.fixed({"N": 3}))
    feeder, _ = feeder_of(artifact.contract, directory.examples(), [picture] * 4)
    found = [predict.outputs_of(directory, each, feeder)["log_probs"] for each in (artifact, fixed)]
    assert [each.shape for each in found] == [(4, 10), (4, 10)]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("form", ["logits", "log-probabilities", "probabilities"])
def test_probabilities_of_whatever_a_classifier_gives(form: str):
    logits = torch.tensor([[1.0, 2.0, 300.0], [0.0, 0.0, 0.0]])
    given = {"logits": logits, "log-probabilities": logits.log_softmax(1), "probabilities": logits.softmax(1)}[form]
    found = probabilities({"other": np.ones((2, 7), np.float32), "scores": given.numpy()}, ("a", "b", "c"))
    np.testing.assert_allclose(found, logits.softmax(1).numpy(), atol=1e-6)


def test_whole_numbers_and_other_widths_are_no_probabilities():
    classes = ("a", "b", "c")
    assert probabilities({"digits": np.zeros((2, 3), np.int64), "wide": np.zeros((2, 4), np.float32)}, classes) is None
    assert probabilities({"nothing": np.zeros((2, 0), np.float32)}, ()) is None


def test_outputs_of_any_name_are_kept(tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(archive({"file": np.arange(3), "a/b": np.float32(1).reshape(1)}))
    with np.load(tmp_path / "x.npz") as stored:
        assert (stored["file"].tolist(), stored["a/b"].tolist()) == ([0, 1, 2], [1.0])


def test_what_is_no_picture_is_shown_as_its_mean():
    features = torch.tensor([[0.0, 1.0], [2.0, 4.0]]).expand(2, 8, 2, 2)  # two pictures
    assert seen(features, 2, 3, Pixels()).tolist() == [[[0, 63], [127, 255]]]
    assert seen(torch.full((2, 3, 2, 2), 1.0), 2, 3, Pixels()).unique().tolist() == [255]
    heads = torch.stack([features[0, :1], 3 - features[0, :1], 9 * features[0, :1], features[0, :1]])  # two a picture
    assert seen(heads, 2, 3, None).tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize("count", [1, 3])
def test_show_draws_every_picture_beside_its_warped_self(
    count: int, run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shown = tmp_path / "new" / "shown.png"
    artifact = run / "stn" / "program.pt2"
    run_json(capsys, *[picture] * count, "--artifact", artifact, "--show", shown)
    with Image.open(shown) as image:
        assert image.height == pytest.approx(count * 400, abs=2)
        assert image.width > 400


def test_show_needs_a_site(run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [str(picture), "--artifact", str(run / "cnn" / "program.pt2"), "--show", str(tmp_path / "x.png")]
    assert cli.run(predict.main, arguments) == 2
    assert "cnn has no sampling site, so there is nothing to show" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "there is no file nowhere.png"),
        (["{run}/stn/manifest.json"], "is no PNG, JPEG, BMP, WEBP, TIFF, GIF, PPM picture, or is damaged"),
        (["{run}"], "is a directory"),
        ([], "the following arguments are required: IMAGE"),
        (["{picture}", "--artifact", "{run}/stn/other.onnx"], "not listed in the manifest.json beside it"),
        (["{picture}", "--artifact", "{run}/other.onnx"], "has no manifest.json beside it"),
        (["{picture}", "--show", "shown.jpg"], "is no PNG file"),
        (["{picture}", "--output", "kept.txt"], "is no NPZ file"),
        (["{picture}"] * 65 + ["--show", "shown.png"], "65 is more than 64 pictures"),
        (["{picture}", "--show", "{run}/stn/manifest.json/x.png"], "manifest.json cannot be used: File exists"),
        (["{picture}", "--output", "{run}/stn/manifest.json/x.npz"], "manifest.json cannot be used: File exists"),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)
def test_what_a_user_can_get_wrong(
    arguments: list[str], words: str, run: Path, picture: Path, capsys: pytest.CaptureFixture[str]
):
    filled = [argument.format(run=run, picture=picture) for argument in arguments]
    if "--artifact" not in filled:
        filled += ["--artifact", str(run / "stn" / "program.pt2")]
    assert cli.run(predict.main, filled) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 2


def test_a_truncated_picture(picture: Path):
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match="is no PNG, JPEG, BMP, WEBP, TIFF, GIF, PPM picture, or is damaged"):
        read(picture)


def test_an_edited_artifact_is_refused(run: Path, picture: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "stn" / "program.pt2"
    path.write_bytes(path.read_bytes() + b" ")
    assert cli.run(predict.main, [str(picture), "--artifact", str(path)]) == 2
    assert "changed after it was written" in capsys.readouterr().err


def test_a_format_without_a_runner_here(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predict, "RUNNERS", ())
    with pytest.raises(UserError, match="cannot run on the CPU here"):
        runner_for(NetworkDirectory(run / "stn").artifacts[PROGRAM])
