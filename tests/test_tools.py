"""Maintainers' tools: the Make targets start them, and what is installed neither holds nor needs them."""

import email
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from datetime import date
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


def copied(target: Path) -> Path:
    """Copy what a wheel is built from."""
    source = target / "source"
    for name in ("stn_export", "benchmarks"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    return source


def built(target: Path) -> set[str]:
    """List what setuptools would put into a wheel, by its place there."""
    source = copied(target)
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


def test_what_a_package_index_would_show(tmp_path: Path):
    source = copied(tmp_path)
    command = [sys.executable, "setup.py", "--quiet", "dist_info", "--output-dir", str(tmp_path)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    [metadata] = tmp_path.glob("*.dist-info/METADATA")
    shown = email.message_from_string(metadata.read_text(encoding="utf-8"))
    assert (shown["Version"], shown["License-Expression"]) == (metadata_of(REPOSITORY)["version"], "Apache-2.0")
    assert shown["Description-Content-Type"] == "text/markdown"
    text = shown.get_payload()
    assert not re.search(r"\]\((?!https?:)", text)  # an index has no files of the source tree, nor its pictures
    assert "guide, `docs/networks.md`" in text
    assert text.count("```") == (REPOSITORY / "README.md").read_text(encoding="utf-8").count("```")


def metadata_of(repository: Path) -> dict:
    """Read the project table of ``pyproject.toml``."""
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_changelog_opens_with_the_version_of_the_package():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, newest = re.findall(r"^## \[(.*?)\](?: - (\S+))?$", text, re.MULTILINE)[:2]
    assert unreleased == ("Unreleased", "")
    assert newest[0] == metadata_of(REPOSITORY)["version"]
    assert date.fromisoformat(newest[1]) >= date(2026, 11, 30)


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
