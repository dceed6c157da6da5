"""Runners on PyTorch: eager, compiled, as CUDA graphs, and its own file formats."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from stn_export.errors import UserError, one_line
from stn_export.program.formats import load_torchscript
from stn_export.program.program import Program, load_program
from stn_export.program.specs import Arrays, Contract, numbers_of
from stn_export.run.environment import use_own_compile_cache
from stn_export.run.provenance import was_written_here
from stn_export.runners.base import Runner, Step, shapes_of
from stn_export.runners.external import RefusedError

GRAPH_WARM_UPS = 3  # calls on a side stream before capture, as PyTorch's own example makes them


class TorchRunner(Runner[object]):
    """A module called by PyTorch in inference mode on the current stream, inputs by position.

    TF32 and cuDNN's search are global settings of PyTorch: the runner opened last sets them.
    """

    module: Callable[..., object]

    def __init__(self, path: Path, device: str, contract: Contract, tf32: bool = False) -> None:
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
        """Set TF32 as asked for; have cuDNN choose algorithms by rule, so that what is timed is what was verified."""
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = False

    def open_stream(self) -> torch.cuda.Stream:
        """Return the current stream."""
        return torch.cuda.current_stream()

    def place(self, feeds: Arrays) -> list[Tensor]:
        """Copy inputs to the device, in the contract's order."""
        return [torch.from_numpy(feeds[spec.name]).to(self.device) for spec in self.contract.inputs]

    def forward(self, inputs: list[Tensor]) -> object:
        """Call the module on inputs on the device."""
        with torch.inference_mode():
            return self.module(*inputs)

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Copy a batch to the device, call the module and copy the outputs back."""
        return self.read(self.forward(self.place(feeds)))

    def bind_one(self, feeds: Arrays) -> Step[object]:
        """Copy a batch to the device, and return the step that calls the module on it."""
        inputs = self.place(feeds)
        return self.step(lambda: self.forward(inputs))

    def read(self, result: object) -> Arrays:
        """Copy the tensors of a result to host arrays, by output name."""
        leaves = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if len(leaves) != len(self.outputs):
            mismatch = f"gives {len(leaves)} outputs instead of {len(self.outputs)}: {', '.join(self.outputs)}"
            raise UserError(f"the file {mismatch}", "name them all in its contract")
        return {name: leaf.detach().cpu().numpy() for name, leaf in zip(self.outputs, leaves, strict=True)}


class OfProgram(TorchRunner):
    """The network itself: its own code where that can be imported, else the captured graph."""

    program: Program
    network: nn.Module

    def load(self, path: Path) -> None:
        """Load the program and, where possible, rebuild the network from its own code."""
        self.program = load_program(path, self.contract, was_written_here(path))
        own = self.program.own_module()
        self.options = {"code": "the module's own" if not isinstance(own, str) else f"the captured graph: {own}"}
        self.network = self.program.on(self.device) if isinstance(own, str) else own.to(self.device)
        self.module = self.network


class Captured(TorchRunner):
    """A ``torch.export`` file, run as its captured graph, whose points can be read."""

    def load(self, path: Path) -> None:
        """Load the program's graph onto the device."""
        self.program = load_program(path, self.contract)
        self.module = self.program.on(self.device)

    def points(self, feeds: Arrays) -> Arrays:
        """Run the graph and return points and outputs."""
        self.check(feeds)
        return _arrays(self.program.points(self.place(feeds)))

    def forced_points(self, feeds: Arrays, site: str, theta: np.ndarray, grid: np.ndarray | None) -> Arrays | None:
        """Run the graph with theta, or else the grid, overridden."""
        points = {point for site in self.program.sites for point in site.nodes()}
        for point, value in ((f"{site}/theta", theta), (f"{site}/grid", grid)):
            if point in points and value is not None:
                forced = {point: torch.from_numpy(value.astype(np.float32)).to(self.device)}
                return _arrays(self.program.points(self.place(feeds), forced))
        return None


def _arrays(points: dict[str, Tensor]) -> Arrays:
    return {name: numbers_of(value) for name, value in points.items()}


class Eager(OfProgram):
    """The network in eager PyTorch."""


class EagerAutograd(OfProgram):
    """The network as PyTorch runs it by default: recording gradients, TF32 in convolutions only."""

    def load(self, path: Path) -> None:
        """Load the network with gradients enabled."""
        super().load(path)
        self.network.requires_grad_(True)
        self.options |= {"inference_mode": False}

    def pin(self) -> None:
        """Keep TF32 out of matrix products, as PyTorch does by default."""
        super().pin()
        torch.backends.cuda.matmul.allow_tf32 = False

    def forward(self, inputs: list[Tensor]) -> object:
        """Call the module with gradients recorded."""
        return self.module(*inputs)


def own_code(module: Callable[..., object]) -> Callable[..., object]:
    """Return a function that calls ``module`` and shares its code object with no other.

    ``torch.compile`` caches what it compiles per code object, and searches that cache at each call, up to a limit.
    """

    def call(*inputs: Tensor) -> object:
        return module(*inputs)

    return FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


class _Settings(TypedDict):
    """Arguments of ``torch.compile``."""

    backend: str
    mode: str
    fullgraph: bool
    dynamic: bool


class Compiled(OfProgram):
    """``torch.compile``, anew for every batch size; a graph break is an error."""

    sums_in_order = True

    SETTINGS: _Settings = {"backend": "inductor", "mode": "default", "fullgraph": True, "dynamic": False}

    def load(self, path: Path) -> None:
        """Load the network and wrap it in ``torch.compile``; compilation starts at the first call."""
        super().load(path)
        use_own_compile_cache()
        torch._inductor.config.compile_threads = 1  # no idle workers during timings
        torch._inductor.config.cpp.threads = torch.get_num_threads()  # code for fewer threads is another program
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # hides: CUDA_HOME without a GPU
        self.module = torch.compile(own_code(self.module), **self.SETTINGS)
        self.options |= dict(self.SETTINGS)

    def forward(self, inputs: list[Tensor]) -> object:
        """Call the compiled module.

        Raises:
            RefusedError: where ``torch.compile`` cannot compile the module's code, although the file is valid.
        """
        try:
            return super().forward(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:  # includes Inductor's errors
            raise RefusedError(f"torch.compile cannot compile it: {one_line(error)}") from error


@dataclass(frozen=True)
class Graph:
    """A CUDA graph, with the buffers and the module that it uses but does not keep alive."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: object
    module: Callable[..., object]

    def replay(self) -> object:
        """Queue the graph on the current stream."""
        self.graph.replay()
        return self.output


class CudaGraph(OfProgram):
    """The network captured as a CUDA graph per batch size, then replayed."""

    def load(self, path: Path) -> None:
        """Load the network, without captured graphs yet."""
        super().load(path)
        self.captured: dict[tuple, Graph] = {}

    def capture(self, inputs: list[Tensor]) -> Graph:
        """Capture a graph that reads ``inputs``."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARM_UPS):
                self.forward(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.forward(inputs)
        return Graph(graph, inputs, output, self.module)

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Replay the graph that was captured for these shapes, capturing it first if needed."""
        key = shapes_of(feeds)
        if key not in self.captured:
            self.captured[key] = self.capture(self.place(feeds))
        captured = self.captured[key]
        for target, source in zip(captured.inputs, self.place(feeds), strict=True):
            target.copy_(source)
        return self.read(captured.replay())

    def bind_one(self, feeds: Arrays) -> Step[object]:
        """Capture a graph for a batch, and return the step that replays it."""
        return self.step(self.capture(self.place(feeds)).replay)


class CompiledGraph(CudaGraph, Compiled):
    """The compiled network captured as a CUDA graph; the warm-up calls compile it."""


class TorchScript(TorchRunner):
    """A TorchScript file."""

    def load(self, path: Path) -> None:
        """Load the file onto the device."""
        self.module = load_torchscript(path, self.device)


class AotInductor(TorchRunner):
    """A package compiled ahead of time for this device and processor."""

    sums_in_order = True

    def load(self, path: Path) -> None:
        """Load the package."""
        self.module = torch._inductor.aoti_load_package(str(path))

    def place(self, feeds: Arrays) -> list[Tensor]:
        """Copy inputs to the device as contiguous tensors: compiled code ignores strides."""
        return [value.contiguous() for value in super().place(feeds)]
