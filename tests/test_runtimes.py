"""The table of runtimes: what a cell says, the kept one, and what is chosen by it; and how environments are made."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from msgspec import structs

from benchmarks.tools import runtimes_page
from benchmarks.tools.runtimes_page import cell, contests, page, rows, speed
from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export.destinations import DESTINATIONS, EQUAL, KEPT, REFUSES, RULES, TRIED, WITHIN, WRONG, choose
from stn_export.onnx_graph import portability
from stn_export.onnx_graph.lint import Subject, findings
from stn_export.run.environment import describe
from stn_export.run.manifest import NetworkDirectory
from stn_export.run.records import Check, PointEntry, Verified
from stn_export.runners.external.environments import ON_CPU
from tests import made_records
from tests.runs import enter_networks

POINTS = {
    name: PointEntry(kind=kind, site=None, eager_error=0.0, scale=scale)
    for name, kind, scale in (
        ("site0/grid", "grid", 1.0),
        ("scores", "output", 4.0),
        ("boxes", "output", 100.0),
        ("count", "count", 1.0),
    )
}


def checked(precision: str = "fp32", passed: bool = True, **errors: float | None) -> Check:
    failure = "" if passed else "first wrong at scores"
    return made_records.check(precision=precision, failure=failure, errors={"site0/grid": 9.0, **errors})


@pytest.mark.parametrize(
    ("check", "verdict", "detail"),
    [
        (checked(scores=1e-6), EQUAL, 2.5e-7),
        (checked(scores=1e-6, boxes=1.0, count=0.0), EQUAL, 1e-2),
        (checked("fp16", scores=2e-2), WITHIN, 5e-3),
        (checked("approximate", scores=2e-4), WITHIN, 5e-5),
        (checked("int8", passed=False, scores=8.0), WRONG, 2.0),
        (checked(passed=False, scores=None), WRONG, "first wrong at scores"),  # not finite
        (checked(passed=False), WRONG, "first wrong at scores"),
    ],
)
def test_a_cell(check: Check, verdict: str, detail: float | str):
    assert cell(check, POINTS) == {"verdict": verdict, "detail": detail}


def verified(directory: NetworkDirectory, **change: Any) -> Verified:
    """As ``verify.json`` has it, of one file in two runtimes, of which one refuses it."""
    [name, artifact] = next((name, each) for name, each in directory.artifacts.items() if each.format == "onnx")
    known = structs.replace(checked(scores=4e-6), artifact=name, sha256=artifact.sha256, agreement=0.5)
    return made_records.verified(
        structs.replace(known, **{"runner": "tvm-cpu"} | change),
        structs.replace(known, runner="onnxruntime-cpu"),
        refused={f"stn/{name} in iree-cpu": "Error: no such operator"},
        networks={"stn": structs.replace(made_records.network(labels=True), points=POINTS)},
        environment={"runtimes": {"tvm": "1", "iree": "2"}},
    )


def test_rows_are_of_today_s_files_and_of_other_runtimes(trained_run: Path):
    directory = NetworkDirectory(trained_run / "stn")
    found = list(rows(directory, verified(directory)))
    assert [(row["runtime"], row["verdict"], row["detail"], row["agreement"]) for row in found] == [
        ("tvm", EQUAL, 1e-6, 0.5),
        ("iree", REFUSES, "Error: no such operator", None),
    ]
    assert [row["runtime"] for row in rows(directory, verified(directory, sha256="older"))] == ["iree"]


def test_how_fast_it_is_is_what_bench_found(run: Path):
    directory = NetworkDirectory(run / "stn")
    assert contests(run, directory) == {"cpu": None, "contests": []}
    files = {name: each.sha256 for name, each in directory.artifacts.items()}
    shared = {"network": "stn", "batch": 1, "artifact": "matmul-fp32", "sha256": files["matmul-fp32"]}
    shared |= {
        "baseline": "b",
        "baseline_label": "b",
        "baseline_artifact": "b",
        "baseline_seconds": 1.0,
        "verdict": "slower",
    }
    shared |= {"blocks": 25, "disturbed_blocks": 0, "ratio_low": 1.9, "ratio_high": 2.1}
    timed = [
        ("web-cpu", "eager", 4e-4, 0.5, {}),
        ("web-cpu", "overhead", 3e-4, 2.0, {}),
        ("tract-cpu", "overhead", 2e-4, 1.5, {}),
        ("tract-cpu", "eager", 2e-4, 1.25, {}),
        ("tvm-cpu", "overhead", 1e-4, 1.0, {}),  # never against eager
        ("web-cpu", "default", 1e-4, 9.0, {}),
        ("web-cpu", "overhead", 1e-4, 9.0, {"batch": 64}),
        ("web-cpu", "overhead", 1e-4, 9.0, {"sha256": "older"}),
        ("web-cpu", "overhead", 1e-4, 9.0, {"artifact": "matmul-int8", "sha256": files["matmul-int8"]}),
        ("eager-cuda", "overhead", 1e-4, 9.0, {}),
    ]
    shared = made_records.TIMING | shared
    rows = [
        {"extra_info": shared | {"runner": runner, "contest": name, "seconds": seconds, "ratio": ratio} | other}
        for runner, name, seconds, ratio, other in timed
    ]
    content = {"benchmarks": rows, "machine_info": {"stn_export": describe() | {"cpu": "a CPU"}}, "version": "5"}
    (run / "bench.json").write_text(json.dumps(content), encoding="utf-8")
    found = contests(run, directory)
    assert found["cpu"] == "a CPU"
    assert len(found["contests"]) == 5
    head, *lines = list(speed(found))[:-1]
    assert "one thread of a CPU" in head
    assert lines == [
        "| tract-cpu | matmul-fp32 | 0.200 | 1.50 (1.90 to 2.10) | 0.800 (0.476 to 0.526) |",
        "| web-cpu | matmul-fp32 | 0.300 | 2.00 (1.90 to 2.10) | 2.00 (0.476 to 0.526) |",
    ]
    assert list(speed({"contests": found["contests"][:1]})) == []


def test_a_run_that_no_runtime_verified_makes_no_table(trained_run: Path, capsys: pytest.CaptureFixture[str]):
    before = KEPT.read_bytes(), runtimes_page.PAGE.read_bytes()
    assert cli.run(runtimes_page.main, ["--run", str(trained_run)]) == 2
    assert "no other runtime has verified" in capsys.readouterr().err
    assert (KEPT.read_bytes(), runtimes_page.PAGE.read_bytes()) == before


def table() -> dict:
    return json.loads(KEPT.read_text(encoding="utf-8"))


def test_the_kept_table_is_of_seven_runtimes_at_least_and_the_page_is_made_from_it():
    kept = table()
    assert len(kept["runtimes"]) >= 7
    assert set(kept["runtimes"]) | set(kept["left_out"]) == {each.name for each in ON_CPU} == set(TRIED)
    assert runtimes_page.PAGE.read_text(encoding="utf-8") == page(kept)


@pytest.mark.parametrize("destination", TRIED)
def test_nothing_is_chosen_that_was_not_equal(destination: str, tmp_path: Path):
    kept = table()
    rows = [row for row in kept["rows"] if row["runtime"] == destination and row["precision"] == "fp32"]
    choice = choose(destination)
    [row] = [row for row in rows if row["file"] == f"{choice.lowering or destination}-fp32"]
    assert row["verdict"] == (EQUAL if EQUAL in {each["verdict"] for each in rows} else WITHIN)
    for each in rows:
        each["verdict"] = WRONG
    (tmp_path / "table.json").write_text(json.dumps(kept), encoding="utf-8")
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
    for row in json.loads(KEPT.read_text(encoding="utf-8"))["rows"]:
        path = run / "stn" / f"{row['file']}.onnx"
        if row["runtime"] == runtime.kept and path.exists():
            subject = Subject(onnx.load(path))
            verdict, _ = portability.ruled(runtime, subject, findings(subject))
            if (verdict == portability.REFUSED) != (row["verdict"] == REFUSES) or row["verdict"] == WRONG:
                found.append(f"{row['file']}: {verdict}, but {row['verdict']}")
    return found


def test_the_table_refutes_no_rule_of_the_audit(trained_run: Path):
    checked = [runtime for runtime in portability.RUNTIMES if runtime.kept]
    assert checked
    for runtime in checked:
        assert not refuted(runtime, trained_run)
    strict = replace(checked[0], refuses=("STN001",))  # a rule that the table knows better of
    known = [cell.partition(": refused, but ") for cell in refuted(strict, trained_run)]
    assert [name for name, _, _ in known] == ["default-fp32", "affinegrid-fp32"]
    assert {verdict for _, _, verdict in known} <= {EQUAL, WITHIN}  # by its own tolerance, and that of the table's day
    other = replace(checked[0], kept="iree")
    assert "matmul-fp32: should run, but WRONG" in refuted(other, trained_run)
