"""The runner on OpenVINO, an optional extra that is imported only where it is used."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stn_export.errors import one_line
from stn_export.onnx_graph.inputs import OPENVINO, of_openvino, openvino_core
from stn_export.program.specs import Arrays
from stn_export.runners.base import Runner, Step
from stn_export.runners.external import RefusedError

Result = Mapping[str, np.ndarray]  # OpenVINO's own memory, which its next call overwrites


class OpenVino(Runner[Result]):
    """OpenVINO on the CPU in float32; its default is bfloat16 where the processor has it."""

    def load(self, path: Path) -> None:
        """Compile the file.

        Raises:
            RefusedError: where OpenVINO cannot convert the file, although it is valid.
        """
        self.options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        core, threads = openvino_core(), {"INFERENCE_NUM_THREADS": self.threads}
        try:
            compiled = core.compile_model(core.read_model(path), "CPU", self.options | threads)
        except RuntimeError as error:  # the only exception of its C++ code
            raise RefusedError(f"OpenVINO cannot convert it: {one_line(error)}") from error
        self.inference = compiled.create_infer_request()
        kinds = {name: port.element_type.get_type_name() for port in compiled.outputs for name in port.names}
        self.kinds = {name: kind for name, kind in kinds.items() if kind in OPENVINO}
        # Copying types that NumPy lacks would convert their values to other types of the same width.
        self.shares = any(port.element_type.get_type_name() in OPENVINO for port in compiled.inputs)

    def infer_impl(self, feeds: Arrays) -> Arrays:
        """Run a batch and copy the outputs."""
        results = self.inference.infer(feeds, share_inputs=self.shares)
        return self._typed({name: results[name].copy() for name in self.outputs})

    def _typed(self, outputs: Arrays) -> Arrays:
        """Restore the types that OpenVINO returns as others."""
        if not self.kinds:
            return outputs
        return outputs | {name: of_openvino(outputs[name], self.kinds[name]) for name in outputs if name in self.kinds}

    def bind_one(self, feeds: Arrays) -> Step[Result]:
        """Bind a batch as OpenVINO's tensors."""
        import openvino

        tensors = {
            name: openvino.Tensor(array) for name, array in feeds.items()
        }  # copies, as shared memory would not be kept alive

        def run() -> Result:
            for name, tensor in tensors.items():
                self.inference.set_tensor(name, tensor)
            return self.inference.infer()

        return Step(run)

    def read(self, result: Result) -> Arrays:
        """Copy the outputs, which the next run overwrites."""
        return self._typed({name: np.array(result[name]) for name in self.outputs})
