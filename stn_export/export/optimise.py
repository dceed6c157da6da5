"""ONNX Runtime's own optimiser, run ahead of time and kept to what every runtime understands."""

import tempfile
from pathlib import Path

import onnx
import onnxruntime


def optimise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and drop what does nothing: ONNX Runtime's basic level, which writes standard operators only.

    The levels above it write operators of one processor and one version of ONNX Runtime, which does the same by
    itself when it loads a file.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)
