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
    assert [section.title for section in page.sections] == ["a, 1 threads", "b, 1 threads"]
    picture, table = page.sections[0].blocks
    assert [(row[1].text, row[2].text) for row in table.rows] == [
        ("2026-01-01 first", "2.00 ×"),
        ("2026-02-01 later", "4.00 ×"),
    ]
    assert picture.svg.startswith("<svg")
    assert cli.run(report.main, ["--history", str(tmp_path)]) == 0
    assert "history.html" in capsys.readouterr().out
    said = "the fastest is stn onnxruntime folded-fp32 with 4.00 × at 2026-02-01 later."
    assert said in (tmp_path / "history.html").read_text(encoding="utf-8")


def test_nothing_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(report.main, ["--history", str(tmp_path)]) == 2
    assert "holds no kept results" in capsys.readouterr().err
