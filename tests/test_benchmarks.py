"""The benchmarks' arithmetic, and one short run of the suites as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.methodology import Interleaved, bootstrap_ratio, rounds_for, warm_up
from stn_export.runners import Step
from tests.conftest import REPOSITORY


def bench(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``pytest benchmarks`` in the repository, on a run elsewhere."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:cacheprovider", "--run", str(run), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_the_interval_holds_the_ratio_of_the_samples():
    random = np.random.default_rng(0)
    baseline = random.uniform(1.0, 1.1, 50)
    low, high = bootstrap_ratio(2 * baseline * random.uniform(0.99, 1.01, 50), baseline)
    assert 1.98 < low < 2.0 < high < 2.02


def test_a_drift_that_hits_both_leaves_the_ratio():
    drift = np.linspace(1, 5, 40)
    assert bootstrap_ratio(3 * drift, drift) == pytest.approx((3.0, 3.0))


def test_the_contenders_take_turns():
    order = []
    turns = Interleaved(Step(lambda: order.append("a")), Step(lambda: order.append("b")), calls=2)
    for _ in range(3):
        turns.block()
    assert "".join(order) == "aaabbb" + "bbbaaa" + "aaabbb"
    assert turns.summary()["blocks"] == 3


def test_rounds_stay_in_bounds():
    assert rounds_for(1e-9, 1.0) == 5000
    assert rounds_for(100.0, 1.0) == 5
    assert rounds_for(0.01, 1.0) == 100


def test_warming_up_calls_at_least_twice():
    calls = []
    assert warm_up(Step(lambda: calls.append(1)), 0) >= 0
    assert len(calls) == 2


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
