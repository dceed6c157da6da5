import json
from pathlib import Path

import pytest

from stn_export import cli, report, verify
from stn_export.artifacts import VERIFY_FILE, VERIFY_SCHEMA, ModelDirectory, write_json
from stn_export.config import DATASETS
from stn_export.data import Dataset
from stn_export.report import _accuracy_sentence, latencies, read_reference, throughputs
from stn_export.report_parity import most_different


def bench_row(model: str, artifact: str, sha256: str, batch: int, **more: object) -> dict:
    facts = {"model": model, "artifact": artifact, "sha256": sha256, "runner": "onnxruntime-cpu", "device": "cpu"}
    facts |= {"precision": "fp32", "input": "float"}
    return {
        "extra_info": facts | {"batch": batch, "threads": 1, "inputs": "test images", "images_per_second": 10.0} | more,
        "stats": {"median": 0.002 if model == "stn" else 0.001},
    }


def write_bench(run: Path, sha256: str) -> None:
    ratio = {"seconds": 2e-4, "baseline_seconds": 1e-4, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1, "blocks": 30}
    ratio["baseline"] = "cnn-onnxruntime-cpu-plain-fp32"
    rows = [
        bench_row("stn", "matmul-fp32", sha256, 1),
        bench_row("cnn", "plain-fp32", sha256, 1),
        bench_row("stn", "matmul-fp32", sha256, 16),
        bench_row("stn", "matmul-fp32", sha256, 1, **ratio),
    ]
    environment = {"cpu": "a <fast> one", "gpu": None, "versions": {"torch": "2"}}
    content = {"machine_info": {"stn_export": environment}, "benchmarks": rows}
    (run / "bench.json").write_text(json.dumps(content))


def test_a_whole_report(run: Path, stn: ModelDirectory, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run)]) == 0
    write_bench(run, stn.artifacts["matmul-fp32"].sha256)
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "stale" not in capsys.readouterr().out
    html, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert html.count("data:image/png;base64,") == 7
    assert "http" not in html
    assert "a &lt;fast&gt; one" in html
    for text in (html, markdown):
        assert "checks equal PyTorch within tolerance" in text
        assert "the transformer costs 2.00 times the plain CNN" in text
        assert "39,884" in text
    content = json.loads((run / "report.json").read_text())
    assert [row["accuracy"] for row in content["training"]] == [row["accuracies"][-1] for row in content["training"]]
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


def write_verify(run: Path, stn: ModelDirectory, *rows: tuple[str, str, list]) -> None:
    """``verify.json`` of a run as far as the report reads it; a row is artifact, precision and what differs most."""
    figures = {"errors": {}, "multiple": 1.0, "agreement": 1.0, "accuracy": 0.5, "grid_pixels": None, "failure": ""}
    checks = [
        {"model": "stn", "artifact": name, "runner": f"{name}-runner", "precision": precision, "differing": differing}
        | {"sha256": stn.artifacts[name].sha256 if name in stn.artifacts else "0", "passed": True, "comparisons": {}}
        | figures
        for name, precision, differing in rows
    ]
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, {"checks": checks, "unavailable": {}})


def test_where_the_backends_differ_most(run: Path, stn: ModelDirectory, digits: Dataset):
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


def test_nothing_that_differs_is_no_section(run: Path, stn: ModelDirectory):
    write_verify(run, stn, ("matmul-fp32", "fp32", []))
    content = report.collect(run, None)
    assert not {"differing", "differing-reduced"} & set(content.figures)
    report.write_report(content, run)
    assert "differ most" not in (run / "report.html").read_text()


def test_the_largest_difference_of_an_image_counts():
    checks = [{"runner": "a", "differing": [[1, 0.5], [2, 0.1]]}, {"runner": "b", "differing": [[2, 0.9]]}]
    assert most_different(checks) == [(2, 0.9, checks[1]), (1, 0.5, checks[0])]


def test_timings_of_other_artifacts_are_stale(run: Path, capsys: pytest.CaptureFixture[str]):
    write_bench(run, "0" * 64)
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "The timings are stale" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine_info": {}, "benchmarks": []}'])
def test_a_foreign_benchmark_file(run: Path, content: str, capsys: pytest.CaptureFixture[str]):
    (run / "bench.json").write_text(content)
    assert cli.run(report.main, ["--run", str(run)]) == 2
    assert "not a benchmark file of stn_export" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_the_reference_run_is_the_published_one():
    reference = read_reference()
    assert len(reference) == 50
    assert sum(reference[40:50]) / 10 == pytest.approx(0.5729, abs=5e-5)


def test_the_reference_is_quoted_only_beside_as_many_epochs():
    reference = read_reference()
    assert "reference run 57.29%" in _accuracy_sentence({"stn": [0.5] * 50}, reference)
    assert "reference" not in _accuracy_sentence({"stn": [0.5] * 49}, reference)
    assert "50.00% (the last epoch)" in _accuracy_sentence({"stn": [0.4, 0.5]}, [])


def test_the_plain_cnn_stands_beside_every_lowering_of_its_runner():
    rows = [
        {"runner": "a", "precision": "fp32", "input": "float", "artifact": name, "model": model, "batch": 1}
        | {"median": median, "images_per_second": 1 / median}
        for name, model, median in (("matmul", "stn", 0.002), ("affinegrid", "stn", 0.003), ("plain", "cnn", 0.001))
    ]
    assert latencies(rows) == {"a\nmatmul": {"stn": 2.0, "cnn": 1.0}, "a\naffinegrid": {"stn": 3.0, "cnn": 1.0}}
    assert throughputs(rows) == {("a matmul", "stn"): {1: 500.0}, ("a plain", "cnn"): {1: 1000.0}}
