"""Runners on ONNX Runtime: CPU, CUDA in several ways, TensorRT, and its defaults."""

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import OrtValue

from stn_export.onnx_graph.inputs import runs_of
from stn_export.onnx_graph.model import HALVES, walk
from stn_export.onnx_graph.points import point_values, weights_of, with_input, with_outputs
from stn_export.program.specs import Arrays, TensorSpec
from stn_export.run.environment import cache_directory
from stn_export.runners.base import Runner, Step, shapes_of

GRAPH_WARM_UPS = 3  # ONNX Runtime captures after two ordinary runs
OURS = "ours"  # instead of a stream's address, which differs from run to run


Result = Mapping[str, OrtValue | np.ndarray]  # on the device, or on the host where ``run`` itself gave it


class OnnxRuntime(Runner[Result]):
    """ONNX Runtime with the device's own provider; TF32, its default on CUDA, only where it is asked for."""

    PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

    def load(self, path: Path) -> None:
        """Open a session for the file."""
        self.path = path
        self.forcing: dict[str, onnxruntime.InferenceSession] = {}  # by the value that was made an input
        self.session = self.open_session(path, self.provider_options())
        self.options = {**self.provider_options(), **({"user_compute_stream": OURS} if self.stream else {})}
        self.run_options = not_waiting() if self.stream else None  # any options cost 30 µs a call

    def provider_options(self) -> dict[str, str]:
        """Return the settings that the provider is pinned to."""
        if self.device == "cpu":
            return {}
        # Without TF32 ONNX Runtime keeps convolutions off the tensor cores, in half precision too.
        return {"use_tf32": str(int(self.tf32 or self.is_half)), "cudnn_conv_algo_search": "EXHAUSTIVE"}

    @property
    def is_half(self) -> bool:
        """Whether the file has weights in half precision."""
        return _precisions(self.path, self.path.stat().st_mtime_ns).half

    def open_session(self, model: Path | bytes, provider_options: dict[str, str]) -> onnxruntime.InferenceSession:
        """Open a session on this device, without fallback to another."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return self._checked(model, provider_options, options)

    def _checked(
        self, model: Path | bytes, provider_options: dict[str, str], options: onnxruntime.SessionOptions | None
    ) -> onnxruntime.InferenceSession:
        """Open a session, and raise where ONNX Runtime fell back to another provider."""
        provider = self.PROVIDERS[self.device]
        stream = {"user_compute_stream": str(self.stream.cuda_stream)} if self.stream else {}
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, provider_options | stream)])
        if session.get_providers()[0] != provider:
            raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
        return session

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The file's content."""
        return onnx.load(self.path)

    @cached_property
    def shown(self) -> dict[str, str]:
        """The graph's values that are points of sites, by point, then the outputs."""
        return point_values(self.model) | {name: name for name in self.outputs}

    @cached_property
    def probe_session(self) -> onnxruntime.InferenceSession:
        """A session of a copy of the model whose outputs include all points."""
        return self.open_probe(self.model)

    def open_probe(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        """Open a session for ``run`` whose outputs include all points."""
        probed = with_outputs(model, list(self.shown.values()))
        return self.open_session(probed.SerializeToString(), self.provider_options())

    def weights(self) -> Arrays:
        """Return the initialisers by their names in the program."""
        return weights_of(self.model)

    def points(self, feeds: Arrays) -> Arrays:
        """Run a copy of the model whose outputs include all points."""
        self.check(feeds)
        return self._points_of(self.probe_session, feeds, self.shown)

    def forced_points(self, feeds: Arrays, site: str, theta: np.ndarray, grid: np.ndarray | None) -> Arrays | None:
        """Run a copy of the model in which theta, or else the grid, is an input."""
        for point, value in ((f"{site}/theta", theta), (f"{site}/grid", grid)):
            name = self.shown.get(point)
            if value is not None and name is not None:
                usual = self._points_of(self.probe_session, feeds, {point: name})[point]
                fed = np.ascontiguousarray(np.broadcast_to(value, usual.shape).astype(usual.dtype))
                shown = {other: shape for other, shape in self.shown.items() if other != point}
                if name not in feeds and name not in self.forcing:
                    self.forcing[name] = self.open_probe(with_input(self.model, name, fed.dtype))
                session = self.probe_session if name in feeds else self.forcing[name]
                return {point: fed} | self._points_of(session, feeds | {name: fed}, shown)
        return None

    @staticmethod
    def _points_of(session: onnxruntime.InferenceSession, feeds: Arrays, shown: dict[str, str]) -> Arrays:
        computed = {point: name for point, name in shown.items() if name not in feeds}
        values = session.run(list(computed.values()), feeds) if computed else []  # an empty list would mean all outputs
        points = dict(zip(computed, values, strict=True))
        return {point: points[point] if point in points else feeds[name] for point, name in shown.items()}

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Run the session on host arrays."""
        return dict(zip(self.outputs, self.run_session(self.outputs, feeds), strict=True))

    @cached_property
    def run_session(self) -> Callable[..., list]:
        """A function that runs the session, also with types that its Python binding does not know."""
        return runs_of(self.session)

    def bind_one(self, feeds: Arrays) -> Step[Result]:
        """Bind a batch on the device."""
        return self.step(self.place(feeds, self.session, self.run_options).run)

    def place(
        self, feeds: Arrays, session: onnxruntime.InferenceSession, run_options: onnxruntime.RunOptions | None
    ) -> "Placed":
        """Copy a batch to the device, allocate its outputs there, and bind both to a session."""
        inputs = {name: OrtValue.ortvalue_from_numpy(array, self.device) for name, array in feeds.items()}
        room = {name: np.zeros_like(array) for name, array in self.infer_plainly(feeds).items()}
        outputs = {name: OrtValue.ortvalue_from_numpy(array, self.device) for name, array in room.items()}
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return Placed(session, binding, inputs, outputs, run_options)

    def infer_plainly(self, feeds: Arrays) -> Arrays:
        """Return the outputs of an ordinary run, even if the session captures CUDA graphs."""
        return self.infer_impl(feeds)

    def read(self, result: Result) -> Arrays:
        """Copy outputs to host arrays."""
        return {name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in result.items()}


@dataclass(frozen=True)
class Placed:
    """A session with inputs and outputs bound to it."""

    session: onnxruntime.InferenceSession
    binding: onnxruntime.IOBinding
    inputs: dict[str, OrtValue]
    outputs: dict[str, OrtValue]
    run_options: onnxruntime.RunOptions | None

    def run(self) -> Result:
        """Run and return the outputs; with ``not_waiting`` options they may be computed later."""
        self.session.run_with_iobinding(self.binding, self.run_options)
        return self.outputs


class Precisions(NamedTuple):
    """Whether a file has weights in half precision, and whether it has quantised values."""

    half: bool
    quantised: bool


@lru_cache(maxsize=64)
def _precisions(path: Path, written: int) -> Precisions:
    """Read a file's precisions; ``written`` (nanoseconds) tells what lies at a path from what lay there before.

    Once for a file: a session is opened for every paired comparison, and its memory and time are measured.
    """
    graph = onnx.load(path, load_external_data=False).graph
    half = any(tensor.data_type in HALVES for tensor in graph.initializer)
    return Precisions(half, any(node.op_type == "DequantizeLinear" for node in walk(graph)))


def not_waiting(**entries: str) -> onnxruntime.RunOptions:
    """Return run options with which a run only queues its work on the stream."""
    options = onnxruntime.RunOptions()
    for key, value in ({"disable_synchronize_execution_providers": "1"} | entries).items():
        options.add_run_config_entry(key, value)
    return options


class OnnxRuntimeStream(OnnxRuntime):
    """ONNX Runtime on a stream of this package, so that events can time it."""

    def open_stream(self) -> torch.cuda.Stream:
        """Return a new stream."""
        return torch.cuda.Stream()


class OnnxRuntimeGraph(OnnxRuntimeStream):
    """ONNX Runtime with its own CUDA graphs, one for each bound batch, each in a session of its own.

    A session plans convolutions anew for each new shape, and a graph that it captured before would replay the old plan.
    ONNX Runtime before 1.27 waits for a replay by itself; then the time until the host is notified counts too.
    """

    def load(self, path: Path) -> None:
        """Open a session for the file, without captured graphs yet."""
        super().load(path)
        self.sessions = [self.session]  # without a captured graph yet
        self.captured: dict[tuple, Placed] = {}

    def provider_options(self) -> dict[str, str]:
        """Return the pinned settings, CUDA graphs enabled."""
        return super().provider_options() | {"enable_cuda_graph": "1"}

    def open_probe(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        """Open a session without CUDA graphs whose outputs include all points."""
        probed = with_outputs(model, list(self.shown.values()))
        return self.open_session(probed.SerializeToString(), super().provider_options())

    def infer_plainly(self, feeds: Arrays) -> Arrays:
        """Return the outputs of the session without CUDA graphs."""
        return {name: array for name, array in super().points(feeds).items() if name in self.outputs}

    def capture(self, feeds: Arrays) -> Placed:
        """Bind a batch and capture its run; later runs replay it."""
        session = self.sessions.pop() if self.sessions else self.open_session(self.path, self.provider_options())
        placed = self.place(feeds, session, not_waiting(gpu_graph_id="1"))
        for _ in range(GRAPH_WARM_UPS):
            placed.run()
        self.wait()
        return placed

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Replay the graph that was captured for these shapes, capturing it first if needed."""
        key = shapes_of(feeds)
        if key not in self.captured:
            self.captured[key] = self.capture(feeds)
        placed = self.captured[key]
        for name, array in feeds.items():
            placed.inputs[name].update_inplace(array)
        placed.run()
        self.wait()
        return self.read(placed.outputs)

    def points(self, feeds: Arrays) -> Arrays:
        """Return the points of a session without CUDA graphs, and the outputs of the graph."""
        return super().points(feeds) | self.infer(feeds)

    def bind_one(self, feeds: Arrays) -> Step[Result]:
        """Capture a graph for a batch, and return the step that replays it."""
        return self.step(self.capture(feeds).run)


TENSORRT_LIBRARIES = ("libnvinfer.so", "libnvinfer_plugin.so", "libnvonnxparser.so")  # in the order of their needs


class TensorRt(OnnxRuntimeStream):
    """TensorRT as ONNX Runtime's provider; TF32 is its default.

    What is timed runs in an engine built for its very batch, everything else in one for all batches up to the largest.
    """

    PROVIDERS = {"cuda": "TensorrtExecutionProvider"}
    PROFILE = {"min": 1, "opt": 64, "max": 8192}

    def load(self, path: Path) -> None:
        """Open a session for the file, with TensorRT's libraries from wherever they are installed."""
        preload_tensorrt()
        super().load(path)

    def provider_options(self) -> dict[str, str]:
        """Return the smallest, typical and largest shapes of the engine, and the precisions that the file has."""
        return self.options_for(self.PROFILE)

    def options_for(self, profile: Mapping[str, int]) -> dict[str, str]:
        """Return the settings for an engine of these batches; how fast kernels are is kept for the next build."""
        shapes = {
            f"trt_profile_{bound}_shapes": ",".join(
                f"{spec.name}:{_sizes(spec, batch)}" for spec in self.contract.inputs
            )
            for bound, batch in profile.items()
        }
        switches = {
            "trt_fp16_enable": self.is_half,
            "trt_bf16_enable": self.is_half,
            "trt_int8_enable": self.is_quantised,
        }
        kept = {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(cache_directory() / "tensorrt")}
        return shapes | {name: str(int(on)) for name, on in switches.items()} | kept | {"trt_engine_cache_enable": "0"}

    @property
    def is_quantised(self) -> bool:
        """Whether the file has quantised values."""
        return _precisions(self.path, self.path.stat().st_mtime_ns).quantised

    def bind_one(self, feeds: Arrays) -> Step[Result]:
        """Bind a batch to a session with an engine of its own."""
        spec = next((spec for spec in self.contract.inputs if spec.batched), self.contract.inputs[0])
        batch = len(feeds[spec.name]) if spec.batched else 1
        session = self.open_session(self.path, self.options_for(dict.fromkeys(self.PROFILE, batch)))
        return self.step(self.place(feeds, session, self.run_options).run)


def preload_tensorrt() -> None:
    """Load TensorRT's libraries from its pip packages, where ONNX Runtime does not look; nothing without them."""
    found = find_spec("tensorrt_libs")
    for folder in map(Path, (found.submodule_search_locations or ()) if found else ()):
        for name in TENSORRT_LIBRARIES:
            for path in sorted(folder.glob(f"{name}*"))[:1]:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _sizes(spec: TensorSpec, batch: int) -> str:
    return "x".join(str(size if isinstance(size, int) else batch if size == "N" else 32) for size in spec.shape)


class OnnxRuntimeDefault(OnnxRuntime):
    """ONNX Runtime with default session and provider options, host arrays passed to ``run``."""

    inputs_lie = "host arrays handed to session.run"

    def load(self, path: Path) -> None:
        """Open a session for the file, with a thread for each core."""
        self.threads = len(os.sched_getaffinity(0))
        super().load(path)
        self.options = {"session": "default options: a thread for each core"}

    def provider_options(self) -> dict[str, str]:
        """Return no settings."""
        return {}

    def open_session(self, model: Path | bytes, provider_options: dict[str, str]) -> onnxruntime.InferenceSession:
        """Open a session with default options."""
        return self._checked(model, {}, None)

    def bind_one(self, feeds: Arrays) -> Step[Result]:
        """Return a step that passes host arrays to ``run``."""
        return Step(partial(self.infer_impl, feeds))
