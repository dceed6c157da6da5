"""Maintainers' tools: the Make targets start them, and what is installed neither holds nor needs them."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from stn_export.bench.session import suite_files
from tests.conftest import REPOSITORY

TOOLS = REPOSITORY / "benchmarks" / "tools"
STARTED = sorted(set(re.findall(r"\$\(TOOL\)\.(\w+)", (REPOSITORY / "Makefile").read_text(encoding="utf-8"))))


def test_make_starts_every_tool_that_is_a_command():
    commands = [path.stem for path in TOOLS.glob("*.py") if "\nif __name__ ==" in path.read_text(encoding="utf-8")]
    assert sorted(commands) == STARTED


@pytest.mark.parametrize("name", STARTED)
def test_a_tool_names_itself_as_it_is_started(name: str, capsys: pytest.CaptureFixture[str]):
    tool = importlib.import_module(f"benchmarks.tools.{name}")
    with pytest.raises(SystemExit, match=r"^0$"):
        tool.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m benchmarks.tools.{name} ")


def test_the_suites_of_bench_hold_no_tool():
    assert set(suite_files()) == {"breakdown", "latency", "overhead", "request", "startup", "throughput"}


def built(target: Path) -> set[str]:
    """List what setuptools would put into a wheel, by its place there."""
    source = target / "source"
    for name in ("stn_export", "benchmarks"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(target / "base")]
    done = subprocess.run(
        [*command, "--build-lib", str(target / "lib")], cwd=source, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return {path.relative_to(target / "lib").as_posix() for path in (target / "lib").rglob("*") if path.is_file()}


def test_a_wheel_holds_what_users_run(tmp_path: Path):
    files = built(tmp_path)
    assert {path.split("/")[0] for path in files} == {"stn_export"}
    suites = {path.removeprefix("stn_export/suites/") for path in files if path.startswith("stn_export/suites/")}
    modules = {f"test_{name}.py" for name in suite_files()} | {"__init__.py", "conftest.py"}
    assert suites == modules | {"results/runtimes.json"}
    ours = (path for path in (REPOSITORY / "stn_export").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert files - {f"stn_export/suites/{path}" for path in suites} == {
        path.relative_to(REPOSITORY).as_posix() for path in ours
    }


@pytest.mark.slow
def test_the_suite_that_times_training_takes_its_own_options_only():
    suite = [sys.executable, "-m", "pytest", "benchmarks/tools", "--confcutdir=benchmarks/tools", "-p", "no:randomly"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # no worker of ours
    run = partial(subprocess.run, cwd=REPOSITORY, capture_output=True, encoding="utf-8", env=alone)
    listed = run([*suite, "--collect-only", "-q"], check=True)
    assert "test_training.py::test_first_step" in listed.stdout
    refused = run([*suite, "--dataset", "none"], check=False)
    assert (refused.returncode, "Traceback" in refused.stdout) == (2, False)
    assert "unknown data set 'none'" in refused.stdout + refused.stderr
