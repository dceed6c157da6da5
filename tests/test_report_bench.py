"""Which rows of a benchmark file stand in which table, chart and sentence of the report."""

from types import SimpleNamespace

import pytest
from matplotlib.text import Annotation, Text

from stn_export.comparison.fastest import choose, portability_of, program, proved_by, steps, told_apart
from stn_export.report import figures, figures_bench
from stn_export.report.advice import advise
from stn_export.report.bench import (
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
from stn_export.report.content import Report
from stn_export.report.figures_bench import short_name, spread
from tests.bench_rows import ENVIRONMENT, FEW, NETWORKS, contest, facts, rows, timing

EAGER, FOLDED, INT8, PLAIN_EAGER, PLAIN = FEW
LOOKS = figures.looks((name, *said) for name, said in NETWORKS.items())
PROVED = {
    ("stn", "program", "eager-cpu"): 0.9,
    ("stn", "folded-fp32", "onnxruntime-cpu"): 0.9,
    ("stn", "matmul-int8", "onnxruntime-cpu"): 0.895,
    ("cnn", "plain-fp32", "onnxruntime-cpu"): 0.7,
}


def timed(artifact: tuple[str, str, str, str], seconds: float, batch: int = 1, **more: object) -> dict:
    runner = "eager-cpu" if artifact[2] == "pt2" else "onnxruntime-cpu"
    return facts(artifact, runner, "cpu", batch, "device") | timing(seconds, batch, 0.01) | more


def in_contest(artifact: tuple[str, str, str, str], name: str, ratio: float, batch: int = 1, **more: object) -> dict:
    return facts(artifact, "onnxruntime-cpu", "cpu", batch, "contest") | contest(name, 1e-4, ratio, **more)


def advice(*content: dict, proved: dict = PROVED) -> str:
    return " ".join(advise(list(content), steps(list(content)), proved, {}, ENVIRONMENT))


def test_every_row_of_a_run_finds_its_place():
    content = rows()
    found = tables(content, {"b": {"on_cuda": 9, "on_cpu": 1}})
    assert found["costs"]["columns"] == ["batch 1", "batch 256"]
    assert {line["artifact"] for line in found["costs"]["lines"]} == {"program", "folded-fp32", "matmul-int8"}
    placed = {line["artifact"]: line["placement"] for line in found["costs"]["lines"]}
    assert placed == {"program": None, "folded-fp32": {"on_cuda": 9, "on_cpu": 1}, "matmul-int8": None}
    assert found["against"]["columns"][:2] == ["default export, batch 1", "default export, batch 256"]
    assert set(found["single"]["columns"]) == {"device", "request", "start-up"}
    single = {program(line) for line in found["single"]["lines"]}
    assert single == {program(row) for row in content}
    assert [line["network"] for line in found["single"]["lines"]] == sorted((each[0] for each in single), reverse=True)


def test_hot_inputs_in_place_come_first():
    cold = timed(FOLDED, 5e-4, inputs="cold: 64 buffers, 1 MiB, in turn")
    hot, offline = timed(FOLDED, 2e-4), timed(FOLDED, 3e-4, regime="offline")
    assert steps([cold, hot, offline]) == [hot]
    assert steps([offline, cold]) == [offline]
    assert steps([cold]) == [cold]
    assert tables([cold, hot], {})["single"]["lines"][0]["cells"] == {"cold": cold, "device": hot}


def test_the_lines_are_of_the_best_artifact():
    content = [timed(FOLDED, 1e-4), timed(INT8, 2e-4), timed(FOLDED, 64e-4, 64), timed(INT8, 32e-4, 64)]
    slow, fast = latency(content), throughput(content)
    assert list(slow) == [("onnxruntime-cpu", "folded-fp32", "stn")]
    assert list(fast) == [("onnxruntime-cpu", "matmul-int8", "stn")]
    assert slow["onnxruntime-cpu", "folded-fp32", "stn"][64] == pytest.approx((6.4, 6.336, 6.464))
    assert fast["onnxruntime-cpu", "matmul-int8", "stn"][64] == pytest.approx((20000, 20000 / 1.01, 20000 / 0.99))


def test_an_artifact_timed_at_one_batch_only_is_no_line():
    content = [timed(FOLDED, 2e-4), timed(FOLDED, 3e-4, 64), timed(INT8, 1e-4)]
    assert list(latency(content)) == list(throughput(content)) == [("onnxruntime-cpu", "folded-fp32", "stn")]


def test_the_overhead_of_each_runner_at_the_outer_batches():
    content = [in_contest(FOLDED, "overhead", ratio, batch) for batch, ratio in ((1, 2.0), (16, 2.2), (64, 2.5))]
    content += [in_contest(INT8, "overhead", 9.0, batch) | {"seconds": 1.0} for batch in (1, 16, 64)]
    content.append(in_contest(FOLDED, "eager", 0.2))
    assert overheads(content, "cpu") == {"onnxruntime folded-fp32": {1: (2.0, 1.94, 2.06), 64: (2.5, 2.425, 2.575)}}


def test_the_front_is_what_nothing_beats_in_both():
    points = [
        {"milliseconds": milliseconds, "accuracy": accuracy}
        for milliseconds, accuracy in ((1.0, 0.7), (2.0, 0.7), (3.0, 0.9), (3.0, 0.8), (4.0, 0.85), (5.0, 0.95))
    ]
    assert front(points) == [points[0], points[2], points[5]]


def test_only_what_is_proved_equal_is_set_against_accuracy():
    content = [timed(FOLDED, 1e-4), timed(PLAIN, 5e-5), timed(PLAIN_EAGER, 1e-4), timed(FOLDED, 1e-3, 16)]
    assert pareto_points(content, PROVED, "cpu") == [
        {"name": "stn onnxruntime folded-fp32", "network": "stn", "milliseconds": 0.1, "accuracy": 0.9},
        {"name": "cnn onnxruntime plain-fp32", "network": "cnn", "milliseconds": 0.05, "accuracy": 0.7},
    ]


def test_the_breakdown_has_the_plain_network_of_its_kind_below_each_of_the_subject():
    def broken(artifact: tuple[str, str, str, str], seconds: float) -> dict:
        return facts(artifact, "onnxruntime-cpu", "cpu", 1, "breakdown", breakdown={"rest": seconds})

    plain_int8 = ("cnn", "plain-int8", "onnx", "f")
    found = breakdowns([broken(FOLDED, 2e-3), broken(INT8, 1e-3), broken(plain_int8, 4e-3), broken(PLAIN, 3e-3)], "cpu")
    assert found == [
        ("stn onnxruntime matmul-int8", {1: {"rest": 1.0}}, {1: 1.0}),
        ("plain CNN in onnxruntime", {1: {"rest": 4.0}}, {1: 1.0}),
    ]
    assert [name for name, _, _ in breakdowns([broken(FOLDED, 2e-3)], "cpu")] == ["stn onnxruntime folded-fp32"]


def test_a_whole_run_is_drawn_and_an_empty_one_is_not():
    report = Report("run")
    add_charts(report, rows(), "cpu", PROVED)
    assert list(report.figures) == [
        f"{name}-cpu" for name in ("latency", "throughput", "overhead", "pareto", "breakdown")
    ]
    empty = Report("run")
    add_charts(empty, [], "cpu", {})
    assert empty.figures == {}


def test_the_advice_names_what_is_fastest_and_what_it_costs():
    said = advice(
        timed(EAGER, 9e-4),
        timed(FOLDED, 1e-4),
        timed(INT8, 2e-4),
        timed(INT8, 32e-4, 64),
        in_contest(FOLDED, "overhead", 2.0),
        in_contest(FOLDED, "eager", 0.2),
        in_contest(INT8, "overhead", 1.5, 1),
        in_contest(INT8, "overhead", 2.5, 16),
    )
    assert said.startswith(
        "On the CPU, for latency ship folded-fp32 in onnxruntime-cpu: 0.1 ms for one example "
        "(95 % interval 0.099 to 0.101). There the spatial transformer costs 2.00 times the plain CNN (95 % interval "
        "1.94 to 2.06). This artifact is 5.00 times as fast as eager PyTorch there (95 % interval 4.85 to 5.15). "
        "Its accuracy is 90.00%, as in eager PyTorch."
    )
    assert "For throughput ship matmul-int8 in onnxruntime-cpu at batch 64: 20,000 examples a second" in said
    assert "At batch 16 the spatial transformer costs 2.50 times the plain CNN" in said
    assert "89.50%, -0.50 points against eager PyTorch." in said
    assert "holds for a <fast> one, 1 thread; another machine" in said
    assert "cannot tell" not in said
    assert "Warning" not in said


def test_a_tie_is_said_and_goes_to_the_more_portable_file():
    said = advice(timed(INT8, 1e-4), timed(FOLDED, 1.01e-4), timed(PLAIN, 1e-5))
    assert "for latency ship folded-fp32 in onnxruntime-cpu" in said
    assert (
        "We cannot tell whether it is faster or slower than matmul-int8 in onnxruntime-cpu; "
        "of these it is the most portable file." in said
    )
    assert "Not measured there: what it costs against the plain CNN." in said


def test_portability_goes_by_format_precision_and_the_runtimes_that_refuse():
    gather, folded = ("stn", "gather-fp32", "onnx", "g"), FOLDED
    verdicts = {"gather": {"TensorRT": ("should run (rule)", "")}, "folded": {"TensorRT": ("will not (why)", "")}}
    tied = [timed(EAGER, 1e-4), timed(folded, 1e-4), timed(gather, 1e-4), timed(INT8, 1e-4)]
    assert choose(tied, verdicts).row["artifact"] == "gather-fp32"
    assert choose(tied, {}).row["artifact"] == "folded-fp32"
    assert choose(tied[::3], {}).row["artifact"] == "matmul-int8"
    compiled = ("stn", "aotinductor-fp32", "aotinductor", "h")
    assert choose([timed(compiled, 1e-4), timed(EAGER, 1e-4)], {}).row["artifact"] == "program"


@pytest.mark.parametrize(
    ("seconds", "low", "apart"),
    [
        (1.06e-4, 1.05e-4, True),
        (1.06e-4, 1.0e-4, False),
        (1.04e-4, 1.03e-4, False),
        ((1 + 0.05) * 1e-4, 1.04e-4, False),
        (1.06e-4, 1.01 * 1e-4, False),  # where the other's interval ends
    ],
)
def test_two_medians_are_told_apart_by_interval_and_by_five_per_cent(seconds: float, low: float, apart: bool):
    assert told_apart(timed(FOLDED, 1e-4), timed(INT8, seconds, p50_low=low)) == apart


def test_what_is_proved_passed_and_is_of_todays_files():
    check = {"network": "stn", "artifact": "a", "runner": "fast", "sha256": "1", "passed": True, "accuracy": 0.9}
    checks = [check, check | {"runner": "slow", "passed": False}, check | {"artifact": "b", "sha256": "old"}]
    assert proved_by(checks, {"1"}) == {("stn", "a", "fast"): 0.9}


def test_portability_of_a_lowering_is_that_of_its_first_float32_file():
    def file(lowering: str, said: str, precision: str = "fp32", **details: object) -> SimpleNamespace:
        return SimpleNamespace(lowering=lowering, precision=precision, details={"portability": {"a": said}} | details)

    unknown = SimpleNamespace(lowering="plain", precision="fp32", details={})
    files = [file("matmul", "int8's", "int8"), file("matmul", "first"), file("matmul", "second"), unknown]
    assert portability_of([*files, file("folded", "its")]) == {"matmul": {"a": "first"}, "folded": {"a": "its"}}


def test_what_is_not_proved_is_not_shipped_but_named():
    said = advice(timed(INT8, 1e-5), timed(FOLDED, 1e-4), proved={program(timed(FOLDED, 1e-4)): 0.9})
    assert "for latency ship folded-fp32" in said
    assert "left out because no check of today proves it equal: matmul-int8 in onnxruntime-cpu." in said
    assert "Its accuracy is 90.00%." in said
    assert advice(timed(FOLDED, 1e-4), proved={}) == ""


def test_without_labels_nothing_is_said_of_accuracy():
    content = [timed(FOLDED, 1e-4), timed(EAGER, 9e-4), in_contest(FOLDED, "eager", 0.2)]
    unlabelled = dict.fromkeys(PROVED)
    said = advice(*content, proved=unlabelled)
    assert "for latency ship folded-fp32" in said
    assert "accuracy" not in said
    assert "ot measured" not in said  # no network to set it against either
    assert pareto_points(content, unlabelled, "cpu") == []


def test_colours_go_by_role_and_the_subject_comes_first():
    shown = figures.looks(
        [("a", "one", "other"), ("b", "two", "plain"), ("c", "three", "subject"), ("d", "four", "other")]
    )
    assert list(shown) == ["c", "b", "a", "d"]
    assert [look.colour for look in shown.values()] == list(figures.PALETTE[:4])


def test_doubt_and_disturbance_are_said():
    said = advice(
        timed(FOLDED, 1e-4),
        timed(EAGER, 1e-3, disturbed=True),
        in_contest(FOLDED, "overhead", 1.02, noise=0.1, disturbed_blocks=3),
        in_contest(FOLDED, "eager", 0.98, noise=0.1),
    )
    assert "the spatial transformer may cost something or nothing, we cannot tell (1.02 times the plain CNN" in said
    assert "1.02 times as fast as eager PyTorch there (95 % interval 0.93 to 1.13): we cannot tell them apart." in said
    assert "Warning: 1 of 2 timings and 3 of 50 blocks were disturbed" in said


def test_what_is_timed_at_one_batch_only_is_named_beside_its_point():
    values = {("a-cpu", "x", "stn"): {1: (1.0, 0.9, 1.1), 64: (9.0, 8.0, 10.0)}, ("b-cpu", "y", "stn"): {1: (2.0,) * 3}}
    axes = figures_bench.curves(values, LOOKS, "cpu", "Latency", "ms").axes[0]
    names = {child.get_text(): child.anncoords for child in axes.get_children() if isinstance(child, Annotation)}
    assert names == {"a x": "axes fraction", "b y": "offset points"}


def test_positions_are_spread_in_their_order():
    assert spread([0.5, 0.5, 0.1, 0.52], 0.1) == pytest.approx([0.5, 0.6, 0.1, 0.7])
    assert spread([0.99, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    assert spread([], 0.1) == []


def test_names_of_points_lie_on_no_other():
    near = [(1 + index / 10, 0.9 + index / 1000) for index in range(6)]
    points = [
        {"name": "a backend with a long name", "network": "stn", "milliseconds": milliseconds, "accuracy": accuracy}
        for milliseconds, accuracy in [(0.1, 0.5), *near]
    ]
    figure = figures_bench.pareto(points, points, LOOKS, "cpu")
    figure.draw_without_rendering()
    labels = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    boxes = [Text.get_window_extent(label) for label in labels]
    assert len(boxes) >= 3
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])


def test_a_drawing_takes_the_colours_and_letters_of_its_page():
    points = [{"name": "a & b", "network": "cnn", "milliseconds": 0.123456, "accuracy": 0.5}]
    svg = figures.to_svg(figures_bench.pareto(points, points, LOOKS, "cpu"), "pareto")
    assert svg.startswith("<svg")
    assert "var(--c1)" in svg
    assert "a &amp; b, 0.123 ms" in svg
    assert "font-family" not in svg
    for colour in figures.PAGE_COLOURS:
        assert colour not in svg


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (1.2345e-4, "0.123"), (0.0123, "12.3"), (0.09996, "100"), (2.5, "2,500")]
)
def test_milliseconds(seconds: float | None, text: str):
    assert milliseconds(seconds) == text


def test_sizes_and_names():
    assert (size(None, 1024), size(1536, 1024), size(2**20, 1024)) == ("–", "1.5", "1,024")
    assert short_name("onnxruntime-cuda-tf32", "folded-fp32", "cuda") == "onnxruntime-tf32 folded-fp32"
    assert short_name("torchscript-cpu", "torchscript-fp32", "cpu") == "torchscript fp32"
