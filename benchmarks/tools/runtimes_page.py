"""Write the table of lowerings by runtime: ``python -m benchmarks.tools.runtimes_page --run RUN``.

``make runtimes`` ends with it. It combines the results of ``verify --runtimes`` and ``bench --runtimes`` for the files
of a run's first network, in ``benchmarks/results/runtimes.json``, which ``export --for`` reads, and in
``docs/runtimes.md``.
"""

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stn_export import cli
from stn_export.config import DEFAULT_RUN
from stn_export.errors import UserError
from stn_export.export.destinations import EQUAL, KEPT, REFUSES, RULES, WITHIN, WRONG, choose, chosen
from stn_export.results.choice import Ratio
from stn_export.results.text import percent, significant, span
from stn_export.results.tolerances import OUTPUT, worst_by_kind
from stn_export.run.environment import versions
from stn_export.run.manifest import BENCH_FILE, NetworkDirectory, network_directories
from stn_export.run.records import Check, PointEntry, Verified, timings
from stn_export.run.schemas import read_bench, read_verified
from stn_export.run.store import write_atomically
from stn_export.runners.external.environments import ON_CPU, by_name

REASON = 160  # characters of a reason that are shown
PAGE = KEPT.parents[2] / "docs" / "runtimes.md"
INTRODUCTION = """# Runtimes

`make runtimes` wrote this page: each file of the {network} network in every runtime that reads it, against the
network in float64 as `verify` does it ({examples} examples, and test inputs made to be hard). `equal`: within
the tolerance of float32, with the largest error over the largest output; `within bounds`: within the tolerance of its
precision, or of a runtime that computes less exactly, with the share of examples classified as in float32; `WRONG`:
outside the tolerance, without an error message; `refuses`: an error message, see below.
"""
SHIP = """## Recommended file per runtime

What `stn-export export --for ncnn iree` (or `everything`) writes; the last rows follow a rule:
"""

SPEED = """## How fast

One example, one thread of {cpu}: the transformer in turns with the plain CNN in the same runner (overhead: time divided
by the plain CNN's), and with eager PyTorch (speed-up: eager's time divided by the runner's), with 95 % intervals
([how](method.md)). {fed} Other runtimes run in processes of their own, on their own clocks, so that a file takes longer
there than in [this process](benchmarks.md).
"""
REQUESTS = "Every time is of a request: from host arrays to host arrays."
MIXED = (
    "Times of these runners are not of one kind: a request goes from host arrays to host arrays, other times are with\n"
    "inputs in place, as the column says; `make runtimes` now times all of them as requests."
)
REQUEST, IN_PLACE = "request", "inputs in place"
TIMED = ("overhead", "eager")  # paired comparisons, in the order of the columns
KEPT_OF_A_CONTEST = ("runner", "artifact", "contest", "seconds", "ratio", "ratio_low", "ratio_high", "by_host")


def on_cpu(verified: Verified) -> dict[str, str]:
    """Return the versions of the runtimes that verified a run on the CPU; docs/gpu.md has WebGPU's table."""
    here, known = verified.environment.get("runtimes", {}), {runtime.name for runtime in ON_CPU}
    return {name: version for name, version in here.items() if name in known}


def rows(directory: NetworkDirectory, verified: Verified) -> Iterator[dict]:
    """Yield one row per file and runtime that verified it or does not support it."""
    network = directory.name
    checks = {(check.artifact, check.runner): check for check in verified.checks if check.network == network}
    for artifact in directory.artifacts.values():
        for runtime in on_cpu(verified):
            said = {name: getattr(artifact, name) for name in ("lowering", "precision", "opset")}
            said = {"file": artifact.name} | said | {"runtime": runtime}
            runner = by_name(runtime).runner
            check = checks.get((artifact.name, runner))
            refused = verified.refused.get(f"{network}/{artifact.name} in {runner}")
            if check and check.sha256 == artifact.sha256:
                yield said | cell(check, verified.networks[network].points) | {"agreement": check.agreement}
            elif refused:
                yield said | {"verdict": REFUSES, "detail": refused[:REASON], "agreement": None}


def cell(check: Check, points: Mapping[str, PointEntry]) -> dict:
    """Return a verdict with the largest error of an output, as a share of its largest value, or with the failure."""
    scales = {name: point.scale for name, point in points.items() if point.scale}
    shares = {name: error and error / scales[name] for name, error in check.errors.items() if name in scales}
    worst = worst_by_kind(shares, points).get(OUTPUT)
    verdict = WRONG if not check.passed else EQUAL if check.precision == "fp32" else WITHIN
    return {"verdict": verdict, "detail": check.failure[:REASON] if worst is None else worst}


def shown(row: Mapping) -> str:
    """Describe a row's verdict for people."""
    if row["verdict"] == REFUSES:
        return REFUSES
    agreed = f", {percent(row['agreement'])}" if row["verdict"] != EQUAL and row["agreement"] is not None else ""
    error = f"{row['detail']:.0e}" if isinstance(row["detail"], float) else "–"
    return f"{row['verdict']} ({error}{agreed})"


def matrix(table: Mapping) -> Iterator[tuple[str, ...]]:
    """Yield a table row per file: its name, and a cell per runtime."""
    cells = {(row["file"], row["runtime"]): shown(row) for row in table["rows"]}
    for file in dict.fromkeys(row["file"] for row in table["rows"]):
        yield file, *(cells.get((file, runtime), cli.NONE) for runtime in table["runtimes"])


def contests(run: Path, directory: NetworkDirectory) -> dict:
    """Return the CPU and the paired comparisons of the network's float32 files on one example."""
    if not (run / BENCH_FILE).exists():
        return {"cpu": None, "contests": []}
    content = read_bench(run / BENCH_FILE)
    current = {each.sha256 for each in directory.artifacts.values() if each.precision == "fp32"}
    found = [row for row in timings(content) if row.contest in TIMED and row.batch == 1 and row.sha256 in current]
    kept = [
        {name: value for name in KEPT_OF_A_CONTEST if (value := getattr(row, name)) is not None}
        for row in found
        if row.runner.endswith("-cpu")
    ]
    return {"cpu": content["machine_info"]["stn_export"]["cpu"], "contests": kept}


def speed(table: Mapping) -> Iterator[str]:
    """Yield the page's lines on the speed in each runner, the fastest first."""
    found: dict[tuple[str, str], dict[str, Mapping]] = {}
    for row in table["contests"]:
        found.setdefault((row["runner"], row["artifact"]), {})[row["contest"]] = row
    whole = {key: row for key, row in found.items() if set(row) == set(TIMED)}
    if not whole:
        return
    timed = sorted(whole.items(), key=lambda item: item[1][TIMED[0]]["seconds"])
    kinds = {key: is_request(row[TIMED[0]]) for key, row in whole.items()}
    mixed = not all(kinds.values())
    head, rule, *lines = cli.markdown_table(
        ("runner", "file", *(["timed"] if mixed else []), "ms", "overhead", "speed-up over eager PyTorch"),
        [
            (
                *program,
                *([REQUEST if kinds[program] else IN_PLACE] if mixed else []),
                significant(1e3 * row[TIMED[0]]["seconds"]),
                ratio(interval_of(row[TIMED[0]])),
                ratio(interval_of(row[TIMED[1]]).inverse),
            )
            for program, row in timed
        ],
    )
    title, said = SPEED.format(**table, fed=MIXED if mixed else REQUESTS).strip().split("\n\n")
    yield f"{title}\n\n{textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False)}\n\n{head}\n{rule}"
    yield from lines


def is_request(row: Mapping) -> bool:
    """Return whether a paired comparison used host arrays; older rows do not say, but external runtimes always did."""
    return row.get("by_host", row["runner"] in {runtime.runner for runtime in ON_CPU})


def interval_of(row: Mapping) -> Ratio:
    """Return the ratio of a paired comparison in the table."""
    return Ratio(row["ratio"], row["ratio_low"], row["ratio_high"])


def ratio(found: Ratio) -> str:
    """Format a ratio with its interval."""
    return f"{significant(found.middle)} ({span(found.low, found.high)})"


def page(table: Mapping) -> str:
    """Return ``docs/runtimes.md``: a table of files by runtime, speeds, and why some runtimes do not run a file."""
    told = ", ".join(f"{name} {version}" for name, version in table["runtimes"].items())
    tried = [choice for name in table["runtimes"] if (choice := chosen(name, table))]
    choices = [*tried, *(choose(name) for name in RULES)]
    shipped = [(each.destination, f"{each.what}, {each.sizes}", each.why) for each in choices]
    lines = [INTRODUCTION.format(**table), *cli.markdown_table(("file", *table["runtimes"]), matrix(table))]
    lines += [f"Versions: {told}.", "", SHIP, *cli.markdown_table(("destination", "file", "why"), shipped)]
    lines += [*speed(table), "## Unsupported combinations, and what was left out", ""]
    refused = [row for row in table["rows"] if row["verdict"] == REFUSES]
    lines += [f"- {row['file']} in {row['runtime']}: {row['detail']}" for row in refused]
    lines += [f"- {name}: {why}" for name, why in table["left_out"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Store the table and write the page.

    Raises:
        UserError: if no external runtime has verified anything of the run.
    """
    parser = cli.stage(
        "benchmarks.tools.runtimes_page", "Keep the table of what a run's ONNX files came to in other runtimes."
    )
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {DEFAULT_RUN}")
    run = parser.parse_args(arguments).run or DEFAULT_RUN
    directory, verified = network_directories(run)[0], read_verified(run)
    here = on_cpu(verified) if verified else None
    if not verified or not here:
        raise UserError(f"no other runtime has verified {run}", "stn-export verify --run RUN --runtimes DIR")
    absent = {each.name: each.runner for each in ON_CPU if each.name not in here}
    table = {
        "schema": "stn_export/runners/external/2",
        "network": directory.name,
        "examples": verified.networks[directory.name].examples,
        "versions": versions(),
        "runtimes": here,
        "left_out": {name: verified.unavailable.get(runner, "not tried") for name, runner in absent.items()},
        "rows": list(rows(directory, verified)),
        **contests(run, directory),
    }
    write_atomically(KEPT, json.dumps(table, indent=1).encode() + b"\n")
    write_atomically(PAGE, page(table).encode())
    cli.table("Runtimes", ("file", *here), list(matrix(table)))


if __name__ == "__main__":
    sys.exit(cli.run(main))
