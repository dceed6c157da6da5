"""What TensorBoard gets of a training."""

import json
from pathlib import Path

import numpy as np
import pytest

from stn_export import cli
from stn_export.train import __main__ as train
from stn_export.train.data import Dataset


def test_figures_and_warped_images_epoch_by_epoch(tmp_path: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorboard", reason="pip install 'stn-export[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(train, "load_dataset", lambda *_: small)
    folder = tmp_path / "board"
    words = ["--epochs", "1", "--device", "cpu", "--run", str(tmp_path / "run"), "--tensorboard", str(folder)]
    assert cli.run(train.main, words) == 0
    found = EventAccumulator(str(folder / "stn-seed-0")).Reload()
    row = json.loads((tmp_path / "run" / "stn" / "history.jsonl").read_text(encoding="utf-8"))
    [accuracy] = found.Scalars("test_accuracy")
    assert (accuracy.step, accuracy.value) == (1, pytest.approx(row["test_accuracy"]))
    [picture] = found.Images("warped")
    assert (picture.step, picture.width, picture.height) == (1, 8 * 64, 2 * 32)
    assert np.isfinite([each.value for tag in found.Tags()["scalars"] for each in found.Scalars(tag)]).all()
    assert not EventAccumulator(str(folder / "cnn-seed-0")).Reload().Tags()["images"]
