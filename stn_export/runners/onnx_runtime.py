"""Runners that ONNX Runtime runs: on the CPU, on CUDA in several ways, by TensorRT, and as it comes."""

import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import OrtValue

from stn_export.challenges import force_onnx_theta
from stn_export.config import INPUT_NAME, OUTPUT_NAME
from stn_export.probes import PIXELS_PER_UNIT, in_pixels, onnx_weights, with_points
from stn_export.runners.base import Runner, Step

GRAPH_WARM_UPS = 3  # ONNX Runtime captures after two ordinary runs
OURS = "ours"  # instead of a stream's address, which differs from run to run


class OnnxRuntime(Runner):
    """ONNX Runtime with the device's own provider; TF32, which it uses by itself, only where it is asked for."""

    PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

    def load(self, path: Path) -> None:
        self.path = path
        self.session = self.open_session(path, self.provider_options())
        self.options = self.provider_options() | ({"user_compute_stream": OURS} if self.stream else {})
        self.run_options = not_waiting() if self.stream else None  # any options cost 30 µs a call

    def provider_options(self) -> dict[str, str]:
        """What the provider is pinned to."""
        if self.device == "cpu":
            return {}
        return {"use_tf32": str(int(self.tf32)), "cudnn_conv_algo_search": "EXHAUSTIVE"}

    def open_session(self, model: Path | bytes, provider_options: dict[str, str]) -> onnxruntime.InferenceSession:
        """A session on this device and no other."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return self._checked(model, provider_options, options)

    def _checked(
        self, model: Path | bytes, provider_options: dict[str, str], options: onnxruntime.SessionOptions | None
    ) -> onnxruntime.InferenceSession:
        provider = self.PROVIDERS[self.device]
        stream = {"user_compute_stream": str(self.stream.cuda_stream)} if self.stream else {}
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, provider_options | stream)])
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
        return self.open_probe(self.probe[0])

    def open_probe(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        """A session that ``run`` can be called on."""
        return self.open_session(model.SerializeToString(), self.provider_options())

    def weights(self) -> dict[str, np.ndarray]:
        return onnx_weights(self.probe[0])

    def points(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._points_of(self.probe_session, images)

    def forced_points(self, images: np.ndarray, theta: list[list[float]], true: dict) -> dict[str, np.ndarray] | None:
        forced = force_onnx_theta(self.probe[0], theta, true["grid"][0] / PIXELS_PER_UNIT)
        if forced is None:
            return None
        return self._points_of(self.open_probe(forced), images)

    def _points_of(self, session: onnxruntime.InferenceSession, images: np.ndarray) -> dict[str, np.ndarray]:
        names = self.probe[1]
        values = session.run(list(names.values()), {INPUT_NAME: images})
        return in_pixels(dict(zip(names, values, strict=True)))

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        return self.session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]

    def bind_one(self, images: np.ndarray) -> Step:
        return self.step(self.place(images, self.run_options).run)

    def place(self, images: np.ndarray, run_options: onnxruntime.RunOptions | None) -> "Placed":
        """A batch and room for its log-probabilities on the device, bound to the session."""
        classes = self.session.get_outputs()[0].shape[1]
        inputs = OrtValue.ortvalue_from_numpy(images, self.device)
        output = OrtValue.ortvalue_from_numpy(np.zeros((len(images), classes), np.float32), self.device)
        binding = self.session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, inputs)
        binding.bind_ortvalue_output(OUTPUT_NAME, output)
        return Placed(self.session, binding, inputs, output, run_options)

    def read(self, result: OrtValue) -> np.ndarray:
        return result.numpy()


@dataclass(frozen=True)
class Placed:
    """A session with an input and an output bound to it."""

    session: onnxruntime.InferenceSession
    binding: onnxruntime.IOBinding
    inputs: OrtValue
    output: OrtValue
    run_options: onnxruntime.RunOptions | None

    def run(self) -> OrtValue:
        """The output, once it is computed; with ``not_waiting`` options it may be computed later."""
        self.session.run_with_iobinding(self.binding, self.run_options)
        return self.output


def not_waiting(**entries: str) -> onnxruntime.RunOptions:
    """Options of a run that only queues its work on the stream."""
    options = onnxruntime.RunOptions()
    for key, value in ({"disable_synchronize_execution_providers": "1"} | entries).items():
        options.add_run_config_entry(key, value)
    return options


class OnnxRuntimeStream(OnnxRuntime):
    """ONNX Runtime on a stream of ours, so that events can time it."""

    def open_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()


class OnnxRuntimeGraph(OnnxRuntimeStream):
    """The same in ONNX Runtime's own CUDA graph: one for each bound batch.

    ONNX Runtime before 1.27 waits for a replay by itself, and then the time until the host knows is counted too.
    """

    def load(self, path: Path) -> None:
        super().load(path)
        self.graphs = 0
        self.captured: dict[tuple[int, ...], Placed] = {}

    def provider_options(self) -> dict[str, str]:
        return super().provider_options() | {"enable_cuda_graph": "1"}

    def open_probe(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        return self.open_session(model.SerializeToString(), super().provider_options())

    def capture(self, images: np.ndarray) -> Placed:
        """A batch whose run is recorded: afterwards it is replayed."""
        self.graphs += 1
        placed = self.place(images, not_waiting(gpu_graph_id=str(self.graphs)))
        for _ in range(GRAPH_WARM_UPS):
            placed.run()
        self.stream.synchronize()
        return placed

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        if images.shape not in self.captured:
            self.captured[images.shape] = self.capture(images)
        placed = self.captured[images.shape]
        placed.inputs.update_inplace(images)
        placed.run()
        self.stream.synchronize()
        return placed.output.numpy()

    def points(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return super().points(images) | {OUTPUT_NAME: self.infer(images)}

    def bind_one(self, images: np.ndarray) -> Step:
        return self.step(self.capture(images).run)


class TensorRt(OnnxRuntimeStream):
    """TensorRT behind ONNX Runtime: one engine for all batches up to the largest; it uses TF32 by itself."""

    PROVIDERS = {"cuda": "TensorrtExecutionProvider"}
    PROFILE = {"min": 1, "opt": 64, "max": 8192}

    def provider_options(self) -> dict[str, str]:
        size = "x".join(map(str, self.shape))
        shapes = {
            f"trt_profile_{bound}_shapes": f"{INPUT_NAME}:{self.batch or batch}x{size}"
            for bound, batch in self.PROFILE.items()
        }
        return shapes | {"trt_engine_cache_enable": "0"}


class OnnxRuntimeDefault(OnnxRuntime):
    """ONNX Runtime as it comes: default session and provider options, images handed to ``run``."""

    inputs_lie = "host arrays handed to session.run"

    def load(self, path: Path) -> None:
        self.threads = len(os.sched_getaffinity(0))
        super().load(path)
        self.options = {"session": "default options: a thread for each core"}

    def provider_options(self) -> dict[str, str]:
        return {}

    def open_session(self, model: Path | bytes, provider_options: dict[str, str]) -> onnxruntime.InferenceSession:
        return self._checked(model, {}, None)

    def bind_one(self, images: np.ndarray) -> Step:
        return Step(partial(self.infer_impl, images))

    def read(self, result: np.ndarray) -> np.ndarray:
        return result
