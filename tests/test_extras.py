"""What needs no extra runs without one; what needs one says which."""

import re
import subprocess
import sys
import tomllib

import pytest

from stn_export.cli import EXTRAS
from tests.conftest import REPOSITORY

WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {sorted(EXTRAS)} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
CHECK = """
import torch, stn_export
from torch import nn
result = stn_export.check(nn.Sequential(nn.Linear(7, 5), nn.ReLU()).eval(), torch.rand(4, 7))
assert result, result.failures
"""
IMPORTS = "\n".join(
    f"import stn_export.{stage}.__main__" for stage in ("verify", "audit", "export", "adopt", "predict")
)
START = "from stn_export.cli import start; sys.exit(start({words}))"


def run(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.slow
@pytest.mark.parametrize("code", [CHECK, IMPORTS], ids=["check", "stages"])
def test_no_extra_is_needed(code: str):
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("stage", "extra"), [("train", "train"), ("bench", "bench"), ("report", "all")])
def test_what_needs_an_extra_says_which(stage: str, extra: str):
    result = run(START.format(words=[stage]))
    said = " ".join(result.stderr.split())
    assert (result.returncode, said.count("is not installed")) == (2, 1)
    assert said.endswith(f"hint: pip install '.[{extra}]'")


def test_every_locked_package_has_digests_and_the_version_of_the_constraints():
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==([\w.+-]+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", text, re.M)
    locked = {name.lower().replace("_", "-"): version for name, version, _ in entries}
    assert len(entries) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) > 80
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-").split()
    pinned = dict(line.split("==") for line in pins if "==" in line)
    assert len(pins) == len(pinned)
    assert {name: version.lower() for name, version in locked.items()}.items() <= pinned.items()
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {re.split(r"[^\w-]", each)[0] for each in wanted} <= locked.keys()
