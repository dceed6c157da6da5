"""One small trained and exported run, shared by all tests; nothing is written into the checkout."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.export import __main__ as export
from stn_export.train import __main__ as train
from stn_export.train.cells import recipe_for
from stn_export.train.data import Dataset, load_dataset
from stn_export.train.trainer import Settings

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    tree = os.environ.get("STN_EXPORT_CIFAR10")
    reasons = {
        "cuda": "" if torch.cuda.is_available() else "PyTorch sees no GPU here",
        "cifar10": "" if tree else "STN_EXPORT_CIFAR10 names no CIFAR-10 image tree",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of the whole session."""
    before, path = Path.cwd(), tmp_path_factory.mktemp("workspace")
    os.chdir(path)
    yield path
    os.chdir(before)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def trained_run(workspace: Path) -> Path:
    """``digits`` after two epochs, exported. Shared: read it, never change it."""
    assert cli.run(train.main, ["--epochs", "2", "--device", "cpu"]) == 0
    assert cli.run(export.main, []) == 0
    return workspace / "artifacts" / "digits"


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run for a test to spoil."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture
def stn(run: Path) -> NetworkDirectory:
    return NetworkDirectory(run / "stn")


@pytest.fixture(scope="session")
def small(digits: Dataset) -> Dataset:
    """640 images to train on and 200 to test on."""
    cut = {
        split: type(part)(part.images[:size], part.labels[:size])
        for split, part, size in (("train", digits.train, 640), ("test", digits.test, 200))
    }
    return Dataset(digits.name, **cut, fingerprint="small", source="cut from digits")


@pytest.fixture
def settings() -> Settings:
    """Three epochs of ``stn`` on ``small``."""
    return Settings("stn", recipe_for("digits", None, 3), seed=1, dataset="digits", dataset_fingerprint="small")
