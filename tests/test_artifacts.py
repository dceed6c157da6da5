import json
from pathlib import Path

import pytest

from stn_export.artifacts.files import fingerprint, read_json, write_atomically
from stn_export.artifacts.manifest import NetworkDirectory, network_directories
from stn_export.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_fingerprints_tell_lists_apart():
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"]) != fingerprint([b"abc"])


def test_an_edited_artifact_is_refused(stn: NetworkDirectory):
    artifact = stn.artifacts["matmul-fp32"]
    path = stn.path / artifact.file
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="changed after it was written"):
        stn.open(artifact)
    assert not stn.holds(artifact.name, artifact.parent_sha256, artifact.settings)


def test_a_missing_artifact_is_refused(stn: NetworkDirectory):
    artifact = stn.artifacts["matmul-fp32"]
    (stn.path / artifact.file).unlink()
    with pytest.raises(UserError, match="missing"):
        stn.expected()


def test_an_artifact_that_was_never_listed_is_missed(stn: NetworkDirectory):
    manifest = stn.path / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["artifacts"]["affinegrid-fp32"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lacks affinegrid-fp32"):
        stn.expected()


def test_an_export_of_another_checkpoint_is_stale(stn: NetworkDirectory):
    manifest = stn.path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["artifacts"]["matmul-fp32"]["parent_sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="stale"):
        stn.open(stn.artifacts["matmul-fp32"])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "other"}', "\xff"])
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        read_json(path, "stn_export/manifest/1")


def test_runs_that_hold_nothing(tmp_path: Path):
    with pytest.raises(UserError, match="there is no run"):
        network_directories(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no network"):
        network_directories(tmp_path)
