"""Checks as they are made, so that a verification that was interrupted goes on where it stood."""

import json
from pathlib import Path

import msgspec

from stn_export.artifacts.manifest import Artifact
from stn_export.artifacts.records import Check

JOURNAL = ".checks.jsonl"


class Journal:
    """Lines of ``key`` and check in a run directory; those of another ``key`` (another network, examples, machine) and
    half a line at its end are as if they were not there. Of one that begins ``again`` nothing is left.
    """

    def __init__(self, run: Path, key: str, again: bool = False) -> None:
        self.path, self.key = run / JOURNAL, key
        if again:
            self.close()
        self.checks: dict[tuple[str, ...], Check] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                found = json.loads(line)  # with NaN, which strict JSON has not
                check = msgspec.convert(found["check"], Check)
            except (ValueError, KeyError, TypeError):
                continue
            if found["key"] == key:
                self.checks[check.network, check.artifact, check.sha256, check.runner] = check

    def of(self, artifact: Artifact, runner: str) -> Check | None:
        """What was found before."""
        return self.checks.get((artifact.network, artifact.name, artifact.sha256, runner))

    def add(self, check: Check) -> None:
        """Keep one."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": self.key, "check": msgspec.to_builtins(check)}) + "\n")

    def close(self) -> None:
        """All are kept elsewhere now."""
        self.path.unlink(missing_ok=True)
