"""Kept results over commits: whose ratios, in which order, and what is no such file."""

import json
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.report import __main__ as report
from stn_export.report.history import history
from tests.bench_rows import ENVIRONMENT, FEW, contest, facts


def kept(path: Path, commit: str, day: str, ratio: float, cpu: str = "a") -> None:
    """A kept file with one contest of a file with eager PyTorch, and rows that are none."""
    own = facts(FEW[1], "onnxruntime-cpu", "cpu", 1, "contest")
    rows = [own | contest("eager", 1e-4, ratio), own | contest("overhead", 1e-4, 9.0), own]
    environment = ENVIRONMENT | {"cpu": cpu, "threads": 1, "git_commit": commit}
    content = {"machine_info": {"stn_export": environment}, "datetime": f"{day}T10:00:00"}
    rows = [{"extra_info": row | {"sha256": ""}} for row in rows]
    path.write_text(json.dumps(content | {"benchmarks": rows}), encoding="utf-8")


def test_commits_stand_in_order_machine_by_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kept(tmp_path / "b.json", "later", "2026-02-01", 0.25)
    kept(tmp_path / "c.json", "first", "2026-01-01", 0.5)
    kept(tmp_path / "a.json", "other", "2026-01-15", 0.1, cpu="b")
    (tmp_path / "training.json").write_text("{}", encoding="utf-8")
    page = history(tmp_path)
    assert [section.title for section in page.sections] == ["Runs", "a, 1 threads", "b, 1 threads"]
    [runs], (picture, pair, table) = page.sections[0].blocks, page.sections[1].blocks
    assert [[cell.text for cell in row][:5] for row in runs.rows] == [
        ["2026-02-01 later", "b.json", "a, 1 threads", "3", "stn onnxruntime folded-fp32"],
        ["2026-01-15 other", "a.json", "b, 1 threads", "3", "stn onnxruntime folded-fp32"],
        ["2026-01-01 first", "c.json", "a, 1 threads", "3", "stn onnxruntime folded-fp32"],
    ]
    assert [row[5].text.partition(" (")[0] for row in runs.rows] == ["4.00 ×", "10.0 ×", "2.00 ×"]
    assert (pair.pairwise, pair.columns) == (True, ("file", "2026-01-01 first", "2026-02-01 later"))
    assert [[cell.text for cell in row] for row in pair.rows] == [["stn onnxruntime folded-fp32", "2.00 ×", "4.00 ×"]]
    assert not page.sections[2].blocks[1].pairwise  # of one commit
    assert [(row[1].text, row[2].text, row[4].text) for row in table.rows] == [
        ("2026-01-01 first", "2.00 ×", "–"),
        ("2026-02-01 later", "4.00 ×", "2.00 × the commit before"),
    ]
    assert picture.svg.startswith("<svg")
    assert cli.run(report.main, ["--history", str(tmp_path)]) == 0
    assert "history.html" in capsys.readouterr().out
    said = "the fastest is stn onnxruntime folded-fp32 with 4.00 × at 2026-02-01 later."
    assert said in (tmp_path / "history.html").read_text(encoding="utf-8")


def test_a_file_that_a_run_lacks_is_a_dash_beside_it(tmp_path: Path):
    kept(tmp_path / "a.json", "first", "2026-01-01", 0.5)
    kept(tmp_path / "b.json", "later", "2026-02-01", 0.25)
    content = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    own = content["benchmarks"][0]["extra_info"]
    content["benchmarks"].append({"extra_info": own | {"artifact": "new-fp32"}})
    (tmp_path / "b.json").write_text(json.dumps(content), encoding="utf-8")
    _, pair, table = history(tmp_path).sections[1].blocks
    assert [[cell.text for cell in row] for row in pair.rows] == [
        ["stn onnxruntime folded-fp32", "2.00 ×", "4.00 ×"],
        ["stn onnxruntime new-fp32", "–", "4.00 ×"],
    ]
    assert (pair.order, table.order) == ("by name", "the oldest first")


@pytest.mark.parametrize(("later", "change"), [(0.5, ""), (0.51, ""), (0.7, "0.714 × the commit before")])
def test_a_change_point_is_an_interval_that_does_not_meet_the_one_before(later: float, change: str, tmp_path: Path):
    kept(tmp_path / "a.json", "first", "2026-01-01", 0.5)
    kept(tmp_path / "b.json", "later", "2026-02-01", later)
    kept(tmp_path / "c.json", "last", "2026-03-01", later)
    picture, _, _ = history(tmp_path).sections[1].blocks
    drawn = picture.drawn.spec["data"]["values"]
    assert [row["change"] for row in drawn] == ["", change, ""]
    assert picture.drawn.spec["layer"][-1]["transform"] == [{"filter": "datum.change != ''"}]


def test_nothing_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(report.main, ["--history", str(tmp_path)]) == 2
    assert "holds no kept results" in capsys.readouterr().err
