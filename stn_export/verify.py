"""Prove every artifact equal to PyTorch: ``python -m stn_export.verify --run artifacts/<run>``.

Every artifact goes through every runner that is available here and is set against eager PyTorch in float32 on the
CPU, on real test images and on noise; then it classifies the whole test set.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn_export import cli
from stn_export.artifacts import VERIFY_FILE, VERIFY_SCHEMA, Artifact, ModelDirectory, model_directories, write_json
from stn_export.compare import Comparison, compare
from stn_export.config import (
    ARTIFACTS,
    DEFAULT_DATASET,
    IMAGE_SHAPE,
    TOLERANCES,
    VERIFY_BATCHES,
    Tolerance,
)
from stn_export.data import Dataset, contract_batch, example_images, trained_on
from stn_export.environment import describe
from stn_export.errors import CheckFailedError
from stn_export.runners import RUNNERS, Runner, RunnerSpec

REFERENCE = RUNNERS[0]
TEST_BATCH = 1000


@dataclass(frozen=True)
class Check:
    """One artifact through one runner: a comparison per input, agreement with eager PyTorch and accuracy over the
    test set, and what went wrong if anything.
    """

    model: str
    artifact: str
    sha256: str
    runner: str
    comparisons: dict[str, Comparison]
    agreement: float
    accuracy: float
    error: str = ""

    @property
    def failure(self) -> str:
        """The first thing that went wrong, or an empty string."""
        if not self.comparisons and not self.error:
            return "nothing was compared"
        differing = (f"{inputs}: {result.reason}" for inputs, result in self.comparisons.items() if not result)
        return next(differing, self.error)

    def worst(self, figure: str) -> float:
        """The largest of a figure over all inputs."""
        return max((getattr(result, figure) for result in self.comparisons.values()), default=float("nan"))

    def as_dict(self) -> dict:
        """JSON-ready: the worst figures over all inputs and the verdict, then everything behind them."""
        return {
            "passed": not self.failure,
            "failure": self.failure,
            "max_abs": self.worst("max_abs"),
            "max_rel": self.worst("max_rel"),
        } | asdict(self)


def verification_inputs(dataset: Dataset) -> dict[str, Tensor]:
    """uint8 batches to compare on, by name: real test images and uniform noise at every batch size."""
    random = torch.Generator().manual_seed(0)
    inputs = {}
    for batch in VERIFY_BATCHES:
        inputs[f"test images ×{batch}"] = example_images(dataset, batch)
        inputs[f"noise ×{batch}"] = torch.randint(256, (batch, *IMAGE_SHAPE), generator=random, dtype=torch.uint8)
    return inputs


def classify(runner: Runner, dataset: Dataset, contract: dict) -> np.ndarray:
    """The predicted class of every test image."""
    parts = dataset.test.images.split(TEST_BATCH)
    return np.concatenate([runner.infer(contract_batch(part, contract)).argmax(1) for part in parts])


@dataclass(frozen=True)
class Reference:
    """What eager PyTorch gives: log-probabilities by input name, the class of every test image, its accuracy."""

    inputs: dict[str, Tensor]
    log_probs: dict[str, np.ndarray]
    classes: np.ndarray
    labels: np.ndarray

    @property
    def accuracy(self) -> float:
        """Over the test set, in [0, 1]."""
        return float((self.classes == self.labels).mean())


def make_reference(directory: ModelDirectory, dataset: Dataset) -> Reference:
    """Run eager PyTorch in float32 on the CPU."""
    artifact = directory.checkpoint()
    eager = REFERENCE.open(directory.open(artifact))
    inputs = verification_inputs(dataset)
    log_probs = {name: eager.infer(contract_batch(images, artifact.input_contract)) for name, images in inputs.items()}
    classes = classify(eager, dataset, artifact.input_contract)
    return Reference(inputs, log_probs, classes, dataset.test.labels.numpy())


def check_artifact(artifact: Artifact, path: Path, spec: RunnerSpec, reference: Reference, dataset: Dataset) -> Check:
    """Run one artifact through one runner; whatever it raises is a failed check, never a missing one."""
    tolerance, contract = TOLERANCES[artifact.precision], artifact.input_contract
    comparisons, agreement, accuracy, error = {}, float("nan"), float("nan"), ""
    try:
        runner = spec.open(path, contract)
        for name, images in reference.inputs.items():
            actual = runner.infer(contract_batch(images, contract))
            comparisons[name] = compare(actual, reference.log_probs[name], tolerance)
        classes = classify(runner, dataset, contract)
        agreement = float((classes == reference.classes).mean())
        accuracy = float((classes == reference.labels).mean())
        error = judge_predictions(agreement, reference.accuracy - accuracy, tolerance)
    except Exception as problem:
        error = f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
    return Check(artifact.model, artifact.name, artifact.sha256, spec.name, comparisons, agreement, accuracy, error)


def judge_predictions(agreement: float, accuracy_loss: float, tolerance: Tolerance) -> str:
    """What is wrong with the predictions over the test set, or an empty string."""
    if agreement < tolerance.agreement:
        return f"{agreement:.2%} of the test set is classified as by eager PyTorch, less than {tolerance.agreement:.2%}"
    if accuracy_loss > tolerance.accuracy_loss:
        return f"test accuracy falls by {100 * accuracy_loss:.2f} points, not at most {100 * tolerance.accuracy_loss:g}"
    return ""


def verify_model(directory: ModelDirectory, data: Path | None) -> Iterator[Check]:
    """Check every artifact of a model through every runner available here, one at a time."""
    artifacts = directory.expected()
    dataset = trained_on(directory.checkpoint(), data)
    reference = make_reference(directory, dataset)
    for artifact, path in artifacts:
        for spec in RUNNERS:
            if spec.format == artifact.format and not spec.unavailable():
                yield check_artifact(artifact, path, spec, reference, dataset)


def unavailable_runners() -> dict[str, str]:
    """The runners that cannot run here, with the reason."""
    return {spec.name: reason for spec in RUNNERS if (reason := spec.unavailable())}


def main(arguments: Sequence[str] | None = None) -> None:
    """Verify a run, print the table, write ``verify.json``.

    Raises:
        CheckFailedError: where any artifact differs, or nothing was compared.
    """
    parser = cli.stage("verify", "Prove that every artifact of a run gives what PyTorch gives.")
    parser.add_argument("--run", type=cli.path_or_none, help=f"run directory; by default {ARTIFACTS}/{DEFAULT_DATASET}")
    parser.add_argument(
        "--data",
        type=cli.path_or_none,
        help="directory that holds CIFAR-10; by default where training read it",
    )
    parser.add_argument("--json", action="store_true", help="print verify.json instead of the table")
    options = parser.parse_args(arguments)
    run = options.run or ARTIFACTS / DEFAULT_DATASET

    checks = [check for directory in model_directories(run) for check in verify_model(directory, options.data)]
    failures = [check for check in checks if check.failure]
    content = {
        "passed": bool(checks) and not failures,
        "checks": [check.as_dict() for check in checks],
        "unavailable": unavailable_runners(),
        "tolerances": {precision: asdict(tolerance) for precision, tolerance in TOLERANCES.items()},
        "environment": describe(),
    }
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, content)
    if options.json:
        cli.print_json(content)
    else:
        _print(content["checks"])
    if failures or not checks:
        first = (
            f": {failures[0].model}/{failures[0].artifact} on {failures[0].runner}: {failures[0].failure}"
            if failures
            else ""
        )
        raise CheckFailedError(f"{len(failures)} of {len(checks)} checks{first}")


def _print(checks: list[dict]) -> None:
    rows = [
        (
            f"{check['model']}/{check['artifact']}",
            check["runner"],
            f"{check['max_abs']:.1e}",
            f"{check['max_rel']:.1e}",
            f"{check['agreement']:.2%}",
            f"{check['accuracy']:.2%}",
            "[green]equal[/]" if check["passed"] else "[red]FAILED[/]",
        )
        for check in sorted(checks, key=lambda check: check["passed"])
    ]
    columns = ("artifact", "runner", "max abs", "max rel", "agreement", "test accuracy", "verdict")
    cli.table("Parity with eager PyTorch", columns, rows)
    for name, reason in unavailable_runners().items():
        cli.say(f"[dim]{name} was not run: {reason}[/]")


if __name__ == "__main__":
    sys.exit(cli.run(main))
