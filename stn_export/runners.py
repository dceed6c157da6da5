"""Ways to run an artifact on a device. Verification and the benchmarks use these very same runners.

A runner is one class and one row of ``RUNNERS``. Everything runs with as many threads as PyTorch is set to.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from stn_export.challenges import force_onnx_theta, force_theta
from stn_export.checkpoint import load_checkpoint
from stn_export.config import CONTRACTS, INPUT_NAME, OUTPUT_NAME
from stn_export.errors import UserError
from stn_export.probes import PIXELS_PER_UNIT, eager_points, in_pixels, onnx_weights, with_points
from stn_export.torch_files import load_pt2, load_torchscript

Step = Callable[[], object]
FLOAT = CONTRACTS["float"].as_dict()


class Runner(ABC):
    """One artifact loaded on one device (``cpu`` or ``cuda``), fed as its input contract says."""

    def __init__(self, path: Path, device: str, contract: dict, tf32: bool = False) -> None:
        self.device, self.tf32 = device, tf32
        self.dtype = np.dtype(contract["dtype"])
        self.batch = contract["shape"][0] if isinstance(contract["shape"][0], int) else None
        self.shape = tuple(contract["shape"][1:])
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

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read the artifact and make it ready to run."""

    @abstractmethod
    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        """``infer`` after the checks."""

    @abstractmethod
    def bind(self, images: np.ndarray) -> Step:
        """A callable that classifies ``images``, already in place on the device, and waits until that is done.

        It keeps alive all that it needs, and returns what ``read`` takes.
        """

    @abstractmethod
    def read(self, result: object) -> np.ndarray:
        """The log-probabilities in what a bound step returned."""


class TorchRunner(Runner):
    """A module called by PyTorch in inference mode. TF32 is PyTorch's global setting: the last one opened pins it."""

    module: torch.nn.Module

    def __init__(self, path: Path, device: str, contract: dict, tf32: bool = False) -> None:
        super().__init__(path, device, contract, tf32)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.module(torch.from_numpy(images).to(self.device)).cpu().numpy()

    def bind(self, images: np.ndarray) -> Step:
        inputs = torch.from_numpy(images).to(self.device)
        synchronise = torch.cuda.synchronize if self.device == "cuda" else None

        def step() -> Tensor:
            with torch.inference_mode():
                log_probs = self.module(inputs)
            if synchronise:
                synchronise()
            return log_probs

        return step

    def read(self, result: Tensor) -> np.ndarray:
        return result.cpu().numpy()


class Eager(TorchRunner):
    """The checkpoint itself."""

    def load(self, path: Path) -> None:
        self.module = load_checkpoint(path).model.to(self.device)

    def points(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return eager_points(self.module, torch.from_numpy(images).to(self.device))

    def forced_points(self, images: np.ndarray, theta: list[list[float]], true: dict) -> dict[str, np.ndarray] | None:
        if not hasattr(self.module, "transformer"):
            return None
        return eager_points(force_theta(self.module, theta), torch.from_numpy(images).to(self.device))


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


class OnnxRuntime(Runner):
    """ONNX Runtime with the device's own provider; TF32, which it uses by itself, only where it is asked for."""

    PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

    def load(self, path: Path) -> None:
        self.path = path
        self.session = self.open_session(path)

    def open_session(self, model: Path | bytes) -> onnxruntime.InferenceSession:
        """A session on this device and no other."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        provider = self.PROVIDERS[self.device]
        settings = {"use_tf32": str(int(self.tf32))} if self.device == "cuda" else {}
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)])
        if session.get_providers()[0] != provider:
            raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
        return session

    @cached_property
    def probe(self) -> tuple[onnx.ModelProto, dict[str, str]]:
        """A copy of the model that gives all points, and their names."""
        return with_points(onnx.load(self.path))

    @cached_property
    def probe_session(self) -> onnxruntime.InferenceSession:
        """A session of that copy."""
        return self.open_session(self.probe[0].SerializeToString())

    def weights(self) -> dict[str, np.ndarray]:
        return onnx_weights(self.probe[0])

    def points(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._points_of(self.probe_session, images)

    def forced_points(self, images: np.ndarray, theta: list[list[float]], true: dict) -> dict[str, np.ndarray] | None:
        forced = force_onnx_theta(self.probe[0], theta, true["grid"][0] / PIXELS_PER_UNIT)
        if forced is None:
            return None
        return self._points_of(self.open_session(forced.SerializeToString()), images)

    def _points_of(self, session: onnxruntime.InferenceSession, images: np.ndarray) -> dict[str, np.ndarray]:
        names = self.probe[1]
        values = session.run(list(names.values()), {INPUT_NAME: images})
        return in_pixels(dict(zip(names, values, strict=True)))

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        return self.session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]

    def bind(self, images: np.ndarray) -> Step:
        binding = self.session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, onnxruntime.OrtValue.ortvalue_from_numpy(images, self.device))
        output = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(self.infer_impl(images)), self.device)
        binding.bind_ortvalue_output(OUTPUT_NAME, output)

        def step() -> onnxruntime.OrtValue:
            self.session.run_with_iobinding(binding)
            return output

        return step

    def read(self, result: onnxruntime.OrtValue) -> np.ndarray:
        return result.numpy()


class OpenVino(Runner):
    """OpenVINO on the CPU, held to float32: by itself it computes in bfloat16 where the processor has it."""

    def load(self, path: Path) -> None:
        import openvino  # an optional extra

        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        self.request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        return self.request.infer({INPUT_NAME: images})[OUTPUT_NAME].copy()

    def bind(self, images: np.ndarray) -> Step:
        import openvino

        self.request.set_tensor(INPUT_NAME, openvino.Tensor(images))  # a copy: shared memory would not be kept alive
        return self.request.infer

    def read(self, result: Mapping[str, np.ndarray]) -> np.ndarray:
        return result[OUTPUT_NAME]


def _no_gpu() -> str:
    return "" if torch.cuda.is_available() else "PyTorch sees no GPU here"


def _no_cuda_provider() -> str:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA"
    return _no_gpu()


def _no_openvino() -> str:
    return "" if find_spec("openvino") else "openvino is not installed (pip install 'stn-export[openvino]')"


@dataclass(frozen=True)
class RunnerSpec:
    """One row of the registry: which format it runs, where, and why it cannot run here ("" where it can)."""

    name: str
    format: str
    device: str
    load: Callable[[Path, str, dict, bool], Runner]
    unavailable: Callable[[], str] = lambda: ""
    tf32: bool = False

    def open(self, path: Path, contract: dict = FLOAT) -> Runner:
        """The runner of the artifact at ``path``."""
        return self.load(path, self.device, contract, self.tf32)

    def tolerance_of(self, precision: str) -> str:
        """The row of ``TOLERANCES`` for an artifact of this precision in this runner."""
        return "tf32" if self.tf32 and precision == "fp32" else precision


RUNNERS = (
    RunnerSpec("eager-cpu", "checkpoint", "cpu", Eager),
    RunnerSpec("torchscript-cpu", "torchscript", "cpu", TorchScript),
    RunnerSpec("pt2-cpu", "pt2", "cpu", ExportedProgram),
    RunnerSpec("aotinductor-cpu", "aotinductor", "cpu", AotInductor),
    RunnerSpec("onnxruntime-cpu", "onnx", "cpu", OnnxRuntime),
    RunnerSpec("openvino-cpu", "onnx", "cpu", OpenVino, _no_openvino),
    RunnerSpec("eager-cuda", "checkpoint", "cuda", Eager, _no_gpu),
    RunnerSpec("torchscript-cuda", "torchscript", "cuda", TorchScript, _no_gpu),
    RunnerSpec("pt2-cuda", "pt2", "cuda", ExportedProgram, _no_gpu),
    RunnerSpec("onnxruntime-cuda", "onnx", "cuda", OnnxRuntime, _no_cuda_provider),
    RunnerSpec("eager-cuda-tf32", "checkpoint", "cuda", Eager, _no_gpu, tf32=True),
    RunnerSpec("torchscript-cuda-tf32", "torchscript", "cuda", TorchScript, _no_gpu, tf32=True),
    RunnerSpec("onnxruntime-cuda-tf32", "onnx", "cuda", OnnxRuntime, _no_cuda_provider, tf32=True),
)
