"""Write the export matrix of a run's networks: ``stn-export export``; ``--list`` shows it.

Every file is made from the captured program: ONNX by the dynamo exporter, TorchScript by compiling its graph. The
manifest and the file itself record what it was made from. A row that a network cannot have is listed with the reason.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.progress import TaskID

from stn_export import cli
from stn_export.cli import NONE
from stn_export.cli.progress_bar import Progress
from stn_export.config import DEFAULT_RUN
from stn_export.errors import UserError, require_choice, typed
from stn_export.export import triton, writing
from stn_export.export.destinations import DESTINATIONS, RULES, Choice, choose
from stn_export.export.registry import read_once
from stn_export.export.rows import EXPORTS, ExportSpec, Source, with_variants
from stn_export.export.writing import unavailable, write
from stn_export.onnx_graph.saturation import saturation_of
from stn_export.results.card import close
from stn_export.run.environment import collecting_seldom
from stn_export.run.manifest import (
    CHECKPOINT,
    MODEL_CARD,
    PROGRAM,
    Artifact,
    NetworkDirectory,
    is_oversized,
    network_directories,
    size_words,
    trust_run,
)
from stn_export.run.schemas import Current, read_verified
from stn_export.run.store import alone
from stn_export.runners.external.environments import OWN, asked_for, runtimes_here

# The export matrix as a table.


KIND = ("artifact", "format", "lowering", "precision", "input")
COLUMNS = (*KIND, "exported", "verified", "KiB", "nodes", "CUDA graph", "note")
DROP = ("CUDA graph", "nodes", "input", "format", "lowering", "precision", "KiB", "note")


def matrix_rows(source: Source, run: Path) -> Iterator[tuple[str, ...]]:
    """Yield table rows for a network's program and for each of its export variants, whether written or not."""
    verdicts, content = read_verdicts(run), source.directory.read()
    yield _row(source, (PROGRAM, source.parent.format, NONE, "fp32", "float"), source.parent, verdicts, "")
    for spec in source.rows:
        kind = spec.name, spec.format, spec.lowering or NONE, spec.precision, spec.contract
        on_request = "" if spec.default else f"on request: --only {spec.name}"
        note = "refused" if content.refused.get(spec.name) or unavailable(spec) else on_request
        yield _row(source, kind, content.artifacts.get(spec.name), verdicts, note)


def refusals(source: Source) -> Iterator[str]:
    """Yield a line with the reason for each export variant that the network cannot have, or not on this machine."""
    refused = source.directory.read().refused
    for spec in source.rows:
        if why := refused.get(spec.name) or unavailable(spec):
            yield f"{source.directory.name}/{spec.name}: refused: {why}"


def _row(
    source: Source, kind: tuple[str, ...], artifact: Artifact | None, verdicts: dict[str, str], note: str
) -> tuple[str, ...]:
    name, *others = kind
    verified = verdicts.get(artifact.sha256, NONE) if artifact else NONE
    exported = _exported(artifact, source.parent)
    return f"{source.directory.name}/{name}", *others, exported, verified, *sizes(artifact), cuda_graph(artifact), note


def read_verdicts(run: Path) -> dict[str, str]:
    """Return ``yes`` or ``FAILED`` by the sha256 of each artifact checked on the current examples.

    One failed check is enough for ``FAILED``.
    """
    verdicts: dict[str, str] = {}
    verified = read_verified(run)
    for check in filter(Current.of(network_directories(run)).holds, verified.checks if verified else ()):
        if not check.passed or check.sha256 not in verdicts:
            verdicts[check.sha256] = "yes" if check.passed else "FAILED"
    return verdicts


def _exported(artifact: Artifact | None, program: Artifact) -> str:
    if artifact is None:
        return NONE
    return "yes" if artifact is program or artifact.parent_sha256 == program.sha256 else "stale"


def cuda_graph(artifact: Artifact | None) -> str:
    """Return whether ONNX Runtime could capture the file as a CUDA graph; ``cli.NONE`` for files that are not ONNX."""
    placement = artifact.details.get("cuda") if artifact else None
    if not placement:
        return NONE
    return ("yes" if placement["graph"] else "no") + (" (predicted)" if placement["predicted"] else "")


def sizes(artifact: Artifact | None) -> tuple[str, str]:
    """Return the size in KiB and the node count, before and after optimisation if they differ, for a table."""
    if artifact is None:
        return NONE, NONE
    operators = artifact.details.get("operators")
    nodes = sum(operators.values()) if operators else 0
    before = artifact.details.get("nodes_before", nodes)
    text = f"{before} → {nodes}" if before != nodes else str(nodes or NONE)
    return f"{artifact.details['bytes'] / 1024:.0f}", text


Found = dict[str, Artifact | str]  # by row, its artifact or the reason why there is none

EVERYTHING = "everything"


def chosen_exports(source: Source, names: Sequence[str]) -> list[ExportSpec]:
    """Return the named rows of a network's matrix, by default those written without request or exported before.

    By default that is every default row, those of the external runtimes that are installed, and those already in the
    manifest; an artifact that no row describes any more is dropped from the manifest.
    """
    if names:
        return [spec for spec in source.rows if spec.name in names]
    asked = runtimes_here()
    chosen = [spec for spec in source.rows if spec.default or spec.format in asked]
    before = []
    for name, artifact in source.directory.artifacts.items():
        if name in (PROGRAM, CHECKPOINT):
            continue
        if spec := ExportSpec.of(artifact):
            before.append(spec)
        else:
            source.directory.forget(name)
            cli.say(f"{source.directory.name}/{name}: no longer a row of the matrix; removed from the manifest")
    there = {spec.name for spec in chosen}
    return chosen + [spec for spec in before if spec.name not in there]


def export(
    source: Source, specs: Sequence[ExportSpec], done: Callable[[str], None] = lambda _: None
) -> tuple[Found, list[tuple[str, ...]]]:
    """Write the artifacts that are not up to date; return each row's artifact or reason, and the lines of a table.

    ``done`` is called with the name of each file that was written.
    """
    outcomes, lines = {}, []
    for spec in specs:
        fresh = is_fresh(source, spec)
        onnx_int8 = (spec.format, spec.precision) == ("onnx", "int8")
        if fresh and onnx_int8 and (why := saturation_of(source.directory.path / spec.file)):
            cli.say(f"{source.directory.name}/{spec.name}: {why}: made anew")
            fresh = False
        outcome = outcomes[spec.name] = source.directory.artifacts[spec.name] if fresh else write(source, spec)
        kind = f"{source.directory.name}/{spec.name}", spec.format
        if isinstance(outcome, str):
            source.directory.forget(spec.name)
            lines.append((*kind, *[NONE] * 3, f"refused: {outcome}"))
        else:
            state = "up to date" if fresh else f"exported in {outcome.details['seconds']} s"
            lines.append((*kind, str(outcome.opset or NONE), *sizes(outcome), state))
        if not fresh:
            done(f"{source.directory.name}/{spec.name}")
    return outcomes, lines


def is_fresh(source: Source, spec: ExportSpec) -> bool:
    """Return whether the row's file is there and made from today's program and settings."""
    return source.directory.holds(spec.name, source.parent.sha256, source.settings(spec))


def _plan(directory: NetworkDirectory, outcomes: Found, partly: bool) -> None:
    """Record the planned and the rejected rows in the manifest; with ``partly``, keep the records of other rows."""
    before = directory.read()
    reasons = dict.fromkeys(before.rows, "") | before.refused if partly else {}
    reasons |= {name: outcome if isinstance(outcome, str) else "" for name, outcome in outcomes.items()}
    rows, refused = (
        tuple(name for name in reasons if not reasons[name]),
        {name: why for name, why in reasons.items() if why},
    )
    if (rows, refused) != (before.rows, before.refused):
        directory.plan(rows, refused)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export every network of a run, except for artifacts that are up to date."""
    options = cli.parse("export", arguments)
    run = options.run or DEFAULT_RUN
    if options.list:
        _list(run)
        return
    with alone(run, options.wait), asked_for(options.runtimes), collecting_seldom():
        _export(run, options)
        close(run, "export")


def _list(run: Path) -> None:
    sources = [Source(directory) for directory in network_directories(run)]
    rows = [row for source in sources for row in matrix_rows(source, run)]
    cli.table(f"Export matrix of {run}", COLUMNS, rows, DROP)
    for line in [line for source in sources for line in refusals(source)]:
        cli.say(line)


def _export(run: Path, options: Namespace) -> None:
    if options.trust:
        trust_run(run)
    directories = network_directories(run)
    names = [require_choice("export", name, [spec.name for spec in EXPORTS]) for name in options.only or []]
    for directory in directories:  # fail once for a stale program, not for every row
        directory.open(directory.listed(PROGRAM))
    chosen = list(dict.fromkeys(options.destinations))
    if EVERYTHING in chosen:
        asked = runtimes_here()
        chosen = [name for name in DESTINATIONS if name not in OWN or name in asked]
    choices = [choose(name) for name in chosen]
    outcomes: list[Found] = []
    lines: list[tuple[str, ...]] = []
    planned: list[tuple[NetworkDirectory, list[ExportSpec]]] = []
    for source in map(Source, directories):
        specs = _for(source, choices) if choices else chosen_exports(source, names)
        planned.append((source.directory, with_variants(specs, options.batch, options.optimise)))
    with read_once() if _asks_for_onnx(planned) else nullcontext():
        for outcome, rows_written in _written(planned):
            _plan(planned[len(outcomes)][0], outcome, partly=bool(names or choices))
            outcomes.append(outcome)
            lines += rows_written
    columns = ("artifact", "format", "opset", "KiB", "nodes", "state")
    cli.table("Exports", columns, lines, ("nodes", "opset", "format"))
    _check(run, outcomes, names, chosen)
    for choice in choices:
        cli.say(f"{choice.destination}: {choice.what}, {choice.sizes}: {choice.why}")
    if writing.write_model_card(run):
        cli.say(f"wrote {run / MODEL_CARD}")
    if options.triton:
        cli.say(f"{options.triton} serves {', '.join(triton.write_repository(run, options.triton))}")


def _asks_for_onnx(planned: Sequence[tuple[NetworkDirectory, Sequence[ExportSpec]]]) -> bool:
    """Return whether an ONNX file is to be written, for which PyTorch's exporter is imported."""
    return any(
        spec.format == "onnx" and not is_fresh(Source(directory), spec)
        for directory, specs in planned
        for spec in specs
    )


def _written(
    planned: Sequence[tuple[NetworkDirectory, Sequence[ExportSpec]]],
) -> Iterator[tuple[Found, list[tuple[str, ...]]]]:
    """Write the files of each network, with a progress bar; yield what ``export`` returns."""
    counts = [sum(not is_fresh(Source(directory), spec) for spec in specs) for directory, specs in planned]
    work = [(directory.facts.multiply_adds, count) for (directory, _), count in zip(planned, counts, strict=True)]
    with cli.progress(word="export", unit="files") as bar:
        bar.announce(sum(counts), cli.Paces.read().expected("export", work))
        task = bar.add_task("export", total=sum(counts))
        try:
            for (directory, specs), size_and_count in zip(
                planned, work, strict=True
            ):  # one network in memory at a time
                with cli.measured("export", *size_and_count):
                    written = export(Source(directory), specs, partial(_advance, bar, task))
                yield written
        except KeyboardInterrupt:
            kept = f"{bar.tasks[0].completed:.0f} of {sum(counts)} files written; the same command goes on"
            raise KeyboardInterrupt(kept) from None


def _advance(bar: Progress, task: TaskID, name: str) -> None:
    """Count a file that was written."""
    bar.update(task, advance=1, description=name)


def _for(source: Source, choices: Sequence[Choice]) -> list[ExportSpec]:
    """Return the rows for some destinations; destinations that want the same row share it."""
    rows = []
    for choice in choices:
        if choice.lowering is None:
            rows.append(ExportSpec(choice.destination, None, default=False, batch=choice.batch))
        else:
            lowering = _weighed(source, choice, choice.lowering) if source.facts.sites else "plain"
            rows.append(ExportSpec("onnx", lowering, batch=choice.batch))
    return list(dict.fromkeys(rows))


def _weighed(source: Source, choice: Choice, lowering: str) -> str:
    """Return a rule's lowering, or the one to take instead where its file is known to be oversized, and say so."""
    sizes = source.directory.lowering_sizes
    if (
        choice.destination not in RULES
        or lowering not in sizes
        or not is_oversized(sizes[lowering], min(sizes.values()))
    ):
        return lowering
    instead = next(iter(sizes))
    cli.say(f"{source.directory.name} for {choice.destination}: {instead}, as {size_words(sizes)}")
    return instead


def _check(run: Path, outcomes: Sequence[Found], rows: Sequence[str], destinations: Sequence[str]) -> None:
    """Print which of the rows asked for were not written.

    Raises:
        UserError: if none was written.
    """
    if not any(outcomes):
        asked = ", ".join([*rows, *destinations])
        raise UserError(f"no network of this run takes {asked}", f"stn-export export --list --run {typed(run)}")
    rows_and_outcomes = [row for outcome in outcomes for row in outcome.items()]
    refused = [(name, why) for name, why in rows_and_outcomes if isinstance(why, str)]
    if len(refused) == len(rows_and_outcomes):
        name, why = refused[0]
        raise UserError(f"{name} cannot be written: {why}", f"stn-export export --list --run {typed(run)}")
    if rows or destinations:
        for name, why in dict(refused).items():
            cli.say(f"{name} cannot be written: {why}; the others are")
        for name in [name for name in rows if name not in dict(rows_and_outcomes)]:
            cli.say(f"no network of this run takes {name}; the others are written")


if __name__ == "__main__":
    sys.exit(cli.run(main))
