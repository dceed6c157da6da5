"""How training is timed: the turns, the tutorial's loop and the file that is kept."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.tools import training_speed
from benchmarks.tools.training_speed import Loop, StartUp, race
from benchmarks.tools.tutorial import BATCH, Pictures, Tutorial
from stn_export import cli
from stn_export.train.data import Dataset, normalise

CPU = torch.device("cpu")


class Benchmark:
    """As much of pytest-benchmark's fixture as a race asks for."""

    def __init__(self, seconds: list[float]) -> None:
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=seconds))

    def pedantic(self, target, setup, rounds):
        for _ in range(rounds):
            setup()
            target()


def test_loops_take_turns_after_an_epoch_that_does_not_count(monkeypatch: pytest.MonkeyPatch):
    order = []
    theirs = iter([6.0, 9.0, 8.0])
    monkeypatch.setattr("benchmarks.tools.training_speed.timed", lambda baseline: (baseline(), next(theirs))[1])
    figures = race(Benchmark([2.0, 2.0, 2.0]), lambda: order.append("a"), lambda: order.append("b"), pairs=3)
    assert "".join(order) == "ab" + "ba" * 3
    assert figures["baseline_seconds"] == [6.0, 9.0, 8.0]
    assert figures["ratio"] == pytest.approx((3.0 * 4.5 * 4.0) ** (1 / 3))  # the middle of its interval
    assert figures["ratio_low"] < 3.0 < 4.5 < figures["ratio_high"]


def test_our_epochs_train_every_seed(small: Dataset):
    loop = Loop("cnn", captured=False, seeds=2)
    trainers = loop.trainers(small, CPU)
    assert [trainer.settings.seed for trainer in trainers] == [0, 1]
    epoch = loop.epoch(small, CPU)
    assert epoch() is epoch() is True


def test_the_tutorial_sees_what_we_see(small: Dataset):
    pictures = Pictures(small.train)
    assert len(pictures) == len(small.train)
    for index in (0, 639):
        image, label = pictures[index]
        torch.testing.assert_close(image, normalise(small.train.images[index]))
        assert label == small.train.labels[index]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_the_tutorial_trains_and_tests(small: Dataset):
    tutorial = Tutorial("stn", small, CPU)
    before = [parameter.clone() for parameter in tutorial.model.parameters()]
    assert 0.0 <= tutorial() <= 1.0
    assert len(tutorial.losses) == len(small.train) // BATCH
    assert tutorial.losses[0] == pytest.approx(2.3, abs=0.1)
    assert all(
        not torch.equal(parameter, old) for parameter, old in zip(tutorial.model.parameters(), before, strict=True)
    )
    assert not tutorial.model.training


def start_up(code: str, tmp_path: Path) -> StartUp:
    """One that starts ``code`` instead of training."""
    starts = StartUp("digits", None, CPU, tmp_path)
    starts.command = [sys.executable, "-c", code]
    return starts


def test_a_start_is_over_at_the_first_step_and_its_process_ended(tmp_path: Path):
    code = "import time; print('stn: the first step is done', flush=True); time.sleep(600)"
    starts = start_up(code, tmp_path)
    starts.end()
    starts.until_first_step()
    process = starts.process
    starts.end()
    assert process.returncode is not None


def test_a_start_that_fails_says_why(tmp_path: Path):
    with pytest.raises(RuntimeError, match="no such luck"):
        start_up("print('no such luck')", tmp_path).until_first_step()


@pytest.mark.slow
def test_the_stage_says_when_its_first_step_is_done(tmp_path: Path):
    starts = StartUp("digits", None, CPU, tmp_path)
    starts.until_first_step()
    process = starts.process
    starts.end()
    assert process.returncode == 130


MEASURED = {
    "machine_info": {"node": "here", "stn_export": {"cores": 2}},
    "benchmarks": [
        {
            "stats": {"min": 1.0},
            "extra_info": {
                "what": "our loop against the tutorial's, stn",
                "device": "cpu",
                "dataset": "digits",
                "seconds": [2.0, 1.0, 3.0],
                "baseline_seconds": [6.0, 4.0, 5.0],
                "ratio": 3.0,
                "ratio_low": 2.0,
                "ratio_high": 4.0,
            },
        },
        {"stats": {}, "extra_info": {"what": "start", "device": "cpu", "dataset": "digits", "seconds": [4.0]}},
        {"stats": {}, "extra_info": {"artifact": "a row of another suite"}},
    ],
}


def keep(content: dict, tmp_path: Path) -> int:
    measured = tmp_path / "bench.json"
    measured.write_text(json.dumps(content), encoding="utf-8")
    return cli.run(training_speed.main, [str(measured), "--results", str(tmp_path)])


def test_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert keep(MEASURED, tmp_path) == 0
    content = json.loads((tmp_path / "training-speed-cpu.json").read_text(encoding="utf-8"))
    assert content["rows"] == [row["extra_info"] for row in MEASURED["benchmarks"][:2]]
    assert content["environment"] == {"cores": 2}
    assert content["command"] == "make bench-train DATASET=digits DEVICE=cpu"
    assert "3.00 (2.00 to 4.00)" in capsys.readouterr().out


def test_a_file_without_training_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert keep(MEASURED | {"benchmarks": []}, tmp_path) == 2
    assert "holds no timing of training" in capsys.readouterr().err
    assert not list(tmp_path.glob("training-speed-*"))
