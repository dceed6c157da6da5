"""What shown times rest on: loads, what was planted, whose processor time counts, and how a file is chosen."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.tools import calibration, proof
from benchmarks.tools.proof import PROOF
from benchmarks.tools.simulated import Machine
from stn_export.api import _row
from stn_export.bench import machine
from stn_export.bench.cases import Case
from stn_export.bench.machine import Usage, cpu_seconds, descendants
from stn_export.bench.plan import GRIDS
from stn_export.bench.timing import timed
from stn_export.results.choice import choose
from stn_export.results.statistics import METHOD, drift, load_interval, ratio_interval
from stn_export.runners import Step
from tests import made_records
from tests.conftest import REPOSITORY
from tests.contenders import EXACT
from tests.made_records import MadeTiming

TARGET = SimpleNamespace(facts=lambda batch: {"batch": batch})


def test_check_states_examples_a_second_of_the_median():
    times, loads = [1e-3, 2e-3, 3e-3, 4e-3, 9e-3], np.arange(5)
    row = _row(TARGET, 6, times, loads)
    assert (row["p50"], row["examples_per_second"]) == (3e-3, 2000)
    assert row["p50_low"] < row["p50"] < row["p50_high"]


def test_the_interval_of_a_file_that_was_loaded_once_allows_for_loads_that_nobody_saw():
    times = np.full(25, 2e-3)
    once, five = _row(TARGET, 1, times, np.zeros(25)), _row(TARGET, 1, times, np.arange(25) % 5)
    assert five["p50_low"] == pytest.approx(five["p50_high"])
    assert once["p50_high"] / once["p50"] == pytest.approx(np.exp(METHOD.load_spread))


def test_the_interval_of_a_side_lies_about_its_median_and_is_as_wide_as_that_of_a_ratio():
    times, loads = np.exp(np.random.default_rng(3).exponential(0.3, 25)), np.arange(25) % 5
    low, high = load_interval(times, loads)
    assert (low * high) ** 0.5 == pytest.approx(np.median(times))
    assert high / low == pytest.approx(np.divide(*ratio_interval(times, loads)[::-1]))


def test_the_interval_of_one_load_holds_the_truth_as_often_as_it_says():
    """Loads of the file differ by 1.2 %, and one is seen: 95 of 100 intervals at least hold its median."""
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        times = 1e-3 * np.exp(random.normal(0, 0.012) + random.normal(0, 0.01, 25))
        low, high = load_interval(times, np.zeros(25))
        held += low <= 1e-3 <= high
    assert held >= 190


def test_what_is_planted_is_a_share_of_each_calls_own_time():
    clock = SimpleNamespace(now=0.0)

    def work() -> None:
        clock.now += next(took)

    took = iter([1e-3, 5e-3, 2e-3])
    step = proof.slowed(Step(work, lambda: clock.now), 0.03)
    assert [timed(step), timed(step)] == pytest.approx([1.03e-3, 5.15e-3])
    assert clock.now == pytest.approx(6e-3)  # no wait, which would change the call behind it
    assert timed(proof.slowed(Step(work, lambda: clock.now), 0.0)) == pytest.approx(2e-3)


def test_a_trial_finds_what_was_planted_on_a_machine_that_nothing_disturbs(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(EXACT, np.random.default_rng(0))
    target = SimpleNamespace(step=lambda batch: machine.load(), runner=SimpleNamespace(device="cpu"))
    monkeypatch.setattr(proof, "Step", lambda run, clock=machine.now: Step(run, clock))
    for slowdown in (0.0, 0.05):
        row = proof.trial(Case(target, 1), GRIDS["quick"], slowdown, 0)
        assert (row["planted"], row["ratio"]) == pytest.approx((1 + slowdown, 1 + slowdown))
        assert proof.covered([row | {"ratio_low": row["ratio"] - 1e-9, "ratio_high": row["ratio"] + 1e-9}], slowdown)


def proof_row(ratio: float, reach: float, said: str, **more: float) -> dict:
    blocks = {"blocks": 25, "disturbed_blocks": 0}
    return {"ratio": ratio, "ratio_low": ratio - reach, "ratio_high": ratio + reach, "verdict": said} | blocks | more


def test_the_proof_counts_the_intervals_that_hold_what_was_planted():
    rows = [proof_row(1.035, 0.004, "slower", planted=1.037)] * 19 + [proof_row(1.035, 0.004, "slower", planted=1.03)]
    assert proof.covered(rows, 0.03) == 19
    line = proof.table_row({"target": "a", "trial": "planted 3%", "batch": 1, "rows": rows, "passed": True})
    said = dict(zip(proof.COLUMNS, line, strict=True))
    assert (said["planted"], said["held"], said["found"]) == ("1.03", "19 of 20", "20 of 20")
    assert proof.judge(0.03, rows) == (20, True)
    assert not proof.judge(0.03, rows[-1:] * 20)[1]  # all found, and no interval holds what was planted


def test_what_was_planted_by_the_clock_of_another_call_is_said_to_be_unmeasured():
    rows = [proof_row(1.036, 0.004, "slower")] * 20
    line = proof.table_row({"target": "a", "trial": "planted 3%", "batch": 1, "rows": rows, "passed": True})
    assert line[3:5] == ("1.03, not measured", "0 of 20")
    same = proof.table_row(
        {"target": "a", "trial": "A/A", "batch": 1, "rows": [proof_row(1, 0.01, "same")] * 20} | {"passed": True}
    )
    assert same[3:6] == ("1", "20 of 20", "–")
    assert PROOF.holding < 20


def used(wall: float, cpu: dict[int, float], waited: dict[int, float] | None = None) -> Usage:
    return Usage(wall, cpu, waited or {})


@pytest.mark.parametrize(
    ("cpu", "waited", "disturbed"),
    [
        ({1: 0.99}, {1: 0.0}, False),
        ({1: 0.5}, {1: 0.0}, True),
        ({1: 0.05, 7: 0.94}, {1: 0.0}, False),  # a runtime in a child
        ({1: 0.05, 7: 0.6}, {1: 0.0}, True),
        ({1: 1.6}, {1: 0.02, 2: 0.4}, True),  # two threads on more than a core, and one of them had to wait
        ({1: 1.98}, {1: 0.04, 2: 0.05}, False),
    ],
)
def test_others_are_seen_beside_children_and_threads(cpu: dict, waited: dict, disturbed: bool):
    before = used(10.0, {1: 5.0, 7: 2.0}, {1: 1.0, 2: 3.0})
    after = used(11.0, {key: before.cpu[key] + more for key, more in cpu.items()})
    after.waited.update({key: before.waited[key] + more for key, more in waited.items()})
    assert after.disturbed_since(before, METHOD.cpu_share) == disturbed


@pytest.mark.skipif(sys.platform != "linux", reason="children and their time are read from /proc")
def test_the_processor_time_of_a_child_is_seen():
    busy = "import time\nprint(flush=True)\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", busy], **pipes) as child:
        child.stdout.readline()
        assert child.pid in list(descendants(os.getpid()))
        child.stdout.readline()
        assert 0.29 < cpu_seconds(child.pid) < 5
        assert child.pid in Usage.now().cpu
        child.stdin.write(b"\n")
        child.stdin.close()
    assert child.pid not in list(descendants(os.getpid()))
    assert cpu_seconds(child.pid) == 0


def test_waiting_is_read_thread_by_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "PROCESSES", tmp_path)
    for thread, text in ((5, "9 2000000000 3"), (6, "9 500000000 3"), (7, "")):
        (tmp_path / "5" / "task" / str(thread)).mkdir(parents=True)
        (tmp_path / "5" / "task" / str(thread) / "schedstat").write_text(text, encoding="utf-8")
    assert machine.waits(5) == {5: 2.0, 6: 0.5}


def row(name: str, seconds: float, reach: float = 0.002) -> MadeTiming:
    form = {"format": "onnx", "lowering": "", "precision": "fp32", "file_bytes": 1, "batch": 1, "artifact": name}
    return made_records.timing(
        form | {"p50": seconds, "p50_low": seconds * (1 - reach), "p50_high": seconds * (1 + reach)}
    )


def test_what_is_called_faster_lies_further_apart_than_moments_of_a_machine():
    assert drift() == pytest.approx(np.exp(1.959964 * np.sqrt(2) * 0.04))
    assert [each.artifact for each in choose([row("a", 1.0), row("b", 1.10)], {}).tied] == ["b"]
    assert choose([row("a", 1.0), row("b", 1.13)], {}).tied == ()
    many = [row("a", 1.0), *(row(name, 1.13) for name in "bcdef")]
    assert len(choose(many, {}).tied) == 5  # of six files some pair often lies so far apart by chance
    assert choose([row("a", 1.0), *(row(name, 1.2) for name in "bcdef")], {}).tied == ()


def test_the_rule_of_the_choice_is_calibrated():
    assert calibration.choices(4, 0.0, 40)["told"] <= 0.15
    assert calibration.choices(2, 0.3, 10)["told"] == 1.0
    kept = calibration.read_json(REPOSITORY / calibration.COVERAGE, calibration.COVERAGE_SCHEMA)["choices"]
    assert all(each["told"] <= 0.05 for each in kept if not each["gap"])
    assert {(each["files"], each["gap"]) for each in kept} == {
        (files, gap) for files in calibration.FILES for gap in calibration.GAPS
    }
