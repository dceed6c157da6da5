"""Every runner as one row, and the reasons why a runner is unavailable."""

import ctypes.util
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import onnxruntime

from stn_export.errors import installing
from stn_export.native.build import no_compiler
from stn_export.program.specs import BATCH, Contract
from stn_export.run import gpu
from stn_export.run.manifest import DEFAULT_EXPORT, Artifact
from stn_export.runners.base import Runner
from stn_export.runners.external import RUNTIMES, Runtime
from stn_export.runners.external.environments import by_name, why_not
from stn_export.runners.external.runner import Elsewhere
from stn_export.runners.native import Native
from stn_export.runners.onnx_runtime import (
    OnnxRuntime,
    OnnxRuntimeDefault,
    OnnxRuntimeGraph,
    OnnxRuntimeStream,
    TensorRt,
)
from stn_export.runners.openvino import OpenVino
from stn_export.runners.pytorch import (
    AotInductor,
    Captured,
    Compiled,
    CompiledGraph,
    CudaGraph,
    Eager,
    EagerAutograd,
    TorchScript,
)

FEW = 32  # examples that a runner on a slow stand-in is verified on


def no_gpu() -> str:
    """Return why PyTorch cannot use a GPU here; empty where it can."""
    obstacle = gpu.obstacle()
    return obstacle.reason if obstacle else ""


def _with_tf32(missing: Callable[[], str]) -> Callable[[], str]:
    """Extend what tells why a runner is unavailable by GPUs that have no TF32."""
    return lambda: missing() or gpu.no_tf32()


def _no_compiler() -> str:
    if not shutil.which("c++"):
        return "torch.compile needs a C++ compiler (c++), and there is none here"
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return "" if headers.is_file() else "torch.compile needs Python's headers (Python.h), and they are not here"


def _no_triton() -> str:
    return _no_compiler() or ("" if find_spec("triton") else "torch.compile needs Triton on a GPU") or no_gpu()


def _no_cuda_provider() -> str:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA"
    return no_gpu()


def _no_tensorrt() -> str:
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without TensorRT, which needs CUDA"
    installed = ctypes.util.find_library("nvinfer") or find_spec("tensorrt_libs")
    return ("" if installed else "TensorRT (libnvinfer) is not installed beside CUDA") or no_gpu()


def _no_openvino() -> str:
    installed = find_spec("openvino") or not why_not(by_name("openvino"))
    return "" if installed else f"openvino is not installed ({installing('openvino')})"


def _openvino(path: Path, device: str, contract: Contract, tf32: bool) -> Runner:
    """Open OpenVINO in this process where it is installed, else in a process of its own."""
    load = OpenVino if find_spec("openvino") else partial(Elsewhere, runtime=by_name("openvino"))
    return load(path, device, contract, tf32)


@dataclass(frozen=True)
class RunnerSpec:
    """A runner: which format it runs, on which device, and why it is unavailable ("" where it is available).

    ``lowering`` restricts it to artifacts of that lowering; ``captures`` to those that ONNX Runtime can capture as a
    CUDA graph. With ``verify_batch`` it is verified in batches of that size only, padded: it compiles anew for each
    size, which is ``slow`` where it takes seconds or minutes. A ``foreign`` one may refuse a file, and is timed only
    where it was verified; an ``approximate`` one computes float32 files less exactly. ``bounds`` is the row of
    ``TOLERANCES`` for float32 files, where it does not follow from these. ``software`` names a device on the CPU that
    stands in for a GPU: the runner is verified on ``FEW`` examples there, and not timed.
    """

    name: str
    format: str
    device: str
    load: Callable[[Path, str, Contract, bool], Runner]
    unavailable: Callable[[], str] = lambda: ""
    tf32: bool = False
    lowering: str | None = None
    captures: bool = False
    verify_batch: int | None = None
    slow: bool = False
    foreign: bool = False
    approximate: bool = False
    bounds: str = ""
    software: Callable[[], str] = lambda: ""

    @property
    def on_events(self) -> bool:
        """Whether its steps are timed by events on a GPU's stream, not by wall-clock time."""
        return self.device == "cuda" and getattr(self.load, "open_stream", None) is not Runner.open_stream

    def untimed(self) -> str:
        """Return why the runner is not timed here: it cannot run, or only slowly; empty where it is timed."""
        if reason := self.unavailable():
            return reason
        stand_in = self.software()
        return f"{stand_in} stands in for a GPU on the CPU: verified, not timed" if stand_in else ""

    def open(self, path: Path, contract: Contract) -> Runner:
        """Open the artifact at ``path``."""
        return self.load(path, self.device, contract, self.tf32)

    def takes(self, artifact: Artifact) -> bool:
        """Return whether the runner can run the artifact."""
        lowered = self.lowering in (None, artifact.lowering)
        return self.format == artifact.format and lowered and not self.refuses(artifact)

    def refuses(self, artifact: Artifact) -> str:
        """Return why the runner cannot run an artifact of its format; empty where it can."""
        if self.captures and self.format == artifact.format and not artifact.details["cuda"]["graph"]:
            return "some nodes run on the CPU: no CUDA graph"
        return ""

    def verified_as(self, contract: Contract) -> Contract:
        """Return the contract that the runner is verified under: a static batch if ``verify_batch`` is set."""
        return contract.fixed({BATCH: self.verify_batch}) if self.verify_batch else contract

    def tolerance_of(self, precision: str) -> str:
        """Return the key of ``TOLERANCES`` for an artifact of this precision in this runner."""
        if precision != "fp32":
            return precision
        if self.bounds:
            return self.bounds
        return (
            "tf32" if self.tf32 else "approximate" if self.approximate else "cudnn" if self.device == "cuda" else "fp32"
        )


def _elsewhere(runtime: Runtime) -> RunnerSpec:
    """Make the row of an external runtime."""
    return RunnerSpec(
        runtime.runner,
        runtime.format,
        runtime.device,
        partial(Elsewhere, runtime=runtime),
        partial(why_not, runtime),
        verify_batch=None if runtime.open_sizes else 1,
        foreign=True,
        approximate=runtime.approximate,
        software=lambda: runtime.software,
    )


RUNNERS = (
    RunnerSpec("eager-cpu", "pt2", "cpu", Eager),
    RunnerSpec("torchscript-cpu", "torchscript", "cpu", TorchScript),
    RunnerSpec("pt2-cpu", "pt2", "cpu", Captured),
    RunnerSpec("aotinductor-cpu", "aotinductor", "cpu", AotInductor),
    RunnerSpec("native-cpu", "native", "cpu", Native, no_compiler),
    RunnerSpec("onnxruntime-cpu", "onnx", "cpu", OnnxRuntime),
    RunnerSpec("openvino-cpu", "onnx", "cpu", _openvino, _no_openvino, bounds="openvino"),
    RunnerSpec("compiled-cpu", "pt2", "cpu", Compiled, _no_compiler, verify_batch=64, slow=True),
    RunnerSpec("eager-autograd-cpu", "pt2", "cpu", EagerAutograd),
    RunnerSpec("onnxruntime-default-cpu", "onnx", "cpu", OnnxRuntimeDefault, lowering=DEFAULT_EXPORT),
    RunnerSpec("eager-cuda", "pt2", "cuda", Eager, no_gpu),
    RunnerSpec("compiled-cuda", "pt2", "cuda", Compiled, _no_triton, verify_batch=64, slow=True),
    RunnerSpec("cudagraph-cuda", "pt2", "cuda", CudaGraph, no_gpu),
    RunnerSpec("compiled-cudagraph-cuda", "pt2", "cuda", CompiledGraph, _no_triton, verify_batch=64, slow=True),
    RunnerSpec("torchscript-cuda", "torchscript", "cuda", TorchScript, no_gpu),
    RunnerSpec("pt2-cuda", "pt2", "cuda", Captured, no_gpu),
    RunnerSpec("aotinductor-cuda", "aotinductor-cuda", "cuda", AotInductor, no_gpu),
    RunnerSpec("onnxruntime-cuda", "onnx", "cuda", OnnxRuntime, _no_cuda_provider),
    RunnerSpec("onnxruntime-stream-cuda", "onnx", "cuda", OnnxRuntimeStream, _no_cuda_provider),
    RunnerSpec("onnxruntime-graph-cuda", "onnx", "cuda", OnnxRuntimeGraph, _no_cuda_provider, captures=True),
    RunnerSpec("eager-cuda-tf32", "pt2", "cuda", Eager, _with_tf32(no_gpu), tf32=True),
    RunnerSpec("cudagraph-cuda-tf32", "pt2", "cuda", CudaGraph, _with_tf32(no_gpu), tf32=True),
    RunnerSpec("torchscript-cuda-tf32", "torchscript", "cuda", TorchScript, _with_tf32(no_gpu), tf32=True),
    RunnerSpec("onnxruntime-cuda-tf32", "onnx", "cuda", OnnxRuntime, _with_tf32(_no_cuda_provider), tf32=True),
    RunnerSpec(
        "onnxruntime-graph-cuda-tf32",
        "onnx",
        "cuda",
        OnnxRuntimeGraph,
        _with_tf32(_no_cuda_provider),
        tf32=True,
        captures=True,
    ),
    RunnerSpec("onnxruntime-tensorrt-cuda-tf32", "onnx", "cuda", TensorRt, _with_tf32(_no_tensorrt), tf32=True),
    RunnerSpec("eager-autograd-cuda", "pt2", "cuda", EagerAutograd, no_gpu, tf32=True),
    RunnerSpec(
        "onnxruntime-default-cuda",
        "onnx",
        "cuda",
        OnnxRuntimeDefault,
        _no_cuda_provider,
        tf32=True,
        lowering=DEFAULT_EXPORT,
    ),
    *(_elsewhere(runtime) for runtime in RUNTIMES if runtime.name != "openvino"),  # openvino has its row above
)
