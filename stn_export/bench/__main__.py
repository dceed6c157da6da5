"""The stage ``bench``: time every artifact of a run on every backend, or ONNX files of any origin.

    stn-export bench --run artifacts/digits --grid quick -k latency
    stn-export bench FILE.onnx OTHER.onnx --shape images=1,3,224,224

Other options are passed on to pytest. The exit code is 1 if a row could not be timed, 2 if the user must change
something first, 130 after an interrupt: the same command resumes with the rows that are kept.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.bench import files as bench_files
from stn_export.bench.plugin import Plugin, say_broken
from stn_export.bench.session import SUITES, Session, suite_files
from stn_export.bench.timing import Budget
from stn_export.cli.options import PARSERS
from stn_export.errors import EXIT_BUG, EXIT_USER, REASON, CheckFailedError, UserError, require_choice
from stn_export.results.card import close
from stn_export.run.manifest import BENCH_FILE, trust_run
from stn_export.run.store import PARTIAL, alone
from stn_export.runners.external.environments import asked_for

# The suites' own directory is the root and no configuration file is read, so the working directory does not matter.
# pytest-randomly would shuffle the rows, which are sorted by what they tell.
ROOTED = ("-p", "no:cacheprovider", "-p", "no:randomly", "-c", os.devnull, f"--rootdir={SUITES}")
QUIET = ("--quiet", "--no-header", "--benchmark-quiet")
SHOWN = ("--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=min")
ONNX = ".onnx"
WORKER = "PYTEST_XDIST_WORKER"  # the variable in which pytest-xdist names the worker
OF_A_FILE, OF_A_RUN = (
    ("shape", "inputs", "threads"),
    ("run", "suites", "benchmark_json", "again", "trust", "wait", "verbose"),
)
CODES = {pytest.ExitCode.INTERNAL_ERROR: EXIT_BUG, pytest.ExitCode.USAGE_ERROR: EXIT_USER}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suites with pytest, or time the ONNX files that are named.

    Raises:
        CheckFailedError: naming the rows that could not be timed.
        KeyboardInterrupt: with the number of rows that are kept.
        SystemExit: with the exit code of pytest's own failure.
        UserError: for an unknown suite, if no row is selected, or for options that have no effect.
    """
    options, others = PARSERS["bench"]().parse_known_args(arguments)
    if files := [Path(word) for word in others if word.endswith(ONNX)]:
        _require_of_a_file(options, [word for word in others if not word.endswith(ONNX)])
        with asked_for(options.runtimes):
            bench_files.main(options, files)
        return
    for name in OF_A_FILE:
        if getattr(options, name):
            raise UserError(f"--{name} is of a file", f"name an ONNX file, or leave --{name} out")
    budget = Budget(options.budget)
    suites = suite_files()
    chosen = [suites[require_choice("suite", name, list(suites))] for name in options.suites or ()] or [SUITES]
    path = options.benchmark_json or options.run / BENCH_FILE
    plugin = Plugin(path, budget, options.again, options.verbose)
    if options.trust:
        trust_run(options.run)
    with alone(options.run, options.wait), asked_for(options.runtimes):
        plugin.opened = Session.open(options.run, options.device, options.grid)  # its errors are one line here
        with _whole(path) as written:
            code = _timed(options, plugin, written, [*others, *map(str, chosen)])
            in_file = written.exists() and written.stat().st_size
        if in_file and plugin.timing and plugin.timing.journal:
            plugin.timing.journal.close()
        judge(plugin, code)
        if not options.benchmark_json:
            close(options.run, "bench")
        if plugin.failed:
            raise CheckFailedError(f"{len(plugin.failed)} rows could not be timed", *_failures(plugin))


def _require_of_a_file(options: Namespace, others: Sequence[str]) -> None:
    """Reject options that have no effect when a file is timed.

    Raises:
        UserError: naming one of them.
    """
    parser = PARSERS["bench"]()
    idle = [f"--{name.replace('_', '-')}" for name in OF_A_RUN if getattr(options, name) != parser.get_default(name)]
    if unknown := [*idle, *others]:
        raise UserError(f"{unknown[0]} has no effect on an ONNX file", f"leave {unknown[0]} out")


def _timed(options: Namespace, plugin: Plugin, written: Path, others: Sequence[str]) -> int:
    ours = ("--run", options.run, "--grid", options.grid, "--device", options.device)
    shown = SHOWN if options.verbose else QUIET
    with outside_of_workers():
        try:
            arguments = [*map(str, (*ROOTED, *shown, *ours)), f"--benchmark-json={written}", *others]
            return int(pytest.main(arguments, [plugin]))
        except TypeError:
            if not plugin.interrupted:
                raise
            return int(pytest.ExitCode.INTERRUPTED)  # Python 3.11 gives some frames no line, which pytest cannot show


@contextmanager
def outside_of_workers() -> Iterator[None]:
    """Hide in this block that a worker of pytest-xdist may have started this process.

    pytest-benchmark would time nothing there, without a word. Rows are timed one after the other all the same.
    """
    worker = os.environ.pop(WORKER, None)
    try:
        yield
    finally:
        os.environ |= {WORKER: worker} if worker else {}


def judge(plugin: Plugin, code: int) -> None:
    """End the stage as pytest ended, if it did not run to its end.

    Raises:
        KeyboardInterrupt: with the number of rows that are kept.
        SystemExit: with the exit code.
        UserError: if there was nothing to time.
    """
    if plugin.interrupted:
        raise KeyboardInterrupt(f"{plugin.kept} of {plugin.total} rows kept; the same command goes on")
    if plugin.ended and not plugin.loud:  # else pytest has printed it
        sys.stderr.write(f"{plugin.ended}\n")
    if plugin.broken:
        say_broken(plugin.broken)
        raise SystemExit(EXIT_BUG)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        if not plugin.done:
            raise UserError("no row of the grid was chosen", "leave out -k, --suites or --device")
    elif code and code != pytest.ExitCode.TESTS_FAILED:
        raise SystemExit(CODES.get(pytest.ExitCode(code), code))


def _failures(plugin: Plugin) -> list[str]:
    lines = (f"{name.partition('::')[2]}: {(why.splitlines() or [''])[0]}" for name, why in plugin.failed.items())
    return [line[:REASON] for line in lines]


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` at the end if it was written: pytest-benchmark empties its file."""
    written = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield written
        if written.exists() and written.stat().st_size:
            written.replace(path)
    finally:
        written.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
