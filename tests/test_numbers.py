"""Figures against what is known from elsewhere: SciPy, closed forms, counts by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from stn_export.bench import compare
from stn_export.results.choice import choose, steps
from stn_export.results.statistics import (
    METHOD,
    estimate,
    median_interval,
    noise_reach,
    ratio_interval,
    scatter,
    stretch,
    student,
    summarise,
    verdict,
)
from stn_export.results.tolerances import Bound
from stn_export.results.tolerances import compare as compare_arrays
from tests import made_records
from tests.made_records import MadeTiming


@pytest.fixture(autouse=True)
def afresh():
    """A quantile is computed in the test that looks at it."""
    student.cache_clear()


T_TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 7: 2.365, 10: 2.228, 30: 2.042}  # of any printed table


@pytest.mark.parametrize("freedom", [*range(1, 31), 40, 61, 120, 999])
def test_quantiles_of_students_t(freedom: int):
    for confidence in (0.5, 0.95, 0.99, 0.99975):
        expected = stats.t.ppf((1 + confidence) / 2, freedom)
        assert student(confidence, freedom) == pytest.approx(expected, rel=1e-9)


def test_quantiles_as_tables_print_them():
    assert {freedom: round(student(0.95, freedom), 3) for freedom in T_TABLE} == T_TABLE


@pytest.mark.parametrize("count", [2, 3, 8, 31, 200])
def test_a_mean_and_its_interval(count: int):
    values = np.random.default_rng(count).normal(3, 2, count)
    found = estimate(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-9)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert found.count == count


def test_what_a_single_value_says():
    found = estimate([2.0])
    assert (found.mean, found.count) == (2.0, 1)
    assert all(map(math.isnan, (found.deviation, found.low, found.high)))
    assert not found.excludes_zero
    assert found.as_dict() == {"mean": 2.0, "deviation": None, "low": None, "high": None, "count": 1}
    with pytest.raises(ValueError, match=r"^there is no mean of no values$"):
        estimate([])


@pytest.mark.parametrize(
    ("values", "excludes"),
    [([1.0, 1.1], True), ([-1.0, -1.1], True), ([1.0, -1.0], False), ([0.0, 0.0], False), ([0.0, 1.0], False)],
)
def test_whether_an_interval_excludes_zero(values: list[float], excludes: bool):
    assert estimate(values).excludes_zero == excludes


def test_an_interval_cut_to_what_can_be():
    found = estimate([0.0, 1.0]).within(0, 1)
    assert (found.low, found.high, found.mean) == (0, 1, 0.5)
    inside = estimate([0.4, 0.5, 0.6])
    assert inside.within(0, 1) == inside


def test_percentiles_of_single_calls():
    samples = np.random.default_rng(0).permutation(np.arange(1, 1001)) / 1000
    found = summarise(samples)
    assert found["n"] == 1000
    assert (found["p50"], found["p90"], found["p99"]) == pytest.approx((0.5005, 0.9001, 0.99001))
    assert found["iqr"] == pytest.approx(0.75025 - 0.25075)


@pytest.mark.parametrize(("count", "there"), [(661, False), (662, True)])
def test_a_p99_needs_662_calls(count: int, there: bool):
    found = summarise(np.arange(1.0, count + 1))["p99"]
    assert found == (pytest.approx(0.99 * (count - 1) + 1) if there else None)


def test_how_much_neighbours_that_resemble_each_other_stretch_an_interval():
    # ranks -1.5 to 1.5: neighbours' products sum to 1.25 of 5, so r is 0.25, corrected (0.25 + 1.75 / 4) 0.6875
    assert stretch(np.array([1.0, 2.0, 3.0, 10.0])) == pytest.approx(math.sqrt(1.6875 / 0.3125))
    assert stretch(np.array([1.0, 10.0, 2.0, 11.0, 3.0, 12.0])) == 1.0
    assert stretch(np.array([1.0, 9.0])) == 1.0
    assert stretch(np.array([1.0, 2.0, 9.0])) == pytest.approx(math.sqrt((1 + 1 / 3) / (1 - 1 / 3)))  # r 0, corrected
    assert stretch(np.arange(500.0)) == pytest.approx(math.sqrt(1.9 / 0.1))  # and no more than that


def test_the_interval_of_a_median_is_students_of_ten_stretches():
    samples = np.exp(np.random.default_rng(5).normal(-7, 0.2, 1000))
    medians = np.array([np.median(np.log(samples[start : start + 100])) for start in range(0, 1000, 100)])
    reach = stats.t.ppf(0.975, 9) * stats.sem(medians) * stretch(medians)
    low, high = median_interval(samples)
    assert (low, high) == pytest.approx((np.median(samples) / np.exp(reach), np.median(samples) * np.exp(reach)))
    assert summarise(samples)["p50_low"] == low
    assert summarise(samples)["p50_high"] == high


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_few_equal_calls_have_no_width(count: int):
    assert median_interval(np.full(count, 0.25)) == pytest.approx((0.25, 0.25))


def ratios_of(seed: int = 0, spread: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Twenty-five blocks of five loads, in turn, about 1.5."""
    random, loads = np.random.default_rng(seed), np.arange(25) % 5
    return 1.5 * np.exp(random.normal(0, 0.01, 25) + random.normal(0, spread, 5)[loads]), loads


def test_the_interval_of_a_ratio_is_students_of_the_loads_medians():
    ratios, loads = ratios_of()
    medians = np.array([np.median(np.log(ratios[load::5])) for load in range(5)])
    expected = stats.t.interval(0.95, 4, medians.mean(), stats.sem(medians))
    assert ratio_interval(ratios, loads) == pytest.approx(tuple(np.exp(expected)))


def test_the_interval_of_a_ratio_upside_down_is_the_interval_upside_down():
    ratios, loads = ratios_of(1)
    low, high = ratio_interval(ratios, loads)
    assert 1 < low < high
    assert ratio_interval(1 / ratios, loads) == pytest.approx((1 / high, 1 / low))


def test_of_a_single_load_groups_of_neighbours_and_what_loads_may_differ_by():
    ratios, _ = ratios_of(2, 0.0)
    medians = np.array([np.median(np.log(ratios[start : start + 5])) for start in range(0, 25, 5)])
    low, high = np.exp(stats.t.interval(0.95, 4, medians.mean(), stats.sem(medians)))
    assert METHOD.load_spread == 0.035
    assert ratio_interval(ratios, np.zeros(25)) == pytest.approx((low / np.exp(0.035), high * np.exp(0.035)))
    assert ratio_interval(np.array([2.0]), np.zeros(1)) == pytest.approx((2 / np.exp(0.035), 2 * np.exp(0.035)))


def test_scatter_is_scipys():
    values = np.random.default_rng(3).standard_t(2, 400)
    assert scatter(values) == pytest.approx(stats.median_abs_deviation(values, scale="normal"), rel=1e-4)


def test_what_the_noise_of_blocks_alone_does_to_an_interval():
    ratios, loads = ratios_of(3)
    logs = np.log(ratios).reshape(5, 5)  # a column a load
    noise = np.abs(logs - np.median(logs, axis=0)).mean() / math.sqrt(2 / math.pi)
    expected = stats.t.ppf(0.975, 4) * math.sqrt(math.pi / 2) * noise / math.sqrt(25)
    assert noise_reach(ratios, loads) == pytest.approx(expected)
    moved = ratios * np.array([1.0, 2.0, 0.5, 3.0, 1.0])[loads]  # how loads differ plays no part in it
    assert noise_reach(moved, loads) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.97, 1.03, "same"),
        (0.9699, 1.0, "cannot tell"),
        (1.0, 1.0301, "cannot tell"),
        (0.975, 0.99, "same"),
        (1.01, 1.02, "same"),
        (0.90, 0.9999, "faster"),
        (0.90, 1.0, "cannot tell"),
        (1.0001, 1.10, "slower"),
        (1.0, 1.10, "cannot tell"),
        (0.5, 2.0, "cannot tell"),
        (1.5, 1.6, "slower"),
        (0.3, 0.4, "faster"),
    ],
)
def test_verdicts(low: float, high: float, said: str):
    assert verdict(low, high) == said


def contest_rows(count: int, ratio: float, reach: float) -> dict[str, MadeTiming]:
    """So many contests, each with an interval of ``reach`` (a logarithm) on either side."""
    row = {"ratio": ratio, "ratio_low": ratio / math.exp(reach), "ratio_high": ratio * math.exp(reach)}
    return {str(index): made_records.timing(row | {"contest": "eager"}) for index in range(count)}


@pytest.mark.parametrize("rows", [1, 10, 150])
def test_many_contests_have_intervals_so_wide_that_all_together_give_one_false_alarm_in_a_hundred(rows: int):
    base, new = (compare.measured(contest_rows(rows, ratio, 0.02)) for ratio in (2.0, 3.0))
    change = compare.changes(base, new)[0]
    sigma = math.sqrt(2) * 0.02 / stats.t.ppf(0.975, 4)  # five loads
    reach = stats.t.ppf(1 - 0.01 / rows / 2, 8) * sigma  # of two runs
    assert change.by == "contest: eager"
    assert (change.ratio, change.low, change.high) == pytest.approx((1.5, 1.5 / np.exp(reach), 1.5 * np.exp(reach)))
    assert change.verdict == "slower"


def timed_row(runner: str, p50: float, reach: float, batch: int = 1) -> MadeTiming:
    low, high = p50 / math.exp(reach), p50 * math.exp(reach)
    return made_records.timing({"batch": batch, "runner": runner, "p50": p50, "p50_low": low, "p50_high": high})


@pytest.mark.parametrize("factor", [1.4, 1 / 1.4])
def test_a_row_is_held_against_eager_of_its_run(factor: float):
    base = {"eager": timed_row("eager-cpu", 4e-3, 0.01), "fast": timed_row("onnxruntime-cpu", 1e-3, 0.02)}
    slow = timed_row("onnxruntime-cpu", 2e-3 * factor, 0.02)
    new = {"eager": timed_row("eager-cpu", 8e-3, 0.01), "fast": slow}  # a day on which all takes twice as long
    found = {change.row: change for change in compare.changes(compare.measured(base), compare.measured(new))}
    assert (found["fast"].by, found["eager"].by) == ("ratio to eager", "seconds")
    sigma = math.hypot(*[0.02 / stats.t.ppf(0.975, 9), 0.01 / stats.t.ppf(0.975, 9)] * 2, METHOD.run_spread)
    reach = stats.norm.ppf(1 - 0.01 / 2 / 2) * sigma
    assert found["fast"].ratio == pytest.approx(factor)
    assert (found["fast"].low, found["fast"].high) == pytest.approx((factor / np.exp(reach), factor * np.exp(reach)))
    assert found["fast"].verdict == ("slower" if factor > 1 else "faster")
    own = stats.norm.ppf(1 - 0.01 / 2 / 2) * math.hypot(*[0.01 / stats.t.ppf(0.975, 9)] * 2, METHOD.run_spread)
    assert (found["eager"].ratio, found["eager"].low) == pytest.approx((2, 2 / np.exp(own)))


def test_cold_inputs_are_held_against_eagers_cold_inputs_and_requests_against_its_requests():
    def row(runner: str, p50: float, **more: str) -> MadeTiming:
        return timed_row(runner, p50, 0.01) | more

    kinds = {"hot": {}, "cold": {"inputs": "cold"}, "request": {"regime": "request"}}
    rows = {
        f"eager {name}": row("eager-cpu", (place + 1) * 1e-3, **more)
        for place, (name, more) in enumerate(kinds.items())
    }
    rows |= {name: row("onnxruntime-cpu", 6e-3, **more) for name, more in kinds.items()}
    found = compare.measured(rows)
    assert [found[name].value for name in kinds] == pytest.approx([6, 3, 2])
    other = compare.measured(rows | {"batch": timed_row("onnxruntime-cpu", 1.0, 0.01, batch=2)})["batch"]
    assert (other.by, other.value) == ("seconds", 1.0)  # nothing to hold it against


def test_how_rows_move_from_run_to_run():
    logs = np.random.default_rng(4).normal(0.3, 0.2, 101).tolist()
    expected = stats.median_abs_deviation(logs, scale="normal")
    assert compare.run_spread(logs) == pytest.approx(expected, rel=1e-4)
    assert compare.run_spread([0.0, 0.0, 0.0, 0.0, 9.0]) == METHOD.run_spread == 0.04
    assert compare.run_spread([-1.0, -0.5, 0.0, 0.5, 1.0]) > METHOD.run_spread
    assert compare.run_spread([0.0, 5.0, 9.0, 20.0]) == METHOD.run_spread  # of four rows nothing is known


def test_the_slowest_change_comes_first_and_rows_of_one_run_only_stay_out():
    base = compare.measured(contest_rows(3, 1.0, 0.01))
    new = compare.measured(
        {
            "0": contest_rows(1, 1.2, 0.01)["0"],
            "2": contest_rows(1, 1.5, 0.01)["0"],
            "9": contest_rows(1, 1.0, 0.01)["0"],
        }
    )
    assert [change.row for change in compare.changes(base, new)] == ["2", "0"]


def test_how_far_arrays_lie_apart():
    expected = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 1.0]])
    actual = expected + np.array([[0.1, 0.0, -0.4], [0.0, 1.5, 0.0]])
    found = compare_arrays(actual, expected, Bound(0.5, 0.25))
    assert (found.max_abs, found.max_rel, found.mean_abs) == pytest.approx((1.5, 0.75, 2.0 / 6))
    assert found.agreement == 0.5  # the second row's largest is another
    assert found.worst == (1, 1)
    assert found.excess == pytest.approx(1.5 / (0.5 + 0.25 * 2.0))
    assert not found
    assert compare_arrays(actual, expected, Bound(1.0, 0.25))


PLAIN = {"format": "onnx", "precision": "fp32", "lowering": "folded", "file_bytes": 100}
REFUSED = {"folded": {"a": ("runs", ""), "b": ("runs, WRONG", "")}, "gather": dict.fromkeys("ab", ("refused", ""))}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"format": "torchscript", "file_bytes": 1}),
        ({"format": "torchscript", "precision": "int8"}, {"format": "pt2"}),
        ({"format": "pt2"}, {"format": "aotinductor"}),
        ({"lowering": "gather"}, {"precision": "int8", "lowering": "none"}),
        ({}, {"lowering": "gather", "file_bytes": 1}),
        ({"lowering": "none"}, {"file_bytes": 1}),
        ({"file_bytes": 99}, {}),
    ],
)
def test_of_what_cannot_be_told_apart_the_most_portable_is_shipped(better: dict, worse: dict):
    best, fastest = (
        timed_row(runner, p50, 0.01) | PLAIN | {"artifact": runner} | changes
        for runner, p50, changes in (("a-cpu", 1.04e-3, better), ("b-cpu", 1e-3, worse))
    )
    found = choose([best, fastest], REFUSED)
    assert (found.row, found.fastest, found.tied) == (best, fastest, (best,))


def test_a_row_of_hot_inputs_goes_before_one_of_cold_ones():
    cold = timed_row("a-cpu", 2e-3, 0.01) | {"artifact": "a", "inputs": "cold: 3 buffers"}
    plain = cold | {"inputs": "hot: one buffer", "p50": 1e-3}
    assert steps([cold, plain]) == steps([plain, cold]) == [plain]
