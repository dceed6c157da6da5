"""Write requirements.lock and constraints.txt anew from pyproject.toml: ``make lock``, which installs uv.

Versions stay as constraints.txt has them; ``--upgrade`` takes the newest. The lock holds what ``make setup`` installs,
with the digests of every file of every platform; the constraints hold the same and what all other extras bring.
"""

import argparse
import subprocess
import sys
from pathlib import Path

LOCK, CONSTRAINTS = Path("requirements.lock"), Path("constraints.txt")
HEADING = "# What `make setup` installs, with the digests of every file; written by `make lock` from pyproject.toml.\n"


def compiled(*options: str, upgrade: bool) -> str:
    """What uv resolves for Python 3.11 and later."""
    pins = [] if upgrade else ["--constraint", str(CONSTRAINTS)]
    command = ["uv", "pip", "compile", "pyproject.toml", "--python-version", "3.11", "--no-header", "--no-annotate"]
    done = subprocess.run([sys.executable, "-m", *command, *pins, *options], capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def pins_of(text: str) -> set[str]:
    """``name==version`` of each line that names a package, without what machines it is for."""
    return {line.partition(";")[0].strip(" \\") for line in text.splitlines() if line[:1].isalnum()}


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="to the newest versions that pyproject.toml allows")
    upgrade = parser.parse_args().upgrade
    locked = compiled("--extra", "dev", "--universal", "--generate-hashes", upgrade=upgrade)
    LOCK.write_text(HEADING + locked, encoding="utf-8")
    if upgrade:
        CONSTRAINTS.write_text("\n".join(sorted(pins_of(locked))), encoding="utf-8")
    pins = pins_of(locked) | pins_of(compiled("--all-extras", upgrade=False))
    CONSTRAINTS.write_text("\n".join([*sorted(pins), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
