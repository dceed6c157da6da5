"""Runners that PyTorch runs: eager, compiled, in a CUDA graph, and its own file formats."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import numpy as np
import torch
from torch import Tensor

from stn_export.challenges import force_theta
from stn_export.checkpoint import load_checkpoint
from stn_export.probes import eager_points
from stn_export.runners.base import Runner, Step
from stn_export.torch_files import load_pt2, load_torchscript

GRAPH_WARM_UPS = 3  # calls on a side stream before capture, as PyTorch's own example makes them


class TorchRunner(Runner):
    """A module called by PyTorch in inference mode on the current stream.

    TF32 and cuDNN's search are PyTorch's global settings: the last one opened pins them.
    """

    module: Callable[[Tensor], Tensor]

    def __init__(self, path: Path, device: str, contract: dict, tf32: bool = False) -> None:
        super().__init__(path, device, contract, tf32)
        self.pin()
        if device == "cuda":
            backends = torch.backends
            self.options |= {
                "matmul.allow_tf32": backends.cuda.matmul.allow_tf32,
                "cudnn.allow_tf32": backends.cudnn.allow_tf32,
                "cudnn.benchmark": backends.cudnn.benchmark,
            }

    def pin(self) -> None:
        """TF32 as asked for; cuDNN picks its algorithms by rule, so that what is timed is what was verified."""
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = False

    def open_stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream()

    def forward(self, inputs: Tensor) -> Tensor:
        """The log-probabilities of a batch on the device."""
        with torch.inference_mode():
            return self.module(inputs)

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        return self.read(self.forward(torch.from_numpy(images).to(self.device)))

    def bind_one(self, images: np.ndarray) -> Step:
        inputs = torch.from_numpy(images).to(self.device)
        return self.step(lambda: self.forward(inputs))

    def read(self, result: Tensor) -> np.ndarray:
        return result.detach().cpu().numpy()


class Checkpoint(TorchRunner):
    """The trained network itself."""

    def load(self, path: Path) -> None:
        self.module = load_checkpoint(path).model.to(self.device)


class Eager(Checkpoint):
    """The network as it stands."""

    def points(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return eager_points(self.module, torch.from_numpy(images).to(self.device))

    def forced_points(self, images: np.ndarray, theta: list[list[float]], true: dict) -> dict[str, np.ndarray] | None:
        if not hasattr(self.module, "transformer"):
            return None
        return eager_points(force_theta(self.module, theta), torch.from_numpy(images).to(self.device))


class EagerAutograd(Checkpoint):
    """The network as PyTorch runs it when nothing is said: recording gradients, TF32 in convolutions only."""

    def load(self, path: Path) -> None:
        super().load(path)
        self.module.requires_grad_(True)
        self.options = {"inference_mode": False}

    def pin(self) -> None:
        super().pin()
        torch.backends.cuda.matmul.allow_tf32 = False

    def forward(self, inputs: Tensor) -> Tensor:
        return self.module(inputs)


def own_code(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that calls ``module`` and shares its code with no other.

    ``torch.compile`` keeps what it compiles by code object, and looks through all of it at each call, up to a limit.
    """

    def call(inputs: Tensor) -> Tensor:
        return module(inputs)

    return FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


class Compiled(Checkpoint):
    """``torch.compile``, anew for every batch size; a graph break is an error."""

    SETTINGS = {"backend": "inductor", "mode": "default", "fullgraph": True, "dynamic": False}

    def load(self, path: Path) -> None:
        super().load(path)
        torch._inductor.config.compile_threads = 1  # no idle workers beside what is timed
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a CUDA_HOME without a GPU is no news
        self.module = torch.compile(own_code(self.module), **self.SETTINGS)
        self.options = dict(self.SETTINGS)


@dataclass(frozen=True)
class Captured:
    """A CUDA graph with the buffers it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    output: Tensor

    def replay(self) -> Tensor:
        """Queue it on the current stream."""
        self.graph.replay()
        return self.output


class CudaGraph(Checkpoint):
    """The network captured once for each batch size, then replayed."""

    def load(self, path: Path) -> None:
        super().load(path)
        self.captured: dict[tuple[int, ...], Captured] = {}

    def capture(self, inputs: Tensor) -> Captured:
        """A graph that reads ``inputs``."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARM_UPS):
                self.forward(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.forward(inputs)
        return Captured(graph, inputs, output)

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        if images.shape not in self.captured:
            self.captured[images.shape] = self.capture(torch.from_numpy(images).to(self.device))
        captured = self.captured[images.shape]
        captured.inputs.copy_(torch.from_numpy(images))
        return self.read(captured.replay())

    def bind_one(self, images: np.ndarray) -> Step:
        return self.step(self.capture(torch.from_numpy(images).to(self.device)).replay)


class TorchScript(TorchRunner):
    """A TorchScript file."""

    def load(self, path: Path) -> None:
        self.module = load_torchscript(path, self.device)


class ExportedProgram(TorchRunner):
    """A ``torch.export`` file, run by PyTorch's interpreter of its graph."""

    def load(self, path: Path) -> None:
        self.module = load_pt2(path).to(self.device)


class AotInductor(TorchRunner):
    """A package compiled ahead of time for this very device and processor."""

    def load(self, path: Path) -> None:
        self.module = torch._inductor.aoti_load_package(str(path))
