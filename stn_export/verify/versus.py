"""Two artifacts, or two runs, against each other: ``python -m stn_export.verify A B`` and ``--against RUN``.

Both sides get the same inputs. What takes images (its manifest or metadata says how) gets the same images through its
own input contract; two ONNX files that say nothing of the kind get random tensors of their declared names, shapes and
types. An element passes where ``|a - b| <= absolute + relative * |b|``, with the looser precision's bound for
log-probabilities (other people's files count as fp32); whole numbers must be the same, and int8 is judged by its
predictions on test images. Whatever cannot be compared is a failure.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor

from stn_export import cli
from stn_export.artifacts.environment import describe
from stn_export.artifacts.manifest import Artifact, NetworkDirectory, network_directories
from stn_export.comparison.compare import Comparison, compare
from stn_export.comparison.tolerances import ANY, TOLERANCES, Bound
from stn_export.config import ARTIFACTS, DEFAULT_DATASET, IMAGE_SHAPE
from stn_export.errors import CheckFailedError, UserError, require_choice
from stn_export.graphs.graph import random_inputs
from stn_export.train.data import Dataset, contract_batch, example_images, trained_on
from stn_export.train.digits import draw_digits
from stn_export.verify.challenges import image_challenges
from stn_export.verify.sides import USABLE, Arrays, Side, Signature, image_contract, open_listed, open_side

SCHEMA = "stn_export/versus/1"
BATCHES = (1, 2, 7)
SIDE = 32  # pixels, for an open height, width or depth
DRAWN = 64
JUDGED = 1000  # test images, on which int8's predictions are counted
TEST_IMAGES = f"test images ×{JUDGED}"
WHOLE = Bound(0.5)  # any difference of whole numbers is too large
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

    def as_dict(self) -> dict:
        """JSON-ready, with the verdict."""
        return {"passed": not self.reason} | asdict(self)


def compare_files(left: Path, right: Path, data: Path | None = None) -> list[Row]:
    """Compare two files on noise and drawn digits, or on random tensors where neither says that it takes images.

    Args:
        left: the file whose outputs are judged; ONNX of any origin, TorchScript, ``.pt2`` or a checkpoint.
        right: the file that it is judged by.
        data: the directory of CIFAR-10, needed for int8 only; by default where training read it.

    Raises:
        UserError: where either cannot be opened, or int8 has no test images.
    """
    sides = open_side(left), open_side(right)
    if not any(side.artifact.input_contract for side in sides):
        return list(compare_tensors(*sides))
    images = drawn_images()
    if bound_of(precision_of(*sides)) == ANY:
        images |= {TEST_IMAGES: example_images(_test_images(sides, data), JUDGED)}
    return _with_origin(compare_images(*sides, images), *sides)


def drawn_images() -> dict[str, Tensor]:
    """uint8 batches N×3×32×32 by name that need no data set: always the same."""
    random = torch.Generator().manual_seed(0)
    noise = {f"noise ×{n}": torch.randint(256, (n, *IMAGE_SHAPE), generator=random).byte() for n in BATCHES}
    return noise | {f"drawn digits ×{DRAWN}": draw_digits(DRAWN, seed=0)[0]}


def _test_images(sides: Sequence[Side], data: Path | None) -> Dataset:
    for side in sides:
        if side.directory:
            return trained_on(side.directory.checkpoint(), data)
    raise UserError("int8 is judged on test images, and no manifest says which", "compare files in their run directory")


def precision_of(left: Side, right: Side) -> str:
    """The looser of the two precisions; files that are not ours count as fp32."""
    names = [require_choice("precision", side.artifact.precision, list(TOLERANCES)) for side in (left, right)]
    return max(names, key=lambda name: TOLERANCES[name].log_probs.absolute)


def bound_of(precision: str) -> Bound:
    """How far two outputs of a precision may lie apart: each may stray as far from the truth on a side of its own."""
    return TOLERANCES[precision].log_probs.times(2)


def rule_of(precision: str) -> str:
    """In words, what outputs of a precision must keep to."""
    bound = bound_of(precision)
    if bound == ANY:
        return f"{precision}: {TOLERANCES[precision].agreement:.0%} of the predictions agree on {TEST_IMAGES}"
    return f"{precision}: |a - b| <= {bound.absolute:g} + {bound.relative:g} |b|"


def compare_images(left: Side, right: Side, images: dict[str, Tensor]) -> Iterator[Row]:
    """Compare on uint8 batches N×3×32×32 by name, each side fed as its own input contract says."""
    contracts = [image_contract(side) for side in (left, right)]
    for side, contract in zip((left, right), contracts, strict=True):
        if not contract:
            yield Row(output="", inputs="declared", reason=f"{side.path} does not take one batch of images")
            return
    for name, batch in images.items():
        feeds = (side.feed(contract_batch(batch, each)) for side, each in zip((left, right), contracts, strict=True))
        yield from compare_outputs(left, right, *feeds, name)


def compare_tensors(left: Side, right: Side) -> Iterator[Row]:
    """Compare two ONNX files on random inputs, matched by name, else by position; seeded, so always the same."""
    pairs, takes = matched(left.signature, right.signature), (left.signature, right.signature)
    if len(takes[0]) != len(takes[1]) or any(takes[0][a] != takes[1][b] for a, b in pairs):
        yield Row(output="", inputs="declared", reason=f"takes {_said(takes[0])} instead of {_said(takes[1])}")
        return
    for seed, batch in enumerate(BATCHES):
        feeds = random_inputs(left.onnx.model, batch, seed, SIDE)
        for name, array in feeds.items():
            if array.dtype == np.uint8:  # bytes of an image, not indices: ONNX has none of this type
                feeds[name] = np.random.default_rng(seed).integers(0, 256, array.shape, np.uint8)
        shapes = ", ".join(f"{name} {_shape(array.shape)}" for name, array in feeds.items())
        yield from compare_outputs(left, right, feeds, {b: feeds[a] for a, b in pairs}, f"{seed}: {shapes}")


def _said(signature: Signature) -> str:
    return ", ".join(f"{name} {kind} {_shape(shape)}" for name, (kind, shape) in signature.items()) or "nothing"


def _shape(shape: Sequence[int | None]) -> str:
    return "×".join("?" if size is None else str(size) for size in shape) or "scalar"


def matched(left: Iterable[str], right: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of one name, then the others by position where there are as many on both sides."""
    left, right = list(left), list(right)
    others = [name for name in left if name not in right], [name for name in right if name not in left]
    same = [(name, name) for name in left if name in right]
    return [*same, *zip(*others, strict=True)] if len(left) == len(right) else same


def compare_outputs(left: Side, right: Side, left_feeds: Arrays, right_feeds: Arrays, inputs: str) -> Iterator[Row]:
    """Run both and compare every output; a side that does not run, or gives other outputs, is a failure."""
    a, b, precision = left.run(left_feeds), right.run(right_feeds), precision_of(left, right)
    if failures := [each for each in (a, b) if isinstance(each, str)]:
        yield Row(output="", inputs=inputs, reason="; ".join(failures))
        return
    if len(a) != len(b):
        yield Row(output="", inputs=inputs, reason=f"gives {', '.join(a)} instead of {', '.join(b)}")
    for one, other in matched(a, b):
        name = one if one == other else f"{one} / {other}"
        yield compare_output(a[one], b[other], precision, name, inputs)


def compare_output(a: np.ndarray, b: np.ndarray, precision: str, name: str, inputs: str) -> Row:
    """One output ``a`` against ``b``, of the same name on the same inputs."""
    bound, share = bound_of(precision), TOLERANCES[precision].agreement
    result = compare_arrays(a, b, bound)
    reason, agreement = result.reason, result.agreement if a.ndim == 2 and a.shape[1] > 1 else float("nan")
    if inputs == TEST_IMAGES and bound == ANY and not agreement >= share:
        reason = reason or f"{agreement:.2%} of the predictions agree, less than {share:.2%}"
    figures = (None if math.isnan(value) else value for value in (result.max_abs, result.max_rel, agreement))
    return Row(name, inputs, *figures, reason, rule_of(precision))


def compare_arrays(actual: np.ndarray, expected: np.ndarray, bound: Bound) -> Comparison:
    """``compare`` for arrays of any type: floats within ``bound``, everything else the same."""
    if actual.dtype != expected.dtype:
        return Comparison(f"type {actual.dtype} instead of {expected.dtype}")
    if actual.dtype.kind in "fiub":
        return compare(actual, expected, bound if actual.dtype.kind == "f" else WHOLE)
    equal = expected.size > 0 and np.array_equal(actual, expected)
    return Comparison("" if equal else "not the same, or nothing was compared")


def compare_runs(run: Path, other: Path, data: Path | None = None) -> list[Row]:
    """Compare every artifact of two runs, model by model, on ``run``'s data set.

    Raises:
        UserError: where either run is missing, or the data set cannot be had.
    """
    ours, theirs = _listed(run), _listed(other)
    dataset = trained_on(network_directories(run)[0].checkpoint(), data)
    images = image_challenges(dataset) | {TEST_IMAGES: example_images(dataset, JUDGED)}
    rows, names = [], sorted(ours | theirs)
    with cli.progress() as bar:
        for name in bar.track(names, description="compare"):
            missing = next((run for run, each in ((run, ours), (other, theirs)) if name not in each), None)
            found = [Row("", "", reason=f"{missing} has none")] if missing else _pair(ours[name], theirs[name], images)
            rows += [replace(row, artifact=name) for row in found]
    return rows


def _with_origin(rows: Iterable[Row], left: Side, right: Side) -> list[Row]:
    """The same rows; where the checkpoints are known to differ, every failure says so."""
    if not left.origin or not right.origin or left.origin == right.origin:
        return list(rows)
    note = "; they come from different checkpoints"
    return [replace(row, reason=row.reason + note) if row.reason else row for row in rows]


def _listed(run: Path) -> dict[str, Listed]:
    return {
        f"{directory.model}/{artifact.name}": (directory, artifact)
        for directory in network_directories(run)
        for artifact in directory.artifacts.values()
    }


def _pair(ours: Listed, theirs: Listed, images: dict[str, Tensor]) -> list[Row]:
    """One artifact of two runs; a file that cannot be used is a failure, and the others are still compared."""
    try:
        sides = open_listed(*ours), open_listed(*theirs)
        return _with_origin(compare_images(*sides, images), *sides)
    except UserError as error:
        return [Row("", "", reason=str(error))]


def versus(files: Sequence[Path], run: Path | None, against: Path | None, data: Path | None, as_json: bool) -> None:
    """Compare two files, or a run against another, and print the table or JSON.

    Raises:
        UserError: for one file or more than two, for files and runs together, or where one cannot be used.
        CheckFailedError: where anything differs, or nothing was compared.
    """
    if files and (run or against):
        raise UserError("two files and two runs cannot be compared at once", "leave out --run and --against")
    if files and len(files) != 2:
        raise UserError(f"{len(files)} file{'s' * (len(files) > 1)} cannot be compared", USABLE)
    run = run or ARTIFACTS / DEFAULT_DATASET
    rows = compare_files(*files, data) if files else compare_runs(run, against, data)
    sides = [str(each) for each in files or (run, against)]
    failures = [row for row in rows if row.reason]
    if as_json:
        content = {"passed": bool(rows) and not failures, "sides": sides, "rows": [row.as_dict() for row in rows]}
        cli.print_json({"schema": SCHEMA} | content | {"environment": describe()})
    else:
        show(sides, rows)
    if failures or not rows:
        told = [row for row in in_short(rows) if row.reason]
        lines = [": ".join(filter(None, (row.artifact, row.inputs, row.output, row.reason))) for row in told]
        raise CheckFailedError("\n".join([f"{len(failures)} of {len(rows)} comparisons", *lines]))


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
            *((escape(row.artifact),) if first else ()),
            escape(row.inputs) or "–",
            escape(row.output) or "–",
            cli.figure(row.max_abs, ".1e"),
            cli.figure(row.max_rel, ".1e"),
            cli.figure(row.agreement, ".2%"),
            "[red]DIFFERENT[/]" if row.reason else "[green]equal[/]",
        )
        for row in shown
    ]
    cli.table(f"{escape(sides[0])} (a) against {escape(sides[1])} (b)", (*first, *COLUMNS), lines)
    for rule in sorted({row.rule for row in rows if row.rule}):
        cli.say(f"[dim]{escape(rule)}[/]")
