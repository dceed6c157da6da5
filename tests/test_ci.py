"""CI goes red where the README's commands fail, leave nothing, or leave out what could be tried; ``make`` is played."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

STEPS = ["setup", "lint", "demo", "test", "test-slow", "test-processors", "test-webgpu"]
MAKE = """#!/bin/sh
echo "make $*"
[ "$1" != "$FAILS" ] || exit 3
case "$1" in
demo)
  mkdir -p artifacts/digits && cd artifacts/digits
  for file in report.html report.md report.json; do
    printf '{"card": [["accuracy", "1"], ["latency", "2"]], "text": "%2000s"}' x >"$file"
  done
  [ -z "$LACKS" ] || rm "$LACKS"
  echo "accuracy   1"
  [ -n "$SILENT" ] || echo "latency    2" ;;
test)
  [ -n "$UNTOLD" ] || printf '== skipped, by reason ==\\n 9 PyTorch sees no GPU here\\n%s\\n' "$SKIPPED"
  echo "== 5 passed, 9 skipped in 1 s ==" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that CI takes for a clone, and in ``bin`` what it finds on its path first."""
    for name in (".ci/run", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for name, text in (("bin/make", MAKE), ("bin/apt-get", "#!/bin/sh\n"), (".venv/bin/python", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    return tmp_path


def ran(clone: Path, **variables: str) -> tuple[int, str]:
    """CI's exit code, and what it printed."""
    environment = {"PATH": f"{clone / 'bin'}:/usr/bin:/bin", "HOME": str(clone / "home"), **variables}
    done = subprocess.run(
        ["bash", ".ci/run"], cwd=clone, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_it_types_what_the_readme_says_then_the_sweeps_and_says_how_long_each_took(clone: Path):
    code, out = ran(clone)
    assert code == 0, out
    typed = [line.removeprefix("make ") for line in out.splitlines() if line.startswith("make ") and " s " not in line]
    assert typed == STEPS
    assert out.count(" s  passed") >= len(typed) + 2  # the two questions asked of what they left
    assert out.splitlines()[-1].startswith("all ")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        *(({"FAILS": name}, "FAILED (3)") for name in STEPS),
        *(({"LACKS": name}, "left no report") for name in ("report.html", "report.md", "report.json")),
        ({"SILENT": "1"}, "printed no card, or one without ['latency']"),
        ({"SKIPPED": "14 openvino is not installed"}, "skipped though a CPU could run it:"),
        ({"UNTOLD": "1"}, "does not say why"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_it_goes_red(clone: Path, variables: dict[str, str], said: str):
    code, out = ran(clone, **variables)
    assert code == 1, out
    assert said in out
