"""The run directory: what a manifest says is checked against the files' bytes, and no write is ever half done."""

import hashlib
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stn_export.errors import UserError
from stn_export.program.sites import Site
from stn_export.program.specs import Contract
from stn_export.run import manifest, store
from stn_export.run.examples import Examples
from stn_export.run.manifest import (
    CHECKPOINT,
    MANIFEST,
    PROGRAM,
    Artifact,
    Facts,
    NetworkDirectory,
    network_directories,
)
from stn_export.run.store import (
    filled,
    fingerprint,
    json_bytes,
    load_tensors,
    read_json,
    serialise,
    sha256_of,
    sweep,
    write_atomically,
    write_if_changed,
    write_json,
)

SITE = json.loads(
    json.dumps(
        Site(
            "site0", "sampler.py:1", "linear", "bilinear", "zeros", False, False, ("N", 3), ("N", 3), "a", "b", "c"
        ).as_dict()
    )
)


def entry(directory: NetworkDirectory, name: str, parent: Artifact | None = None, **more: object) -> Artifact:
    """A file that holds its own name, listed."""
    directory.path.mkdir(parents=True, exist_ok=True)
    (directory.path / f"{name}.file").write_text(name, encoding="utf-8")
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    made = Artifact(name, f"{name}.file", directory.name, "onnx", sha256, Contract((), ()))
    return directory.add(replace(made, parent_sha256=parent.sha256 if parent else None, **more))


@pytest.fixture
def made(tmp_path: Path) -> NetworkDirectory:
    """A network whose checkpoint became a program, and that two exports."""
    directory = NetworkDirectory(tmp_path / "run" / "stn")
    directory.path.parent.mkdir()
    directory.describe(Facts("a network", classes=("a", "b"), sites=(SITE,)))
    program = entry(directory, PROGRAM, entry(directory, CHECKPOINT))
    for name in ("matmul-fp32", "folded-fp32"):
        entry(directory, name, program, lowering=name.split("-")[0], settings={"opset": 18, "sizes": (1, 2)})
    directory.plan(("matmul-fp32", "folded-fp32"), {"gather-fp32": "it cannot"})
    return directory


def edit(directory: NetworkDirectory, change: Callable[[dict], object]) -> None:
    content = json.loads((directory.path / MANIFEST).read_text(encoding="utf-8"))
    change(content)
    (directory.path / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def test_a_manifest_says_what_was_put_into_it(made: NetworkDirectory):
    again = NetworkDirectory(made.path)
    assert again.name == "stn"
    assert again.facts == Facts("a network", classes=("a", "b"), sites=(SITE,))
    assert list(again.artifacts) == [CHECKPOINT, PROGRAM, "matmul-fp32", "folded-fp32"]
    found = again.listed("matmul-fp32")
    assert (found.lowering, found.precision, found.contract) == ("matmul", "fp32", Contract((), ()))
    content = again.read()
    assert (content.rows, content.refused) == (("matmul-fp32", "folded-fp32"), {"gather-fp32": "it cannot"})
    assert [artifact.name for artifact, _ in again.expected()] == [PROGRAM, "matmul-fp32", "folded-fp32"]
    assert again.expected()[1][1].read_text(encoding="utf-8") == "matmul-fp32"


def test_a_manifest_of_nothing(tmp_path: Path):
    nothing = NetworkDirectory(tmp_path / "new")
    assert (nothing.artifacts, nothing.read().facts, nothing.read().rows) == ({}, None, ())
    assert not nothing.describes(Facts("a network"))
    assert not nothing.holds("matmul-fp32", None, {})
    with pytest.raises(UserError, match="new holds no network yet") as caught:
        nothing.facts  # noqa: B018
    assert caught.value.hint == f"run 'make train RUN={tmp_path}' or adopt first"
    with pytest.raises(UserError, match="new holds no program") as caught:
        nothing.listed(PROGRAM)
    assert caught.value.hint == f"run 'make train RUN={tmp_path}' or adopt first"
    with pytest.raises(UserError, match="new holds no exports") as caught:
        nothing.expected()
    assert caught.value.hint == f"run 'make export RUN={tmp_path}' first"


def test_an_entry_of_one_name_replaces_the_older_and_can_be_forgotten(made: NetworkDirectory):
    before = made.read()
    added = made.add(replace(made.listed("matmul-fp32"), precision="fp16"))
    assert made.artifacts == before.artifacts | {"matmul-fp32": added}
    made.forget("matmul-fp32")
    assert list(made.artifacts) == [CHECKPOINT, PROGRAM, "folded-fp32"]
    assert (made.path / "matmul-fp32.file").exists()
    assert (made.facts, made.read().rows, made.read().refused) == (before.facts, before.rows, before.refused)
    made.describe(Facts("another"))
    assert made.describes(Facts("another"))
    assert not made.describes(Facts("a third"))
    assert list(made.artifacts) == [CHECKPOINT, PROGRAM, "folded-fp32"]


def test_what_is_up_to_date(made: NetworkDirectory):
    parent, settings = made.listed(PROGRAM).sha256, {"opset": 18, "sizes": (1, 2)}
    assert made.holds("matmul-fp32", parent, settings)
    assert not made.holds("nothing", parent, settings)
    assert not made.holds("matmul-fp32", "another parent", settings)
    assert not made.holds("matmul-fp32", parent, settings | {"opset": 17})
    path = made.path / "matmul-fp32.file"
    path.write_text("other", encoding="utf-8")
    assert not made.holds("matmul-fp32", parent, settings)
    path.unlink()
    assert not made.holds("matmul-fp32", parent, settings)


@pytest.mark.parametrize("name", ["matmul-fp32", PROGRAM])
def test_an_edited_artifact_is_refused(made: NetworkDirectory, name: str):
    path = made.path / f"{name}.file"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"changed after it was written \(its sha256 differs\)") as caught:
        made.open(made.listed(name))
    stage = "train" if name == PROGRAM else "export"
    assert caught.value.hint == f"delete it, then run 'make {stage} RUN={made.path.parent}' to write it again"
    with pytest.raises(UserError, match="changed after it was written"):
        made.intact(made.listed(name))


@pytest.mark.parametrize("name", ["folded-fp32", CHECKPOINT])
def test_a_missing_artifact_is_refused(made: NetworkDirectory, name: str):
    (made.path / f"{name}.file").unlink()
    with pytest.raises(UserError, match=r"is listed in the manifest but missing") as caught:
        made.open(made.listed(name))
    stage = "train" if name == CHECKPOINT else "export"
    assert caught.value.hint == f"run 'make {stage} RUN={made.path.parent}' to write it again"
    if name != CHECKPOINT:
        with pytest.raises(UserError, match="missing"):
            made.expected()


@pytest.mark.parametrize("lost", [("matmul-fp32",), (PROGRAM,), ("matmul-fp32", "folded-fp32")])
def test_an_artifact_that_was_never_listed_is_missed(made: NetworkDirectory, lost: tuple[str, ...]):
    edit(made, lambda content: [content["artifacts"].pop(name) for name in lost])
    with pytest.raises(UserError, match=f"stn lacks {', '.join(lost)}\\n") as caught:
        made.expected()
    assert caught.value.hint == f"run 'make export RUN={made.path.parent}' first"


def test_a_network_that_can_have_no_export_is_planned_all_the_same(made: NetworkDirectory):
    made.plan((), {"matmul-fp32": "it cannot"})
    assert len(made.expected()) == 3
    made.plan((), {})
    with pytest.raises(UserError, match="holds no exports"):
        made.expected()


@pytest.mark.parametrize(("name", "of"), [("matmul-fp32", PROGRAM), (PROGRAM, CHECKPOINT)])
def test_what_was_made_from_another_parent_is_stale(made: NetworkDirectory, name: str, of: str):
    edit(made, lambda content: content["artifacts"][name].update(parent_sha256="0" * 64))
    with pytest.raises(UserError, match=f"is stale: it was made from another {of}\\n") as caught:
        made.open(made.listed(name))
    assert caught.value.hint == f"run 'make train export RUN={made.path.parent}' again"
    assert made.intact(made.listed(name)).read_text(encoding="utf-8") == name
    assert made.open(made.listed(CHECKPOINT)).read_text(encoding="utf-8") == CHECKPOINT  # of nothing in the run


def test_a_program_that_came_from_outside_has_no_parent(made: NetworkDirectory):
    made.forget(CHECKPOINT)
    assert made.open(made.listed(PROGRAM)).read_text(encoding="utf-8") == PROGRAM


def test_a_program_is_loaded_with_its_contract_once_its_bytes_are_checked(
    made: NetworkDirectory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        manifest, "load_program", lambda path, contract, _: (path.read_text(encoding="utf-8"), contract)
    )
    assert made.program() == (PROGRAM, Contract((), ()))
    (made.path / f"{PROGRAM}.file").write_text("other", encoding="utf-8")
    with pytest.raises(UserError, match="changed after it was written"):
        made.program()


def test_examples_are_those_that_were_written(made: NetworkDirectory):
    examples = Examples({"images": torch.rand(3, 2)}, ("images",))
    path = made.path / "examples.pt"
    path.write_bytes(examples.to_bytes())
    made.describe(replace(made.facts, examples={"file": "examples.pt", "sha256": sha256_of(path), "source": "here"}))
    assert made.examples().inputs["images"].equal(examples.inputs["images"])
    for spoil, said in (
        (lambda: path.write_bytes(path.read_bytes() + b"\0"), "was changed after it was written (its sha256 differs)"),
        (path.unlink, "is listed in the manifest but missing"),
    ):
        spoil()
        with pytest.raises(UserError) as caught:
            made.examples()
        assert str(caught.value).splitlines()[0] == f"{path} {said}"
        assert f"run 'make train RUN={made.path.parent}' or adopt again to write it" in caught.value.hint


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("network"),
        lambda content: content.pop("rows"),
        lambda content: content["artifacts"][PROGRAM].pop("sha256"),
        lambda content: content["artifacts"][PROGRAM].update(sha256=1),
        lambda content: content["artifacts"][PROGRAM].update(file="../elsewhere"),
        lambda content: content["artifacts"][PROGRAM].update(beside={".hidden": ""}),
        lambda content: content["network"]["sites"][0].pop("image"),
        lambda content: content["network"].update(parameters="many"),
        lambda content: content.update(artifacts=[]),
    ],
)
def test_a_damaged_manifest_is_named(made: NetworkDirectory, spoil: Callable[[dict], object]):
    edit(made, spoil)
    with pytest.raises(UserError, match=r"stn/manifest\.json is damaged: ") as caught:
        made.read()
    assert caught.value.hint == "delete it and run the stage that writes it again"


def add_several(path: Path, worker: int) -> None:
    for number in range(5):
        entry(NetworkDirectory(path), f"{worker}-{number}")


def test_entries_that_are_added_at_once_are_all_kept(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_several, args=(tmp_path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(NetworkDirectory(tmp_path).artifacts) == 20


def test_a_run_shows_the_subject_first_then_the_plain_one_then_others_by_name(tmp_path: Path):
    for name, role in (("a", "other"), ("b", "plain"), ("c", "subject"), ("0", "other")):
        NetworkDirectory(tmp_path / name).describe(Facts(name, role))
    entry(NetworkDirectory(tmp_path / "nobody"), PROGRAM)  # that nobody has described
    assert [directory.name for directory in network_directories(tmp_path)] == ["c", "b", "0", "a"]


def test_runs_that_hold_nothing(tmp_path: Path):
    for path, said in ((tmp_path / "nowhere", r"there is no run at .*nowhere"), (tmp_path, "holds no network")):
        with pytest.raises(UserError, match=said) as caught:
            network_directories(path)
        assert caught.value.hint == f"run 'make train RUN={path}' or adopt first, or name another with --run"


def test_what_was_deleted_is_not_made_anew(made: NetworkDirectory):
    shutil.rmtree(made.path.parent)
    with pytest.raises(FileNotFoundError):
        write_atomically(made.path.parent / "verify.json", b"")
    with pytest.raises(UserError, match="stn was deleted"):
        made.forget(PROGRAM)
    assert not made.path.parent.exists()


def test_what_an_interrupted_write_left_is_swept(tmp_path: Path):
    (tmp_path / "stn").mkdir()
    for name in (".a.json.1234.partial", "stn/.b.onnx.5678.partial", ".hidden", "mine.partial"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".hidden", "mine.partial", "stn"]


def test_what_was_hashed_is_what_is_opened(made: NetworkDirectory):
    artifact = made.listed("matmul-fp32")
    opened = made.open(artifact)
    (made.path / artifact.file).write_text("another", encoding="utf-8")
    assert opened.read_text(encoding="utf-8") == "matmul-fp32"
    with pytest.raises(UserError, match="was changed after it was written"):
        made.open(artifact)
    assert opened.read_text(encoding="utf-8") == "matmul-fp32"


def test_a_write_gives_a_file_that_others_may_read(tmp_path: Path):
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_is_on_disk_and_beside_its_place_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []

    def fsync(handle: int) -> None:
        [neighbour] = tmp_path.iterdir()
        synced.append((neighbour.name.startswith(".file."), neighbour.read_bytes()))

    monkeypatch.setattr(store.os, "fsync", fsync)
    write_atomically(tmp_path / "file", b"content")
    assert synced == [(True, b"content")]


def test_what_is_the_same_is_not_written_again(tmp_path: Path):
    path = tmp_path / "file"
    assert [write_if_changed(path, content) for content in (b"a", b"a", b"b", b"b")] == [True, False, True, False]
    assert path.read_bytes() == b"b"


def test_digests(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    prefixed = b"\x02\0\0\0\0\0\0\0ab\x01\0\0\0\0\0\0\0c"
    assert fingerprint([b"ab", b"c"]) == hashlib.sha256(prefixed).hexdigest()
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"]) != fingerprint([b"abc"])


def test_json_goes_out_and_in_under_its_schema(tmp_path: Path):
    write_json(tmp_path / "a.json", "ours/1", {"b": [1]})
    assert read_json(tmp_path / "a.json", "ours/1") == {"b": [1]}
    assert (tmp_path / "a.json").read_bytes() == json_bytes("ours/1", {"b": [1]})
    assert json_bytes("s", {"b": 1}) == b'{\n "schema": "s",\n "b": 1\n}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read"),
        ("\xff", "cannot be read"),
        ("[]", "is not of schema ours/1"),
        ("{}", "is not of schema ours/1"),
        ('{"schema": "other"}', "is not of schema ours/1"),
    ],
)
def test_foreign_json_is_refused(tmp_path: Path, content: str, said: str):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=rf"a\.json {said}") as caught:
        read_json(tmp_path / "a.json", "ours/1")
    assert caught.value.hint == "delete it and run the stage that writes it again"


def test_json_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no file .*b\.json"):
        read_json(tmp_path / "b.json", "ours/1")


def test_tensors_go_out_and_in_and_code_does_not(tmp_path: Path):
    path = tmp_path / "a.pt"
    path.write_bytes(serialise({"a": torch.arange(3)}))
    assert load_tensors(path)["a"].tolist() == [0, 1, 2]
    path.write_bytes(serialise(Path("a pickle")))
    with pytest.raises(UserError, match=r"a\.pt is truncated or no PyTorch file") as caught:
        load_tensors(path)
    assert caught.value.hint == "delete it, then run 'make train'"
    with pytest.raises(UserError, match=r"there is no file .*b\.pt") as caught:
        load_tensors(tmp_path / "b.pt")
    assert caught.value.hint == "run 'make train' first, or name another"


PAGE = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\nc\n"


def test_a_place_of_a_text_is_filled_and_no_other():
    once = filled(PAGE, "one", ["x", "y"])
    assert once == "a\n<!-- one -->\nx\ny\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\nc\n"
    assert filled(once, "two", ["z"]) == once.replace("<!-- two -->\n", "<!-- two -->\nz\n")
    assert filled(filled(once, "one", []), "one", ["old"]) == PAGE


@pytest.mark.parametrize("text", ["", PAGE + PAGE, "<!-- one -->\nwithout an end"])
def test_a_text_without_just_one_place_is_refused(text: str):
    with pytest.raises(ValueError, match="the text has not one place for 'one'"):
        filled(text, "one", [])


def test_a_manifest_is_locked_while_it_changes(made: NetworkDirectory, monkeypatch: pytest.MonkeyPatch):
    held = []

    class Lock:
        def __init__(self, path: Path) -> None:
            held.append(path)

        def __enter__(self) -> None:
            held.append("in")

        def __exit__(self, *_: object) -> None:
            held.append("out")

    monkeypatch.setattr(manifest, "FileLock", Lock)
    made.change(lambda content: held.append("change") or content)
    assert held == [made.path / manifest.LOCK, "in", "change", "out"]


def test_a_private_folder_of_another_user_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock, link = tmp_path / "lock", tmp_path / "link"
    link.symlink_to(lock)
    assert store._is_ours(lock)
    assert not store._is_ours(link)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert not store._is_ours(lock)


HOLD = """
import sys
from stn_export.run.store import private_folder
(private_folder() / "copy").write_text("bytes")
print(private_folder(), flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has made its private folder and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        assert process.stdout
        yield process, Path(process.stdout.readline().strip())


def test_copies_go_with_their_process_or_with_the_next_one(tmp_path: Path):
    with holding(tmp_path) as (killed, left), holding(tmp_path) as (_, living):
        killed.kill()
        killed.wait()
        assert left.is_dir()
        with holding(tmp_path) as (_, other):
            assert set(tmp_path.iterdir()) == {living, other}
        assert set(tmp_path.iterdir()) == {living}
    assert not list(tmp_path.iterdir())
