"""What every runner can do, and the steps that are timed."""

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

Result = TypeVar("Result")  # what a step gives
Other = TypeVar("Other")


@dataclass(frozen=True)
class Step(Generic[Result]):
    """Something to time: a call runs it, waits until it is done and returns its result.

    ``clock`` gives seconds, as ``time.perf_counter`` does; on a GPU it counts those between events on its stream.
    """

    run: Callable[[], Result]
    clock: Callable[[], float] = time.perf_counter

    def __call__(self) -> Result:
        """One run."""
        return self.run()


def in_turn(steps: Sequence[Step[Result]]) -> Step[Result]:
    """One step that runs the given ones of one runner one after the other, a call each, round and round."""
    if len(steps) == 1:
        return steps[0]
    turn = cycle(steps)
    return Step(lambda: next(turn).run(), steps[0].clock)


class EventClock:
    """Seconds between two events on a CUDA stream, over all steps so far: its work, and its waiting for launches."""

    def __init__(self, stream: "torch.cuda.Stream") -> None:
        self.stream, self.seconds = stream, 0.0
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step(self, launch: Callable[[], Result]) -> Step[Result]:
        """``launch``, which must only queue its work on the stream, as a step on this clock."""

        def run() -> Result:
            self.start.record(self.stream)
            result = launch()
            self.end.record(self.stream)
            self.end.synchronize()
            self.seconds += self.start.elapsed_time(self.end) / 1e3
            return result

        return Step(run, self.read)

    def read(self) -> float:
        """The seconds so far."""
        return self.seconds


class Runner(ABC, Generic[Result]):
    """One artifact loaded on one device (``cpu`` or ``cuda``), fed as its contract says.

    ``Result`` is what its bound steps give, wherever that lies, and ``read`` takes.

    Inputs and outputs are arrays by name. ``options`` are the settings pinned beside threads and TF32; ``threads`` how
    many of the CPU's it may use; ``inputs_lie`` where ``bind`` puts its inputs; ``in_process`` whether it runs in this
    process; ``sums_in_order`` whether long sums are added up one after the other, which loses more than eager does.
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
        """The outputs for inputs that keep to the contract.

        Raises:
            UserError: for other names, shapes or types, an empty batch, or numbers that are not finite: ONNX Runtime's
                and OpenVINO's kernels lose a NaN on the way and would give a confident answer.
        """
        self.check(feeds)
        return self.infer_impl(feeds)

    def check(self, feeds: Arrays) -> None:
        """Refuse what ``infer`` refuses."""
        for spec in self.contract.inputs:
            array = feeds.get(spec.name)
            if array is None or array.dtype != np.dtype(spec.dtype) or not spec.fits(array.shape):
                found = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise UserError(f"input {spec.name} cannot be {found}", f"give at least one example, as {spec.text}")
            if spec.is_float and not np.isfinite(array).all():
                raise UserError(f"input {spec.name} is not finite", "leave out examples with NaN or infinity")
        sizes = {len(feeds[spec.name]) for spec in self.contract.inputs if spec.batched}
        if len(sizes) > 1:
            raise UserError(f"inputs hold different numbers of examples: {sorted(sizes)}", "give as many of each")

    def points(self, feeds: Arrays) -> Arrays:
        """What ``infer`` gives, and the points of the sites that led to it as far as the format shows them."""
        return self.infer(feeds)

    def weights(self) -> Arrays:
        """The parameters that can be read off the artifact, by their names in the program."""
        return {}

    def forced_points(self, feeds: Arrays, site: str, theta: np.ndarray, grid: np.ndarray | None) -> Arrays | None:
        """``points`` with one site's theta replaced, where the format lets one do that; else None.

        Args:
            feeds: as ``infer`` takes them.
            site: its name.
            theta: 2×3, for every image.
            grid: H×W×2, what theta gives there: for files whose theta is folded into the grid. None where theta acts
                on more than the grid, so that a grid cannot stand for it.
        """
        return None

    def bind(self, *batches: Arrays) -> Step[Result]:
        """A step that runs batches of one size already in place on the device, in turn, and waits.

        It keeps alive all that it needs, and returns what ``read`` takes.
        """
        return in_turn([self.bind_one(feeds) for feeds in batches])

    def request(self, *batches: Arrays) -> Step[Arrays]:
        """A step as a caller sees it: host arrays in, host arrays out, copies included; batches in turn."""
        return in_turn([Step(partial(self.infer_impl, feeds)) for feeds in batches])

    def open_stream(self) -> "torch.cuda.Stream | None":
        """The stream that steps are queued on, where it can be had."""
        return None

    def wait(self) -> None:
        """Let all that was queued on the stream be done."""
        if self.stream is not None:
            self.stream.synchronize()

    def step(self, launch: Callable[[], Other]) -> Step[Other]:
        """``launch`` on the stream's clock; without one it must wait by itself."""
        return self.events.step(launch) if self.events else Step(launch)

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read the artifact and make it ready to run."""

    @abstractmethod
    def infer_impl(self, feeds: Arrays) -> Arrays:
        """``infer`` after the checks."""

    @abstractmethod
    def bind_one(self, feeds: Arrays) -> Step[Result]:
        """``bind`` for one batch."""

    @abstractmethod
    def read(self, result: Result) -> Arrays:
        """The outputs in what a bound step returned."""


def shapes_of(feeds: Arrays) -> tuple[tuple[int, ...], ...]:
    """What a compiled or captured call is made for."""
    return tuple(array.shape for array in feeds.values())
