"""Ways to run an artifact on a device. Verification and the benchmarks use these very same runners.

A runner is one class and one row of ``RUNNERS``. Everything runs with as many threads as PyTorch is set to.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from stn_export.checkpoint import load_checkpoint
from stn_export.config import IMAGE_SHAPE, INPUT_NAME, OUTPUT_NAME
from stn_export.errors import UserError
from stn_export.torchscript import load_torchscript

Step = Callable[[], None]


class Runner(ABC):
    """One artifact loaded on one device (``cpu`` or ``cuda``)."""

    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        self.load(path)

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Log-probabilities, N×10 float32, of N×3×32×32 normalised float32 images.

        Raises:
            UserError: for another shape or type.
        """
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != IMAGE_SHAPE or len(images) == 0:
            raise UserError(
                f"a batch of {images.dtype} {images.shape} cannot be classified",
                "give at least one image, as float32 of shape N×3×32×32",
            )
        return self.infer_impl(np.ascontiguousarray(images))

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read the artifact and make it ready to run."""

    @abstractmethod
    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        """``infer`` after the checks."""

    @abstractmethod
    def bind(self, images: np.ndarray) -> Step:
        """A callable that classifies ``images``, already in place on the device, and waits until that is done."""


class TorchRunner(Runner):
    """A module called by PyTorch in inference mode."""

    module: torch.nn.Module

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.module(torch.from_numpy(images).to(self.device)).cpu().numpy()

    def bind(self, images: np.ndarray) -> Step:
        inputs = torch.from_numpy(images).to(self.device)
        synchronise = torch.cuda.synchronize if self.device == "cuda" else None

        def step() -> None:
            with torch.inference_mode():
                self.module(inputs)
            if synchronise:
                synchronise()

        return step


class Eager(TorchRunner):
    """The checkpoint itself: the reference for everything else."""

    def load(self, path: Path) -> None:
        self.module = load_checkpoint(path).model.to(self.device)


class TorchScript(TorchRunner):
    """A TorchScript file."""

    def load(self, path: Path) -> None:
        self.module = load_torchscript(path, self.device)


class OnnxRuntime(Runner):
    """ONNX Runtime with the device's own provider; TF32 is off, as in PyTorch's matrix products."""

    PROVIDERS = {"cpu": ("CPUExecutionProvider", {}), "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"})}

    def load(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        provider = self.PROVIDERS[self.device]
        self.session = onnxruntime.InferenceSession(path, options, providers=[provider])
        if self.session.get_providers()[0] != provider[0]:
            raise RuntimeError(f"ONNX Runtime fell back to {self.session.get_providers()[0]}")

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        return self.session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]

    def bind(self, images: np.ndarray) -> Step:
        binding = self.session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, onnxruntime.OrtValue.ortvalue_from_numpy(images, self.device))
        output = self.infer_impl(images)
        binding.bind_ortvalue_output(OUTPUT_NAME, onnxruntime.OrtValue.ortvalue_from_numpy(output, self.device))
        return lambda: self.session.run_with_iobinding(binding)


def _no_gpu() -> str:
    return "" if torch.cuda.is_available() else "PyTorch sees no GPU here"


def _no_cuda_provider() -> str:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA"
    return _no_gpu()


@dataclass(frozen=True)
class RunnerSpec:
    """One row of the registry: which format it runs, where, and why it cannot run here ("" where it can)."""

    name: str
    format: str
    device: str
    load: Callable[[Path, str], Runner]
    unavailable: Callable[[], str] = lambda: ""

    def open(self, path: Path) -> Runner:
        """The runner of the artifact at ``path``."""
        return self.load(path, self.device)


RUNNERS = (
    RunnerSpec("eager-cpu", "checkpoint", "cpu", Eager),
    RunnerSpec("torchscript-cpu", "torchscript", "cpu", TorchScript),
    RunnerSpec("onnxruntime-cpu", "onnx", "cpu", OnnxRuntime),
    RunnerSpec("eager-cuda", "checkpoint", "cuda", Eager, _no_gpu),
    RunnerSpec("torchscript-cuda", "torchscript", "cuda", TorchScript, _no_gpu),
    RunnerSpec("onnxruntime-cuda", "onnx", "cuda", OnnxRuntime, _no_cuda_provider),
)
