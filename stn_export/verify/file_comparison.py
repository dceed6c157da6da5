"""Compare two artifacts, or two runs: ``python -m stn_export.verify A B`` and ``--against RUN``.

Both sides get the same inputs: random ones of the shapes and dtypes that they declare (floats of several ranges,
integers over the whole range that runs), and examples if a manifest names them. Raw images go through each side's own
contract.

An element passes if ``|a - b|`` is at most the bound of the looser precision for each side (a file that no manifest of
the user lists counts as fp32), in units of the largest ``|b|`` of its channel, see ``bounds``. Integers must be equal,
values that are not finite must be so at the same places, and int8 is judged over the examples. An output that could be
compared on no input is not comparable.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter

import numpy as np

from stn_export import cli
from stn_export.cli.apart import BeyondLimitError, apart
from stn_export.config import DEFAULT_RUN
from stn_export.errors import CheckFailedError, UserError, require_choice
from stn_export.limits import LIMITS
from stn_export.program.specs import OPEN_SIZE, Arrays, Batch, Contract, by
from stn_export.results.text import passed_words
from stn_export.results.tolerances import NOTHING, OUTPUT, TOLERANCES, compare_typed
from stn_export.run.environment import describe
from stn_export.run.manifest import CHECKPOINT, PROGRAM, Artifact, NetworkDirectory, network_directories
from stn_export.run.store import load_arrays_as_tensors
from stn_export.verify.bounds import (
    DRAWS,
    FURTHER,
    JUDGED,
    SAYS_NOTHING,
    Allowance,
    Asked,
    Row,
    allowance,
    compare_output,
    movement,
    quiet,
    rounded,
    settled,
)
from stn_export.verify.challenges import challenges, noise_of, other_sizes, sizes_of
from stn_export.verify.foreign_files import (
    FURTHER_SPANS,
    NEAR,
    SPANS,
    USABLE,
    Side,
    Span,
    agreed,
    common,
    covering,
    matched,
    open_listed,
    open_side,
    paired,
    random_batches,
    shapes_of,
    span_of,
    spiked,
    whole_inputs,
)

SCHEMA = "stn_export/versus/3"
SOME = 64
MOST_NUMBERS = 2**22  # in the outputs for one example: an integer input may be a size
NEITHER = "neither runs"
REFUSED = f"{NEITHER} at this size"
SPARE = 10.0  # seconds that further rows may take even if the usual ones took less
AGAIN = 1.0  # times the usual rows' time that further rows may take
FAR_SIZES = (2 * OPEN_SIZE, OPEN_SIZE // 2)  # tried if neither file runs at another size
CONSTANT = "an output that the inputs' values do not reach is the same constant in both"
ASKED = Asked()
COLUMNS = ("inputs", "output", "max abs", "allowed", "max rel", "agreement", "verdict")

Listed = tuple[NetworkDirectory, Artifact]


def compare_files(
    left: Path, right: Path, inputs_file: Path | None = None, trust: bool = False, asked: Asked = ASKED
) -> list[Row]:
    """Compare two files in a separate process, on random inputs and, if a manifest names them, on examples.

    Args:
        left: the file under test; ONNX of any origin, TorchScript or ``.pt2``.
        right: the reference file.
        inputs_file: an ``.npz`` of inputs by name to compare on instead.
        trust: see ``open_side``.
        asked: bounds instead of those that follow from the manifests.

    Raises:
        UserError: if a file cannot be opened, int8 has no examples, or the comparison exceeds its limits.
    """
    place = f"{__name__}:compare_here"
    try:
        return apart(place, left, right, inputs_file, trust, asked, seconds=LIMITS["comparison"].value)
    except BeyondLimitError as error:
        raise UserError(f"comparing {left} with {right}: {error.message}", error.hint) from error


def compare_here(left: Path, right: Path, inputs_file: Path | None, trust: bool, asked: Asked) -> list[Row]:
    """Compare two files in this process, which another one limits: some files crash PyTorch or never finish."""
    sides = open_side(left, trust), open_side(right, trust)
    precision = precision_of(*sides, asked)
    examples = next((side.examples for side in sides if side.directory), None)
    if examples is None and _judged(precision) and not asked.bound:
        raise UserError(
            "int8 files are judged on examples, and no manifest names them", "compare files in their run directory"
        )

    def batches(inputs: Contract) -> dict[str, Batch]:
        if inputs_file:
            batch = load_arrays_as_tensors(inputs_file)
            inputs.arrays(batch)  # raises if an input is missing
            return {inputs_file.name: batch}
        batches = dict(random_batches(inputs, SPANS if precision == "fp32" else SPANS[:NEAR]))
        if examples and all(spec.name in examples.inputs for spec in inputs.inputs):
            batches |= {f"examples ×{n}": examples.take(n) for n in (SOME, *_judged(precision))}
        return batches

    rows = compare_sides(*sides, batches, asked, ranges=not inputs_file)
    if inputs_file and any(row.comparable for row in rows):
        rows += _only(_inputs(*sides), batches(_inputs(*sides)).values(), inputs_file.name, ", as --inputs gives it")
    notes = "" if asked.precision or asked.bound else "; ".join(assumptions(sides))
    return [replace(row, rule=f"{row.rule}; {notes}") if notes and row.rule else row for row in rows]


def compare_sides(
    left: Side,
    right: Side,
    batches: Callable[[Contract], Mapping[str, Batch]],
    asked: Asked = ASKED,
    ranges: bool = False,
) -> list[Row]:
    """Compare two sides on ``batches`` of the inputs that both accept.

    If they are known to come from different programs, every failure says so.

    Args:
        left: whose outputs are judged.
        right: that they are judged by.
        batches: makes batches for the inputs that both accept.
        asked: bounds instead of those that follow from the manifests.
        ranges: whether to try all integers on which both run, too.
    """
    fed, started = agreed(left, right), perf_counter()
    if isinstance(fed, str):
        rows = [Row(output="", inputs="declared", reason=fed, comparable=False)]
    else:
        inputs = common(*(side.contract for side in fed))
        tried = dict(batches(inputs))
        results = list(_spans(inputs, fed)) if ranges else []
        rows = [result for result in results if isinstance(result, Row)]
        spans = dict(result for result in results if not isinstance(result, Row))
        for spec in inputs.inputs:
            if spec.name in spans:
                tried |= dict(covering(spec, inputs, spans[spec.name]))
        rows += [row for name, batch in tried.items() for row in compare_on(*fed, batch, name, asked)]
        if ranges:
            rows += _further(fed, inputs, asked, tried, perf_counter() - started)
        rows = [*settled(rows), *_untaken(fed)]
    if not left.origin or not right.origin or left.origin == right.origin:
        return rows
    note = "; they come from different programs"
    return [replace(row, reason=row.reason + note) if row.reason else row for row in rows]


def _inputs(left: Side, right: Side) -> Contract:
    fed = agreed(left, right)
    return Contract((), ()) if isinstance(fed, str) else common(*(side.contract for side in fed))


def _further(
    fed: tuple[Side, Side], inputs: Contract, asked: Asked, usual: Mapping[str, Batch], seconds: float
) -> list[Row]:
    """Compare at other sizes, then in further ranges, as long as it takes no longer than the ``usual`` batches did."""
    rate = seconds / max(1, sum(map(_numbers, usual.values())))
    over = perf_counter() + min(max(SPARE, AGAIN * seconds), (LIMITS["comparison"].value - seconds) / 2)

    def rows(name: str, batch: Batch) -> list[Row]:
        if perf_counter() + rate * _numbers(batch) > over:
            return [Row(output="", inputs=name, note="there was no time for it")]
        return list(compare_on(*fed, batch, name, asked))

    def resized(name: str, sizes: Mapping[str, int]) -> list[Row]:
        batch = noise_of(inputs, sizes)
        compared = rows(f"{name}: {shapes_of(batch)}", batch)
        return [replace(row, note=REFUSED) if row.note.startswith(NEITHER) else row for row in compared]

    compared = [row for name, sizes in other_sizes(inputs) for row in resized(name, sizes)]
    for size in FAR_SIZES if compared and all(row.note == REFUSED for row in compared) else ():
        compared += resized(f"size {size}", dict.fromkeys(inputs.open_sizes, size))
    lonely = not any(row.output or row.reason for row in compared)
    if precision_of(*fed, asked) == "fp32":
        batches = [*random_batches(inputs, FURTHER_SPANS, len(SPANS)), *spiked(inputs)]
        compared += [row for name, batch in batches for row in rows(name, batch)]
    return [*compared, *(_only(inputs, usual.values(), "other sizes") if lonely else ())]


def _numbers(batch: Batch) -> int:
    return sum(values.numel() for values in batch.values())


def _only(inputs: Contract, batches: Iterable[Batch], name: str, why: str = "") -> list[Row]:
    """Return a note that files with dynamic sizes were compared at no sizes but those of the batches."""
    sizes = sorted({by(sizes) for batch in batches if (sizes := sizes_of(batch, inputs))})
    note = f"compared at {' and '.join(sizes)} only{why}"
    return [Row(output="", inputs=name, note=note, comparable=False)] if sizes else []


def _untaken(sides: tuple[Side, Side]) -> Iterator[Row]:
    """Yield notes on branches that no row took."""
    for letter, side in zip("ab", sides, strict=True):
        for note in side.branches.notes:
            yield Row(output="", inputs=f"all, in {letter}", note=note, comparable=False)


def _judged(precision: str) -> tuple[int, ...]:
    return (JUDGED,) if math.isinf(TOLERANCES[precision].output.absolute) else ()


def _spans(inputs: Contract, sides: tuple[Side, Side]) -> Iterator[Row | tuple[str, Span]]:
    """Yield the range of every integer input in which both files run, or a row if their upper ends differ."""
    for spec in whole_inputs(inputs):
        one, other = (span_of(spec, inputs, partial(_runs, side, sides)) for side in sides)
        if one is None or other is None:
            continue
        if one.high != other.high:
            reason = f"takes {spec.name} up to {one.high} instead of {other.high}"
            yield Row(output="", inputs=f"{spec.name}, found by trying", reason=reason)
        yield spec.name, Span(max(one.low, other.low), min(one.high, other.high))


def _runs(side: Side, sides: tuple[Side, Side], batch: Batch) -> bool:
    outputs = side.run(_named_for(side, sides, batch))
    return not isinstance(outputs, str) and sum(output.size for output in outputs.values()) <= MOST_NUMBERS


def _named_for(side: Side, sides: tuple[Side, Side], batch: Batch) -> Batch:
    """Return a batch under the names of one side's inputs; batches are made under the left side's."""
    if side is sides[0]:
        return batch
    return {other.name: batch[one.name] for one, other in paired(*(side.contract for side in sides))}


def precision_of(left: Side, right: Side, asked: Asked = ASKED) -> str:
    """Return the precision that the user set, else the looser of both sides'; unlisted files count as fp32."""
    if asked.precision:
        return asked.precision
    names = [require_choice("precision", side.precision, list(TOLERANCES)) for side in (left, right)]
    return max(names, key=lambda name: TOLERANCES[name].output.absolute)


def assumptions(sides: Sequence[Side]) -> Iterator[str]:
    """Yield what was assumed about a file whose own metadata says something else."""
    for side in sides:
        if side.artifact.precision != side.precision:
            yield (
                f"{side.path} is judged as {side.precision}: that it is {side.artifact.precision} it says itself only; "
                f"say --precision {side.artifact.precision} if you know it"
            )


def compare_on(left: Side, right: Side, batch: Batch, inputs: str, asked: Asked = ASKED) -> Iterator[Row]:
    """Run both sides on a batch and compare every output; a side that fails alone, or other outputs, is a failure."""
    sides = left, right
    fed = [_named_for(side, sides, batch) for side in sides]
    a, b = left.run(fed[0]), right.run(fed[1])
    if isinstance(a, str) and isinstance(b, str):
        yield Row(output="", inputs=inputs, note=f"{NEITHER}, give others with --inputs FILE.npz: {b}")
        return
    if isinstance(a, str) or isinstance(b, str):
        shapes = ", ".join(f"{name}={by(values.shape)}" for name, values in batch.items())
        failed = f"a fails at {shapes}: {a}" if isinstance(a, str) else f"b fails at {shapes}: {b}"
        yield Row(output="", inputs=inputs, reason=failed)
        return
    for side, inputs_of_side in zip(sides, fed, strict=True):
        side.note_branches(inputs_of_side)
    names = [[spec.name for spec in side.contract.outputs] for side in sides]
    if len(names[0]) != len(names[1]):
        yield Row(output="", inputs=inputs, reason=f"gives {', '.join(names[0])} instead of {', '.join(names[1])}")
    precision, moved = precision_of(left, right, asked), _Moved(sides, fed)
    for one, other in matched(*names):
        if one in a and other in b:
            kind = right.kinds.get(other) or left.kinds.get(one) or OUTPUT
            allowed = allowance(b[other], kind, precision, asked)
            name = one if one == other else f"{one} / {other}"
            row = compare_output(a[one], b[other], precision, name, inputs, allowed)
            if row.reason and row.comparable:
                row = _again(row, a[one], b[other], precision, allowed, moved, (one, other))
            silent = quiet(row, a[one], b[other], batch)
            constant = silent != row and one in left.constants and other in right.constants
            yield replace(row, rule=f"{row.rule}; {CONSTANT}") if constant else silent


def _again(
    row: Row,
    a: np.ndarray,
    b: np.ndarray,
    precision: str,
    allowed: Allowance,
    moved: "_Moved",
    names: tuple[str, str],
) -> Row:
    """Compare a failed row again with room for rounding of the inputs; a note replaces it if b is not deterministic."""
    if moved.unsteady(names[1], b, allowed):
        return Row(
            row.output, row.inputs, note="there was nothing to compare: b answers the same inputs otherwise each time"
        )
    if not allowed.movable or a.shape != b.shape:
        return row
    room = np.minimum(*moved.of(names, (a, b)))
    wider = compare_output(a, b, precision, row.output, row.inputs, allowed.moved(room))
    return row if wider.reason else wider


class _Moved:
    """Two sides run again on a batch, as it is and with its floats rounded differently; only needed if rows fail."""

    def __init__(self, sides: tuple[Side, Side], fed: Sequence[Batch]) -> None:
        self.sides, self.fed = sides, fed

    @cached_property
    def repeated(self) -> Arrays | str:
        """Return the right side's outputs of a second run."""
        return self.sides[1].run(self.fed[1])

    @cached_property
    def drawn(self) -> list[list[tuple[Arrays, Arrays]]]:
        """Return, by side, pairs of outputs for inputs moved by one rounding and by several."""
        return [
            [pair for seed in range(DRAWS) if (pair := self._pair(side, batch, seed))]
            for side, batch in zip(self.sides, self.fed, strict=True)
        ]

    @staticmethod
    def _pair(side: Side, batch: Batch, seed: int) -> tuple[Arrays, Arrays] | None:
        near, far = (side.run(batch, partial(rounded, seed=seed, times=times)) for times in (1.0, FURTHER))
        return None if isinstance(near, str) or isinstance(far, str) else (near, far)

    def unsteady(self, name: str, values: np.ndarray, allowed: Allowance) -> bool:
        """Return whether an output differs the second time."""
        if isinstance(self.repeated, str):
            return True
        comparison = compare_typed(self.repeated[name], values, allowed.bound, allowed.room)
        return not comparison and not comparison.reason.startswith(NOTHING)

    def of(self, names: tuple[str, str], values: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
        """Return, by side, how far its output moves; a side without float inputs gets the other side's movement."""
        comparisons = [
            movement(value, [(near[name], far[name]) for near, far in drawn])
            for name, value, drawn in zip(names, values, self.drawn, strict=True)
        ]
        floats = [any(spec.is_float for spec in side.contract.inputs) for side in self.sides]
        return (
            comparisons if all(floats) else [comparisons[floats.index(True)]] * 2 if any(floats) else [np.zeros(())] * 2
        )


def compare_runs(run: Path, other: Path, trust: bool = False, asked: Asked = ASKED) -> list[Row]:
    """Compare every artifact of two runs, network by network, on ``run``'s examples.

    Raises:
        UserError: if either run is missing, or the examples cannot be read.
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
            missing = next((run for run, outputs in ((run, ours), (other, theirs)) if name not in outputs), None)
            if missing:
                mismatches = [Row("", "", reason=f"{missing} has none")]
            else:
                mismatches = _pair(ours[name], theirs[name], batches[ours[name][0].name], trust, asked)
            rows += [replace(row, artifact=name) for row in mismatches]
    return rows


def _listed(run: Path) -> dict[str, Listed]:
    return {
        f"{directory.name}/{artifact.name}": (directory, artifact)
        for directory in network_directories(run)
        for artifact in directory.artifacts.values()
        if artifact.name != CHECKPOINT
    }


def _pair(ours: Listed, theirs: Listed, batches: dict[str, Batch], trust: bool, asked: Asked) -> list[Row]:
    """Compare one artifact of two runs; a file that cannot be used is a failure, and the others are still compared."""
    try:
        return compare_sides(open_listed(*ours, trust), open_listed(*theirs, trust), lambda _: batches, asked)
    except UserError as error:
        return [Row("", "", reason=error.message)]


def versus(
    files: Sequence[Path],
    run: Path | None,
    against: Path | None,
    inputs_file: Path | None = None,
    trust: bool = False,
    asked: Asked = ASKED,
) -> None:
    """Compare two files, or a run with another, and print the table or JSON.

    Raises:
        UserError: for one file or more than two, for files and runs together, if a file cannot be used, or if nothing
            could be compared.
        CheckFailedError: if anything differs.
    """
    if files and (run or against):
        raise UserError("give two files, or --run with --against, not both", "leave out --run and --against")
    if files and len(files) != 2:
        raise UserError(f"{len(files)} file{'s' * (len(files) > 1)} cannot be compared", USABLE)
    if files:
        left, right = files
        rows = compare_files(left, right, inputs_file, trust, asked)
    elif against is not None:
        left, right = run or DEFAULT_RUN, against
        rows = compare_runs(left, right, trust, asked)
    else:
        raise UserError("there is nothing to compare", "name two files, or a run with --against")
    sides = [str(left), str(right)]
    failures = [row for row in rows if row.reason]
    if cli.OUTPUT.form == "json":
        content = {"passed": bool(rows) and not failures, "sides": sides, "rows": [row.as_dict() for row in rows]}
        cli.print_json({"schema": SCHEMA} | content | {"environment": describe()})
    else:
        show(sides, rows)
    compared = [row for row in rows if not row.note]
    cli.card([("verified", passed_words(len(compared) - len(failures), len(compared)))])
    judged = failures if files else rows
    if judged and not any(row.comparable for row in judged):
        lost = judged[0]
        same = "name two files that declare the same inputs"
        needed = "on which the outputs vary" if lost.reason.startswith(SAYS_NOTHING) else "that both run on"
        hint = same if lost.inputs == "declared" else f"give inputs {needed} with --inputs FILE.npz"
        raise UserError(f"not comparable: {': '.join(filter(None, (lost.output, lost.reason)))}", hint)
    if failures or not rows:
        reasons = [row for row in in_short(rows) if row.reason]
        lines = [": ".join(filter(None, (row.artifact, row.inputs, row.output, row.reason))) for row in reasons]
        raise CheckFailedError(f"{len(failures)} of {len(compared)} comparisons", *lines)


def in_short(rows: Sequence[Row]) -> Sequence[Row]:
    """Return every row of two files; of two runs the worst row of each artifact."""
    worst = {
        row.artifact: row for row in sorted(rows, key=lambda row: (bool(row.reason), not row.note, row.max_abs or 0.0))
    }
    return [worst[name] for name in sorted(worst)] if all(worst) else rows


def show(sides: Sequence[str], rows: Sequence[Row]) -> None:
    """Print the table of ``in_short``, and below it the notes and the criteria."""
    shown = in_short(rows)
    first = ("artifact",) if any(row.artifact for row in rows) else ()
    lines = [
        (
            *((row.artifact,) if first else ()),
            row.inputs or cli.NONE,
            row.output or cli.NONE,
            cli.figure(row.max_abs, ".1e"),
            cli.figure(row.bound, ".1e"),
            cli.figure(row.max_rel, ".1e"),
            cli.figure(row.agreement, ".2%"),
            cli.styled(row.verdict, "red" if row.reason else "dim" if row.note else "green"),
        )
        for row in shown
    ]
    cli.table(
        f"{sides[0]} (a) against {sides[1]} (b)",
        (*first, *COLUMNS),
        lines,
        ("max rel", "agreement", "allowed", "inputs"),
    )
    for note in sorted({f"{row.inputs}: {row.note}" for row in rows if row.note and not row.silent}):
        cli.say(note, "dim")
    for rule in sorted({row.rule for row in rows if row.rule}):
        cli.say(rule, "dim")
