"""The suites as a user starts them: in a checkout, and from an installed package in an empty directory."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stn_export.bench import timing
from stn_export.bench.cases import Case
from stn_export.bench.plan import GRIDS
from stn_export.bench.session import Session
from stn_export.bench.targets import find_targets
from stn_export.run.manifest import network_directories
from stn_export.run.schemas import Result, read_bench
from tests import made_records
from tests.conftest import REPOSITORY
from tests.contenders import Benchmark

EAGER = "test_latency.py::test_latency[stn-eager-cpu-program-1]"
PACKAGED = ("stn_export", "benchmarks", "pyproject.toml", "setup.py", "README.md", "LICENSE")


def started(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process without what these tests' own pytest put into its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | variables
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False)


def suites(run: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``pytest benchmarks`` in the repository, whose warnings are errors, on a run elsewhere."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-p", "no:cacheprovider", "--run", str(run), *arguments]
    return started(command, REPOSITORY)


@pytest.fixture
def planned_run(entered_run: Path, tmp_path: Path) -> Path:
    """Two networks of which nothing was to be exported."""
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    for directory in network_directories(run):
        directory.plan(("program",), {})
    return run


@pytest.mark.slow
def test_bench_json_is_an_ordinary_pytest_benchmark_file(planned_run: Path, tmp_path: Path):
    path = tmp_path / "bench.json"
    rows = "eager-cpu-program and (latency or overhead or breakdown or request or throughput)"
    result = suites(planned_run, "-k", rows, "--device", "cpu", f"--benchmark-json={path}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "What sampling costs: spatial transformer against plain CNN" in result.stdout
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {row["group"] for row in content["benchmarks"]} == {
        "latency, batch 1, cpu",
        "latency, cold input, batch 1, cpu",
        "request, batch 1, cpu",
        "request, batch 16, cpu",
        "request, batch 256, cpu",
        "throughput, batch 16, cpu",
        "throughput, batch 256, cpu",
        "where the time goes, batch 1, cpu",
        "contest: overhead, batch 1, cpu",
        "contest: overhead, batch 64, cpu",
    }
    assert content["machine_info"]["stn_export"]["versions"]["torch"]
    assert {name: set(by_batch) for name, by_batch in content["work"].items()} == {
        "stn": {"1", "16", "64", "256"},
        "cnn": {"1", "16", "256"},
    }
    for row in content["benchmarks"]:
        found, median = row["extra_info"], row["stats"]["median"]
        assert found["threads"] == 1
        assert median == pytest.approx(found.get("seconds", found.get("p50", sum(found.get("breakdown", {}).values()))))
        assert re.fullmatch(r"test_\w+\.py::test_\w+\[\w+-eager-cpu-program-\d+\]", row["fullname"])
        assert (found["regime"] == "contest") == ("overhead" in row["name"])
    compare = [Path(sys.executable).parent / "pytest-benchmark", "compare", str(path)]
    compared = started(list(map(str, compare)), tmp_path)
    assert "test_latency[stn-eager-cpu-program-1]" in compared.stdout


@pytest.mark.slow
def test_rows_that_a_file_has_are_not_timed_again(planned_run: Path, tmp_path: Path):
    """Until the artifact is another one; rows of other suites stay."""
    command = [sys.executable, "-m", "stn_export.bench", "--run", str(planned_run), "--device", "cpu"]

    def timed(suites: str, chosen: str) -> dict[str, dict]:
        result = started([*command, "--suites", suites, "-k", chosen], tmp_path, PYTHONPATH=str(REPOSITORY))
        assert result.returncode == 0, result.stdout + result.stderr
        content = read_bench(planned_run / "bench.json", Result)
        assert len(content["benchmarks"]) == len({row["fullname"] for row in content["benchmarks"]})
        return {row["fullname"]: row["stats"] for row in content["benchmarks"]}

    latency, both = "test_latency.py::test_latency[{}-eager-cpu-program-1]", "test_latency and eager-cpu and not cold"
    first = timed("latency", f"{both} and stn")
    assert list(first) == [EAGER]
    second = timed("latency", both)
    assert second[EAGER] == first[EAGER]
    assert set(second) == {EAGER, latency.format("cnn")}
    third = timed("request", "eager-cpu and stn and program-1]")
    assert {name: third[name] for name in second} == second
    assert len(third) == 3
    assert timed("latency", both) == third  # nothing is left to do
    content = json.loads((planned_run / "bench.json").read_text(encoding="utf-8"))
    for row in content["benchmarks"]:
        row["extra_info"]["sha256"] = "another"
    (planned_run / "bench.json").write_text(json.dumps(content), encoding="utf-8")
    assert timed("latency", f"{both} and stn")[EAGER] != first[EAGER]


@pytest.mark.slow
def test_an_installed_package_times_a_run_in_an_empty_directory(planned_run: Path, tmp_path: Path):
    for name in PACKAGED:
        source, copy = REPOSITORY / name, tmp_path / "source" / name
        copy.parent.mkdir(exist_ok=True)
        skipped = shutil.ignore_patterns("results", "__pycache__")
        _ = shutil.copytree(source, copy, ignore=skipped) if source.is_dir() else shutil.copy(source, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    built = started([*pip, "."], tmp_path / "source")
    assert built.returncode == 0, built.stderr
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), tmp_path / "site", "zip")
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "stn_export.bench", "--run", str(planned_run), "--suites", "latency", "--verbose"]
    found = started(
        [*command, "-k", "latency and stn-eager-cpu"], tmp_path / "empty", PYTHONPATH=str(tmp_path / "site")
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"rootdir: {tmp_path / 'site' / 'stn_export' / 'suites'}" in found.stdout
    rows = json.loads((planned_run / "bench.json").read_text(encoding="utf-8"))["benchmarks"]
    assert EAGER in [row["fullname"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nowhere"], "there is no run at nowhere"),
        (["--grid", "huge"], "unknown grid 'huge'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--suites", "latency,none"], "unknown suite 'none'"),
        (["--suites", "training"], "unknown suite 'training'"),
    ],
)
def test_nonsense_exits_with_2(planned_run: Path, tmp_path: Path, arguments: list[str], message: str):
    command = [sys.executable, "-m", "stn_export.bench", "--run", str(planned_run), *arguments]
    result = started(command, tmp_path, PYTHONPATH=str(REPOSITORY))
    assert result.returncode == 2
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_contests_own_samples_are_its_blocks(planned_run: Path):
    found = {str(each): each for each in find_targets(planned_run, "cpu")}
    target, baseline = found["stn-eager-cpu-program"], found["cnn-eager-cpu-program"]
    grid, benchmark = replace(GRIDS["quick"], warmup_seconds=0.01, blocks=10, block_seconds=1e-3), Benchmark()
    timing.contest("overhead", benchmark, Case(target, 2, baseline), grid)
    samples, row = benchmark.stats.stats.data, benchmark.extra_info
    assert len(samples) == row["blocks"] >= 10
    assert statistics.median(samples) == pytest.approx(row["seconds"])
    said = tuple(row[name] for name in ("contest", "network", "label", "regime"))
    assert said == ("overhead", "stn", "spatial transformer", "contest")
    baseline = tuple(row[name] for name in ("baseline", "baseline_label", "baseline_artifact"))
    assert baseline == ("cnn-eager-cpu-program", "plain CNN", "program")
    assert row["sizes"] == {"images": [2, 3, 32, 32]}
    assert row["options"] == row["baseline_options"] == {"code": "the module's own"}


def test_names_of_rows_say_nothing_of_where_the_suites_lie(planned_run: Path):
    session = Session.open(planned_run, "cpu", "quick")
    session.rows.append(made_records.timing({"network": "cnn", "batch": 3}))
    paths = ("benchmarks/test_latency.py", "../site/stn_export/suites/test_latency.py", "test_latency.py")
    content = {"benchmarks": [{"fullname": f"{path}::test_latency[a/b]", "params": {}} for path in paths]}
    session.complete(content)
    assert {row["fullname"] for row in content["benchmarks"]} == {"test_latency.py::test_latency[a/b]"}
    assert set(content["work"]) == {"cnn"}
    assert content["work"]["cnn"]["3"]["flops"] == 3 * 2 * 1_113_500


def test_the_closing_tables(planned_run: Path, capsys: pytest.CaptureFixture[str]):
    session = Session.open(planned_run, "cpu", "quick")
    row = {"network": "mine", "runner": "r", "artifact": "a", "batch": 1}
    ratio = {"seconds": 0.001, "baseline_seconds": 0.002, "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6}
    labels = {"label": "a [plate] rectifier", "baseline_label": "the same, bypassed", "verdict": "faster"}
    parts = {"localisation": 1e-6, "grid": 2e-6, "sampler": 3e-6, "rest": 4e-6}
    session.rows += made_records.timings(
        [
            row | {"contest": "overhead"},  # it failed
            row | {"contest": "overhead"} | ratio | labels,
            row | {"import_seconds": 1.0, "load_seconds": 2.0, "first_seconds": 3.0},
            row | {"breakdown": parts},
        ]
    )
    session.close()
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["What", "sampling", "costs:", "a", "[plate]", "rectifier", "against", "the", "same,", "bypassed"] in said
    assert ["mine", "r", "a", "1", "1.00", "0.500", "0.400", "to", "0.600", "faster"] in said
    assert ["mine", "r", "a", "1.000", "2.000", "3.000"] in said
    assert ["mine", "r", "a", "1", "1", "2", "3", "4"] in said
    assert sum(line[:1] == ["mine"] for line in said) == 3
