"""What is timed: every artifact of a run with every runner that can take it here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn_export.artifacts import Artifact, model_directories
from stn_export.data import contract_batch
from stn_export.errors import UserError
from stn_export.runners import RUNNERS, RunnerSpec, Step


@dataclass(frozen=True)
class Target:
    """One artifact and the runner it is timed with."""

    artifact: Artifact
    path: Path
    runner: RunnerSpec

    @property
    def backend(self) -> str:
        """Runner and artifact, without the model."""
        return f"{self.runner.name}-{self.artifact.name}"

    @property
    def kind(self) -> tuple[str, str, str]:
        """What two targets share that may be set against each other: runner, precision and input."""
        return self.runner.name, self.artifact.precision, self.artifact.settings.get("contract", "float")

    def __str__(self) -> str:
        return f"{self.artifact.model}-{self.backend}"

    def step(self, images: Tensor) -> Step:
        """The artifact loaded and bound to uint8 images, which are put in place as its input contract asks.

        What the step computes is compared with what ``infer`` gives, so that nothing but the right answer is timed.
        """
        contract = self.artifact.input_contract
        runner = self.runner.open(self.path, contract)
        step = runner.bind(contract_batch(images, contract))
        expected = runner.infer(contract_batch(images, contract))
        np.testing.assert_allclose(runner.read(step()), expected, rtol=1e-4, atol=1e-4, err_msg=str(self))
        return step

    def facts(self, batch: int) -> dict:
        """What a row of the JSON says of itself beside its times."""
        return {
            "model": self.artifact.model,
            "artifact": self.artifact.name,
            "sha256": self.artifact.sha256,
            "format": self.artifact.format,
            "lowering": self.artifact.lowering,
            "precision": self.artifact.precision,
            "input": self.artifact.settings.get("contract", "float"),
            "runner": self.runner.name,
            "device": self.runner.device,
            "batch": batch,
            "threads": torch.get_num_threads(),
            "inputs": "real test images, one buffer, in place on the device",
        }


def find_targets(run: Path, device: str) -> list[Target]:
    """All targets of a run on ``cpu``, on ``cuda``, or with ``auto`` on both.

    Raises:
        UserError: where the run is incomplete, edited or stale, or no runner is left.
    """
    targets = [
        Target(artifact, path, runner)
        for directory in model_directories(run)
        for artifact, path in directory.expected()
        for runner in RUNNERS
        if runner.format == artifact.format and device in ("auto", runner.device) and not runner.unavailable()
        if artifact.input_contract["shape"][0] == "N"  # a fixed batch could not be timed beside the others
    ]
    if not targets:
        raise UserError(f"nothing can run on {device} here", "python -m stn_export.verify lists the reasons")
    return targets


def pairs(targets: list[Target]) -> list[tuple[Target, Target]]:
    """Every spatial transformer beside the plain CNN in the same runner, precision and input."""
    plain = {target.kind: target for target in targets if target.artifact.model == "cnn"}
    ours = [target for target in targets if target.artifact.model == "stn" and target.kind in plain]
    return [(target, plain[target.kind]) for target in ours]


def rivals(targets: list[Target]) -> list[tuple[Target, Target]]:
    """Every other lowering of the spatial transformer beside the one that PyTorch's exporter gives by itself."""
    lowered = [target for target in targets if target.artifact.model == "stn" and target.artifact.lowering]
    default = {target.kind: target for target in lowered if target.artifact.lowering == "decomposed"}
    others = [target for target in lowered if target not in default.values() and target.kind in default]
    return [(target, default[target.kind]) for target in others]
