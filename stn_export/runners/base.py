"""What every runner can do, and the steps that are timed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from stn_export.config import CONTRACTS, OUTPUT_NAME
from stn_export.errors import UserError

FLOAT = CONTRACTS["float"].as_dict()


@dataclass(frozen=True)
class Step:
    """Something to time: a call runs it, waits until it is done and returns its result.

    ``clock`` gives seconds, as ``time.perf_counter`` does; on a GPU it counts those between events on its stream.
    """

    run: Callable[[], object]
    clock: Callable[[], float] = time.perf_counter

    def __call__(self) -> object:
        """One run."""
        return self.run()


def in_turn(steps: Sequence[Step]) -> Step:
    """One step that runs the given ones of one runner one after the other, a call each, round and round."""
    if len(steps) == 1:
        return steps[0]
    turn = cycle(steps)
    return Step(lambda: next(turn).run(), steps[0].clock)


class EventClock:
    """Seconds that a CUDA stream was at work between two events, over all steps so far."""

    def __init__(self, stream: "torch.cuda.Stream") -> None:
        self.stream, self.seconds = stream, 0.0
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step(self, launch: Callable[[], object]) -> Step:
        """``launch``, which must only queue its work on the stream, as a step on this clock."""

        def run() -> object:
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


class Runner(ABC):
    """One artifact loaded on one device (``cpu`` or ``cuda``), fed as its input contract says.

    ``options`` are the settings pinned beside threads and TF32; ``threads`` how many of the CPU's it may use;
    ``inputs_lie`` where ``bind`` puts its images.
    """

    inputs_lie = "in place"

    def __init__(self, path: Path, device: str, contract: dict, tf32: bool = False) -> None:
        self.device, self.tf32 = device, tf32
        self.dtype = np.dtype(contract["dtype"])
        self.batch = contract["shape"][0] if isinstance(contract["shape"][0], int) else None
        self.shape = tuple(contract["shape"][1:])
        self.options: dict[str, object] = {}
        self.threads = torch.get_num_threads()
        self.stream = self.open_stream() if device == "cuda" else None
        self.events = EventClock(self.stream) if self.stream is not None else None
        self.load(path)

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Log-probabilities, N×10 float32, of a batch that keeps to the input contract.

        Raises:
            UserError: for another shape or type, an empty batch, or numbers that are not finite: ONNX Runtime's and
                OpenVINO's kernels lose a NaN on the way and would give a confident answer.
        """
        fits = self.batch in (None, len(images)) and len(images) > 0
        if images.dtype != self.dtype or images.shape[1:] != self.shape or images.ndim != 4 or not fits:
            wanted = "×".join(map(str, (self.batch or "N", *self.shape)))
            raise UserError(
                f"a batch of {images.dtype} {images.shape} cannot be classified",
                f"give at least one image, as {self.dtype} of shape {wanted}",
            )
        if not np.isfinite(images).all():
            raise UserError("a batch that is not finite cannot be classified", "leave out images with NaN or infinity")
        return self.infer_impl(np.ascontiguousarray(images))

    def points(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What ``infer`` gives, and what led to it as far as the format lets one look inside; see ``probes``."""
        return {OUTPUT_NAME: self.infer(images)}

    def weights(self) -> dict[str, np.ndarray]:
        """The parameters that can be read off the artifact, by their names in the checkpoint."""
        return {}

    def forced_points(self, images: np.ndarray, theta: list[list[float]], true: dict) -> dict[str, np.ndarray] | None:
        """``points`` with every image's theta replaced, where the format lets one do that; else None.

        Args:
            images: as ``infer`` takes them.
            theta: 2×3.
            true: what the points should be, for graphs whose theta is folded into the grid.
        """
        return None

    def bind(self, *batches: np.ndarray) -> Step:
        """A step that classifies batches of one size already in place on the device, in turn, and waits.

        It keeps alive all that it needs, and returns what ``read`` takes.
        """
        return in_turn([self.bind_one(images) for images in batches])

    def request(self, *batches: np.ndarray) -> Step:
        """A step as a caller sees it: a host array in, a host array out, copies included; batches in turn."""
        return in_turn([Step(partial(self.infer_impl, images)) for images in batches])

    def open_stream(self) -> "torch.cuda.Stream | None":
        """The stream that steps are queued on, where it can be had."""
        return None

    def step(self, launch: Callable[[], object]) -> Step:
        """``launch`` on the stream's clock; without one it must wait by itself."""
        return self.events.step(launch) if self.events else Step(launch)

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read the artifact and make it ready to run."""

    @abstractmethod
    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        """``infer`` after the checks."""

    @abstractmethod
    def bind_one(self, images: np.ndarray) -> Step:
        """``bind`` for one batch."""

    @abstractmethod
    def read(self, result: object) -> np.ndarray:
        """The log-probabilities in what a bound step returned."""
