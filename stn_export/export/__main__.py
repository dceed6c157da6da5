"""Write the export matrix of a run's networks: ``python -m stn_export.export``; ``--list`` shows it.

Everything is made from the captured program: ONNX by the dynamo exporter, TorchScript by compiling its graph. What a
file was made from stands in the manifest and inside the file; a row that a network cannot have is refused, with why.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from stn_export import cli
from stn_export.artifacts.manifest import CHECKPOINT, MODEL_CARD, PROGRAM, Artifact, network_directories
from stn_export.config import DEFAULT_RUN
from stn_export.errors import UserError, require_choice
from stn_export.export import matrix, modelcard, triton
from stn_export.export.rows import EXPORTS, ExportSpec, with_variants
from stn_export.export.source import Source
from stn_export.export.writing import write


def chosen_exports(source: Source, names: Sequence[str]) -> list[ExportSpec]:
    """The named rows of the network's matrix, else its default ones and all that was asked for before."""
    if names:
        return [spec for spec in source.rows if spec.name in names]
    chosen = [spec for spec in source.rows if spec.default]
    before = []
    for name, artifact in source.directory.artifacts.items():
        if name in (PROGRAM, CHECKPOINT):
            continue
        if spec := ExportSpec.of(artifact):
            before.append(spec)
        else:
            source.directory.forget(name)
            cli.say(f"{source.directory.name}/{name}: no row of the matrix any more, listed no longer")
    names = {spec.name for spec in chosen}
    return chosen + [spec for spec in before if spec.name not in names]


@dataclass
class Outcome:
    """What became of the chosen rows of one network: a table's lines, what is there now, and what is refused."""

    lines: list[tuple[str, ...]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def export(source: Source, specs: Sequence[ExportSpec]) -> Outcome:
    """Write what is not up to date, and keep in the manifest what is there and what is refused."""
    outcome = Outcome()
    for spec in specs:
        if source.directory.holds(spec.name, source.parent.sha256, source.settings(spec)):
            found, state = source.directory.artifacts[spec.name], "up to date"
        else:
            found = write(source, spec)
            state = (
                cli.escape(f"refused: {found}")
                if isinstance(found, str)
                else f"exported in {found.details['seconds']} s"
            )
        if isinstance(found, str):
            source.directory.forget(spec.name)
            outcome.refused[spec.name] = found
        else:
            outcome.written.append(spec.name)
        outcome.lines.append(_line(source, spec, found, state))
    return outcome


def _line(source: Source, spec: ExportSpec, found: Artifact | str, state: str) -> tuple[str, ...]:
    name = f"{source.directory.name}/{spec.name}"
    if isinstance(found, str):
        return name, spec.format, *[matrix.NONE] * 3, state
    return name, spec.format, str(found.opset or matrix.NONE), *matrix.sizes(found), state


def _plan(source: Source, outcome: Outcome, partly: bool) -> None:
    """Keep what is planned: of a call for some rows only, beside what was."""
    before = source.directory.read()
    rows = [name for name in (before.rows if partly else ()) if name not in outcome.refused]
    refused = {name: why for name, why in (before.refused if partly else {}).items() if name not in outcome.written}
    planned = tuple(dict.fromkeys([*rows, *outcome.written]))
    if (planned, refused | outcome.refused) != (before.rows, before.refused):
        source.directory.plan(planned, refused | outcome.refused)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export every network of a run, leaving alone what is up to date."""
    parser = cli.stage("export", "Export a run's networks: ONNX, TorchScript, AOTInductor.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {DEFAULT_RUN}")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these rows, also those that are not default")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="also write the chosen ONNX rows with a batch of N, fixed"
    )
    parser.add_argument(
        "--optimise", action="store_true", help="also write the chosen ONNX rows optimised ahead of time"
    )
    parser.add_argument("--triton", type=cli.path_or_none, metavar="DIR", help="write a Triton model repository there")
    parser.add_argument("--list", action="store_true", help="show the matrix and what of it is there")
    options = parser.parse_args(arguments)
    run = options.run or DEFAULT_RUN
    directories = network_directories(run)
    if options.list:
        sources = [Source(directory) for directory in directories]
        cli.table(
            f"Export matrix of {run}", matrix.COLUMNS, [row for each in sources for row in matrix.rows(each, run)]
        )
        for line in [line for source in sources for line in matrix.refusals(source)]:
            cli.say(cli.escape(line))
        return
    names = [require_choice("export", name, [spec.name for spec in EXPORTS]) for name in options.only or []]
    for directory in directories:  # a stale program is no reason to refuse its rows one by one
        directory.open(directory.listed(PROGRAM))
    outcomes = []
    for source in map(Source, directories):  # one network in memory at a time
        specs = with_variants(chosen_exports(source, names), options.batch, options.optimise)
        outcomes.append(export(source, specs))
        _plan(source, outcomes[-1], partly=bool(names))
    columns = ("artifact", "format", "opset", "KiB", "nodes", "state")
    cli.table("Exports", columns, [line for outcome in outcomes for line in outcome.lines])
    _check(outcomes, names)
    if modelcard.write_model_card(run):
        cli.say(f"wrote {run / MODEL_CARD}")
    if options.triton:
        cli.say(f"{options.triton} serves {', '.join(triton.write_repository(run, options.triton))}")


def _check(outcomes: Sequence[Outcome], names: Sequence[str]) -> None:
    """Refuse what leaves nothing to go on with, and to do less than was asked for by name."""
    if not any(outcome.lines for outcome in outcomes):
        raise UserError(f"no network of this run takes {', '.join(names)}", "python -m stn_export.export --list")
    refused = {name: why for outcome in outcomes for name, why in outcome.refused.items()}
    wanted = [name for name in refused if names or not any(outcome.written for outcome in outcomes)]
    if wanted:
        raise UserError(f"{wanted[0]} cannot be written: {refused[wanted[0]]}", "python -m stn_export.export --list")


if __name__ == "__main__":
    sys.exit(cli.run(main))
