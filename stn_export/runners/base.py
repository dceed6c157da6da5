"""The interface of every runner, and the steps that are timed."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from stn_export.errors import UserError
from stn_export.program.specs import Arrays, Contract

Result = TypeVar("Result")  # what a step returns
Other = TypeVar("Other")


@dataclass(frozen=True)
class Step(Generic[Result]):
    """Something to time: calling it runs it, waits for it to finish and returns its result.

    ``clock`` returns seconds, as ``time.perf_counter`` does. A step on a GPU has ``events``, which sum the seconds of
    calls between events on a stream, and ``launch``, which only queues the work of one call.
    """

    run: Callable[[], Result]
    clock: Callable[[], float] = time.perf_counter
    events: "EventClock | None" = None
    launch: Callable[[], Result] | None = None

    def __call__(self) -> Result:
        """Run once; on a GPU ``repeats`` times, of which the clock counts the mean."""
        return self.run()

    @property
    def repeats(self) -> int:
        """How many calls one sample takes."""
        return self.events.repeats if self.events else 1


def in_turn(steps: Sequence[Step[Result]]) -> Step[Result]:
    """Combine steps of one runner into one that runs them in turn, one per call."""
    if len(steps) == 1:
        return steps[0]
    if (events := steps[0].events) is not None:
        launches = cycle([step.launch for step in steps if step.launch])
        return events.step(lambda: next(launches)())
    turn = cycle(steps)
    return Step(lambda: next(turn).run(), steps[0].clock)


RESOLUTION = 0.5e-6  # seconds between two readings of an event: CUDA Runtime API, cudaEventElapsedTime
LATENCY = 5e-6  # seconds from a launch to the start of its work on an idle GPU, at most
SHARE = 1e-3  # of a sample that the resolution or the latency may be
MOST_REPEATS = 1000


class EventClock:
    """Sum of seconds of calls on a CUDA stream: work, and waiting for launches.

    A sample is ``repeats`` calls between two events, and counts as the mean of one: a single call would be known to
    half a microsecond only. Another call goes ahead of them where they are short (``leads``), as the GPU would else
    idle after the first event until the host has launched.

    ``launch_seconds`` is how long the host took to queue a call, in the mean of all calls.
    """

    def __init__(self, stream: "torch.cuda.Stream") -> None:
        self.stream, self.seconds, self.repeats, self.leads = stream, 0.0, 1, True
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.calls, self.launching = 0, 0.0

    def settle(self, call_seconds: float) -> None:
        """Choose ``repeats`` and ``leads`` for calls of about this length; forget how long queueing took so far."""
        self.repeats = max(1, min(math.ceil(RESOLUTION / SHARE / call_seconds), MOST_REPEATS))
        self.leads = call_seconds < LATENCY / SHARE
        self.calls, self.launching = 0, 0.0

    @property
    def launch_seconds(self) -> float:
        """Return the mean seconds that the host took to queue a call."""
        return self.launching / self.calls if self.calls else 0.0

    def step(self, launch: Callable[[], Result]) -> Step[Result]:
        """Make a step on this clock; ``launch`` must only queue its work on the stream."""

        def run() -> Result:
            if self.leads:
                launch()
            self.start.record(self.stream)
            began = time.perf_counter()
            for _ in range(self.repeats):
                result = launch()
            self.launching += time.perf_counter() - began
            self.calls += self.repeats
            self.end.record(self.stream)
            self.end.synchronize()
            self.seconds += self.start.elapsed_time(self.end) / 1e3 / self.repeats
            return result

        return Step(run, self.read, self, launch)

    def read(self) -> float:
        """Return the seconds so far."""
        return self.seconds


class Runner(ABC, Generic[Result]):
    """One artifact loaded on one device (``cpu`` or ``cuda``), fed according to its contract.

    ``Result`` is what its bound steps return, on whatever device, and what ``read`` converts.

    Inputs and outputs are arrays by name. ``options`` are the settings pinned beside threads and TF32; ``threads`` how
    many CPU threads it may use; ``inputs_lie`` where ``bind`` puts its inputs; ``in_process`` whether it runs in this
    process; ``sums_in_order`` whether long sums are added one by one, which loses more precision than eager does.
    """

    inputs_lie = "in place"
    in_process = True
    sums_in_order = False

    def __init__(self, path: Path, device: str, contract: Contract, tf32: bool = False) -> None:
        self.device, self.contract, self.tf32 = device, contract, tf32
        self.outputs = tuple(spec.name for spec in contract.outputs)
        self.options: dict[str, object] = {}
        self.threads = torch.get_num_threads()
        self.stream = self.open_stream() if device == "cuda" else None
        self.events = EventClock(self.stream) if self.stream is not None else None
        self.load(path)

    def infer(self, feeds: Arrays) -> Arrays:
        """Run on inputs that fit the contract, and return the outputs.

        Raises:
            UserError: for missing inputs, other shapes or types, an empty batch, or non-finite values: the kernels of
                ONNX Runtime and OpenVINO lose a NaN on the way and would return a confident answer.
        """
        self.check(feeds)
        return self.infer_impl(feeds)

    def check(self, feeds: Arrays) -> None:
        """Reject inputs that ``infer`` rejects."""
        if surplus := sorted(feeds.keys() - {spec.name for spec in self.contract.inputs}):
            taken = ", ".join(spec.name for spec in self.contract.inputs)
            raise UserError(f"there is no input {surplus[0]}", f"give no other inputs than {taken}")
        for spec in self.contract.inputs:
            array = feeds.get(spec.name)
            if array is None or array.dtype != np.dtype(spec.dtype) or not spec.fits(array.shape):
                got = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise UserError(f"input {spec.name} cannot be {got}", f"give at least one example, as {spec.text}")
            if spec.is_float and not np.isfinite(array).all():
                raise UserError(f"input {spec.name} is not finite", "leave out examples with NaN or infinity")
        sizes = {len(feeds[spec.name]) for spec in self.contract.inputs if spec.batched}
        if len(sizes) > 1:
            raise UserError(f"inputs hold different numbers of examples: {sorted(sizes)}", "give as many of each")

    def points(self, feeds: Arrays) -> Arrays:
        """Return the outputs, and the points of the sites as far as the format exposes them."""
        return self.infer(feeds)

    def weights(self) -> Arrays:
        """Return the parameters that can be read from the artifact, by their names in the program."""
        return {}

    def forced_points(self, feeds: Arrays, site: str, theta: np.ndarray, grid: np.ndarray | None) -> Arrays | None:
        """Return ``points`` with one site's theta overridden; None where the format does not allow that.

        Args:
            feeds: inputs by name, as for ``infer``.
            site: its name, such as ``site0``.
            theta: 2×3, for every image.
            grid: H×W×2, the grid of that theta, for files whose theta is folded into the grid. None where theta affects
                more than the grid, so that a grid cannot replace it.
        """
        return None

    def bind(self, *batches: Arrays) -> Step[Result]:
        """Return a step that runs batches of one size, already in place on the device, in turn, and waits.

        It keeps alive all that it needs, and returns what ``read`` converts.
        """
        return in_turn([self.bind_one(feeds) for feeds in batches])

    def request(self, *batches: Arrays) -> Step[Arrays]:
        """Return a step as a caller sees it: host arrays in, host arrays out, copies included; batches in turn."""
        return in_turn([Step(partial(self.infer_impl, feeds)) for feeds in batches])

    def open_stream(self) -> "torch.cuda.Stream | None":
        """Return the stream that steps are queued on; None where the runner does not expose one."""
        return None

    def wait(self) -> None:
        """Wait for all work that is queued on the stream."""
        if self.stream is not None:
            self.stream.synchronize()

    def step(self, launch: Callable[[], Other]) -> Step[Other]:
        """Make a step on the stream's clock; without a stream, ``launch`` must wait by itself."""
        return self.events.step(launch) if self.events else Step(launch)

    @abstractmethod
    def load(self, path: Path) -> None:
        """Load the artifact and make it ready to run."""

    @abstractmethod
    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Run ``infer`` without its checks."""

    @abstractmethod
    def bind_one(self, feeds: Arrays) -> Step[Result]:
        """Return the step of ``bind`` for one batch."""

    @abstractmethod
    def read(self, result: Result) -> Arrays:
        """Convert the result of a bound step to outputs by name."""


def shapes_of(feeds: Arrays) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that a compiled or captured call is specific to."""
    return tuple(array.shape for array in feeds.values())
