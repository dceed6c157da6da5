"""One artifact through one runner against the truth: every challenge, every point, and all examples.

The truth is the network in float64. An artifact passes where each point stays within its precision's tolerance, its
worst error is no large multiple of float32 eager's own, and its predictions are PyTorch's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace

from stn_export.artifacts.manifest import Artifact
from stn_export.artifacts.records import Check, Comparison, finite
from stn_export.comparison.compare import NOTHING, compare
from stn_export.comparison.tolerances import COUNT, GRID, THETA, TOLERANCES, Bound, Tolerance, beyond
from stn_export.errors import UserError, one_line
from stn_export.graphs.saturation import saturation_of
from stn_export.program.specs import Arrays
from stn_export.runners import Runner, RunnerSpec
from stn_export.runtimes import RefusedError
from stn_export.verify.challenges import FAR, rows_of, size_of
from stn_export.verify.diagnosis import diagnose
from stn_export.verify.feeding import Call, feed, takes, uncut
from stn_export.verify.over import OverExamples, over_examples
from stn_export.verify.points import Point, in_pixels
from stn_export.verify.truth import Challenge, Truth
from stn_export.verify.weights import check_weights

REPEATS = 10
NEIGHBOURS = 7


def unchecked(artifact: Artifact, runner: str, precision: str, failure: str) -> Check:
    """Return the failed check of an artifact that nothing was compared of."""
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


def check_artifact(artifact: Artifact, path: Path, spec: RunnerSpec, truth: Truth) -> Check:
    """Run one artifact through one runner; whatever it raises is a failed check, never a missing one.

    Raises:
        RefusedError: where a runner of others' refuses the file, which is no mistake of the file's.
    """
    precision = spec.tolerance_of(artifact.precision)
    blank = unchecked(artifact, spec.name, precision, NOTHING)
    try:
        check = _check(blank, spec.open(path, spec.verified_as(artifact.contract)), truth)
        if check.failure or (artifact.format, artifact.precision) != ("onnx", "int8"):
            return check
        return replace(check, failure=saturation_of(path))
    except (RefusedError, KeyboardInterrupt):
        raise
    except BaseException as problem:  # a module's own code may raise anything, also what ends a process
        return replace(blank, failure=one_line(problem))


def _check(blank: Check, runner: Runner, truth: Truth) -> Check:
    tolerance = TOLERANCES[blank.precision]
    tolerance = tolerance.in_order if runner.sums_in_order else tolerance
    comparisons: dict[str, dict[str, Comparison]] = {}
    failures = [check_weights(runner.weights(), *truth.weights)] if blank.precision == "fp32" else []
    unforced: list[str] = []
    magnified = () if math.isinf(tolerance.multiple) else FAR  # ONNX Runtime normalises them with sums in order
    for name, challenge, actual in answers(runner, truth):
        if actual is None:
            unforced.append(name)
            continue
        drawn = name in magnified
        comparisons[name] = compare_points(
            runner, actual, challenge, truth, tolerance.in_order if drawn else tolerance, far=drawn
        )
        if not any(failures) and (failure := first_failure(comparisons[name], actual, challenge, truth)):
            failures.append(f"{name}: {failure}")  # of the others nobody hears: finding their causes takes long
    errors = worst_errors(comparisons)
    usual = worst_errors({name: compared for name, compared in comparisons.items() if name not in magnified})
    multiple = max((_multiple(truth.points[name], error) for name, error in usual.items()), default=float("nan"))
    over = over_examples(runner, truth)
    deterministic, dependent = check_repeats(runner, truth, tolerance)
    nothing = _uncompared(comparisons, over, truth) if any(comparisons.values()) else blank.failure
    failures += [
        nothing,
        _forcing(unforced, comparisons, truth),
        dependent,
        check_refusals(runner, truth),
        judge(multiple, over, truth, tolerance),
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


def _uncompared(comparisons: Mapping[str, Mapping[str, Comparison]], over: OverExamples, truth: Truth) -> str:
    """Say which output no challenge could compare; one that a fixed batch cannot cut is noted instead."""
    seen = {point for results in comparisons.values() for point in results} | over.left_out
    lost = [spec.name for spec in truth.contract.outputs if spec.name not in seen]
    return f"{', '.join(lost)}: nothing was compared, it is empty or not finite in PyTorch itself" if lost else ""


def _forcing(unforced: Sequence[str], comparisons: Mapping[str, Mapping[str, Comparison]], truth: Truth) -> str:
    """Say which theta was not forced though the artifact shows it, or shows the grid that stands for it."""
    shown = {point for results in comparisons.values() for point in results}
    for name in unforced:
        forced = truth.challenges[name].forced
        if forced is None:
            continue
        site, _ = forced
        grid = {site.point(GRID)} if truth.program.acts_through_grid(site) else set()
        if shown & ({site.point(THETA)} | grid):
            return f"{name}: theta was not forced, though the file shows where"
    return ""


def answers(runner: Runner, truth: Truth) -> Iterator[tuple[str, Challenge, Arrays | None]]:
    """Put every challenge to a runner that its sizes take; None where it cannot force a theta. Grids are in pixels."""
    for name, challenge in truth.challenges.items():
        if not takes(runner.contract, challenge.batch):
            continue
        call: Call = runner.points
        if challenge.forced:
            site, theta = challenge.forced
            grid = challenge.true[site.point(GRID)] / challenge.units[site.point(GRID)]
            alone = truth.program.acts_through_grid(site)
            call = partial(runner.forced_points, site=site.name, theta=theta.numpy(), grid=grid[0] if alone else None)
        actual = feed(call, challenge.batch, runner.contract, truth.rows)
        yield name, challenge, None if actual is None else in_pixels(actual, challenge.units)


def compare_points(
    runner: Runner, actual: Arrays, challenge: Challenge, truth: Truth, tolerance: Tolerance, far: bool = False
) -> dict[str, Comparison]:
    """Compare every point that the artifact shows, in the network's order; outputs must be among them.

    With ``far`` the challenge is far from the data, see ``Tolerance.far``.
    """
    left_out = uncut(challenge.batch, runner.contract, truth)
    results = {}
    for name, point in truth.points.items():
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


def first_failure(results: Mapping[str, Comparison], actual: Arrays, challenge: Challenge, truth: Truth) -> str:
    """The first point that differs and what was probably done wrong there; empty where none does."""
    for name, result in results.items():
        if not result:
            cause = diagnose(truth.points[name], actual[name], challenge, truth.program) if name in actual else ""
            return f"first wrong at {truth.called(name)}: {result.reason}" + (f"; {cause}" if cause else "")
    return ""


def worst_errors(comparisons: Mapping[str, Mapping[str, Comparison]]) -> dict[str, float]:
    """The largest error by point; infinite where one could not be told, as what is not finite knows no bound."""
    errors: dict[str, float] = {}
    for results in comparisons.values():
        for point, result in results.items():
            error = math.inf if result.max_abs is None else result.max_abs
            errors[point] = max(errors.get(point, 0.0), error)
    return errors


def check_repeats(runner: Runner, truth: Truth, tolerance: Tolerance) -> tuple[bool, str]:
    """Whether ten runs are identical, and what is wrong where an example's output depends on its neighbours."""
    contract = truth.contract
    batch = truth.examples.take(contract.batch or NEIGHBOURS)
    size = size_of(batch, contract)

    def infer(*chosen: int) -> Arrays:
        return feed(runner.infer, rows_of(batch, contract, torch.tensor(chosen)), runner.contract, truth.rows)

    straight = range(size)
    first = infer(*straight)
    repeats = [infer(*straight) for _ in range(REPEATS - 1)]
    deterministic = all(same_numbers(first[name], again[name]) for again in repeats for name in first)
    for order in (straight[::-1], (0,)):
        for name, values in infer(*order).items():
            point = truth.points.get(name)
            if point is None or not point.rows:
                continue
            wanted = np.concatenate([first[name][point.rows * row : point.rows * (row + 1)] for row in order])
            if not np.isfinite(wanted).any():
                continue
            strays = 0 if point.steady else int(np.ceil(tolerance.strays * wanted.size))
            if not (result := compare(values[: len(wanted)], wanted, point.bound(tolerance), strays)):
                return deterministic, f"an example's {name} depends on its neighbours: {result.reason}"
    return deterministic, ""


def same_numbers(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are the same to the bit but for the payload of NaN."""
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def check_refusals(runner: Runner, truth: Truth) -> str:
    """What is wrong where an input that is not finite is answered; whole numbers are always finite."""
    feeds = runner.contract.arrays(truth.examples.take(runner.contract.batch or 1))
    for spec in runner.contract.inputs:
        for value in (float("nan"), float("inf")) if spec.is_float else ():
            try:
                runner.infer(feeds | {spec.name: np.full_like(feeds[spec.name], value)})
            except UserError:
                continue
            return f"{spec.name} of {value} are answered instead of refused"
    return ""


def judge(multiple: float, over: OverExamples, truth: Truth, tolerance: Tolerance) -> str:
    """What is wrong with the worst error and over all examples, or an empty string."""
    if not multiple <= tolerance.multiple:
        return f"the worst error is {multiple:.1f} times float32 eager's own, more than {tolerance.multiple:g} times"
    if over.broken:
        return over.broken
    count = len(truth.examples)
    if beyond(count * (1 - over.agreement), 1 - tolerance.agreement, count):
        return f"{over.agreement:.2%} of the examples are classified as in float32, less than {tolerance.agreement:.2%}"
    if beyond(count * (truth.accuracy - over.accuracy), tolerance.accuracy_loss, count):
        loss = 100 * (truth.accuracy - over.accuracy)
        return f"accuracy falls by {loss:.2f} points, more than {100 * tolerance.accuracy_loss:g}"
    for name, (right, whole) in over.whole.items():
        if beyond(whole - right, 1 - tolerance.agreement, whole):
            return f"{right} of {whole} {name} over the examples are right, less than {tolerance.agreement:.2%}"
    for name, error in over.rms.items():
        if not error <= tolerance.rms:
            return f"{name} is {error:.2%} off in root mean square, more than {tolerance.rms:.0%}"
    return ""
