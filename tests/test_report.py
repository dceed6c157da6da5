"""The whole report of a run whose files are made up, and what it says where some are missing, stale or foreign."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.report import __main__ as report
from stn_export.report import drawing, parity
from stn_export.run.manifest import TWIN_NOTE, NetworkDirectory, network_directories
from stn_export.run.records import GridPixels, PointEntry
from tests import bench_rows, made_records
from tests.report_files import check, checks_of, comparison, export, write_points, write_training, write_verify
from tests.sweeps import swept
from tests.zoo import ZOO, enter_zoo

pytestmark = pytest.mark.usefixtures("charts_drawn_once")


def write_bench(run: Path, content: list[dict]) -> None:
    (run / "bench.json").write_text(json.dumps(bench_rows.bench_file(content)), encoding="utf-8")


@pytest.fixture
def run(entered_run: Path, tmp_path: Path) -> Path:
    """``stn`` and ``cnn`` with exports that are listed only, verified: a copy to spoil."""
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    export(NetworkDirectory(run / "stn"), "folded-fp32", "folded-fp16", "decomposed-fp32")
    export(NetworkDirectory(run / "cnn"), "plain-fp32")
    write_verify(run, checks_of(run))
    return run


@pytest.fixture
def stn(run: Path) -> NetworkDirectory:
    return NetworkDirectory(run / "stn")


def texts(run: Path) -> tuple[str, str]:
    """The report in HTML and in Markdown."""
    return (run / "report.html").read_text(encoding="utf-8"), (run / "report.md").read_text(encoding="utf-8")


def test_a_whole_report(run: Path, capsys: pytest.CaptureFixture[str]):
    write_training(run, comparison(1))
    write_points(run)
    write_bench(run, bench_rows.rows(bench_rows.artifacts_of(network_directories(run))))
    assert cli.run(report.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "stale" not in out
    assert "run 'make" not in out
    html, markdown = texts(run)
    assert html.partition("<script>")[0].count("<svg ") == 12
    assert len(html) < 2e6
    [link] = re.findall(r'(?:src|href)="(?!#|data:)([^"]*)', html.partition("<script>")[0])
    assert f"<dd>{link.removeprefix('./')} (runner" in html  # beside the page: the file to deploy
    assert "var(--n0)" in html
    for name in ("latency", "throughput", "overhead", "pareto", "breakdown"):
        assert (run / "figures" / f"{name}-cpu.png").exists()
    assert "a &lt;fast&gt; one" in html
    for text in (html, markdown):
        assert "Spatial transformer against plain CNN: run" in text
        assert "6 of 6 checks against the float64 reference passed" in text
        assert re.search(r"stn/folded-fp(16|32)\.onnx \(runner onnxruntime-cpu\)", text)
        assert "26 / 0" in text
        assert "39,884" in text
        assert "images: N×3×32×32 float32" in text
        assert "32×32 → 32×32" in text
        assert "Not run: eager-cuda: no GPU" in text
    assert "stn has no gather-fp32: it samples &lt;bicubic&gt;" in html
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert [row["mean"] for row in content["training"]] == [row["accuracies"]["0"][-1] for row in content["training"]]
    assert content["parity"][0]["comparisons"] == 2
    words = ["deploy", "latency", "throughput", "overhead", "accuracy", "verified", "confidence", "caveat"]
    assert list(dict.fromkeys(word for word, _ in content["card"])) == words
    for line in markdown.splitlines():
        if line.startswith("!["):
            assert (run / line.split("](")[1].rstrip(")")).exists()


def test_what_is_missing_is_said(entered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    assert cli.run(report.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    for missing in ("exported", "verified", "benchmarked"):
        assert f"Nothing has been {missing} yet" in out
    assert "Nothing has been verified yet" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", swept(ZOO, "Pyramid", "NoSampler"))
def test_any_network_has_a_report(name: str, tmp_path: Path):
    run, subject = tmp_path / "zoo", enter_zoo(tmp_path / "zoo", name)
    export(subject, "matmul-fp32", "matmul-int8")
    unlabelled = {} if subject.examples().labels is not None else {"agreement": None, "accuracy": None}
    write_verify(run, [row | unlabelled for row in checks_of(run)])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    facts, contract = subject.facts, subject.artifacts["program"].contract
    for text in texts(run):
        assert ("Where they sample" in text) == bool(facts.sites)
        assert ("grid, px" in text) == bool(facts.sites)
        assert (">accuracy<" in text or "| accuracy |" in text) == (not unlabelled)
        assert all(f"{spec.name}: {spec.text}" in text for spec in (*contract.inputs, *contract.outputs))
        assert all(site["name"] in text for site in facts.sites)
        assert "None" not in text.partition("<script>")[0]
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    [table] = [table for table in content["sites"] if table["network"] == subject.name]
    assert table["places"] == [*(f"{site['name']}, grid px" for site in facts.sites), "outputs"]
    [row] = [row for row in table["rows"] if row["lowering"] == "matmul int8"]
    assert row["errors"].keys() == set(table["places"])


def test_what_a_network_is_stands_beside_its_first_mention(run: Path):
    cnn = NetworkDirectory(run / "cnn")
    cnn.describe(replace(cnn.facts, note=TWIN_NOTE))
    assert cli.run(report.main, ["--run", str(run)]) == 0
    for text in texts(run):
        title = text[max(text.find("<h1>"), 0) :]
        first, note = title.index("lain CNN"), title.index("The plain CNN: the same network, samplers bypassed")
        assert note - first < 400


def test_a_bypassed_twin_is_not_set_against_accuracy(run: Path):
    def networks() -> set[str]:
        return {row["network"] for row in report.collect(run).figures["pareto-cpu"].spec["data"]["values"]}

    write_bench(run, bench_rows.rows(bench_rows.artifacts_of(network_directories(run))))
    assert networks() == {"spatial transformer", "plain CNN"}
    cnn = NetworkDirectory(run / "cnn")
    cnn.describe(replace(cnn.facts, note=TWIN_NOTE))
    assert networks() == {"spatial transformer"}


def test_the_worst_error_of_each_site_stands_by_lowering_and_runner(stn: NetworkDirectory, run: Path):
    errors = {"site0/theta": 1e-7, "site0/grid": 3e-6, "site0/warped": 1e-5, "log_probs": 2e-5}
    checks = [
        check(stn, "folded-fp32", "onnxruntime-cpu", errors=errors),
        check(stn, "folded-fp32", "openvino-cpu", errors=errors | {"site0/grid": None}),
        *(
            check(stn, "folded-fp32", runner, errors=dict.fromkeys(errors, 1e-9))
            for runner in ("onnxruntime-cpu", "openvino-cpu")
        ),
        check(stn, "decomposed-fp32", "onnxruntime-cpu", errors={"site0/warped": 4e-5, "log_probs": 5e-5}),
        check(stn, "program", "eager-cpu", errors={"log_probs": 6e-5}),
    ]
    write_verify(run, checks)
    [table] = report.collect(run).sites
    assert table.places == ["site0, grid px", "site0, warped", "outputs"]
    assert [(row.lowering, row.runner, *map(row.errors.get, table.places)) for row in table.rows] == [
        ("folded", "onnxruntime-cpu", 3e-6, None, 2e-5),
        ("folded", "openvino-cpu", None, None, 2e-5),
        ("decomposed", "onnxruntime-cpu", None, 4e-5, 5e-5),
        ("pt2", "eager-cpu", None, None, 6e-5),
    ]
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "| folded | onnxruntime-cpu | 3.0e-06 | – | 2.0e-05 |" in texts(run)[1]


def test_the_grid_counts_at_the_site_where_it_is_worst(stn: NetworkDirectory, run: Path):
    pixels = {"site0": {"mean": 1e-6, "worst": 1e-5}, "site1": {"mean": 2e-6, "worst": 2e-3}}
    write_verify(run, [check(stn, "folded-fp16", "onnxruntime-cpu", grid_pixels=pixels)])
    [row] = report.collect(run).parity
    assert row.pixels == GridPixels(mean=2e-6, worst=2e-3)
    points = {f"site{index}/grid": point("grid") for index in range(3)} | {"out": point("output")}
    errors = {"site0/grid": 1.0, "site1/grid": 3.0, "out": 2.0}
    assert parity.worst_by_kind(errors, points) == {"grid": 3.0, "output": 2.0}
    assert parity.worst_by_kind(errors | {"site2/grid": None}, points) == {"grid": None, "output": 2.0}


def point(kind: str) -> PointEntry:
    return PointEntry(kind=kind, site=None, eager_error=0.0, scale=1.0)


def differ(stn: NetworkDirectory, name: str, *rows: list, **more: object) -> dict:
    """A check in a runner of its own with what differs most in ``log_probs``."""
    differing = [[*row, "log_probs"] for row in rows]
    return check(stn, name, f"{name}-runner", comparisons={}, differing=differing) | more


def test_where_the_backends_differ_most(run: Path, stn: NetworkDirectory):
    write_verify(
        run,
        [
            differ(stn, "decomposed-fp32", *([index, 1e-6 * index] for index in range(12))),
            differ(stn, "folded-fp32", [3, 3.2e-5], [4, None]),
            differ(stn, "folded-fp16", [7, 0.02]),
            differ(stn, "folded-fp32", [10**6, 9.0], sha256="of yesterday"),
        ],
    )
    indices = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 11])
    write_points(run, pictures={"indices": indices})
    content = report.collect(run)
    titles = [axes.get_title() for axes in content.figures["differing"].axes]
    assert len(content.figures["differing"].axes) == 16  # two of the ten have no picture
    assert titles[0] == f"#3\n{stn.examples().labels[3]}\n3e-05"
    assert [title.split("\n")[0] for title in titles[1:8]] == [f"#{index}" for index in (11, 8, 7, 6, 5, 4, 2)]
    assert len(content.figures["differing-reduced"].axes) == 2
    assert content.differing["differing"].endswith("3e-05 in log_probs, by folded-fp32 on folded-fp32-runner.")
    report.write_report(content, run)
    for text in texts(run):
        assert "In reduced precision example 7 differs most from float64: 2e-02" in text
    assert (run / "figures" / "differing-reduced.png").exists()


def test_without_pictures_what_differs_is_said_only(run: Path, stn: NetworkDirectory):
    write_verify(run, [differ(stn, "folded-fp32", [3, 3.2e-5])])
    content = report.collect(run)
    assert content.differing.keys() == {"differing"}
    assert "differing" not in content.figures
    report.write_report(content, run)
    for text in texts(run):
        assert "In float32 example 3 differs most from float64" in text


def test_nothing_that_differs_is_no_section(run: Path):
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "differs most" not in (run / "report.html").read_text(encoding="utf-8")


def test_the_largest_difference_of_an_example_counts():
    checks = [
        made_records.check(runner="a", differing=[[1, 0.5, "x"], [2, 0.1, "x"]]),
        made_records.check(runner="b", differing=[[2, 0.9, "y"], [3, None, "y"]]),
    ]
    assert parity.most_different(checks) == [(2, 0.9, "y", checks[1]), (1, 0.5, "x", checks[0])]


def test_grey_pictures_and_other_sizes_are_drawn():
    rows = {"input": torch.zeros(3, 1, 24, 94).byte(), "warped": torch.zeros(3, 3, 8, 8).byte()}
    assert [len(axes.images) for axes in drawing.picture_rows(rows, ["a", "b", "c"]).axes] == [1] * 6


def test_checks_of_other_artifacts_are_stale_and_missing_ones_are_named(
    run: Path, stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]
):
    kept = [row for row in checks_of(run) if row["artifact"] != "folded-fp32"]
    write_verify(run, kept)
    assert cli.run(report.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Not verified: stn/folded-fp32. Run 'make verify'." in out
    assert "stale" not in out
    write_verify(run, [*kept, check(stn, "folded-fp32", "onnxruntime-cpu", sha256="older")])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "The parity table is stale" in capsys.readouterr().out


def test_a_check_that_failed_says_why(run: Path, stn: NetworkDirectory):
    failed = check(
        stn, "folded-fp32", "onnxruntime-cpu", passed=False, failure="constants: <wrong> at grid", multiple=None
    )
    write_verify(run, [failed])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    html, markdown = texts(run)
    assert 'title="constants: &lt;wrong&gt; at grid">FAILED' in html
    assert "| FAILED: constants: &lt;wrong> at grid |" in markdown


def test_timings_of_other_artifacts_are_stale(run: Path, capsys: pytest.CaptureFixture[str]):
    write_bench(run, bench_rows.rows())
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "The timings are stale" in capsys.readouterr().out


def test_timings_of_an_older_format_are_not_shown(run: Path, capsys: pytest.CaptureFixture[str]):
    row = bench_rows.facts(bench_rows.FEW[0], "eager-cpu", "cpu", 1, "device")
    write_bench(run, [{name: value for name, value in row.items() if name != "regime"}])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "of an older format and not shown: run 'make bench' again" in capsys.readouterr().out
    assert "What to deploy" not in (run / "report.html").read_text(encoding="utf-8")


def test_a_row_that_is_missing_is_a_dash(run: Path):
    (run / "verify.json").unlink()  # nothing proved, no advice
    content = bench_rows.rows(bench_rows.artifacts_of(network_directories(run)))
    kept = [
        row for row in content if (row["batch"], row["runner"]) != (1, "openvino-cpu") or row["regime"] == "start-up"
    ]
    write_bench(run, [{name: value for name, value in row.items() if name != "file_bytes"} for row in kept])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    table = (run / "report.md").read_text(encoding="utf-8").partition("### Latency at batch 1")[2]
    [line] = re.findall(r"\| stn/folded-fp32 \| openvino-cpu \|.*", table)
    assert line.split(" | ")[2:7] == ["–"] * 5
    assert " 20.0 |" in line


def test_no_timings_at_all(run: Path):
    write_bench(run, [])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert not (run / "figures" / "latency-cpu.png").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine_info": {}, "benchmarks": []}'])
def test_a_foreign_benchmark_file(run: Path, content: str, capsys: pytest.CaptureFixture[str]):
    (run / "bench.json").write_text(content, encoding="utf-8")
    assert cli.run(report.main, ["--run", str(run)]) == 2
    assert "not a benchmark file of stn_export" in capsys.readouterr().err
    assert not (run / "report.html").exists()
