"""Define what is timed: a run's artifacts in every runner that can run them here, and PyTorch as its users run it."""

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
from stn_export.run.manifest import PROGRAM, Artifact, Facts, NetworkDirectory, network_directories
from stn_export.run.schemas import Current, read_verified
from stn_export.runners import RUNNERS, Runner, RunnerSpec, Step
from stn_export.runners.pytorch import Compiled, Eager
from stn_export.runners.registry import DEFAULT_EXPORT

HOT = "hot: one buffer"
SAME = 1e-4  # relative difference allowed of a bound step and ``infer``: same program, other buffers
# Shares by which a device or compiler may differ from eager: without TF32 (whose error is 8e-5 and more), as a multiple
# of eager's own error, and with TF32 or in a runtime that is approximate by design.
ROUNDED, TIMES_EAGER, ROUNDED_TF32 = 2e-5, 30, 0.1
FEW = 64  # examples on which eager's own error is measured


@dataclass(frozen=True)
class Network:
    """A network of the run: its facts, and what it is timed with."""

    directory: NetworkDirectory
    facts: Facts

    @property
    def name(self) -> str:
        """Return its name, unique in the run."""
        return self.directory.name

    @cached_property
    def examples(self) -> Examples:
        """Return the examples that it is fed with."""
        return self.directory.examples()

    @cached_property
    def program(self) -> Program:
        """Return the captured network."""
        return self.directory.program()

    @cached_property
    def contract(self) -> Contract:
        """Return its program's contract."""
        return self.directory.listed(PROGRAM).contract

    @cached_property
    def eager(self) -> Callable[[int], Arrays]:
        """Return a function from a batch size to eager PyTorch's outputs on the CPU; each batch is computed once."""
        listed = self.directory.listed(PROGRAM)
        runner = eager_spec("cpu").open(self.directory.open(listed), listed.contract)
        return cache(lambda batch: runner.infer(listed.contract.arrays(self.examples.take(batch))))

    @cached_property
    def eager_error(self) -> float:
        """Return the largest difference of float32 eager from float64, divided by value plus largest magnitude."""
        batch = self.contract.batch or FEW
        true = self.program.exact.points(self.program.values(self.examples.take(batch)), kinds=())
        floats = {
            name: (value.numpy(), self.eager(batch)[name]) for name, value in true.items() if value.is_floating_point()
        }
        return max(
            (float(np.nanmax(abs(a - b) / (abs(a) + abs(a).max() + 1e-30))) for a, b in floats.values()), default=0
        )

    @cached_property
    def best(self) -> str | None:
        """Return the lowering to take first of those it was exported with, see ``preferred``; None if there is none."""
        return next(iter(self.directory.lowering_sizes), None)

    def shapes(self, batch: int) -> tuple[Tensor, ...]:
        """Return a call's inputs for ``batch`` examples, as its program takes them, without data: on ``meta``."""
        values = zip(self.contract.inputs, self.program.values(self.examples.take(1)), strict=True)
        return tuple(
            torch.empty((batch, *value.shape[1:]) if spec.batched else value.shape, dtype=value.dtype, device="meta")
            for spec, value in values
        )


@dataclass(frozen=True)
class Target:
    """One artifact, the runner it is timed with, and how.

    ``regime`` is the row's: in a ``request`` inputs come from the host and results go back there, else they stay on the
    device; in a paired comparison ``host`` decides the same. ``threads`` are PyTorch's, None for the session's.
    ``cold`` inputs are so many buffers of different examples, used in turn, that they do not stay in the cache.
    ``found`` collects facts noted while loading.
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
        """Return whether inputs come from the host and results go back there, timed by wall time."""
        return self.host or self.regime == "request"

    @property
    def backend(self) -> str:
        """Return runner and artifact, without the network."""
        return f"{self.runner.name}-{self.artifact.name}"

    @property
    def input(self) -> str:
        """Return the kind of its input: ``float`` as the program's, else raw bytes, ``uint8`` or ``uint8-nhwc``."""
        own = {spec.name: spec for spec in self.network.contract.inputs}
        for spec in self.artifact.contract.inputs:
            if spec.layout != own[spec.name].layout:
                return f"{spec.dtype}-{spec.layout.lower()}"
            if spec.dtype != own[spec.name].dtype:
                return spec.dtype
        return "float"

    @property
    def kind(self) -> tuple[str, str, str, bool]:
        """Return what two comparable targets share: runner, precision, input, and whether it is the default export."""
        return self.runner.name, self.artifact.precision, self.input, self.artifact.lowering == DEFAULT_EXPORT

    def __str__(self) -> str:
        threads = "" if self.threads is None else f"-{self.threads}-threads"
        return f"{self.network.name}-{self.backend}{threads}"

    def step(self, batch: int) -> Step:
        """Load, feed, check and run the artifact once; return a step on the target's own number of threads, if set."""
        if self.threads is None:
            return self._step(batch)
        torch.set_num_threads(self.threads)
        return on_threads(self._step(batch), self.threads)

    def _step(self, batch: int) -> Step:
        """Load the artifact, feed it as its contract requires, check it, and run it once.

        The step's outputs are compared with those of ``infer``, and these with eager PyTorch at this very batch if
        verification may have run another batch or another algorithm: only correct results are timed.
        """
        feeds = self.feeds(batch)
        if self.regime == "contest":
            return self._checked_step(self.open(), batch, feeds)
        if self.runner.device == "cuda" and not self.runner.slow:
            self._checked_step(self.open(), batch, feeds)  # CUDA loads modules lazily; they are not one row's memory
        with Memory(self.runner.device) as memory:
            runner = self.open()
            step = self._checked_step(runner, batch, feeds)
        where = "copied from host memory" if self.by_host else runner.inputs_lie
        cold = f"cold: {len(feeds)} buffers, {sum(map(size_of, feeds)) / 2**20:.0f} MiB, in turn"
        self.found.update(inputs=cold if len(feeds) > 1 else f"{HOT} {where}")
        self.found.update(memory.of(runner))
        return step

    def feeds(self, batch: int) -> list[Arrays]:
        """Return one batch of real examples, or, if cold, enough different ones to exceed the last-level cache."""
        examples, contract = self.network.examples, self.artifact.contract
        first = contract.arrays(examples.take(batch))
        self.found.update(sizes={name: list(array.shape) for name, array in first.items()})
        if not self.cold:
            return [first]
        count = cache_bytes(self.runner.device) // size_of(first) + 2
        rows = torch.arange(count * batch) % len(examples)
        batches = (contract.arrays(examples.rows(chosen)) for chosen in rows.split(batch))
        return [
            {name: array.copy() for name, array in feeds.items()} for feeds in batches
        ]  # unbatched inputs are shared

    def open(self) -> Runner:
        """Open the runner and note its settings."""
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
        # per batch a compiler may write another program, and a GPU library use another algorithm, even TF32
        chosen_anew = self.runner.verify_batch or self.runner.device == "cuda"
        if chosen_anew and (self.artifact.precision, self.input) == ("fp32", "float"):
            difference = f"{self} does not give what eager does at {self.found['sizes']}"
            usual = max(ROUNDED, TIMES_EAGER * self.network.eager_error)
            rounded = ROUNDED_TF32 if self.runner.tf32 or self.runner.approximate else usual
            check_same(actual, self.network.eager(batch), rounded, difference, strays=rounded)
        return step

    def facts(self, batch: int) -> dict:
        """Return the facts of a JSON row other than its times."""
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
    """Return the bytes of all inputs."""
    return sum(array.nbytes for array in feeds.values())


def check_same(actual: Arrays, expected: Arrays, share: float, message: str, strays: float = 0.0) -> None:
    """Require that outputs agree.

    Args:
        actual: by name.
        expected: by name.
        share: by how much floats may differ, as a share of their own value and of the largest.
        message: its beginning.
        strays: the share of values other than floats that may differ at all: a rounding can tip a decision.

    Raises:
        AssertionError: beginning with ``message``.
    """
    for name, array in expected.items():
        if array.dtype.kind == "f":
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
            np.testing.assert_allclose(actual[name], array, share, share * largest, err_msg=f"{message}: {name}")
        else:
            off = np.count_nonzero(actual[name] != array)
            assert off <= strays * array.size, f"{message}: {name}, {off} of {array.size} differ"


def eager_spec(device: str, tf32: bool = False) -> RunnerSpec:
    """Return the runner of eager PyTorch on a device, with or without TF32."""
    return next(spec for spec in RUNNERS if spec.load is Eager and (spec.device, spec.tf32) == (device, tf32))


def find_targets(run: Path, device: str, there: Callable[[str], bool] = operator.not_) -> list[Target]:
    """Return all targets of a run on ``cpu``, ``cuda`` or, with ``auto``, both.

    ``there`` decides by its reason whether a runner counts as available.

    Raises:
        UserError: if the run is incomplete, edited or stale, or no runner is left.
    """
    unproved = unproved_in(run)
    targets = [
        Target(network, artifact, path, runner)
        for network in (Network(directory, directory.facts) for directory in network_directories(run))
        for artifact, path in network.directory.expected()
        for runner in RUNNERS
        if device in ("auto", runner.device) and runner.takes(artifact) and there(runner.untimed())
        if not unproved(artifact, runner)
    ]
    if not targets:
        raise UserError(f"nothing can run on {device} here", "stn-export verify lists the reasons")
    return targets


def proved_of(run: Path) -> Proved:
    """Return what the last verification found equal, among the current files."""
    verified = read_verified(run)
    return proved_by(verified.checks if verified else (), Current.of(network_directories(run)).holds)


def unproved_in(run: Path) -> Callable[[Artifact, RunnerSpec], bool]:
    """Return a function that says whether an artifact is unverified in an external runtime, so that it is not timed.

    ``verify.json`` is only read once such a runner is asked about.
    """
    proved = cache(partial(proved_of, run))
    return lambda artifact, spec: spec.foreign and (artifact.network, artifact.name, spec.name) not in proved()


def left_out(run: Path, device: str) -> dict[str, str]:
    """Return what is not timed, with the reason: runners that cannot run here, and artifacts by runner.

    A runner may not support an artifact, or the artifact was not verified in it.
    """
    unproved = unproved_in(run)
    reasons = {spec.name: spec.untimed() for spec in RUNNERS if device in ("auto", spec.device)}
    here = [spec for spec in RUNNERS if reasons.get(spec.name) == ""]
    for directory in network_directories(run):
        for artifact, _ in directory.expected():
            for spec in here:
                lacking = spec.takes(artifact) and unproved(artifact, spec)
                why = (
                    "not verified in this runtime (run 'stn-export verify --runtimes DIR')"
                    if lacking
                    else spec.refuses(artifact)
                )
                reasons[f"{directory.name}/{artifact.name} in {spec.name}"] = why
    return {name: reason for name, reason in reasons.items() if reason}


# Baselines of PyTorch's users: eager, eager in channels_last, torch.compile; on few threads or all.


IMAGES = 4  # dimensions of an image batch


class EagerChannelsLast(Eager):
    """Eager PyTorch with images and weights in channels-last layout, which its CPU convolutions prefer."""

    def place(self, feeds: Arrays) -> list[Tensor]:
        """Copy the inputs to the device in channels-last layout, in the contract's order."""
        return [channels_last(value) for value in super().place(feeds)]

    def load(self, path: Path) -> None:
        """Load the network and convert its weights to channels-last layout."""
        super().load(path)
        if isinstance(self.module, torch.nn.Module):
            self.module = self.module.to(memory_format=torch.channels_last)
        self.options["memory_format"] = "channels_last"


def channels_last(value: Tensor) -> Tensor:
    """Convert images to channels-last layout; return other tensors unchanged."""
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
    """List the same network in every way a PyTorch user runs it, on the current number of threads and on all cores."""
    threads = sorted({torch.get_num_threads(), cores()})
    programs = [other for other in targets if other.network.name == target.network.name and other.runner.load is Eager]
    on_cpu = [other for other in programs if other.runner.device == target.runner.device == "cpu"]
    return [
        replace(other, runner=spec, host=True, threads=count)
        for other in on_cpu[:1]
        for spec in BASELINES
        if not spec.unavailable()
        for count in threads
    ]
