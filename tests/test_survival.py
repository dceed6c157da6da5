"""The tools that damage things notice what goes wrong."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from stn_export.errors import UserError
from tests import faults, fuzz, soak
from tests.faults import STAGES, Counted, call, changes_of, contents, disturbed, fill, states, whole
from tests.fuzz import Target, changed_json, flipped, tried

STAGE = {stage.name: stage for stage in STAGES}


def reading(content: bytes) -> object:
    """As many ways to end as there are."""
    match content[:1]:
        case b"k":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"h":
            time.sleep(30)
        case b"b":
            raise ZeroDivisionError("a bug")
        case b"r":
            raise UserError("no", "such")
    return content


@pytest.mark.parametrize(
    ("letters", "outcomes"),
    [
        ("aaa", {"answered": 3}),
        ("rar", {"refused": 2, "answered": 1}),
        ("aba", {"raised": 1, "answered": 2}),
        ("akr", {"crashed": 1, "answered": 1, "refused": 1}),
        ("hab", {"hung": 1, "answered": 1, "raised": 1}),
    ],
)
def test_a_fuzz_tells_how_each_file_ended(
    letters: str, outcomes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fuzz, "SECONDS", 2)
    (tmp_path / "good").write_bytes(b"?")

    def read(path: Path) -> object:
        return reading(letters[int(path.read_bytes())].encode())

    monkeypatch.setattr(random, "Random", lambda seed: seed)
    target = Target("letters", tmp_path / "good", lambda content, seed: b"%d" % seed, read)
    monkeypatch.setattr(fuzz, "flipped", target.change)
    found, findings = tried(target, range(len(letters)), tmp_path)
    assert dict(found) == outcomes
    assert len(findings) == sum(found[kind] for kind in ("raised", "crashed", "hung"))


def test_damage_is_damage_and_the_same_for_a_seed():
    content = b'{"a": [1, {"b": "c"}], "d": null}'
    for change in (flipped, changed_json):
        changed = [change(content, random.Random(seed)) for seed in range(50)]
        assert changed == [change(content, random.Random(seed)) for seed in range(50)]
        assert sum(each != content for each in changed) > 40


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return states(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
def test_stages_survive_some_faults(runs: dict[str, Path]):
    for name in ("predict", "triton"):
        for _, _, count, lost in disturbed(STAGE[name], runs["exported"], most=3):
            assert count == 3
            assert not lost


@pytest.mark.slow
def test_what_is_lost_is_told(runs: dict[str, Path], tmp_path: Path):
    run = runs["exported"]
    before = contents(run)
    assert not whole(run, before, before)
    with faults.copied(run) as copy:
        (copy / "stn" / "folded-fp32.onnx").write_bytes(b"half")
        assert "was changed after it was written" in whole(copy, before, before)
    with faults.copied(run) as copy:
        (copy / "verify.json").write_text('{"half', encoding="utf-8")
        assert whole(copy, before, before) == "verify.json is half a file"
    with faults.copied(run) as copy:
        (copy / "examples.pt").write_bytes(b"neither")
        assert whole(copy, before, before) == "examples.pt is neither the old nor the new one"
    with faults.copied(run) as copy:
        (copy / "examples.pt").unlink()
        assert whole(copy, before, before) == "examples.pt is lost"


@pytest.mark.slow
def test_every_change_is_counted_and_can_fail(runs: dict[str, Path]):
    with faults.copied(runs["exported"]) as copy:
        count = changes_of(STAGE["predict"], copy)
    assert count >= 3  # a directory or a file, the write, the rename
    with faults.copied(runs["exported"]) as copy:
        assert call(STAGE["predict"], copy, Counted(2, fill)) == 2
        assert "No space left on device" in (copy.parent / "said.txt").read_text(encoding="utf-8")


def test_a_slope_and_its_error():
    assert soak.slope([1.0, 2.0, 3.0, 4.0]) == pytest.approx((1.0, 0.0), abs=1e-9)
    grows, error = soak.slope([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert abs(grows) < 2 * error
