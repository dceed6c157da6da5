"""Two artifacts, or two runs, against each other: ``python -m stn_export.verify A B`` and ``--against RUN``.

Both sides get the same inputs: random ones by the shapes and types that they declare, and examples where a manifest
says which. Raw pictures go through each side's own contract. An element passes where ``|a - b|`` is no more than the
looser precision's bound for each side (other people's files count as fp32), in units of the largest ``|b|``; whole
numbers must be the same, and int8 is judged over the examples. Whatever cannot be compared is a failure.
"""

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from stn_export import cli
from stn_export.artifacts.environment import describe
from stn_export.artifacts.files import load_arrays
from stn_export.artifacts.manifest import CHECKPOINT, PROGRAM, Artifact, NetworkDirectory, network_directories
from stn_export.cli import launch
from stn_export.comparison.compare import compare_typed
from stn_export.comparison.tolerances import ANY, OUTPUT, TOLERANCES, WARPED, Bound, finite
from stn_export.comparison.words import passed_words
from stn_export.config import DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError, require_choice
from stn_export.limits import LIMITS
from stn_export.program.specs import Arrays, Batch, Contract, by
from stn_export.verify.challenges import challenges
from stn_export.verify.sides import (
    USABLE,
    Side,
    agreed,
    common,
    is_stranger,
    matched,
    open_listed,
    open_side,
    paired,
)

SCHEMA = "stn_export/versus/2"
BATCHES = (1, 2, 7)
SOME = 64
JUDGED = 1000  # examples, over which int8 is judged
COLUMNS = ("inputs", "output", "max abs", "max rel", "agreement", "verdict")

Listed = tuple[NetworkDirectory, Artifact]


@dataclass(frozen=True)
class Row:
    """One output on one set of inputs, in two runs of one artifact; ``reason`` is empty where both sides agree."""

    output: str
    inputs: str
    max_abs: float | None = None
    max_rel: float | None = None
    agreement: float | None = None
    reason: str = ""
    rule: str = ""
    artifact: str = ""
    comparable: bool = True

    @property
    def verdict(self) -> str:
        """In a word."""
        if not self.reason:
            return "equal" if self.rule.startswith("fp32") else "within bounds"
        return "DIFFERENT" if self.comparable else "not comparable"

    def as_dict(self) -> dict:
        """JSON-ready, with the verdict."""
        return finite({"passed": not self.reason} | asdict(self))


def compare_files(left: Path, right: Path, given: Path | None = None, trust: bool = False) -> list[Row]:
    """Compare two files on random inputs and, where a manifest says which, on examples.

    Args:
        left: the file whose outputs are judged; ONNX of any origin, TorchScript or ``.pt2``.
        right: the file that it is judged by.
        given: an ``.npz`` of inputs by name to compare on instead.
        trust: see ``open_side``.

    Raises:
        UserError: where a file cannot be opened, or int8 has no examples.
    """
    if trust and any(map(is_stranger, (left, right))):
        return _apart(left, right, given)
    return _compared(left, right, given, trust)


def _apart(*arguments: Path | None) -> list[Row]:
    """The comparison in a process of its own: PyTorch crashes on some files of strangers, and others take for ever."""
    receiving, sending = Pipe(duplex=False)
    server = get_context("forkserver")
    server.set_forkserver_preload([__name__])
    process = server.Process(target=_tell, args=(sending, *arguments))
    process.start()
    sending.close()
    try:
        if not receiving.poll(LIMITS["comparison"].value):
            raise UserError(f"that takes more than {LIMITS['comparison'].value} seconds", "compare smaller files")
        found = receiving.recv()
        process.join(1)  # it cleans up
    except EOFError as error:
        names = " or ".join(str(path) for path in arguments[:2] if path and is_stranger(path))
        raise UserError(f"PyTorch crashes on {names}", "one of them is damaged") from error
    finally:
        process.kill()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _tell(pipe: Connection, left: Path, right: Path, given: Path | None) -> None:
    launch.end_with_parent(signal.SIGKILL)  # of the server that forked it, which ends with this process
    try:
        pipe.send(_compared(left, right, given, True))
    except Exception as error:
        pipe.send(error)


def _compared(left: Path, right: Path, given: Path | None, trust: bool) -> list[Row]:
    sides = open_side(left, trust), open_side(right, trust)
    examples = next((side.examples for side in sides if side.directory), None)
    if examples is None and _judged(precision_of(*sides)):
        raise UserError(
            "int8 is judged on examples, and no manifest says which", "compare files in their run directory"
        )

    def batches(inputs: Contract) -> dict[str, Batch]:
        if given:
            batch = load_arrays(given)
            inputs.arrays(batch)  # all that it takes is there
            return {given.name: batch}
        found = dict(random_batches(inputs))
        if examples and all(spec.name in examples.inputs for spec in inputs.inputs):
            found |= {f"examples ×{n}": examples.take(n) for n in (SOME, *_judged(precision_of(*sides)))}
        return found

    return compare_sides(*sides, batches)


def compare_sides(left: Side, right: Side, batches: Callable[[Contract], Mapping[str, Batch]]) -> list[Row]:
    """Compare on ``batches`` of the inputs that both can take.

    Where the programs are known to differ, every failure says so.
    """
    fed = agreed(left, right)
    if isinstance(fed, str):
        rows = [Row(output="", inputs="declared", reason=fed, comparable=False)]
    else:
        tried = batches(common(*(side.contract for side in fed))).items()
        rows = [row for name, batch in tried for row in compare_on(*fed, batch, name)]
    if not left.origin or not right.origin or left.origin == right.origin:
        return rows
    note = "; they come from different programs"
    return [replace(row, reason=row.reason + note) if row.reason else row for row in rows]


def _judged(precision: str) -> tuple[int, ...]:
    return (JUDGED,) if math.isinf(bound_of(precision).absolute) else ()


def random_batches(contract: Contract) -> Iterator[tuple[str, Batch]]:
    """A few sizes of something to try both sides with, named by its shapes."""
    for seed, n in enumerate(BATCHES):
        batch = contract.random(n, seed)
        shapes = ", ".join(f"{name} {by(values.shape)}" for name, values in batch.items())
        yield f"random {seed}: {shapes}", batch


def precision_of(left: Side, right: Side) -> str:
    """The looser of the two precisions; files that are not ours count as fp32."""
    names = [require_choice("precision", side.artifact.precision, list(TOLERANCES)) for side in (left, right)]
    return max(names, key=lambda name: TOLERANCES[name].output.absolute)


def bound_of(precision: str, values: np.ndarray | None = None) -> Bound:
    """How far two outputs may lie apart, of which the second gives ``values``; without them in units of the largest.

    Pictures may be warped: they are given as much room as a warped image.
    """
    kind = WARPED if values is not None and values.ndim == 4 else OUTPUT
    scale = 1.0 if values is None or values.dtype.kind != "f" else float(np.abs(values).max(initial=0.0))
    return TOLERANCES[precision].apart(kind, max(scale, float(np.finfo(np.float32).tiny)))


def rule_of(precision: str) -> str:
    """In words, what outputs of a precision must keep to."""
    bound, tolerance = bound_of(precision), TOLERANCES[precision]
    if bound.absolute == ANY.absolute:
        return f"{precision}: {tolerance.agreement:.0%} of the predictions agree on examples ×{JUDGED}"
    return f"{precision}: |a - b| <= {bound.absolute:g} max |b| + {bound.relative:g} |b|"


def compare_on(left: Side, right: Side, batch: Batch, inputs: str) -> Iterator[Row]:
    """Run both on a batch and compare every output; a side that does not run, or gives others, is a failure."""
    precision = precision_of(left, right)
    theirs = {other.name: batch[one.name] for one, other in paired(left.contract, right.contract)}
    a, b = left.run(batch), right.run(theirs)
    if not (left.origin or right.origin) and inputs.startswith("random") and not _usable(b):
        why = b if isinstance(b, str) else "gives numbers that are not finite"
        yield Row(output="", inputs=inputs, reason=f"no valid input found, give --inputs FILE.npz: {why}")
        return
    if failures := [each for each in (a, b) if isinstance(each, str)]:
        yield Row(output="", inputs=inputs, reason="; ".join(failures))
        return
    names = [[spec.name for spec in side.contract.outputs] for side in (left, right)]
    if len(names[0]) != len(names[1]):
        yield Row(output="", inputs=inputs, reason=f"gives {', '.join(names[0])} instead of {', '.join(names[1])}")
    for one, other in matched(*names):
        if one in a and other in b:
            yield compare_output(a[one], b[other], precision, one if one == other else f"{one} / {other}", inputs)


def _usable(found: Arrays | str) -> bool:
    """Whether the side that the other is judged by gives finite numbers."""
    return not isinstance(found, str) and all(
        np.isfinite(each).all() for each in found.values() if each.dtype.kind == "f"
    )


def compare_output(a: np.ndarray, b: np.ndarray, precision: str, name: str, inputs: str) -> Row:
    """One output ``a`` against ``b``, of the same name on the same inputs."""
    tolerance = TOLERANCES[precision]
    result = compare_typed(a, b, bound_of(precision, b))
    reason, agreement = result.reason, result.agreement if a.ndim == 2 and a.shape[1] > 1 else float("nan")
    if not reason and inputs == f"examples ×{JUDGED}" and _judged(precision):
        if math.isnan(agreement):
            off = float(np.sqrt(np.square(a - b).mean() / max(np.square(b).mean(), 1e-30)))
            reason = "" if off <= 2 * tolerance.rms else f"{off:.2%} apart in root mean square"
        elif agreement < tolerance.agreement:
            reason = f"{agreement:.2%} of the predictions agree, less than {tolerance.agreement:.2%}"
    figures = (finite(value) for value in (result.max_abs, result.max_rel, agreement))
    return Row(name, inputs, *figures, reason, rule_of(precision))


def compare_runs(run: Path, other: Path, trust: bool = False) -> list[Row]:
    """Compare every artifact of two runs, network by network, on ``run``'s examples.

    Raises:
        UserError: where either run is missing, or the examples cannot be had.
    """
    ours, theirs = _listed(run), _listed(other)
    batches = {}
    for directory in network_directories(run):
        examples = directory.examples()
        batches[directory.name] = challenges(directory.listed(PROGRAM).contract, examples)
        batches[directory.name][f"examples ×{JUDGED}"] = examples.take(JUDGED)
    rows, names = [], sorted(ours | theirs)
    with cli.progress() as bar:
        for name in bar.track(names, description="compare"):
            missing = next((run for run, each in ((run, ours), (other, theirs)) if name not in each), None)
            if missing:
                found = [Row("", "", reason=f"{missing} has none")]
            else:
                found = _pair(ours[name], theirs[name], batches[ours[name][0].name], trust)
            rows += [replace(row, artifact=name) for row in found]
    return rows


def _listed(run: Path) -> dict[str, Listed]:
    return {
        f"{directory.name}/{artifact.name}": (directory, artifact)
        for directory in network_directories(run)
        for artifact in directory.artifacts.values()
        if artifact.name != CHECKPOINT
    }


def _pair(ours: Listed, theirs: Listed, batches: dict[str, Batch], trust: bool) -> list[Row]:
    """One artifact of two runs; a file that cannot be used is a failure, and the others are still compared."""
    try:
        return compare_sides(open_listed(*ours, trust), open_listed(*theirs, trust), lambda _: batches)
    except UserError as error:
        return [Row("", "", reason=error.message)]


def versus(
    files: Sequence[Path], run: Path | None, against: Path | None, given: Path | None = None, trust: bool = False
) -> None:
    """Compare two files, or a run against another, and print the table or JSON.

    Raises:
        UserError: for one file or more than two, for files and runs together, or where one cannot be used.
        CheckFailedError: where anything differs, or nothing was compared.
    """
    if files and (run or against):
        raise UserError("two files and two runs cannot be compared at once", "leave out --run and --against")
    if files and len(files) != 2:
        raise UserError(f"{len(files)} file{'s' * (len(files) > 1)} cannot be compared", USABLE)
    run = run or DEFAULT_RUN
    rows = compare_files(*files, given, trust) if files else compare_runs(run, against, trust)
    sides = [str(each) for each in files or (run, against)]
    failures = [row for row in rows if row.reason]
    if cli.OUTPUT.form == "json":
        content = {"passed": bool(rows) and not failures, "sides": sides, "rows": [row.as_dict() for row in rows]}
        cli.print_json({"schema": SCHEMA} | content | {"environment": describe()})
    else:
        show(sides, rows)
    cli.card([("verified", passed_words(len(rows) - len(failures), len(rows)))])
    if rows and not any(row.comparable for row in rows):
        raise UserError(f"not comparable: {rows[0].reason}", USABLE)
    if failures or not rows:
        told = [row for row in in_short(rows) if row.reason]
        lines = [": ".join(filter(None, (row.artifact, row.inputs, row.output, row.reason))) for row in told]
        raise CheckFailedError(f"{len(failures)} of {len(rows)} comparisons", *lines)


def in_short(rows: Sequence[Row]) -> Sequence[Row]:
    """Every row of two files; of two runs the worst for each artifact."""
    worst = {row.artifact: row for row in sorted(rows, key=lambda row: (bool(row.reason), row.max_abs or 0.0))}
    return [worst[name] for name in sorted(worst)] if all(worst) else rows


def show(sides: Sequence[str], rows: Sequence[Row]) -> None:
    """The table of ``in_short``, and below it what the outputs had to keep to."""
    shown = in_short(rows)
    first = ("artifact",) if any(row.artifact for row in rows) else ()
    lines = [
        (
            *((row.artifact,) if first else ()),
            row.inputs or "–",
            row.output or "–",
            cli.figure(row.max_abs, ".1e"),
            cli.figure(row.max_rel, ".1e"),
            cli.figure(row.agreement, ".2%"),
            cli.styled(row.verdict, "red" if row.reason else "green"),
        )
        for row in shown
    ]
    cli.table(
        f"{sides[0]} (a) against {sides[1]} (b)",
        (*first, *COLUMNS),
        lines,
        ("max rel", "agreement", "inputs"),
    )
    for rule in sorted({row.rule for row in rows if row.rule}):
        cli.say(rule, "dim")
