"""From a file with a module in it to a report, a command each, for networks of many kinds."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stn_export
from stn_export import cli
from stn_export.adopt import __main__ as adopt
from stn_export.export import __main__ as export
from stn_export.report import __main__ as report
from stn_export.run.manifest import BENCH_FILE, VERIFY_FILE, network_directories
from stn_export.runners import RUNNERS
from stn_export.verify import __main__ as verify
from stn_export.verify import challenges
from tests.real import REAL
from tests.zoo import ZOO, command

ROWS = (
    "torchscript-fp32",
    "default-fp32",
    "matmul-fp32",
    "gather-fp32",
    "plain-fp32",
)  # those of them that a network takes


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification without what takes minutes: other batches, and compilers."""
    monkeypatch.setattr(challenges, "BATCHES", (1, 3))
    monkeypatch.setattr(challenges, "NOISE_BATCHES", (4,))
    monkeypatch.setattr(verify, "RUNNERS", tuple(spec for spec in RUNNERS if not spec.slow))


def chain(run: Path) -> None:
    """Everything behind adopt, on few rows."""
    assert cli.run(export.main, ["--run", str(run), "--only", *ROWS]) == 0
    assert cli.run(verify.main, ["--run", str(run)]) == 0
    wanted = "onnxruntime-cpu and (matmul or plain)"
    bench = ["--run", str(run), "--device", "cpu", "--suites", "latency,overhead,breakdown", "-k", wanted]
    started = [sys.executable, "-m", "stn_export.bench", *bench]
    result = subprocess.run(started, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert cli.run(report.main, ["--run", str(run)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.usefixtures("few")
def test_every_network_goes_from_its_file_to_a_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    foreign, run = ZOO[name], tmp_path / "run"
    assert cli.run(adopt.main, command(foreign, tmp_path)) == 0
    monkeypatch.chdir(tmp_path)  # the run is all that is left to go by
    chain(run)
    verified = json.loads((run / VERIFY_FILE).read_text(encoding="utf-8"))
    assert verified["passed"]
    networks = {directory.name: directory for directory in network_directories(run)}
    points = verified["networks"]["run"]["points"]
    assert set(points) == {
        *foreign.outputs,
        *(point for site in networks["run"].program().sites for point in site.nodes()),
    }
    for check in verified["checks"]:
        assert not check["failure"]
        outputs = networks[check["network"]].program().contract.outputs
        assert set(check["errors"]) >= {spec.name for spec in outputs}
    looked_into = [check for check in verified["checks"] if check["artifact"] in ("program", "matmul-fp32")]
    assert all(
        set(check["errors"]) == set(points)
        for check in looked_into
        if check["network"] == "run" and check["runner"] in ("pt2-cpu", "onnxruntime-cpu")
    )
    timed = json.loads((run / BENCH_FILE).read_text(encoding="utf-8"))["benchmarks"]
    assert {row["extra_info"]["network"] for row in timed} == set(networks)
    page = (run / "report.md").read_text(encoding="utf-8")
    assert all(directory.facts.label in page for directory in networks.values())
    assert all(site.name in page for site in networks["run"].program().sites)
    assert (run / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.usefixtures("few")
def test_real_networks(name: str, tmp_path: Path):
    real = REAL[name]
    if importlib.util.find_spec(real.package) is None:
        pytest.skip(f"{real.package} is not installed")
    torch.manual_seed(0)
    found = stn_export.adopt(real.build().eval(), real.inputs, run=tmp_path / "run")
    assert len(found.sites) == real.sites
    chain(tmp_path / "run")
