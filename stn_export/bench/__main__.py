"""The stage ``bench``: time every artifact of a run on every backend.

python -m stn_export.bench --run artifacts/digits --grid quick -k latency

Options that are not its own go to pytest. The exit code is pytest's: 1 where a row could not be timed, 2 where there is
something to change first.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.answer.card import close
from stn_export.artifacts.alone import alone
from stn_export.artifacts.files import PARTIAL
from stn_export.artifacts.manifest import BENCH_FILE, trust_run
from stn_export.bench.session import SUITES, suite_files
from stn_export.cli.options import PARSERS
from stn_export.errors import require_choice
from stn_export.runtimes.environments import asked_for

# The suites' own directory is the root and no one's settings hold, so that it is all one from where this is started.
ROOTED = ("-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={SUITES}")
QUIET = ("--quiet", "--no-header", "--benchmark-quiet")
SHOWN = ("--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=min")


def main(arguments: Sequence[str] | None = None) -> None:
    """Start pytest on the suites.

    Raises:
        SystemExit: with pytest's exit code, where that is not 0.
        UserError: for a suite that there is none of.
    """
    options, others = PARSERS["bench"]().parse_known_args(arguments)
    files = suite_files()
    chosen = [files[require_choice("suite", name, list(files))] for name in options.suites or ()] or [SUITES]
    ours = ("--run", options.run, "--grid", options.grid, "--device", options.device)
    path = options.benchmark_json or options.run / BENCH_FILE
    told = SHOWN if options.verbose else QUIET
    if options.trust:
        trust_run(options.run)
    with alone(options.run, options.wait), asked_for(options.runtimes):
        with _whole(path) as written:
            resumed = ("--resume", path) if options.resume and path.is_file() else ()
            json = f"--benchmark-json={written}"
            code = pytest.main([*map(str, (*ROOTED, *told, *ours, *resumed)), json, *others, *map(str, chosen)])
            if code and not (resumed and code == pytest.ExitCode.NO_TESTS_COLLECTED):
                raise SystemExit(int(code))
        if not options.benchmark_json:
            close(options.run, "bench")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` at the end, if anything was; pytest-benchmark empties its file first."""
    written = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield written
    finally:
        if written.exists() and written.stat().st_size:
            written.replace(path)
        written.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
