"""Which rows of a benchmark file stand in which table, chart and sentence of the report."""

import json
import re

import pytest

from stn_export.report import charts, charts_costs, drawing
from stn_export.report.charts import Point
from stn_export.report.charts_costs import short_name
from stn_export.report.costs import (
    add_charts,
    breakdowns,
    front,
    latency,
    milliseconds,
    overheads,
    pareto_points,
    size,
    tables,
    throughput,
)
from stn_export.report.page import Picture, Report
from stn_export.results.choice import Marks, Scored, more_accurate, program, steps
from tests import made_records
from tests.bench_rows import FEW, NETWORKS, facts, rows
from tests.made_records import MadeTiming, in_contest, timed

EAGER, FOLDED, INT8, PLAIN_EAGER, PLAIN = FEW
LOOKS = charts.looks((name, *said) for name, said in NETWORKS.items())
SCORED = {
    ("stn", "program", "eager-cpu"): Scored(0.9, 2000, 1.0),
    ("stn", "folded-fp32", "onnxruntime-cpu"): Scored(0.9, 2000, 1.0),
    ("stn", "matmul-int8", "onnxruntime-cpu"): Scored(0.895, 2000, 0.99),
    ("cnn", "plain-fp32", "onnxruntime-cpu"): Scored(0.7, 2000, 1.0),
}


def test_every_row_of_a_run_finds_its_place():
    content = made_records.timings(rows())
    found = tables(content, {"b": {"on_cuda": 9, "on_cpu": 1}})
    assert found.costs.columns == ["batch 1", "batch 256"]
    assert {line.artifact for line in found.costs.lines} == {"program", "folded-fp32", "matmul-int8"}
    placed = {line.artifact: line.placement for line in found.costs.lines}
    assert placed == {"program": None, "folded-fp32": {"on_cuda": 9, "on_cpu": 1}, "matmul-int8": None}
    assert found.against.columns[:2] == ["default export, batch 1", "default export, batch 256"]
    assert set(found.single.columns) == {"device", "request", "start-up"}
    single = {(line.network, line.artifact, line.runner) for line in found.single.lines}
    assert single == {program(row) for row in content}
    assert [line.network for line in found.single.lines] == sorted((each[0] for each in single), reverse=True)


def test_hot_inputs_in_place_come_first():
    cold = timed(FOLDED, 5e-4, inputs="cold: 64 buffers, 1 MiB, in turn")
    hot, offline = timed(FOLDED, 2e-4), timed(FOLDED, 3e-4, regime="offline")
    assert steps([cold, hot, offline]) == [hot]
    assert steps([offline, cold]) == [offline]
    assert steps([cold]) == [cold]
    assert tables([cold, hot], {}).single.lines[0].cells == {"cold": cold, "device": hot}


def test_the_lines_are_of_the_best_artifact():
    content = [timed(FOLDED, 1e-4), timed(INT8, 2e-4), timed(FOLDED, 64e-4, 64), timed(INT8, 32e-4, 64)]
    slow, fast = latency(content, Marks(content)), throughput(content, Marks(content))
    assert list(slow) == [("onnxruntime-cpu", "folded-fp32", "stn")]
    assert list(fast) == [("onnxruntime-cpu", "matmul-int8", "stn")]
    assert slow["onnxruntime-cpu", "folded-fp32", "stn"][64][:3] == pytest.approx((6.4, 6.336, 6.464))
    assert fast["onnxruntime-cpu", "matmul-int8", "stn"][64][:3] == pytest.approx((20000, 20000 / 1.01, 20000 / 0.99))


def test_an_artifact_timed_at_one_batch_only_is_no_line():
    content = [timed(FOLDED, 2e-4), timed(FOLDED, 3e-4, 64), timed(INT8, 1e-4)]
    marks = Marks(content)
    assert (
        list(latency(content, marks)) == list(throughput(content, marks)) == [("onnxruntime-cpu", "folded-fp32", "stn")]
    )


def test_the_overhead_of_each_runner_at_the_outer_batches():
    content = [in_contest(FOLDED, "overhead", ratio, batch) for batch, ratio in ((1, 2.0), (16, 2.2), (64, 2.5))]
    content += [in_contest(INT8, "overhead", 9.0, batch) | {"seconds": 1.0} for batch in (1, 16, 64)]
    content.append(in_contest(FOLDED, "eager", 0.2))
    assert overheads(content, "cpu", Marks(content)) == {
        "onnxruntime folded-fp32": {1: (2.0, 1.94, 2.06, ""), 64: (2.5, 2.425, 2.575, "")}
    }


def point(milliseconds: float, accuracy: float, agreement: float = 1.0, **more: object) -> Point:
    """A program with an interval of 1 % about its latency, on 2,000 examples."""
    return Point(
        f"{milliseconds} {accuracy}", timed(FOLDED, milliseconds / 1e3, **more), Scored(accuracy, 2000, agreement)
    )


def test_the_front_is_what_nothing_beats_in_both():
    pairs = ((1.0, 0.7), (2.0, 0.7), (3.0, 0.9), (3.0, 0.8), (4.0, 0.85), (5.0, 0.95))
    points = [point(*pair, agreement=0.0) for pair in pairs]
    assert front(points) == [points[0], points[2], points[5]]
    assert front([]) == []


def test_noise_makes_no_front():
    two_more = [point(1.0, 0.9435, 0.999), point(2.0, 0.9445, 0.999)]  # 2 of 2,000 examples
    assert front(two_more) == two_more[:1]
    many_more = [point(1.0, 0.905, 0.985), point(2.0, 0.92)]  # 30 of 2,000, of which at most 30 differ
    assert front(many_more) == many_more
    of_two_networks = [point(1.0, 0.905, 0.985), point(2.0, 0.92, network="cnn")]  # of which 350 may differ
    assert front(of_two_networks) == of_two_networks[:1]
    as_fast = [point(1.0, 0.7, 0.5), point(1.02, 0.9, 0.5)]  # no slower, but more accurate
    assert front(as_fast) == as_fast[1:]


def test_more_accurate_needs_more_than_the_examples_on_which_two_files_may_differ():
    assert more_accurate(Scored(0.9430, 2000, 1.0), Scored(0.9400, 2000, 0.997), same_network=True)  # 6 of 6
    assert not more_accurate(Scored(0.9425, 2000, 1.0), Scored(0.9400, 2000, 0.9975), same_network=True)  # 5 of 5
    assert not more_accurate(Scored(0.9430, 2000, 1.0), Scored(0.9400, 2000, 0.99), same_network=True)  # 6 of 20
    assert not more_accurate(Scored(0.9430, 2000, 1.0), Scored(0.9400, 2000, 0.997), same_network=True, pairs=10)
    assert not more_accurate(Scored(0.9400, 2000, 1.0), Scored(0.9430, 2000, 0.997), same_network=True)


def test_only_what_is_proved_equal_is_set_against_accuracy():
    folded, plain = timed(FOLDED, 1e-4), timed(PLAIN, 5e-5)
    content = [folded, plain, timed(PLAIN_EAGER, 1e-4), timed(FOLDED, 1e-3, 16)]
    assert pareto_points(content, SCORED, "cpu") == [
        Point("stn onnxruntime folded-fp32", folded, SCORED[program(folded)]),
        Point("cnn onnxruntime plain-fp32", plain, SCORED[program(plain)]),
    ]


@pytest.mark.draws
def test_five_lines_are_drawn_the_best_of_the_network_under_test_and_one_of_another():
    names = [(f"runner{index}", "x", network) for network in ("stn", "cnn") for index in range(6)]
    values = {key: {1: charts.Interval(9.0 - index, 1, 1)} for index, key in enumerate(names)}
    first = charts_costs.ranked(values, LOOKS, charts_costs.MS)[:5]
    assert first == [("runner5", "x", "stn"), *names[4:1:-1], ("runner5", "x", "cnn")]
    assert charts_costs.ranked(values, LOOKS, charts_costs.PER_SECOND)[0] == names[0]
    chart = charts_costs.curves(values, LOOKS, "cpu", "Latency", charts_costs.MS)
    assert chart.spec["transform"] == [{"filter": {"field": "line", "oneOf": chart.lines[:5]}}]
    assert len(chart.lines) == 12
    assert chart.lines[4] == "plain CNN, runner5 x"
    drawn = drawing.to_svg(chart)
    assert "runner5 x" in drawn
    assert "runner0 x" not in drawn
    only = {key: each for key, each in values.items() if key[2] == "cnn"}
    assert charts_costs.ranked(only, LOOKS, charts_costs.MS)[:5] == names[:6:-1]


def test_the_breakdown_has_the_plain_network_of_its_kind_below_each_of_the_subject():
    def broken(artifact: tuple[str, str, str, str], seconds: float) -> MadeTiming:
        known = facts(artifact, "onnxruntime-cpu", "cpu", 1, "breakdown", breakdown={"rest": seconds})
        return made_records.timing(known)

    plain_int8 = ("cnn", "plain-int8", "onnx", "f")
    found = breakdowns([broken(FOLDED, 2e-3), broken(INT8, 1e-3), broken(plain_int8, 4e-3), broken(PLAIN, 3e-3)], "cpu")
    assert found == [
        ("stn onnxruntime matmul-int8", {1: {"rest": 1.0}}, {1: 1.0}),
        ("plain CNN in onnxruntime", {1: {"rest": 4.0}}, {1: 1.0}),
    ]
    assert [name for name, _, _ in breakdowns([broken(FOLDED, 2e-3)], "cpu")] == ["stn onnxruntime folded-fp32"]


def test_a_whole_run_is_drawn_and_an_empty_one_is_not():
    report = Report("run")
    add_charts(report, made_records.timings(rows()), "cpu", SCORED)
    assert list(report.figures) == [
        f"{name}-cpu" for name in ("latency", "throughput", "overhead", "pareto", "breakdown")
    ]
    empty = Report("run")
    add_charts(empty, [], "cpu", {})
    assert empty.figures == {}


def test_colours_go_by_role_and_the_subject_comes_first():
    shown = charts.looks(
        [("a", "one", "other"), ("b", "two", "plain"), ("c", "three", "subject"), ("d", "four", "other")]
    )
    assert list(shown) == ["c", "b", "a", "d"]
    assert [look.colour for look in shown.values()] == [f"var(--n{index})" for index in range(4)]


@pytest.mark.draws
def test_a_chart_has_the_colours_of_its_page_and_says_its_numbers():
    cnn, stn = timed(PLAIN, 1.23456e-4), timed(FOLDED, 2e-4)
    points = [Point("a & <b>", cnn, Scored(0.5, 100, 1.0), "†"), Point("worse", stn, Scored(0.4, 100, 1.0))]
    chart = charts_costs.pareto(points, points[:1], LOOKS, "cpu")
    svg = drawing.to_svg(chart)
    assert "var(--n1)" in svg
    assert "a &amp; &lt;b&gt;" in svg
    assert ">worse<" not in svg  # it stands in its tooltip
    assert chart.text.endswith("nothing is measurably faster and no less accurate than a & <b> (0.123 ms†, 50.00 %).")
    assert drawing.to_png(chart).startswith(b"\x89PNG")
    picture = Picture("pareto", chart)
    assert picture.figures is not None
    assert picture.figures.note == "† taken while other work disturbed the machine."
    assert [row[0].text for row in picture.figures.rows] == ["a & <b>", "worse"]
    assert "<" not in picture.spec
    assert picture.logarithmic


def test_every_chart_is_told_in_one_sentence():
    report = Report("run")
    add_charts(report, made_records.timings(rows()), "cpu", SCORED)
    for chart in report.figures.values():
        assert re.fullmatch(r"[^.]*(\.\d[^.]*)*\.", chart.text), chart.text
        assert len(chart.text) < 250


def test_every_colour_of_a_chart_is_one_of_the_page():
    report = Report("run")
    add_charts(report, made_records.timings(rows()), "cpu", SCORED)
    for chart in report.figures.values():
        assert set(re.findall(r"var\(--([\w-]+)\)", json.dumps(chart.spec))) <= set(drawing.PRINTED)
    assert set(drawing.DARK) <= set(drawing.PRINTED)


def test_runners_of_one_family_share_a_colour_and_have_shapes_of_their_own():
    values = {
        (runner, "x", "stn"): {1: charts.Interval(1.0, 0.9, 1.1)}
        for runner in ("eager-cpu", "eager-autograd-cpu", "openvino-cpu")
    }
    layer = charts_costs.curves(values, LOOKS, "cpu", "Latency", charts_costs.MS).spec
    assert len(set(layer["encoding"]["color"]["scale"]["range"])) == 2
    assert len(set(layer["layer"][2]["encoding"]["shape"]["scale"]["range"])) == 3


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (1.2345e-4, "0.123"), (0.0123, "12.3"), (0.09996, "100"), (2.5, "2,500")]
)
def test_milliseconds(seconds: float | None, text: str):
    assert milliseconds(seconds) == text


def test_sizes_and_names():
    assert (size(None, 1024), size(1536, 1024), size(2**20, 1024)) == ("–", "1.5", "1,024")
    assert short_name("onnxruntime-cuda-tf32", "folded-fp32", "cuda") == "onnxruntime-tf32 folded-fp32"
    assert short_name("torchscript-cpu", "torchscript-fp32", "cpu") == "torchscript fp32"
