"""One artifact through one runner against the truth: every challenge, every point, and the whole test set.

The truth is the network in float64. An artifact passes where each point stays within its precision's tolerance, its
worst error is no large multiple of float32 eager's own, and its predictions are PyTorch's.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stn_export.artifacts.manifest import Artifact, NetworkDirectory
from stn_export.comparison.compare import Comparison, compare
from stn_export.comparison.tolerances import TOLERANCES, Bound, Tolerance
from stn_export.config import OUTPUT_NAME
from stn_export.errors import UserError
from stn_export.program.probes import POINTS, eager_points
from stn_export.runners import Runner, RunnerSpec
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset, contract_batch, normalise
from stn_export.verify.challenges import THETAS, force_theta, image_challenges
from stn_export.verify.diagnosis import diagnose

TEST_BATCH = 1000
REPEATS = 10
MOST_DIFFERENT = 10
FORCED_IMAGES = 16
Points = dict[str, np.ndarray]


@dataclass(frozen=True)
class Challenge:
    """A batch (uint8), the network it is put to, what float64 gives at every point, and float32 eager's own errors."""

    images: Tensor
    model: nn.Module
    true: Points
    eager_errors: dict[str, float]


@dataclass(frozen=True)
class Truth:
    """What a trained model gives in float64, challenge by challenge and over the test set."""

    model: nn.Module  # float32
    model64: nn.Module
    dataset: Dataset
    weights: dict[str, np.ndarray]  # the checkpoint's parameters
    challenges: dict[str, Challenge]
    forced: dict[str, Challenge]  # by name of the theta
    classes: np.ndarray  # float32 eager's predictions of the test set
    log_probs: np.ndarray
    grids: np.ndarray | None  # of the test set, N×H×W×2 float32, in pixels

    @cached_property
    def accuracy(self) -> float:
        """Of float32 eager over the test set, in [0, 1]."""
        return float((self.classes == self.dataset.test.labels.numpy()).mean())

    @cached_property
    def eager_errors(self) -> dict[str, float]:
        """Float32 eager's worst error at every point, over all challenges."""
        every = [challenge.eager_errors for challenge in (*self.challenges.values(), *self.forced.values())]
        return {point: max(errors[point] for errors in every) for point in (every[0] if every else ())}


@dataclass(frozen=True)
class Check:
    """What came of one artifact in one runner.

    ``comparisons`` are by challenge and point; ``errors`` the worst by point (the grid in pixels), ``multiple`` the
    worst of them in units of float32 eager's own; ``grid_pixels`` mean and worst over the test set; ``differing``
    the test images where it strays furthest from float64, with by how much; ``search`` what a search for worse inputs
    came to, where one was asked for.
    """

    model: str
    artifact: str
    sha256: str
    runner: str
    precision: str
    comparisons: dict[str, dict[str, Comparison]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    multiple: float = float("nan")
    agreement: float = float("nan")
    accuracy: float = float("nan")
    deterministic: bool = False
    grid_pixels: dict[str, float] | None = None
    differing: tuple[tuple[int, float], ...] = ()
    failure: str = "nothing was compared"
    search: dict | None = None

    def as_dict(self) -> dict:
        """JSON-ready, with the verdict."""
        return {"passed": not self.failure} | asdict(self)


def make_truth(directory: NetworkDirectory, dataset: Dataset) -> Truth:
    """Run a model of a run in float64 and in float32 on the CPU."""
    return truth_of(load_checkpoint(directory.open(directory.checkpoint())).model, dataset)


def truth_of(model: nn.Module, dataset: Dataset) -> Truth:
    """The same for a model at hand, in evaluation mode and float32."""
    model64 = copy.deepcopy(model).double()
    challenges = {name: make_challenge(model, model64, images) for name, images in image_challenges(dataset).items()}
    forced = {}
    if hasattr(model, "transformer"):
        images = dataset.test.images[:FORCED_IMAGES]
        for name, theta in THETAS.items():
            forced[name] = make_challenge(force_theta(model, theta), force_theta(model64, theta), images)
    parts = dataset.test.images.split(TEST_BATCH)
    classes = [eager_points(model, normalise(part))[OUTPUT_NAME].argmax(1) for part in parts]
    exact = [eager_points(model64, normalise(part).double()) for part in parts]
    grids = np.concatenate([points["grid"].astype(np.float32) for points in exact]) if forced else None
    log_probs = np.concatenate([points[OUTPUT_NAME] for points in exact])
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Truth(model, model64, dataset, weights, challenges, forced, np.concatenate(classes), log_probs, grids)


def make_challenge(model: nn.Module, model64: nn.Module, images: Tensor) -> Challenge:
    """Put a batch (uint8 N×3×32×32) to a network in float64 and to the same in float32."""
    true = eager_points(model64, normalise(images).double())
    eager = eager_points(model, normalise(images))
    return Challenge(images, model64, true, {point: float(np.abs(eager[point] - true[point]).max()) for point in true})


def check_artifact(artifact: Artifact, path: Path, spec: RunnerSpec, truth: Truth) -> Check:
    """Run one artifact through one runner; whatever it raises is a failed check, never a missing one."""
    known = (artifact.model, artifact.name, artifact.sha256, spec.name, spec.tolerance_of(artifact.precision))
    try:
        contract = spec.verified_as(artifact.input_contract)
        return _check(known, spec.open(path, contract), contract, truth)
    except Exception as problem:
        return Check(*known, failure=f"{type(problem).__name__}: {str(problem).splitlines()[0]}")


def _check(known: tuple[str, ...], runner: Runner, contract: dict, truth: Truth) -> Check:
    tolerance = TOLERANCES[known[-1]].allowing(truth.eager_errors)
    comparisons: dict[str, dict[str, Comparison]] = {}
    failures = [check_weights(runner.weights(), truth.weights)] if known[-1] == "fp32" else []
    for name, challenge, actual in answers(runner, contract, truth):
        comparisons[name] = compare_points(actual, challenge, tolerance)
        if failure := first_failure(comparisons[name], actual, challenge):
            failures.append(f"{name}: {failure}")
    errors = worst_errors(comparisons)
    multiple = max((errors[point] / truth.eager_errors[point] for point in errors), default=float("nan"))
    over_test_set = check_test_set(runner, contract, truth)
    deterministic, dependent = check_repeats(runner, contract, truth, tolerance.at(OUTPUT_NAME))
    failures += [dependent, check_refusals(runner, contract), judge(multiple, over_test_set, truth, tolerance)]
    failure = next(filter(None, failures), "")
    return Check(*known, comparisons, errors, multiple, deterministic=deterministic, failure=failure, **over_test_set)


def feed(call: Callable[[np.ndarray], Points | None], images: Tensor, runner: Runner, contract: dict) -> Points | None:
    """What ``call`` gives for uint8 images; in filled-up batches where the artifact's batch is fixed."""
    if runner.batch is None:
        return call(contract_batch(images, contract))
    parts = []
    for part in images.split(runner.batch):
        filled = torch.cat([part, part.new_zeros(runner.batch - len(part), *part.shape[1:])])
        if (points := call(contract_batch(filled, contract))) is None:
            return None
        parts.append({point: values[: len(part)] for point, values in points.items()})
    return {point: np.concatenate([points[point] for points in parts]) for point in parts[0]}


def infer(runner: Runner, images: Tensor, contract: dict) -> np.ndarray:
    """Log-probabilities of uint8 images."""
    return feed(lambda batch: {OUTPUT_NAME: runner.infer(batch)}, images, runner, contract)[OUTPUT_NAME]


def answers(runner: Runner, contract: dict, truth: Truth) -> Iterator[tuple[str, Challenge, Points]]:
    """What a runner gives for every challenge that its format can be put to."""
    for name, challenge in truth.challenges.items():
        yield name, challenge, feed(runner.points, challenge.images, runner, contract)
    for name, challenge in truth.forced.items():
        forced = partial(runner.forced_points, theta=THETAS[name], true=challenge.true)
        if (actual := feed(forced, challenge.images, runner, contract)) is not None:
            yield f"theta {name}", challenge, actual


def compare_points(actual: Points, challenge: Challenge, tolerance: Tolerance) -> dict[str, Comparison]:
    """Compare every point that the artifact shows, in the network's order; the last must be among them."""
    shown = [point for point in POINTS if point in challenge.true and (point in actual or point == OUTPUT_NAME)]
    return {
        point: compare(actual[point], challenge.true[point], tolerance.at(point))
        if point in actual
        else Comparison(f"there is no output {point}")
        for point in shown
    }


def first_failure(results: dict[str, Comparison], actual: Points, challenge: Challenge) -> str:
    """The first point that differs and what was probably done wrong there; empty where none does."""
    for point, result in results.items():
        if not result:
            images = normalise(challenge.images).double()
            cause = diagnose(point, actual[point], challenge.true, challenge.model, images) if point in actual else ""
            return f"first wrong at {point}: {result.reason}" + (f"; {cause}" if cause else "")
    return ""


def check_weights(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str:
    """What is wrong with the parameters that an artifact shows: in float32 they must be the checkpoint's to the bit."""
    for name, array in expected.items():
        if name in actual and not np.array_equal(actual[name], array):
            if actual[name].shape != array.shape:
                return f"first wrong at weights: {name} has shape {actual[name].shape} instead of {array.shape}"
            difference = np.abs(actual[name].astype(np.float64) - array)
            at = tuple(map(int, np.unravel_index(difference.argmax(), array.shape)))
            return f"first wrong at weights: {name} is {difference[at]:.1e} off at {at}; usually other weights"
    return ""


def worst_errors(comparisons: dict[str, dict[str, Comparison]]) -> dict[str, float]:
    """The largest error by point."""
    errors: dict[str, float] = {}
    for results in comparisons.values():
        for point, result in results.items():
            errors[point] = max(errors.get(point, 0.0), result.max_abs)
    return errors


def check_test_set(runner: Runner, contract: dict, truth: Truth) -> dict:
    """Agreement, accuracy, the grid's error in pixels, and the images that differ most, over the whole test set."""
    outputs, grids = [], []
    for part in truth.dataset.test.images.split(TEST_BATCH):
        points = feed(runner.points, part, runner, contract)
        outputs.append(points[OUTPUT_NAME])
        if "grid" in points:
            grids.append(points["grid"])
    log_probs = np.concatenate(outputs)
    classes, strayed = log_probs.argmax(1), np.abs(log_probs - truth.log_probs).max(axis=1)
    furthest = np.argsort(-strayed)[:MOST_DIFFERENT]
    pixels = None
    if grids:
        distance = np.linalg.norm(np.concatenate(grids) - truth.grids, axis=-1)
        pixels = {"mean": float(distance.mean()), "worst": float(distance.max())}
    return {
        "agreement": float((classes == truth.classes).mean()),
        "accuracy": float((classes == truth.dataset.test.labels.numpy()).mean()),
        "grid_pixels": pixels,
        "differing": tuple((int(index), float(strayed[index])) for index in furthest),
    }


def check_repeats(runner: Runner, contract: dict, truth: Truth, bound: Bound) -> tuple[bool, str]:
    """Whether ten runs are identical, and what is wrong where an image's output depends on its neighbours."""
    images = truth.dataset.test.images[:7]
    first = infer(runner, images, contract)
    repeats = [infer(runner, images, contract) for _ in range(REPEATS - 1)]
    backwards = infer(runner, images.flip(0), contract)[::-1]
    alone = infer(runner, images[:1], contract)
    deterministic = all(np.array_equal(first, again) for again in repeats)
    for result in (compare(backwards, first, bound), compare(alone, first[:1], bound)):
        if not result:
            return deterministic, f"an image's output depends on its neighbours: {result.reason}"
    return deterministic, ""


def check_refusals(runner: Runner, contract: dict) -> str:
    """What is wrong where a batch that is not finite is answered; raw bytes are always finite."""
    if contract["dtype"] != "float32":
        return ""
    for value in (float("nan"), float("inf")):
        try:
            runner.infer(np.full((runner.batch or 1, *contract["shape"][1:]), value, np.float32))
        except UserError:
            continue
        return f"images of {value} are answered instead of refused"
    return ""


def judge(multiple: float, over_test_set: dict, truth: Truth, tolerance: Tolerance) -> str:
    """What is wrong with the worst error and with the predictions over the test set, or an empty string."""
    agreement, loss = over_test_set["agreement"], truth.accuracy - over_test_set["accuracy"]
    if not multiple <= tolerance.multiple:
        return f"the worst error is {multiple:.1f} times float32 eager's own, more than {tolerance.multiple:g} times"
    if agreement < tolerance.agreement:
        return f"{agreement:.2%} of the test set is classified as in float32, less than {tolerance.agreement:.2%}"
    if loss > tolerance.accuracy_loss:
        return f"test accuracy falls by {100 * loss:.2f} points, more than {100 * tolerance.accuracy_loss:g}"
    return ""
