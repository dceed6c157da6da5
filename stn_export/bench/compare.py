"""Compare two runs of the benchmarks.

Two runs are two moments of a machine, so comparing two medians by their own intervals would claim too much. A row is
compared by the best figure that it has:

- a paired comparison by its ratio: both sides were timed alternately, which cancels the state of the machine that day;
- any other row by its ratio to eager PyTorch of the same network, batch and regime in the same run; the rows of eager
  itself, and rows without such a companion, by their time. How much such rows move between two runs is estimated from
  the runs themselves, as the spread of all these rows' changes around their median, and is at least
  ``METHOD.run_spread``. All their intervals are widened by it.

Many rows are many chances of a false alarm: the intervals are so wide that all rows together give one with probability
``METHOD.false_alarms`` (Bonferroni); those of paired comparisons use Student's distribution, since loads are few.

Start-up and breakdown rows are not judged.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from stn_export import cli
from stn_export.errors import CheckFailedError, UserError, in_clone
from stn_export.results import laws
from stn_export.results.statistics import CONFIDENCE, METHOD, scatter, student, verdict
from stn_export.run.records import Estimate, Timing, timings
from stn_export.run.schemas import Result, read_bench

MACHINE = {"cpu": "CPU", "instruction_sets": "instruction sets", "gpu": "GPU", "threads": "threads"}
COLUMNS = ("row", "by", "new/base", "interval", "verdict")
LOADS, STRETCHES = METHOD.loads - 1, METHOD.stretches - 1  # degrees of freedom of paired and of other rows
FEWEST = 5  # rows needed to estimate a spread


@dataclass(frozen=True)
class Measured:
    """The figure that a row is compared by: ``value``, and the standard deviation of its logarithm."""

    by: str
    value: float
    sigma: float


@dataclass(frozen=True)
class Change:
    """A row of both runs: the new value divided by the base's, and the interval of this ratio."""

    row: str
    by: str
    ratio: float
    low: float
    high: float
    verdict: str


def measured(rows: Mapping[str, Timing]) -> dict[str, Measured]:
    """Return the figure of every row that can be compared, by the row's name."""
    eager = {_companion(row): row for row in rows.values() if row.p50 is not None and _is_eager(row)}
    rows_by_key = {}
    for name, row in rows.items():
        if row.ratio is not None:
            rows_by_key[name] = Measured(f"contest: {row.contest}", row.ratio, _sigma(row.paired, LOADS))
        elif row.p50 is not None:
            own = _sigma(row.median, STRETCHES)
            other = None if _is_eager(row) else eager.get(_companion(row))
            if other is None:
                rows_by_key[name] = Measured("seconds", row.p50, own)
            else:
                sigma = math.hypot(own, _sigma(other.median, STRETCHES))
                rows_by_key[name] = Measured("ratio to eager", row.p50 / other.median.middle, sigma)
    return rows_by_key


def _is_eager(row: Timing) -> bool:
    return row.runner == f"eager-{row.device}"


def _companion(row: Timing) -> tuple:
    """Return what a row shares with the eager row that it is compared with."""
    return row.network, row.device, row.batch, row.regime, row.inputs


def _sigma(estimate: Estimate, freedom: int) -> float:
    return math.log(estimate.high / estimate.low) / 2 / student(CONFIDENCE, freedom)


def changes(base: dict[str, Measured], new: dict[str, Measured]) -> list[Change]:
    """Return the change of every row that both runs have, the largest slowdown first."""
    common = [name for name in base if name in new and new[name].by == base[name].by]
    logs = {name: math.log(new[name].value / base[name].value) for name in common}
    moving = [logs[name] for name in common if not base[name].by.startswith("contest")]
    spread = run_spread(moving)
    false_alarms = METHOD.false_alarms / max(len(common), 1)
    normal, of_contests = NormalDist().inv_cdf(1 - false_alarms / 2), student(1 - false_alarms, 2 * LOADS)
    differences = []
    for name in common:
        by, contest = base[name].by, base[name].by.startswith("contest")
        sigma = math.hypot(base[name].sigma, new[name].sigma, 0.0 if contest else spread)
        reach = of_contests if contest else normal
        low, high = math.exp(logs[name] - reach * sigma), math.exp(logs[name] + reach * sigma)
        differences.append(Change(name, by, math.exp(logs[name]), low, high, verdict(low, high)))
    return sorted(differences, key=lambda change: -change.low)


def run_spread(logs: Sequence[float]) -> float:
    """Estimate the standard deviation, of logarithms, by which rows that are not paired move from run to run.

    It is taken around the median, so that a slowdown of all rows does not count as spread, and robustly, so that one of
    a few rows does not either.
    """
    if len(logs) < FEWEST:
        return METHOD.run_spread
    return max(METHOD.run_spread, scatter(np.array(logs)))


def different_machine(base: dict, new: dict) -> list[str]:
    """Describe the fields in which the machines of two runs differ; older files lack instruction sets."""
    ours, theirs = (content["machine_info"]["stn_export"] for content in (base, new))
    both = [key for key in MACHINE if key in ours and key in theirs]
    return [f"{MACHINE[key]} {ours[key]} and {theirs[key]}" for key in both if ours[key] != theirs[key]]


def rows_of(content: dict) -> dict[str, Timing]:
    """Return the timings by pytest's name of the row."""
    return dict(zip((row["fullname"] for row in content["benchmarks"]), timings(content), strict=True))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line parser."""
    parser = cli.stage("stn_export.bench.compare", "Compare two runs of the benchmarks, row by row.")
    parser.add_argument("base", type=cli.path_or_none, help="bench.json, or a kept result")
    parser.add_argument("new", type=Path, help="likewise")
    parser.add_argument("--across-machines", action="store_true", help="show ratios to eager only, and judge nothing")
    parser.add_argument("--all", action="store_true", help="list rows without a verdict as well")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare two runs, print the changes, and fail if a row is slower or missing.

    Raises:
        CheckFailedError: naming the rows.
        UserError: for files of different machines, and for files that are not benchmark results.
    """
    options = build_parser().parse_args(arguments)
    if options.base is None:
        by_python = "python -m stn_export.bench.compare BASE.json NEW.json"
        hint = in_clone("make bench-compare BASE=file.json", by_python)
        raise UserError("no baseline file was given", hint)
    base, new = (read_bench(path, Result) for path in (options.base, options.new))
    for path, content in ((options.base, base), (options.new, new)):
        laws.require(content, path)
    differing = different_machine(base, new)
    if differing and not options.across_machines:
        across = in_clone("--across-machines (ACROSS=1)", "--across-machines")
        hint = f"time both on one machine, or add {across} to see ratios to eager only"
        raise UserError(f"the files are of different machines: {'; '.join(differing)}", hint)
    ours, theirs = rows_of(base), rows_of(new)
    differences = changes(measured(ours), measured(theirs))
    if options.across_machines:
        differences = [change for change in differences if change.by in ("ratio to eager", "contest: eager")]
    missing, added = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    if options.format == "json":
        cli.print_json({"changes": list(map(asdict, differences)), "missing": missing, "added": added})
    else:
        show(differences, added, options.all or options.across_machines)
    slower = [change for change in differences if change.verdict == "slower"]
    if options.across_machines:
        return
    if not differences:
        raise CheckFailedError("the files have no comparable row in common")
    if slower or missing:
        lines = [f"slower, {change.low:.2f} to {change.high:.2f} times: {change.row}" for change in slower]
        lines += [f"missing from {options.new}: {name}" for name in missing]
        raise CheckFailedError(f"{len(slower)} rows are slower, {len(missing)} missing", *lines)


def show(differences: Sequence[Change], added: Sequence[str], everything: bool) -> None:
    """Print the table, new rows, and the number of rows with each verdict."""
    listed = [change for change in differences if everything or change.verdict in ("faster", "slower")]
    rows = [
        (
            change.row,
            change.by,
            f"{change.ratio:.3f}",
            f"{change.low:.3f} to {change.high:.3f}",
            change.verdict,
        )
        for change in listed
    ]
    if rows:
        cli.table("New run against base: below 1 is faster", COLUMNS, rows, ("by", "interval"))
    for name in added:
        cli.say(f"new: {name}")
    verdicts = [change.verdict for change in differences]
    cli.say(
        f"{len(differences)} rows compared: " + ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
