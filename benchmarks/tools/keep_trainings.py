"""Store the results of trainings as one small file: ``python -m benchmarks.tools.keep_trainings RUN... --output FILE``.

The file combines the runs' ``training.json``: every seed's accuracy after each epoch, means and paired differences over
seeds, and the machines. The table of gains is printed in Markdown, one line per group of trainings.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from stn_export import cli
from stn_export.run.schemas import Mean, ModelComparison, Trainings, read_trainings
from stn_export.run.store import write_out
from stn_export.train.recipes import MODELS


def markdown(found: Sequence[ModelComparison]) -> str:
    """Return a Markdown table, one line per comparison: accuracies in percent, gains in points, 95 % intervals."""
    first, *others = MODELS.values()
    names = [spec.label for spec in (first, *others)] + [f"gain over the {spec.label}, points" for spec in others]
    lines = [f"| data set | seeds | {' | '.join(names)} |", "|---|--:|" + "--:|" * len(names)]
    for one in found:
        counts = sorted({len(those.seeds) for those in one.models.values()})
        cells = [one.title, " to ".join(map(str, counts))]
        cells += [_cell(one.models.get(model), 100, ".1f", " %") for model in MODELS]
        cells += [_cell(one.differences.get(spec.name), 1, "+.1f") for spec in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Mean | None, factor: float, form: str, unit: str = "") -> str:
    if found is None:
        return "–"
    text = format(factor * found.mean, form) + unit
    text += f" ({factor * found.low:.1f} to {factor * found.high:.1f})" if found.count > 1 else ""
    return text.replace("-", "−")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file and print the table."""
    parser = cli.stage(
        "benchmarks.tools.keep_trainings", "Keep the figures of trained runs as one small JSON file, and print them."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    options = parser.parse_args(arguments)

    every = list(map(read_trainings, options.runs))
    kept = Trainings([one for each in every for one in each.runs], [line for each in every for line in each.caveats])
    write_out(options.output, kept.to_bytes())
    for line in kept.caveats:
        cli.say(line, "yellow")
    sys.stdout.write(markdown(kept.runs) + "\n")
    cli.say(f"wrote {options.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
