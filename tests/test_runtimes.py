"""Trials in other runtimes: what a cell says, a child that crashes, the kept table, and what is chosen by it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from stn_export import cli
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.audit import runtimes
from stn_export.audit.runtimes import RUNTIMES, Runtime, at_batch_one, cell, page
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.graphs import portability
from stn_export.graphs.destinations import DESTINATIONS, EQUAL, KEPT, OFF, REFUSES, RULES, TRIED, WRONG, choose
from stn_export.graphs.lint import Subject, findings
from tests.runs import enter_networks

ONE = [np.array([[2.0, -4.0]], np.float32)]


@pytest.mark.parametrize(
    ("found", "precision", "verdict"),
    [
        (ONE, "fp32", EQUAL),
        ([ONE[0] + 3e-4], "fp32", EQUAL),  # of a largest value of 4
        ([ONE[0] + 2e-3], "fp32", OFF),
        ([ONE[0] + 2e-3], "fp16", EQUAL),
        ([ONE[0] + 0.1], "fp32", WRONG),
        ([ONE[0] * np.nan], "fp32", WRONG),
        ([ONE[0][:, :1]], "fp32", WRONG),
        ("no such operator", "fp32", REFUSES),
    ],
)
def test_a_cell(found: list[np.ndarray] | str, precision: str, verdict: str):
    assert cell(found, ONE, precision)[0] == verdict


CHILD = """import os, sys
import numpy as np
name, file, feeds, out = sys.argv[1:]
if name == "crashes":
    os.abort()
if name == "raises":
    raise ValueError("no such operator")
np.savez(out, *(2 * value for value in np.load(feeds).values()))
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("doubles", 2.0), ("crashes", "ended by signal 6"), ("raises", "ValueError: no such operator")],
)
def test_what_a_child_does_costs_a_cell_only(
    name: str, expected: float | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "trials.py").write_text(CHILD)
    monkeypatch.setattr(runtimes, "__file__", str(tmp_path / "runtimes.py"))
    monkeypatch.setattr(Runtime, "interpreter", Path(sys.executable))
    found = Runtime(name, ()).run(b"", {"x": np.ones(1, np.float32)}, ["y"])
    assert (found if isinstance(found, str) else found[0][0]) == expected


def test_a_file_at_a_batch_of_one():
    text = '<ir_version: 9, opset_import: ["" : 18]> g (float[batch, 4] x) => (float[batch, 4] y) { y = Relu (x) }'
    model = at_batch_one(onnx.parser.parse_model(text))
    values = (*model.graph.input, *model.graph.output)
    assert [value.type.tensor_type.shape.dim[0].dim_value for value in values] == [1, 1]


def table() -> dict:
    return json.loads(KEPT.read_text())


def test_the_kept_table_is_of_seven_runtimes_at_least_and_the_page_is_made_from_it():
    kept = table()
    assert len(kept["runtimes"]) >= 7
    assert set(kept["runtimes"]) | set(kept["left_out"]) == {each.name for each in RUNTIMES} == set(TRIED)
    assert runtimes.PAGE.read_text() == page(kept)


@pytest.mark.parametrize("destination", TRIED)
def test_nothing_is_chosen_that_was_not_equal(destination: str, tmp_path: Path):
    kept = table()
    rows = [row for row in kept["rows"] if row["runtime"] == destination and row["precision"] == "fp32"]
    choice = choose(destination)
    [row] = [row for row in rows if row["file"] == f"{choice.lowering}-fp32"]
    assert row["verdict"] == EQUAL
    for each in rows:
        each["verdict"] = WRONG
    (tmp_path / "table.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=f"no lowering was equal in {destination}"):
        choose(destination, tmp_path / "table.json")


@pytest.mark.parametrize("destination", RULES)
def test_what_was_not_tried_is_said_to_be_a_rule(destination: str):
    assert choose(destination).why.startswith("rule, not tried here: ")


def test_export_for_destinations_writes_a_file_for_each_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = enter_networks(tmp_path / "run")
    assert cli.run(export.main, ["--run", str(run), "--for", "iree", "tensorrt"]) == 0
    said = capsys.readouterr().out
    assert {"gather-fp32-batch1", "matmul-fp32"} <= set(NetworkDirectory(run / "stn").artifacts)
    assert "plain-fp32" in NetworkDirectory(run / "cnn").artifacts
    assert "iree: gather, a batch of 1: equal" in said.replace("\n", " ")
    assert set(DESTINATIONS) >= {"iree", "tensorrt"}


def refuted(runtime: portability.Runtime, run: Path) -> list[str]:
    """The cells of the kept table that the audit's rules say something else of."""
    found = []
    for row in json.loads(KEPT.read_text())["rows"]:
        path = run / "stn" / f"{row['file']}.onnx"
        if row["runtime"] == runtime.kept and path.exists():
            subject = Subject(onnx.load(path))
            verdict, _ = portability.ruled(runtime, subject, findings(subject), {})
            if (verdict == portability.REFUSED) != (row["verdict"] == REFUSES) or row["verdict"] == WRONG:
                found.append(f"{row['file']}: {verdict}, but {row['verdict']}")
    return found


def test_the_table_refutes_no_rule_of_the_audit(trained_run: Path):
    checked = [runtime for runtime in portability.RUNTIMES if runtime.kept]
    assert checked
    for runtime in checked:
        assert not refuted(runtime, trained_run)
    strict = replace(checked[0], refuses=("STN001",))  # a rule that the table knows better of
    assert refuted(strict, trained_run) == [f"{name}-fp32: refused, but equal" for name in ("default", "affinegrid")]
    other = replace(checked[0], kept="iree")
    assert "matmul-fp32: should run, but WRONG" in refuted(other, trained_run)
