"""A file has one time: the terminal, ``bench.json``, all reports, the card and RESULTS.md give the same."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.tools import results_page
from stn_export import cli
from stn_export.bench import session
from stn_export.bench.plan import GRIDS
from stn_export.report import __main__ as report
from stn_export.results.choice import time_of
from stn_export.results.text import significant
from stn_export.run.manifest import NetworkDirectory, network_directories
from stn_export.run.records import timings
from tests import bench_rows, made_records
from tests.report_files import checks_of, export, write_verify
from tests.test_report import write_bench

FILE, RUNNER = "folded-fp32", "onnxruntime-cpu"


def numbers(text: str, pattern: str) -> set[str]:
    """The times in milliseconds that a text gives."""
    return {found.replace("†", "") for found in re.findall(pattern, text)}


@pytest.mark.parametrize("noise", [1.0, 1.7])
def test_a_file_has_one_time_wherever_it_is_shown(
    noise: float, entered_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    export(NetworkDirectory(run / "stn"), FILE)
    write_verify(run, checks_of(run))
    rows = bench_rows.rows([each for each in bench_rows.artifacts_of(network_directories(run)) if each[0] == "stn"])
    own = [row for row in rows if (row["artifact"], row["runner"], row["batch"]) == (FILE, RUNNER, 1)]
    for index, row in enumerate(row for row in own if "contest" in row):
        row["seconds"] *= noise**index  # contests are other moments
    write_bench(run, rows)
    [timed] = [row for row in own if row["regime"] == "device"]
    [request] = [row for row in own if row["regime"] == "request"]
    wanted, quoted = (significant(1e3 * row["p50"]) for row in (timed, request))  # the card quotes a whole request
    assert wanted != quoted
    monkeypatch.setattr(session, "left_out", lambda *_: {})
    measured = [row for row in rows if row["regime"] in ("contest", "device", "offline")]
    session.Session(run, "cpu", GRIDS["quick"], [], made_records.timings(measured)).close()
    shown = capsys.readouterr().out
    assert numbers(shown, rf"stn {RUNNER} {FILE} +1 +(\S+) ") == {wanted}
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert f"{quoted} ms per example (" in capsys.readouterr().out
    kept = timings(json.loads((run / "bench.json").read_text(encoding="utf-8")))
    mine = [row for row in kept if (row.artifact, row.runner, row.batch) == (FILE, RUNNER, 1)]
    assert {significant(1e3 * time_of(row, kept)) for row in mine} == {wanted}
    said = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert significant(1e3 * said["answer"]["cpu"]["latency"]["p50"]) == quoted
    assert numbers(dict(said["card"])["latency"], r"^(\S+) ms") == {quoted}
    html = (run / "report.html").read_text(encoding="utf-8").partition("<script>")[0]
    assert numbers(
        html, rf'stn/{FILE}</th><td class="text[^"]*">{RUNNER}</td><td class="number[^"]*">([\d.]+†?)</td>'
    ) == {wanted}
    assert numbers(html, r"<dt>latency</dt><dd>(\S+) ms") == {quoted}
    lines = "\n".join(results_page.contest_tables(made_records.timings(rows)))
    micro = numbers(lines, rf"\| {RUNNER} {FILE} \| 1 \| ([^|]+) \|")
    assert micro == {results_page.seconds(timed["p50"])}
