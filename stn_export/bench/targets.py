"""What is timed: every artifact of a run with every runner that can take it here, and what is set against what."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn_export.artifacts.examples import Examples
from stn_export.artifacts.manifest import (
    PLAIN,
    PROGRAM,
    SUBJECT,
    Artifact,
    Facts,
    NetworkDirectory,
    network_directories,
)
from stn_export.bench.grids import BEST, LOWERINGS, Pick
from stn_export.bench.memory import Memory, cache_bytes
from stn_export.errors import UserError
from stn_export.program.program import Program
from stn_export.program.specs import Arrays, Contract
from stn_export.runners import RUNNERS, Runner, RunnerSpec, Step
from stn_export.runners.pytorch import Eager
from stn_export.runners.registry import DEFAULT_EXPORT

HOT = "hot: one buffer"
SAME = 1e-4  # a bound step and ``infer`` may differ by this: one program, its buffers elsewhere
ROUNDED = {False: 1e-3, True: 0.1}  # what is compiled and eager by this, without TF32 and with it


@dataclass(frozen=True)
class Network:
    """A network of the run: what it is, and what it is timed with."""

    directory: NetworkDirectory
    facts: Facts

    @property
    def name(self) -> str:
        """Unique in the run."""
        return self.directory.name

    @cached_property
    def examples(self) -> Examples:
        """What it is fed with."""
        return self.directory.examples()

    @cached_property
    def program(self) -> Program:
        """The captured network itself."""
        return self.directory.program()

    @cached_property
    def contract(self) -> Contract:
        """Its program's."""
        return self.directory.listed(PROGRAM).contract

    @cached_property
    def best(self) -> str | None:
        """The first of ``LOWERINGS`` that it was exported in."""
        there = {each.lowering for each in self.directory.artifacts.values() if each.precision == "fp32"}
        return next((lowering for lowering in LOWERINGS if lowering in there), None)

    def shapes(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs of a call on so many examples, as its program takes them; without any numbers, on ``meta``."""
        values = zip(self.contract.inputs, self.program.values(self.examples.take(1)), strict=True)
        return tuple(
            torch.empty((batch, *value.shape[1:]) if spec.batched else value.shape, dtype=value.dtype, device="meta")
            for spec, value in values
        )


@dataclass(frozen=True)
class Target:
    """One artifact and the runner it is timed with, and how.

    ``regime`` is the row's: in a ``request`` inputs come from the host and results go back there, else they stay in
    place. ``cold`` inputs are so many buffers of different examples that they leave the cache, used in turn.
    ``found`` is what came to light as it was loaded.
    """

    network: Network
    artifact: Artifact
    path: Path
    runner: RunnerSpec
    regime: str = "contest"
    cold: bool = False
    found: dict = field(default_factory=dict, compare=False, init=False)

    @property
    def backend(self) -> str:
        """Runner and artifact, without the network."""
        return f"{self.runner.name}-{self.artifact.name}"

    @property
    def input(self) -> str:
        """How it is fed: ``float`` as the program, else with bytes that it normalises, ``uint8`` or ``uint8-nhwc``."""
        own = {spec.name: spec for spec in self.network.contract.inputs}
        for spec in self.artifact.contract.inputs:
            if spec.layout != own[spec.name].layout:
                return f"{spec.dtype}-{spec.layout.lower()}"
            if spec.dtype != own[spec.name].dtype:
                return spec.dtype
        return "float"

    @property
    def kind(self) -> tuple[str, str, str, bool]:
        """What two targets share that may be set against each other: runner, precision, input, kind of export."""
        return self.runner.name, self.artifact.precision, self.input, self.artifact.lowering == DEFAULT_EXPORT

    def __str__(self) -> str:
        return f"{self.network.name}-{self.backend}"

    def step(self, batch: int) -> Step:
        """The artifact loaded and fed with so many examples as its contract asks, checked, and run once.

        What the step computes is compared with what ``infer`` gives, so that nothing but the right answer is timed.
        """
        feeds = self.feeds(batch)
        if self.regime == "contest":
            return self._checked_step(self.open(), feeds)
        with Memory(self.runner.device) as memory:
            runner = self.open()
            step = self._checked_step(runner, feeds)
        where = "handed over by the host" if self.regime == "request" else runner.inputs_lie
        cold = f"cold: {len(feeds)} buffers, {sum(map(size_of, feeds)) / 2**20:.0f} MiB, in turn"
        self.found.update(inputs=cold if len(feeds) > 1 else f"{HOT} {where}")
        self.found.update(host_bytes=memory.host_bytes, device_bytes=memory.device_bytes)
        return step

    def feeds(self, batch: int) -> list[Arrays]:
        """One batch of real examples, or enough of different ones to leave the last-level cache."""
        examples, contract = self.network.examples, self.artifact.contract
        first = contract.arrays(examples.take(batch))
        self.found.update(sizes={name: list(array.shape) for name, array in first.items()})
        if not self.cold:
            return [first]
        count = cache_bytes(self.runner.device) // size_of(first) + 2
        rows = torch.arange(count * batch) % len(examples)
        batches = (contract.arrays(examples.rows(chosen)) for chosen in rows.split(batch))
        return [{name: array.copy() for name, array in each.items()} for each in batches]  # inputs of all share none

    def open(self) -> Runner:
        """The runner, its settings noted."""
        runner = self.runner.open(self.path, self.artifact.contract)
        clock = "events on the stream" if runner.events and self.regime != "request" else "wall"
        self.found.update(threads=runner.threads, options=runner.options, clock=clock)
        return runner

    def _checked_step(self, runner: Runner, feeds: Sequence[Arrays]) -> Step:
        step = runner.request(*feeds) if self.regime == "request" else runner.bind(*feeds)
        result = step()
        actual = result if self.regime == "request" else runner.read(result)
        check_same(actual, runner.infer(feeds[0]), SAME, f"{self} does not give what it infers")
        if self.runner.verify_batch:  # it compiles anew for each batch and was verified at another one, perhaps
            eager = eager_spec(self.runner).open(self.path, self.artifact.contract).infer(feeds[0])
            said = f"{self} does not give what eager does at {self.found['sizes']}"
            check_same(actual, eager, rounded := ROUNDED[self.runner.tf32], said, strays=rounded)
        return step

    def facts(self, batch: int) -> dict:
        """What a row of the JSON says of itself beside its times."""
        return {
            "network": self.network.name,
            "label": self.network.facts.label,
            "role": self.network.facts.role,
            "artifact": self.artifact.name,
            "sha256": self.artifact.sha256,
            "format": self.artifact.format,
            "lowering": self.artifact.lowering,
            "precision": self.artifact.precision,
            "input": self.input,
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


def size_of(feeds: Arrays) -> int:
    """Bytes of all inputs together."""
    return sum(array.nbytes for array in feeds.values())


def check_same(actual: Arrays, expected: Arrays, share: float, said: str, strays: float = 0.0) -> None:
    """Refuse outputs that differ.

    Args:
        actual: by name.
        expected: likewise.
        share: by so much of their own and of the largest value may floats differ.
        said: what to say.
        strays: so large a share of what are no floats may be anything: a rounding can tip a decision.

    Raises:
        AssertionError: beginning with ``said``.
    """
    for name, array in expected.items():
        if array.dtype.kind == "f":
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
            np.testing.assert_allclose(actual[name], array, share, share * largest, err_msg=f"{said}: {name}")
        else:
            off = np.count_nonzero(actual[name] != array)
            assert off <= strays * array.size, f"{said}: {name}, {off} of {array.size} differ"


def eager_spec(runner: RunnerSpec) -> RunnerSpec:
    """Eager PyTorch on the same device and with the same use of TF32."""
    return next(
        spec for spec in RUNNERS if spec.load is Eager and (spec.device, spec.tf32) == (runner.device, runner.tf32)
    )


@dataclass(frozen=True)
class Case:
    """A row: a target, how many examples a call, and in a contest what it is set against."""

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
        Target(network, artifact, path, runner)
        for network in (Network(directory, directory.facts) for directory in network_directories(run))
        for artifact, path in network.directory.expected()
        for runner in RUNNERS
        if device in ("auto", runner.device) and runner.takes(artifact) and not runner.unavailable()
    ]
    if not targets:
        raise UserError(f"nothing can run on {device} here", "python -m stn_export.verify lists the reasons")
    return targets


def picked(targets: Iterable[Target], picks: Iterable[Pick]) -> list[Case]:
    """What the picks take, each once; a network that is made for one batch is timed at that one."""
    taken = [
        Case(target, batch)
        for pick in picks
        for target in targets
        if takes(pick, target)
        for batch in ([own_batch(target.network.contract)] if own_batch(target.network.contract) else pick.batches)
        if fits(target, batch)
    ]
    return list({str(case): case for case in taken}.values())


def takes(pick: Pick, target: Target) -> bool:
    """Whether a target is among those that a pick names."""
    artifact = target.artifact
    named = (
        (target.network.facts.role, pick.roles),
        (artifact.lowering, [target.network.best if lowering == BEST else lowering for lowering in pick.lowerings]),
        (artifact.precision, pick.precisions),
        (target.input, pick.inputs),
    )
    runs = not pick.runners or any(fnmatch(target.runner.name, pattern) for pattern in pick.runners)
    return runs and all(value in wanted or not wanted for value, wanted in named) and pick.slow >= target.runner.slow


def plain_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Of the subject: the run's plain network in the same runner, precision and input."""
    if target.network.facts.role != SUBJECT:
        return None
    return next((each for each in targets if each.network.facts.role == PLAIN and each.kind == target.kind), None)


def decomposed_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """The same network in the lowering that PyTorch's exporter gives by itself, with everything else the same."""
    if target.artifact.lowering in (None, "decomposed"):
        return None
    ours = [each for each in targets if each.network.name == target.network.name and each.kind == target.kind]
    return next((each for each in ours if each.artifact.lowering == "decomposed"), None)


def eager_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Eager PyTorch with the same network, device and use of TF32."""
    eager = eager_spec(target.runner)
    others = [each for each in targets if each.network.name == target.network.name and each.runner == eager]
    return next((each for each in others if target.runner != eager), None)


def default_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """The default export in a default session, of the same network on the same device."""
    where = (target.network.name, target.runner.device)
    others = [each for each in targets if (each.network.name, each.runner.device) == where]
    return next((each for each in others if each.runner.lowering == DEFAULT_EXPORT != target.runner.lowering), None)


BASELINES: dict[str, Callable[[Target, Sequence[Target]], Target | None]] = {
    "overhead": plain_of,
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


def own_batch(contract: Contract) -> int | None:
    """How many examples a call must be given; None where any number, one where it takes no batch at all."""
    return contract.batch if any(spec.batched for spec in contract.inputs) else 1


def fits(target: Target, batch: int) -> bool:
    """Whether a target can be given this many examples at a time."""
    return own_batch(target.artifact.contract) in (None, batch)


def left_out(run: Path, device: str) -> dict[str, str]:
    """Runners that cannot run here, and artifacts that one cannot run, with the reason."""
    reasons = {spec.name: spec.unavailable() for spec in RUNNERS if device in ("auto", spec.device)}
    here = [spec for spec in RUNNERS if reasons.get(spec.name) == ""]
    for directory in network_directories(run):
        for artifact, _ in directory.expected():
            reasons |= {f"{directory.name}/{artifact.name} in {spec.name}": spec.refuses(artifact) for spec in here}
    return {name: reason for name, reason in reasons.items() if reason}
