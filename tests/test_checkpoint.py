from pathlib import Path

import pytest
import torch

from stn_export.errors import UserError
from stn_export.run.manifest import NetworkDirectory
from stn_export.train.handover import load_checkpoint, save_checkpoint
from stn_export.train.networks import build_model


def test_round_trip(tmp_path: Path):
    model = build_model("stn")
    save_checkpoint(tmp_path / "c.pt", model, {"model": "stn", "classes": ["a"]})
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert loaded.meta == {"model": "stn", "classes": ["a"]}
    assert not loaded.model.training
    for ours, theirs in zip(model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_trained_checkpoint_says_what_it_is(stn: NetworkDirectory):
    meta = load_checkpoint(stn.path / "checkpoint.pt").meta
    assert meta["classes"] == list("0123456789")
    assert meta["settings"]["dataset"] == "digits"
    assert len(meta["history"]) == 2


def test_a_truncated_checkpoint(stn: NetworkDirectory):
    path = stn.path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="truncated or no PyTorch file"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{"weights": {}}, [1, 2], torch.zeros(3)])
def test_a_foreign_checkpoint(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a checkpoint of stn_export"):
        load_checkpoint(tmp_path / "foreign.pt")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    torch.save(print, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="no PyTorch file"):
        load_checkpoint(tmp_path / "evil.pt")


def test_weights_of_another_network(tmp_path: Path):
    save_checkpoint(tmp_path / "c.pt", build_model("cnn"), {"model": "stn"})
    with pytest.raises(UserError, match="another network than stn"):
        load_checkpoint(tmp_path / "c.pt")


def test_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="there is no file"):
        load_checkpoint(tmp_path / "none.pt")
