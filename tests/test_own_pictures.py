"""A folder of one's own pictures: how it is read, what is refused, and that the networks follow from it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stn_export import cli
from stn_export.cli import everything
from stn_export.cli.options import parse
from stn_export.config import run_for
from stn_export.errors import UserError
from stn_export.limits import LIMITS
from stn_export.program.origin import module_from
from stn_export.run.manifest import PROGRAM, network_directories
from stn_export.train import __main__ as train
from stn_export.train import data
from stn_export.train.data import load_folder
from stn_export.train.handover import captured, contract_of, cost, load_checkpoint, save_checkpoint
from stn_export.train.networks import SMALLEST, build_model, matched_width
from stn_export.train.recipes import CIFAR10_SIZES, LEAST_STEPS, RECIPES, Sizes
from stn_export.train.sweep import grid
from tests.conftest import REPOSITORY

COLOURS = {"blue": (10, 20, 200), "green": (30, 190, 40), "red": (220, 50, 60)}
FORMATS = (("png", "RGB"), ("jpg", "L"), ("webp", "RGBA"), ("gif", "P"), ("bmp", "RGB"), ("tiff", "LA"), ("ppm", "RGB"))


def draw(path: Path, colour: tuple[int, int, int], mode: str = "RGB", size: tuple[int, int] = (30, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """Three classes in every format and mode, divided by folders: 7 pictures to train on and 2 to test on for each."""
    folder = tmp_path / "colours"
    for name, colour in COLOURS.items():
        for index, (suffix, mode) in enumerate(FORMATS):
            draw(folder / "train" / name / f"{index}.{suffix}", colour, mode, (20 + 9 * index, 33))
        for index in range(2):
            draw(folder / "test" / name / f"t{index}.png", colour)
    return folder


@pytest.fixture
def whole(divided: Path) -> Path:
    """The same pictures, not divided: 9 for each class."""
    for path in sorted(divided.glob("*/*/*")):
        place = divided / path.parent.name
        place.mkdir(exist_ok=True)
        path.rename(place / path.name)
    for split in ("train", "test"):
        shutil.rmtree(divided / split)
    return divided


def test_every_format_mode_and_size_becomes_a_picture_of_the_size_asked_for(divided: Path):
    dataset = load_folder(divided, 24)
    assert dataset.train.images.shape == (21, 3, 24, 24)
    assert dataset.test.images.shape == (6, 3, 24, 24)
    assert dataset.train.labels.bincount().tolist() == [7, 7, 7]
    assert (dataset.spec.classes, dataset.sizes) == (("blue", "green", "red"), Sizes(24, 3))
    for index, colour in enumerate(COLOURS.values()):
        means = dataset.test.images[dataset.test.labels == index].float().mean((0, 2, 3))
        torch.testing.assert_close(means, torch.tensor(colour, dtype=torch.float), atol=1, rtol=0)
    grey = dataset.train.images[(dataset.train.images[:, 0] == dataset.train.images[:, 2]).flatten(1).all(1)]
    assert len(grey) == 6  # a JPEG and a TIFF of each class
    assert load_folder(divided).train.images.shape[-1] == 32


def test_what_was_done_to_the_pictures_is_said(divided: Path):
    (divided / "val").mkdir()
    said = load_folder(divided, 24).spec.note
    assert said.startswith(
        "pictures of colours: 3 classes, 21 for training and 6 for testing, as its folders divide them"
    )
    assert "(val not used)" in said
    assert said.endswith("resized to 24×24 bilinearly whatever its proportions")


def test_an_undivided_folder_is_divided_class_by_class_the_same_way_each_time(whole: Path):
    dataset = load_folder(whole, 20)
    assert dataset.train.labels.bincount().tolist() == [7, 7, 7]
    assert dataset.test.labels.bincount().tolist() == [2, 2, 2]
    assert "20% of each class drawn with seed 0" in dataset.spec.note
    first, second = (data._divided(whole)[0] for _ in range(2))
    assert first == second
    train_part, test_part = first
    for name in COLOURS:
        assert sorted(train_part[name] + test_part[name]) == sorted((whole / name).iterdir())
        assert test_part[name] != sorted((whole / name).iterdir())[:2]  # not merely the first ones


def test_a_folder_is_read_once_for_each_size_and_again_when_a_file_changes(
    divided: Path, monkeypatch: pytest.MonkeyPatch
):
    first, larger = load_folder(divided, 20), load_folder(divided, 21)
    assert first.fingerprint != larger.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(data, "read_picture", lambda *_: pytest.fail("read again"))
        assert load_folder(divided, 20).fingerprint == first.fingerprint
    draw(divided / "test" / "red" / "t0.png", (1, 2, 3))
    assert load_folder(divided, 20).fingerprint != first.fingerprint


def test_hidden_files_are_no_pictures(divided: Path):
    (divided / "train" / "red" / ".DS_Store").write_bytes(b"x")
    (divided / "README.md").write_text("mine", encoding="utf-8")
    assert len(load_folder(divided, 20).train) == 21


def bomb(path: Path) -> None:
    """A small file of 121 million pixels."""
    Image.new("1", (11_000, 11_000)).save(path)


def float_tiff(path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.float32)).save(path, format="TIFF")


def put(folder: Path, *parts: str) -> Path:
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def one_class(folder: Path) -> None:
    for split in ("train", "test"):
        for name in ("green", "red"):
            shutil.rmtree(folder / split / name)


def linked(folder: Path, target: str, *parts: str) -> None:
    path = folder.joinpath(*parts)
    if path.is_dir():
        shutil.rmtree(path)
    path.symlink_to(target)


SPOILT: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no picture": (
        lambda f: put(f, "train", "red", "a.png").write_text("x", encoding="utf-8"),
        ("red/a.png", "is no PNG"),
    ),
    "notes": (
        lambda f: put(f, "test", "red", "notes.txt").write_text("x", encoding="utf-8"),
        ("red/notes.txt", "1 of 28"),
    ),
    "an SVG": (lambda f: put(f, "test", "red", "a.svg").write_text("<svg/>", encoding="utf-8"), ("red/a.svg",)),
    "PostScript": (lambda f: put(f, "test", "red", "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF\n"), ("red/a.eps",)),
    "truncated": (
        lambda f: put(f, "train", "red", "0.png").write_bytes((f / "train" / "red" / "0.png").read_bytes()[:60]),
        ("red/0.png", "or is damaged"),
    ),
    "empty file": (lambda f: put(f, "train", "red", "0.png").write_bytes(b""), ("red/0.png",)),
    "a bomb": (
        lambda f: bomb(put(f, "train", "blue", "big.png")),
        ("big.png", "121000000 is more than 100000000 pixels"),
    ),
    "numbers without a range": (lambda f: float_tiff(put(f, "train", "blue", "f.tiff")), ("f.tiff", "32-bit values")),
    "a pipe": (lambda f: os.mkfifo(put(f, "train", "blue", "pipe.png")), ("pipe.png", "a pipe or a device")),
    "a device": (lambda f: linked(f, "/dev/zero", "train", "blue", "zero.png"), ("zero.png", "symbolic link")),
    "a link out": (lambda f: linked(f, "/etc/passwd", "train", "blue", "p.png"), ("blue/p.png", "symbolic link")),
    "a class linked out": (lambda f: linked(f, "/etc", "train", "blue"), ("train/blue", "symbolic link")),
    "a split linked out": (lambda f: linked(f, "/etc", "train"), ("train", "symbolic link")),
    "a link in a circle": (lambda f: linked(f, "loop.png", "train", "blue", "loop.png"), ("loop.png",)),
    "a class in one split": (
        lambda f: draw(f / "train" / "grey" / "a.png", (9, 9, 9)),
        ("differ", "only in train/: grey"),
    ),
    "other classes": (
        lambda f: (f / "test" / "red").rename(f / "test" / "Red"),
        ("only in train/: red; only in test/: Red",),
    ),
    "an empty class": (lambda f: put(f, "train", "grey").mkdir(), ("no picture of grey", "train")),
    "one class": (one_class, ("holds one class, blue",)),
    "no classes": (lambda f: [shutil.rmtree(path) for path in (f / "train").iterdir()], ("no folders of pictures",)),
    "no test": (lambda f: shutil.rmtree(f / "test"), ("holds train/ and no test/",)),
    "a picture beside the classes": (lambda f: draw(f / "train" / "stray.png", (1, 1, 1)), ("stray.png", "no class's")),
    "a folder inside": (
        lambda f: draw(f / "train" / "red" / "more" / "a.png", (1, 1, 1)),
        ("red/more", "folder inside"),
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_used_is_named_in_one_line_with_a_hint(
    name: str, divided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spoil, words = SPOILT[name]
    spoil(divided)
    run = tmp_path / "run"
    arguments = ["--dataset", "folder", "--data", str(divided), "--size", "20", "--epochs", "1", "--models", "cnn"]
    code = cli.run(train.main, [*arguments, "--run", str(run)])
    error, hint = capsys.readouterr().err.splitlines()
    assert code == 2
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert [word for word in words if word not in error] == []
    assert not run.exists()


def test_several_unreadable_pictures_are_counted_and_the_first_named(divided: Path):
    for index in range(5):
        (divided / "train" / "red" / f"bad{index}.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"5 of 32 pictures cannot be used: .*bad\d\.png.*; …") as caught:
        load_folder(divided, 20)
    assert caught.value.message.count("bad") == data.MOST_NAMED


def test_a_class_of_one_picture_cannot_be_divided(whole: Path):
    for path in sorted((whole / "red").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match=r"red holds one picture, which cannot be both"):
        load_folder(whole)


def test_a_single_picture_is_no_data_set(tmp_path: Path):
    draw(tmp_path / "one" / "red" / "a.png", (1, 2, 3))
    with pytest.raises(UserError, match="holds one class, red"):
        load_folder(tmp_path / "one")
    draw(tmp_path / "bare" / "a.png", (1, 2, 3))
    with pytest.raises(UserError, match=r"a\.png lies in no class's folder"):
        load_folder(tmp_path / "bare")


def test_more_than_fits_is_refused_before_it_is_read(divided: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "read_picture", lambda *_: pytest.fail("read"))
    limit = LIMITS["dataset"]
    monkeypatch.setitem(LIMITS, "dataset", type(limit)(10_000, limit.unit, limit.what))
    with pytest.raises(UserError, match=r"27 pictures of .*colours at --size 20: 32400 is more than 10000 bytes"):
        load_folder(divided, 20)


WITHOUT_EFFECT = {
    "data of digits": (["--data", "{folder}"], "has no effect: --dataset digits takes no files"),
    "size of digits": (["--size", "64"], "--size 64 has no effect"),
    "size of CIFAR-10": (["--dataset", "cifar10", "--size", "64"], "--size 64 has no effect"),
    "a folder without one": (["--dataset", "folder"], "takes pictures of your own"),
    "a folder that is none": (["--dataset", "folder", "--data", "{folder}/none"], "is not a directory"),
    "too small": (["--dataset", "folder", "--data", "{folder}", "--size", "17"], "17 pixels a side are too small"),
    "too large": (["--dataset", "folder", "--data", "{folder}", "--size", "513"], "513 is more than 512 pixels"),
    "no size": (["--dataset", "folder", "--data", "{folder}", "--size", "big"], "invalid"),
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
@pytest.mark.parametrize("stage", ["train", "gain"])
def test_an_option_that_is_of_no_use_is_an_error(
    name: str, stage: str, divided: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    arguments, words = WITHOUT_EFFECT[name]
    chosen = [] if "--dataset" in arguments else ["--dataset", "digits"]
    for module, name_of in ((train, "_train"), (everything, "perform")):
        monkeypatch.setattr(module, name_of, lambda *_: pytest.fail("it was started"))
    assert cli.start([stage, *chosen, *(word.replace("{folder}", str(divided)) for word in arguments)]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert words in error
    assert hint.startswith("hint: ")


def test_the_hint_for_data_of_no_use_works(divided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--data", str(divided), "--run", str(tmp_path / "run"), "--epochs", "1", "--models", "cnn"]
    assert cli.run(train.main, arguments) == 2
    assert "hint: add --dataset folder" in capsys.readouterr().err
    assert cli.run(train.main, [*arguments, "--dataset", "folder"]) == 0


def test_a_run_is_called_like_its_folder(tmp_path: Path):
    assert run_for("digits", None).as_posix() == "artifacts/digits"
    assert run_for("cifar10", tmp_path).as_posix() == "artifacts/cifar10"
    assert run_for("folder", Path("/data/digits")).as_posix() == "artifacts/folder-digits"
    assert run_for("folder", Path("/")).name == "folder-root"


def test_few_pictures_are_trained_on_for_as_many_steps_as_the_digits(divided: Path):
    dataset = load_folder(divided, 20)
    few = parse("train", ["--dataset", "folder", "--data", str(divided)])
    assert {cell.settings.recipe.epochs for cell in grid(few, dataset)} == {LEAST_STEPS}  # a step an epoch
    told = parse("train", ["--dataset", "folder", "--data", str(divided), "--epochs", "3"])
    assert {cell.settings.recipe.epochs for cell in grid(told, dataset)} == {3}
    assert -(-data.DIGITS_TRAIN // RECIPES["quick"].batch_size) * RECIPES["quick"].epochs == LEAST_STEPS
    assert f"({LEAST_STEPS:,})" in (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")


# The networks.


def test_the_networks_of_cifar10_are_the_instance_of_its_sizes():
    for name in ("stn", "cnn", "cnn-matched"):
        torch.manual_seed(0)
        by_default = build_model(name).state_dict()
        torch.manual_seed(0)
        by_sizes = build_model(name, size=32, classes=10).state_dict()
        assert by_default.keys() == by_sizes.keys()
        assert all(torch.equal(by_default[key], by_sizes[key]) for key in by_default)
    assert CIFAR10_SIZES.arguments == {}
    assert matched_width(CIFAR10_SIZES) == 1.5


def test_the_weights_of_cifar10s_networks_are_those_that_they_always_were():
    torch.manual_seed(3)
    state = build_model("stn").state_dict()
    assert next((name, tuple(each.shape)) for name, each in state.items()) == (
        "transformer.localisation.0.weight",
        (8, 3, 7, 7),
    )
    assert state["transformer.localisation.0.weight"][0, 0, 0, 0].item() == pytest.approx(-0.0817753, abs=1e-7)
    assert state["classifier.head.3.bias"][-1].item() == pytest.approx(-0.0434754, abs=1e-7)


@pytest.mark.parametrize("sizes", [Sizes(SMALLEST, 2), Sizes(33, 7), Sizes(64, 5)], ids=str)
def test_networks_of_other_sizes_give_a_probability_for_each_class(sizes: Sizes):
    images = torch.rand(3, *sizes.image)
    costs = {}
    for name in ("stn", "cnn", "cnn-matched"):
        model = build_model(name, **sizes.arguments).eval()
        torch.testing.assert_close(model(images).exp().sum(1), torch.ones(3))
        assert model(images).shape == (3, sizes.classes)
        costs[name] = cost(name, sizes)
    assert abs(costs["cnn-matched"] / costs["stn"] - 1) < 0.08
    with pytest.raises(ValueError, match=f"N×3×{sizes.size}×{sizes.size}, got 3×3×40×40"):
        build_model("stn", **sizes.arguments)(torch.zeros(3, 3, 40, 40))


def test_the_cost_that_the_width_follows_from_is_the_programs():
    from stn_export.train import networks

    for sizes in (CIFAR10_SIZES, Sizes(45, 4)):
        assert networks._classifier_cost(10, sizes) == cost("cnn", sizes)
        assert networks._transformer_cost(sizes.size) + cost("cnn", sizes) == cost("stn", sizes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"size": 17}, "too small"), ({"size": 10**6}, "limit|more than 512"), ({"classes": 1}, "classes to tell apart")],
)
def test_networks_that_cannot_be_built_are_refused(arguments: dict[str, int], words: str):
    with pytest.raises(UserError, match=words):
        build_model("cnn", **arguments)


def test_a_checkpoint_that_claims_other_sizes_is_refused(tmp_path: Path):
    path = tmp_path / "c.pt"
    for sizes, words in (({"size": 64, "classes": 10}, "another network"), ({"size": "big"}, "no network of this")):
        save_checkpoint(path, build_model("cnn"), {"model": "cnn", "sizes": sizes})
        with pytest.raises(UserError, match=words):
            load_checkpoint(path)


def test_a_folder_is_trained_on_and_the_run_says_so(divided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    arguments = ["--dataset", "folder", "--data", str(divided), "--size", "20", "--epochs", "2", "--device", "cpu"]
    assert cli.run(train.main, [*arguments, "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "resized to 20×20 bilinearly whatever its proportions" in out
    for directory in network_directories(run):
        assert directory.facts.classes == ("blue", "green", "red")
        assert directory.facts.examples["source"].startswith("pictures of colours: 3 classes")
        assert directory.listed(PROGRAM).contract == contract_of(Sizes(20, 3))
        checkpoint = load_checkpoint(directory.path / "checkpoint.pt")
        assert (checkpoint.meta["classes"], checkpoint.meta["sizes"]) == (list(COLOURS), {"size": 20, "classes": 3})
        examples = directory.examples()
        assert examples.inputs["images"].shape == (6, 3, 20, 20)
        program = directory.program()
        again = module_from(program.origin, checkpoint.model.state_dict())
        assert isinstance(again, torch.nn.Module), again
        [images] = program.values(examples.take(6))
        assert torch.equal(again(images), program.run([images])["log_probs"])
    assert cli.run(train.main, [*arguments, "--run", str(run)]) == 0
    assert capsys.readouterr().out.count("up to date") == 2


def test_captured_networks_keep_their_sizes():
    program = captured(build_model("stn", size=26, classes=3).eval(), "stn", Sizes(26, 3))
    assert program.origin["arguments"] == {"name": "stn", "size": 26, "classes": 3}
    assert captured(build_model("cnn").eval(), "cnn").origin["arguments"] == {"name": "cnn"}
