"""What is timed: every artifact of a run with every runner that can take it here, and what is set against what."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn_export.artifacts.manifest import Artifact, network_directories
from stn_export.bench.grids import Pick
from stn_export.bench.memory import Memory, cache_bytes
from stn_export.comparison.compare import compare
from stn_export.comparison.tolerances import TOLERANCES
from stn_export.config import DEFAULT_EXPORT
from stn_export.errors import UserError
from stn_export.runners import RUNNERS, Runner, RunnerSpec, Step
from stn_export.runners.pytorch import Eager
from stn_export.train.data import contract_batch

HOT = "hot: one buffer"
ANOTHER_FUNCTION = 8.0  # times the tolerance: no matter of roundings any more
SAME = 1e-4  # a bound step and ``infer`` may differ by this: one program, its buffers elsewhere


@dataclass(frozen=True)
class Target:
    """One artifact and the runner it is timed with, and how.

    ``regime`` is the row's: in a ``request`` images come from the host and results go back there, else they stay in
    place. With ``rotated`` images (uint8) so many buffers are filled that they leave the cache, and used in turn.
    ``found`` is what came to light as it was loaded.
    """

    artifact: Artifact
    path: Path
    runner: RunnerSpec
    regime: str = "contest"
    rotated: Tensor | None = field(default=None, compare=False)
    found: dict = field(default_factory=dict, compare=False, init=False)

    @property
    def backend(self) -> str:
        """Runner and artifact, without the model."""
        return f"{self.runner.name}-{self.artifact.name}"

    @property
    def contract(self) -> str:
        """The input contract's name."""
        return self.artifact.settings.get("contract", "float")

    @property
    def kind(self) -> tuple[str, str, str, bool]:
        """What two targets share that may be set against each other: runner, precision, input, kind of export."""
        return self.runner.name, self.artifact.precision, self.contract, self.artifact.lowering == DEFAULT_EXPORT

    def __str__(self) -> str:
        return f"{self.artifact.model}-{self.backend}"

    def step(self, images: Tensor) -> Step:
        """The artifact loaded and fed with uint8 images as its input contract asks, checked, and run once.

        What the step computes is compared with what ``infer`` gives, so that nothing but the right answer is timed.
        """
        batches = self.batches(images)
        if self.regime == "contest":
            return self._checked_step(self.open(), batches)
        with Memory(self.runner.device) as memory:
            runner = self.open()
            step = self._checked_step(runner, batches)
        where = "handed over by the host" if self.regime == "request" else runner.inputs_lie
        size = sum(batch.nbytes for batch in batches) / 2**20
        cold = f"cold: {len(batches)} buffers, {size:.0f} MiB, in turn"
        self.found.update(inputs=cold if len(batches) > 1 else f"{HOT} {where}")
        self.found.update(host_bytes=memory.host_bytes, device_bytes=memory.device_bytes)
        return step

    def batches(self, images: Tensor) -> list[np.ndarray]:
        """One batch, or enough copies of different images to leave the last-level cache."""
        contract, batch = self.artifact.input_contract, len(images)
        if self.rotated is None:
            return [contract_batch(images, contract)]
        different = contract_batch(self.rotated, contract)
        count = cache_bytes(self.runner.device) // different[:batch].nbytes + 2
        drawn = np.take(different, np.arange(count * batch), axis=0, mode="wrap")
        return list(drawn.reshape(count, batch, *different.shape[1:]))

    def open(self) -> Runner:
        """The runner, its settings noted."""
        runner = self.runner.open(self.path, self.artifact.input_contract)
        clock = "events on the stream" if runner.events and self.regime != "request" else "wall"
        self.found.update(threads=runner.threads, options=runner.options, clock=clock)
        return runner

    def _checked_step(self, runner: Runner, batches: Sequence[np.ndarray]) -> Step:
        step = runner.request(*batches) if self.regime == "request" else runner.bind(*batches)
        result = step()
        actual = result if self.regime == "request" else runner.read(result)
        np.testing.assert_allclose(actual, runner.infer(batches[0]), rtol=SAME, atol=SAME, err_msg=str(self))
        if self.runner.verify_batch:
            self._check_against_eager(batches[0], actual)
        return step

    def _check_against_eager(self, images: np.ndarray, actual: np.ndarray) -> None:
        """A runner that compiles anew for each batch size was verified at one of them only: not at this, perhaps."""
        eager = eager_spec(self.runner).open(self.path, self.artifact.input_contract).infer(images)
        bound = TOLERANCES[self.runner.tolerance_of(self.artifact.precision)].log_probs.times(ANOTHER_FUNCTION)
        result = compare(actual, eager, bound)
        assert result, f"{self} does not give what eager does at batch {len(images)}: {result.reason}"

    def facts(self, batch: int) -> dict:
        """What a row of the JSON says of itself beside its times."""
        return {
            "model": self.artifact.model,
            "artifact": self.artifact.name,
            "sha256": self.artifact.sha256,
            "format": self.artifact.format,
            "lowering": self.artifact.lowering,
            "precision": self.artifact.precision,
            "input": self.contract,
            "runner": self.runner.name,
            "device": self.runner.device,
            "batch": batch,
            "threads": torch.get_num_threads(),
            "tf32": self.runner.tf32,
            "options": {},
            "regime": self.regime,
            "inputs": HOT,
            "file_bytes": self.path.stat().st_size,
        } | self.found


def eager_spec(runner: RunnerSpec) -> RunnerSpec:
    """Eager PyTorch on the same device and with the same use of TF32."""
    return next(
        spec for spec in RUNNERS if spec.load is Eager and (spec.device, spec.tf32) == (runner.device, runner.tf32)
    )


@dataclass(frozen=True)
class Case:
    """A row: a target, how many images a call, and in a contest what it is set against."""

    target: Target
    batch: int
    baseline: Target | None = None

    def __str__(self) -> str:
        return f"{self.target}-{self.batch}"


def find_targets(run: Path, device: str) -> list[Target]:
    """All targets of a run on ``cpu``, on ``cuda``, or with ``auto`` on both.

    Raises:
        UserError: where the run is incomplete, edited or stale, or no runner is left.
    """
    targets = [
        Target(artifact, path, runner)
        for directory in network_directories(run)
        for artifact, path in directory.expected()
        for runner in RUNNERS
        if device in ("auto", runner.device) and runner.takes(artifact) and not runner.unavailable()
    ]
    if not targets:
        raise UserError(f"nothing can run on {device} here", "python -m stn_export.verify lists the reasons")
    return targets


def picked(targets: Iterable[Target], picks: Iterable[Pick]) -> list[Case]:
    """What the picks take, each once."""
    taken = [
        Case(target, batch)
        for pick in picks
        for target in targets
        for batch in pick.batches
        if takes(pick, target) and fits(target, batch)
    ]
    return list({str(case): case for case in taken}.values())


def takes(pick: Pick, target: Target) -> bool:
    """Whether a target is among those that a pick names."""
    artifact = target.artifact
    named = (
        (artifact.model, pick.models),
        (artifact.lowering, pick.lowerings),
        (artifact.precision, pick.precisions),
        (target.contract, pick.inputs),
    )
    runs = not pick.runners or any(fnmatch(target.runner.name, pattern) for pattern in pick.runners)
    return runs and all(value in wanted or not wanted for value, wanted in named) and pick.slow >= target.runner.slow


def cnn_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """The plain CNN in the same runner, precision and input."""
    if target.artifact.model == "cnn":
        return None
    return next((each for each in targets if each.artifact.model == "cnn" and each.kind == target.kind), None)


def decomposed_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """The same model in the lowering that PyTorch's exporter gives by itself, with everything else the same."""
    if target.artifact.lowering in (None, "decomposed"):
        return None
    ours = [each for each in targets if each.artifact.model == target.artifact.model and each.kind == target.kind]
    return next((each for each in ours if each.artifact.lowering == "decomposed"), None)


def eager_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Eager PyTorch with the same model, device and use of TF32."""
    eager = eager_spec(target.runner)
    others = [each for each in targets if each.artifact.model == target.artifact.model and each.runner == eager]
    return next((each for each in others if target.runner != eager), None)


def default_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """The default export in a default session, of the same model on the same device."""
    where = (target.artifact.model, target.runner.device)
    others = [each for each in targets if (each.artifact.model, each.runner.device) == where]
    return next((each for each in others if each.runner.lowering == DEFAULT_EXPORT != target.runner.lowering), None)


BASELINES: dict[str, Callable[[Target, Sequence[Target]], Target | None]] = {
    "overhead": cnn_of,
    "lowering": decomposed_of,
    "eager": eager_of,
    "default": default_of,
}


def cases(suite: str, targets: Sequence[Target], picks: Iterable[Pick]) -> Iterator[Case]:
    """The rows of a suite; in a contest those whose baseline can run here at that batch."""
    for case in picked(targets, picks):
        if suite not in BASELINES:
            yield case
        elif (other := BASELINES[suite](case.target, targets)) and fits(other, case.batch):
            yield replace(case, baseline=other)


def fits(target: Target, batch: int) -> bool:
    """Whether a target can be given this many images at a time."""
    return target.artifact.input_contract["shape"][0] in ("N", batch)


def left_out(run: Path, device: str) -> dict[str, str]:
    """Runners that cannot run here, and artifacts that one cannot run, with the reason."""
    reasons = {spec.name: spec.unavailable() for spec in RUNNERS if device in ("auto", spec.device)}
    here = [spec for spec in RUNNERS if reasons.get(spec.name) == ""]
    for directory in network_directories(run):
        for artifact, _ in directory.expected():
            reasons |= {f"{artifact.model}/{artifact.name} in {spec.name}": spec.refuses(artifact) for spec in here}
    return {name: reason for name, reason in reasons.items() if reason}
