import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from stn_export.errors import UserError
from stn_export.train import data
from stn_export.train.data import Dataset, load_dataset, normalise
from stn_export.train.handover import CONTRACT
from stn_export.train.recipes import DATASETS


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An image tree of 3 training images and 1 test image a class; a class's images are its label's grey."""
    for split, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(DATASETS["cifar10"].classes):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                write_png(folder / f"{index}.png", grey=20 * label + index)
    return tmp_path / "tree"


def write_png(path: Path, mode: str = "RGB", size: tuple[int, int] = (32, 32), grey: int = 0) -> None:
    Image.new(mode, size, grey if mode == "L" else (grey, grey, grey)).save(path)


def test_digits(digits: Dataset):
    assert digits.train.images.shape == (10_000, 3, 32, 32)
    assert digits.test.images.shape == (2_000, 3, 32, 32)
    assert load_dataset("digits").fingerprint == digits.fingerprint


def test_normalisation_ends_at_one():
    values = normalise(torch.tensor([0, 255], dtype=torch.uint8))
    assert values.tolist() == [-1.0, 1.0]
    assert normalise(torch.tensor(100, dtype=torch.uint8)) == pytest.approx((100 / 255 - 0.5) / 0.5, abs=1e-7)


def test_programs_normalise_as_training_does():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    [spec] = CONTRACT.inputs
    assert torch.equal(torch.from_numpy(spec.array(images)), normalise(images))


def test_an_image_tree(tree: Path):
    dataset = load_dataset("cifar10", tree)
    assert len(dataset.train) == 30
    assert len(dataset.test) == 10
    assert torch.equal(dataset.train.images[:, 0, 0, 0] // 20, dataset.train.labels.to(torch.uint8))
    assert dataset.train.labels[:10].unique().numel() > 3  # not sorted by class


def test_the_cache_is_used_until_a_file_changes(tree: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_dataset("cifar10", tree)
    with monkeypatch.context() as patch:
        patch.setattr(data, "_decode", lambda file: pytest.fail("decoded again"))
        assert load_dataset("cifar10", tree).fingerprint == first.fingerprint
    write_png(tree / "test" / "cat" / "0.png")
    assert load_dataset("cifar10", tree).fingerprint != first.fingerprint


def test_a_damaged_cache_is_built_again(tree: Path):
    first = load_dataset("cifar10", tree)
    for path in Path("data/cache").glob("cifar10-*"):
        path.write_bytes(b"damaged")
    assert load_dataset("cifar10", tree).fingerprint == first.fingerprint


def spoil_size(tree: Path) -> Path:
    path = tree / "train" / "cat" / "1.png"
    write_png(path, size=(32, 40))
    return path


def spoil_colours(tree: Path) -> Path:
    path = tree / "train" / "dog" / "2.png"
    write_png(path, mode="L")
    return path


def spoil_end(tree: Path) -> Path:
    path = tree / "test" / "ship" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


def spoil_content(tree: Path) -> Path:
    path = tree / "test" / "frog" / "0.png"
    path.write_text("this is no picture", encoding="utf-8")
    return path


def spoil_emptiness(tree: Path) -> Path:
    path = tree / "test" / "bird" / "0.png"
    path.write_bytes(b"")
    return path


def spoil_class(tree: Path) -> Path:
    path = tree / "train" / "truck"
    shutil.rmtree(path)
    return path


@pytest.mark.parametrize(
    "spoil",
    [spoil_size, spoil_colours, spoil_end, spoil_content, spoil_emptiness, spoil_class],
    ids=lambda f: f.__name__,
)
def test_a_spoilt_tree_names_the_file(tree: Path, spoil):
    path = spoil(tree)
    with pytest.raises(UserError) as caught:
        load_dataset("cifar10", tree)
    assert str(path) in str(caught.value)


def test_a_directory_without_a_data_set(tmp_path: Path):
    with pytest.raises(UserError, match="holds neither"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(UserError, match="is not a directory"):
        load_dataset("cifar10", tmp_path / "nowhere")


def test_incomplete_pickles_are_an_error(tmp_path: Path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    with pytest.raises(UserError, match="incomplete or corrupted"):
        load_dataset("cifar10", tmp_path)


def test_without_a_network_the_error_names_three_ways_on(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise data.URLError("no route")

    monkeypatch.setattr(data, "CIFAR10", refuse)
    with pytest.raises(UserError, match="no route") as caught:
        load_dataset("cifar10")
    assert all(way in caught.value.hint for way in ("DATA=", "network", "DATASET=digits"))


@pytest.mark.slow
@pytest.mark.cifar10
def test_cifar10_is_the_one_that_everyone_means():
    started = time.perf_counter()
    dataset = load_dataset("cifar10", Path(os.environ["STN_EXPORT_CIFAR10"]))
    assert time.perf_counter() - started < 60  # hangs and quadratic work only
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    assert len(dataset.train.labels.bincount().unique()) == 1
    means = (dataset.train.images / 255.0).mean((0, 2, 3))
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=5e-3, rtol=0)
