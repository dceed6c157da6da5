"""The trial of the intervals: that it counts what it says, on machines whose intervals are known to hold or to miss."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.tools import calibration
from benchmarks.tools.calibration import COVERAGE_SCHEMA, DOCUMENT, TABLES, contests, false_alarms, gains, medians
from benchmarks.tools.kept import KEPT
from benchmarks.tools.simulated import CONTESTS, Condition, Machine
from stn_export import cli
from stn_export.run.store import write_json
from tests.conftest import REPOSITORY
from tests.contenders import EXACT

FEW_LOADS = CONTESTS[-1]


def test_on_a_machine_without_noise_every_verdict_is_right_and_every_interval_narrow():
    found = contests(EXACT, 2)
    assert found["count"] == 8
    assert found["reach"] == pytest.approx(0, abs=1e-9)
    del found["verdicts"]["3%"]  # just where "same" ends
    assert found["verdicts"] == {"0%": {"same": 2}, "5%": {"slower": 2}, "15%": {"slower": 2}}


def test_an_interval_that_looks_at_something_else_never_holds_the_truth():
    """Calls that take a random time a load, 20 % apart, by turns in one direction only: what coverage must show."""
    biased = Condition("the second of each pair is slower", loads=lambda random, spread: next(sides), spread=1.0)
    sides = iter([0.0, 0.2, 0.2, 0.0] * 1000)  # ours first, then theirs first
    assert contests(biased, 1)["coverage"] == 0


def test_coverage_of_ordinary_noise_is_what_is_claimed():
    found = contests(CONTESTS[7], 25)  # loads differ by 1.5 %: Student's interval of five is exact there
    low, high = stats.binom.ppf((0.001, 0.999), 100, 0.95) / 100
    assert low <= found["coverage"] <= high
    # of a fifth normal mean by 4 degrees of freedom: 2.776 * sqrt(2) * 1.5 % / sqrt(5), about
    assert found["reach"] == pytest.approx(2.776 * 2**0.5 * 0.015 / 5**0.5, rel=0.15)
    assert found["verdicts"]["15%"] == {"slower": 25}


def test_a_drift_of_the_machine_favours_nobody():
    machine = Machine(CONTESTS[1], np.random.default_rng(0))
    step = machine.load()
    started = machine.now()
    step()
    first = machine.now() - started
    machine.seconds = 1.0
    step()
    assert (machine.now() - 1.0) / first == pytest.approx(2, rel=0.25)  # twice as slow a second later
    found = calibration.contest(CONTESTS[1], 0.05, 3)
    assert found["ratio_low"] < 1.05 < found["ratio_high"]


@pytest.mark.parametrize(("loads", "expected"), [(0.02, 0.1), (0.0, 0.0)])
def test_loads_of_a_machine_differ_as_much_as_it_says(loads: float, expected: float):
    machine = Machine(replace(EXACT, spread=loads), np.random.default_rng(1))
    times = []
    for _ in range(400):
        step, before = machine.load(), machine.now()
        step()
        times.append(machine.now() - before)
    assert np.std(np.log(times)) == pytest.approx(loads, rel=0.1, abs=1e-9)


def test_rows_of_equal_calls_have_no_width_and_others_hold_their_median():
    assert medians(EXACT, 300, 3)["reach"] == pytest.approx(0, abs=1e-9)
    found = medians(CONTESTS[0], 100, 100)
    # a median of 100 normal calls is 1.25 standard errors of a mean, 3 % a call; Student's of ten stretches
    assert found["reach"] == pytest.approx(2.26 * 1.25 * 0.03 / 10, rel=0.2)
    assert stats.binom.ppf(0.001, 100, 0.95) <= 100 * found["coverage"]


def test_moods_that_last_as_long_as_a_row_are_missed():
    quiet, moody = (medians(condition, 60, 60)["coverage"] for condition in (CONTESTS[0], CONTESTS[4]))
    assert moody < 0.9 < quiet + 0.05


@pytest.mark.parametrize(
    ("values", "coverage"), [(lambda random, count: np.ones(count), 0.0), (np.random.Generator.normal, 0.95)]
)
def test_means_over_seeds(values, coverage: float):
    draw = (lambda random, count: random.normal(0, 1, count)) if coverage else values
    assert gains(draw, 5, 2000)["coverage"] == pytest.approx(coverage, abs=0.02)


def test_false_alarms_are_as_rare_as_is_wanted():
    assert false_alarms(0.015, 60)["alarms"] <= stats.binom.ppf(0.999, 60, 0.02) / 60


def test_a_change_between_runs_is_an_alarm(monkeypatch: pytest.MonkeyPatch):
    runs = iter(range(1000))
    real = calibration._run

    def drifting(random: np.random.Generator, spread: float) -> dict:
        factor = 1.5 ** (next(runs) % 2)
        return {name: replace(row, value=row.value * factor) for name, row in real(random, spread).items()}

    monkeypatch.setattr(calibration, "_run", drifting)
    assert false_alarms(0.0, 5)["alarms"] == 1.0


def contest_row(claimed: bool = True) -> dict:
    same, cannot, slower = "same", "cannot tell", "slower"
    verdicts = {"0%": {same: 6, slower: 1, "faster": 3}, "3%": {slower: 1, same: 9}, "5%": {slower: 4, cannot: 6}}
    verdicts["15%"] = {slower: 10}
    return {"count": 4000, "coverage": 0.956, "reach": 0.0123, "verdicts": verdicts, "claimed": claimed}


CONTENT = {
    "contests": {"a machine": contest_row(), "another": contest_row(claimed=False)},
    "medians": {"a row, 300 calls": {"count": 400, "calls": 300, "coverage": 0.9475, "reach": 0.5, "claimed": True}},
    "choices": [{"files": 6, "gap": gap, "count": 50, "told": gap + 0.04} for gap in (0.0, 0.2)],
    "gains": {"normal": [{"coverage": share} for share in (0.95, 0.951, 0.96)]},
    "false_alarms": [{"spread": 0.015, "count": 100, "rows": 40, "alarms": 0.012}],
}
LINES = (
    "| a machine | 4,000 | 95.6% | ±1.2% | 40.0% | 10.0% | 40.0% | 100.0% | yes |",
    "| another | 4,000 | 95.6% | ±1.2% | 40.0% | 10.0% | 40.0% | 100.0% | no |",
    "| a row, 300 calls | 400 | 94.8% | ±50.0% | yes |",
    "| 6 | 50 | 4.0% | 24.0% |",
    "| normal | 95.0% | 95.1% | 96.0% |",
    "| 1.5% | 100 | 40 | 1.2% |",
)


def test_the_tables_are_written_from_what_is_kept(tmp_path: Path):
    kept, document = tmp_path / "coverage.json", tmp_path / "method.md"
    write_json(kept, COVERAGE_SCHEMA, CONTENT)
    document.write_text((REPOSITORY / DOCUMENT).read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ["--tables-only", "--kept", str(kept), "--document", str(document)]
    for _ in range(2):  # again: in the place of the old ones
        assert cli.run(calibration.main, arguments) == 0
        text = document.read_text(encoding="utf-8")
        assert [text.count(line) for line in LINES] == [1] * len(LINES)
        assert text.count("<!-- end -->") == len(TABLES)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in (REPOSITORY / DOCUMENT).read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]


def test_a_text_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="not one place for 'contests'"):
        calibration.with_tables("nothing", CONTENT)


@pytest.fixture(scope="module")
def kept() -> dict:
    return json.loads((REPOSITORY / KEPT / "coverage.json").read_text(encoding="utf-8"))


def test_the_page_shows_what_is_kept(kept: dict):
    text = (REPOSITORY / DOCUMENT).read_text(encoding="utf-8")
    assert calibration.with_tables(text, kept) == text


def test_every_claim_is_held_over_at_least_a_thousand_contests(kept: dict):
    rows = [row for table in ("contests", "medians") for row in kept[table].values()]
    assert {row.name for row in CONTESTS} == set(kept["contests"])
    assert all(row["count"] >= 1000 for row in rows)
    claimed = [row["coverage"] for row in rows if row["claimed"]]
    assert len(claimed) >= 15
    assert 0.93 <= min(claimed) <= max(claimed) <= 0.97
    assert all(
        sum(verdicts.values()) >= 1000 for row in kept["contests"].values() for verdicts in row["verdicts"].values()
    )
    assert all(row["alarms"] <= 0.015 for row in kept["false_alarms"])
    assert [row["coverage"] for row in kept["gains"]["normal"]] == pytest.approx([0.95] * 3, abs=0.01)
    assert re.search(
        r"\| independent noise, 3 % a call \| 4,000 \| 9[3-7]", (REPOSITORY / DOCUMENT).read_text(encoding="utf-8")
    )
