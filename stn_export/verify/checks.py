"""Check an artifact in a runner against the float64 reference: every test input, every point, and all examples."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
import torch
from msgspec.structs import replace

from stn_export.errors import UserError, one_line
from stn_export.onnx_graph.saturation import saturation_of
from stn_export.program.specs import Arrays, Batch, Contract, TensorSpec
from stn_export.results.tolerances import (
    COUNT,
    GRID,
    NOTHING,
    THETA,
    TOLERANCES,
    Bound,
    Tolerance,
    beyond,
    compare,
    distance,
    same_places,
    unlike_where_not_finite,
)
from stn_export.run.manifest import Artifact
from stn_export.run.records import Check, Comparison, GridPixels, finite
from stn_export.runners import Runner, RunnerSpec
from stn_export.runners.external import RefusedError
from stn_export.verify.challenges import FAR, QUARTERS, rows_of, size_of
from stn_export.verify.diagnosis import FROZEN, diagnose
from stn_export.verify.oracle import Challenge, Reference, check_weights, parts_of, predictions, share_of
from stn_export.verify.points import Point, in_pixels

# Running batches of any size, whatever the artifact's own.


Call = Callable[[Arrays], Arrays | None]


def uncut(batch: Batch, contract: Contract, reference: Reference) -> set[str]:
    """Return the outputs and points that an artifact with another batch size cannot be compared at."""
    if contract.batch in (None, size_of(batch, contract)):
        return set()
    return {name for name, rows in reference.rows.items() if not rows}


def takes(contract: Contract, batch: Batch) -> bool:
    """Return whether an artifact accepts a batch, in parts if need be: it may have static sizes of its own."""
    arrays = contract.arrays(batch)
    return all(
        spec.fits((_length(spec, contract, array), *array.shape[1:]))
        for spec, array in ((spec, arrays[spec.name]) for spec in contract.inputs if spec.shape)
    )


def _length(spec: TensorSpec, contract: Contract, array: np.ndarray) -> int:
    """Return how many examples an artifact is run on at once."""
    own = spec.shape[0]
    return own if spec.batched and contract.batch and isinstance(own, int) else len(array)


@overload
def feed(
    call: Callable[[Arrays], Arrays], batch: Batch, contract: Contract, rows: Mapping[str, int]
) -> Arrays: ...  # where every call gives something


@overload
def feed(call: Call, batch: Batch, contract: Contract, rows: Mapping[str, int]) -> Arrays | None: ...


def feed(call: Call, batch: Batch, contract: Contract, rows: Mapping[str, int]) -> Arrays | None:
    """Run ``call`` on a batch, in padded batches if the artifact's batch is static.

    Args:
        call: a method of a runner.
        batch: of any size.
        contract: the artifact's.
        rows: by value, how many rows of its first dimension belong to one example; values with 0 are left out if the
            batch is split.
    """
    size, fixed, whole = size_of(batch, contract), contract.batch, contract.arrays(batch)
    if fixed in (None, size):
        return call(whole)
    parts = []
    for start in range(0, size, fixed):
        count = min(fixed, size - start)
        if (outputs := call(_padded(whole, contract, start, fixed))) is None:
            return None
        parts.append({name: outputs[name][: rows[name] * count] for name in outputs if rows.get(name)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _padded(arrays: Arrays, contract: Contract, start: int, count: int) -> Arrays:
    """Copy ``count`` examples of converted inputs, from the first one again where there are fewer."""
    chosen = {
        spec.name: np.arange(start, start + count) % len(arrays[spec.name]) for spec in contract.inputs if spec.batched
    }
    return {name: array[chosen[name]] if name in chosen else array for name, array in arrays.items()}


# An artifact on all examples: predictions, grid errors in pixels, and the examples that differ most.


MOST_DIFFERENT = 10


@dataclass(frozen=True)
class OverExamples:
    """The results of an artifact on all examples.

    ``whole`` is, for each output of integers, how many are right and of how many; ``rms`` for each other output the
    root mean squared error divided by the root mean square; ``broken`` names what is not finite; ``left_out`` is what
    could not be compared.
    """

    agreement: float
    accuracy: float
    grid_pixels: dict[str, GridPixels]
    differing: tuple[tuple[int, float, str], ...]
    whole: dict[str, tuple[int, int]]
    rms: dict[str, float]
    broken: str
    left_out: set[str]


def over_examples(runner: Runner, reference: Reference) -> OverExamples:
    """Run an artifact on all examples; return agreement, accuracy, grid errors, and the examples that differ most."""
    tally = _Tally(reference)
    for (batch, count), true in zip(parts_of(reference.examples, reference.program), reference.parts, strict=True):
        actual = in_pixels(feed(runner.points, batch, runner.contract, reference.rows), reference.units)
        shown = {name: actual[name][: len(true[name])] for name in true if name in actual}
        for name, value in _without_unclear(shown, true, batch, reference).items():
            tally.add(reference.points[name], value, true[name], count)
    batch, _ = next(parts_of(reference.examples, reference.program))
    return tally.result(uncut(batch, runner.contract, reference) & {spec.name for spec in reference.contract.outputs})


def _without_unclear(shown: Arrays, true: Arrays, batch: Batch, reference: Reference) -> Arrays:
    """Return the values with the reference's wherever only one of float64 and float32 eager is finite."""
    odd = [name for name, value in shown.items() if unlike_where_not_finite(value, true[name])]
    if not odd:
        return shown
    eager = reference.eager(batch)
    clear = {name: same_places(eager[name][: len(true[name])], true[name]) for name in odd}
    return shown | {name: np.where(clear[name], shown[name], true[name]) for name in odd}


class _Tally:
    """Sums of errors over the examples, by point."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.sums: dict[str, np.ndarray] = {}  # sum of errors, sum of their units, largest error
        self.strayed: dict[str, list[np.ndarray]] = {}  # by output, the worst error of each example
        self.classes: list[np.ndarray] = []
        self.broken = ""

    def add(self, point: Point, actual: np.ndarray, true: np.ndarray, count: int) -> None:
        """Add the errors of ``count`` examples at a point, or of whole arrays if the point is not per example."""
        if unlike := unlike_where_not_finite(actual, true):
            self.broken = self.broken or f"{point.name} over the examples: {unlike}"
        if point.kind == GRID:
            pixels = np.linalg.norm(distance(actual, true), axis=-1)
            self._sum(point.name, pixels.sum(), pixels.size, pixels.max())
        elif point.kind == THETA:
            return
        elif point.kind == COUNT:
            self._sum(point.name, (actual == true).sum(), true.size, 0.0)
        else:
            error = distance(actual, true)
            self._sum(point.name, np.square(error).sum(), np.square(true[np.isfinite(true)]).sum(), error.max())
            if point.rows:
                self.strayed.setdefault(point.name, []).append(error.reshape(count, -1).max(axis=1))
        if point.name == self.reference.scored:
            self.classes.append(predictions(actual))

    def _sum(self, name: str, error: float, whole: float, worst: float) -> None:
        before = self.sums.get(name, np.zeros(3))
        self.sums[name] = np.array([before[0] + error, before[1] + whole, max(before[2], worst)])

    def result(self, left_out: set[str]) -> OverExamples:
        """Return the results over all examples that were added."""
        points, sums = self.reference.points, self.sums
        shares = {name: float(error / max(whole, 1e-300)) for name, (error, whole, _) in sums.items()}
        grids = {
            site.name: (shares[name], sums[name][2])
            for name in sums
            if points[name].kind == GRID and (site := points[name].site) is not None
        }
        outputs = [name for name in sums if points[name].kind not in (GRID, COUNT)]
        classes = np.concatenate(self.classes) if self.classes else None
        return OverExamples(
            agreement=share_of(classes, self.reference.predicted),
            accuracy=share_of(classes, self.reference.examples.labels),
            grid_pixels={
                site: GridPixels(mean=mean, worst=float(worst)) for site, (mean, worst) in sorted(grids.items())
            },
            differing=self._differing(),
            whole={name: (int(sums[name][0]), int(sums[name][1])) for name in sums if points[name].kind == COUNT},
            rms={name: shares[name] ** 0.5 for name in outputs if name != self.reference.scored},
            broken=self.broken,
            left_out=left_out,
        )

    def _differing(self) -> tuple[tuple[int, float, str], ...]:
        """Return the examples with the largest error of an output in units of its magnitude."""
        if not self.strayed:
            return ()
        names = sorted(self.strayed, key=list(self.reference.points).index)
        errors = np.stack([np.concatenate(self.strayed[name]) for name in names])
        relative = errors / np.array([[self.reference.points[name].rounding] for name in names])
        worst = relative.argmax(axis=0)
        furthest = np.argsort(-relative.max(axis=0))[:MOST_DIFFERENT]
        return tuple((int(i), float(errors[worst[i], i]), names[worst[i]]) for i in furthest)


REPEATS = 10
NEIGHBOURS = 7


def unchecked(artifact: Artifact, runner: str, precision: str, failure: str) -> Check:
    """Return a failed check for an artifact that was not compared."""
    return Check(
        network=artifact.network,
        artifact=artifact.name,
        sha256=artifact.sha256,
        runner=runner,
        precision=precision,
        comparisons={},
        errors={},
        multiple=None,
        agreement=None,
        accuracy=None,
        deterministic=False,
        grid_pixels={},
        differing=(),
        notes=(),
        failure=failure,
    )


def check_artifact(artifact: Artifact, path: Path, spec: RunnerSpec, reference: Reference) -> Check:
    """Run one artifact in one runner and check it; any exception is a failed check, never a missing one.

    Raises:
        RefusedError: if an external runtime does not support the file, which is no error of the file.
    """
    precision = spec.tolerance_of(artifact.precision)
    blank = unchecked(artifact, spec.name, precision, NOTHING)
    try:
        check = _check(blank, spec.open(path, spec.verified_as(artifact.contract)), reference)
        if check.failure or (artifact.format, artifact.precision) != ("onnx", "int8"):
            return check
        return replace(check, failure=saturation_of(path))
    except (RefusedError, KeyboardInterrupt):
        raise
    except BaseException as problem:  # a module's code may raise anything, even SystemExit
        return replace(blank, failure=one_line(problem))


def _check(blank: Check, runner: Runner, reference: Reference) -> Check:
    tolerance = TOLERANCES[blank.precision]
    tolerance = tolerance.in_order if runner.sums_in_order else tolerance
    comparisons: dict[str, dict[str, Comparison]] = {}
    failures = [check_weights(runner.weights(), *reference.weights)] if blank.precision == "fp32" else []
    unforced: list[str] = []
    magnified = () if math.isinf(tolerance.multiple) else FAR  # there ONNX Runtime normalises with sequential sums
    for name, challenge, actual in answers(runner, reference):
        if actual is None:
            unforced.append(name)
            continue
        drawn = name in magnified
        comparisons[name] = compare_points(
            runner, actual, challenge, reference, tolerance.in_order if drawn else tolerance, far=drawn
        )
        if not any(failures) and (failure := first_failure(comparisons[name], actual, challenge, reference)):
            failures.append(f"{name}: {failure}")  # only the first is reported: a diagnosis takes long
    errors = worst_errors(comparisons)
    usual = worst_errors({name: compared for name, compared in comparisons.items() if name not in magnified})
    multiple = max((_multiple(reference.points[name], error) for name, error in usual.items()), default=float("nan"))
    over = over_examples(runner, reference)
    deterministic, dependent = check_repeats(runner, reference, tolerance)
    nothing = _uncompared(comparisons, over, reference) if any(comparisons.values()) else blank.failure
    failures += [
        nothing,
        _forcing(unforced, comparisons, reference),
        dependent,
        check_refusals(runner, reference),
        judge(multiple, over, reference, tolerance),
    ]
    return replace(
        blank,
        comparisons=comparisons,
        errors=errors,
        multiple=finite(multiple),
        agreement=finite(over.agreement),
        accuracy=finite(over.accuracy),
        deterministic=deterministic,
        grid_pixels=over.grid_pixels,
        differing=over.differing,
        notes=(
            *(f"{name}: not cut into batches of {runner.contract.batch}" for name in sorted(over.left_out)),
            *(f"{name}: not forced, the file does not show where" for name in unforced),
        ),
        failure=next(filter(None, failures), ""),
    )


def _multiple(point: Point, error: float) -> float:
    return 0.0 if point.kind == COUNT else error / max(point.eager_error, point.rounding)


def _uncompared(comparisons: Mapping[str, Mapping[str, Comparison]], over: OverExamples, reference: Reference) -> str:
    """Name the outputs that no test input compared; those left out for a static batch are noted elsewhere."""
    seen = {point for results in comparisons.values() for point in results} | over.left_out
    lost = [spec.name for spec in reference.contract.outputs if spec.name not in seen]
    return (
        f"{', '.join(lost)}: there was nothing to compare, it is empty or not finite in PyTorch itself" if lost else ""
    )


def _forcing(unforced: Sequence[str], comparisons: Mapping[str, Mapping[str, Comparison]], reference: Reference) -> str:
    """Name a theta that was not overridden although the artifact exposes it, or the grid that stands for it."""
    shown = {point for results in comparisons.values() for point in results}
    for name in unforced:
        forced = reference.challenges[name].forced
        if forced is None:
            continue
        site, _ = forced
        grid = {site.point(GRID)} if reference.program.acts_through_grid(site) else set()
        if shown & ({site.point(THETA)} | grid):
            return f"{name}: theta was not forced, though the file shows where"
    return ""


def answers(runner: Runner, reference: Reference) -> Iterator[tuple[str, Challenge, Arrays | None]]:
    """Run a runner on every test input of a size that it accepts, with grids in pixels.

    The values are None if the runner cannot override a theta.
    """
    for name, challenge in reference.challenges.items():
        if not takes(runner.contract, challenge.batch):
            continue
        call: Call = runner.points
        if challenge.forced:
            site, theta = challenge.forced
            grid = challenge.true[site.point(GRID)] / challenge.units[site.point(GRID)]
            alone = reference.program.acts_through_grid(site)
            call = partial(runner.forced_points, site=site.name, theta=theta.numpy(), grid=grid[0] if alone else None)
        with _naming_size(name):
            actual = feed(call, challenge.batch, runner.contract, reference.rows)
        yield name, challenge, None if actual is None else in_pixels(actual, challenge.units)


@contextmanager
def _naming_size(name: str) -> Iterator[None]:
    """Say at which other size a runner fails, and what that usually is.

    Raises:
        RuntimeError: instead of what the runner raised.
    """
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        if name not in QUARTERS:
            raise
        raise RuntimeError(f"at a {name} {one_line(error)}; usually {FROZEN}") from error


def compare_points(
    runner: Runner, actual: Arrays, challenge: Challenge, reference: Reference, tolerance: Tolerance, far: bool = False
) -> dict[str, Comparison]:
    """Compare every point that the artifact exposes, in the network's order; a missing output is a failure.

    With ``far`` the test input is far from the data, see ``Tolerance.far``.
    """
    left_out = uncut(challenge.batch, runner.contract, reference)
    results = {}
    for name, point in reference.points.items():
        if name in challenge.true and name not in left_out and (name in actual or point.site is None):
            strayed = max(point.eager_error, challenge.eager_errors.get(name, 0.0))
            bound = tolerance.far(point.kind, point.scale, strayed) if far else point.bound(tolerance)
            results[name] = _compare(actual.get(name), challenge, point, bound, challenge.strays(point, tolerance))
    return results


def _compare(actual: np.ndarray | None, challenge: Challenge, point: Point, bound: Bound, strays: int) -> Comparison:
    true = challenge.true[point.name]
    if actual is None:
        return Comparison(f"there is no output {point.name}")
    if point.kind == COUNT and actual.dtype.kind == "f":
        return Comparison(f"type {actual.dtype} instead of {true.dtype}")
    return compare(challenge.clear(point.name, actual), true, bound, strays)


def first_failure(results: Mapping[str, Comparison], actual: Arrays, challenge: Challenge, reference: Reference) -> str:
    """Describe the first point that differs and the probable mistake there; empty if none differs."""
    for name, result in results.items():
        if not result:
            cause = (
                diagnose(reference.points[name], actual[name], challenge, reference.program) if name in actual else ""
            )
            return f"first wrong at {reference.called(name)}: {result.reason}" + (f"; {cause}" if cause else "")
    return ""


def worst_errors(comparisons: Mapping[str, Mapping[str, Comparison]]) -> dict[str, float]:
    """Return the largest error by point; infinite if one is unknown because values are not finite."""
    errors: dict[str, float] = {}
    for results in comparisons.values():
        for point, result in results.items():
            error = math.inf if result.max_abs is None else result.max_abs
            errors[point] = max(errors.get(point, 0.0), error)
    return errors


def check_repeats(runner: Runner, reference: Reference, tolerance: Tolerance) -> tuple[bool, str]:
    """Return whether ten runs are identical, and what is wrong if an example's output depends on its neighbours."""
    contract = reference.contract
    batch = reference.examples.take(contract.batch or NEIGHBOURS)
    size = size_of(batch, contract)

    def infer(*chosen: int) -> Arrays:
        return feed(runner.infer, rows_of(batch, contract, torch.tensor(chosen)), runner.contract, reference.rows)

    straight = range(size)
    first = infer(*straight)
    repeats = [infer(*straight) for _ in range(REPEATS - 1)]
    deterministic = all(same_numbers(first[name], again[name]) for again in repeats for name in first)
    for order in (straight[::-1], (0,)):
        for name, values in infer(*order).items():
            point = reference.points.get(name)
            if point is None or not point.rows:
                continue
            expected = np.concatenate([first[name][point.rows * row : point.rows * (row + 1)] for row in order])
            if not np.isfinite(expected).any():
                continue
            strays = 0 if point.steady else int(np.ceil(tolerance.strays * expected.size))
            if not (result := compare(values[: len(expected)], expected, point.bound(tolerance), strays)):
                return deterministic, f"an example's {name} depends on its neighbours: {result.reason}"
    return deterministic, ""


def same_numbers(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays are bitwise equal, except for the payload of NaN."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def check_refusals(runner: Runner, reference: Reference) -> str:
    """Return what is wrong if an input that is not finite gets an answer instead of an error."""
    feeds = runner.contract.arrays(reference.examples.take(runner.contract.batch or 1))
    for spec in runner.contract.inputs:
        for value in (float("nan"), float("inf")) if spec.is_float else ():
            try:
                runner.infer(feeds | {spec.name: np.full_like(feeds[spec.name], value)})
            except UserError:
                continue
            return f"{spec.name} of {value} are accepted instead of refused"
    return ""


def judge(multiple: float, over: OverExamples, reference: Reference, tolerance: Tolerance) -> str:
    """Return what is wrong with the worst error or with the results over all examples; empty if nothing is."""
    if not multiple <= tolerance.multiple:
        return f"the worst error is {multiple:.1f} times float32 eager's own, more than {tolerance.multiple:g} times"
    if over.broken:
        return over.broken
    count = len(reference.examples)
    if beyond(count * (1 - over.agreement), 1 - tolerance.agreement, count):
        return f"{over.agreement:.2%} of the examples are classified as in float32, less than {tolerance.agreement:.2%}"
    if beyond(count * (reference.accuracy - over.accuracy), tolerance.accuracy_loss, count):
        loss = 100 * (reference.accuracy - over.accuracy)
        return f"accuracy falls by {loss:.2f} points, more than {100 * tolerance.accuracy_loss:g}"
    for name, (right, whole) in over.whole.items():
        if beyond(whole - right, 1 - tolerance.agreement, whole):
            return f"{right} of {whole} {name} over the examples are right, less than {tolerance.agreement:.2%}"
    for name, error in over.rms.items():
        if not error <= tolerance.rms:
            return f"{name} is {error:.2%} off in root mean square, more than {tolerance.rms:.0%}"
    return ""
