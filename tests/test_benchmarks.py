"""The benchmarks' arithmetic, and one short run of the suites as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def bench(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``pytest benchmarks`` in the repository, on a run elsewhere."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:cacheprovider", "--run", str(run), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_bench_json_is_an_ordinary_pytest_benchmark_file(trained_run: Path, tmp_path: Path):
    path = tmp_path / "bench.json"
    rows = "(latency or overhead) and onnxruntime-cpu and (folded-fp32- or plain-fp32-)"
    rows += " and not (cold or lowering or eager or default)"
    result = bench(trained_run, "-k", rows, f"--benchmark-json={path}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The spatial transformer against the plain CNN" in result.stdout
    content = json.loads(path.read_text())
    assert {row["group"] for row in content["benchmarks"]} == {
        "latency, batch 1, cpu",
        "overhead of the transformer, batch 1, cpu",
        "overhead of the transformer, batch 64, cpu",
    }
    assert content["machine_info"]["stn_export"]["versions"]["torch"]
    for row in content["benchmarks"]:
        assert row["extra_info"]["threads"] == 1
        assert row["extra_info"]["regime"] == ("contest" if "overhead" in row["name"] else "device")
    compare = [Path(sys.executable).parent / "pytest-benchmark", "compare", str(path)]
    if compare[0].exists():
        compared = subprocess.run(compare, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "test_latency[stn-onnxruntime-cpu-folded-fp32-1]" in compared.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "there is no run at nowhere"),
        (["--grid", "huge"], "unknown grid 'huge'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_nonsense_exits_with_2(trained_run: Path, arguments: list[str], message: str):
    result = bench(trained_run, *arguments)
    assert result.returncode == 2
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
