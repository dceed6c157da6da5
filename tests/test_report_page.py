"""The parts of the report's page: order of rows, what is folded, links that cannot leave the run, one full stop."""

import pytest

from stn_export.onnx_graph.calls import HowToCall
from stn_export.report.__main__ import MOST_FAILED, equal, parity_table, render, runs
from stn_export.report.costs import costs, tables
from stn_export.report.page import NetworkRow, Page, ParityRow, Report, Section, SiteRow, SiteTable, Table, Text
from stn_export.results.statistics import share_interval
from stn_export.results.text import sentence
from stn_export.run.records import GridPixels
from tests import made_records
from tests.bench_rows import FEW
from tests.made_records import in_contest, timed

EAGER, FOLDED, INT8, PLAIN_EAGER, PLAIN = FEW


NETWORK = NetworkRow("stn", "transformer", "subject", "", 9, 9, "", [], [], [], {})


def parity(network: str, artifact: str, output: float | None, **more: object) -> ParityRow:
    check = made_records.check(network=network, artifact=artifact, **more)
    return ParityRow(check, None, output, GridPixels(mean=None, worst=None))


def test_checks_stand_in_their_order_and_failed_ones_outside_the_fold():
    rows = [
        parity("cnn", "a", 1e-9),
        parity("stn", "failed", 1e-9, failure="the grid is off."),
        parity("stn", "int8", 1e-9, precision="int8"),
        parity("stn", "unknown", None),
        parity("stn", "far", 2e-5),
        parity("stn", "near", 1e-5),
    ]
    report = Report("run", parity=rows, networks=[NETWORK])
    table = parity_table(report)
    assert [row[0].text for row in table.rows] == [
        *("stn/near", "stn/far", "stn/unknown", "stn/int8", "stn/failed", "cnn/a")
    ]
    assert table.folded
    assert table.explained.startswith("Rows: the network under test first; equal, ")
    shown = [block.text for block in equal(report) if isinstance(block, Text)]
    assert shown == [
        "5 of 6 passed against the same network in float64.",
        "stn/failed in onnxruntime-cpu FAILED: the grid is off.",
    ]
    report.parity = [parity("stn", str(index), 1.0, failure="no") for index in range(MOST_FAILED + 3)]
    texts = [block.text for block in equal(report) if isinstance(block, Text)]
    assert len(texts) == MOST_FAILED + 2
    assert texts[-1].startswith("3 more failed")


def test_lowerings_stand_by_their_error_at_the_outputs():
    errors: dict[str, float | None] = {"a": 2.0, "b": None, "c": 1.0}
    rows = [SiteRow(name, "runner", {"outputs": error}) for name, error in errors.items()]
    assert [row.lowering for row in SiteTable("stn", rows, ["site0, grid px", "outputs"]).ranked] == ["c", "a", "b"]


def test_timings_stand_the_fastest_first():
    content = [timed(PLAIN, 1e-6), timed(EAGER, 5e-4), timed(INT8, 2e-4), timed(FOLDED, 1e-4)]
    content += [in_contest(INT8, "overhead", 1.5, 1), in_contest(FOLDED, "overhead", 1.2, 1)]
    content += [in_contest(INT8, "eager", 0.9, 1), in_contest(FOLDED, "eager", 0.3, 1)]
    found = tables(content, {})
    names = {title: [line.artifact for line in getattr(found, title).lines] for title in ("costs", "against", "single")}
    assert names == {
        "costs": ["folded-fp32", "matmul-int8"],
        "against": ["folded-fp32", "matmul-int8"],
        "single": ["folded-fp32", "matmul-int8", "program", "plain-fp32"],
    }
    shown = {block.title: block for block in costs(Report("run", bench=found)) if isinstance(block, Table)}
    assert all(block.order for block in shown.values())
    [single] = [block for title, block in shown.items() if title.startswith("Latency at batch 1")]
    assert single.folded  # the overheads are shown
    alone = [block for block in costs(Report("run", bench=tables(content[:4], {}))) if isinstance(block, Table)]
    assert [block.folded for block in alone] == [False]


def test_runtimes_that_refuse_least_come_first_and_one_reason_is_said_once():
    fine, refused = ("should run", ""), ("refused", "only some modes.")
    verdicts = {"TensorRT": refused, "OpenVINO": fine}
    blocks = list(runs(Report("run", portability={"folded": verdicts, "gather": verdicts})))
    [table] = [block for block in blocks if isinstance(block, Table)]
    assert [row[0].text for row in table.rows] == ["OpenVINO", "TensorRT"]
    assert [block.text for block in blocks if isinstance(block, Text)] == [
        "folded refused: TensorRT; should run: OpenVINO.",
        "folded, gather in TensorRT: refused. only some modes.",
    ]


@pytest.mark.parametrize(
    "name", ["javascript:alert(1)//x", "//evil.example/x", 'a"onclick="alert(1)', "a\nb <img src=x>", "é/ü #?.onnx"]
)
def test_the_link_to_the_file_stays_in_the_run_whatever_the_file_is_called(name: str):
    page = Page("t", [], call=HowToCall(name, (), "python", "print()"))
    html = render("report.html.j2", page).decode().partition("<script>")[0]
    assert page.address.startswith("./")
    assert not set(page.address) & set(':"<>\n #?&')
    assert html.count(f'<a href="{page.address}">') == 1
    assert "<img" not in html
    assert 'onclick="' not in html


def test_folded_tables_say_how_many_rows_they_have():
    table = Table("Many", ("a", "b"), [["x", "1"], ["y", "2"]], "A note.", order="as they come", folded=True)
    html = render("report.html.j2", Page("t", [Section("s", "S", [table])])).decode().partition("<script>")[0]
    assert '<summary><h3>Many</h3> <span class="note">2 rows</span></summary>' in html
    assert '<p class="note">Rows: as they come. A note.</p>' in html
    markdown = render("report.md.j2", Page("t", [Section("s", "S", [table])])).decode()
    assert "### Many\n\n| a | b |" in markdown
    assert "Rows: as they come. A note." in markdown
    assert Table("One", ("a",), [["x"]], order="as they come").explained == ""


def test_a_sentence_ends_with_one_full_stop():
    assert [sentence(text) for text in ("modes", "modes.", "modes..")] == ["modes."] * 3


def test_the_interval_of_a_share():
    """Wilson's interval, as Agresti and Coull's paper (The American Statistician 1998) and others state it."""
    assert share_interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert share_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert share_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
