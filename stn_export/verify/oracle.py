"""Compute the float64 reference that artifacts are compared with: per test input, and over all examples."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from stn_export.errors import UserError
from stn_export.program.program import Program
from stn_export.program.sites import Site
from stn_export.program.specs import Arrays, Batch, Contract, numbers_of
from stn_export.results.tolerances import COUNT, GRID, THETA, WARPED, Tolerance, same_places
from stn_export.run.examples import Examples, scored_output
from stn_export.verify.challenges import THETAS, challenges, filled, theta_of
from stn_export.verify.points import Point, in_pixels, measured, points_of, units_of

# Parameters that an artifact exposes: bitwise the program's, or folded with the layer behind them.


FOLDED = 1e-6  # share of the largest: a product of three is rounded
BATCH_NORM = torch.ops.aten.batch_norm.default


def weights_of(program: Program) -> Arrays:
    """Return parameters and buffers by name."""
    return {name: numbers_of(tensor) for name, tensor in program.state().items()}


def folded_weights(program: Program) -> Arrays:
    """Return the weights and biases that result if an exporter folds the batch normalisation behind them into them."""
    state = {name: value.astype(np.float64) for name, value in weights_of(program).items()}
    weights = {}
    for node in program.module.graph.find_nodes(op="call_function", target=BATCH_NORM):
        layer, *parameters = node.args[:5]
        names = [_name(argument) for argument in (*(*layer.args[1:3], None, None)[:2], *parameters)]
        weight, bias, gain, shift, mean, variance = map(state.get, names)
        if weight is None or mean is None or variance is None:
            continue
        factor = (1.0 if gain is None else gain) / np.sqrt(variance + node.args[7])
        if len(weight) == len(factor):
            weights[names[0]] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            offset = (0.0 if bias is None else bias) - mean
            weights[names[1]] = offset * factor + (0.0 if shift is None else shift)
    return weights


def _name(value: object) -> str:
    return str(value.target) if isinstance(value, Node) and value.op == "get_attr" else ""


def check_weights(actual: Arrays, expected: Arrays, folded: Mapping[str, np.ndarray]) -> str:
    """Return what is wrong with the parameters that an artifact exposes; empty if nothing is."""
    for name, array in expected.items():
        exposed = actual.get(name, array)
        if exposed.shape != array.shape:
            return f"first wrong at weights: {name} has shape {exposed.shape} instead of {array.shape}"
        product = folded.get(name, array)
        close = name in folded and np.abs(exposed - product).max() <= FOLDED * np.abs(product).max()
        if not close and not np.array_equal(exposed, array):
            difference = np.abs(exposed.astype(np.float64) - array)
            at = tuple(map(int, np.unravel_index(difference.argmax(), array.shape)))
            return f"first wrong at weights: {name} is {difference[at]:.1e} off at {at}; usually other weights"
    return ""


PART = 1000  # examples at once
PART_NUMBERS = 2**22  # numbers in their inputs at once
FORCED_EXAMPLES = 16
TIES = 100  # times the usual error


@dataclass(frozen=True)
class Challenge:
    """A test input with its float64 reference, the error of float32 eager, and the overridden theta, if any.

    ``units`` are the pixels in one unit of x and of y of each grid; ``whole`` holds float32 eager's integers.
    ``unclear`` marks the elements of a point that are finite in only one of float64 and float32 eager, or infinite with
    another sign: their right value is unknown.
    """

    batch: Batch
    true: Arrays
    eager_errors: dict[str, float]
    units: dict[str, np.ndarray]
    whole: Arrays = field(default_factory=dict)
    forced: tuple[Site, Tensor] | None = None
    unclear: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def forcing(self) -> dict[str, Tensor]:
        """Return the override as an argument for ``Program.points``."""
        return {self.forced[0].point(THETA): self.forced[1]} if self.forced else {}

    def clear(self, name: str, actual: np.ndarray) -> np.ndarray:
        """Return an artifact's values at a point, with the reference's where the right value is unknown."""
        mask = self.unclear.get(name)
        return actual if mask is None or mask.shape != actual.shape else np.where(mask, self.true[name], actual)

    def strays(self, point: Point, tolerance: Tolerance) -> int:
        """Return how many elements of a point may differ without bound."""
        true = self.true[point.name]
        if point.kind == COUNT:
            return math.ceil(tolerance.own * np.count_nonzero(self.whole[point.name] != true))
        return 0 if point.steady else math.ceil(tolerance.strays * true.size)


@dataclass(frozen=True)
class Reference:
    """The outputs of a program in float64, per test input and, in ``parts``, over all examples.

    ``parts`` hold thetas, grids (in pixels, float32) and outputs; ``predicted`` is the class that float32 eager
    predicts for every example, if there are labels; ``notes`` say what was left out.
    """

    program: Program
    examples: Examples
    points: dict[str, Point]
    challenges: dict[str, Challenge]
    parts: tuple[Arrays, ...]
    predicted: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def weights(self) -> tuple[Arrays, Arrays]:
        """Return the program's parameters, and those that an exporter may fold with others, folded."""
        return weights_of(self.program), folded_weights(self.program)

    @property
    def contract(self) -> Contract:
        """Return the program's contract."""
        return self.program.contract

    @cached_property
    def rows(self) -> dict[str, int]:
        """Return, by point, how many rows of its first dimension belong to one example."""
        return {name: point.rows for name, point in self.points.items()}

    @property
    def scored(self) -> str | None:
        """Return the name of the output that predicts labels; None if there is none."""
        spec = scored_output(self.contract, self.examples)
        return spec.name if spec else None

    @cached_property
    def accuracy(self) -> float:
        """Return float32 eager's accuracy on the examples, in [0, 1]; NaN without labels."""
        return share_of(self.predicted, self.examples.labels)

    @property
    def units(self) -> dict[str, np.ndarray]:
        """Return the pixels in one unit of x and of y of every grid, for the examples."""
        return next(iter(self.challenges.values())).units if self.challenges else {}

    def challenge(self, batch: Batch) -> Challenge:
        """Compute the reference for one more test input."""
        return make_challenge(self.program, self.points, batch)

    def eager(self, batch: Batch) -> Arrays:
        """Return float32 eager's values at every point, grids in pixels."""
        points = self.program.points(self.program.values(batch))
        return in_pixels({name: numbers_of(value) for name, value in points.items()}, self.units)

    def called(self, point: str) -> str:
        """Return a point's name for people: without its site if there is only one."""
        return point.removeprefix("site0/") if len(self.program.sites) == 1 else point


def share_of(classes: np.ndarray | None, expected: np.ndarray | Tensor | None) -> float:
    """Return the share of equal classes, in [0, 1]; NaN without classes."""
    return float("nan") if classes is None else float((classes == np.asarray(expected)).mean())


def parts_of(examples: Examples, program: Program) -> Iterator[tuple[Batch, int]]:
    """Yield all examples in order, in batches as large as memory allows, and how many rows of each count.

    If the program's batch is static, the last batch is padded.
    """
    contract, numbers = program.contract, sum(value.numel() for value in examples.take(1).values())
    size = contract.batch or max(1, min(PART, PART_NUMBERS // numbers, program.most_examples))
    for rows, count in filled(len(examples), size):
        yield examples.rows(rows if contract.batch else rows[:count]), count


def predictions(scores: np.ndarray) -> np.ndarray:
    """Return the class with the highest score in each row."""
    return scores.reshape(len(scores), -1).argmax(1)


def reference_of(program: Program, examples: Examples) -> Reference:
    """Compute the reference: run a program in float64 and in float32 on the CPU.

    Raises:
        UserError: if an input or output is bfloat16.
    """
    for spec in (*program.contract.inputs, *program.contract.outputs):
        if spec.dtype == "bfloat16":
            raise UserError(
                f"{spec.name} is bfloat16, which NumPy cannot hold", "take and give float32, and cast inside the module"
            )
    points, notes = points_of(program, examples)
    made, skipped = _challenges_of(program, points, examples)
    skipped += _drop_ties(points, made)
    usual = [challenge for name, challenge in made.items() if name.startswith("examples")]
    for name, point in points.items():
        errors = [batch.eager_errors[name] for batch in made.values() if name in batch.eager_errors]
        points[name] = measured(point, (batch.true for batch in usual), usual[0].units, errors)
    parts, predicted = _over_examples(program, points, examples)
    return Reference(program, examples, points, made, parts, predicted, (*notes, *skipped))


def _challenges_of(
    program: Program, points: Mapping[str, Point], examples: Examples
) -> tuple[dict[str, Challenge], list[str]]:
    """Compute every test input that the program itself accepts, and note why others are left out."""
    made, notes = {}, []
    for name, batch in challenges(program.contract, examples, program.most_examples).items():
        try:
            made[name] = make_challenge(program, points, batch)
        except Exception as error:  # a network may raise anything at an unsupported size
            if name.startswith("examples"):
                raise
            notes.append(f"{name}: the network itself cannot take it ({type(error).__name__})")
    batch = examples.take(program.contract.batch or FORCED_EXAMPLES)
    matrices = [site for site in program.sites if site.theta]
    for site in matrices:
        pixels = units_of(program, program.values(batch))[site.point(GRID)][0]
        for name in THETAS:
            label = f"theta {name}" if len(matrices) == 1 else f"{site.name}/theta {name}"
            made[label] = make_challenge(program, points, batch, (site, theta_of(name, pixels)))
    for name, challenge in made.items():
        if lost := [point for point in points if point not in challenge.true]:
            notes.append(f"{name}: {', '.join(lost)} not compared: empty, or not finite in PyTorch itself")
        notes += [
            f"{name}: {np.count_nonzero(mask)} of {mask.size} elements of {point} not compared: float32 loses them"
            for point, mask in challenge.unclear.items()
        ]
    return made, notes


def _drop_ties(points: Mapping[str, Point], made: Mapping[str, Challenge]) -> list[str]:
    """Skip nearest-mode points that often fall between two pixels: rounding decides which one eager takes.

    They are recognised by an error of float32 eager above ``TIES`` times its usual one.
    """
    notes = []
    for name in (name for name, point in points.items() if not point.steady):
        errors = {label: batch.eager_errors[name] for label, batch in made.items() if name in batch.eager_errors}
        usual = max((error for label, error in errors.items() if label.startswith("examples")), default=0.0)
        for label in (label for label, error in errors.items() if error > TIES * usual):
            del made[label].true[name], made[label].eager_errors[name]
            notes.append(f"{label}: {name} not compared: PyTorch's own nearest pixels depend on rounding")
    return notes


def make_challenge(
    program: Program, points: Mapping[str, Point], batch: Batch, forced: tuple[Site, Tensor] | None = None
) -> Challenge:
    """Run a program on a batch in float64 and in float32; points without a finite element are left out."""
    values = program.values(batch)
    blank = Challenge(batch, {}, {}, units_of(program, values), forced=forced)
    true, eager = (
        in_pixels({name: numbers_of(value) for name, value in run(values, blank.forcing).items()}, blank.units)
        for run in (program.exact.points, program.points)
    )
    whole = {name: value for name, value in eager.items() if points[name].kind == COUNT}
    true = {name: value for name, value in true.items() if (np.isfinite(value) & np.isfinite(eager[name])).any()}
    unclear = {name: mask for name in true if (mask := ~same_places(eager[name], true[name])).any()}
    blank = replace(blank, true=true, whole=whole, unclear=unclear)
    eager = {name: blank.clear(name, eager[name]) for name in true}
    errors = {name: points[name].error(eager[name], true[name]) for name in true if points[name].kind != COUNT}
    return replace(blank, eager_errors=errors)


def _over_examples(
    program: Program, points: Mapping[str, Point], examples: Examples
) -> tuple[tuple[Arrays, ...], np.ndarray | None]:
    """Return thetas, grids and outputs of all examples in float64, and the classes that float32 eager predicts."""
    scored, parts, predicted = scored_output(program.contract, examples), [], []
    for batch, count in parts_of(examples, program):
        values = program.values(batch)
        exact, units = program.exact.points(values), units_of(program, values)
        kept = {name: exact[name].numpy() for name, point in points.items() if not point.site or point.kind != WARPED}
        parts.append({name: _kept(value, points[name].rows * count, units.get(name)) for name, value in kept.items()})
        if scored:
            predicted.append(predictions(numbers_of(program.run(values)[scored.name]))[:count])
    return tuple(parts), np.concatenate(predicted) if predicted else None


def _kept(value: np.ndarray, rows: int, unit: np.ndarray | None) -> np.ndarray:
    """Return a value without the rows that padded its batch; a grid in pixels, as float32."""
    value = value[: rows or None]
    return value if unit is None else (value * unit).astype(np.float32)
