"""Write `benchmarks/RESULTS.md` from stored files: `python -m benchmarks.tools.results_page` (`make bench-results`).

With `--keep bench.json`, a run's file is shrunk and stored first; do this on the machine that was timed, since a CPU's
peak rates are measured along with it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.tools import proof
from benchmarks.tools.kept import KEPT, PROOF_PREFIX, PROOF_SCHEMA, device_of, keep
from benchmarks.tools.peak_share import known_rate, peak_share
from benchmarks.tools.proof import PROOF
from stn_export import cli
from stn_export.bench.session import contests
from stn_export.results import laws
from stn_export.results.card import included
from stn_export.results.choice import (
    CONTRADICTED,
    DISTURBED,
    LEGEND,
    Marks,
    Program,
    choices,
    choose,
    headline,
    program,
    steps,
    time_of,
    time_source,
)
from stn_export.results.statistics import METHOD
from stn_export.results.text import significant, span
from stn_export.run.manifest import SUBJECT
from stn_export.run.records import Timing, timings
from stn_export.run.schemas import Result, read_bench
from stn_export.run.store import read_json, write_out

RESULTS = KEPT.parent / "RESULTS.md"
OPENING = f"""# Results

Made by `make bench-results` from the files in `results/`; do not edit.
Times are medians; ratios are from paired comparisons in interleaved blocks; brackets contain 95 % intervals.
A ratio below 1 means faster than the baseline. "Same": the whole interval lies within 1 ± {METHOD.same:.0%}.
{DISTURBED}: {LEGEND[DISTURBED]}.
{CONTRADICTED}: {LEGEND[CONTRADICTED]}.
"""
UNITS = {"s": 1.0, "ms": 1e3, "µs": 1e6}
PEAK_NOTE = (
    "FLOPs are two a multiply-add of convolutions, matrix products and samplers, as the network states them; done are "
    "those that the timed file really does, known of our own C only, whose convolutions need fewer multiplications. "
    "Bytes are weights, input and output once each; behind the slash what every operator reads and writes, with all "
    "activations between. Launches: operators that compute in eager PyTorch. The share of the peak is of the FLOPs "
    "done, or, where these are not known and no more than the peak, of those stated."
)


def seconds(value: float) -> str:
    """Format a time with three digits in a suitable unit."""
    unit, scale = next((pair for pair in UNITS.items() if value * pair[1] >= 1), ("ns", 1e9))
    return f"{value * scale:.3g} {unit}"


def seconds_span(low: float, high: float) -> str:
    """Format an interval of times in one unit, with enough digits to distinguish its ends."""
    unit, scale = next((pair for pair in UNITS.items() if low * pair[1] >= 1), ("ns", 1e9))
    ends = span(low * scale, high * scale)
    return ends if ends.startswith("±") else f"{ends} {unit}"


def name_of(row: Timing) -> str:
    """Return runner and artifact."""
    return f"{row.runner} {row.artifact}"


def ratio_of(row: Timing) -> str:
    """Format the ratio of a paired comparison with its interval."""
    return f"{significant(row.ratio)} ({span(row.ratio_low, row.ratio_high)})"


def headlines(content: dict, rows: list[Timing]) -> list[str]:
    """Name the verified file to deploy on each device, for one example and for many."""
    lines, marks = [], Marks(rows)
    for device in sorted({row.device for row in rows}):
        ours = [row for row in proved_steps(content, rows) if (row.device, row.role) == (device, SUBJECT)]
        chosen = choices(ours, content["portability"])
        if chosen is None:
            lines.append(f"- On {device} nothing is named the fastest: no row of one example was proved equal.")
            continue
        single, many = (headline(rows, choice.row) for choice in chosen)
        latency = f"{seconds(single.p50)} ({seconds_span(single.p50_low, single.p50_high)}){marks.of(single)}"
        rate = f"{many.examples_per_second:,.0f} examples/s{marks.of(many)} at batch {many.batch}"
        lines.append(f"- For latency: {name_of(single)}, {latency} for one example{included(single)}.")
        lines.append(f"- For throughput: {name_of(many)}, {rate}{included(many)}.")
    return [*lines, ""]


def proved_steps(content: dict, rows: list[Timing]) -> list[Timing]:
    """Return the timed rows of programs that were verified when the file was stored, one per program and batch."""
    proved: set[Program] = set(map(tuple, content["proved"]))
    return [row for row in steps(rows) if program(row) in proved]


def contest_tables(rows: list[Timing]) -> list[str]:
    """Write one table per kind of paired comparison, the fastest of our files first."""
    lines, marks = [], Marks(rows)
    for title, chosen in contests(rows):
        chosen.sort(key=lambda row: (row.batch, time_of(row, rows)))
        columns = ("ours", "batch", "time", "ratio", "verdict", "disturbed blocks")
        lines += [f"### {title}", "", *cli.markdown_table(columns, (contest_line(row, rows, marks) for row in chosen))]
    return lines


def contest_line(row: Timing, rows: list[Timing], marks: Marks) -> tuple[str, ...]:
    """Write one paired comparison, with marks on figures that are not reliable."""
    return (
        name_of(row),
        str(row.batch),
        seconds(time_of(row, rows)) + marks.of(time_source(row, rows)),
        ratio_of(row) + marks.of(row),
        row.verdict,
        f"{row.disturbed_blocks} of {row.blocks}",
    )


def peak_table(content: dict, rows: list[Timing]) -> list[str]:
    """Write the work and the share of the peak beside the fastest verified time of every network and batch."""
    if not content.get("peak"):
        return ["Peak rates of this device are not known, so there is no share of them.", ""]
    groups: dict[tuple[str, int], list[Timing]] = {}
    for row in sorted(proved_steps(content, rows), key=lambda row: row.role != SUBJECT):
        groups.setdefault((row.network, row.batch), []).append(row)
    marks = Marks(rows)
    lines = [
        peak_line(content["work"][network][str(batch)], content["peak"], choose(timed, {}).fastest, marks)
        for (network, batch), timed in groups.items()
    ]
    columns = "network", "batch", "FLOPs", "done", "bytes", "launches", "fastest", "by", "GFLOP/s", "share of the peak"
    return ["### Share of the peak", "", *cli.markdown_table(columns, lines), f"{peak_words(content)} {PEAK_NOTE}", ""]


def peak_words(content: Mapping) -> str:
    """Describe the device's peak rates and their source, by vector width if each was measured."""
    peak = content["peak"]
    rate, memory = known_rate(peak, "fp32"), f"{peak['bytes'] / 1e9:,.1f} GB/s"
    if rate is None:
        return f"Peak: {memory}, of the arithmetic unknown ({peak['source']}; no loop of fused multiply-adds was run)."
    by_width = ", ".join(f"{each / 1e9:,.0f} at {width} bits" for width, each in peak.get("widths", {}).items())
    said = f"{rate / 1e9:,.0f} GFLOP/s in float32" + (f" ({by_width})" if by_width else "")
    return f"Peak: {said}, {memory} ({peak['source']})."


def peak_line(work: dict, peak: dict, best: Timing, marks: Marks) -> tuple[str, ...]:
    """Write one network at one batch size."""
    found = peak_share(work, peak, best)
    nominal = " of those stated" if found.done is None else ""
    unknown = "unknown" if known_rate(peak, "fp32") is None else cli.NONE
    return (
        best.label,
        str(best.batch),
        f"{work['flops'] / 1e6:,.1f} M",
        cli.NONE if found.done is None else f"{found.done / 1e6:,.1f} M",
        f"{work['bytes_fused'] / 2**20:,.2f} / {work['bytes_unfused'] / 2**20:,.2f} MiB",
        str(work["launches"]),
        seconds(best.p50) + marks.of(best),
        name_of(best),
        f"{found.rate / 1e9:,.1f}{marks.of(best)}",
        unknown if found.share is None else f"{found.share:.1%}{nominal}{marks.of(best)}",
    )


def proof_lines(content: dict) -> list[str]:
    """Write every trial of a validation, and the criteria."""
    return [
        f"{content['datetime'][:10]}, grid {content['grid']}. A/A: an artifact against itself, the interval must hold "
        f"1 at least {PROOF.holding} times in {PROOF.trials}; no verdict may be wrong by more than {METHOD.same:.0%}. "
        f"Planted: one side is slowed; never to be called faster, always to be found from {PROOF.certain:.0%} on.",
        "",
        *cli.markdown_table(proof.COLUMNS, map(proof.table_row, content["trials"])),
    ]


def machine_line(content: dict) -> str:
    """Describe the machine, the versions and the date."""
    environment = content["machine_info"]["stn_export"]
    device = environment["gpu"] if device_of(content) == "cuda" else environment["cpu"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in sorted(environment["versions"]))
    sets = environment.get("instruction_sets", []) if device_of(content) == "cpu" else []
    device += f" ({', '.join(sets)})" if sets else ""
    return (
        f"{device}, {environment['threads']} thread(s), {content['datetime'][:10]}, commit "
        f"{environment['git_commit']}. {versions}."
    )


def document(directory: Path) -> str:
    """Return RESULTS.md: a chapter per benchmark file, then the validations.

    Raises:
        UserError: if a file cannot be read, or its figures cannot be right.
    """
    lines = [OPENING]
    kept = sorted(directory.glob("*.json"))
    for path in [path for path in kept if b'"benchmarks"' in path.read_bytes()]:
        content = {"proved": [], "portability": {}} | read_bench(path, Result)
        laws.require(content, path)
        rows = timings(content)
        lines += [f"## {path.stem}", "", machine_line(content), "", *headlines(content, rows)]
        lines += contest_tables(rows) + peak_table(content, rows)
    for path in [path for path in kept if path.name.startswith(PROOF_PREFIX)]:
        lines += [f"## Validation of the method: {path.stem}", "", *proof_lines(read_json(path, PROOF_SCHEMA))]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Store a run's file if one is named, then write RESULTS.md."""
    parser = cli.stage("benchmarks.tools.results_page", "Write RESULTS.md from the kept results.")
    parser.add_argument("--keep", type=cli.path_or_none, help="keep this bench.json first")
    parser.add_argument("--kept", type=Path, default=KEPT, help="directory of the kept files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="what to write")
    options = parser.parse_args(arguments)
    if options.keep:
        cli.say(f"kept {keep(options.keep, options.kept)}")
    write_out(options.out, document(options.kept).encode())
    cli.say(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
