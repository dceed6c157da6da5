"""Measure how often intervals cover the true value, where it is known: `python -m benchmarks.tools.calibration`.

The simulated machines of ``simulated`` are timed by the same functions that time real ones. The results are stored in
`benchmarks/results/coverage.json` and shown in `docs/method.md`.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.tools.kept import KEPT
from benchmarks.tools.simulated import CALL, CONTESTS, MEDIANS, Condition, Machine, Noise
from stn_export import cli
from stn_export.bench.compare import Measured, changes, measured
from stn_export.bench.plan import GRIDS
from stn_export.bench.timing import interleave, samples_for, timed
from stn_export.results.choice import choose
from stn_export.results.statistics import METHOD, estimate, ratio_interval, summarise
from stn_export.run.records import Timing, timing
from stn_export.run.store import filled, read_json, write_atomically, write_json

COVERAGE, COVERAGE_SCHEMA = KEPT / "coverage.json", "stn_export/coverage/1"
DOCUMENT = Path("docs") / "method.md"
SLOWDOWNS = (0.0, 0.03, 0.05, 0.15)
QUICK = GRIDS["quick"]
SEEDS = (3, 5, 8)
ROWS = 40  # paired comparisons in each of two runs
FILES, GAPS = (2, 6, 12), (0.0, 0.1, 0.2, 0.3)  # number of files to choose from, and by what share one is faster
DRAWS = 12  # added to each seed: other machines than those on which the method was chosen

GAINS: dict[str, Noise] = {
    "normal": lambda random, count: random.normal(0, 1, count),
    "uniform": lambda random, count: random.uniform(-1, 1, count),
    "heavy tails (t, 3 degrees)": lambda random, count: random.standard_t(3, count),
    "skewed (exponential)": lambda random, count: random.exponential(1, count) - 1,
}


def contest(condition: Condition, slowdown: float, seed: int) -> dict:
    """Run a paired comparison on a simulated machine, with our side slower by ``slowdown``."""
    machine = Machine(condition, np.random.default_rng((DRAWS, seed)))
    return interleave(lambda: machine.load(slowdown), machine.load, "cpu", QUICK, seed, machine.now).hold().summary()


def contests(condition: Condition, count: int) -> dict:
    """Measure the coverage of ``count`` paired comparisons for each slowdown, and count their verdicts."""
    held, widths, verdicts = 0, [], {}
    for number, slowdown in enumerate(SLOWDOWNS):
        found = [contest(condition, slowdown, seed) for seed in range(number * count, (number + 1) * count)]
        held += sum(row["ratio_low"] <= 1 + slowdown <= row["ratio_high"] for row in found)
        widths += [row["ratio_high"] / row["ratio_low"] for row in found]
        verdicts[f"{slowdown:.0%}"] = dict(Counter(row["verdict"] for row in found))
    total = count * len(SLOWDOWNS)
    reach = math.sqrt(float(np.median(widths))) - 1
    return {"count": total, "coverage": held / total, "reach": reach, "verdicts": verdicts}


def medians(condition: Condition, calls: int, count: int) -> dict:
    """Measure how often the interval of a row's median covers the median over all rows."""
    rows = [_row(condition, seed, calls) for seed in range(count)]
    truth = float(np.median(np.concatenate(rows)))
    found = [summarise(row) for row in rows]
    held = sum(row["p50_low"] <= truth <= row["p50_high"] for row in found)
    reach = float(np.median([row["p50_high"] / row["p50"] for row in found])) - 1
    return {"count": count, "calls": calls, "coverage": held / count, "reach": reach}


def _row(condition: Condition, seed: int, calls: int) -> np.ndarray:
    step = Machine(condition, np.random.default_rng((DRAWS, seed))).load()
    return np.array([timed(step) for _ in range(calls)])


def choices(files: int, gap: float, count: int) -> dict:
    """Measure how often the rule of ``results.choice`` is right for files that are each timed at another moment.

    Args:
        files: how many; the first takes ``1 - gap`` of the others' time, which are all equally fast.
        gap: 0 if no file is faster than another, so that calling one faster is wrong.
        count: tries.

    Returns:
        ``told``: how often the fastest row was called measurably faster than any other (``gap`` 0) or than all others.
    """
    told = 0
    for seed in range(count):
        random = np.random.default_rng((DRAWS, files, seed))
        moments = np.exp(random.normal(0, METHOD.run_spread, files)) * np.where(np.arange(files), 1.0, 1.0 - gap)
        rows = [_timed(random, moment) for moment in moments]
        chosen = choose(rows, {})
        apart = len(rows) - 1 - len(chosen.tied)
        told += apart == len(rows) - 1 and chosen.fastest is rows[0] if gap else apart > 0
    return {"count": count, "files": files, "gap": gap, "told": told / count}


def _simulated(found: Mapping[str, object]) -> Timing:
    """Return a simulated row with these figures."""
    facts = dict.fromkeys(
        ("network", "label", "role", "artifact", "sha256", "runner", "device", "regime", "inputs"), ""
    )
    files = {"format": "onnx", "lowering": None, "precision": "fp32", "input": "float", "batch": 1, "file_bytes": 1}
    return timing({**facts, **files, **found})


def _timed(random: np.random.Generator, moment: float) -> Timing:
    """Summarise a row of independent calls at a moment when each takes ``moment`` times as long."""
    return _simulated(summarise(CALL * moment * np.exp(random.normal(0, 0.03, samples_for(CALL, QUICK.row_seconds)))))


def gains(draw: Noise, seeds: int, count: int) -> dict:
    """Measure how often the interval of a mean over seeds covers the true value, 0."""
    random = np.random.default_rng((DRAWS, seeds))
    found = [estimate(draw(random, seeds).tolist()) for _ in range(count)]
    return {"count": count, "seeds": seeds, "coverage": sum(one.low <= 0 <= one.high for one in found) / count}


def false_alarms(spread: float, count: int) -> dict:
    """Measure how many comparisons of two equal runs, ``ROWS`` paired comparisons each, call a row faster or slower."""
    random = np.random.default_rng(DRAWS)
    alarms = sum(
        any(change.low > 1 or change.high < 1 for change in changes(_run(random, spread), _run(random, spread)))
        for _ in range(count)
    )
    return {"count": count, "rows": ROWS, "spread": spread, "alarms": alarms / count}


def _run(random: np.random.Generator, spread: float) -> dict[str, Measured]:
    loads = np.arange(QUICK.blocks) % METHOD.loads
    rows = {}
    for row in range(ROWS):
        logs = random.normal(0, 0.015, QUICK.blocks) + random.normal(0, spread, METHOD.loads)[loads]
        low, high = ratio_interval(np.exp(logs), loads)
        ratio = {"ratio": math.sqrt(low * high), "ratio_low": low, "ratio_high": high}
        rows[str(row)] = _simulated({"contest": "simulated", **ratio})
    return measured(rows)


def calibrate(count: int) -> dict:
    """Compute all tables."""
    content: dict = {"contests": {}, "medians": {}, "gains": {}}
    content["choices"] = [choices(files, gap, count) for files in FILES for gap in GAPS]
    with cli.progress() as bar:
        task = bar.add_task("machines", total=len(CONTESTS) + 2 * len(MEDIANS))
        for condition in CONTESTS:
            content["contests"][condition.name] = contests(condition, count) | {"claimed": condition.claimed}
            bar.advance(task)
        for condition in MEDIANS:
            for calls in (samples_for(CALL, QUICK.row_seconds), samples_for(CALL, GRIDS["full"].row_seconds)):
                name = f"{condition.name}, {calls} calls"
                content["medians"][name] = medians(condition, calls, 4 * count) | {"claimed": condition.claimed}
                bar.advance(task)
    for name, draw in GAINS.items():
        content["gains"][name] = [gains(draw, seeds, 10 * count) for seeds in SEEDS]
    return content | {"false_alarms": [false_alarms(spread, count) for spread in (0.0, 0.015)]}


def _cells(row: dict, *cells: str) -> tuple[str, ...]:
    """Return the cells of the first two tables: their common ones around ``cells``."""
    return (
        f"{row['count']:,}",
        f"{row['coverage']:.1%}",
        f"±{row['reach']:.1%}",
        *cells,
        "yes" if row["claimed"] else "no",
    )


def contest_lines(found: dict[str, dict]) -> list[str]:
    """Write the table of paired comparisons: coverage, false verdicts, and how often a slowdown is detected."""

    def share(row: dict, slowdown: float) -> str:
        verdicts = row["verdicts"][f"{slowdown:.0%}"]
        named = verdicts.get("slower", 0) + (verdicts.get("faster", 0) if not slowdown else 0)
        return f"{named / sum(verdicts.values()):.1%}"

    rows = [(name, *_cells(row, *(share(row, each) for each in SLOWDOWNS))) for name, row in found.items()]
    said = ["false verdicts", *(f"“slower” at {slowdown:.0%}" for slowdown in SLOWDOWNS[1:])]
    return cli.markdown_table(("machine", "contests", "coverage", "interval", *said, "claimed"), rows)


def median_lines(found: dict[str, dict]) -> list[str]:
    """Write the table of rows' medians."""
    columns = ("machine", "rows", "coverage", "interval", "claimed")
    return cli.markdown_table(columns, [(name, *_cells(row)) for name, row in found.items()])


def gain_lines(found: dict[str, list[dict]]) -> list[str]:
    """Write the table of means over seeds."""
    rows = [(name, *(f"{row['coverage']:.1%}" for row in row_of)) for name, row_of in found.items()]
    return cli.markdown_table(("differences", *(f"{seeds} seeds" for seeds in SEEDS)), rows)


def choice_lines(found: Sequence[dict]) -> list[str]:
    """Write the table of choices from separate timings: false ones, and how often a faster file is detected."""
    told = {(row["files"], row["gap"]): f"{row['told']:.1%}" for row in found}
    gaps = sorted({row["gap"] for row in found})
    columns = ("files", "tries", *(f"{gap:.0%} faster" if gap else "none is faster: false" for gap in gaps))
    counts = {row["files"]: f"{row['count']:,}" for row in found}
    return cli.markdown_table(
        columns, [(str(files), count, *(told[files, gap] for gap in gaps)) for files, count in counts.items()]
    )


def alarm_lines(found: Sequence[dict]) -> list[str]:
    """Write the table of false alarms."""
    rows = [(f"{row['spread']:.1%}", f"{row['count']:,}", str(row["rows"]), f"{row['alarms']:.1%}") for row in found]
    return cli.markdown_table(("loads differ by", "comparisons", "contests in each", "with a false alarm"), rows)


TABLES: dict[str, Callable[..., list[str]]] = {
    "contests": contest_lines,
    "medians": median_lines,
    "choices": choice_lines,
    "gains": gain_lines,
    "false_alarms": alarm_lines,
}


def with_tables(document: str, content: dict) -> str:
    """Return the document with every table between its marks replaced."""
    for name, lines in TABLES.items():
        document = filled(document, name, lines(content[name])[:-1])
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    """Calibrate, store the figures and write the tables."""
    parser = cli.stage(
        "benchmarks.tools.calibration", "Try the intervals where the truth is known, and write docs/method.md."
    )
    parser.add_argument("--count", type=int, default=1000, help="contests for each machine and slowdown")
    parser.add_argument("--kept", type=Path, default=COVERAGE, help="the figures")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="the text whose tables are written")
    parser.add_argument("--tables-only", action="store_true", help="write the tables from figures that were kept")
    options = parser.parse_args(arguments)
    if not options.tables_only:
        write_json(options.kept, COVERAGE_SCHEMA, calibrate(options.count))
        cli.say(f"wrote {options.kept}")
    document = with_tables(options.document.read_text(encoding="utf-8"), read_json(options.kept, COVERAGE_SCHEMA))
    write_atomically(options.document, document.encode())
    cli.say(f"wrote {options.document}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
