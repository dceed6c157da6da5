"""The runner that OpenVINO runs: an optional extra, imported only where it is used."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stn_export.config import INPUT_NAME, OUTPUT_NAME
from stn_export.runners.base import Runner, Step


class OpenVino(Runner):
    """OpenVINO on the CPU, held to float32: by itself it computes in bfloat16 where the processor has it."""

    def load(self, path: Path) -> None:
        import openvino

        self.options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        core, threads = openvino.Core(), {"INFERENCE_NUM_THREADS": self.threads}
        compiled = core.compile_model(core.read_model(path), "CPU", self.options | threads)
        self.inference = compiled.create_infer_request()

    def infer_impl(self, images: np.ndarray) -> np.ndarray:
        return self.inference.infer({INPUT_NAME: images})[OUTPUT_NAME].copy()

    def bind_one(self, images: np.ndarray) -> Step:
        import openvino

        tensor = openvino.Tensor(images)  # a copy: shared memory would not be kept alive

        def run() -> Mapping[str, np.ndarray]:
            self.inference.set_tensor(INPUT_NAME, tensor)
            return self.inference.infer()

        return Step(run)

    def read(self, result: Mapping[str, np.ndarray]) -> np.ndarray:
        return result[OUTPUT_NAME]
