"""The stage ``bench``: time every artifact of a run on every backend.

python -m stn_export.bench --run artifacts/digits --grid quick -k latency

Options that are not its own go to pytest. The exit code is pytest's: 1 where a row could not be timed, 2 where there is
something to change first.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.artifacts.manifest import BENCH_FILE
from stn_export.bench.grids import GRIDS
from stn_export.bench.session import SUITES, suite_files
from stn_export.config import DEFAULT_RUN
from stn_export.errors import require_choice

# The suites' own directory is the root and no one's settings hold, so that it is all one from where this is started.
QUIETLY = ("-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={SUITES}")
SHOWN = ("--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=min")


def main(arguments: Sequence[str] | None = None) -> None:
    """Start pytest on the suites.

    Raises:
        SystemExit: with pytest's exit code, where that is not 0.
        UserError: for a suite that there is none of.
    """
    parser = cli.stage("bench", "Time every artifact of a run on every backend; other options go to pytest.")
    parser.add_argument("--run", type=Path, default=DEFAULT_RUN, help="run directory")
    parser.add_argument("--grid", default="quick", help=f"what is timed, one of: {', '.join(GRIDS)}")
    parser.add_argument("--device", default="auto", help="cpu or cuda; auto takes both")
    parser.add_argument("--suites", type=cli.names, help=f"some of, with commas: {', '.join(suite_files())}")
    parser.add_argument("--benchmark-json", type=cli.path_or_none, help=f"what is written; by default RUN/{BENCH_FILE}")
    options, others = parser.parse_known_args(arguments)
    files = suite_files()
    chosen = [files[require_choice("suite", name, list(files))] for name in options.suites or ()] or [SUITES]
    ours = ("--run", options.run, "--grid", options.grid, "--device", options.device)
    json = f"--benchmark-json={options.benchmark_json or options.run / BENCH_FILE}"
    if code := pytest.main([*map(str, (*QUIETLY, *SHOWN, *ours)), json, *others, *map(str, chosen)]):
        raise SystemExit(int(code))


if __name__ == "__main__":
    sys.exit(cli.run(main))
