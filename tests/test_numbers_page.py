"""From the clock to the page: what is so many times slower by construction is called so everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tools import results_page
from benchmarks.tools.simulated import CONTESTS, Machine
from stn_export.bench.cases import Case
from stn_export.bench.plan import GRIDS
from stn_export.bench.timing import contest, time_case
from stn_export.report.costs import costs, tables
from stn_export.report.page import Report, Table
from stn_export.run.records import timing
from tests.bench_rows import ENVIRONMENT, FEW, facts
from tests.contenders import Benchmark, Contender

EAGER, FOLDED, _, _, PLAIN = FEW
QUICK = GRIDS["quick"]
PEAK = {"flops": {"fp32": 1e12}, "bytes": 1e11, "source": "made up", "widths": {"256": 1e12}}
WORK = {"flops": 3e8, "bytes_fused": 1e5, "bytes_unfused": 2e5, "launches": 30}


def contender(machine: Machine, artifact: tuple[str, ...], milliseconds: float) -> Contender:
    runner = "eager-cpu" if artifact[2] == "pt2" else "onnxruntime-cpu"
    said = facts(artifact, runner, "cpu", 1, "device", file_bytes=1)
    return Contender(said["label"], machine, milliseconds - 1, said=said)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """The network takes 3 ms a call as a file and 12 ms in eager PyTorch; the plain network's file takes 2 ms."""
    machine = Machine(CONTESTS[0], np.random.default_rng(0))
    ours, eager, plain = (contender(machine, *each) for each in ((FOLDED, 3.0), (EAGER, 12.0), (PLAIN, 2.0)))
    benchmarks = [Benchmark() for _ in range(5)]
    contest("overhead", benchmarks[0], Case(ours, 1, plain), QUICK)
    contest("eager", benchmarks[1], Case(ours, 1, eager), QUICK)
    for benchmark, target, batch in zip(benchmarks[2:], (ours, ours, eager), (1, 30, 1), strict=True):
        time_case(benchmark, Case(target, batch), QUICK, regime="device" if batch == 1 else "offline")
    return [benchmark.extra_info for benchmark in benchmarks]


def figure(text: str, before: str, after: str) -> float:
    """The number between two texts; a dagger says that the machine of the tests was busy."""
    return float(text.split(before, 1)[1].split(after, 1)[0].replace(",", "").rstrip("†"))


def test_results_read_the_right_way_round(rows: list[dict], tmp_path: Path):
    environment = ENVIRONMENT | {"threads": 1, "git_commit": "abc", "versions": {"torch": "2"}, "gpu": None}
    content = {
        "machine_info": {"stn_export": environment},
        "datetime": "2026-01-31T12:00:00+00:00",
        "work": {"stn": {"1": WORK, "30": WORK}},
        "peak": PEAK,
        "proved": [["stn", "folded-fp32", "onnxruntime-cpu"]],
        "portability": {},
        "benchmarks": [{"fullname": "a", "stats": {"median": 1.0}, "extra_info": row} for row in rows],
    }
    (tmp_path / "kept.json").write_text(json.dumps(content), encoding="utf-8")
    text = results_page.document(tmp_path)
    line = text.split("spatial transformer against plain CNN", 1)[1].split("\n| onnxruntime", 1)[1].splitlines()[0]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1] == "1"
    assert float(cells[2].removesuffix("†").removesuffix(" ms")) == pytest.approx(3, rel=0.02)
    assert float(cells[3].split()[0]) == pytest.approx(1.5, rel=0.02)
    assert cells[4] == "slower"
    eager = text.split("### Against eager PyTorch", 1)[1].split("\n| onnxruntime", 1)[1].splitlines()[0].split("|")
    assert float(eager[3].split()[0]) == pytest.approx(0.25, rel=0.02)
    assert eager[4].strip() == "faster"
    assert figure(text, "For latency: onnxruntime-cpu folded-fp32, ", " ms") == pytest.approx(3, rel=0.02)
    assert figure(text, "For throughput: onnxruntime-cpu folded-fp32, ", " examples/s") == pytest.approx(10e3, rel=0.02)
    share = (
        text.split("### Share of the peak", 1)[1]
        .split("\n| spatial transformer | 1 |", 1)[1]
        .splitlines()[0]
        .split("|")
    )
    rate, of_peak = (share[index].strip().replace("†", "") for index in (6, 7))
    assert float(rate) == pytest.approx(100, rel=0.02)  # 3e8 in 3 ms
    assert float(of_peak.removesuffix("% of those stated")) == pytest.approx(10, rel=0.02)


def test_the_report_says_the_same(rows: list[dict]):
    report = Report("a run", environment=ENVIRONMENT, bench=tables(list(map(timing, rows)), {}))
    blocks = [block for block in costs(report) if isinstance(block, Table)]
    text = "\n".join(f"### {block.title}\n{block.markdown}" for block in blocks)
    assert figure(text, "| folded-fp32 | onnxruntime-cpu | ", " ×") == pytest.approx(1.5, rel=0.02)
    assert figure(text, "| stn/folded-fp32 | onnxruntime-cpu | ", " ×") == pytest.approx(4, rel=0.02)
    assert figure(text.split("### Latency at batch 1")[1], "| stn/program | eager-cpu | ", " |") == pytest.approx(
        12, rel=0.02
    )
