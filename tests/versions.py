"""The chain with the lowest and the newest packages that pyproject.toml allows: ``make test-versions``.

Each set is laid over the packages that are here, PyTorch and torchvision left as they are (3 GB each), and the chain of
``tests.processors`` runs on top. Other Pythons are tried where an interpreter with PyTorch in it is named by
``--python``. What was not tried is said and counted.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from stn_export import cli
from tests.processors import INT8, ROWS, Line, close, in_child
from tests.readme import REPOSITORY

AS_THEY_ARE = ("torch", "torchvision")
SMALLER = {"onnxruntime-gpu": "onnxruntime"}  # the same release without CUDA's 300 MB
CHAIN = (*ROWS, "default-fp32", "folded-fp16", INT8)
INSTALLING = 900  # seconds


def project() -> dict:
    """The table ``project`` of pyproject.toml."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(dependencies: Sequence[str]) -> list[Requirement]:
    """What this machine needs of the dependencies, less what is taken as it is."""
    parsed = [Requirement(each) for each in dependencies]
    return [each for each in parsed if each.name not in AS_THEY_ARE and (not each.marker or each.marker.evaluate())]


def lowest(requirement: Requirement) -> str:
    """The lowest version that a requirement allows, for pip.

    Raises:
        ValueError: where it has no lower bound.
    """
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement} has not one lower bound")
    return f"{SMALLER.get(requirement.name, requirement.name)}=={bounds[0]}"


def newest(requirement: Requirement) -> str:
    """The newest version that a requirement allows, for pip."""
    return f"{SMALLER.get(requirement.name, requirement.name)}{requirement.specifier}"


def pythons() -> list[str]:
    """The Pythons that the classifiers name."""
    words = (line.rpartition(" :: ")[2] for line in project()["classifiers"] if "Python :: 3." in line)
    return list(words)


def installed(packages: Sequence[str], folder: Path) -> str:
    """Lay packages into a folder; why that cannot be, or an empty string."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *packages]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=INSTALLING, check=False)
    except subprocess.TimeoutExpired:
        return f"pip was not over after {INSTALLING} s"
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or ["pip failed"])[-1] if done.returncode else ""


def layered(name: str, packages: Sequence[str], folder: Path) -> Line:
    """The chain with packages laid over those that are here."""
    layer = folder / f"{name}-packages"
    if reason := installed(packages, layer):
        return Line(name, " ".join(packages), False, f"FAILED: {reason[:200]}")
    path = os.pathsep.join([str(layer), *filter(None, sys.path)])
    line = in_child(name, folder, CHAIN, {"PYTHONPATH": path})
    return Line(name, " ".join(packages), line.passed, line.verdict, line.error, line.seconds)


def other_python(version: str, interpreters: Sequence[str], folder: Path) -> Line:
    """The chain with another Python, where an interpreter of that version with the packages is named."""
    name = f"Python {version}"
    if version == platform.python_version().rpartition(".")[0]:
        return in_child(f"{name}, packages as here", folder, CHAIN, {})
    for interpreter in interpreters:
        code = "import sys, torch; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([interpreter, "-c", code], capture_output=True, encoding="utf-8", check=False).stdout
        if said.strip() == version:
            words = [interpreter, "-m", "tests.processors", "--child", str(folder / name.replace(" ", "-")), *CHAIN]
            more = {"PYTHONPATH": str(REPOSITORY)}
            line = in_child(name, folder, CHAIN, more, words=words)
            return Line(name, interpreter, line.passed, line.verdict, line.error, line.seconds)
    return Line(name, "", None, "not tried: --python names no such interpreter that has PyTorch")


def sweep(interpreters: Sequence[str], folder: Path) -> Iterator[Line]:
    """All sets of packages, then all Pythons."""
    wanted = requirements(project()["dependencies"])
    yield layered("lowest", [lowest(each) for each in wanted], folder)
    yield layered("newest", [newest(each) for each in wanted], folder)
    for name in AS_THEY_ARE:
        yield Line(f"lowest {name}", name, None, "not tried: it is taken as it is, another is a download of 3 GB")
    for version in pythons():
        yield other_python(version, interpreters, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all of it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="*", default=[], help="interpreters with the packages of constraints.txt")
    options = parser.parse_args(arguments)
    lines = []
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        for line in sweep(options.python, Path(folder)):
            lines.append(line)
            sys.stderr.write(f"{line.setting}: {line.verdict}\n")
    close(lines)


if __name__ == "__main__":
    sys.exit(cli.run(main))
