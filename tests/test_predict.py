import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stn_export import cli
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.errors import UserError
from stn_export.predict import __main__ as predict
from stn_export.predict.__main__ import read_picture, runner_for
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset, contract_batch, denormalise, normalise

FLOAT = {"shape": ["N", 3, 32, 32], "dtype": "float32", "mean": 0.5, "std": 0.5}
BYTES = {"shape": ["N", 3, 32, 32], "dtype": "uint8"}
BYTES_LAST = {"shape": ["N", 32, 32, 3], "dtype": "uint8"}


@pytest.fixture
def picture(tmp_path: Path, digits: Dataset) -> Path:
    """The first test image of digits, as a file."""
    path = tmp_path / "a [digit].png"
    Image.fromarray(digits.test.images[0].permute(1, 2, 0).numpy()).save(path)
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert cli.run(predict.main, [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def files(run: Path) -> list[Path]:
    directories = (NetworkDirectory(run / "stn"), NetworkDirectory(run / "cnn"))
    return [directory.path / artifact.file for directory in directories for artifact in directory.artifacts.values()]


def test_every_artifact_gives_what_the_checkpoint_gives(
    run: Path, picture: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]
):
    exact = [path for path in files(run) if not {"bf16", "fp16", "int8"} & set(path.stem.split("-"))]
    assert len(exact) >= 12
    for path in exact:
        model = load_checkpoint(path.parent / "checkpoint.pt").model
        expected = model(normalise(digits.test.images[:1])).exp()[0].topk(3)
        [found] = run_json(capsys, picture, "--artifact", path)["pictures"]
        assert found["picture"] == str(picture)
        assert [row["class"] for row in found["classes"]] == [str(index.item()) for index in expected.indices]
        actual = [row["probability"] for row in found["classes"]]
        np.testing.assert_allclose(actual, expected.values.numpy(), atol=1e-5, rtol=0)


def test_the_table_shows_three_classes_of_every_picture(
    trained_run: Path, picture: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.run(predict.main, [str(picture), str(picture)]) == 0  # the default artifact is that of trained_run
    out = capsys.readouterr().out
    assert "stn/matmul-fp32 on onnxruntime-cpu" in out
    rows = [line for line in out.splitlines() if "a [digit].png" in line]
    assert len(rows) == 2
    assert rows[0].count("%") == 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_any_size_and_mode(mode: str, tmp_path: Path):
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "I": "tif", "F": "tif"}.get(mode, "png")
    path = tmp_path / f"picture.{suffix}"
    Image.new(mode, (97, 41)).save(path)
    image = read_picture(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 32)


def test_a_32_by_32_picture_is_taken_as_it_is(picture: Path, digits: Dataset):
    assert torch.equal(read_picture(picture), digits.test.images[0])


def test_resizing_is_antialiased(tmp_path: Path):
    checkers = (np.indices((320, 320)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "checkers.png")
    assert (read_picture(tmp_path / "checkers.png").float() - 127.5).abs().max() < 16


def test_the_exif_orientation_is_applied(tmp_path: Path):
    image = Image.new("RGB", (32, 32))
    image.paste("white", (0, 0, 32, 16))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90°, so the upper half comes to lie on the right
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read_picture(tmp_path / "turned.png")
    assert turned[:, :, 16:].min() == 255
    assert turned[:, :, :16].max() == 0


def test_what_is_transparent_is_white(tmp_path: Path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").min() == 255


def test_16_bit_greys_keep_their_brightness(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").unique().tolist() == [128]


@pytest.mark.parametrize(
    ("contract", "shape", "dtype"),
    [
        (FLOAT, (5, 3, 32, 32), np.float32),
        (BYTES, (5, 3, 32, 32), np.uint8),
        (BYTES_LAST, (5, 32, 32, 3), np.uint8),
        (FLOAT | {"shape": BYTES_LAST["shape"]}, (5, 32, 32, 3), np.float32),
    ],
)
def test_a_batch_for_every_contract(contract: dict, shape: tuple, dtype: type, digits: Dataset):
    images = digits.test.images[:5]
    before = images.clone()
    batch = contract_batch(images, contract)
    assert (batch.shape, batch.dtype, batch.flags.c_contiguous) == (shape, dtype, True)
    channels_first = batch if shape[1] == 3 else batch.transpose(0, 3, 1, 2)
    expected = normalise(images) if dtype == np.float32 else images
    np.testing.assert_array_equal(channels_first, expected.numpy())
    assert torch.equal(images, before)


def test_a_contract_brings_its_own_mean_and_std():
    batch = contract_batch(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), FLOAT | {"mean": 0.0, "std": 1.0})
    assert batch.flat[0] == 1.0


@pytest.mark.parametrize("contract", [{}, BYTES | {"dtype": "int8"}, BYTES | {"shape": ["N", 1, 28, 28]}])
def test_an_unknown_contract(contract: dict):
    with pytest.raises(UserError, match="is unknown"):
        contract_batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), contract)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32, 3, dtype=torch.uint8)])
def test_a_contract_takes_only_bytes_in_nchw(images: torch.Tensor):
    with pytest.raises(ValueError, match="expected uint8 images"):
        contract_batch(images, BYTES)


def test_denormalise_undoes_normalise():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(denormalise(normalise(values)), values)


@pytest.mark.parametrize("count", [1, 3])
def test_show_draws_every_picture_beside_its_warped_self(
    count: int, run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shown = tmp_path / "new" / "shown.png"
    artifact = run / "stn" / "matmul-fp32.onnx"
    run_json(capsys, *[picture] * count, "--artifact", artifact, "--show", shown)
    with Image.open(shown) as image:
        assert image.height == pytest.approx(count * 400, abs=2)
        assert image.width > 400


def test_show_needs_a_transformer(run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [str(picture), "--artifact", str(run / "cnn" / "plain-fp32.onnx"), "--show", str(tmp_path / "x.png")]
    assert cli.run(predict.main, arguments) == 2
    assert "cnn has no transformer" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "no such file"),
        (["{run}/stn/manifest.json"], "no picture that Pillow can read"),
        (["{run}"], "no picture that Pillow can read"),
        ([], "the following arguments are required: IMAGE"),
        (["{picture}", "--artifact", "{run}/stn/other.onnx"], "not listed in the manifest.json beside it"),
        (["{picture}", "--artifact", "{run}/other.onnx"], "has no manifest.json beside it"),
        (["{picture}", "--artifact", "{run}/stn/edited.onnx"], "not listed"),
        (["{picture}", "--show", "shown.jpg"], "is no PNG file"),
        (["{picture}"] * 65 + ["--show", "shown.png"], "draws up to 64 pictures"),
        (["{picture}", "--show", "{run}/stn/manifest.json/x.png"], "cannot be written"),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)
def test_what_a_user_can_get_wrong(
    arguments: list[str], words: str, run: Path, picture: Path, capsys: pytest.CaptureFixture[str]
):
    filled = [argument.format(run=run, picture=picture) for argument in arguments]
    if "--artifact" not in filled:
        filled += ["--artifact", str(run / "stn" / "matmul-fp32.onnx")]
    assert cli.run(predict.main, filled) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 2


def test_a_truncated_picture(picture: Path):
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match="no picture that Pillow can read"):
        read_picture(picture)


def test_an_edited_artifact_is_refused(run: Path, picture: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "stn" / "matmul-fp32.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    assert cli.run(predict.main, [str(picture), "--artifact", str(path)]) == 2
    assert "changed after it was written" in capsys.readouterr().err


def test_a_format_without_a_runner_here(stn: NetworkDirectory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predict, "RUNNERS", ())
    with pytest.raises(UserError, match="cannot run on the CPU here"):
        runner_for(stn.artifacts["matmul-fp32"])
