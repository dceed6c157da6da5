"""Which figures are marked: the rule for contradictions, tried on true values, and where its marks are shown."""

import pytest

from benchmarks.tools import results_page
from stn_export.report.costs import add_charts, costs, deploys, tables
from stn_export.report.page import Report, Table
from stn_export.results.card import Answer, card
from stn_export.results.choice import (
    CONTRADICTED,
    DISTURBED,
    Marks,
    Ratio,
    Scored,
    disagree,
    disturbance,
    legend,
    was_disturbed,
)
from stn_export.results.statistics import METHOD, RUN_SPREAD, drift
from tests.made_records import MadeTiming, in_contest, timed
from tests.test_answer import EAGER, FOLDED, INT8, PLAIN, PROVED, content

EAGER_NAME, PLAIN_NAME = "stn-eager-cpu-program", "cnn-onnxruntime-cpu-plain-fp32"


def speedup(middle: float, low: float, high: float, **more: object) -> MadeTiming:
    """A paired comparison of the folded file with eager PyTorch that found this speed-up."""
    ends = {"ratio": 1 / middle, "ratio_low": 1 / high, "ratio_high": 1 / low, "baseline_seconds": 1e-4 * middle}
    return in_contest(FOLDED, "eager", 0.2, baseline=EAGER_NAME) | ends | more


@pytest.mark.parametrize(
    ("paired", "separate", "contradicts"),
    [
        ((40.2, 24.1, 66.9), (18.0, 17.6, 18.4), True),  # from a run of which 1,471 of 1,472 blocks were disturbed
        ((40.2, 18.4, 66.9), (18.0, 17.6, 18.4), False),  # wide enough to hold what the other says
        ((14.5, 14.4, 14.6), (13.6, 13.4, 13.8), False),  # two moments of a quiet machine: 4 % apart
        ((3.0, 2.99, 3.01), (2.8, 2.79, 2.81), False),
        ((1 / 40.2, 1 / 66.9, 1 / 24.1), (1 / 18.0, 1 / 18.4, 1 / 17.6), True),  # whichever side is divided
        ((1.0, 0.99, 1.0), (1.2, 1.12, 1.3), True),
        ((1.0, 0.99, 1.0), (1.2, 1.11, 1.3), False),
    ],
)
def test_what_contradicts(paired: tuple, separate: tuple, contradicts: bool):
    assert disagree(Ratio(*paired), Ratio(*separate)) == contradicts
    assert disagree(Ratio(*separate), Ratio(*paired)) == contradicts


def test_drift_is_that_of_two_timings_whose_spread_is_known():
    assert METHOD.run_spread == RUN_SPREAD
    assert pytest.approx(1.1172, abs=1e-4) == drift()


def test_a_paired_comparison_is_held_against_the_timings_of_its_own_two_files():
    """18 times as fast when timed apart; the 5 times at batch 16, cold inputs and other clocks say nothing of that."""
    apart = [timed(FOLDED, 1e-4), timed(EAGER, 18e-4)]
    others = [timed(FOLDED, 1e-3, 16), timed(EAGER, 5e-3, 16), timed(FOLDED, 9e-4, inputs="cold: 9 buffers")]
    wrong, right = speedup(40.2, 24.1, 66.9), speedup(18.5, 18.1, 18.9)
    marks = Marks([*apart, *others, wrong, right])
    found = marks.contradiction(wrong)
    assert found is not None
    assert found.separate.inverse == pytest.approx((18.0, 17.64, 18.36), abs=0.01)
    assert found.paired.inverse == pytest.approx((40.2, 24.1, 66.9))
    assert not found.disturbed
    assert marks.contradicted == [wrong]
    assert [marks.of(row) for row in (wrong, right, *apart, *others)] == ["‡", "", "‡", "‡", "", "", ""]
    assert Marks([*others, wrong]).contradiction(wrong) is None
    assert Marks([*apart, wrong | {"clock": "events"}]).contradicted == []
    disturbed = [apart[0] | {"disturbed": True}, apart[1], wrong]
    assert Marks(disturbed).contradiction(wrong).disturbed
    assert Marks(disturbed).of(disturbed[0]) == "†‡"


def test_what_was_disturbed():
    rows = [timed(FOLDED, 1e-4), timed(INT8, 1e-4, disturbed=True), timed(PLAIN, 1e-4)]
    rows += [in_contest(FOLDED, "eager", 0.2, disturbed_blocks=13), in_contest(INT8, "eager", 0.2)]
    assert [was_disturbed(row) for row in rows] == [False, True, False, True, False]
    found = disturbance(rows)
    assert (found.text, found.prevails) == ("1 of 3 timings and 13 of 50 blocks", False)
    assert not disturbance([rows[0], rows[4]])
    assert disturbance(rows[3:4]).prevailing == "13 of 25 blocks"
    assert not disturbance([*rows[1:3]]).prevails  # a half is not most
    assert disturbance([rows[1], rows[1], rows[2]]).prevailing == "2 of 3 timings"


def test_a_legend_explains_what_is_there():
    assert legend("1.00†") == "† taken while other work disturbed the machine"
    assert legend("1.00‡", "2.00†").count(";") == 1
    assert legend("1.00") == ""


QUIET = (
    timed(FOLDED, 1e-4),
    timed(INT8, 2e-4),
    timed(EAGER, 5e-4),
    in_contest(FOLDED, "overhead", 2.1),
    in_contest(FOLDED, "eager", 0.2),
)
BUSY = tuple(
    row | ({"disturbed": True} if row.disturbed is not None else {"disturbed_blocks": 1})
    for row in (*QUIET, timed(PLAIN, 5e-5))
)


def shown(rows: tuple[MadeTiming, ...]) -> dict[str, str]:
    """The figures of a run, wherever they are shown."""
    held = content(*rows)
    report = Report(
        "run", timings=list(rows), shipped=Answer(held).by_device, marks=Marks(rows), bench=tables(rows, {})
    )
    scored = {name: Scored(accuracy, 300, 1.0) for name, accuracy in PROVED.items() if accuracy is not None}
    add_charts(report, list(rows), "cpu", scored)
    blocks = [*deploys(report), *costs(report)]
    found = {block.title: block.markdown for block in blocks if isinstance(block, Table)}
    found |= {name: chart.text for name, chart in report.figures.items()}
    found |= {word: sentence for word, sentence in card(held) if word in ("latency", "throughput", "overhead")}
    kept = {"proved": list(PROVED), "portability": {}}
    found["RESULTS.md"] = "\n".join(results_page.headlines(kept, list(rows)))
    return found | {"contests": "\n".join(results_page.contest_tables(list(rows)))}


def test_figures_taken_while_disturbed_are_marked_wherever_they_are_shown():
    busy, quiet = shown(BUSY), shown(QUIET)
    assert busy.keys() == quiet.keys()
    assert len(busy) == 12
    for place, text in busy.items():
        assert DISTURBED in text, place
        assert DISTURBED not in quiet[place], place
    assert busy["latency"] == (
        "0.100 ms per example (0.0990 to 0.101)†, inputs in place; speed-up over eager PyTorch 5.00 × (4.85 to 5.15)†"
    )
    assert "| 100 µs† | 0.200 (0.194 to 0.206)† | faster | 1 of 25 |" in busy["contests"]
    assert "100 µs (99.0 to 101 µs)† for one example" in busy["RESULTS.md"]
    assert all(mark in results_page.OPENING for mark in (DISTURBED, CONTRADICTED))


def test_tables_and_charts_explain_their_marks():
    report = Report("run", timings=list(BUSY), shipped=Answer(content(*BUSY)).by_device, bench=tables(list(BUSY), {}))
    blocks = [*deploys(report), *costs(report)]
    shown = [block for block in blocks if isinstance(block, Table)]
    assert len(shown) == 4
    for table in shown:
        assert f"{legend(table.markdown)}." in table.note
        assert DISTURBED in legend(table.markdown)
        assert CONTRADICTED not in table.markdown + table.note
