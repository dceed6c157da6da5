"""What is timed: every artifact of a run with every runner that can take it here, and PyTorch as its users run it."""

import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stn_export.bench.machine import Memory, cache_bytes, on_threads
from stn_export.errors import UserError
from stn_export.program.program import Program
from stn_export.program.specs import Arrays, Contract
from stn_export.results.choice import Proved, proved_by
from stn_export.run.examples import Examples
from stn_export.run.manifest import LOWERINGS, PROGRAM, Artifact, Facts, NetworkDirectory, network_directories
from stn_export.run.schemas import Current, read_verified
from stn_export.runners import RUNNERS, Runner, RunnerSpec, Step
from stn_export.runners.pytorch import Compiled, Eager
from stn_export.runners.registry import DEFAULT_EXPORT

HOT = "hot: one buffer"
SAME = 1e-4  # a bound step and ``infer`` may differ by this: one program, its buffers elsewhere
# By which another device or compiler and eager may differ without TF32 (which makes 8e-5 of it and more) or by so many
# times eager's own error; and with TF32, or a runtime that is approximate by itself.
ROUNDED, TIMES_EAGER, ROUNDED_TF32 = 2e-5, 30, 0.1
FEW = 64  # examples that eager's own error is found on


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
    def eager(self) -> Callable[[int], Arrays]:
        """What eager PyTorch gives on the CPU for so many examples, each batch computed once."""
        listed = self.directory.listed(PROGRAM)
        runner = eager_spec("cpu").open(self.directory.open(listed), listed.contract)
        return cache(lambda batch: runner.infer(listed.contract.arrays(self.examples.take(batch))))

    @cached_property
    def eager_error(self) -> float:
        """The largest share by which float32 eager and float64 differ, of a value and the largest together."""
        batch = self.contract.batch or FEW
        true = self.program.exact.points(self.program.values(self.examples.take(batch)), kinds=())
        floats = {
            name: (each.numpy(), self.eager(batch)[name]) for name, each in true.items() if each.is_floating_point()
        }
        return max(
            (float(np.nanmax(abs(a - b) / (abs(a) + abs(a).max() + 1e-30))) for a, b in floats.values()), default=0
        )

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
    place; in a contest ``host`` says the same. ``threads`` are PyTorch's, None for the session's. ``cold`` inputs are
    so many buffers of different examples that they leave the cache, used in turn. ``found`` is what came to light as
    it was loaded.
    """

    network: Network
    artifact: Artifact
    path: Path
    runner: RunnerSpec
    regime: str = "contest"
    cold: bool = False
    host: bool = False
    threads: int | None = None
    found: dict = field(default_factory=dict, compare=False, init=False)

    @property
    def by_host(self) -> bool:
        """Whether inputs come from the host and results go back there, by the wall's clock."""
        return self.host or self.regime == "request"

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
        threads = "" if self.threads is None else f"-{self.threads}-threads"
        return f"{self.network.name}-{self.backend}{threads}"

    def step(self, batch: int) -> Step:
        """The artifact loaded, fed, checked and run once, on the target's own number of threads where it has one."""
        if self.threads is None:
            return self._step(batch)
        torch.set_num_threads(self.threads)
        return on_threads(self._step(batch), self.threads)

    def _step(self, batch: int) -> Step:
        """The artifact loaded and fed with so many examples as its contract asks, checked, and run once.

        What the step computes is compared with what ``infer`` gives, and that with eager PyTorch at this very batch
        where verification may have run another one or another algorithm: nothing but the right answer is timed.
        """
        feeds = self.feeds(batch)
        if self.regime == "contest":
            return self._checked_step(self.open(), batch, feeds)
        if self.runner.device == "cuda" and not self.runner.slow:
            self._checked_step(self.open(), batch, feeds)  # modules that CUDA loads lazily are no one row's memory
        with Memory(self.runner.device) as memory:
            runner = self.open()
            step = self._checked_step(runner, batch, feeds)
        where = "handed over by the host" if self.by_host else runner.inputs_lie
        cold = f"cold: {len(feeds)} buffers, {sum(map(size_of, feeds)) / 2**20:.0f} MiB, in turn"
        self.found.update(inputs=cold if len(feeds) > 1 else f"{HOT} {where}")
        self.found.update(memory.of(runner))
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
        clock = "events on the stream" if runner.events and not self.by_host else "wall"
        clock = clock if runner.in_process else f"{clock}, in its own process"
        self.found.update(threads=runner.threads, options=runner.options, clock=clock)
        return runner

    def _checked_step(self, runner: Runner, batch: int, feeds: Sequence[Arrays]) -> Step:
        step = runner.request(*feeds) if self.by_host else runner.bind(*feeds)
        result = step()
        actual = result if self.by_host else runner.read(result)
        check_same(actual, runner.infer(feeds[0]), SAME, f"{self} does not give what it infers")
        # a compiler makes another program for each batch; a GPU's libraries take another algorithm, even with TF32
        chosen_anew = self.runner.verify_batch or self.runner.device == "cuda"
        if chosen_anew and (self.artifact.precision, self.input) == ("fp32", "float"):
            said = f"{self} does not give what eager does at {self.found['sizes']}"
            usual = max(ROUNDED, TIMES_EAGER * self.network.eager_error)
            rounded = ROUNDED_TF32 if self.runner.tf32 or self.runner.approximate else usual
            check_same(actual, self.network.eager(batch), rounded, said, strays=rounded)
        return step

    def facts(self, batch: int) -> dict:
        """What a row of the JSON says of itself beside its times."""
        return {
            "network": self.network.name,
            "label": self.network.facts.label,
            "role": self.network.facts.role,
            "artifact": self.artifact.name,
            "sha256": self.artifact.sha256,
            "examples_sha256": self.network.facts.examples["sha256"],
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


def eager_spec(device: str, tf32: bool = False) -> RunnerSpec:
    """Eager PyTorch on a device, with TF32 or without."""
    return next(spec for spec in RUNNERS if spec.load is Eager and (spec.device, spec.tf32) == (device, tf32))


def find_targets(run: Path, device: str, there: Callable[[str], bool] = operator.not_) -> list[Target]:
    """All targets of a run on ``cpu``, on ``cuda``, or with ``auto`` on both, with runners whose reason is ``there``.

    Raises:
        UserError: where the run is incomplete, edited or stale, or no runner is left.
    """
    unproved = unproved_in(run)
    targets = [
        Target(network, artifact, path, runner)
        for network in (Network(directory, directory.facts) for directory in network_directories(run))
        for artifact, path in network.directory.expected()
        for runner in RUNNERS
        if device in ("auto", runner.device) and runner.takes(artifact) and there(runner.unavailable())
        if not unproved(artifact, runner)
    ]
    if not targets:
        raise UserError(f"nothing can run on {device} here", "stn-export verify lists the reasons")
    return targets


def proved_of(run: Path) -> Proved:
    """What the last verification found equal of today's files."""
    verified = read_verified(run)
    return proved_by(verified.checks if verified else (), Current.of(network_directories(run)).holds)


def unproved_in(run: Path) -> Callable[[Artifact, RunnerSpec], bool]:
    """Tells whether an artifact is not timed in a runner of others', which was not found equal there.

    ``verify.json`` is read when such a runner first comes.
    """
    proved = cache(partial(proved_of, run))
    return lambda artifact, spec: spec.foreign and (artifact.network, artifact.name, spec.name) not in proved()


def left_out(run: Path, device: str) -> dict[str, str]:
    """Runners that cannot run here, and artifacts that one cannot run or was not found equal in, with the reason."""
    unproved = unproved_in(run)
    reasons = {spec.name: spec.unavailable() for spec in RUNNERS if device in ("auto", spec.device)}
    here = [spec for spec in RUNNERS if reasons.get(spec.name) == ""]
    for directory in network_directories(run):
        for artifact, _ in directory.expected():
            for spec in here:
                lacking = spec.takes(artifact) and unproved(artifact, spec)
                why = "not found equal there (verify --runtimes DIR)" if lacking else spec.refuses(artifact)
                reasons[f"{directory.name}/{artifact.name} in {spec.name}"] = why
    return {name: reason for name, reason in reasons.items() if reason}


# What a PyTorch user runs without this project: eager, eager in channels_last, torch.compile; few threads or all.


IMAGES = 4  # dimensions of what channels_last lays out


class EagerChannelsLast(Eager):
    """Eager PyTorch with images and weights laid out channels last, which its CPU convolutions prefer."""

    def place(self, feeds: Arrays) -> list[Tensor]:
        """Lay the inputs out on the device, in the contract's order."""
        return [channels_last(value) for value in super().place(feeds)]

    def load(self, path: Path) -> None:
        """Load the network and lay its weights out."""
        super().load(path)
        if isinstance(self.module, torch.nn.Module):
            self.module = self.module.to(memory_format=torch.channels_last)
        self.options["memory_format"] = "channels_last"


def channels_last(value: Tensor) -> Tensor:
    """Lay images out channels last, and leave all else as it is."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == IMAGES else value


CHANNELS_LAST = RunnerSpec("eager-channels-last-cpu", "pt2", "cpu", EagerChannelsLast, verify_batch=1)
BASELINES = tuple(
    (CHANNELS_LAST if name is EagerChannelsLast else next(spec for spec in RUNNERS if spec.load is name))
    for name in (Eager, EagerChannelsLast, Compiled)
)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytorch_of(target: Target, targets: Sequence[Target]) -> list[Target]:
    """List the same network in every way a PyTorch user would run it, on the present number of threads and on all."""
    threads = sorted({torch.get_num_threads(), cores()})
    programs = [each for each in targets if each.network.name == target.network.name and each.runner.load is Eager]
    on_cpu = [each for each in programs if each.runner.device == target.runner.device == "cpu"]
    return [
        replace(each, runner=spec, host=True, threads=count)
        for each in on_cpu[:1]
        for spec in BASELINES
        if not spec.unavailable()
        for count in threads
    ]
