"""Store results of ``test_training.py`` as a small file: ``python -m benchmarks.tools.keep_training_speed FILE``."""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tools.kept import KEPT
from stn_export import cli
from stn_export.errors import UserError
from stn_export.run.store import write_json

SCHEMA = "stn_export/training-speed/1"
COMMAND = "make bench-train DATASET={dataset} DEVICE={device}"


def kept(measured: dict) -> dict:
    """Return the rows of a pytest-benchmark file with their command and environment only.

    Raises:
        UserError: if it contains no timing of training.
    """
    rows = [row["extra_info"] for row in measured["benchmarks"] if "what" in row["extra_info"]]
    if not rows:
        raise UserError("that file holds no timing of training", "run 'make bench-train'")
    environment = measured["machine_info"]["stn_export"]
    command = COMMAND.format(**rows[0])
    return {"command": command, "environment": environment, "rows": rows}


def print_rows(rows: Sequence[dict]) -> None:
    """Print medians, and the ratios of paired comparisons."""
    table = []
    for row in rows:
        seconds, against, ratio = f"{statistics.median(row['seconds']):.2f}", "–", "–"
        if "ratio" in row:
            against = f"{statistics.median(row['baseline_seconds']):.2f}"
            ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        table.append((row["what"], seconds, against, ratio))
    cli.table("", ("what", "seconds", "against", "ratio (interval)"), table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``benchmarks/results/training-speed-<device>.json``."""
    parser = cli.stage("benchmarks.tools.keep_training_speed", main.__doc__)
    parser.add_argument("measured", type=Path, help="a file of --benchmark-json")
    parser.add_argument("--results", type=Path, default=KEPT, help="directory to write into")
    options = parser.parse_args(arguments)
    content = kept(json.loads(options.measured.read_text(encoding="utf-8")))
    path = options.results / f"training-speed-{content['rows'][0]['device']}.json"
    write_json(path, SCHEMA, content)
    print_rows(content["rows"])
    cli.say(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
