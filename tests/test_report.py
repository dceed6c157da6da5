import json
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.artifacts.files import write_json
from stn_export.artifacts.manifest import VERIFY_FILE, VERIFY_SCHEMA, NetworkDirectory, network_directories
from stn_export.config import DATASETS
from stn_export.report import __main__ as report
from stn_export.report.parity import most_different
from stn_export.train.data import Dataset
from stn_export.verify import __main__ as verify
from tests import bench_rows


def write_bench(run: Path, content: list[dict]) -> None:
    (run / "bench.json").write_text(json.dumps(bench_rows.bench_file(content)))


def test_a_whole_report(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run)]) == 0
    write_bench(run, bench_rows.rows(bench_rows.artifacts_of(network_directories(run))))
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "stale" not in capsys.readouterr().out
    html, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert html.count("<svg") == 11
    assert "http" not in html
    assert "var(--c0)" in html
    for name in ("latency", "throughput", "overhead", "pareto", "breakdown"):
        assert (run / "figures" / f"{name}-cpu.png").exists()
    assert "a &lt;fast&gt; one" in html
    for text in (html, markdown):
        assert "checks equal PyTorch within tolerance" in text
        assert "On the CPU, for latency ship" in text
        assert "26 / 0" in text
        assert "39,884" in text
    content = json.loads((run / "report.json").read_text())
    assert [row["mean"] for row in content["training"]] == [row["accuracies"][0][-1] for row in content["training"]]
    assert content["parity"][0]["comparisons"] == 21
    for line in markdown.splitlines():
        if line.startswith("!["):
            assert (run / line.split("](")[1].rstrip(")")).exists()


def test_what_is_missing_is_said(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(report.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Nothing has been verified yet" in out
    assert "Nothing has been benchmarked yet" in out
    assert "Nothing has been verified yet" in (run / "report.html").read_text()


def write_verify(run: Path, stn: NetworkDirectory, *rows: tuple[str, str, list]) -> None:
    """``verify.json`` of a run as far as the report reads it; a row is artifact, precision and what differs most."""
    figures = {"errors": {}, "multiple": 1.0, "agreement": 1.0, "accuracy": 0.5, "grid_pixels": None, "failure": ""}
    checks = [
        {"model": "stn", "artifact": name, "runner": f"{name}-runner", "precision": precision, "differing": differing}
        | {"sha256": stn.artifacts[name].sha256 if name in stn.artifacts else "0", "passed": True, "comparisons": {}}
        | figures
        for name, precision, differing in rows
    ]
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, {"checks": checks, "unavailable": {}})


def test_where_the_backends_differ_most(run: Path, stn: NetworkDirectory, digits: Dataset):
    many = [[index, 1e-6 * index] for index in range(12)]
    write_verify(
        run,
        stn,
        ("matmul-fp32", "fp32", many),
        ("folded-fp32", "fp32", [[3, 3.2e-5], [4, float("nan")]]),
        ("folded-fp16", "fp16", [[7, 0.02]]),
        ("of yesterday", "fp32", [[10**6, 9.0]]),
    )
    content = report.collect(run, None)
    titles = [axes.get_title() for axes in content.figures["differing"].axes]
    assert len(content.figures["differing"].axes) == 20
    label = DATASETS["digits"].classes[digits.test.labels[3]]
    assert titles[0] == f"#3\n{label}\n3e-05"
    assert [title.split("\n")[0] for title in titles[1:10]] == [f"#{index}" for index in (11, 10, 9, 8, 7, 6, 5, 4, 2)]
    assert len(content.figures["differing-reduced"].axes) == 2
    assert content.differing["differing"].endswith("3e-05 in a log-probability, by folded-fp32 on folded-fp32-runner.")
    report.write_report(content, run)
    for text in ((run / "report.html").read_text(), (run / "report.md").read_text()):
        assert "Where the backends differ most" in text
        assert "In reduced precision test image 7 differs most from float64: 2e-02" in text
    assert (run / "figures" / "differing-reduced.png").exists()


def test_nothing_that_differs_is_no_section(run: Path, stn: NetworkDirectory):
    write_verify(run, stn, ("matmul-fp32", "fp32", []))
    content = report.collect(run, None)
    assert not {"differing", "differing-reduced"} & set(content.figures)
    report.write_report(content, run)
    assert "differ most" not in (run / "report.html").read_text()


def test_the_largest_difference_of_an_image_counts():
    checks = [{"runner": "a", "differing": [[1, 0.5], [2, 0.1]]}, {"runner": "b", "differing": [[2, 0.9]]}]
    assert most_different(checks) == [(2, 0.9, checks[1]), (1, 0.5, checks[0])]


def test_timings_of_other_artifacts_are_stale(run: Path, capsys: pytest.CaptureFixture[str]):
    write_bench(run, bench_rows.rows())
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "The timings are stale" in capsys.readouterr().out


def test_timings_of_an_older_format_are_not_shown(run: Path, capsys: pytest.CaptureFixture[str]):
    row = bench_rows.facts(bench_rows.FEW[0], "eager-cpu", "cpu", 1, "device")
    write_bench(run, [{name: value for name, value in row.items() if name != "regime"}])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "of an older format and not shown: run 'make bench' again" in capsys.readouterr().out
    assert "What to ship" not in (run / "report.html").read_text()


def test_a_row_that_is_missing_is_a_dash(run: Path):
    content = bench_rows.rows(bench_rows.artifacts_of(network_directories(run)))
    kept = [
        row for row in content if (row["batch"], row["runner"]) != (1, "openvino-cpu") or row["regime"] == "start-up"
    ]
    write_bench(run, [{name: value for name, value in row.items() if name != "file_bytes"} for row in kept])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "<td>openvino" not in (run / "report.html").read_text()
    assert "| stn/folded-fp32 | openvino-cpu | – | – | – | – | 20.0 |" in (run / "report.md").read_text()


def test_no_timings_at_all(run: Path):
    write_bench(run, [])
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert not (run / "figures" / "latency-cpu.png").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine_info": {}, "benchmarks": []}'])
def test_a_foreign_benchmark_file(run: Path, content: str, capsys: pytest.CaptureFixture[str]):
    (run / "bench.json").write_text(content)
    assert cli.run(report.main, ["--run", str(run)]) == 2
    assert "not a benchmark file of stn_export" in capsys.readouterr().err
    assert not (run / "report.html").exists()
