"""The tools that damage things notice what goes wrong."""

import ast
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest

from stn_export.errors import UserError
from tests import faults, fuzz, soak
from tests.conftest import REPOSITORY
from tests.faults import STAGE, Counted, call, changes_of, contents, disturbed, fill, states, whole
from tests.fuzz import Target, changed_json, disagreeing, flipped, tried
from tests.guards import GUARDS


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


def test_every_guard_is_held_by_a_test_that_is_never_skipped_here():
    for guard in GUARDS:
        file, name = guard.test.split("::")
        tree = ast.parse((REPOSITORY / "tests" / f"{file}.py").read_text(encoding="utf-8"))
        found = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == name]
        assert len(found) == 1, guard.test
        assert "slow" not in ast.unparse(found[0]).split(f"def {name}")[0], f"{guard.test} is not in make test"
    assert len({guard.test for guard in GUARDS}) == len(GUARDS)


def test_damage_is_damage_and_the_same_for_a_seed():
    content = b'{"a": [1, {"b": "c"}], "d": null}'
    for change in (flipped, changed_json):
        changed = [change(content, random.Random(seed)) for seed in range(50)]
        assert changed == [change(content, random.Random(seed)) for seed in range(50)]
        assert sum(each != content for each in changed) > 40


@pytest.fixture(scope="module")
def fresh() -> Iterator[Executor]:
    """A process that no library has started threads in: a fork of one that has waits for threads that it lacks."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def runs(fresh: Executor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fresh.submit(states, tmp_path_factory.mktemp("faults")).result()


def outcomes_of(name: str, run: Path) -> list[faults.Outcome]:
    """What three faults of every kind come to."""
    return list(disturbed(STAGE[name], run, most=3))


@pytest.mark.slow
def test_stages_survive_some_faults(fresh: Executor, runs: dict[str, Path]):
    for name in ("predict", "triton"):
        for _, _, count, lost in fresh.submit(outcomes_of, name, runs["exported"]).result():
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


def counted_and_failed(run: Path) -> tuple[int, int, str]:
    """How many changes a prediction makes; its exit code where the second fails, and what it says then."""
    with faults.copied(run) as copy:
        count = changes_of(STAGE["predict"], copy)
    with faults.copied(run) as copy:
        code = call(STAGE["predict"], copy, Counted(2, fill))
        return count, code, (copy.parent / "said.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_change_is_counted_and_can_fail(fresh: Executor, runs: dict[str, Path]):
    count, code, said = fresh.submit(counted_and_failed, runs["exported"]).result()
    assert count >= 3  # a directory or a file, the write, the rename
    assert code == 2
    assert "No space left on device" in said


def test_a_manifest_that_disagrees_says_of_one_what_holds_for_another():
    told = {"file": "a", "format": "onnx", "sha256": "1", "contract": {}, "parent_sha256": "", "lowering": "a"}
    one = told | {"precision": "fp32", "name": "a", "beside": {}}
    other = {key: [value, "other"] for key, value in one.items()}
    content = json.dumps({"artifacts": {"a": one, "b": other}}).encode()
    for seed in range(20):
        found = json.loads(disagreeing(content, random.Random(seed)))["artifacts"]
        shared = [key for key in one if found["a"][key] == found["b"][key]]
        assert 1 <= len(shared) <= 6
        assert found["a"] != one or found["b"] != other


def test_pip_that_is_left_running_is_found(tmp_path: Path):
    assert faults.started_in(str(tmp_path), 0) == ""
    program = tmp_path / "sleep"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "600"]) as process:
        try:
            end = time.monotonic() + 60
            while not (found := faults.started_in(str(tmp_path), 0)) and time.monotonic() < end:
                time.sleep(0.05)  # between the fork and the exec it is still another program
            assert found.startswith(str(program))
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_compiler_and_a_deleted_run_lose_nothing(fresh: Executor, runs: dict[str, Path]):
    [(stage, kind, count, lost)] = fresh.submit(faults.compiler_killed, runs["exported"]).result()
    assert (stage, kind, count, lost) == ("C compiler", "killed", 4, [])
    assert fresh.submit(faults.deleted, STAGE["predict"], runs["exported"], 2).result() == ""


def test_a_slope_and_its_error():
    assert soak.slope([1.0, 2.0, 3.0, 4.0]) == pytest.approx((1.0, 0.0), abs=1e-9)
    grows, error = soak.slope([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert abs(grows) < 2 * error
