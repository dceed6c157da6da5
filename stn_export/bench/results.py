"""`benchmarks/RESULTS.md`, made from the kept files: `python -m stn_export.bench.results` (`make bench-results`).

With `--keep bench.json` a run's file is made small and kept first; on the machine that was timed, whose peak rates are
measured along with it where it is a CPU.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stn_export import cli
from stn_export.artifacts.files import read_json, write_atomically
from stn_export.artifacts.manifest import SUBJECT
from stn_export.bench.floors import floors
from stn_export.bench.kept import KEPT, PROOF_PREFIX, PROOF_SCHEMA, device_of, keep, read_bench
from stn_export.bench.method import METHOD, PROOF

RESULTS = KEPT.parent / "RESULTS.md"
OPENING = f"""# Results

Made by `make bench-results` from the files in `results/`; do not edit.
Times are medians, ratios come from contests in interleaved blocks, brackets hold 95 % intervals.
A ratio below 1 is faster. "Same" is an interval within 1 ± {METHOD.same:.0%}.
"""
UNITS = {"s": 1.0, "ms": 1e3, "µs": 1e6}
STEP_ALONE = ("device", "offline")
CONTESTS = {
    "overhead": "What sampling costs: {label} against {baseline_label}",
    "eager": "Against eager PyTorch",
    "default": "Against the default export in a default session",
    "lowering": "Against the lowering that PyTorch's exporter gives by itself",
}
FLOORS_NOTE = (
    "FLOPs are two a multiply-add of convolutions, matrix products and samplers. Bytes are weights, input and output "
    "once each; behind the slash what every operator reads and writes, intermediate activations included. Launches are "
    "eager PyTorch's operators that compute. A floor is the time for the FLOPs or for the bytes at the device's peak, "
    "whichever is longer (data that stays in a cache can be faster than memory's); the last column is that floor as a "
    "share of the measured time."
)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, an empty one behind it."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def seconds(value: float) -> str:
    """A time with three digits in a unit that suits it."""
    unit, scale = next((pair for pair in UNITS.items() if value * pair[1] >= 1), ("ns", 1e9))
    return f"{value * scale:.3g} {unit}"


def name_of(row: dict) -> str:
    """Runner and artifact."""
    return f"{row['runner']} {row['artifact']}"


def ratio_of(row: dict) -> str:
    """A contest's ratio and its interval."""
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"


def contests(rows: Iterable[dict]) -> Iterator[tuple[str, list[dict]]]:
    """Titles, and the rows of contests below each."""
    for contest, title in CONTESTS.items():
        found: dict[str, list[dict]] = {}
        for row in rows:
            if row.get("contest") == contest and "ratio" in row:
                found.setdefault(title.format(**row), []).append(row)
        yield from found.items()


def timed_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of the bound step alone, by network."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        if "p50" in row and row["regime"] in STEP_ALONE:
            found.setdefault(row["network"], []).append(row)
    return found


def headlines(rows: list[dict]) -> list[str]:
    """The best artifact of each subject for one example and for many."""
    lines = []
    for timed in timed_rows([row for row in rows if row["role"] == SUBJECT]).values():
        label = timed[0]["label"]
        if single := [row for row in timed if row["batch"] == 1]:
            best = min(single, key=lambda row: row["p50"])
            span = f"({seconds(best['p50_low'])} to {seconds(best['p50_high'])})"
            lines += [f"- {label}, for latency: {name_of(best)}, {seconds(best['p50'])} {span} for one example."]
        best = max(timed, key=lambda row: row["examples_per_second"])
        rate = f"{best['examples_per_second']:,.0f} examples/s"
        lines += [f"- {label}, for throughput: {name_of(best)}, {rate} at batch {best['batch']}."]
    return [*lines, ""]


def contest_tables(rows: list[dict]) -> list[str]:
    """A table a contest, the fastest of ours first."""
    lines = []
    for title, chosen in contests(rows):
        chosen.sort(key=lambda row: (row["batch"], row["seconds"]))
        columns = ("ours", "batch", "ours", "baseline", "ratio", "verdict", "disturbed blocks")
        lines += [f"### {title}", "", *markdown_table(columns, map(contest_line, chosen))]
    return lines


def contest_line(row: dict) -> tuple[str, ...]:
    """One contest."""
    return (
        name_of(row),
        str(row["batch"]),
        seconds(row["seconds"]),
        seconds(row["baseline_seconds"]),
        ratio_of(row),
        row["verdict"],
        f"{row['disturbed_blocks']} of {row['blocks']}",
    )


def floor_table(content: dict, rows: list[dict]) -> list[str]:
    """Work and floors beside the fastest time of every network at every batch that was timed."""
    if not content.get("peak"):
        return ["Peak rates of this device are not known, so there are no floors.", ""]
    lines = []
    for network, timed in timed_rows(rows).items():
        for batch in sorted({row["batch"] for row in timed}):
            best = min((row for row in timed if row["batch"] == batch), key=lambda row: row["p50"])
            lines.append(floor_line(content["work"][network][str(batch)], content["peak"], best))
    columns = "network", "batch", "FLOPs", "bytes", "launches", "arithmetic", "memory", "fastest", "by", "floor share"
    rate, memory = content["peak"]["flops"]["fp32"], content["peak"]["bytes"]
    peak = f"Peak: {rate / 1e9:,.0f} GFLOP/s in float32, {memory / 1e9:,.1f} GB/s ({content['peak']['source']})."
    return ["### Floors", "", *markdown_table(columns, lines), f"{peak} {FLOORS_NOTE}", ""]


def floor_line(work: dict, peak: dict, best: dict) -> tuple[str, ...]:
    """One network and batch."""
    precision = "tf32" if best.get("tf32") and best["precision"] == "fp32" else best["precision"]
    found = floors(work, peak, precision)
    floor = max(found["arithmetic"], found["memory"])
    return (
        best["label"],
        str(best["batch"]),
        f"{work['flops'] / 1e6:,.1f} M",
        f"{work['bytes_fused'] / 2**20:,.2f} / {work['bytes_unfused'] / 2**20:,.2f} MiB",
        str(work["launches"]),
        seconds(found["arithmetic"]),
        f"{seconds(found['memory'])} / {seconds(found['memory, unfused'])}",
        seconds(best["p50"]),
        name_of(best),
        f"{floor / best['p50']:.2%}",
    )


def proof_lines(content: dict) -> list[str]:
    """The trial's two figures at each batch."""
    rows = []
    for trial in content["trials"]:
        ratios = [row["ratio"] for row in trial["rows"]]
        verdicts = [row["verdict"] for row in trial["rows"]]
        said = ", ".join(f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts)))
        found = f"{trial['found']} of {len(ratios)}"
        state = "passed" if trial["passed"] else "FAILED"
        span = f"{min(ratios):.3f} to {max(ratios):.3f}"
        rows.append((trial["trial"], str(trial["batch"]), found, span, said, state))
    columns = ("trial", "batch", "found", "ratios", "verdicts", "")
    return [
        f"{content['target']}, {content['datetime'][:10]}, grid {content['grid']}. A/A: the artifact against itself, "
        f"the interval must hold 1 at least {PROOF.holding} times in {PROOF.trials} and no verdict may be off by more "
        f"than {METHOD.same:.0%}. Planted: ours slowed by {PROOF.slowdown:.0%}, to be found every time.",
        "",
        *markdown_table(columns, rows),
    ]


def machine_line(content: dict) -> str:
    """What was timed on, with what, when."""
    environment = content["machine_info"]["stn_export"]
    device = environment["gpu"] if device_of(content) == "cuda" else environment["cpu"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in sorted(environment["versions"]))
    return (
        f"{device}, {environment['threads']} thread(s), {content['datetime'][:10]}, commit "
        f"{environment['git_commit']}. {versions}."
    )


def document(directory: Path) -> str:
    """RESULTS.md: a chapter a benchmark file, then the proofs."""
    lines = [OPENING]
    kept = sorted(directory.glob("*.json"))
    for path in [path for path in kept if b'"benchmarks"' in path.read_bytes()]:
        content = read_bench(path)
        rows = [row["extra_info"] for row in content["benchmarks"]]
        lines += [f"## {path.stem}", "", machine_line(content), "", *headlines(rows)]
        lines += contest_tables(rows) + floor_table(content, rows)
    for path in [path for path in kept if path.name.startswith(PROOF_PREFIX)]:
        lines += [f"## Why one may believe it: {path.stem}", "", *proof_lines(read_json(path, PROOF_SCHEMA))]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep a run's file if one is named, then write RESULTS.md."""
    parser = cli.stage("bench.results", "Write RESULTS.md from the kept results.")
    parser.add_argument("--keep", type=cli.path_or_none, help="keep this bench.json first")
    parser.add_argument("--kept", type=Path, default=KEPT, help="directory of the kept files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="what to write")
    options = parser.parse_args(arguments)
    if options.keep:
        cli.say(f"kept {keep(options.keep, options.kept)}")
    write_atomically(options.out, document(options.kept).encode())
    cli.say(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
