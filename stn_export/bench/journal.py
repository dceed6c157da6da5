"""Rows of ``bench.json`` as they are timed, so that what an interrupted session has is not timed again."""

import json
from pathlib import Path

from stn_export.artifacts.files import fingerprint


class RowJournal:
    """Lines of finished rows beside the file that they are to stand in; half a line at the end is as if not there."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.rows.jsonl")

    def rows(self) -> list[dict]:
        """Read the rows that are kept, in the order in which they were timed."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                row = json.loads(line)
                if {"fullname", "stats", "extra_info"} <= row.keys():
                    found.append(row)
            except (ValueError, AttributeError):
                continue
        return found

    def add(self, row: dict) -> None:
        """Keep one."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Forget all: they are kept elsewhere now, or are not wanted."""
        self.path.unlink(missing_ok=True)


def key(*parts: object) -> str:
    """What a row is timed of and with, in short; of anything whose ``repr`` says all of it."""
    return fingerprint(repr(part).encode() for part in parts)[:16]
